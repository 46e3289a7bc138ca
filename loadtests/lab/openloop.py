"""A small open-loop load: requests start when they are due, whether or not earlier ones have been answered.

For tests, scenarios and the lab's own measurements. `onetrip bench` is the tool for users.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from time import monotonic
from types import TracebackType
from typing import Final

from .timers import Timers

_CONNECT_WITHIN_S: Final = 10.0


class Result:
    """What became of the requests. Latencies are milliseconds from the instant at which a request was due."""

    def __init__(self) -> None:
        self.latencies_ms: list[float] = []
        self.lags_ms: list[float] = []
        self.failures: list[str] = []

    def __repr__(self) -> str:
        return (
            f"<Result {len(self.latencies_ms)} answered, {len(self.failures)} failed, p50 {self.quantile(0.5):.2f} ms>"
        )

    def quantile(self, share: float) -> float:
        """The latency that `share` of the answered requests did not exceed (the nearest rank).

        Nan where there are none.
        """
        return _quantile(self.latencies_ms, share)

    def summary(self) -> dict[str, float]:
        """Counts and quantiles; `lag_p99_ms` is how late the generator itself was."""
        return {
            "requests": len(self.latencies_ms) + len(self.failures),
            "failed": len(self.failures),
            **{f"p{share * 100:g}_ms": round(self.quantile(share), 3) for share in (0.5, 0.9, 0.99, 0.999)},
            "max_ms": round(self.quantile(1.0), 3),
            "lag_p99_ms": round(_quantile(self.lags_ms or [0.0], 0.99), 3),
        }


async def open_loop(send: Callable[[int], Awaitable[object]], *, rate: float, duration_s: float) -> Result:
    """Call `send(i)` `rate` times a second for `duration_s` and wait for all of them.

    An exception is a failed request.
    """
    result = Result()
    count = int(rate * duration_s)
    done = asyncio.Event()
    timers = Timers(asyncio.get_running_loop())
    running: set[asyncio.Task[None]] = set()
    begin = monotonic() + 0.01

    async def one(number: int, due: float) -> None:
        result.lags_ms.append((monotonic() - due) * 1e3)
        try:
            await send(number)
        except Exception as error:
            result.failures.append(f"{type(error).__name__}: {error}")
        else:
            result.latencies_ms.append((monotonic() - due) * 1e3)
        if len(result.latencies_ms) + len(result.failures) == count:
            done.set()

    def start(number: int) -> None:
        due = begin + number / rate
        task = asyncio.get_running_loop().create_task(one(number, due))
        running.add(task)
        task.add_done_callback(running.discard)
        if number + 1 < count:
            timers.call_at(begin + (number + 1) / rate, start, number + 1)

    try:
        if count:
            timers.call_at(begin, start, 0)
            await done.wait()
    finally:
        timers.close()
        for task in running:
            task.cancel()
    return result


class KeepAliveClient(AbstractAsyncContextManager["KeepAliveClient"]):
    """HTTP/1.1 GETs over connections that are opened beforehand: one request at a time on each, the warmest first.

    Only for answers with a content-length. A request that finds no free connection waits for one.
    """

    def __init__(
        self, dial: Callable[[asyncio.Protocol], Awaitable[object]], *, connections: int, path: str = "/"
    ) -> None:
        self._dial = dial
        self._count = connections
        self._head = f"GET {path} HTTP/1.1\r\nhost: origin.lab.test\r\n\r\n".encode()
        self._free: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
        self._all: list[_Connection] = []

    async def __aenter__(self) -> KeepAliveClient:
        async with asyncio.timeout(_CONNECT_WITHIN_S):
            for _ in range(self._count):
                connection = _Connection()
                await self._dial(connection)
                self._all.append(connection)
                self._free.put_nowait(connection)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._all:
            connection.close()

    async def get(self, _: int = 0) -> int:
        """One request; its status. Raises ConnectionError."""
        connection = await self._free.get()
        status = await connection.get(self._head)
        self._free.put_nowait(connection)
        return status


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank or self._answer is None or self._answer.done():
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._buffer = body[length:]
            self._answer.set_result(int(head[9:12]))

    def get(self, request: bytes) -> asyncio.Future[int]:
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None:
            self._answer.set_exception(ConnectionResetError("closed"))
        else:
            self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _quantile(values: list[float], share: float) -> float:
    if not values:
        return float("nan")
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * share) - 1)]
