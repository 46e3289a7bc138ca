"""A config of two regions in order, and what routing has booked to them."""

from __future__ import annotations

from typing import Any

from .harness import Proxy

CONFIG = """
listeners:
  - {{name: web, address: "127.0.0.1:0", upstream: app}}
upstreams:
  app:
    protocol: {protocol}
    routing: {{policy: ordered}}
    regions:
      near: {{endpoints: ["127.0.0.1:{near}"]}}
      far: {{endpoints: ["127.0.0.1:{far}"]}}
    retry: {retry}
    hedge: {hedge}
    timeouts: {{connect: {connect}, response: {response}, idle: {idle}, total: 20s}}
    pool: {{warm: {warm}, max_connections: {max_connections}}}{tls}
admin: {{address: "127.0.0.1:0"}}
access_log: off
"""


def regions(
    near: int,
    far: int,
    *,
    retry: str = "{attempts: 2, budget: 100%}",
    connect: str = "2s",
    hedge: str = "off",
    warm: int = 1,
    response: str = "5s",
    idle: str = "5s",
    max_connections: int = 64,
    protocol: str = "h1",
    tls: str = "",
) -> str:
    """Requests go to `near` while it is healthy."""
    return CONFIG.format(**locals())


def region(proxy: Proxy, name: str) -> Any:
    """A region's state."""
    return next(region for region in proxy.upstream.balancer.regions if region.name == name)


def blamed(proxy: Proxy, name: str = "near") -> int:
    """How much stands against a region and its endpoints: bad endings in a row, failures in the last seconds."""
    state = region(proxy, name)
    part = state.counts.current
    outliers = [endpoint.outlier for endpoint in state.endpoints]
    return int(
        state.health.streak
        + part.failed
        + part.lost
        + sum(one.failures + one.handshakes + one.losses for one in outliers)
    )
