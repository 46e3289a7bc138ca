"""An open loop at a fixed rate, precise to microseconds: what a proxy adds to a request when nothing is saturated.

Requests start when they are due whether or not earlier ones are answered, and latency counts from when one was due (so
a stall is seen by all that it delayed). The loop waits in select(2), whose time-outs are in microseconds; event loops
built on epoll and libuv round theirs to milliseconds, which is ten times what is measured here.
"""

from __future__ import annotations

import ctypes
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from .load import REQUEST, SMALL, LoadFailed, read_answer

PR_SET_TIMERSLACK: Final = 29
LATE_S: Final = 0.001


@dataclass(slots=True)
class Latencies:
    """Seconds from when each request was due to the end of its answer, and from when it was sent."""

    due_s: list[float] = field(default_factory=list)
    sent_s: list[float] = field(default_factory=list)
    late_starts: int = 0
    """Requests that waited for a free connection, or left more than a millisecond late."""


@dataclass(slots=True)
class Pending:
    """A request without its whole answer: when it was due, when it left, what came back so far."""

    due: float
    sent: float
    received: bytes = b""


def percentile(values: list[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class OpenLoop:
    """`rate` requests a second over a fixed set of connections, used in turn."""

    def __init__(self, port: int, rate: float, connections: int = 64) -> None:
        self.interval_s = 1.0 / rate
        self._port = port
        self._idle: deque[socket.socket] = deque()
        self._busy: dict[socket.socket, Pending] = {}
        for _ in range(connections):
            self._idle.append(self._connect())

    def _connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=5)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(REQUEST)
        read_answer(client)
        client.setblocking(False)
        return client

    def close(self) -> None:
        """Close every connection."""
        for client in [*self._idle, *self._busy]:
            client.close()

    def run(self, seconds: float) -> Latencies:
        """Send for that long, and wait up to a second for the last answers."""
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # wake when asked, not up to 50 us later
        result = Latencies()
        start = time.monotonic()
        count = round(seconds / self.interval_s)
        started = 0
        while started < count or self._busy:
            now = time.monotonic()
            due = start + started * self.interval_s
            if started < count and now >= due and self._idle:
                self._start(due, now, result)
                started += 1
                continue
            if now > start + seconds + 1.0:
                raise LoadFailed(f"{len(self._busy)} requests without an answer")
            wait_s = due - now if started < count and self._idle else 0.1
            for client in select.select(self._busy, (), (), max(0.0, wait_s))[0]:
                self._receive(client, result)
        return result

    def _start(self, due: float, now: float, result: Latencies) -> None:
        client = self._idle.popleft()
        client.send(REQUEST)
        self._busy[client] = Pending(due, now)
        result.late_starts += now - due > LATE_S

    def _receive(self, client: socket.socket, result: Latencies) -> None:
        more = client.recv(65536)
        now = time.monotonic()
        pending = self._busy[client]
        pending.received += more
        if not more or not pending.received.startswith(b"HTTP/1.1 200"[: len(pending.received)]):
            raise LoadFailed(f"answered {pending.received[:60]!r}")
        if not pending.received.endswith(SMALL):
            return
        del self._busy[client]
        self._idle.append(client)
        result.due_s.append(now - pending.due)
        result.sent_s.append(now - pending.sent)
