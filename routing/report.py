"""What a balancer believes, as plain values: for `status`, `explain` and the metrics.

A view: it reads a balancer and changes nothing, and no decision reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .choice import score, session_key
from .drain import DrainState
from .outlier import OutlierState

if TYPE_CHECKING:
    from .balancer import Balancer
    from .state import EndpointState, RegionState


def explain(balancer: Balancer, now: float, key: bytes | None) -> list[dict[str, Any]]:
    """Per region, most wanted first: {region, state, weight, latency_ms, why, endpoints}; with a session key, also
    `session`.
    """
    regions = sorted(balancer.regions, key=lambda region: (-region.weight, region.index))
    rows = [
        {
            "region": region.name,
            "state": region.state.name.lower(),
            "weight": round(region.weight, 4),
            "latency_ms": _ms(region.cost) if region.known else None,
            "why": _why(balancer, region, now),
            "endpoints": [_endpoint(endpoint, now) for endpoint in region.endpoints],
        }
        for region in regions
    ]
    if key is not None:
        hashed = session_key(key)
        chosen = balancer.pick(now, key)
        for row, region in zip(rows, regions, strict=True):
            row["session"] = chosen is not None and chosen.region is region
            row["session_score"] = round(score(hashed, region.key, region.weight), 4) if region.weight else 0.0
    return rows


def snapshot(balancer: Balancer, now: float) -> dict[str, Any]:
    """{upstream, policy, requests_per_s, budget, regions: [{region, state, weight, rtt_ms, service_ms, …,
    endpoints}]}.
    """
    hedges, attempts = balancer.budget(balancer.upstream.hedge, balancer.upstream.retry, now).tokens
    return {
        "upstream": balancer.upstream.name,
        "policy": balancer.upstream.policy.value,
        "requests_per_s": round(balancer.arrivals, 1),
        "budget": {"hedges": round(hedges, 1), "attempts": round(attempts, 1)},
        "regions": [_region(region, now) for region in balancer.regions],
    }


def _region(region: RegionState, now: float) -> dict[str, Any]:
    health = region.health
    return {
        "region": region.name,
        "state": region.state.name.lower(),
        "since_s": round(now - health.since, 1),
        "standby": region.standby,
        "weight": round(region.weight, 4),
        "admission": round(health.admission(now), 3),
        "headroom": round(region.headroom, 3),
        "slack": round(region.slack, 3),
        "in_flight": region.in_flight,
        "max_in_flight": region.region.max_in_flight,
        "latency_ms": _ms(region.cost) if region.known else None,
        "rtt_ms": _ms(region.path) if region.path else None,
        "service_ms": _ms(region.service),
        "service_p50_ms": _ms(region.p50),
        "service_p95_ms": _ms(region.p95),
        "service_p99_ms": _ms(region.p99),
        "late_share": round(region.tail, 4),
        "hedge_after_ms": _ms(max(region.late_after, region.hedge_after)),
        "bad_in_a_row": health.streak,
        "flaps": health.flaps,
        "endpoints": [_endpoint(endpoint, now) for endpoint in region.endpoints],
    }


def _endpoint(endpoint: EndpointState, now: float) -> dict[str, Any]:
    outlier = endpoint.outlier
    found = {
        "endpoint": str(endpoint.endpoint),
        "state": outlier.state.name.lower(),
        "in_flight": endpoint.in_flight,
        "ready": endpoint.ready,
        "rtt_ms": _ms(endpoint.floor.value) if endpoint.floor.value else None,
        "service_ms": _ms(endpoint.service.read(now)),
    }
    if outlier.state is OutlierState.EJECTED:
        found["why"] = outlier.evidence
        found["ejected_for_s"] = round(max(0.0, outlier.until - now), 1)
    return found


def _why(balancer: Balancer, region: RegionState, now: float) -> str:
    """One sentence: what gives this region its weight."""
    health = region.health
    if health.operator_until is not None:
        left = health.operator_until - now
        return "drained by an operator" + (f" for another {left:.0f} s" if left < float("inf") else "")
    if region.stranded:
        return "all of its endpoints are ejected"
    if region.state is not DrainState.HEALTHY:
        state = region.state.name.lower()
        return f"{state} for {now - health.since:.1f} s: it takes {health.admission(now):.0%} of its share"
    if region.in_flight >= region.max_in_flight:
        return f"full: {region.in_flight} of {region.max_in_flight} requests in flight"
    if region.in_flight >= region.limit:
        return f"slowing down with {region.in_flight} requests in flight: the rest goes to the next region"
    if region.headroom < 0.995:
        return f"it answers 503: it takes {region.headroom:.0%} of its share"
    if region.slack < 0.9:
        return f"its answers are late: others that are quicker take {1 - region.slack:.0%} of its share"
    if not region.known:
        return "nothing was measured yet: the configuration's order decides"
    best = min(balancer.regions, key=lambda other: other.cost)
    text = f"{region.path * 1e3:.1f} ms away, {region.service * 1e3:.1f} ms of service"
    if region.tail > 0:
        text += f", {region.tail:.1%} of its answers late"
    if region is best:
        return text + ": the nearest"
    if region.standby:
        return text + ": a standby for when the others can't take it"
    return text + f": {(region.cost / best.cost - 1) * 100:.0f} % farther than {best.name}"


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
