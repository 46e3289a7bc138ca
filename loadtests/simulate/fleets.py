"""Simulations of many proxies: a fleet that loses a region, a storm that retries must not become, a spike of load.

No proxy knows of the others. What keeps them from swinging together is in `routing.state`: headroom that follows
every single answer, and costs that follow slowly.
"""

from __future__ import annotations

from .virtual import Clock, Proxy, Site
from .worlds import RTTS, Result, between, shares_of, summary, upstream, world


def _fleet(clock: Clock, sites: dict[str, list[Site]], proxies: int, rate: float, end: float, seed: int) -> list[Proxy]:
    found = [Proxy(clock, upstream(sites), sites, seed * 1000 + index) for index in range(proxies)]
    for proxy in found:
        clock.after(proxy.rng.random() / rate, proxy.drive, rate, end)
    return found


def _extra(fleet: list[Proxy]) -> float:
    return round(sum(proxy.attempts for proxy in fleet) / max(1, sum(proxy.requests for proxy in fleet)) - 1, 4)


def fleet(
    *,
    seed: int = 1,
    proxies: int = 200,
    rate: float = 10.0,
    capacity: float = 1.3,
    split: float = 0.5,
    shed: bool = False,
    end: float = 60.0,
    window: tuple[float, float] = (15.0, 40.0),
    service_s: float = 0.01,
    rtts: dict[str, float] = RTTS,
) -> Result:
    """Independent proxies; us fails, and eu and ap together can carry `capacity` times the load (`split` of it in
    eu).
    """
    clock = Clock()
    load = proxies * rate
    sites = world(clock, seed, rtts=rtts, service=lambda rng: rng.expovariate(1 / service_s))
    for name, share in (("us", 1.0), ("eu", split), ("ap", 1 - split)):
        site = sites[name][0]
        site.servers = max(1, round(load * capacity * share * service_s))
        site.queue_max = site.servers if shed else 1 << 60
    found_proxies = _fleet(clock, sites, proxies, rate, end, seed)
    clock.at(window[0], _darken, sites["us"][0], True)
    clock.at(window[1], _darken, sites["us"][0], False)
    clock.run(end + 16.0)
    records = [record for proxy in found_proxies for record in proxy.records]
    during = between(records, window[0] - 0.2, window[1])
    steady = between(records, window[0] + 5.0, window[1])
    found = summary(during, rtts["us"])
    found["steady"] = summary(steady, rtts["us"])
    found["queue_peak"] = {name: site[0].queue_peak for name, site in sites.items()}
    found["shares_each_second"] = [
        shares_of(between(records, float(second), second + 1.0)) for second in range(int(window[0]), int(end))
    ]
    eu = [row["eu"] for row in found["shares_each_second"][5 : int(window[1] - window[0])]]
    found["eu_share_swing"] = round(max(eu) - min(eu), 3)
    found["drains_of_others"] = sum(
        change.region != "us" and change.after.name == "DRAINED"
        for proxy in found_proxies
        for _, change in proxy.changes
    )
    found["us_drains_per_proxy"] = round(
        sum(
            change.region == "us" and change.after.name == "DRAINED"
            for proxy in found_proxies
            for _, change in proxy.changes
        )
        / proxies,
        2,
    )
    found["extra"] = _extra(found_proxies)
    return found


def _darken(site: Site, on: bool) -> None:
    site.dark = on


def _unavailable(site: Site, on: bool) -> None:
    site.status = 503 if on else 200


def storm(
    *, seed: int = 1, proxies: int = 20, rate: float = 20.0, end: float = 60.0, rtts: dict[str, float] = RTTS
) -> Result:
    """Every region answers 503 from second 20 to 40: the attempts that origins see, per request."""
    clock = Clock()
    sites = world(clock, seed, rtts=rtts)
    fleet = _fleet(clock, sites, proxies, rate, end, seed)
    attempts = {}

    def count(when: str) -> None:
        attempts[when] = (sum(proxy.attempts for proxy in fleet), sum(proxy.requests for proxy in fleet))

    for found in sites.values():
        clock.at(20.0, _unavailable, found[0], True)
        clock.at(40.0, _unavailable, found[0], False)
    clock.at(20.0, count, "begin")
    clock.at(40.0, count, "end")
    clock.run(end + 20.0)
    records = [record for proxy in fleet for record in proxy.records]
    sent, asked = (attempts["end"][index] - attempts["begin"][index] for index in (0, 1))
    return {
        "extra_during": round(sent / asked - 1.0, 4),
        "failed_during": round(sum(r.status >= 500 for r in between(records, 20.0, 40.0)) / asked, 3),
        "failed_after_5_s": sum(r.status >= 500 for r in between(records, 45.0, end)),
        "after": summary(between(records, 45.0, end), rtts["us"]),
    }


def spike(
    *,
    seed: int = 1,
    proxies: int = 20,
    rate: float = 20.0,
    times: float = 2.5,
    end: float = 60.0,
    rtts: dict[str, float] = RTTS,
) -> Result:
    """Clients ask `times` as much from second 20 to 30, more than all regions can do: whether it ends when they
    stop.
    """
    clock = Clock()
    sites = world(clock, seed, rtts=rtts, service=lambda rng: rng.expovariate(100.0))
    for found in sites.values():
        found[0].servers = max(1, round(proxies * rate * 0.01 * 0.6))
        found[0].queue_max = 4 * found[0].servers
    fleet = _fleet(clock, sites, proxies, rate, end, seed)
    for proxy in fleet:
        clock.at(20.0 + proxy.rng.random() / rate, proxy.drive, rate * (times - 1.0), 30.0)
    clock.run(end + 20.0)
    records = [record for proxy in fleet for record in proxy.records]
    return {
        "during": summary(between(records, 20.0, 30.0), rtts["us"]),
        "after_5_s": summary(between(records, 35.0, end), rtts["us"]),
        "extra": _extra(fleet),
        "shares_during": shares_of(between(records, 22.0, 30.0)),
        "drained": sorted(
            {change.region for proxy in fleet for _, change in proxy.changes if change.after.name == "DRAINED"}
        ),
    }
