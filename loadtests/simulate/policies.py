"""Two shapes from the literature, over the same code: hedging (The Tail at Scale) and the choice of a replica
(Prequal's comparison).

`tail_at_scale`: one region, a hundred replicas, answers of a millisecond or two, some of which hang for long. A
hedge after the p95 costs little and takes nearly all of the tail away; hedging earlier costs load and gains little
(Dean and Barroso, CACM 2013).

`choice`: replicas of unequal speed that are slowed down by neighbours now and then, at a load from light to beyond
what they were sized for, behind several clients that don't know of each other. Rules: round robin; least requests of
two; peak-EWMA of two (Finagle, linkerd); Prequal (Wydrowski et al., NSDI 2024: probes, hot-cold lexicographic); and
this project's balancer, with hedges and without.
"""

from __future__ import annotations

import random
from math import exp
from typing import TYPE_CHECKING, Any, Final, Protocol

from routing.model import Endpoint, Hedge, Region, Upstream

from .virtual import Clock, Proxy, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from routing.balancer import Outcome

RTT: Final = 0.0005
SERVERS: Final = 4
SERVICE_S: Final = 0.010
HEDGE_AT: Final = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995)
RULES: Final = ("round_robin", "least_request", "peak_ewma", "prequal", "onetrip_no_hedges", "onetrip")
Result = dict[str, Any]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _long_tail(rng: random.Random) -> float:
    """Median 1 ms, p95 about 5, p99 about 10, and one in 500 hangs for a second or two."""
    if rng.random() < 0.002:
        return 0.5 + rng.expovariate(1.0)
    return 0.001 * exp(rng.gauss(0.0, 0.95))


def tail_at_scale(seed: int = 1, requests: int = 20_000, replicas: int = 100) -> list[Result]:
    """A row per hedging delay: the quantile it stands for, p50, p99 and p99.9 in ms, and the extra requests' share."""
    rng = random.Random(seed)
    sample = sorted(_long_tail(rng) for _ in range(20_000))
    rows = []
    sweep = [("none", 0.0), *((f"p{100 * share:g}", share) for share in HEDGE_AT), ("policy", 0.0)]
    for label, share in sweep:
        hedge = Hedge() if label == "policy" else Hedge(budget=1.0)
        clock = Clock()
        sites = {
            "here": [Site(clock, random.Random(f"{seed} {i}"), RTT, _long_tail, jitter=0.0) for i in range(replicas)]
        }
        region = Region("here", tuple(Endpoint(f"replica-{i}", 80) for i in range(replicas)))
        proxy = Proxy(clock, Upstream("sim", (region,), hedge=None if label == "none" else hedge), sites, seed)
        if share:
            proxy.hedge_after = RTT + quantile(sample, share)
        end = 5.0 + requests / 1000.0
        proxy.drive(1000.0, end)
        clock.run(end + 20.0)
        seen = [record for record in proxy.records if record.start >= 5.0]  # percentiles need a few seconds of answers
        latencies = [record.latency for record in seen]
        row: Result = {"hedge_after": label, "extra": round(sum(record.attempts - 1 for record in seen) / len(seen), 4)}
        row |= {f"p{100 * q:g}_ms": round(quantile(latencies, q) * 1e3, 2) for q in (0.5, 0.99, 0.999)}
        rows.append(row)
    return rows


class Rule(Protocol):
    """Chooses a replica for one client."""

    def pick(self, now: float) -> int:
        """The replica for a request that leaves now."""

    def done(self, replica: int, now: float, elapsed: float) -> None:
        """It was answered."""


class RoundRobin:
    """In turn."""

    def __init__(self, sites: Sequence[Site], rng: random.Random) -> None:
        self._count = len(sites)
        self._next = rng.randrange(len(sites))

    def pick(self, now: float) -> int:
        """The next one."""
        self._next = (self._next + 1) % self._count
        return self._next

    def done(self, replica: int, now: float, elapsed: float) -> None:
        """It learns nothing."""


class LeastRequest:
    """Of two, the one with fewer of our requests (Envoy's LEAST_REQUEST)."""

    def __init__(self, sites: Sequence[Site], rng: random.Random) -> None:
        self._rng = rng
        self.open = [0] * len(sites)

    def pick(self, now: float) -> int:
        """Two random choices."""
        one, other = self._rng.sample(range(len(self.open)), 2)
        chosen = one if self.cost(one, now) <= self.cost(other, now) else other
        self.open[chosen] += 1
        return chosen

    def cost(self, replica: int, now: float) -> float:
        """What is compared."""
        return self.open[replica]

    def done(self, replica: int, now: float, elapsed: float) -> None:
        """One fewer."""
        self.open[replica] -= 1


class PeakEwmaRule(LeastRequest):
    """Of two, the lower peak-EWMA of whole latencies times requests in flight (Finagle; tau 10 s)."""

    def __init__(self, sites: Sequence[Site], rng: random.Random) -> None:
        super().__init__(sites, rng)
        self._ewma = [SERVICE_S] * len(sites)
        self._stamp = [0.0] * len(sites)

    def cost(self, replica: int, now: float) -> float:
        """Its average, decayed to now, times its requests."""
        return self._ewma[replica] * exp((self._stamp[replica] - now) / 10.0) * (self.open[replica] + 1)

    def done(self, replica: int, now: float, elapsed: float) -> None:
        """Peaks at once, recovers slowly."""
        super().done(replica, now, elapsed)
        weight = exp((self._stamp[replica] - now) / 10.0)
        old = self._ewma[replica]
        self._ewma[replica] = elapsed if elapsed > old else old * weight + elapsed * (1 - weight)
        self._stamp[replica] = now


