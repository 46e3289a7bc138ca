"""A connection over TCP or a Unix socket: transport ↔ TLS ↔ codec, for both roles, whatever the HTTP version.

    data_received ── engine.receive ── codec.receive ── events ── streams' handlers
    flush         ── codec.data_to_send ── engine.send ── transport.write

Rules:
- Writes gather in the codec and leave once per turn (`turn`).
- What a peer has sent ahead (`Codec.pending`) is read in turns with the other connections, a bounded piece each time;
  so is what it sends faster than `BULK_TURN_BYTES` a pass of the event loop.
- An exception out of our own code ends this connection, and no other one (`break_down`).
- Reading stops while the codec's bound of unconsumed bytes is full (`Codec.reading`), and goes on when they have been
  consumed.
- A stream is done when both of its halves have ended; the subclass is told by `stream_done`.
- After `connection_lost` every open stream has had its `on_reset`, and nothing calls back any more.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from proxy.errors import Kind, ProxyError

from .message import (
    ConnectionFailed,
    DataReceived,
    GoAway,
    HeadersReceived,
    HeadRefused,
    LimitsChanged,
    PingAcknowledged,
    StreamReset,
    StreamWritable,
    TrailersReceived,
)
from .stream import Stream

if TYPE_CHECKING:
    from proxy.errors import ProxyError as Error
    from proxy.loop.turn import Turn
    from tlscache.engine import TLSEngine

    from .message import Event, Fields, RequestHead, ResponseHead
    from .stream import Codec, StreamHandler

WRITE_HIGH_WATER: Final = 64 * 1024
UNREAD_MAX: Final = 1024 * 1024
"""HTTP/2 answers to requests (heads, resets, acknowledgements) have no flow control: past this, we stop asking for
more.
"""
BULK_BYTES: Final = 128 * 1024
BULK_TURN_BYTES: Final = 1024 * 1024
"""The event loop reads again at once while a read fills its buffer: after so many bytes of such reads, others have
their turn.
"""
_TCP_INFO_BYTES: Final = 256
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger


class ConnectionStream(Stream):
    """A `Stream`: one request's half of a connection."""

    __slots__ = ("blocked", "connection", "handler", "held", "id", "paused", "received_end", "sent_end", "unconsumed")

    def __init__(self, connection: Connection, stream_id: int, handler: StreamHandler | None) -> None:
        self.connection = connection
        self.id = stream_id
        self.handler = handler
        self.paused = 0
        self.unconsumed = 0
        self.blocked = False  # the handler waits for `on_writable`
        self.held = False  # because the codec holds bytes back (else: because the socket does)
        self.received_end = False
        self.sent_end = False

    def __repr__(self) -> str:
        return f"<stream {self.id} of {self.connection!r}>"

    def send_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """Send a head. `end`: nothing follows."""
        connection = self.connection
        connection.codec.send_headers(self.id, head, end)
        if not connection.dirty:
            connection.touch()
        if end:
            self.sent_end = True
            if self.received_end:
                connection.end_stream(self)

    def send_data(self, data: bytes, end: bool) -> bool:
        """Send body bytes. False: above the high-water mark; `on_writable` follows."""
        connection = self.connection
        free = connection.codec.send_data(self.id, data, end)
        if not connection.dirty:
            connection.touch()
        if end:
            self.sent_end = True
            if self.received_end:
                connection.end_stream(self)
            return True
        if free and connection.writable:
            return True
        self.blocked = True
        self.held = not free
        return False

    def send_trailers(self, fields: Fields) -> None:
        """Send the trailer section and end the message."""
        connection = self.connection
        connection.codec.send_trailers(self.id, fields)
        if not connection.dirty:
            connection.touch()
        self.sent_end = True
        if self.received_end:
            connection.end_stream(self)

    def pause(self) -> None:
        """Stop giving the peer credit. Counted."""
        self.paused += 1

    def resume(self) -> None:
        """Undo one `pause`; at zero the peer gets its credit back."""
        self.paused -= 1
        if not self.paused and self.unconsumed:
            size, self.unconsumed = self.unconsumed, 0
            self.connection.give_credit(self.id, size)

    def reset(self, error: Error | None) -> None:
        """End the stream at once. Idempotent; no callback follows."""
        if self.handler is None:
            return
        self.handler = None
        connection = self.connection
        if connection.streams.get(self.id) is self:
            connection.codec.reset(self.id, error)
            connection.touch()
            connection.end_stream(self)


