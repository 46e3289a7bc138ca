"""What follows for a region from its answers: recomputed on ticks, and only read in between.

Functions over a `state.RegionState`: which endpoints are in use, what the region costs, how much it may carry, whether
its answers say what is normal. They own every derived attribute; what a single answer changes is the region's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .drain import DrainState
from .latency import tail_share
from .outlier import OutlierState, ejectable
from .state import MOST, TAIL

if TYPE_CHECKING:
    from collections.abc import Callable

    from .state import RegionState

TAIL_TAU_S: Final = 15.0
"""How slowly a bad tail is forgotten; it is learnt at once."""

SERVICE_RISE_S: Final = 20.0
SERVICE_FALL_S: Final = 8.0
"""Costs follow service times slowly: a queue that our own requests made is answered by headroom, or fleets would
swing between regions.
"""

BASELINE_RISE_S: Final = 60.0
BASELINE_FALL_S: Final = 5.0
WELL_S: Final = 30.0

FEW: Final = 3
USUAL: Final = 2.0
"""Of a region's first answers, or its few, the median of `FEW` or more times this is usual, until a percentile says
more.
"""

MEDIAN_MIN: Final = 10
QUANTILES_MIN: Final = 30

BUSY_RISE_S: Final = 60.0
BUSY_FALL_S: Final = 5.0
INFLATED: Final = 1.3
CROWD: Final = 1.5
CROWD_MIN: Final = 4
CROWD_UNSHOWN: Final = 16
"""A region that never answered may be slow, or dead: so many may wait there to find out."""
HEADROOM_RISE_PER_S: Final = 0.05


def review_endpoints(region: RegionState, now: float, seconds: float, draw: Callable[[], float]) -> None:
    """Eject and readmit endpoints. `draw` gives numbers in [0, 1) for the jitter of holds."""
    ejected = sum(endpoint.outlier.state is OutlierState.EJECTED for endpoint in region.endpoints)
    for endpoint in region.endpoints:
        outlier = endpoint.outlier
        outlier.tick(now, seconds)
        if outlier.state is OutlierState.EJECTED:
            continue
        evidence = outlier.probe_verdict()
        if not evidence and ejectable(len(region.endpoints), ejected):
            evidence = outlier.verdict()
        if evidence:
            outlier.eject(now, evidence, draw())
            ejected += 1
    region.refresh_usable()


def refresh(region: RegionState, now: float, seconds: float, assumed: float, rotated: bool) -> None:
    """Recompute what is derived, `seconds` after the last time.

    `assumed`: service time where nothing is known of its own.
    """
    floors = [endpoint.floor.value for endpoint in region.usable if endpoint.floor.value]
    if floors:
        region.path = sum(floors) / len(floors)
    _refresh_service(region, now, seconds, assumed)
    if rotated:
        totals = region.counts.last()
        region.p50, region.p95, region.p99 = (totals.quantile(share) for share in (0.5, 0.95, 0.99))
        region.survivors = totals.survivors() if totals.answered >= QUANTILES_MIN else []
        if totals.answered >= FEW:
            region.usual = USUAL * region.p50
    # Where even usual answers are late it is no tail but a queue, or a fault that the drain sees.
    found = 0.0 if region.crowded else min(tail_share(region.counts.shares()), 1.5 * TAIL)
    if found >= region.tail:
        region.tail = found
    else:
        region.tail += (found - region.tail) * seconds / (seconds + TAIL_TAU_S)
    if region.known:
        region.cost = region.path + region.service + min(1.0, region.tail / TAIL) * region.excess
    region.headroom = min(1.0, region.headroom + HEADROOM_RISE_PER_S * seconds)
    region.slack = min(1.0, region.slack + HEADROOM_RISE_PER_S * seconds)
    region.answer_rate += (
        (region.answers / seconds - region.answer_rate) * seconds / (seconds + 1.0) if seconds else 0.0
    )
    region.tell_answers()
    region.answers = region.told = 0


def _refresh_service(region: RegionState, now: float, seconds: float, assumed: float) -> None:
    """The median of the last seconds, approached smoothly; where none is known, slowly back to what is assumed."""
    for width in (2, 4, 12):
        totals = region.counts.last(width)
        if totals.answered >= MEDIAN_MIN:
            median = totals.quantile(0.5)
            if region.service_known_at < 0:
                region.service = region.baseline = median
            region.service_known_at = now
            tau = SERVICE_RISE_S if median > region.service else SERVICE_FALL_S
            region.service += (median - region.service) * seconds / (seconds + tau)
            tau = BASELINE_RISE_S if region.service > region.baseline else BASELINE_FALL_S
            region.baseline += (region.service - region.baseline) * seconds / (seconds + tau)
            return
    tau = BASELINE_RISE_S if region.service_known_at >= 0 else SERVICE_FALL_S
    region.service += (assumed - region.service) * seconds / (seconds + tau)
    if region.service_known_at < 0:
        region.baseline = region.service


def refresh_limit(region: RegionState, now: float, seconds: float, arrivals: float) -> None:
    """Requests in flight first, latency second.

    A region that slows down under its load keeps only what it normally carries: what it would of requests as long
    as most, or what it has carried of late, long polls included. `arrivals`: requests per second at the upstream.
    Without slowness there is no limit but the configured one: bursts pass.
    """
    waiting = region.in_flight - region.held
    if region.limit >= region.max_in_flight:  # what a limit keeps away is no measure of what it carries
        tau = BUSY_RISE_S if waiting > region.busy else BUSY_FALL_S
        region.busy += (waiting - region.busy) * seconds / (seconds + tau)
    region.limit = region.max_in_flight
    if not region.known:
        return
    expected = region.expected
    if region.service_known_at < 0.0:  # what others take is no measure of it
        expected = max(expected, region.path + region.usual)
    region.slow_after = INFLATED * expected + 0.005
    crowd = max(CROWD_MIN if region.usual else CROWD_UNSHOWN, int(CROWD * arrivals * expected))
    # Those that came since the last answer: of what is older, long polls and the like, nothing is expected yet.
    stalled = region.asked >= crowd and now - region.asked_since > CROWD * expected + 0.01
    if stalled or region.slow_share > MOST:
        region.limit = min(region.limit, max(crowd, int(CROWD * region.busy)) + region.held)


def well(region: RegionState, now: float) -> bool:
    """Whether its answers say what is normal. What lasts longer than `WELL_S` has become normal."""
    return (
        region.state is DrainState.HEALTHY
        and region.tail < TAIL / 2
        and bool(region.survivors)
        and (not region.crowded or now - region.p95_well_at >= WELL_S)
    )