class Prequal:
    """Probes of requests in flight and latency; the quickest of the cold ones, or the least loaded of the hot (NSDI
    2024, section 4).
    """

    POOL, PROBES, AGE_S, HOT = 16, 3, 1.0, 0.84

    def __init__(self, sites: Sequence[Site], rng: random.Random) -> None:
        self._sites = sites
        self._rng = rng
        self._pool: list[tuple[float, int, int, float]] = []  # when, replica, requests in flight, latency
        self._recent: list[float] = [SERVICE_S] * len(sites)

    def pick(self, now: float) -> int:
        """Hot-cold lexicographic, then forget the probe that was used and the worst one."""
        self._pool = [probe for probe in self._pool if now - probe[0] < self.AGE_S][-self.POOL :]
        chosen = self._rng.randrange(len(self._sites))
        if len(self._pool) >= 2:
            limit = quantile([probe[2] for probe in self._pool], self.HOT)
            cold = [probe for probe in self._pool if probe[2] < limit or limit == 0]
            best = min(cold, key=lambda probe: probe[3]) if cold else min(self._pool, key=lambda probe: probe[2])
            chosen = best[1]
            self._pool.remove(best)
            if len(self._pool) > 2:
                self._pool.remove(max(self._pool, key=lambda probe: probe[2]))
        for replica in self._rng.sample(range(len(self._sites)), self.PROBES):
            site = self._sites[replica]
            in_flight = site.busy + len(site.waiting)
            self._pool.append((now, replica, in_flight, site.recent))
        return chosen

    def done(self, replica: int, now: float, elapsed: float) -> None:
        """Servers report, clients don't."""


class Client:
    """A client with a rule: no hedges, no retries."""

    def __init__(self, clock: Clock, rule: Rule, sites: Sequence[Site], rng: random.Random) -> None:
        self._clock, self._rule, self._sites, self._rng = clock, rule, sites, rng
        self.latencies: list[tuple[float, float]] = []

    def drive(self, rate: float, until: float) -> None:
        """Open loop."""
        now = self._clock.now
        if now >= until:
            return
        replica = self._rule.pick(now)
        self._sites[replica].send(lambda status: self._answered(replica, now), _unexpected)
        self._clock.after(self._rng.expovariate(rate), self.drive, rate, until)

    def _answered(self, replica: int, start: float) -> None:
        elapsed = self._clock.now - start
        self._rule.done(replica, self._clock.now, elapsed)
        self.latencies.append((start, elapsed))


def _unexpected(outcome: Outcome) -> None:
    raise AssertionError(outcome)


class Replica(Site):
    """A replica: some are half as fast, and all are slowed down threefold by a neighbour for a second now and then."""

    speed = 1.0
    slow_until = 0.0

    def time(self, rng: random.Random) -> float:
        """One request's work."""
        factor = 3.0 if self.clock.now < self.slow_until else 1.0
        return rng.expovariate(1.0 / SERVICE_S) * factor / self.speed

    def disturb(self) -> None:
        """A neighbour wakes up."""
        self.slow_until = self.clock.now + self.rng.expovariate(1.0)
        self.clock.after(self.rng.expovariate(0.1), self.disturb)


def choice(
    rule: str, load: float, *, seed: int = 1, replicas: int = 20, clients: int = 10, end: float = 30.0
) -> Result:
    """One rule at one load (a share of what the replicas can do undisturbed): p50, p99, p99.9 in ms and the extra
    requests.
    """
    clock = Clock()
    sites: list[Replica] = []
    for index in range(replicas):
        site = Replica(clock, random.Random(f"{seed} {index}"), RTT, lambda rng: SERVICE_S, jitter=0.0, servers=SERVERS)
        site.speed = 0.5 if index % 4 == 0 else 1.0
        site.service = site.time
        clock.after(site.rng.expovariate(0.1), site.disturb)
        sites.append(site)
    rate = load * sum(site.speed for site in sites) * SERVERS / SERVICE_S / clients
    if rule.startswith("onetrip"):
        region = Region("here", tuple(Endpoint(f"replica-{index}", 80) for index in range(replicas)))
        upstream = Upstream("sim", (region,), hedge=Hedge() if rule == "onetrip" else None)
        proxies = [Proxy(clock, upstream, {"here": list(sites)}, seed * 100 + index) for index in range(clients)]
        for proxy in proxies:
            proxy.drive(rate, end)
        clock.run(end + 20.0)
        latencies = [record.latency for proxy in proxies for record in proxy.records if record.start > 5.0]
        extra = sum(proxy.attempts for proxy in proxies) / max(1, sum(proxy.requests for proxy in proxies)) - 1.0
    else:
        rules: dict[str, Callable[[Sequence[Site], random.Random], Rule]] = {
            "round_robin": RoundRobin,
            "least_request": LeastRequest,
            "peak_ewma": PeakEwmaRule,
            "prequal": Prequal,
        }
        plain = []
        for index in range(clients):
            rng = random.Random(f"{seed} client {index}")
            plain.append(Client(clock, rules[rule](sites, rng), sites, rng))
            plain[-1].drive(rate, end)
        clock.run(end + 20.0)
        latencies = [elapsed for client in plain for start, elapsed in client.latencies if start > 5.0]
        extra = 0.0
    row: Result = {"rule": rule, "load": load, "extra": round(extra, 4)}
    return row | {f"p{100 * q:g}_ms": round(quantile(latencies, q) * 1e3, 1) for q in (0.5, 0.99, 0.999)}
