"""The streams of an HTTP/2 connection and their flow control (RFC 9113 section 5.2).

Sending: DATA goes out at once while both windows of the peer are open. What they hold back is queued on its stream,
and streams that may send take turns of at most one frame of 16 KiB. The queue's bound is the caller: `send_data` said
False.

Receiving: a byte that was not given back by `consumed` is not replaced, on its stream or on the connection; so the
connection's window bounds what one peer can make us buffer. A stream starts with `stream_window` and doubles it each
time half of it has been consumed, up to `stream_window_max`: as fast as TCP's slow start grows, so that a long fat
path is filled, while a reader that stalls from the start pins little. All growth together takes at most half of the
connection's window: the other half is left to the other streams, whatever one does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from proxy.http.compression.hpack import Encoder
from proxy.http.message import Event, StreamWritable
from proxy.http.stream import Codec

from . import frames as wire
from .guard import Guard
from .stream import H2Limits, H2Stream, Half

if TYPE_CHECKING:
    from proxy.http.message import Fields


_BODY, _DISCARD, _ENDING, _END = Half.BODY, Half.DISCARD, Half.ENDING, Half.END
PEER_RESET: Final = -1
_RESETS_KEPT: Final = 1024
_CRUMB_BYTES: Final = 256  # a chunk that the peer's window cut smaller than this is no useful work


class H2Flow(Codec):
    """The streams of a connection, their windows, and the bytes that wait for the peer."""

    __slots__ = (
        "_credit",
        "_encoder",
        "_events",
        "_grown",
        "_held_bytes",
        "_limits",
        "_lingering",
        "_out",
        "_peer_window",
        "_receive_left",
        "_resets",
        "_resets_forgotten",
        "_round",
        "_send_window",
        "_streams",
        "guard",
    )

    def __init__(self, limits: H2Limits) -> None:
        self.guard = Guard()
        self._limits = limits
        self._encoder = Encoder()
        self._out: list[bytes | memoryview] = []
        self._events: list[Event] = []
        self._streams: dict[int, H2Stream] = {}
        self._resets: dict[int, int] = {}  # streams that were reset, and what may still come (see below)
        self._resets_forgotten = 0  # the highest id that had to leave `_resets`
        self._lingering: dict[int, int] = {}  # streams that ended with this many bytes unconsumed
        self._round: deque[H2Stream] = deque()  # streams with held data and an open window, whose turn it is first
        self._held_bytes = 0
        self._send_window = wire.WINDOW_DEFAULT
        self._peer_window = wire.WINDOW_DEFAULT
        self._receive_left = max(limits.connection_window, wire.WINDOW_DEFAULT)
        self._credit = 0
        self._grown = 0

    def _announce_window(self) -> None:
        """The connection's window starts at 65,535 whatever SETTINGS say (RFC 9113 section 6.9.2)."""
        growth = self._limits.connection_window - wire.WINDOW_DEFAULT
        if growth > 0:
            self._out.append(wire.window_update(0, growth))

    @property
    def open_streams(self) -> int:
        """Streams in progress."""
        return len(self._streams)

    @property
    def held_bytes(self) -> int:
        """Body bytes that the peer's windows hold back, of all streams."""
        return self._held_bytes

    def data_to_send(self) -> bytes:
        """Bytes for the peer since the last call."""
        out = self._out
        if not out:
            return b""
        data = b"".join(out)
        out.clear()
        return data

    # Sending.

    def send_data(self, stream_id: int, data: bytes, end: bool) -> bool:
        """Send body bytes; False: some are held. On a stream that is gone, or has ended, nothing happens."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sending is not _BODY:
            return True
        size = len(data)
        if not stream.held_bytes and (
            not size or (size <= wire.FRAME_BYTES_MAX and size <= stream.send_window and size <= self._send_window)
        ):
            if size or end:
                stream.send_window -= size
                self._send_window -= size
                self._out.append(wire.pack_header(0, size, wire.DATA, 1 if end else 0, stream_id))
                if size:
                    self._out.append(data)
                    self.guard.work += 1
                if end:
                    self._sent_end(stream)
            return True
        if size:
            if stream.held is None:
                stream.held = deque()
            stream.held.append(memoryview(data))
            stream.held_bytes += size
            self._held_bytes += size
        if end:
            stream.sending = _ENDING
        self._enqueue(stream)
        self._flush()
        stream.stalled = stream.held_bytes > 0
        return not stream.stalled

    def send_trailers(self, stream_id: int, fields: Fields) -> None:
        """Send the trailer section behind what is held, and end the message."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sending is not _BODY:
            return
        stream.trailers = fields
        stream.sending = _ENDING
        if not stream.held_bytes:
            self._finish(stream)

    def _enqueue(self, stream: H2Stream) -> None:
        if not stream.queued and stream.held_bytes and stream.send_window > 0:
            stream.queued = True
            self._round.append(stream)

    def _flush(self) -> None:
        """Let streams take turns until nothing is held, or the peer's windows are closed."""
        turns = self._round
        while turns and self._send_window > 0:
            stream = turns.popleft()
            stream.queued = False
            if stream.send_window <= 0 or not stream.held_bytes:  # closed by SETTINGS, or reset, while it waited
                continue
            self._send_chunk(stream)
            if stream.held_bytes:
                self._enqueue(stream)
                continue
            if stream.stalled:
                stream.stalled = False
                self._events.append(StreamWritable(stream.stream_id))
            if stream.sending is _ENDING:
                self._finish(stream)

    def _send_chunk(self, stream: H2Stream) -> None:
        size = min(stream.held_bytes, stream.send_window, self._send_window, wire.FRAME_BYTES_MAX)
        stream.held_bytes -= size
        self._held_bytes -= size
        stream.stalled_ticks = 0
        stream.send_window -= size
        self._send_window -= size
        if size >= _CRUMB_BYTES or not stream.held_bytes:
            self.guard.work += 1
        last = not stream.held_bytes and stream.sending is _ENDING and stream.trailers is None
        out = self._out
        out.append(wire.pack_header(0, size, wire.DATA, 1 if last else 0, stream.stream_id))
        held = stream.held
        assert held is not None
        while size:
            piece = held[0]
            if len(piece) <= size:
                out.append(held.popleft())
                size -= len(piece)
            else:
                out.append(piece[:size])
                held[0] = piece[size:]
                size = 0

    def _finish(self, stream: H2Stream) -> None:
        """The held body has gone: send the trailers, if there are any, and count the message as sent."""
        if stream.trailers:
            block = self._encoder.encode(stream.trailers)
            self._out.append(wire.head_frames(stream.stream_id, block, True))
        elif stream.trailers is not None:
            self._out.append(wire.frame(wire.DATA, wire.END_STREAM, stream.stream_id))
        self._sent_end(stream)

    def _sent_end(self, stream: H2Stream) -> None:
        stream.sending = _END
        if stream.receiving is _END:
            self._close(stream)
        elif stream.receiving is _DISCARD:  # answered: the client may stop sending (RFC 9113 section 8.1)
            self._reset(stream, wire.NO_ERROR)

    # Receiving.

    def consumed(self, stream_id: int, size: int) -> None:
        """Give the peer credit for `size` bytes. A stream that was reset has given all of its back already."""
        stream = self._streams.get(stream_id)
        if stream is None:
            left = self._lingering.get(stream_id)
            if left is None:
                return
            size = min(size, left)
            if size == left:
                del self._lingering[stream_id]
            else:
                self._lingering[stream_id] = left - size
        else:
            size = min(size, stream.unconsumed)
            stream.unconsumed -= size
            if stream.receiving is _BODY:
                stream.credit += size
                if stream.credit * 2 >= stream.window:
                    self._open_window(stream)
        self._give_back(size)

    def _open_window(self, stream: H2Stream) -> None:
        increment = stream.credit
        stream.credit = 0
        growth = min(stream.window, self._limits.stream_window_max - stream.window)
        if growth > 0 and (self._grown + growth) * 2 <= self._limits.connection_window:
            self._grown += growth
            stream.window += growth
            increment += growth
        stream.receive_left += increment
        self._out.append(wire.window_update(stream.stream_id, increment))

    def _give_back(self, size: int) -> None:
        """Credit on the connection, told to the peer in halves of its window."""
        self._credit += size
        if self._credit * 2 >= self._limits.connection_window:
            self._receive_left += self._credit
            self._out.append(wire.window_update(0, self._credit))
            self._credit = 0

    # Ends.

    def _close(self, stream: H2Stream) -> None:
        """Both halves have ended."""
        self.guard.work += 1
        if stream.unconsumed:
            self._lingering[stream.stream_id] = stream.unconsumed
        self._forget(stream)

    def _drop(self, stream: H2Stream) -> None:
        """It was reset: what is held goes nowhere, what is unconsumed never will be."""
        self._held_bytes -= stream.held_bytes
        stream.held_bytes = 0
        stream.held = None
        if stream.unconsumed:
            self._give_back(stream.unconsumed)
        self._forget(stream)

    def _forget(self, stream: H2Stream) -> None:
        del self._streams[stream.stream_id]
        self._grown -= stream.window - self._limits.stream_window

    def _reset(self, stream: H2Stream, code: int) -> None:
        self._out.append(wire.rst_stream(stream.stream_id, code))
        self._remember_reset(stream.stream_id, max(stream.receive_left, 0))
        self._drop(stream)

    def _remember_reset(self, stream_id: int, window: int) -> None:
        """Up to `window` bytes may be under way to a stream that we have reset; PEER_RESET: none should be."""
        resets = self._resets
        resets[stream_id] = window
        if len(resets) > 2 * _RESETS_KEPT:
            for old in list(resets)[:_RESETS_KEPT]:
                del resets[old]
                self._resets_forgotten = max(old, self._resets_forgotten)
