"""What happens to one proxy's regions, by name: `SCENARIOS`, each a function of a seed that gives figures.

A hundred requests a second arrive, and the fault lasts from second 20 to 50 of 100, unless a scenario says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .fleets import fleet, spike, storm
from .mixtures import long_polls, unequal
from .policies import RULES, choice, tail_at_scale
from .virtual import Clock, Proxy, Record, Site
from .worlds import RTTS, Result, between, quantile, shares_of, summary, upstream, world

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FAULT: Final = (20.0, 50.0)
END: Final = 100.0


def one_proxy(
    fault: Callable[[Site, bool], None],
    *,
    seed: int = 1,
    rate: float = 100.0,
    end: float = END,
    window: tuple[float, float] = FAULT,
    regions: Sequence[str] = ("us",),
    safe: bool = True,
    endpoints: int = 1,
    rtts: dict[str, float] = RTTS,
    **site: Any,
) -> Proxy:
    """One proxy whose regions have a fault during the window; `fault(site, on)` switches it."""
    clock = Clock()
    sites = world(clock, seed, endpoints, rtts, **site)
    proxy = Proxy(clock, upstream(sites), sites, seed)
    proxy.drive(rate, end, safe=safe)
    for when, on in zip(window, (True, False), strict=True):
        for name in regions:
            for found in sites[name]:
                clock.at(when, fault, found, on)
    clock.run(end + 20.0)
    return proxy


def settled(records: Sequence[Record], since: float, bound: float, share_from: str = "") -> float:
    """Seconds after `since` when the median of the last second first stayed within `bound` for a second."""
    ordered = sorted(records, key=lambda record: record.start + record.latency)
    step = 0.1
    good_since: float | None = None
    when = since
    while when < since + 60.0:
        when += step
        seen = [r.latency for r in ordered if when - 1.0 <= r.start + r.latency < when]
        if seen and quantile(seen, 0.5) <= bound:
            good_since = when if good_since is None else good_since
            if when - good_since >= 1.0:
                return good_since - since
        else:
            good_since = None
    return float("inf")


def _usual(rtt: float) -> float:
    """What an answer takes at most as a rule."""
    return max(1.1 * rtt, rtt + 0.005)


def _extra(proxy: Proxy) -> float:
    return round(proxy.attempts / max(1, proxy.requests) - 1.0, 4)


def _changes(proxy: Proxy) -> list[str]:
    return [
        f"{when:.2f} {change.region} {change.before.name} -> {change.after.name}: {change.evidence}"
        for when, change in proxy.changes
    ]


def outage(fault: Callable[[Site, bool], None], rtts: dict[str, float] = RTTS, **settings: Any) -> Result:
    """The nearest region fails in some way, and returns."""
    proxy = one_proxy(fault, rtts=rtts, **settings)
    begin, finish = FAULT
    during = between(proxy.records, begin - 0.2, finish)
    found = summary(during, rtts["us"])
    found["failed_after"] = sum(r.status >= 500 for r in between(proxy.records, finish, END))
    found["slower_than_250ms"] = sum(r.latency > 0.25 for r in between(proxy.records, begin - 1.0, END))
    found["median_at_eu_after_s"] = round(settled(proxy.records, begin, _usual(rtts["eu"])), 1)
    found["back_after_s"] = round(settled(proxy.records, finish, _usual(rtts["us"])), 1)
    found["extra"] = _extra(proxy)
    found["changes"] = _changes(proxy)
    return found


def dark(site: Site, on: bool) -> None:
    """Nothing passes the path to it any more."""
    site.dark = on


def _hang(site: Site, on: bool) -> None:
    site.hang = on


def _reset(site: Site, on: bool) -> None:
    site.reset = on


def _refuse(site: Site, on: bool) -> None:
    site.refuse = on


def _unavailable(site: Site, on: bool) -> None:
    site.status = 503 if on else 200


def _late(site: Site, on: bool) -> None:
    site.late_share = 0.02 if on else 0.0


def _brownout(site: Site, on: bool) -> None:
    site.late_share = 1.0 if on else 0.0


def _lossy(site: Site, on: bool) -> None:
    site.loss = 0.02 if on else 0.0


def _far(site: Site, on: bool, usual: float) -> None:
    site.rtt = 0.4 if on else usual


def grey(fault: Callable[[Site, bool], None], rtts: dict[str, float] = RTTS, **settings: Any) -> Result:
    """A fault that lasts from second 20 to the end: what clients see meanwhile."""
    proxy = one_proxy(fault, window=(20.0, 200.0), rtts=rtts, **settings)
    during = between(proxy.records, 20.0, END)
    found = summary(during, rtts["us"])
    found["shares"] = shares_of(during)
    begun = sum(20.0 <= r.start < END for r in proxy.records)
    found["extra"] = round(sum(r.attempts - 1 for r in during) / max(1, begun), 4)
    found["first_10_s"] = summary(between(proxy.records, 20.0, 30.0), rtts["us"])
    found["changes"] = _changes(proxy)
    return found


def rtt_rise(rtts: dict[str, float] = RTTS, **settings: Any) -> Result:
    """The path to us gets longer: to 400 ms."""
    proxy = one_proxy(lambda site, on: _far(site, on, rtts["us"]), rtts=rtts, **settings)
    begin, finish = FAULT
    found = summary(between(proxy.records, begin, finish), rtts["us"])
    found["median_at_eu_after_s"] = round(settled(proxy.records, begin, _usual(rtts["eu"])), 1)
    found["back_after_s"] = round(settled(proxy.records, finish, _usual(rtts["us"])), 1)
    found["changes"] = _changes(proxy)
    return found


def choices(*, seed: int = 1, loads: Sequence[float] = (0.4, 0.6, 0.7, 0.8), end: float = 20.0) -> Result:
    """Every rule for the choice of a replica, at every load."""
    return {"rows": [choice(rule, load, seed=seed, end=end) for load in loads for rule in RULES]}


SCENARIOS: Final[dict[str, Callable[..., Result]]] = {
    "blackhole": lambda **settings: outage(dark, **settings),
    "hang": lambda **settings: outage(_hang, **settings),
    "reset": lambda **settings: outage(_reset, **settings),
    "refuse": lambda **settings: outage(_refuse, **settings),
    "503": lambda **settings: outage(_unavailable, **settings),
    "late2": lambda **settings: grey(_late, **settings),
    "loss2": lambda **settings: grey(_lossy, **settings),
    "brownout": lambda **settings: grey(_brownout, regions=tuple(RTTS), **settings),
    "rtt": rtt_rise,
    "fleet": fleet,
    "storm": storm,
    "spike": spike,
    "unequal": unequal,
    "longpolls": long_polls,
    "tail": lambda **settings: {"rows": tail_at_scale(**settings)},
    "choice": choices,
}


ON_PATHS: Final = frozenset(SCENARIOS) - {"tail", "choice", "unequal"}
"""Those with three regions at some distance."""
