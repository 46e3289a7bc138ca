"""What the proxy believes, for people: the status of its upstreams, and which way a request would take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .listener import Listener
    from .upstream import UpstreamRuntime


def upstream_status(upstream: UpstreamRuntime, now: float) -> dict[str, Any]:
    """Routing's snapshot with the pools' numbers added to each endpoint."""
    found = upstream.balancer.snapshot(now)
    pools = {str(pool.target.endpoint): pool for pool in upstream.pools}
    for region in found["regions"]:
        for endpoint in region["endpoints"]:
            pool = pools[endpoint["endpoint"]]
            opened = pool.counters.opened
            endpoint["pool"] = {
                "idle": len(pool.idle) + sum(1 for c in pool.shared if not c.streams),
                "busy": pool.busy,
                "dialling": pool.dialling,
                "waiting": len(pool.waiters),
                "opened": {kind: count for kind, count in opened.items() if count},
                "reused": pool.counters.reused,
                "dial_failures": pool.counters.dial_failures,
            }
            if pool.last_error is not None:
                endpoint["last_error"] = pool.last_error.details
    counters = upstream.counters
    found["hedges"] = dict(counters.hedges)
    found["retries"] = [{"reason": r, "result": result, "count": n} for (r, result), n in counters.retries.items()]
    return found


def explain(url: str, method: str, listeners: Iterable[Listener], now: float) -> dict[str, Any]:
    """The route, region and endpoint that a request for `url` would take now, and why, for each listener that has a
    route for it.
    """
    parts = urlsplit(url if "//" in url else f"//{url}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2].encode("utf-8", "replace")
    ways = []
    for listener in listeners:
        route = listener.table.match(host, target.encode("utf-8", "replace"), method.encode(), [])
        if route is None:
            ways.append({"listener": listener.name, "route": None, "why": "no route matches"})
            continue
        upstream = listener.upstreams[route.upstream]
        chosen = upstream.balancer.pick(now)
        match = route.match
        way: dict[str, Any] = {
            "listener": listener.name,
            "route": {
                "host": match.host or "*",
                "path": ("=" if match.exact else "") + match.path,
                "methods": list(match.methods),
                "headers": dict(match.headers),
            },
            "upstream": route.upstream,
            "region": chosen.region.name if chosen is not None else None,
            "endpoint": str(chosen.endpoint) if chosen is not None else None,
            "warm_connections": chosen.ready if chosen is not None else 0,
            "regions": upstream.balancer.explain(now),
        }
        if chosen is not None and route.hedge is not None:
            delay = upstream.balancer.hedge_delay(now, chosen)
            way["hedge_after_ms"] = round(delay * 1e3, 1) if delay is not None else None
        ways.append(way)
    return {"url": url, "method": method, "listeners": ways}
