"""HTTP/2, server role: requests in, responses out (RFC 9113, RFC 8441).

Rules:
- A malformed request is reset (PROTOCOL_ERROR) and never seen above. One that is too large, or asks for what there is
  not, is a HeadRefused: answer it; what still comes of it is dropped, and reset with NO_ERROR after the answer.
- A stream above MAX_CONCURRENT_STREAMS, or after the last GOAWAY, is reset with REFUSED_STREAM: it may be sent again.
- CONNECT and a WebSocket by extended CONNECT are tunnels once they are answered by 2xx, or by 101. Any other answer
  ends them; so does a 2xx that is no 101 to a WebSocket, which goes out as 502 because here it would mean success.

Shutdown: SERVING → ANNOUNCED → LAST. `drain` announces it with GOAWAY (2^31-1) and a PING; requests that were under
way are still served. When the PING is answered, a round trip later, or at a second `drain`, GOAWAY names the last
stream; what comes after it is refused, and `closing` is true once the streams in progress have ended (RFC 9113
section 6.8).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.http.message import DataReceived, HeadersReceived, HeadRefused, RequestHead, ResponseHead

from . import frames as wire
from .connection import Expected, H2Connection
from .control import H2Error
from .guard import Abuse
from .heads import copy_request, parse_request, response_fields
from .stream import H2Limits, H2Stream, Half

if TYPE_CHECKING:
    pass

_HEAD, _BODY, _DISCARD, _END = Half.HEAD, Half.BODY, Half.DISCARD, Half.END
_DRAIN_PING: Final = b"draining"
_GAPS_KEPT: Final = 64


class Shutdown(Enum):
    """How far a server's side of a connection is on its way down."""

    SERVING = "serving"
    ANNOUNCED = "announced"
    LAST = "last"


