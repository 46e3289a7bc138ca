"""What a region keeps of the one that stood in its place before a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .model import Drain
    from .state import RegionState

_LEARNT: Final = (
    "answer_rate",
    "baseline",
    "busy",
    "busy_since",
    "closeness",
    "cost",
    "excess",
    "headroom",
    "hedge_after",
    "last_good",
    "late_after",
    "late_share",
    "p50",
    "p95",
    "p95_well",
    "p95_well_at",
    "p99",
    "path",
    "patience",
    "service",
    "service_known_at",
    "slack",
    "slow_after",
    "slow_share",
    "survivors",
    "tail",
    "usual",
)


def adopt(region: RegionState, before: RegionState, drain: Drain) -> None:
    """Take over what was learnt, and the endpoints that stay, with what is in flight on them."""
    region.health, region.counts = before.health, before.counts
    region.health.settings = drain
    for name in _LEARNT:
        setattr(region, name, getattr(before, name))
    known = {endpoint.endpoint: endpoint for endpoint in before.endpoints}
    for index, endpoint in enumerate(region.endpoints):
        kept = known.get(endpoint.endpoint)
        if kept is not None:
            kept.region, kept.index = region, index
            region.endpoints[index] = kept
    region.refresh_usable()
    region.in_flight = sum(endpoint.in_flight for endpoint in region.endpoints)
    region.held = sum(endpoint.held for endpoint in region.endpoints)
