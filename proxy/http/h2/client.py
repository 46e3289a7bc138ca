"""HTTP/2, client role: requests out, responses in (RFC 9113, RFC 8441).

Rules:
- Heads are sent in the order in which their streams were opened: a lower id closes what was skipped (section 5.1.1).
- A malformed response ends its stream (PROTOCOL_ERROR). At most 32 interim ones come before the final one.
- A stream that the server refused (REFUSED_STREAM), or that its GOAWAY leaves out, was not processed: its StreamReset
  says so, and it may go elsewhere at once.
- An upgrade needs a server that takes extended CONNECT (`can_upgrade`), and a head must not be larger than the server
  wants it (MAX_HEADER_LIST_SIZE): else the stream is reset and nothing of it is sent.
- The 2xx to an upgrade is shown as the 101 that HTTP/1.1 would have answered; anything else, like the refusal of a
  CONNECT, is a message as usual, and the request's side is ended.
- After `drain`, the server's GOAWAY or the last stream id, nothing is opened, and `closing` is true once all streams
  have ended.
"""

from __future__ import annotations

from typing import Final

from proxy.errors import Kind, ProxyError
from proxy.http.compression.hpack import list_size
from proxy.http.message import (
    DataReceived,
    GoAway,
    HeadersReceived,
    LimitsChanged,
    RequestHead,
    ResponseHead,
    StreamReset,
)
from proxy.http.semantics import BODYLESS_STATUSES

from . import frames as wire
from .connection import Expected, H2Connection
from .control import H2Error
from .heads import copy_response, parse_response, request_fields, switching_protocols, websocket_key
from .stream import H2Limits, H2Stream, Half

_HEAD, _BODY, _END = Half.HEAD, Half.BODY, Half.END
_INTERIM_MAX: Final = 32  # 1xx heads before the final one
STREAMS_BEFORE_SETTINGS: Final = 100
"""What a server should allow at least (RFC 9113 section 6.5.2)."""

_CLOGGED: Final = 16
"""With less than this part of its window, a connection is clogged by readers that don't read: new requests go
elsewhere.
"""