class H2ServerCodec(H2Connection):
    """One client's connection. See `proxy.http.stream.Codec`."""

    __slots__ = ("_gaps", "_shutdown")

    _server = True

    def __init__(self, limits: H2Limits) -> None:
        super().__init__(limits)
        self._expected = Expected.PREFACE
        self._shutdown = Shutdown.SERVING
        self._gaps: list[tuple[int, int]] = []  # ranges of ids that the client skipped
        settings = (
            (wire.MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams),
            (wire.INITIAL_WINDOW_SIZE, limits.stream_window),
            (wire.MAX_HEADER_LIST_SIZE, limits.header_bytes),
            (wire.ENABLE_CONNECT_PROTOCOL, 1),
        )
        self._out.append(wire.settings(settings))
        self._announce_window()

    def __repr__(self) -> str:
        return f"<H2ServerCodec {self._expected.value}, {self._shutdown.value}, {len(self._streams)} streams>"

    def open_stream(self) -> int:
        """A server opens none: push is off."""
        raise RuntimeError("a server opens no streams")

    @property
    def stream_limit(self) -> int:
        """Servers open no streams."""
        return 0

    @property
    def can_open(self) -> bool:
        """False in this role."""
        return False

    # Requests.

    def _on_block(self, stream_id: int, block: bytes, end: bool, fault: str) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, block, end, fault)
        elif stream_id > self._last_id and stream_id & 1:
            if stream_id > self._last_id + 2:
                self._gaps = [*self._gaps[1 - _GAPS_KEPT :], (self._last_id, stream_id)]
            self._last_id = stream_id
            self._on_request(stream_id, block, end, fault)
        else:
            self._decode(block)
            self._on_stray(stream_id)

    def _on_request(self, stream_id: int, block: bytes, end: bool, fault: str) -> None:
        parsed = self._parse(block, parse_request)
        limits = self._limits
        if (
            self._shutdown is Shutdown.LAST
            or len(self._streams) >= limits.max_concurrent_streams
            or self._held_bytes > limits.held_bytes
        ):
            self._refuse(stream_id, wire.REFUSED_STREAM)
            self._spend(Abuse.IGNORED)
            return
        if fault or isinstance(parsed, str) or (end and isinstance(parsed, RequestHead) and parsed.content_length):
            self._refuse(stream_id, wire.PROTOCOL_ERROR)
            self._spend(Abuse.FAULT)
            return
        stream = H2Stream(stream_id, self._peer_window, limits.stream_window, _BODY)
        self._streams[stream_id] = stream
        if not isinstance(parsed, RequestHead):
            error = parsed or ProxyError(Kind.HEAD_TOO_LARGE, f"header list above {limits.header_bytes} bytes")
            self._refuse_head(stream, end, error, None)
            return
        head = copy_request(parsed)
        if head.upgrade or head.method == b"CONNECT":
            stream.tunnel = True
            stream.upgrade = head.upgrade
        elif end:
            head.content_length = 0
            head.expect_continue = False
            stream.receiving = _END
            self._events.append(HeadersReceived(stream_id, head, True))
            return
        elif head.content_length is not None:
            stream.body_left = head.content_length
            if 0 < limits.body_bytes < head.content_length:
                error = ProxyError(Kind.BODY_TOO_LARGE, f"body larger than {limits.body_bytes} bytes")
                self._refuse_head(stream, end, error, head)
                return
        self._events.append(HeadersReceived(stream_id, head, False))
        if end:  # a tunnel that the client has closed already
            self._events.append(DataReceived(stream_id, b"", True, 0))
            stream.receiving = _END

    def _refuse(self, stream_id: int, code: int) -> None:
        self._out.append(wire.rst_stream(stream_id, code))
        self._remember_reset(stream_id, max(self._limits.stream_window, wire.WINDOW_DEFAULT))

    def _refuse_head(self, stream: H2Stream, end: bool, error: ProxyError, head: RequestHead | None) -> None:
        stream.receiving = _END if end else _DISCARD
        self._events.append(HeadRefused(stream.stream_id, error, head))

    def _on_closed(self, stream_id: int) -> None:
        if any(low < stream_id < high for low, high in self._gaps):
            raise H2Error(wire.PROTOCOL_ERROR, f"stream {stream_id}, which was skipped")
        super()._on_closed(stream_id)

    def _reset_error(self, code: int) -> ProxyError:
        return ProxyError(Kind.CLIENT_LEFT, f"the client reset the stream ({wire.code_name(code)})")

    # Responses.

    def send_headers(self, stream_id: int, head: RequestHead | ResponseHead, end: bool) -> None:
        """Send a response's head. On a stream that is gone, or was answered, nothing happens."""
        assert isinstance(head, ResponseHead)
        stream = self._streams.get(stream_id)
        if stream is None or stream.sending is not _HEAD:
            return
        fields = response_fields(head)
        status = head.status
        if stream.tunnel:
            fields = self._answer_tunnel(stream, status, fields)
        elif status == 101:
            return
        if status < 200 and status != 101:
            end = False
        else:
            stream.sending = _BODY
        self._out.append(wire.head_frames(stream_id, self._encoder.encode(fields), end))
        if end:
            self._sent_end(stream)

    def _answer_tunnel(
        self, stream: H2Stream, status: int, fields: list[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        """A 2xx opens it, for a WebSocket only one that was a 101; any other final answer ends it."""
        if status == 101 or (200 <= status < 300 and not stream.upgrade):
            return [field for field in fields if field[0] != b"content-length"]
        if status >= 200:
            stream.tunnel = False
            self._discard(stream)
            if status < 300:  # an origin that ignored the upgrade: here its 200 would mean the opposite
                return [(b":status", b"502"), *fields[1:]]
        return fields

    # Shutdown.

    def drain(self) -> None:
        """Wind the connection up (see above). A second call doesn't wait for the client to have noticed."""
        if self._shutdown is Shutdown.SERVING and self._expected is not Expected.PREFACE:
            self._shutdown = Shutdown.ANNOUNCED
            self._out.append(wire.goaway(wire.STREAM_ID_MAX, wire.NO_ERROR))
            self._pings.add(_DRAIN_PING)
            self._out.append(wire.frame(wire.PING, 0, 0, _DRAIN_PING))
        elif self._shutdown is not Shutdown.LAST:
            self._send_last()

    def _send_last(self) -> None:
        self._shutdown = Shutdown.LAST
        self._out.append(wire.goaway(self._last_id, wire.NO_ERROR))

    def _on_pong(self, payload: bytes) -> None:
        if payload != _DRAIN_PING:
            super()._on_pong(payload)
        elif self._shutdown is Shutdown.ANNOUNCED:
            self._send_last()

    @property
    def closing(self) -> bool:
        """True: close the connection once `data_to_send` has been written."""
        return self._expected is Expected.NOTHING or (self._shutdown is Shutdown.LAST and not self._streams)
