"""What keeps routing's picture of an endpoint fresh off the request path: checks, probes, and bytes that nobody
acknowledges.

- Active checks (`health:`): a GET, or a call of grpc.health.v1, over the same TLS settings on a connection of their
  own; or a TCP connect.
- Probes: an endpoint that routing doubts, or a region without traffic, gets a dial with its handshake. What it opens
  joins the pool.
- Unanswered bytes: a request whose bytes the peer's kernel does not acknowledge is the first sign of a black hole,
  long before any response time-out. Routing is told as it lasts; after `DEAD_S` and some round trips the connection
  is given up.
- PINGs on multiplexed connections, so that a path that died while idle is found within `keepalive`, before requests
  meet it.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.errors import Kind, ProxyError
from proxy.http import grpc
from proxy.http.message import RequestHead

from .check import Check
from .contract import replaced
from .pooled import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.config.sections import HealthSection
    from routing.balancer import EndpointState

    from .connection import ClientConnection
    from .contract import PoolContext, UpstreamConnection
    from .links import SocketPool
    from .pool import Pool
    from .reach import Reach

DEAD_S: Final = 1.0
DEAD_ROUND_TRIPS: Final = 5.0
SUSPECT_S: Final = 0.1
SUSPECT_ROUND_TRIPS: Final = 2.0
QUIET_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 2.0
_AGENT: Final = b"onetrip-health"


class Pools(Protocol):
    """What checks and probes ask of their upstream."""

    reach: Reach
    context: PoolContext
    pool_at: dict[EndpointState, Any]

    def every_pool(self) -> Iterator[Pool]:
        """Those in use, and those whose last requests go on."""

    def socket_pool(self, target: EndpointState, *, passthrough: bool) -> SocketPool:
        """The L4 links to an endpoint. Raises ProxyError where a reload took it away."""


class Health:
    """The checks and probes of one upstream in one worker."""

    def __init__(self, upstream: Pools, section: HealthSection | None) -> None:
        self._upstream = upstream
        self._context = upstream.context
        self._section = section
        self._checks: dict[EndpointState, ClientConnection] = {}
        self._probing: set[EndpointState] = set()
        self._next_check: dict[EndpointState, float] = {}
        self._checking: set[EndpointState] = set()
        self._closed = False

    # -- every tick --------------------------------------------------------------------------------

    def tick(self, now: float, links: bool) -> None:
        """Start what is due. `links`: the upstream serves L4 listeners only, so probes open no HTTP connections."""
        context = self._context
        self._watch_unanswered(now)
        for target in context.balancer.probes_wanted(now):
            self._probe(target, links)
        section = self._section
        for target in context.balancer.endpoints:
            due = self._next_check.get(target)
            if due is None:
                first = section.interval if section is not None else QUIET_S
                self._next_check[target] = now + first * random.random()
            elif now >= due:
                if section is not None:
                    self._next_check[target] = now + section.interval * random.uniform(0.9, 1.1)
                    if target not in self._checking:
                        self._checking.add(target)
                        context.background.start(self._check(target, section, links), f"check {target.endpoint}")
                else:
                    self._next_check[target] = now + QUIET_S * random.uniform(0.8, 1.2)
                    if target.region.quiet(now):
                        self._probe(target, links)

    def _watch_unanswered(self, now: float) -> None:
        balancer = self._context.balancer
        for pool in self._upstream.every_pool():
            target = pool.target
            rtt = target.floor.value
            suspect = SUSPECT_S + SUSPECT_ROUND_TRIPS * rtt
            allowed = DEAD_S + DEAD_ROUND_TRIPS * rtt
            worst = 0.0
            dead: list[UpstreamConnection] = []
            for connection in pool.stock.connections:
                seconds = connection.unacknowledged_s(now, suspect)
                worst = max(worst, seconds)
                if seconds > allowed:
                    dead.append(connection)
            every, patience = ping_times(pool.ping_every_s, allowed, rtt)
            for connection in pool.stock.shared:
                if not connection.probe_path(now, every, patience) and connection not in dead:
                    dead.append(connection)
            if worst >= suspect:
                balancer.observe_unanswered(target, now, worst)
            for connection in dead:
                text = f"{target.endpoint}: no sign of life for {allowed:.1f} s"
                connection.give_up(ProxyError(Kind.READ_TIMEOUT, text))

    # -- probes ------------------------------------------------------------------------------------

    def _probe(self, target: EndpointState, links: bool) -> None:
        if target not in self._probing:
            self._probing.add(target)
            self._context.background.start(self._run_probe(target, links), f"probe {target.endpoint}")

    async def _run_probe(self, target: EndpointState, links: bool) -> None:
        started = monotonic()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                elapsed = await self._dial(target, links)
        except (ProxyError, TimeoutError) as error:
            if not isinstance(error, ProxyError) or error.blames_endpoint:
                self._tell(target, False, monotonic() - started)
        else:
            if elapsed is not None:
                self._tell(target, True, elapsed)
        finally:
            self._probing.discard(target)

    def _tell(self, target: EndpointState, ok: bool, seconds: float) -> None:
        """Routing hears of it, unless a reload took the endpoint away meanwhile."""
        if not self._closed and target in self._context.balancer.endpoints:
            self._context.balancer.observe_probe(target, monotonic(), ok, seconds)

    async def _dial(self, target: EndpointState, links: bool) -> float | None:
        """Open a connection and keep it warm. Returns one round trip of it, in seconds; None where there is no room."""
        if not links:
            pool: Pool = self._upstream.pool_at[target]
            return await pool.probe()
        future: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._upstream.socket_pool(target, passthrough=False).probe(future)
        return await future

    # -- checks ------------------------------------------------------------------------------------

    async def _check(self, target: EndpointState, section: HealthSection, links: bool) -> None:
        """One check by `section`. A reload may put another in its place meanwhile; then the outcome says nothing."""
        started = monotonic()
        ok = False
        try:
            async with asyncio.timeout(section.timeout):
                if links or (section.path is None and section.grpc is None):
                    if await self._dial(target, links) is None:
                        return  # every connection is busy: their answers say more
                    ok = True
                elif section.path is None:
                    ok = await self._call(target, section.grpc or "")
                else:
                    ok = section.expects(await self._ask(target, section.path.encode()))
        except (ProxyError, TimeoutError) as error:
            if isinstance(error, ProxyError) and not error.blames_endpoint:
                return  # what ran out here says nothing about the endpoint
            connection = self._checks.pop(target, None)
            if connection is not None:
                connection.abort()
        finally:
            self._checking.discard(target)
        # A check is a request and its answer: one round trip and some service time, like the requests that routing
        # measures.
        if section == self._section:
            self._tell(target, ok, monotonic() - started)

    async def _ask(self, target: EndpointState, path: bytes) -> int:
        authority = self._upstream.reach.authority(target.endpoint)
        head = RequestHead(b"GET", path, authority, [(b"user-agent", _AGENT)], {}, scheme=self._upstream.reach.scheme)
        return await (await self._send(target, head, b"")).done

    async def _call(self, target: EndpointState, service: str) -> bool:
        """Whether grpc.health.v1 says that the service is SERVING."""
        body = grpc.health_request(service)
        fields = [(b"user-agent", _AGENT), (b"content-type", grpc.CONTENT_TYPE)]
        authority = self._upstream.reach.authority(target.endpoint)
        head = RequestHead(
            b"POST",
            grpc.HEALTH_PATH,
            authority,
            fields,
            {},
            scheme=self._upstream.reach.scheme,
            content_length=len(body),
        )
        head.te_trailers = True
        check = await self._send(target, head, body)
        return await check.done == 200 and (b"grpc-status", b"0") in check.trailers and grpc.is_serving(check.body)

    async def _send(self, target: EndpointState, head: RequestHead, body: bytes) -> Check:
        pool: Pool = self._upstream.pool_at[target]
        connection = self._checks.get(target)
        if connection is None or connection.transport is None or not connection.can_open:
            if connection is not None:
                connection.abort()
            connection = await pool.connect()
            if connection.state is State.READY:
                connection.state = State.APART
            if self._closed or pool.closed:  # while it was being opened: nobody would ever close it
                connection.abort()
                raise replaced(target.endpoint)
            self._checks[target] = connection
        check = Check()
        turn = self._context.turn
        turn.begin()
        try:
            stream = connection.open(check)
            stream.send_headers(head, not body)
            if body:
                stream.send_data(body, True)
        finally:
            turn.end()
        return check

    def tick_codecs(self) -> None:
        """Once a second: what the checks' codecs count over time."""
        for connection in self._checks.values():
            connection.tick()

    def adopt(self, section: HealthSection | None) -> None:
        """A reload: other checks, or other endpoints."""
        endpoints = set(self._context.balancer.endpoints)
        changed = section != self._section
        self._section = section
        for target, connection in list(self._checks.items()):
            if changed or target not in endpoints or connection.pool.closed:
                del self._checks[target]
                connection.fail_streams(replaced(target.endpoint))  # first: the abort alone would look like the peer's
                connection.abort()
        for target in list(self._next_check):
            if changed or target not in endpoints:
                del self._next_check[target]

    def close(self) -> None:
        """No more checks."""
        self._closed = True
        for connection in self._checks.values():
            connection.abort()
        self._checks.clear()


def ping_times(keepalive_s: float, allowed_s: float, rtt_s: float) -> tuple[float, float]:
    """From one PING to the next, and how long one may stay unanswered, in seconds: together at most `keepalive_s`, in
    which a dead path has to be found (where that leaves the PING a few round trips).
    """
    patience = max(min(allowed_s, keepalive_s / 2), SUSPECT_S + SUSPECT_ROUND_TRIPS * rtt_s)
    return max(keepalive_s - patience, keepalive_s / 2), patience


__all__ = ["Health", "ping_times"]