class H2ClientCodec(H2Connection):
    """One connection to a server. See `proxy.http.stream.Codec`."""

    __slots__ = ("_limit_at_first",)

    _server = False

    def __init__(self, limits: H2Limits, streams: int = STREAMS_BEFORE_SETTINGS) -> None:
        """`streams`: how many the server is expected to allow, until it says so."""
        super().__init__(limits)
        self._last_id = -1
        self._limit_at_first = streams
        settings = (
            (wire.ENABLE_PUSH, 0),
            (wire.INITIAL_WINDOW_SIZE, limits.stream_window),
            (wire.MAX_HEADER_LIST_SIZE, limits.header_bytes),
        )
        self._out.append(wire.PREFACE + wire.settings(settings))
        self._announce_window()

    def __repr__(self) -> str:
        state = "draining" if self._draining else self._expected.value
        return f"<H2ClientCodec {state}, {len(self._streams)} of {self.stream_limit} streams>"

    # Requests.

    @property
    def settled(self) -> bool:
        """The server's settings are known."""
        return self._expected not in (Expected.SETTINGS, Expected.NOTHING)

    @property
    def can_upgrade(self) -> bool:
        """The server takes extended CONNECT (RFC 8441 section 3); False until it is `settled`."""
        return self.peer_settings.get(wire.ENABLE_CONNECT_PROTOCOL) == 1

    @property
    def upgrades(self) -> bool | None:
        """As `can_upgrade`, and None until it is `settled`."""
        return self.can_upgrade if self.settled else None

    @property
    def stream_limit(self) -> int:
        """How many streams may be open at once, by the server's limit and ours."""
        default = self._limits.max_concurrent_streams if self.settled else self._limit_at_first
        return min(self.peer_settings.get(wire.MAX_CONCURRENT_STREAMS, default), self._limits.max_concurrent_streams)

    @property
    def can_open(self) -> bool:
        """Another request may start on this connection now."""
        return (
            not self._draining
            and self._expected is not Expected.NOTHING
            and len(self._streams) < self.stream_limit
            and (self._receive_left + self._credit) * _CLOGGED >= self._limits.connection_window
        )

    def open_stream(self) -> int:
        """The id for a new request. Its head must be sent before that of any stream opened later."""
        assert self.can_open
        self._last_id = stream_id = self._last_id + 2
        self._streams[stream_id] = H2Stream(stream_id, self._peer_window, self._limits.stream_window, _HEAD)
        if stream_id > wire.STREAM_ID_MAX - 2:
            self._draining = True  # the ids are used up (RFC 9113 section 5.1.1): as if the server were going away
            self._events.append(GoAway(stream_id))
        return stream_id

    def send_headers(self, stream_id: int, head: RequestHead | ResponseHead, end: bool) -> None:
        """Send a request's head. CONNECT and an upgrade never have an `end`."""
        assert isinstance(head, RequestHead)
        stream = self._streams.get(stream_id)
        if stream is None or stream.sending is not _HEAD:
            return
        stream.method = head.method
        if head.upgrade or head.method == b"CONNECT":
            if head.upgrade:
                if not self.can_upgrade:
                    self._withhold(stream, Kind.UPGRADE_FAILED, "the server takes no extended CONNECT")
                    return
                stream.upgrade = head.upgrade
                stream.key = websocket_key(head)
            stream.tunnel = True
            end = False
        fields = request_fields(head, end)
        size_max = self.peer_settings.get(wire.MAX_HEADER_LIST_SIZE)
        if size_max is not None and list_size(fields) > size_max:
            self._withhold(stream, Kind.HEAD_TOO_LARGE, f"the server takes no header list above {size_max} bytes")
            return
        self._out.append(wire.head_frames(stream_id, self._encoder.encode(fields), end))
        stream.sending = _END if end else _BODY

    def _withhold(self, stream: H2Stream, kind: Kind, details: str) -> None:
        """End a stream that the server has not seen; the event comes with the next `receive` (see `pending`)."""
        self._drop(stream)
        self._events.append(StreamReset(stream.stream_id, ProxyError(kind, details, unprocessed=True)))

    # Responses.

    def _on_block(self, stream_id: int, block: bytes, end: bool, fault: str) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.sending is _HEAD:
            self._decode(block)
            if stream is not None:
                raise H2Error(wire.PROTOCOL_ERROR, f"HEADERS on idle stream {stream_id}")
            self._on_stray(stream_id)
        elif stream.receiving is _HEAD:
            self._on_response(stream, block, end, fault)
        else:
            self._on_trailers(stream, block, end, fault)

    def _on_response(self, stream: H2Stream, block: bytes, end: bool, fault: str) -> None:
        parsed = self._parse(block, parse_response)
        if parsed is None:
            self._reset(stream, wire.CANCEL)
            error = ProxyError(Kind.RESPONSE_HEAD_TOO_LARGE, f"header list above {self._limits.header_bytes} bytes")
            self._events.append(StreamReset(stream.stream_id, error))
            return
        if fault or isinstance(parsed, str):
            self._stream_error(stream, wire.PROTOCOL_ERROR, fault or str(parsed))
            return
        head = copy_response(parsed)
        if head.status < 200:
            self._on_interim(stream, head, end)
        elif stream.tunnel:
            self._on_tunnel_answer(stream, head, end)
        else:
            self._on_final(stream, head, end)

    def _on_interim(self, stream: H2Stream, head: ResponseHead, end: bool) -> None:
        stream.interim += 1
        if end or head.status == 101 or stream.interim > _INTERIM_MAX:
            self._stream_error(stream, wire.PROTOCOL_ERROR, f"a {head.status} that ends, switches, or is one too many")
            return
        head.content_length = None
        self._events.append(HeadersReceived(stream.stream_id, head, False))

    def _on_final(self, stream: H2Stream, head: ResponseHead, end: bool) -> None:
        if stream.method == b"HEAD" or head.status in BODYLESS_STATUSES:
            stream.body_left = 0
            if head.status == 204:
                head.content_length = None
        else:
            stream.body_left = head.content_length
            if end:
                if stream.body_left:
                    self._stream_error(stream, wire.PROTOCOL_ERROR, "no body, but a content-length")
                    return
                head.content_length = 0
        stream.receiving = _BODY
        self._events.append(HeadersReceived(stream.stream_id, head, end))
        if end:
            self._received_end(stream)

    def _on_tunnel_answer(self, stream: H2Stream, head: ResponseHead, end: bool) -> None:
        if head.status >= 300:  # nothing will be tunnelled: this is a message like any other
            stream.tunnel = False
            if stream.sending is _BODY:
                self.send_data(stream.stream_id, b"", True)
            self._on_final(stream, head, end)
            return
        head.content_length = None
        if stream.upgrade:
            head = switching_protocols(head, stream.upgrade, stream.key)
        stream.receiving = _BODY
        self._events.append(HeadersReceived(stream.stream_id, head, False))
        if end:
            self._events.append(DataReceived(stream.stream_id, b"", True, 0))
            self._received_end(stream)

    def _reset_error(self, code: int) -> ProxyError:
        details = f"the server reset the stream ({wire.code_name(code)})"
        if code == wire.REFUSED_STREAM:
            return ProxyError(Kind.UNAVAILABLE, details, unprocessed=True)
        return ProxyError(Kind.UNAVAILABLE if code == wire.ENHANCE_YOUR_CALM else Kind.TERMINATED, details)

    # Shutdown.

    def _on_going(self, last: int, code: int) -> None:
        self._draining = True
        self._events.append(GoAway(last, code == wire.ENHANCE_YOUR_CALM))
        details = f"the server is going away ({wire.code_name(code)})"
        for stream in list(self._streams.values()):
            if stream.stream_id > last:
                self._remember_reset(stream.stream_id, stream.receive_left)
                self._drop(stream)
                error = ProxyError(Kind.UNAVAILABLE, details, unprocessed=True, going_away=True)
                self._events.append(StreamReset(stream.stream_id, error))

    def drain(self) -> None:
        """Open no more streams; `closing` is true once those in progress have ended."""
        if not self._draining and self._expected is not Expected.NOTHING:
            self._draining = True
            self._out.append(wire.goaway(0, wire.NO_ERROR))

    @property
    def closing(self) -> bool:
        """True: close the connection once `data_to_send` has been written."""
        return self._expected is Expected.NOTHING or (self._draining and not self._streams)

    def _on_new_settings(self) -> None:
        self._events.append(LimitsChanged())

    def _apply_setting(self, identifier: int, value: int) -> None:
        if identifier == wire.ENABLE_PUSH and value:
            raise H2Error(wire.PROTOCOL_ERROR, "a server that allows push to itself")
        if identifier == wire.ENABLE_CONNECT_PROTOCOL and value < self.peer_settings.get(identifier, 0):
            raise H2Error(wire.PROTOCOL_ERROR, "extended CONNECT withdrawn")
        super()._apply_setting(identifier, value)
