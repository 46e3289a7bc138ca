"""What a connection carries, over whatever transport: codec events to their streams' handlers, streams to the codec.

    codec.receive ── events ── deliver ── StreamHandler
    ConnectionStream ── codec.send_… ── touch, and whoever owns the transport flushes

Rules:
- Reading stops while the codec's bound of unconsumed bytes is full (`Codec.reading`), and goes on when they have been
  consumed.
- A stream is done when both of its halves have ended; the subclass is told by `stream_done`.
- It owns streams and the codec, and never touches a socket or TLS (`connection` does, for TCP and Unix sockets).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from proxy.errors import ProxyError
    from proxy.loop.turn import Turn

    from .message import Event, Fields, RequestHead, ResponseHead
    from .stream import Codec, StreamHandler


class ConnectionStream(Stream):
    """A `Stream`: one request's half of a connection."""

    __slots__ = ("blocked", "connection", "handler", "held", "id", "paused", "received_end", "sent_end", "unconsumed")

    def __init__(self, connection: Carrier, stream_id: int, handler: StreamHandler | None) -> None:
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

    def reset(self, error: ProxyError | None) -> None:
        """End the stream at once. Idempotent; no callback follows."""
        if self.handler is None:
            return
        self.handler = None
        connection = self.connection
        if connection.streams.get(self.id) is self:
            connection.codec.reset(self.id, error)
            connection.touch()
            connection.end_stream(self)


class Carrier:
    """Streams on a codec. Its transport is a subclass's: it writes when the turn flushes it."""

    __slots__ = ("codec", "dirty", "streams", "turn", "writable")

    codec: Codec  # set when the protocol is known: at once, or by ALPN or the first bytes

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.streams: dict[int, ConnectionStream] = {}
        self.dirty = False
        self.writable = True

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

    def on_failed(self, error: ProxyError) -> None:
        """The codec can't go on; the connection closes once flushed."""

    def touch(self) -> None:
        """There is something to send: it leaves when the turn ends."""
        raise NotImplementedError

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

    def _reset_stream(self, stream: ConnectionStream, error: ProxyError) -> None:
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

    def fail_streams(self, error: ProxyError) -> None:
        """Reset every open stream towards its handler. One that raises is reported, and the others are reset too."""
        for stream in list(self.streams.values()):
            try:
                self._reset_stream(stream, error)
            except Exception as fault:
                self.streams.pop(stream.id, None)
                self.turn.report(stream, fault)
