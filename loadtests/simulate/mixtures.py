"""Simulations of unlike things side by side: regions of unequal speed, and kinds of requests of unequal length.

Being slower than another is no failure, and one slow kind of request says nothing about the others:
`python -m loadtests.simulate unequal longpolls`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from routing.model import Endpoint, Policy, Region, Upstream

from .virtual import Clock, Proxy, Site
from .worlds import NEAR, Result, between, quantile, upstream, world

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG_S = 0.5
"""What takes longer is of the long kind."""


def unequal(
    *,
    seed: int = 1,
    policy: Policy = Policy.WEIGHTED,
    quick_s: float = 0.0002,
    slow_s: float = 0.060,
    slow_first: bool = True,
    rate: float = 100.0,
    change_at: float = 0.0,
    lost: str = "quick",
    until: float = 60.0,
    end: float = 80.0,
) -> Result:
    """Two regions at the same distance, of which one needs longer for every answer (from second `change_at` on); from
    second `until` on one of them refuses. First tries by region, drains, and what failed.
    """
    clock = Clock()

    def slow(rng: random.Random) -> float:
        return (slow_s if clock.now >= change_at else quick_s) * rng.uniform(0.9, 1.1)

    speeds = {"slow": slow, "quick": lambda rng: quick_s * rng.uniform(0.9, 1.1)}
    names = ("slow", "quick") if slow_first else ("quick", "slow")
    sites = {name: [Site(clock, random.Random(f"{seed} {name}"), 0.0005, speeds[name], jitter=0.0)] for name in names}
    regions = tuple(Region(name, (Endpoint(name, 443),)) for name in names)
    proxy = Proxy(clock, Upstream("sim", regions, policy=policy), sites, seed)
    proxy.drive(rate, end)
    clock.at(until, setattr, sites[lost][0], "reset", True)
    clock.run(end + 20.0)
    before, after = between(proxy.records, 0.0, until), between(proxy.records, until, end)
    return {
        "first_tries": {name: sum(record.first == name for record in before) for name in names},
        "last_10_s": {name: sum(r.first == name for r in before if r.start >= until - 10.0) for name in names},
        "failed": sum(record.status >= 500 for record in before),
        "failed_after_loss": sum(record.status >= 500 for record in after),
        "drains": [change.region for when, change in proxy.changes if change.after.name == "DRAINED" and when < until],
        "extra": round(sum(record.attempts - 1 for record in before) / max(1, len(before)), 4),
        "changes": [
            f"{when:.2f} {change.region} {change.before.name} -> {change.after.name}: {change.evidence}"
            for when, change in proxy.changes
        ],
    }


def long_polls(
    *,
    seed: int = 1,
    share: float = 0.1,
    long_s: float = 10.0,
    rate: float = 100.0,
    end: float = 100.0,
    endpoints: int = 1,
    pauses: bool = False,
    rtts: dict[str, float] = NEAR,
) -> Result:
    """`share` of the requests are answered after `long_s`, the others after about a millisecond: where the others are
    sent first, and what they take. `pauses`: clients send nothing in every second second.
    """
    clock = Clock()

    def work(rng: random.Random) -> float:
        return long_s if rng.random() < share else rng.expovariate(1000.0)

    sites = world(clock, seed, endpoints, rtts)
    proxy = Proxy(clock, upstream(sites), sites, seed)
    proxy.work = work
    if pauses:
        for second in range(0, int(end), 2):
            clock.at(float(second), proxy.drive, rate, second + 1.0)
    else:
        proxy.drive(rate, end)
    clock.run(end + 3 * long_s + 20.0)
    others = [record for record in proxy.records if record.latency < LONG_S]
    return {
        "others": len(others),
        "failed": sum(record.status >= 500 for record in proxy.records),
        "first_tries": {name: round(sum(r.first == name for r in others) / len(others), 4) for name in rtts},
        **_milliseconds([record.latency for record in others]),
        "extra": round(proxy.attempts / max(1, proxy.requests) - 1.0, 4),
        "changes": [f"{when:.2f} {change.region} -> {change.after.name}" for when, change in proxy.changes],
    }


def _milliseconds(latencies: Sequence[float]) -> Result:
    return {f"p{100 * share:g}_ms": round(quantile(latencies, share) * 1e3, 1) for share in (0.5, 0.99, 0.999)}
