"""What the simulations share: the three regions' sites, and figures over records."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from routing.model import Endpoint, Region, Upstream

from .virtual import Clock, Record, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

RTTS: Final = {"us": 0.060, "eu": 0.080, "ap": 0.150}
NEAR: Final = {"us": 0.0005, "eu": 0.030, "ap": 0.080}
"""The usual deployment: the proxy stands beside its nearest region."""
Result: TypeAlias = dict[str, Any]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def world(
    clock: Clock, seed: int, endpoints: int = 1, rtts: dict[str, float] = RTTS, **site: Any
) -> dict[str, list[Site]]:
    """Sites for every region. Service takes about a millisecond, jitter half of one, and less on a short path."""
    site.setdefault("service", lambda rng: rng.expovariate(1000.0))
    jitter = site.pop("jitter", 0.0005)
    return {
        name: [
            Site(clock, random.Random(f"{seed} {name} {index}"), rtt, jitter=min(jitter, rtt / 4), **site)
            for index in range(endpoints)
        ]
        for name, rtt in rtts.items()
    }


def upstream(sites: dict[str, list[Site]], **settings: Any) -> Upstream:
    """An upstream over these sites."""
    regions = tuple(
        Region(name, tuple(Endpoint(f"{name}-{index}", 443) for index in range(len(found))))
        for name, found in sites.items()
    )
    return Upstream("sim", regions, **settings)


def between(records: Sequence[Record], start: float, end: float) -> list[Record]:
    """Those that started then."""
    return [record for record in records if start <= record.start < end]


def summary(records: Sequence[Record], rtt: float) -> Result:
    """Quantiles in milliseconds, and as multiples of a round trip."""
    latencies = [record.latency for record in records if record.status < 500]
    found: Result = {"requests": len(records), "failed": sum(record.status >= 500 for record in records)}
    for label, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)):
        value = quantile(latencies, share)
        found[f"{label}_ms"] = round(value * 1e3, 1)
        found[f"{label}_rtt"] = round(value / rtt, 2)
    return found


def shares_of(records: Sequence[Record]) -> Result:
    """Each region's share of these requests."""
    total = max(1, len(records))
    return {name: round(sum(r.region == name for r in records) / total, 3) for name in RTTS}
