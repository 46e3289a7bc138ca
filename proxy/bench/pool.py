"""The connections to one target: dialling them with every phase timed, and giving requests to them.

A request takes, in this order: an idle connection (the one used last); a new connection, while there are fewer than the
plan allows; with HTTP/2, a stream on the connection that has the fewest; a place in the queue, first in, first out. A
request that opened a connection waits for that one, so its phases add up: queue + dns + tcp + tls + first byte +
receive = total. Time in the queue counts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from proxy.errors import Kind, ProxyError

from .client import Connection, H1Connection, Phase
from .client_h2 import H2Connection
from .plan import Plan, PlanError, Target
from .record import Recorder
from .request import Request, request_bytes, request_fields
from .tls import ClientTls, client_context

_LOOKUP_KEPT_S: Final = 1.0  # dials this soon after a look-up share its answer

Address = tuple[socket.AddressFamily, Any]


class Resolver:
    """Look-ups of one host, timed, each shared by the dials that come within a second of it."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._addresses: list[Address] = []
        self._valid_until = 0.0
        self._lookup: asyncio.Future[list[Address]] | None = None
        try:
            literal = ipaddress.ip_address(host)
            family = socket.AF_INET6 if literal.version == 6 else socket.AF_INET
            self._addresses = [(family, (host, port))]
            self._valid_until = float("inf")
        except ValueError:
            pass

    async def resolve(self) -> tuple[list[Address], float]:
        """The addresses, and the seconds that it took (-1: nothing was asked). ProxyError: the name has none."""
        began = time.monotonic()
        if began < self._valid_until:
            return self._addresses, -1.0
        if self._lookup is None:
            self._lookup = asyncio.ensure_future(self._look_up())
            self._lookup.add_done_callback(self._looked_up)
        addresses = await asyncio.shield(self._lookup)
        return addresses, time.monotonic() - began

    async def _look_up(self) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ProxyError(Kind.DNS, f"{self._host} could not be resolved: {error.strerror or error}") from None
        return [(family, address) for family, _, _, _, address in found]

    def _looked_up(self, lookup: asyncio.Future[list[Address]]) -> None:
        self._lookup = None
        if not lookup.cancelled() and lookup.exception() is None:
            self._addresses = lookup.result()
            self._valid_until = time.monotonic() + _LOOKUP_KEPT_S


