"""What both roles of an HTTP/1.1 connection share: bodies in, bodies out, and the bookkeeping of the waist.

What the next octet from the peer belongs to:

    HEAD       a head, or the empty lines before one
    LENGTH     a body of known length
    CHUNKED    a chunked body, or its trailer section
    UNTIL_EOF  a body that ends with the connection (responses only)
    TUNNEL     no message: after a 101, or a 2xx to CONNECT
    HOLD       the message after this one, which has to wait: octets are held (server) or a fault (client)
    CLOSED     nothing: octets are dropped

How the body that we send is framed: NOTHING (there is none, or none yet), LENGTH, CHUNKED, UNTIL_CLOSE, TUNNEL.

A body shorter than the length that was announced is never made to look complete: `closing` becomes true instead.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.http.message import DataReceived, Event, TrailersReceived
from proxy.http.stream import Codec

from .chunked import ChunkedReader, single_chunk

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.http.message import Fields

    from .head import H1Limits

_FORMAT_BYTES_MAX = 4096  # a larger chunk is not copied to stand between its size and CRLF


class Receive(Enum):
    """What the next octet from the peer belongs to."""

    HEAD = "head"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_EOF = "until eof"
    TUNNEL = "tunnel"
    HOLD = "hold"
    CLOSED = "closed"


class Send(Enum):
    """How the body that we send is framed."""

    NOTHING = "nothing"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"
    TUNNEL = "tunnel"


_LENGTH: Final = Receive.LENGTH
_CHUNKED: Final = Receive.CHUNKED
_HOLD: Final = Receive.HOLD
_CLOSED: Final = Receive.CLOSED
_SEND_NOTHING, _SEND_LENGTH, _SEND_CHUNKED = Send.NOTHING, Send.LENGTH, Send.CHUNKED


class H1Connection(Codec):
    """The common half of both roles. Subclasses read and write heads, and decide what follows a message."""

    __slots__ = (
        "_chunks",
        "_closing",
        "_draining",
        "_eof",
        "_held",
        "_left",
        "_limits",
        "_method",
        "_out",
        "_persistent",
        "_receive",
        "_scanned",
        "_send",
        "_send_left",
        "_sent",
        "_stream",
        "_unconsumed",
    )

    def __init__(self, limits: H1Limits, receive: Receive) -> None:
        self._limits = limits
        self._stream = 0  # the stream of the message in progress, or of the last one
        self._method = b""  # of its request
        self._persistent = True  # as far as is known, the connection can carry another one
        self._draining = False
        self._closing = False
        self._receive = receive
        self._held: bytes | bytearray = b""  # an unfinished head, or what waits behind a message
        self._scanned = 0  # octets of an unfinished head that need no second look
        self._left = 0  # octets of a LENGTH body still to come
        self._chunks: ChunkedReader | None = None
        self._unconsumed = 0
        self._eof = False
        self._out: list[bytes] = []
        self._send = _SEND_NOTHING
        self._send_left = 0
        self._sent = True  # our message is complete, or none is due

    # Receiving.

    def _read_body(self, data: bytes, events: list[Event]) -> bytes | None:
        """Take body octets of the message in progress. Returns what came behind its end, or None where it goes on
        (or failed).
        """
        state = self._receive
        if state is _CHUNKED:
            return self._read_chunks(data, events)
        rest: bytes | None = None
        if state is _LENGTH:
            left = self._left - len(data)
            if left <= 0:
                rest = b""
                if left < 0:
                    rest = data[left:]
                    data = data[:left]
                left = 0
            self._left = left
        size = len(data)
        self._unconsumed += size
        events.append(DataReceived(self._stream, data, rest is not None, size))
        return rest

    def _read_chunks(self, data: bytes, events: list[Event]) -> bytes | None:
        chunks = self._chunks
        assert chunks is not None
        body = chunks.read(data)
        size = len(body)
        self._unconsumed += size
        done = chunks.done
        ends = done and not chunks.trailers
        if body or ends:
            events.append(DataReceived(self._stream, body, ends, size))
        if done:
            self._chunks = None
            if chunks.trailers:
                events.append(TrailersReceived(self._stream, chunks.trailers))
            return chunks.rest
        if chunks.fault:
            events.append(self._body_fault(chunks))
        return None

    def _body_fault(self, chunks: ChunkedReader) -> Event:
        """What a malformed body means for the role."""
        raise NotImplementedError

    def _start_chunks(self, data: bytes, body_bytes: int, events: list[Event]) -> bytes | None:
        """Begin a chunked body with the octets behind its head. Returns as `_read_body` does."""
        body = single_chunk(data)
        if body is not None and not 0 < body_bytes < len(body):
            size = len(body)
            self._unconsumed += size
            events.append(DataReceived(self._stream, body, True, size))
            return b""
        self._receive = _CHUNKED
        self._chunks = ChunkedReader(body_bytes, self._limits.header_bytes, self._limits.headers)
        return self._read_chunks(data, events) if data else None

    # Sending.

    def send_data(self, stream_id: int, data: bytes, end: bool) -> bool:
        """Send body bytes. HTTP/1.1 has no flow control of its own: always True. What exceeds the announced length
        is cut off.
        """
        if stream_id != self._stream or self._sent:
            return True
        send = self._send
        if send is _SEND_LENGTH:
            left = self._send_left - len(data)
            if left < 0:
                data = data[:left]
                left = 0
                self._persistent = False
            self._send_left = left
            if data:
                self._out.append(data)
        elif send is _SEND_CHUNKED:
            self._send_chunk(data, end)
        elif send is not _SEND_NOTHING and data:
            self._out.append(data)
        if end:
            self._end_sending()
        return True

    def _send_chunk(self, data: bytes, end: bool) -> None:
        size = len(data)
        if size > _FORMAT_BYTES_MAX:
            self._out += (b"%x\r\n" % size, data, b"\r\n0\r\n\r\n" if end else b"\r\n")
        elif size:
            self._out.append((b"%x\r\n%b\r\n0\r\n\r\n" if end else b"%x\r\n%b\r\n") % (size, data))
        elif end:
            self._out.append(b"0\r\n\r\n")

    def send_trailers(self, stream_id: int, fields: Fields) -> None:
        """End the message with a trailer section. Only a chunked body has one: elsewhere the fields are dropped."""
        if stream_id != self._stream or self._sent:
            return
        if self._send is _SEND_CHUNKED:
            self._out.append(b"\r\n".join([b"0", *map(b": ".join, fields), b"\r\n"]))
        self._end_sending()

    def _end_sending(self) -> None:
        self._sent = True
        if self._send_left:
            self._close()  # cut short: the peer must see that it is incomplete
        else:
            self._message_sent()

    def _message_sent(self) -> None:
        """Our message is complete: what may follow is the role's business."""
        raise NotImplementedError

    # The waist.

    def reset(self, stream_id: int, error: ProxyError | None) -> None:
        """End the stream in progress: nothing more of it is sent, so the peer sees it cut, and the connection
        closes.
        """
        if stream_id == self._stream:
            self._close()

    def _close(self) -> None:
        self._closing = True
        self._sent = True
        self._receive = _CLOSED
        self._held = b""
        self._chunks = None
        self._unconsumed = 0

    def consumed(self, stream_id: int, size: int) -> None:
        """Body bytes have left our buffers: reading may go on once few enough are left."""
        if stream_id == self._stream:
            left = self._unconsumed - size
            self._unconsumed = left if left > 0 else 0

    def data_to_send(self) -> bytes:
        """Bytes for the peer since the last call."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    @property
    def reading(self) -> bool:
        """False while `buffer_bytes` of body wait to be consumed, or more than `header_bytes` wait behind a message."""
        limits = self._limits
        return self._unconsumed < limits.buffer_bytes and (
            self._receive is not _HOLD or len(self._held) <= limits.header_bytes
        )

    @property
    def closing(self) -> bool:
        """True: close the connection once `data_to_send` has been written."""
        return self._closing

    @property
    def multiplexed(self) -> bool:
        """One request at a time."""
        return False

    @property
    def pending(self) -> bool:
        """True: held bytes can be read now (server role)."""
        return False

    @property
    def partial(self) -> bool:
        """True: a head has begun and is not complete."""
        return self._receive is Receive.HEAD and bool(self._held)

    def expire(self, error: ProxyError) -> list[Event]:
        """The unfinished head took too long (server role)."""
        raise NotImplementedError

    def tick(self) -> None:
        """h1 counts nothing over time."""

    def ping(self, payload: bytes) -> None:
        """h1 has no ping."""

    @property
    def stream_limit(self) -> int:
        """One request at a time."""
        return 1

    @property
    def send_eof(self) -> bool:
        """True: our side of a tunnel is over. Shut down writing once `data_to_send` has been written; the peer may
        go on.
        """
        return self._sent and self._send is Send.TUNNEL

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} stream={self._stream} receive={self._receive.value} send={self._send.value}"
            f" sent={self._sent} held={len(self._held)} unconsumed={self._unconsumed} closing={self._closing}>"
        )
