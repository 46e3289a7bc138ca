"""What the proxy believes, for people: the status of its upstreams, and which way a request would take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from proxy.exchange.service import BoundRoute
from proxy.upstream.links import SocketPool
from routing import report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.exchange.service import Service
    from proxy.l4.listener import TunnelListener
    from proxy.loop.bites import Bites
    from proxy.observe.metrics import PoolCounters
    from proxy.upstream.pool import Pool
    from proxy.upstream.upstream import UpstreamRuntime


async def upstream_status(upstream: UpstreamRuntime, now: float, bites: Bites) -> dict[str, Any]:
    """Routing's snapshot with the pools' numbers added to each endpoint."""
    found = report.snapshot(upstream.balancer, now)
    await bites.rest()
    pools: dict[tuple[str, str], list[Pool | SocketPool]] = {}
    every: tuple[Pool | SocketPool, ...] = (*upstream.every_pool(), *upstream.every_socket_pool())
    for pool in every:
        pools.setdefault((pool.target.region.name, str(pool.target.endpoint)), []).append(pool)
        await bites.rest()
    for region in found["regions"]:
        for endpoint in region["endpoints"]:
            mine = pools.get((region["region"], endpoint["endpoint"]), [])
            endpoint["pool"] = _pool_status(mine)
            error = next((pool.dials.last_error for pool in mine if pool.dials.last_error is not None), None)
            if error is not None:
                endpoint["last_error"] = error.details
            await bites.rest()
    counters = upstream.counters
    found["hedges"] = dict(counters.hedges)
    found["retries"] = [{"reason": r, "result": result, "count": n} for (r, result), n in counters.retries.items()]
    return found


def _pool_status(pools: list[Pool | SocketPool]) -> dict[str, Any]:
    """Of one endpoint: its connections for requests and, where an L4 listener leads here, those for clients of that."""
    idle = busy = dialling = waiting = reused = failures = 0
    opened: dict[str, int] = {}
    counted: list[PoolCounters] = []
    for pool in pools:
        dialling += pool.dials.under_way
        if isinstance(pool, SocketPool):
            idle += len(pool.idle)
            busy += pool.open
        else:
            idle += len(pool.stock.without_requests())
            busy += pool.stock.busy
            waiting += len(pool.waiters)
        if not any(pool.counters is one for one in counted):  # a closed pool's successor counts on
            counted.append(pool.counters)
    for counters in counted:
        reused += counters.reused
        failures += counters.dial_failures
        for kind, count in counters.opened.items():
            if count:
                opened[kind] = opened.get(kind, 0) + count
    return {
        "idle": idle,
        "busy": busy,
        "dialling": dialling,
        "waiting": waiting,
        "opened": opened,
        "reused": reused,
        "dial_failures": failures,
    }


def explain(url: str, method: str, leads: Iterable[Service | TunnelListener], now: float) -> dict[str, Any]:
    """The route, region and endpoint that a request for `url` would take now, and why, for each listener (`leads`:
    where its clients go). On an L4 listener only its host counts. ValueError: `url` is none.
    """
    parts = urlsplit(url if "//" in url else f"//{url}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2].encode("utf-8", "replace")
    ways = []
    for listener in leads:
        found = listener.table.match(host, target.encode("utf-8", "replace"), method.encode(), [])
        if found is None:
            ways.append({"listener": listener.name, "route": None, "why": "no route matches"})
            continue
        route = found.route if isinstance(found, BoundRoute) else found
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
            "regions": report.explain(upstream.balancer, now, None),
        }
        if chosen is not None and route.hedge is not None:
            delay = upstream.balancer.hedge_delay(now, chosen)
            way["hedge_after_ms"] = round(delay * 1e3, 1) if delay is not None else None
        ways.append(way)
    return {"url": url, "method": method, "listeners": ways}