class Pool:
    """One target's connections, queue and records. `settled` is called for every request that has got its end."""

    def __init__(self, plan: Plan, target: Target, recorder: Recorder, settled: Callable[[Request], None]) -> None:
        self.target = target
        self.recorder = recorder
        self.open = 0
        self.opened_total = 0
        self._plan = plan
        self._settled = settled
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(target.host, target.port)
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._queue: deque[Request] = deque()
        self._openers: dict[Connection, Request] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._session: ssl.SSLSession | None = None
        self._context: ssl.SSLContext | None = None
        self._h2_fields = request_fields(plan, target)
        self._h1_bytes = request_bytes(plan, target)
        if target.tls:
            alpn = H2Connection.alpn if plan.protocol == "h2" else H1Connection.alpn
            try:
                self._context = client_context(insecure=plan.insecure, ca=plan.ca, alpn=alpn)
            except OSError as error:  # an ssl.SSLError is one
                raise PlanError(f"--ca {plan.ca}: {error.strerror or error}") from None

    def __repr__(self) -> str:
        return f"<Pool {self.target.name}: {self.open} open, {len(self._idle)} idle, {len(self._queue)} queued>"

    @property
    def queued(self) -> int:
        """Requests that wait for a connection."""
        return len(self._queue)

    def submit(self, request: Request, now: float) -> None:
        """Start a request, or queue it."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            connection.idle = False
            if connection.has_room(1):
                self._give(connection, request, now)
                return
        if self.open < self._plan.connections:
            self._open(request)
            return
        if self._plan.protocol == "h2":
            streams = self._plan.streams
            ready = [c for c in self._connections if c.phase is Phase.READY and c.has_room(streams)]
            if ready:
                self._give(min(ready, key=_active), request, now)
                return
        self._queue.append(request)

    def time_out(self, request: Request, now: float) -> None:
        """A request's time is over: free what it holds, count it."""
        dialling = request.dialled and not request.sent
        if dialling:
            error = ProxyError(
                Kind.CONNECT_TIMEOUT, f"no connection to {self.target.authority} within {self._plan.timeout_s:g} s"
            )
        elif request.connection is not None:
            error = ProxyError(Kind.RESPONSE_TIMEOUT, f"no complete answer within {self._plan.timeout_s:g} s")
        else:
            error = ProxyError(Kind.RESPONSE_TIMEOUT, f"no connection became free within {self._plan.timeout_s:g} s")
        self._settle_failed(request, error, now)
        if request.task is not None:
            request.task.cancel()
        for connection in [c for c, opener in self._openers.items() if opener is request]:
            connection.close()
        if request.connection is not None:
            request.connection.abandon(request, now)

    def close(self) -> None:
        """Close everything; nothing is counted any more."""
        self._stopping = True
        for task in self._dials:
            task.cancel()
        for connection in list(self._connections) + list(self._openers):
            connection.close()

    # ConnectionOwner

    def opened(self, connection: Connection) -> None:
        """A handshake is complete: its opener's request goes first."""
        now = connection.ready_at
        self.opened_total += 1
        self._connections.add(connection)
        request = self._openers.pop(connection, None)
        if connection.tls is not None:
            self.recorder.tls_versions[connection.tls.version] += 1
        if request is None or request.done:
            self._next(connection, now)
            return
        request.state = "cold"
        if connection.tls is not None:
            request.tls_s = now - connection.connected_at
            if connection.tls.resumed:
                request.state = "resumed"
        connection.send(request, now)
        if self._queue:
            self._next(connection, now)

    def answered(self, connection: Connection, request: Request, now: float) -> None:
        """Record it, and give the connection its next request."""
        if not request.done:
            request.done = True
            self.recorder.answered_at(request, request.status, now)
            self._settled(request)
        if connection.served == 1 and connection.tls is not None and self._plan.resume:
            self._session = connection.tls.session or self._session
        limit = self._plan.connection_requests
        if limit and connection.served >= limit:
            connection.draining = True
        self._next(connection, now)

    def failed(self, connection: Connection, request: Request, error: ProxyError, now: float) -> None:
        """Record it; where only the stream failed, the connection goes on."""
        self._settle_failed(request, error, now)
        self._next(connection, now)

    def freed(self, connection: Connection, now: float) -> None:
        """Give it what waits."""
        self._next(connection, now)

    def closed(self, connection: Connection, error: ProxyError | None) -> None:
        """A connection is gone; a queued request may open another one."""
        self._connections.discard(connection)
        if connection.idle:
            connection.idle = False
            self._idle.remove(connection)
        self.open -= 1
        request = self._openers.pop(connection, None)
        if request is not None and error is not None:
            self._settle_failed(request, error, time.monotonic())
        self._refill()

    def received_bytes(self, size: int) -> None:
        """Count traffic."""
        self.recorder.bytes_received += size

    # Within.

    def _give(self, connection: Connection, request: Request, now: float) -> None:
        request.state = "reused"
        request.began = now
        connection.send(request, now)

    def _next(self, connection: Connection, now: float) -> None:
        if connection.phase is not Phase.READY or self._stopping:
            return
        if connection.draining:
            if not connection.active:
                connection.close()
            return
        queue = self._queue
        streams = self._plan.streams
        while queue and connection.has_room(streams):
            request = queue.popleft()
            if not request.done:
                self._give(connection, request, time.monotonic())
        if not connection.idle and not connection.active:
            connection.idle = True
            self._idle.append(connection)

    def _refill(self) -> None:
        """Open connections for what is queued. Every dial that fails ends its own request, so a dead target empties the
        queue.
        """
        while self._queue and self.open < self._plan.connections and not self._stopping:
            request = self._queue.popleft()
            if not request.done:
                self._open(request)

    def _open(self, request: Request) -> None:
        self.open += 1
        request.began = time.monotonic()
        request.dialled = True
        task = self._loop.create_task(self._dial(request))
        request.task = task
        self._dials.add(task)
        task.add_done_callback(partial(self._dial_ended, request))

    def _dial_ended(self, request: Request, task: asyncio.Task[None]) -> None:
        self._dials.discard(task)
        if request.task is not None:  # failed or cancelled before there was a connection
            request.task = None
            self.open -= 1
            self._refill()

    async def _dial(self, request: Request) -> None:
        try:
            addresses, request.dns_s = await self._resolver.resolve()
            began = time.monotonic()
            sock = await self._connect(addresses)
        except ProxyError as error:
            self._settle_failed(request, error, time.monotonic())
            return
        connected_at = time.monotonic()
        request.tcp_s = connected_at - began
        request.task = None
        connection = self._connection()
        connection.connected_at = connected_at
        self._openers[connection] = request
        try:
            await self._loop.create_connection(lambda: connection, sock=sock)
        except OSError as error:
            sock.close()
            connection.close(
                ProxyError(Kind.TERMINATED, f"the connection was lost at once: {_reason(error)}"), time.monotonic()
            )

    async def _connect(self, addresses: list[Address]) -> socket.socket:
        fault: OSError | None = None
        tried = []
        for family, address in addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self._loop.sock_connect(sock, address)
                return sock
            except OSError as error:
                sock.close()
                fault = error
                tried.append(f"{address[0]} port {address[1]}")
            except asyncio.CancelledError:
                sock.close()
                raise
        kind = Kind.REFUSED if isinstance(fault, ConnectionRefusedError) else Kind.UNREACHABLE
        raise ProxyError(kind, f"{', '.join(tried) or 'no address'}: {_reason(fault)}")

    def _connection(self) -> Connection:
        tls = None
        if self._context is not None:
            tls = ClientTls(self._context, self.target.host, self._session if self._plan.resume else None)
        if self._plan.protocol == "h2":
            return H2Connection(self, tls, self._h2_fields, self._plan.body)
        return H1Connection(self, tls, self._h1_bytes, head_only=self._plan.method == "HEAD")

    def _settle_failed(self, request: Request, error: ProxyError, now: float) -> None:
        if not request.done:
            request.done = True
            self.recorder.failed_at(request, error, now)
            self._settled(request)


def _active(connection: Connection) -> int:
    return connection.active


def _reason(error: OSError | None) -> str:
    if error is None or error.errno is None:
        return str(error)
    return os.strerror(error.errno)
