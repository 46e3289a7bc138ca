"""One flush per loop turn: connections written to during a callback are sent when that callback ends.

A response's head and body, or an HTTP/2 connection's frames for several streams, leave in one system call. Entry
points (bytes from a socket, a timer) bracket their work with `begin` and `end`; a write from anywhere else is flushed
by `call_soon`.

Rules:
- No connection's work harms another's: one whose flush (or turn) raises is our bug; it is told (`break_down`), reported
  to the loop, and the others are flushed all the same. `depth` is right whatever is raised.
- What a peer has sent ahead (pipelined requests, thousands of frames or TLS handshakes at once) waits its turn: `wait`
  queues a connection, and each pass of the event loop serves the queue for `PASS_S`, in order, one bounded piece of
  work at a time. Between two passes the loop polls its sockets: who asks for little never waits for who asks for
  much.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

PASS_S: Final = 0.002
"""What the queue gets of one pass of the event loop; at least one connection has its turn."""


class Breakable(Protocol):
    """Something that our code serves, and that ends alone where our code fails."""

    def break_down(self, error: Exception) -> None:
        """Our code for it raised: it can't go on, and ends at once."""


class Flushable(Breakable, Protocol):
    """Something with bytes to send."""

    def flush(self) -> None:
        """Send what is buffered."""


class Waiting(Breakable, Protocol):
    """Something with work left that a peer gave it."""

    def take_turn(self) -> None:
        """Do one bounded piece of it (and `wait` again, where that was not all)."""


class Turn:
    """The connections that have something to send. `depth` > 0 while an entry point runs; `now` is when the last one
    began.
    """

    __slots__ = ("_later", "_loop", "_scheduled", "_serving", "_waiting", "depth", "dirty", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._scheduled = False
        self.depth = 0
        self.now = monotonic()
        self.dirty: list[Flushable] = []
        self._later: list[Flushable] = []
        self._waiting: deque[Waiting] = deque()
        self._serving = False  # the queue is being served, or will be soon

    def __repr__(self) -> str:
        return f"<Turn depth={self.depth} dirty={len(self.dirty)} waiting={len(self._waiting)}>"

    def begin(self) -> None:
        """An entry point starts."""
        self.depth += 1
        self.now = monotonic()

    def end(self) -> None:
        """An entry point ends: the outermost one flushes."""
        self.depth -= 1
        if self.dirty and not self.depth:
            self.flush()

    def add(self, connection: Flushable) -> None:
        """Flush `connection` when this turn ends. The caller adds it once (it keeps a flag)."""
        self.dirty.append(connection)
        if not self.depth and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def add_later(self, connection: Flushable) -> None:
        """Flush `connection` once the loop has run every callback that is ready: a burst of requests from many clients
        then leaves on a shared connection in one write, few packets, and one round trip of a small congestion window.
        """
        self._later.append(connection)
        if len(self._later) == 1:
            self._loop.call_soon(self._run_later)

    def _run_later(self) -> None:
        later, self._later = self._later, []
        self.dirty += later
        self.flush()

    def flush(self) -> None:
        """Flush now. What a flush makes dirty is flushed as well. Never raises."""
        dirty = self.dirty
        while dirty:
            self.dirty = []
            for connection in dirty:
                try:
                    connection.flush()
                except Exception as error:
                    self.failed(connection, error)
            dirty = self.dirty

    def _run(self) -> None:
        self._scheduled = False
        self.flush()

    # -- turns -------------------------------------------------------------------------------------

    def wait(self, connection: Waiting) -> None:
        """Let `connection` go on when its turn comes. The caller waits once (it keeps a flag)."""
        self._waiting.append(connection)
        if not self._serving:
            self._serving = True
            self._loop.call_soon(self._serve_waiting)

    def _serve_waiting(self) -> None:
        waiting = self._waiting
        self.begin()
        end = self.now + PASS_S
        while waiting:
            connection = waiting.popleft()
            try:
                connection.take_turn()
            except Exception as error:
                self.failed(connection, error)
            if self.dirty:
                self.flush()  # what its turn cost is known only then
            if monotonic() >= end:
                break
        self._serving = len(waiting) > 0
        if waiting:
            self._loop.call_soon(self._serve_waiting)
        self.end()

    def failed(self, one: Breakable, error: Exception) -> None:
        """Our code for `one` raised: report it, and end this one alone. Never raises."""
        self.report(one, error)
        try:
            one.break_down(error)
        except Exception as second:
            self.report(one, second)

    def report(self, what: object, error: Exception) -> None:
        """Tell the loop's exception handler, which logs it."""
        self._loop.call_exception_handler({"message": f"{what!r} failed", "exception": error})
