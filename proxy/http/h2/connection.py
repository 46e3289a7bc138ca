"""An HTTP/2 connection: frames in, header blocks put together, errors and the end (RFC 9113 sections 4 and 5.4).

A connection waits for the PREFACE (server role), then for the peer's first SETTINGS, then for any FRAME; for NOTHING
once it has failed or the peer has gone. While a header block is incomplete, only its next CONTINUATION may come
(section 4.3).

Errors: what a peer does wrong on a stream ends the stream (RST_STREAM); what it does wrong with state that streams
share ends the connection: GOAWAY, a StreamReset for each open stream, ConnectionFailed.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from proxy.errors import Kind, ProxyError
from proxy.http.compression.hpack import BOMB_FACTOR
from proxy.http.message import ConnectionFailed, Event, StreamReset

from . import frames as wire
from .control import H2Error
from .guard import Abuse
from .messages import H2Messages, unpadded
from .stream import H2Limits, Half

_CONTINUATIONS_MAX: Final = 128
_SETTINGS_TIMEOUT: Final = 4  # RFC 9113 section 7
_UNSENT_MAX: Final = 1 << 20  # bytes that the peer doesn't take, past which we don't read what would add to them


class Expected(Enum):
    """What a peer must send next."""

    PREFACE = "preface"
    SETTINGS = "first settings"
    FRAME = "any frame"
    CONTINUATION = "continuation"
    NOTHING = "nothing"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_PREFACE: Final = Expected.PREFACE
_SETTINGS: Final = Expected.SETTINGS
_FRAME: Final = Expected.FRAME
_CONTINUATION: Final = Expected.CONTINUATION
_NOTHING: Final = Expected.NOTHING


class H2Connection(H2Messages):
    """A connection of either role. See `proxy.http.stream.Codec`."""

    __slots__ = (
        "_block",
        "_block_bytes",
        "_block_end",
        "_block_fault",
        "_block_stream",
        "_expected",
        "_needed",
        "_tail",
    )

    @property
    def multiplexed(self) -> bool:
        """Many requests at a time."""
        return True

    @property
    def send_eof(self) -> bool:
        """Streams end; the connection's directions don't, by themselves."""
        return False

    @property
    def partial(self) -> bool:
        """The preface, the first SETTINGS, or the rest of a header block or frame are still due."""
        return (self._expected is not _FRAME and self._expected is not _NOTHING) or bool(self._tail)

    def expire(self, error: ProxyError) -> list[Event]:
        """They took too long."""
        late = self._expected is _PREFACE or self._expected is _SETTINGS
        self._fail(H2Error(_SETTINGS_TIMEOUT if late else wire.ENHANCE_YOUR_CALM, error.details))
        events = self._events
        self._events = []
        return events

    def __init__(self, limits: H2Limits) -> None:
        super().__init__(limits)
        self._expected = Expected.SETTINGS
        self._tail = bytearray()  # an incomplete frame, until it has `_needed` bytes
        self._needed = 0
        self._block: list[bytes] = []  # fragments of a header block
        self._block_bytes = 0
        self._block_stream = 0
        self._block_end = False
        self._block_fault = ""

    # The contract.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes, return events. After ConnectionFailed nothing is read any more."""
        if self._expected is not _NOTHING:
            if self._tail:
                self._tail += data
                data = bytes(self._tail) if len(self._tail) >= self._needed else b""
                if data:
                    self._tail.clear()
            try:
                self._read(data)
            except H2Error as error:
                self._fail(error)
        events = self._events
        self._events = []
        return events

    def receive_eof(self) -> list[Event]:
        """The peer has gone: streams in progress are lost, and those that nothing was sent of may go elsewhere."""
        kind = Kind.CLIENT_LEFT if self._server else Kind.TERMINATED
        self._lose_streams(ProxyError(kind, "the connection was closed"))
        self._expected = _NOTHING
        events = self._events
        self._events = []
        return events

    def reset(self, stream_id: int, error: ProxyError | None) -> None:
        """End a stream at once.

        Server role: once the whole answer is sent, or held by the client's window, and there is no `error`, only the
        rest of the request is unwanted: it is dropped, and NO_ERROR tells so behind the answer (RFC 9113 section
        8.1).
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            left = self._lingering.pop(stream_id, 0)
            if left:
                self._give_back(left)
        elif stream.sending is Half.END and self._server:
            self._reset(stream, wire.NO_ERROR)
        elif stream.sending is Half.ENDING and self._server and error is None:
            self._discard(stream)
        elif stream.sending is Half.HEAD and not self._server:
            self._drop(stream)  # the peer has not seen it
        else:
            code = wire.reset_code(error, self._server)
            if code == wire.REFUSED_STREAM and stream.sending is not Half.HEAD:
                code = wire.INTERNAL_ERROR  # part of an answer has gone out: the client may not take it for unprocessed
            if code == wire.INTERNAL_ERROR and stream.tunnel:  # RFC 8441 section 5, RFC 9113 section 8.5
                code = wire.CANCEL if stream.upgrade else wire.CONNECT_ERROR
            self._reset(stream, code)

    @property
    def pending(self) -> bool:
        """Sending has made events: `receive(b"")` returns them."""
        return bool(self._events)

    @property
    def reading(self) -> bool:
        """False: the peer doesn't take what we send, and answers to it pile up."""
        out = self._out
        return len(out) < 64 or sum(map(len, out)) < _UNSENT_MAX

    @property
    def closing(self) -> bool:
        """True: close the connection once `data_to_send` has been written."""
        return self._expected is _NOTHING

    # Reading frames.

    def _read(self, data: bytes) -> None:
        position = 0
        size = len(data)
        if self._expected is _PREFACE:
            if not wire.PREFACE.startswith(data[:24]):
                raise H2Error(wire.PROTOCOL_ERROR, "no HTTP/2 preface")
            if size < 24:
                self._keep(data, 24)
                return
            self._expected = _SETTINGS
            position = 24
        unpack = wire.unpack_header
        while size - position >= wire.HEADER_BYTES:
            high, low, kind, flags, stream_id = unpack(data, position)
            length = high << 16 | low
            if length > wire.FRAME_BYTES_MAX:
                raise H2Error(wire.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = position + wire.HEADER_BYTES
            if start + length > size:
                self._keep(data[position:], start + length - position)
                return
            position = start + length
            stream_id &= wire.STREAM_ID_MAX
            if self._expected is not _FRAME:
                self._check_expected(kind, flags, stream_id)
            if kind == wire.DATA:
                self._on_data(flags, stream_id, data[start:position])
            elif kind == wire.HEADERS:
                self._on_headers(flags, stream_id, data[start:position])
            elif kind < len(_HANDLERS):
                _HANDLERS[kind](self, flags, stream_id, data[start:position])
            else:
                self._spend(Abuse.IGNORED)
        if position < size:
            self._keep(data[position:], wire.HEADER_BYTES)

    def _keep(self, rest: bytes, needed: int) -> None:
        self._tail += rest
        self._needed = needed

    def _check_expected(self, kind: int, flags: int, stream_id: int) -> None:
        if self._expected is _CONTINUATION:
            if kind != wire.CONTINUATION or stream_id != self._block_stream:
                raise H2Error(wire.PROTOCOL_ERROR, "a header block is interrupted")
        elif kind != wire.SETTINGS or flags & wire.ACK:
            raise H2Error(wire.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        else:
            self._expected = _FRAME

    # Header blocks.

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise H2Error(wire.PROTOCOL_ERROR, "HEADERS on stream 0")
        fault = ""
        if flags & (wire.PADDED | wire.PRIORITY_FLAG):
            size = len(payload) - (1 if flags & wire.PADDED else 0)
            payload = unpadded(flags, payload)
            if flags & wire.PRIORITY_FLAG:
                if size < 5:
                    raise H2Error(wire.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
                if len(payload) < 5:
                    raise H2Error(wire.PROTOCOL_ERROR, "more padding than payload")
                if wire.unpack_u32(payload)[0] & wire.STREAM_ID_MAX == stream_id:
                    fault = "the stream depends on itself"
                payload = payload[5:]
        if flags & wire.END_HEADERS:
            self._on_block(stream_id, payload, bool(flags & wire.END_STREAM), fault)
            return
        self._expected = _CONTINUATION
        self._block_stream = stream_id
        self._block_end = bool(flags & wire.END_STREAM)
        self._block_fault = fault
        self._block_bytes = 0
        self._add_fragment(payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._expected is not _CONTINUATION:
            raise H2Error(wire.PROTOCOL_ERROR, "CONTINUATION without a header block")
        self._add_fragment(payload)
        if flags & wire.END_HEADERS:
            block = b"".join(self._block)
            self._block.clear()
            self._expected = _FRAME
            self._on_block(stream_id, block, self._block_end, self._block_fault)

    def _add_fragment(self, payload: bytes) -> None:
        """Bounded in bytes and in frames: a block that never ends is an attack (CVE-2024-27316 and its kind)."""
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > BOMB_FACTOR * self._limits.header_bytes or len(self._block) > _CONTINUATIONS_MAX:
            raise H2Error(wire.ENHANCE_YOUR_CALM, "a header block without end")

    def _on_block(self, stream_id: int, block: bytes, end: bool, fault: str) -> None:
        raise NotImplementedError

    # The end.

    def _fail(self, error: H2Error) -> None:
        """GOAWAY, the resets of what was open, and nothing more."""
        if error.code == wire.ENHANCE_YOUR_CALM and self._server:
            kind = Kind.TOO_MANY
        else:
            kind = Kind.BAD_REQUEST if self._server else Kind.BAD_RESPONSE
        failure = ProxyError(kind, f"{wire.code_name(error.code)}: {error.reason}")
        self._out.append(wire.goaway(self._last_id if self._server else 0, error.code, error.reason))
        self._lose_streams(failure)
        self._expected = _NOTHING
        self._events.append(ConnectionFailed(failure))

    def _lose_streams(self, error: ProxyError) -> None:
        for stream in list(self._streams.values()):
            stream.unconsumed = 0
            self._drop(stream)
            each = error
            if stream.sending is Half.HEAD and not self._server:
                each = ProxyError(error.kind, error.details, unprocessed=True)
            self._events.append(StreamReset(stream.stream_id, each))
        self._lingering.clear()


_HANDLERS: Final = (
    H2Connection._on_data,
    H2Connection._on_headers,
    H2Connection._on_priority,
    H2Connection._on_rst_stream,
    H2Connection._on_settings,
    H2Connection._on_push_promise,
    H2Connection._on_ping,
    H2Connection._on_goaway,
    H2Connection._on_window_update,
    H2Connection._on_continuation,
)
