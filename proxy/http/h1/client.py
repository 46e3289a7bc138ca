"""HTTP/1.1, client role: requests out, responses in (RFC 9112).

One request at a time. `open_stream` starts it, and its response goes HEAD → (LENGTH | CHUNKED | UNTIL_EOF | TUNNEL) →
HOLD (see `h1_base`), interim heads first. When both are complete the connection is idle, and `can_open` is true.

Rules:
- Octets that no request asked for poison the connection: `ConnectionFailed`, and `closing`. What came before them
  stands.
- A response may be complete before its request is. The connection is used again only if the request then completes
  as well.
- A body cut short is a `StreamReset` (RESPONSE_INCOMPLETE), never an end.
- A 101 that was not asked for, or to a protocol that was not asked for, is a `StreamReset` (BAD_RESPONSE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.http import semantics
from proxy.http.message import (
    ConnectionFailed,
    DataReceived,
    Event,
    HeadersReceived,
    RequestHead,
    ResponseHead,
    StreamReset,
)

from .base import H1Connection, Receive, Send
from .head import H1Limits, bad_octet
from .request import request_lines
from .response import parse_response, status_line

if TYPE_CHECKING:
    from .chunked import ChunkedReader

INTERIM_HEADS_MAX: Final = 16

_HEAD: Final = Receive.HEAD
_LENGTH: Final = Receive.LENGTH
_UNTIL_EOF: Final = Receive.UNTIL_EOF
_TUNNEL: Final = Receive.TUNNEL
_HOLD: Final = Receive.HOLD
_CLOSED: Final = Receive.CLOSED
_SEND_NOTHING, _SEND_LENGTH, _SEND_CHUNKED, _SEND_UNTIL_CLOSE, _SEND_TUNNEL = Send
_FRAMED_METHODS: Final = frozenset((b"PATCH", b"POST", b"PUT"))  # these say `content-length: 0` (RFC 9110 section 8.6)


class H1ClientCodec(H1Connection):
    """One connection to an upstream. See `proxy.http.stream.Codec`. A stream is over when `can_open` or `closing` is
    true.
    """

    __slots__ = ("_interim", "_received", "_upgrade")

    def __init__(self, limits: H1Limits) -> None:
        super().__init__(limits, _HOLD)
        self._received = True  # the response is complete, or none is due
        self._interim = 0
        self._upgrade = b""  # what was asked for

    # Receiving.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the upstream, return what they mean."""
        events: list[Event] = []
        state = self._receive
        if state is _HEAD:
            if self._held:
                self._held += data
                data = bytes(self._held)
                self._held = b""
            self._read_head(data, events)
        elif state is _HOLD:
            if data:
                self._poison(events)
        elif state is not _CLOSED and data:
            rest = self._read_body(data, events)
            if rest is not None:
                self._complete(rest, events)
        return events

    def _read_head(self, data: bytes, events: list[Event]) -> None:
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > self._limits.header_bytes:
            self._read_unfinished_head(data, events)
            return
        rest = data[end + 4 :]
        try:
            head, chunked, persistent = parse_response(data[:end], self._limits)
        except ProxyError as error:
            self._fail(error, events)
            return
        status = head.status
        if status < 200:
            self._read_interim(head, rest, events)
            return
        length = head.content_length
        self._persistent = persistent and self._persistent
        if self._method == b"HEAD" or status in {204, 304}:
            length = 0
        elif self._method == b"CONNECT" and status < 300:
            head.content_length = None  # whatever it says (RFC 9110 section 9.3.6)
            self._open_tunnel(head, rest, events)
            return
        stream = self._stream
        if length:
            events.append(HeadersReceived(stream, head, False))
            if len(rest) == length:  # head and body in one piece: the usual small response
                self._unconsumed = length
                events.append(DataReceived(stream, rest, True, length))
                self._complete(b"", events)
                return
            self._receive = _LENGTH
            self._left = length
        elif length == 0:
            events.append(HeadersReceived(stream, head, True))
            self._complete(rest, events)
            return
        else:
            events.append(HeadersReceived(stream, head, False))
            if chunked:
                behind = self._start_chunks(rest, 0, events)
                if behind is not None:
                    self._complete(behind, events)
                return
            self._receive = _UNTIL_EOF
            self._persistent = False
        if rest:
            behind = self._read_body(rest, events)
            if behind is not None:
                self._complete(behind, events)

    def _read_interim(self, head: ResponseHead, rest: bytes, events: list[Event]) -> None:
        if head.status == 101:
            asked = semantics.list_members(self._upgrade)
            given = semantics.list_members(head.upgrade)
            if len(given) != 1 or given[0] not in asked:
                what = f"101 to {semantics.quoted(head.upgrade)}, which was not asked for"
                self._fail(ProxyError(Kind.BAD_RESPONSE, what), events)
            else:
                self._open_tunnel(head, rest, events)
            return
        self._interim += 1
        if self._interim > INTERIM_HEADS_MAX:
            self._fail(ProxyError(Kind.BAD_RESPONSE, f"more than {INTERIM_HEADS_MAX} interim responses"), events)
            return
        self._scanned = 0
        events.append(HeadersReceived(self._stream, head, False))
        if rest:
            self._read_head(rest, events)

    def _open_tunnel(self, head: ResponseHead, rest: bytes, events: list[Event]) -> None:
        self._receive = _TUNNEL
        self._send = _SEND_TUNNEL
        self._sent = self._persistent = False
        events.append(HeadersReceived(self._stream, head, False))
        if rest:
            self._read_body(rest, events)

    def _read_unfinished_head(self, data: bytes, events: list[Event]) -> None:
        """A head that is unfinished or too large. What is already wrong with it fails at once."""
        bound = self._limits.header_bytes
        try:
            line_end = data.find(b"\r\n", 0, bound)
            if line_end >= 0:
                status_line(data[:line_end])
            elif not b"HTTP/1.".startswith(data[:7]):
                raise ProxyError(Kind.BAD_RESPONSE, f"no HTTP/1.1 response: {semantics.quoted(data)}")
            octet = bad_octet(data[: bound + 3], max(0, self._scanned - 1))
            if octet is not None:
                raise ProxyError(Kind.BAD_RESPONSE, octet)
            if len(data) > bound + 3:
                raise ProxyError(Kind.RESPONSE_HEAD_TOO_LARGE, f"response head larger than {bound} bytes")
        except ProxyError as error:
            self._fail(error, events)
            return
        self._scanned = len(data)
        self._held = bytearray(data)

    def _complete(self, rest: bytes, events: list[Event]) -> None:
        """The response is complete; `rest` came behind it."""
        self._received = True
        self._receive = _HOLD if self._persistent else _CLOSED
        if rest and self._persistent:
            self._poison(events)
        elif self._sent:
            self._closing = self._draining or not self._persistent

    def _poison(self, events: list[Event]) -> None:
        self._close()
        error = ProxyError(Kind.BAD_RESPONSE, "the upstream sent bytes that no request asked for")
        events.append(ConnectionFailed(error))

    def _fail(self, error: ProxyError, events: list[Event]) -> None:
        self._received = True
        self._close()
        events.append(StreamReset(self._stream, error))

    def _body_fault(self, chunks: ChunkedReader) -> Event:
        self._received = True
        self._close()
        return StreamReset(self._stream, ProxyError(Kind.BAD_RESPONSE, chunks.fault))

    def receive_eof(self) -> list[Event]:
        """The upstream sends no more: a body that ends so is complete, anything else in progress is reset."""
        self._eof = True
        state = self._receive
        if state is _UNTIL_EOF or state is _TUNNEL:
            self._receive = _CLOSED
            self._received = True
            self._closing = self._sent
            return [DataReceived(self._stream, b"", True, 0)]
        if self._received or self._closing:
            self._closing = True
            return []
        if state is not _HEAD:
            error = ProxyError(Kind.RESPONSE_INCOMPLETE, "the upstream closed before the response was complete")
        elif self._held:
            error = ProxyError(Kind.RESPONSE_INCOMPLETE, "the upstream closed within a response head")
        else:
            error = ProxyError(Kind.TERMINATED, "the upstream closed before it answered")
        events: list[Event] = []
        self._fail(error, events)
        return events

    @property
    def tunnel(self) -> bool:
        """The upstream has switched protocols."""
        return self._receive is _TUNNEL

    # Sending.

    @property
    def can_open(self) -> bool:
        """True while idle: nothing is in progress, and nothing is known against the connection."""
        return self._received and self._sent and not self._closing and not self._draining

    def open_stream(self) -> int:
        """The next request's id. Its head is to be sent before octets of its response are received."""
        assert self.can_open
        self._stream = stream = self._stream + 1
        self._receive = _HEAD
        self._received = self._sent = False
        self._send = _SEND_NOTHING
        self._interim = self._scanned = self._unconsumed = 0
        self._upgrade = b""
        return stream

    def send_headers(self, stream_id: int, head: RequestHead | ResponseHead, end: bool) -> None:
        """Send a request's head. A body of unknown length goes chunked; after an upgrade or CONNECT nothing goes
        before the answer.
        """
        assert isinstance(head, RequestHead)
        if stream_id != self._stream or self._sent:
            return
        self._method = method = head.method
        lines = request_lines(head)
        length = head.content_length
        options = b""
        if head.upgrade:
            end = True
            self._upgrade = head.upgrade
            if method == b"CONNECT":
                self._method = b"GET"  # as `request_lines` writes it
            lines.append(b"upgrade: " + head.upgrade)
            options = b"upgrade"
        elif method == b"CONNECT":
            end = True
        elif length is None and not end:
            self._send = _SEND_CHUNKED
            lines.append(b"transfer-encoding: chunked")
        elif length or method in _FRAMED_METHODS:
            self._send = _SEND_LENGTH
            self._send_left = length = length or 0
            lines.append(b"content-length: %d" % length)
        if head.te_trailers:
            lines.append(b"te: trailers")
            options = options + b", te" if options else b"te"
        if options:
            lines.append(b"connection: " + options)
        if head.expect_continue and not end:
            lines.append(b"expect: 100-continue")
        lines.append(b"\r\n")
        self._out.append(b"\r\n".join(lines))
        if end:
            self._end_sending()

    def _message_sent(self) -> None:
        if self._received:
            self._closing = self._closing or self._draining or not self._persistent

    def drain(self) -> None:
        """Start nothing new, and close once the request in progress is over."""
        self._draining = True
        if self._received and self._sent:
            self._closing = True
