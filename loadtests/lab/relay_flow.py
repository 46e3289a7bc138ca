"""What the loopback relay does to one connection: two flows of delayed pieces between two sides.

`relay` has the rules.
"""

# ruff: noqa: D102 - the callbacks are asyncio's, named and described there

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from time import monotonic
from typing import Any, Final, TypeAlias

from .path import Link, PathSettings
from .timers import Timers

_HELD_BYTES_MAX: Final = 4 << 20  # in flight in one direction of one connection; past it the sender is not read from
_UNLIMITED_QUEUE_MS: Final = 1e9  # a stream's bytes wait at the bottleneck; none are dropped
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class Mark(Enum):
    """What travels in a flow beside bytes."""

    OPEN = "the client's SYN"
    END = "end of stream"
    RESET = "reset"


Piece: TypeAlias = bytes | Mark


class Wire:
    """One direction between home and a region: its link, and the flows that a blackhole holds."""

    def __init__(self, delay_ms: float) -> None:
        self.link = Link(PathSettings(delay_ms=delay_ms, queue_ms=_UNLIMITED_QUEUE_MS))
        self.held: set[Flow] = set()

    @property
    def delay_s(self) -> float:
        """One way, now."""
        return self.link.settings.delay_ms / 1e3

    def configure(self, values: dict[str, Any]) -> None:
        """Take new settings. Where that ends a blackhole, what it held is sent anew."""
        settings = self.link.settings.changed(**values)
        self.link.configure(replace(settings, queue_ms=_UNLIMITED_QUEUE_MS))
        if not settings.blackhole:
            held, self.held = self.held, set()
            for flow in held:
                flow.release()


class Flow:
    """One direction of one connection.

    A piece is on its way (in `_queue`, with a timer), or has arrived (the first `_ready` ones of `_queue`, where the
    target can't take them yet), or is held by a blackhole (in `_held`, and everything behind it too).
    """

    def __init__(self, timers: Timers, wire: Wire) -> None:
        self._timers = timers
        self._wire = wire
        self._queue: deque[Piece] = deque()
        self._ready = 0
        self._held: deque[Piece] = deque()
        self._size = 0
        self._source_paused = False
        self._last_due = 0.0
        self.established_at = 0.0  # bytes that were read before this instant count as read then
        self.on_opening: Callable[[float], None] | None = None
        self.on_open: Callable[[], None] | None = None
        self.source: Side | None = None
        self.target: Side | None = None

    def __repr__(self) -> str:
        return f"<Flow {self._size} bytes: {len(self._queue)} pieces on their way, {len(self._held)} held>"

    def push(self, piece: Piece) -> None:
        """A piece has been read from the source."""
        if isinstance(piece, bytes):
            self._size += len(piece)
            if self._size > _HELD_BYTES_MAX and not self._source_paused and self.source is not None:
                self._source_paused = True
                self.source.pause()
        if self._held:
            self._held.append(piece)
        else:
            self._send(piece)

    def release(self) -> None:
        """The path is back: send what the blackhole held (a next one may hold the rest of it)."""
        held, self._held = self._held, deque()
        while held and not self._held:
            self._send(held.popleft())
        self._held += held

    def deliver(self) -> None:
        """Give the target what has arrived, as long as it can take it."""
        while self._ready:
            if self._queue[0] is Mark.OPEN:
                assert self.on_open is not None
                self.on_open()
            elif self.target is not None and self.target.writable:
                self.target.take(self._queue[0])
            else:
                break
            self._ready -= 1
            piece = self._queue.popleft()
            if isinstance(piece, bytes):
                self._size -= len(piece)
        if self._source_paused and self._size < _HELD_BYTES_MAX // 2 and self.source is not None:
            self._source_paused = False
            self.source.resume()

    def _send(self, piece: Piece) -> None:
        now = monotonic()
        if piece is Mark.OPEN:
            assert self.on_opening is not None
            self.on_opening(now)
            due = self._wire.link.schedule(now, 0)
        else:
            size = len(piece) if isinstance(piece, bytes) else 0
            due = self._wire.link.schedule(now, size)
            if due is not None:
                # Not through the link's clock: it keeps packets in order, and others' would wait for this handshake.
                due += max(0.0, self.established_at - now)
        if due is None:
            self._held.append(piece)
            self._wire.held.add(self)
            return
        # Bytes never overtake each other in a stream, whatever the settings did meanwhile.
        self._last_due = max(due, self._last_due)
        self._queue.append(piece)
        self._timers.call_at(self._last_due, self._arrived)

    def _arrived(self) -> None:
        self._ready += 1
        self.deliver()


class Side(asyncio.Protocol):
    """One end of a relayed connection: reads into `outgoing`, writes what `incoming` delivers."""

    def __init__(self, sides: set[Side], outgoing: Flow, incoming: Flow) -> None:
        self._sides = sides
        self._outgoing = outgoing
        self._incoming = incoming
        self._transport: asyncio.Transport | None = None
        self._ended_here = False  # we have written the end of stream
        self._ended_there = False  # the peer has
        self.writable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._sides.add(self)
        self._outgoing.source = self
        self._incoming.target = self
        self.writable = True
        self._incoming.deliver()

    def data_received(self, data: bytes) -> None:
        self._outgoing.push(data)

    def eof_received(self) -> bool:
        self._ended_there = True
        self._outgoing.push(Mark.END)
        self._close_if_done()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._sides.discard(self)
        self._transport = None
        self.writable = True  # what still arrives for it is dropped
        if exc is not None:
            self._outgoing.push(Mark.RESET)
        self._incoming.deliver()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._incoming.deliver()

    def pause(self) -> None:
        """Read no more."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def take(self, piece: Piece) -> None:
        """Something has arrived for this end's peer."""
        if self._transport is None:
            return
        if isinstance(piece, bytes):
            self._transport.write(piece)
        elif piece is Mark.END:
            self._ended_here = True
            with contextlib.suppress(OSError):  # the peer may have gone already
                self._transport.write_eof()
            self._close_if_done()
        else:
            self.reset()

    def reset(self) -> None:
        """Close with a RST."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._transport.abort()

    def _close_if_done(self) -> None:
        if self._ended_here and self._ended_there and self._transport is not None:
            self._transport.close()
