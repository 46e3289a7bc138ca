"""The load: an open loop of HTTP/1.1 requests from home to a proxy, each with its instant, outcome and region.

Requests start when they are due, whatever became of those before, and a request's latency counts from when it was due.
Connections are opened beforehand (`Client.open`): a user of a local proxy keeps his, and what is measured is the way
to the region. Every sample says which region answered (`x-region`), so that a fail-over and a return can be seen.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, cast

import httptools

from loadtests.lab.timers import Timers

TIMEOUT_S: Final = 5.0
"""A user's patience: an answer later than this is none."""

POST_BODY: Final = b'{"order": 1}'


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `at`: when it was due (time.monotonic). `status` 0: no answer, and `error` says why."""

    at: float
    latency_ms: float
    method: str
    status: int
    region: str
    error: str
    lag_ms: float

    @property
    def failed(self) -> bool:
        """No answer, or one that says that the proxy or the origin could not."""
        return self.status == 0 or self.status >= 500


class Client:
    """Keep-alive connections to one address. `dial` returns a connected socket (in the lab's home)."""

    def __init__(self, dial: Callable[[], Coroutine[Any, Any, socket.socket]], host: str) -> None:
        self._dial = dial
        self._host = host
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.timers = Timers(asyncio.get_running_loop())

    def __repr__(self) -> str:
        return f"<Client {len(self._all)} connections, {len(self._idle)} idle>"

    async def open(self, count: int) -> None:
        """Have at least `count` idle connections. Raises OSError where nobody accepts."""
        while len(self._idle) < count:
            self._idle.append(await self._connect())

    async def get(self, path: str = "/") -> Sample:
        """One GET now."""
        done: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self.start("GET", path, monotonic(), done.set_result)
        return await done

    def start(self, method: str, path: str, due: float, settled: Callable[[Sample], None]) -> None:
        """Send a request; `settled` is called once with what became of it, within `TIMEOUT_S`."""
        body = POST_BODY if method == "POST" else b""
        length = f"content-length: {len(body)}\r\n" if body else ""
        request = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\n{length}\r\n".encode() + body
        exchange = _Exchange(method, due, settled)
        self.timers.call_at(due + TIMEOUT_S, exchange.fail, f"no answer within {TIMEOUT_S:g} s")
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                connection.send(exchange, request)
                return
        task = asyncio.get_running_loop().create_task(self._send_on_new(exchange, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        for connection in list(self._all):
            connection.abort()
        self.timers.close()

    async def _send_on_new(self, exchange: _Exchange, request: bytes) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            exchange.fail(f"connect: {error.strerror or error}")
            return
        connection.send(exchange, request)

    async def _connect(self) -> _Connection:
        made = await self._dial()
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(self), sock=made)
        self._all.add(connection)
        return connection

    def free(self, connection: _Connection) -> None:
        """A connection has no request any more."""
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection is closed."""
        self._all.discard(connection)


class _Exchange:
    """A request under way."""

    __slots__ = ("_due", "_lag_ms", "_method", "_settled", "done")

    def __init__(self, method: str, due: float, settled: Callable[[Sample], None]) -> None:
        self._method = method
        self._due = due
        self._lag_ms = (monotonic() - due) * 1e3
        self._settled = settled
        self.done = False

    def answer(self, status: int, region: str) -> None:
        """The whole answer is there."""
        self._settle(status, region, "")

    def fail(self, error: str) -> None:
        """There will be none."""
        self._settle(0, "", error)

    def _settle(self, status: int, region: str, error: str) -> None:
        if not self.done:
            self.done = True
            latency_ms = (monotonic() - self._due) * 1e3
            self._settled(Sample(self._due, latency_ms, self._method, status, region, error, self._lag_ms))


class _Connection(asyncio.Protocol):
    """One connection: idle, with an exchange, or closed."""

    def __init__(self, owner: Client) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: _Exchange | None = None
        self._region = ""

    @property
    def open(self) -> bool:
        """A request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: _Exchange, request: bytes) -> None:
        """Send a request; its answer settles the exchange."""
        self._exchange = exchange
        self._region = ""
        if self._transport is None:
            exchange.fail("the proxy closed the connection")
        else:
            self._transport.write(request)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses of it

    def data_received(self, data: bytes) -> None:
        """Part of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._exchange is not None:
                self._exchange.fail(f"not an answer: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed: by the proxy, or because the exchange's time was over."""
        self._transport = None
        if self._exchange is not None:
            self._exchange.fail(f"the proxy closed the connection{f': {exc}' if exc else ''}")
        self._owner.lost(self)

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field."""
        if name.lower() == b"x-region":
            self._region = value.decode()

    def on_message_complete(self) -> None:
        """The answer is complete."""
        exchange, self._exchange = self._exchange, None
        status = self._parser.get_status_code()
        if exchange is not None:
            exchange.answer(status, self._region)
        if not self._parser.should_keep_alive():
            self.abort()
        else:
            self._parser = httptools.HttpResponseParser(self)
            self._owner.free(self)


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second of a method, evenly spaced."""

    per_s: float
    method: str = "GET"


class OpenLoop:
    """A load that runs until told to stop: `samples` fills meanwhile."""

    def __init__(self, client: Client, rates: list[Rate], path: str = "/") -> None:
        self._client = client
        self._path = path
        self._running = True
        self._open = 0
        self._drained = asyncio.Event()
        self.samples: list[Sample] = []
        self.began = monotonic() + 0.02
        for rate in rates:
            if rate.per_s > 0:
                # The methods don't start together: half an interval apart.
                self._schedule(rate, 0 if rate.method == "GET" else 0.5)

    def _schedule(self, rate: Rate, number: float) -> None:
        due = self.began + number / rate.per_s
        self._client.timers.call_at(due, self._start, rate, number, due)

    def _start(self, rate: Rate, number: float, due: float) -> None:
        if not self._running:
            return
        self._open += 1
        self._client.start(rate.method, self._path, due, self._settled)
        self._schedule(rate, number + 1)

    def _settled(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._open -= 1
        if not self._running and not self._open:
            self._drained.set()

    async def stop(self) -> list[Sample]:
        """Start no more, wait for the answers of those under way, and return all samples in the order of their due
        time.
        """
        self._running = False
        if self._open:
            await self._drained.wait()
        self.samples.sort(key=lambda sample: sample.at)
        return self.samples


async def burst(client: Client, count: int, path: str = "/") -> list[Sample]:
    """`count` GETs at one instant."""
    await client.open(count)
    due = monotonic()
    samples: list[Sample] = []
    done = asyncio.Event()

    def settled(sample: Sample) -> None:
        samples.append(sample)
        if len(samples) == count:
            done.set()

    for _ in range(count):
        client.start("GET", path, due, settled)
    await done.wait()
    return samples