class Connection:
    """What both roles share: an asyncio protocol. `ServerConnection` (listener) and `ClientConnection` (pool) subclass
    it.
    """

    __slots__ = (
        "bulk_left",
        "codec",
        "dirty",
        "engine",
        "eof_sent",
        "read_paused",
        "streams",
        "transport",
        "turn",
        "waiting",
        "writable",
    )

    codec: Codec  # set when the protocol is known: at once, or by ALPN or the first bytes

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.transport: asyncio.Transport | None = None
        self.engine: TLSEngine | None = None
        self.streams: dict[int, ConnectionStream] = {}
        self.dirty = False
        self.waiting = False  # for its turn
        self.bulk_left = BULK_TURN_BYTES
        self.writable = True
        self.read_paused = False
        self.eof_sent = False

    # -- what a subclass does ----------------------------------------------------------------------

    def on_request(self, event: HeadersReceived | HeadRefused) -> None:
        """Server role: a new request (or one that can't be accepted)."""
        raise NotImplementedError

    def stream_done(self, stream: ConnectionStream) -> None:
        """Both halves of the stream have ended, or it was reset."""
        raise NotImplementedError

    def on_goaway(self, calm: bool) -> None:
        """The peer takes no new streams (`calm`: because we ask too much of it)."""

    def on_limits(self) -> None:
        """What may be opened on this connection has changed."""

    def on_ping(self, payload: bytes) -> None:
        """The peer acknowledged a PING of ours."""

    def on_failed(self, error: Error) -> None:
        """The codec can't go on; the connection closes once flushed."""

    def close_gracefully(self) -> None:
        """`codec.closing` is true and everything is flushed: close the socket the way this role does."""
        self.close()

    # -- events ------------------------------------------------------------------------------------

    def deliver(self, events: list[Event]) -> None:
        """Hand a codec's events to their streams."""
        streams = self.streams
        for event in events:
            if isinstance(event, DataReceived):
                stream = streams.get(event.stream_id)
                if stream is None or (handler := stream.handler) is None:
                    self.give_credit(event.stream_id, event.size)
                    continue
                end = event.end
                if end:
                    stream.received_end = True
                handler.on_data(event.data, end)
                if stream.paused:
                    stream.unconsumed += event.size
                elif event.size:
                    self.codec.consumed(event.stream_id, event.size)
                if end and stream.sent_end and stream.handler is not None:
                    self.end_stream(stream)
            elif isinstance(event, HeadersReceived):
                stream = streams.get(event.stream_id)
                if stream is None:
                    self.on_request(event)
                elif (handler := stream.handler) is not None:
                    if event.end:
                        stream.received_end = True
                    handler.on_headers(event.head, event.end)
                    if event.end and stream.sent_end and stream.handler is not None:
                        self.end_stream(stream)
            else:
                self._deliver_rare(event)

    def _deliver_rare(self, event: Event) -> None:
        match event:
            case TrailersReceived():
                stream = self.streams.get(event.stream_id)
                if stream is not None and stream.handler is not None:
                    stream.received_end = True
                    stream.handler.on_trailers(event.fields)
                    if stream.sent_end and stream.handler is not None:
                        self.end_stream(stream)
            case StreamReset():
                stream = self.streams.get(event.stream_id)
                if stream is not None:
                    self._reset_stream(stream, event.error)
            case StreamWritable():
                stream = self.streams.get(event.stream_id)
                if stream is not None:
                    stream.held = False
                    if stream.blocked and self.writable and stream.handler is not None:
                        stream.blocked = False
                        stream.handler.on_writable()
            case HeadRefused():
                self.on_request(event)
            case GoAway():
                self.on_goaway(event.calm)
            case LimitsChanged():
                self.on_limits()
            case PingAcknowledged():
                self.on_ping(event.payload)
            case ConnectionFailed():
                self.on_failed(event.error)

    def _reset_stream(self, stream: ConnectionStream, error: Error) -> None:
        handler, stream.handler = stream.handler, None
        if handler is not None:
            handler.on_reset(error)  # a server's handler may still answer on it: 400 for a malformed body
        self.end_stream(stream)

    def end_stream(self, stream: ConnectionStream) -> None:
        """Forget a stream, once."""
        if self.streams.pop(stream.id, None) is not None:
            stream.handler = None
            if stream.unconsumed:
                size, stream.unconsumed = stream.unconsumed, 0
                self.codec.consumed(stream.id, size)  # the connection's window is everybody's
            self.stream_done(stream)

    def give_credit(self, stream_id: int, size: int) -> None:
        """Body bytes have left our buffers."""
        self.codec.consumed(stream_id, size)
        self.touch()

    # -- socket to codec ---------------------------------------------------------------------------

    def after_receive(self) -> None:
        """Adjust reading to the codec's bound, flush acknowledgements and replies."""
        codec = self.codec
        if self.may_read() is self.read_paused:
            self.adjust_reading()
        if not self.dirty and (codec.multiplexed or codec.closing or codec.pending):
            self.touch()

    def after_bulk(self, size: int) -> None:
        """A read of at least `BULK_BYTES`: more of its kind may follow in this pass of the loop."""
        self.bulk_left -= size
        if self.bulk_left <= 0 and not self.waiting:
            self.waiting = True
            self.turn.wait(self)
            if not self.read_paused:
                self.adjust_reading()

    def take_turn(self) -> None:
        """Go on with what the peer has sent ahead, or sends in bulk."""
        self.waiting = False
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.bulk_left <= 0:
            self.bulk_left = BULK_TURN_BYTES
            if self.read_paused:
                self.adjust_reading()
        self.read_ahead()

    def read_ahead(self) -> None:
        """A bounded piece of what is `pending`."""
        codec = self.codec
        if codec.pending and self.may_go_on():
            self.deliver(codec.receive(b""))
            self.after_pending()
            if codec.multiplexed or codec.pending:
                self.touch()

    def may_go_on(self) -> bool:
        """Whether more of what is pending may be read: a client that does not read its answers gets no further ones."""
        return self.writable

    def may_read(self) -> bool:
        """Whether the codec's bound, our turn, and what the peer leaves unread of what we sent, allow more input."""
        if not self.codec.reading or self.bulk_left <= 0:
            return False
        if self.writable:
            return True
        if not self.codec.multiplexed:
            return bool(self.streams)
        transport = self.transport
        return transport is None or transport.get_write_buffer_size() < UNREAD_MAX

    def adjust_reading(self) -> None:
        """Follow `codec.reading`."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.may_read():
            if self.read_paused:
                self.read_paused = False
                transport.resume_reading()
        elif not self.read_paused:
            self.read_paused = True
            transport.pause_reading()

    # -- codec to socket ---------------------------------------------------------------------------

    def touch(self) -> None:
        """There is something to send: flush when the turn ends."""
        if not self.dirty:
            self.dirty = True
            self.turn.add(self)

    def flush(self) -> None:
        """Send what is buffered, then do what the codec's state asks for."""
        self.dirty = False
        transport = self.transport
        if transport is None:
            return
        codec = self.codec
        data = codec.data_to_send()
        engine = self.engine
        if engine is not None:
            if data:
                engine.send(data)
            data = engine.data_to_send()
        if data:
            transport.write(data)
        if codec.closing:
            self.close_gracefully()
            return
        if codec.send_eof:
            self.shut_down_writing()
        if self.may_read() is self.read_paused:
            self.adjust_reading()
        if codec.pending and self.writable and not self.waiting:
            self.waiting = True
            self.turn.wait(self)

    def after_pending(self) -> None:
        """Held bytes were read; whatever they left behind."""
        if self.codec.closing:
            self.touch()

    def shut_down_writing(self) -> None:
        """End our direction; the peer's goes on."""
        transport = self.transport
        if transport is None or self.eof_sent or transport.is_closing():
            return
        self.eof_sent = True
        if self.engine is not None:
            self.engine.close()
            data = self.engine.data_to_send()
            if data:
                transport.write(data)
        try:
            transport.write_eof()
        except OSError:  # asyncio's own transport tells so of a peer that is gone; `connection_lost` follows
            transport.abort()

    def pause_writing(self) -> None:
        """The transport is above its high-water mark."""
        self.writable = False

    def resume_writing(self) -> None:
        """The transport is below its low-water mark: writers go on."""
        self.writable = True
        self.turn.begin()
        try:
            if self.read_paused:
                self.adjust_reading()
            if self.codec.pending:
                self.touch()
            for stream in list(self.streams.values()):
                if stream.blocked and not stream.held and stream.handler is not None:
                    stream.blocked = False
                    stream.handler.on_writable()
        except Exception as error:
            self.turn.failed(self, error)
        finally:
            self.turn.end()

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close after what is buffered has been written; with TLS, close_notify first."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.engine is not None and not self.eof_sent:
            self.engine.close()
            data = self.engine.data_to_send()
            if data:
                transport.write(data)
        transport.close()

    def break_off(self) -> None:
        """Close with a reset, which can't be taken for an orderly end; what was sent before it stands."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self.flush()
            with suppress(OSError):
                socket_of(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()

    def abort(self) -> None:
        """Close at once; what is buffered is lost."""
        if self.transport is not None:
            self.transport.abort()

    def fail_streams(self, error: Error) -> None:
        """Reset every open stream towards its handler. One that raises is reported, and the others are reset too."""
        for stream in list(self.streams.values()):
            try:
                self._reset_stream(stream, error)
            except Exception as fault:
                self.streams.pop(stream.id, None)
                self.turn.report(stream, fault)

    def break_down(self, error: Exception) -> None:
        """Our code for this connection raised: it ends at once, and every stream's handler hears of it."""
        transport = self.transport
        if transport is not None:
            transport.abort()  # first: nothing below may keep the socket open
        self.fail_streams(ProxyError(Kind.TERMINATED, f"failed within the proxy: {error!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.turn.begin()
        try:
            unprocessed = self.request_unsent() if self.streams else False
            transport, self.transport = self.transport, None
            if exc is not None and self.streams and transport is not None:
                self.read_last_words(transport)
            text = f"connection lost: {exc}" if exc else "connection closed"
            self.fail_streams(ProxyError(Kind.TERMINATED, text, unprocessed=unprocessed))
        except Exception as error:
            self.transport = None
            self.turn.failed(self, error)
        try:
            self.on_lost(exc)
        except Exception as error:
            self.turn.failed(self, error)
        finally:
            self.turn.end()

    def read_last_words(self, transport: asyncio.Transport) -> None:
        """Client role: a write failed; take what the peer had said before (its socket is not closed yet)."""

    def request_unsent(self) -> bool:
        """Whether no byte of what is open has left this host (client role)."""
        return False

    def on_lost(self, exc: Exception | None) -> None:
        """After the last stream was reset."""


def tcp_info(sock: socket.socket) -> tuple[float, int, int]:
    """(smoothed RTT in seconds, unacknowledged segments, bytes acknowledged) from the kernel's TCP_INFO; zeros where
    there is none.

    Layout: linux/tcp.h `struct tcp_info`; the offsets have been stable since 4.1.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return 0.0, 0, 0
    if len(info) < 136:
        return 0.0, 0, 0
    unacked = struct.unpack_from("=I", info, 24)[0]
    rtt_us = struct.unpack_from("=I", info, 68)[0]
    bytes_acked = struct.unpack_from("=Q", info, 120)[0]
    return rtt_us / 1e6, unacked, bytes_acked


def unacknowledged_s(sock: socket.socket) -> float:
    """Seconds since the peer last acknowledged anything, while something waits for it; 0.0 where nothing does.

    From `struct tcp_info`: tcpi_unacked, tcpi_last_ack_recv (milliseconds).
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return 0.0
    if len(info) < 60:
        return 0.0
    unacked, last_ack_ms = struct.unpack_from("=I28xI", info, 24)
    return last_ack_ms / 1e3 if unacked else 0.0


def tcp_bytes_sent(sock: socket.socket) -> int:
    """Data bytes that the kernel has sent (TCP_INFO's `tcpi_bytes_sent`, Linux 4.19); -1 where it does not say."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return -1
    return int(struct.unpack_from("=Q", info, 200)[0]) if len(info) >= 208 else -1


def socket_of(transport: asyncio.BaseTransport) -> Any:
    """The transport's socket (uvloop's stand-in for one), for options and kernel counters."""
    return transport.get_extra_info("socket")
