"""What arrives on HTTP/2 streams: header blocks, bodies, trailers, and what comes for a stream that is not there.

Frames for a stream that

- was never opened are a connection error (PROTOCOL_ERROR), and for one whose id was skipped too;
- we have reset are dropped, though header blocks are still decoded and DATA still counts for the connection's window;
- the peer has reset are answered by RST_STREAM (STREAM_CLOSED);
- has ended on the peer's side are a stream error (STREAM_CLOSED), on both sides a connection error (STREAM_CLOSED).

RFC 9113 sections 5.1, 6.1 and 8.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from proxy.errors import Kind, ProxyError
from proxy.http.compression.hpack import Decoder, HpackBombError, HpackError
from proxy.http.message import DataReceived, StreamReset, TrailersReceived

from . import frames as wire
from .control import H2Control, H2Error
from .flow import PEER_RESET
from .guard import Abuse
from .heads import parse_trailers
from .stream import H2Limits, H2Stream, Half

if TYPE_CHECKING:
    from proxy.http.message import Fields

Parsed = TypeVar("Parsed")

_BODY, _DISCARD, _END = Half.BODY, Half.DISCARD, Half.END
_MEMO_BLOCKS: Final = 32
_MEMO_BLOCK_BYTES: Final = 512


class H2Messages(H2Control):
    """A connection's streams, as far as their messages are read the same in both roles."""

    __slots__ = ("_decoder", "_memo")

    def __init__(self, limits: H2Limits) -> None:
        super().__init__(limits)
        self._decoder = Decoder()
        self._memo: dict[bytes, Any] = {}  # blocks that touch no table → heads, while the table stands still

    def _decode(self, block: bytes) -> Fields | None:
        """The fields of a block, or None where they are more than `limits` allows."""
        changes = self._decoder.changes
        try:
            return self._decoder.decode(block, self._limits.header_bytes, self._limits.headers)
        except HpackError as error:
            raise H2Error(wire.COMPRESSION_ERROR, str(error)) from None
        except HpackBombError as bomb:  # a name of its own: compiled code gives a name one type
            raise H2Error(wire.ENHANCE_YOUR_CALM, str(bomb)) from None
        finally:
            if self._decoder.changes != changes:
                self._memo.clear()

    def _parse(self, block: bytes, parse: Callable[[Fields], Parsed]) -> Parsed | None:
        """What `parse` makes of a block, or None where it is too large.

        A head that looks like an earlier one is found by its bytes: on a warm connection, most do.
        """
        parsed: Parsed | None = self._memo.get(block)
        if parsed is not None:
            return parsed
        changes = self._decoder.changes
        fields = self._decode(block)
        if fields is None:
            return None
        parsed = parse(fields)
        if self._decoder.changes == changes and len(block) <= _MEMO_BLOCK_BYTES:
            if len(self._memo) >= _MEMO_BLOCKS:
                self._memo.clear()
            self._memo[block] = parsed
        return parsed

    def _on_trailers(self, stream: H2Stream, block: bytes, end: bool, fault: str) -> None:
        """A second head on a stream: a trailer section, or a fault."""
        fields = self._decode(block)
        if stream.receiving is _END:
            self._stream_error(stream, wire.STREAM_CLOSED, "HEADERS behind END_STREAM")
        elif stream.receiving is _DISCARD:
            if end:
                self._received_end(stream)
            else:
                self._spend(Abuse.EMPTY)
        elif fields is None:
            self._reset(stream, wire.CANCEL)
            kind = Kind.HEAD_TOO_LARGE if self._server else Kind.RESPONSE_HEAD_TOO_LARGE
            self._events.append(StreamReset(stream.stream_id, ProxyError(kind, "trailers too large")))
        elif fault or not end or stream.tunnel:
            reason = fault or ("trailers on a tunnel" if stream.tunnel else "a second head without END_STREAM")
            self._stream_error(stream, wire.PROTOCOL_ERROR, reason)
        elif stream.body_left:
            self._stream_error(stream, wire.PROTOCOL_ERROR, "the body is shorter than its content-length")
        else:
            kept = parse_trailers(fields)
            if isinstance(kept, str):
                self._stream_error(stream, wire.PROTOCOL_ERROR, kept)
                return
            self._events.append(TrailersReceived(stream.stream_id, kept))
            self._received_end(stream)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_left -= size
        if self._receive_left < 0:
            raise H2Error(wire.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiving is not _BODY:
            self._on_stray_data(flags, stream_id, stream, size)
            return
        stream.receive_left -= size
        if stream.receive_left < 0:
            self._give_back(size)
            self._stream_error(stream, wire.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
            return
        data = unpadded(flags, payload) if flags & wire.PADDED else payload
        end = bool(flags & wire.END_STREAM)
        stream.unconsumed += size
        stream.body_size += len(data)
        if stream.body_left is not None:
            stream.body_left -= len(data)
            if stream.body_left < 0 or (end and stream.body_left):
                self._stream_error(stream, wire.PROTOCOL_ERROR, "the body's length is not its content-length")
                return
        elif 0 < self._limits.body_bytes < stream.body_size and self._server and not stream.tunnel:
            self._body_too_large(stream, end)
            return
        if data:
            self.guard.work += 1
        elif not end:
            self._spend(Abuse.EMPTY)
            self.consumed(stream_id, size)
            return
        self._events.append(DataReceived(stream_id, data, end, size))
        if end:
            self._received_end(stream)

    def _received_end(self, stream: H2Stream) -> None:
        stream.receiving = _END
        if stream.sending is _END:
            self._close(stream)

    def _on_stray_data(self, flags: int, stream_id: int, stream: H2Stream | None, size: int) -> None:
        if stream_id == 0:
            raise H2Error(wire.PROTOCOL_ERROR, "DATA on stream 0")
        if flags & wire.PADDED and not size:
            raise H2Error(wire.FRAME_SIZE_ERROR, "DATA too short for its padding")
        self._give_back(size)
        if stream is None:
            self._on_stray(stream_id, size)
        elif stream.receiving is _DISCARD:
            stream.receive_left -= size
            if flags & wire.END_STREAM:
                self._received_end(stream)
            elif not size:
                self._spend(Abuse.EMPTY)
        elif stream.receiving is _END:
            self._stream_error(stream, wire.STREAM_CLOSED, "DATA behind END_STREAM")
        else:
            self._stream_error(stream, wire.PROTOCOL_ERROR, "DATA before a head")

    def _on_stray(self, stream_id: int, size: int = 0) -> None:
        """DATA of `size` bytes, or HEADERS, for a stream that is not there."""
        if self._is_idle(stream_id):
            raise H2Error(wire.PROTOCOL_ERROR, f"a frame on idle stream {stream_id}")
        window = self._resets.get(stream_id)
        if window is None:
            if stream_id > self._resets_forgotten:
                self._on_closed(stream_id)
            self._spend(Abuse.IGNORED)
        elif window == PEER_RESET:
            self._spend(Abuse.FAULT)
            self._resets[stream_id] = 0
            self._out.append(wire.rst_stream(stream_id, wire.STREAM_CLOSED))
        elif 0 < size <= window:
            self._resets[stream_id] = window - size
        else:
            self._spend(Abuse.IGNORED)

    def _on_closed(self, stream_id: int) -> None:
        raise H2Error(wire.STREAM_CLOSED, f"a frame on stream {stream_id}, which is closed")

    def _body_too_large(self, stream: H2Stream, end: bool) -> None:
        """A request whose length was not announced: it may still be answered once, and the rest of it is dropped."""
        stream_id = stream.stream_id
        error = ProxyError(Kind.BODY_TOO_LARGE, f"body larger than {self._limits.body_bytes} bytes")
        self._events.append(StreamReset(stream_id, error))
        if stream.sending is not Half.HEAD:
            self._reset(stream, wire.CANCEL)
            return
        self._discard(stream)
        if end:
            stream.receiving = _END

    def _discard(self, stream: H2Stream) -> None:
        """Drop what was and what will be received on a stream; it is reset once our side has ended."""
        self.consumed(stream.stream_id, stream.unconsumed)
        if stream.receiving is _BODY:
            stream.receiving = _DISCARD


def unpadded(flags: int, payload: bytes) -> bytes:
    """A payload without its padding (RFC 9113 sections 6.1 and 6.2)."""
    if not flags & wire.PADDED:
        return payload
    if not payload:
        raise H2Error(wire.FRAME_SIZE_ERROR, "a frame too short for its padding")
    end = len(payload) - payload[0]
    if end < 1:
        raise H2Error(wire.PROTOCOL_ERROR, "more padding than payload")
    return payload[1:end]
