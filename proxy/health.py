"""What keeps routing's picture of an endpoint fresh off the request path: checks, probes, and bytes that nobody
acknowledges.

- Active checks (`health:`): a GET over the same TLS settings on a connection of their own, or a TCP connect.
- Probes: an endpoint that routing doubts, or a region without traffic, gets a dial with its handshake. What it opens
  joins the pool.
- Unanswered bytes: a request whose bytes the peer's kernel does not acknowledge is the first sign of a black hole,
  long before any response time-out. Routing is told as it lasts; after `DEAD_S` and some round trips the connection
  is given up.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from .errors import Kind, ProxyError
from .message import RequestHead, ResponseHead
from .stream import StreamHandler
from .tcp import socket_of, unacknowledged_s

if TYPE_CHECKING:
    from routing.balancer import EndpointState

    from .client import ClientConnection
    from .message import Fields
    from .upstream import UpstreamRuntime

DEAD_S: Final = 1.0
DEAD_ROUND_TRIPS: Final = 5.0
SUSPECT_S: Final = 0.1
SUSPECT_ROUND_TRIPS: Final = 2.0
QUIET_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 2.0
_AGENT: Final = b"onetrip-health"


class Check(StreamHandler):
    """One health request on a connection: `done` becomes the status, or a ProxyError."""

    def __init__(self) -> None:
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._status = 0

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """The answer's head."""
        status = cast("ResponseHead", head).status
        if status >= 200:
            self._status = status
            if end:
                self._finish()

    def on_data(self, data: bytes, end: bool) -> None:
        """Its body is of no interest."""
        if end:
            self._finish()

    def on_trailers(self, fields: Fields) -> None:
        """Its end."""
        self._finish()

    def on_writable(self) -> None:
        """A health request has no body."""

    def on_reset(self, error: ProxyError) -> None:
        """It was cut."""
        if not self.done.done():
            self.done.set_exception(error)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(self._status)


class Health:
    """The checks and probes of one upstream in one worker."""

    def __init__(self, upstream: UpstreamRuntime) -> None:
        self._upstream = upstream
        self._section = upstream.section.health
        self._checks: dict[int, ClientConnection] = {}
        self._probing: set[int] = set()
        self._next_check: dict[int, float] = {}
        self._checking: set[int] = set()

    # -- every tick --------------------------------------------------------------------------------

    def tick(self, now: float, links: bool) -> None:
        """Start what is due. `links`: the upstream serves L4 listeners only, so probes open no HTTP connections."""
        upstream = self._upstream
        self._watch_unanswered(now)
        for target in upstream.balancer.probes_wanted(now):
            self._probe(target, links)
        section = self._section
        for target in upstream.balancer.endpoints:
            index = id(target)
            due = self._next_check.get(index)
            if due is None:
                first = section.interval if section is not None else QUIET_S
                self._next_check[index] = now + first * random.random()
            elif now >= due:
                if section is not None:
                    self._next_check[index] = now + section.interval * random.uniform(0.9, 1.1)
                    if index not in self._checking:
                        self._checking.add(index)
                        upstream.background.start(self._check(target, links), f"check {target.endpoint}")
                else:
                    self._next_check[index] = now + QUIET_S * random.uniform(0.8, 1.2)
                    if target.region.quiet(now):
                        self._probe(target, links)

    def _watch_unanswered(self, now: float) -> None:
        balancer = self._upstream.balancer
        for pool in self._upstream.pools:
            target = pool.target
            rtt = target.floor.value
            suspect = SUSPECT_S + SUSPECT_ROUND_TRIPS * rtt
            worst = 0.0
            dead: list[ClientConnection] = []
            for connection in pool.connections:
                if not connection.streams or now - connection.busy_since < suspect or connection.transport is None:
                    continue
                seconds = min(unacknowledged_s(socket_of(connection.transport)), now - connection.busy_since)
                worst = max(worst, seconds)
                if seconds > DEAD_S + DEAD_ROUND_TRIPS * rtt:
                    dead.append(connection)
            for connection in pool.shared:
                allowed = DEAD_S + DEAD_ROUND_TRIPS * rtt
                if not connection.probe_path(now, pool.settings.keepalive_s, allowed):
                    dead.append(connection)
            if worst >= suspect:
                balancer.observe_unanswered(target, now, worst)
            for connection in dead:
                text = f"{target.endpoint}: no sign of life for {DEAD_S + DEAD_ROUND_TRIPS * rtt:.1f} s"
                connection.give_up(ProxyError(Kind.READ_TIMEOUT, text))

    # -- probes ------------------------------------------------------------------------------------

    def _probe(self, target: EndpointState, links: bool) -> None:
        index = id(target)
        if index not in self._probing:
            self._probing.add(index)
            self._upstream.background.start(self._run_probe(target, links), f"probe {target.endpoint}")

    async def _run_probe(self, target: EndpointState, links: bool) -> None:
        started = monotonic()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                elapsed = await self._dial(target, links)
        except (ProxyError, TimeoutError):
            self._upstream.balancer.observe_probe(target, monotonic(), False, monotonic() - started)
        else:
            self._upstream.balancer.observe_probe(target, monotonic(), True, elapsed)
        finally:
            self._probing.discard(id(target))

    async def _dial(self, target: EndpointState, links: bool) -> float:
        """Open a connection and keep it warm. Returns one round trip of it, in seconds."""
        if links:
            future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            self._upstream.socket_pool(target, passthrough=False).probe(future)
            return await future
        connection: ClientConnection = await target.pool.connect()
        target.pool.adopt(connection)
        return max(connection.seconds[1], 1e-6)

    # -- checks ------------------------------------------------------------------------------------

    async def _check(self, target: EndpointState, links: bool) -> None:
        section = self._section
        assert section is not None
        started = monotonic()
        ok = False
        try:
            async with asyncio.timeout(section.timeout):
                if section.path is None or links:
                    await self._dial(target, links)
                    ok = True
                else:
                    ok = section.expects(await self._ask(target, section.path.encode()))
        except (ProxyError, TimeoutError):
            connection = self._checks.pop(id(target), None)
            if connection is not None:
                connection.abort()
        finally:
            self._checking.discard(id(target))
        # A check is a request and its answer: one round trip and some service time, like the requests that routing
        # measures.
        self._upstream.balancer.observe_probe(target, monotonic(), ok, monotonic() - started)

    async def _ask(self, target: EndpointState, path: bytes) -> int:
        connection = self._checks.get(id(target))
        if connection is None or connection.transport is None or not connection.codec.can_open:
            connection = await target.pool.connect()
            self._checks[id(target)] = connection
        check = Check()
        turn = self._upstream.turn
        turn.begin()
        try:
            authority = self._upstream.authority(target.endpoint)
            head = RequestHead(b"GET", path, authority, [(b"user-agent", _AGENT)], {}, scheme=self._upstream.scheme)
            connection.open(check).send_headers(head, True)
        finally:
            turn.end()
        return await check.done

    def close(self) -> None:
        """No more checks."""
        for connection in self._checks.values():
            connection.abort()
        self._checks.clear()


__all__ = ["Check", "Health"]
