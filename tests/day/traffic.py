"""Clients: an open loop of requests over kept and new connections, each checked to the last byte.

They do what RFC 9112 asks of a client. A kept connection that ends before a byte of an answer came was closed while
idle: a request that may be repeated goes again, on a new connection (section 9.3.1), which is no failure. So only GET
and PUT go over kept connections, and POST over new ones, where nothing excuses a failure. `connection: close`, and
HTTP/2's GOAWAY, are honoured.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from .client import Answer, ClosedWhileIdle, H1Client, H2Client

PATIENCE_S = 20.0
KEPT = 6
BODY_BYTES_MAX = 40_000
_marks = itertools.count(1)


@dataclass(slots=True)
class Failure:
    """A request that went wrong: when (seconds since the traffic began), which, and how."""

    at_s: float
    kind: str
    method: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.at_s:.2f} s, {self.kind} {self.method} {self.mark}: {self.text}"


@dataclass
class Traffic:
    """Requests to one port. `excuse`: says of a failure whether a perfect proxy could not have prevented it."""

    port: int
    rate: float = 100.0
    authority: str = ""  # of the listener's certificate; empty: no TLS
    multiplexed: bool = True
    fields: dict[str, str] = field(default_factory=dict)
    excuse: Callable[[Failure], bool] | None = None
    failures: list[Failure] = field(default_factory=list)
    excused: list[Failure] = field(default_factory=list)
    answered: int = 0
    origins: Counter[str] = field(default_factory=Counter)
    posts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tls, self.tls_h2 = self._context("http/1.1"), self._context("h2")
        self._random = random.Random(7)
        self._began = monotonic()
        self._kept: list[H1Client] = []
        self._shared: H2Client | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._running = asyncio.Event()
        self._number = 0  # of the last request that began
        self._sampled: Counter[str] = Counter()
        self._sample_from = 0

    def _context(self, alpn: str) -> ssl.SSLContext | None:
        if not self.authority:
            return None
        context = ssl.create_default_context(cafile=self.authority)
        context.set_alpn_protocols([alpn])
        return context

    # -- its life ----------------------------------------------------------------------------------

    def start(self) -> Traffic:
        """Begin, or go on."""
        self._running.set()
        if self._loop is None:
            self._loop = asyncio.ensure_future(self._pace())
        return self

    async def pause(self) -> None:
        """No more requests; those under way end, kept connections close."""
        self._running.clear()
        if self._open:
            await asyncio.wait(list(self._open))
        for client in self._kept:
            client.close()
        self._kept.clear()
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    async def stop(self) -> None:
        """Pause, for good."""
        await self.pause()
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
            self._loop = None

    async def more(self, count: int = 60) -> None:
        """Until so many more have been answered, or failed."""
        goal = self.answered + len(self.failures) + len(self.excused) + count
        async with asyncio.timeout(PATIENCE_S + count / self.rate):
            while self.answered + len(self.failures) + len(self.excused) < goal:
                await asyncio.sleep(0.01)

    async def sample(self, count: int = 60) -> Counter[str]:
        """Which origins answer the next `count` requests, of those that begin from now on."""
        self._sampled, self._sample_from = Counter(), self._number + 1
        async with asyncio.timeout(PATIENCE_S + count / self.rate):
            while self._sampled.total() < count:
                await asyncio.sleep(0.01)
        return self._sampled

    # -- requests ----------------------------------------------------------------------------------

    async def _pace(self) -> None:
        due = monotonic()
        while True:
            if not self._running.is_set():
                await self._running.wait()
                due = monotonic()
            self._number = next(_marks)
            task = asyncio.ensure_future(self._request(self._number))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            due += 1 / self.rate
            await asyncio.sleep(max(0.0, due - monotonic()))

    async def _request(self, number: int) -> None:
        mark = f"day-{number}"
        body = self._random.randbytes(self._random.randrange(1, BODY_BYTES_MAX)) if number % 4 >= 2 else b""
        kept = number % 2 == 0
        method = ("PUT" if kept else "POST") if body else "GET"
        if method == "POST":
            self.posts.add(mark)
        kind = "kept" if kept else "new"
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self.multiplexed and number % 10 == 4:
                    kind = "h2"
                    answer = await self._over_h2(method, mark, body)
                else:
                    answer = await (self._over_kept if kept else self._over_new)(method, mark, body)
            text = self._fault(answer, mark, body)
        except TimeoutError:
            text = f"no answer within {PATIENCE_S:g} s"
        except (OSError, ClosedWhileIdle, EOFError, ValueError) as error:
            text = repr(error)
        if not text:
            self.answered += 1
            name = answer.headers.get("x-origin", "")
            self.origins[name] += 1
            if number >= self._sample_from:
                self._sampled[name] += 1
            return
        failure = Failure(monotonic() - self._began, kind, method, mark, text)
        (self.excused if self.excuse is not None and self.excuse(failure) else self.failures).append(failure)

    def _fault(self, answer: Answer, mark: str, body: bytes) -> str:
        if answer.status != 200:
            return f"{answer.status} {answer.body[:300].decode(errors='replace').strip()}"
        if answer.body != (body or f"hello /{mark}".encode()):
            return f"sent {len(body)} bytes, got {len(answer.body)} others: {answer.body[:60]!r}"
        if answer.headers.get("x-got-x-day") != mark:
            return f"the answer is another request's: {answer.headers.get('x-got-x-day')}"
        return ""

    def _fields(self, mark: str) -> dict[str, str]:
        return {"x-day": mark, **self.fields}

    async def _over_new(self, method: str, mark: str, body: bytes) -> Answer:
        client = await H1Client.connect(self.port, self.tls)
        try:
            return await client.request(method, f"/{mark}", self._fields(mark), body, last=True)
        finally:
            client.close()

    async def _over_kept(self, method: str, mark: str, body: bytes) -> Answer:
        while True:
            old = len(self._kept) >= KEPT
            client = self._kept.pop(0) if old else await H1Client.connect(self.port, self.tls)
            try:
                answer = await client.request(method, f"/{mark}", self._fields(mark), body)
            except (ClosedWhileIdle, OSError):
                client.close()
                if not client.used:
                    raise
                continue
            except BaseException:
                client.close()
                raise
            if client.ended:
                client.close()
            elif self._running.is_set():
                self._kept.append(client)
            else:
                client.close()
            return answer

    async def _over_h2(self, method: str, mark: str, body: bytes) -> Answer:
        while True:
            client = self._shared
            if client is None or client.ended:
                client = self._shared = H2Client(self.port, self.tls_h2)
            try:
                return await client.request(method, f"/{mark}", self._fields(mark), body)
            except ClosedWhileIdle:  # GOAWAY said that it was not taken, or it found the connection closed
                if not client.used:
                    raise
                if self._shared is client:
                    self._shared = None
