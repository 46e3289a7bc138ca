"""What a bad ending of an attempt says about its endpoint and its region, and what it does not say.

| ending | endpoint | region |
|---|---|---|
| connect or handshake failed, reset, timed out, refused stream, 502, 504 | a failure | bad, and one for the tail |
| 503 | a failure; no second attempts until its `retry-after` | bad, and a little less headroom: it is full |
| another 5xx | a failure: one that does nothing else is an outlier | an answer: it is the application's error |
| lost to a hedge after it was due | at least this slow | bad, and one for the tail |
| lost to a hedge within a second, before the region has shown what is usual | as above | nothing: hedges wait longer |
| lost to an attempt that took longer | at least this slow | nothing: it only started later |
| lost before it was due | nothing | nothing: the other was quicker |
| the client left | at least this slow, once it was late | nothing |
| any of these, while it is ejected and others are not | as above | nothing |
| neutral: what the client (its limits, pace, head) or the proxy (descriptors, ports, pool) caused | nothing | nothing |

Only OK endings give latencies: a failure never makes an endpoint look near, whatever it took.
"""

from __future__ import annotations

from typing import Final

from .outlier import RETRY_AFTER_MAX_S
from .retry import RETRYABLE_STATUSES
from .state import UNKNOWN_S, EndpointState, Outcome, RegionState

ALPHA: Final = 0.125
HEDGE_ALPHA: Final = 0.2

FAILURE_S: Final = 0.1
"""What a failed attempt costs its user at least, for the tail: the time to notice, and another attempt."""

FAILED_SERVICE_S: Final = 1.0
"""What a failure counts for in the choice of an endpoint. (linkerd: 5 s.) What fails fast has little in flight; without
this it would look free.
"""

_HANDSHAKES: Final = frozenset((Outcome.CONNECT_FAILED, Outcome.HANDSHAKE_FAILED))


def charge(
    ep: EndpointState, now: float, outcome: Outcome, elapsed: float, status: int, retry_after: float, winner: float
) -> str:
    """Note an ending that was not OK. Returns the cause where it speaks against the region, else ""."""
    if outcome is Outcome.NEUTRAL:
        return ""
    region = ep.region
    if outcome is Outcome.HEDGE_LOST or outcome is Outcome.CANCELLED:
        if elapsed < region.late_after:
            return ""
        service = elapsed - ep.floor.value
        ep.service.observe_at_least(now, service)
        if outcome is Outcome.CANCELLED or elapsed < winner:
            region.hedge_service += (service - region.hedge_service) * HEDGE_ALPHA
            return ""
        if not ep.speaks_for_region:
            return ""
        if not region.usual and elapsed < UNKNOWN_S:
            region.be_patient(service)
            return ""
        region.counts.current.lost += 1
        _learn_excess(region, elapsed - region.expected)
        ep.outlier.lose(now)
        return str(outcome.value)
    if retry_after > 0.0:
        ep.not_before = max(ep.not_before, now + min(retry_after, RETRY_AFTER_MAX_S))
    ep.service.observe_at_least(now, FAILED_SERVICE_S)
    handshake, tls = outcome in _HANDSHAKES, outcome is Outcome.HANDSHAKE_FAILED
    ep.outlier.fail(now, handshake=handshake, tls=tls, retry_after=retry_after)
    if not ep.speaks_for_region:
        return ""
    if outcome is not Outcome.ERROR_STATUS:
        _count_failure(region, elapsed)
        return str(outcome.value)
    if status not in RETRYABLE_STATUSES:
        region.last_good = now
        region.answers += 1
        region.health.streak = 0
        return ""
    if status == 503:
        region.shed()
    else:
        _count_failure(region, elapsed)
    return f"status_{status}"


def _count_failure(region: RegionState, elapsed: float) -> None:
    region.counts.current.failed += 1
    _learn_excess(region, max(FAILURE_S, elapsed + region.expected))


def _learn_excess(region: RegionState, excess: float) -> None:
    """What a badly served request takes beyond a normal one: a moving average."""
    region.excess += (max(0.0, excess) - region.excess) * (ALPHA if region.excess else 1.0)
