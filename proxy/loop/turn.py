"""One flush per loop turn: connections written to during a callback are sent when that callback ends.

A response's head and body, or an HTTP/2 connection's frames for several streams, leave in one system call. Entry
points (bytes from a socket, a timer) bracket their work with `begin` and `end`; a write from anywhere else is flushed
by `call_soon`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio


class Flushable(Protocol):
    """Something with bytes to send."""

    def flush(self) -> None:
        """Send what is buffered."""


class Turn:
    """The connections that have something to send. `depth` > 0 while an entry point runs; `now` is when the last one
    began.
    """

    __slots__ = ("_later", "_loop", "_scheduled", "depth", "dirty", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._scheduled = False
        self.depth = 0
        self.now = monotonic()
        self.dirty: list[Flushable] = []
        self._later: list[Flushable] = []

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
        """Flush now. What a flush makes dirty is flushed as well."""
        dirty = self.dirty
        while dirty:
            self.dirty = []
            for connection in dirty:
                connection.flush()
            dirty = self.dirty

    def _run(self) -> None:
        self._scheduled = False
        self.flush()
