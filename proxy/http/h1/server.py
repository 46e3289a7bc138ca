"""HTTP/1.1, server role: requests in, responses out (RFC 9112).

A request goes HEAD → (LENGTH | CHUNKED) → HOLD (see `h1_base`), its response runs beside it, and when both are complete
the next request starts at HEAD. One request at a time: pipelined octets are held, and `pending` says when
`receive(b"")` will read them.

Rules:
- A framing fault ends the connection. A `HeadRefused` (the head was not accepted) or a `StreamReset` (the body went
  wrong) is the last event. The stream can still be answered, with `connection: close`, if no final head has been
  sent; `closing` is true after that.
- A final response that starts before the request has been read to its end says `connection: close`, and the
  connection closes with it: nobody waits for the rest of an upload that was refused.
- A request with `upgrade`, or CONNECT, has no `end`. What follows its head is held until the response decides. After
  a 101 (or a 2xx to CONNECT) it is tunnel data, and so is what we send. After another answer to CONNECT the
  connection closes, because a client may already have sent what it meant for the tunnel; after another answer to an
  upgrade the next octets are the next request.
- An HTTP/1.0 client gets no interim head and no chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.http.message import DataReceived, Event, HeadersReceived, HeadRefused, RequestHead, ResponseHead, StreamReset

from .base import H1Connection, Receive, Send
from .head import H1Limits, bad_octet
from .request import check_line, parse_request
from .response import response_lines

if TYPE_CHECKING:
    from .chunked import ChunkedReader

EMPTY_LINES_MAX: Final = 4  # before a request line (RFC 9112 section 2.2 asks for one)

_HEAD: Final = Receive.HEAD
_LENGTH: Final = Receive.LENGTH
_CHUNKED: Final = Receive.CHUNKED
_TUNNEL: Final = Receive.TUNNEL
_HOLD: Final = Receive.HOLD
_CLOSED: Final = Receive.CLOSED
_SEND_NOTHING, _SEND_LENGTH, _SEND_CHUNKED, _SEND_UNTIL_CLOSE, _SEND_TUNNEL = Send


class H1ServerCodec(H1Connection):
    """One client's connection. See `proxy.http.stream.Codec`."""

    __slots__ = ("_answered", "_empty_lines", "_line_checked", "_pending", "_switching", "_version")

    def __init__(self, limits: H1Limits) -> None:
        super().__init__(limits, _HEAD)
        self._version = b"1.1"
        self._answered = True  # the final head has been sent, or none is due
        self._switching = False  # CONNECT or an upgrade waits for our decision
        self._empty_lines = 0
        self._line_checked = False  # the request line of an unfinished head is right
        self._pending = False

    # Receiving.

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the client, return what they mean. `receive(b"")` reads what was held (see `pending`)."""
        events: list[Event] = []
        state = self._receive
        if state is _HEAD:
            self._pending = False
            if self._held:
                self._held += data
                data = bytes(self._held)
                self._held = b""
            self._read_head(data, events)
        elif state is _LENGTH or state is _CHUNKED:
            rest = self._read_body(data, events) if data else None
            if rest is not None:
                self._receive = _HOLD
                self._held = rest
        elif state is _HOLD:
            if data:
                held = self._held
                self._held = held = held if isinstance(held, bytearray) else bytearray(held)
                held += data
        elif state is _TUNNEL:
            self._read_tunnel(data, events)
        return events

    def _read_head(self, data: bytes, events: list[Event]) -> None:
        end = data.find(b"\r\n\r\n")
        if end <= 0 or end > self._limits.header_bytes or data[0] == 13:
            self._read_unusual_head(data, events)
            return
        rest = data[end + 4 :]
        try:
            head, persistent = parse_request(data[:end], self._limits)
        except ProxyError as error:
            self._refuse(error, data[: data.find(b"\r\n")], events)
            return
        length = head.content_length
        if length != 0:
            self._start_body(head, persistent, rest, events)
            return
        self._stream = stream = self._stream + 1
        self._method = method = head.method
        self._version = head.version
        self._persistent = persistent
        self._sent = self._answered = False
        self._receive = _HOLD
        self._held = rest
        if head.upgrade or method == b"CONNECT":
            self._switching = True
            events.append(HeadersReceived(stream, head, False))
        else:
            events.append(HeadersReceived(stream, head, True))

    def _start_body(self, head: RequestHead, persistent: bool, rest: bytes, events: list[Event]) -> None:
        length, limit = head.content_length, self._limits.body_bytes
        if length and 0 < limit < length:
            error = ProxyError(Kind.BODY_TOO_LARGE, f"body of {length} bytes, and at most {limit} are accepted")
            self._refuse(error, head.method, events, head)
            return
        self._stream += 1
        self._method = head.method
        self._version = head.version
        self._persistent = persistent
        self._sent = self._answered = False
        events.append(HeadersReceived(self._stream, head, False))
        behind: bytes | None = None
        if length is None:
            behind = self._start_chunks(rest, limit, events)
        else:
            self._receive = _LENGTH
            self._left = length
            if rest:
                behind = self._read_body(rest, events)
        if behind is not None:
            self._receive = _HOLD
            self._held = behind

    def _read_tunnel(self, data: bytes, events: list[Event]) -> None:
        if self._held:
            data = bytes(self._held) + data
            self._held = b""
        if data:
            self._read_body(data, events)
        self._pending = False
        if self._eof:
            events.append(DataReceived(self._stream, b"", True, 0))
            self._receive = _CLOSED
            self._closing = self._sent

    def _read_unusual_head(self, data: bytes, events: list[Event]) -> None:
        """A head that is unfinished, too large, or follows empty lines. What is already wrong with it is refused at
        once.
        """
        if data[:2] == b"\r\n":
            self._empty_lines += 1
            if self._empty_lines > EMPTY_LINES_MAX:
                self._refuse(ProxyError(Kind.BAD_REQUEST, "empty lines instead of a request"), b"", events)
            else:
                self._scanned = 0
                self._read_head(data[2:], events)
            return
        bound = self._limits.header_bytes
        line, finished, _ = data.partition(b"\r\n")
        try:
            if not self._line_checked:
                self._line_checked = check_line(line, bool(finished), self._limits) is not None
            octet = bad_octet(data[: bound + 3], max(0, self._scanned - 1))
            if octet is not None:
                raise ProxyError(Kind.BAD_REQUEST, octet)
            if len(data) > bound + 3:
                raise ProxyError(Kind.HEAD_TOO_LARGE, f"head larger than {bound} bytes")
        except ProxyError as error:
            self._refuse(error, line if finished else b"", events)
            return
        self._scanned = len(data)
        self._held = bytearray(data)
        if self._eof:
            self._close()

    def _refuse(self, error: ProxyError, line: bytes, events: list[Event], head: RequestHead | None = None) -> None:
        """Give the request a stream, so that it can be answered, and read nothing more."""
        parts = line.split(b" ")
        self._method = parts[0]
        self._version = b"1.0" if parts[-1] == b"HTTP/1.0" else b"1.1"
        self._stream += 1
        self._sent = self._answered = self._persistent = False
        self._receive = _CLOSED
        events.append(HeadRefused(self._stream, error, head))

    def _body_fault(self, chunks: ChunkedReader) -> Event:
        if self._answered:  # nothing can tell the client any more but the end of what we send
            self._close()
        else:
            self._receive = _CLOSED
            self._persistent = False
            self._chunks = None
        kind = Kind.BODY_TOO_LARGE if chunks.too_large else Kind.BAD_REQUEST
        return StreamReset(self._stream, ProxyError(kind, chunks.fault))

    def receive_eof(self) -> list[Event]:
        """The client sends no more. A complete request is still answered (half-close); an incomplete one is reset."""
        self._eof = True
        state = self._receive
        if state is _TUNNEL:
            return self.receive(b"")
        if state is _LENGTH or state is _CHUNKED:
            self._close()
            left = ProxyError(Kind.CLIENT_LEFT, "the client closed before its request was complete")
            return [StreamReset(self._stream, left)]
        if state is _HEAD and not self._pending:
            self._close()
        return []

    @property
    def pending(self) -> bool:
        """True: held octets can be read now, by `receive(b"")`. Ask after sending the end of a response, or a head
        that opens a tunnel.
        """
        return self._pending

    # Sending.

    def send_headers(self, stream_id: int, head: RequestHead | ResponseHead, end: bool) -> None:
        """Send a response's head; interim ones may come before it."""
        assert isinstance(head, ResponseHead)
        if stream_id != self._stream or self._answered:
            return
        status = head.status
        lines = response_lines(head)
        if status < 200:
            self._send_interim(head, lines)
            return
        self._answered = True
        if self._switching:
            if self._method == b"CONNECT":
                if status < 300:
                    self._open_tunnel(lines)
                    return
                self._persistent = False
            self._switching = False
        length = head.content_length
        if self._method == b"HEAD" or status in {204, 304}:
            self._send = _SEND_NOTHING
            if length is not None and status != 204:
                lines.append(b"content-length: %d" % length)
        elif length is not None or end:
            self._send = _SEND_LENGTH
            self._send_left = length = length or 0
            lines.append(b"content-length: %d" % length)
        elif self._version == b"1.1":
            self._send = _SEND_CHUNKED
            lines.append(b"transfer-encoding: chunked")
        else:
            self._send = _SEND_UNTIL_CLOSE
            self._persistent = False
        if not self._persistent or self._draining or self._receive is not _HOLD:
            self._persistent = False
            lines.append(b"connection: close")
        elif self._version == b"1.0":
            lines.append(b"connection: keep-alive")
        lines.append(b"\r\n")
        self._out.append(b"\r\n".join(lines))
        if end:
            self._end_sending()

    def _send_interim(self, head: ResponseHead, lines: list[bytes]) -> None:
        if head.status == 101:
            if self._switching and self._method != b"CONNECT":
                self._answered = True
                lines += (b"connection: upgrade", b"upgrade: " + head.upgrade)
                self._open_tunnel(lines)
        elif self._version == b"1.1":
            lines.append(b"\r\n")
            self._out.append(b"\r\n".join(lines))

    def _open_tunnel(self, lines: list[bytes]) -> None:
        lines.append(b"\r\n")
        self._out.append(b"\r\n".join(lines))
        self._switching = self._persistent = False
        self._send = _SEND_TUNNEL
        self._receive = _TUNNEL
        self._pending = self._eof or bool(self._held)

    def _message_sent(self) -> None:
        if self._send is _SEND_TUNNEL:
            self._closing = self._receive is _CLOSED
        elif not self._persistent or self._draining or self._receive is not _HOLD:
            self._close()
        else:
            self._receive = _HEAD
            self._unconsumed = self._scanned = self._empty_lines = 0
            self._line_checked = False
            if self._held:
                self._pending = True
            elif self._eof:
                self._close()

    # The waist's other calls.

    def expire(self, error: ProxyError) -> list[Event]:
        """The unfinished head took too long: refuse it, and read nothing more."""
        events: list[Event] = []
        line = bytes(self._held).partition(b"\r\n")[0]
        self._held = b""
        self._refuse(error, line, events)
        return events

    def drain(self) -> None:
        """Take no request after the one in progress, and say so on its head if that has not been sent.

        An idle connection that has served a request closes now. One that has not sent its first is served, and then
        closed."""
        self._draining = True
        if self._receive is _HEAD and not self._held and self._stream:
            self._close()

    def open_stream(self) -> int:
        """Servers open no streams."""
        raise RuntimeError("a server opens no streams")

    @property
    def can_open(self) -> bool:
        """Servers open no streams."""
        return False
