"""A client's connection, from its first byte to its last: each request goes to the listener's `RequestService`.

    PRELUDE ──> OPEN ──> LINGERING ──> closed

PRELUDE is `prelude`'s. Time: `header_timeout` from the first byte of anything unfinished that comes before a request
(PROXY header, handshake, head); `IDLE_S` between requests. LINGERING: our last answer has been sent and our side shut
down; what the client still sends is read and dropped for a while, because closing on unread bytes would make the kernel
reset the connection and destroy the answer (RFC 9112 section 9.6).

It owns the socket's one timer and its end, and never answers a request itself.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from proxy.errors import Kind, ProxyError
from proxy.http.connection import BULK_BYTES, ConnectionStream
from proxy.http.message import HeadersReceived, HeadRefused, RequestHead
from proxy.net.kernel import socket_of, tcp_info
from tlscache.engine import State as TLSState

from .prelude import Opening, State
from .presence import PROBE_AFTER_S, UNSEEN_S, probe, reset_unseen, takes_probe

if TYPE_CHECKING:
    from proxy.http.stream import Codec, RequestHandler

    from .prelude import HttpListener

IDLE_S: Final = 300.0
DRAIN_IDLE_S: Final = 0.5
"""At most so long, and two of its round trips and `DRAIN_MARGIN_S`, a client that is idle as a drain begins has for a
request that is on its way. A restart waits for it, and refuses clients meanwhile."""
DRAIN_MARGIN_S: Final = 0.05
LINGER_S: Final = 2.0
GOAWAY_S: Final = 2.0
"""How long a client has to notice a GOAWAY: what it sends after the last one is refused."""
LINGER_BYTES: Final = 4 * 1024 * 1024
LINGER_SHARED_BYTES: Final = 20 * 1024 * 1024  # what an HTTP/2 client had credit for, and some frames


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_PRELUDE: Final = State.PRELUDE
_OPEN: Final = State.OPEN
_LINGERING: Final = State.LINGERING
_CLOSED: Final = State.CLOSED
_TLS_OPEN: Final = TLSState.OPEN
_TLS_CLOSED: Final = TLSState.CLOSED


class ServerConnection(Opening):
    """The downstream role."""

    __slots__ = ("draining", "half_closed", "lingered", "probes")

    def __init__(self, listener: HttpListener) -> None:
        super().__init__(listener)
        self.draining = False  # it was idle when the drain began
        self.lingered = 0
        self.half_closed = 0.0
        self.probes = 0

    def __repr__(self) -> str:
        return f"<ServerConnection from {self.client} {self.state.value} streams={len(self.streams)}>"

    def begin(self, codec: Codec, data: bytes) -> None:
        """The prelude is over; `data` came with it."""
        self.codec = codec
        self.state = _OPEN
        draining = self.listener.draining
        if draining and not codec.multiplexed:
            codec.drain()
        if data:
            self._receive(data)
        else:
            self.touch()  # session tickets: a client that keeps connections warm needs them now
        if draining and codec.multiplexed and self.state is _OPEN:
            self.drain()  # not before its preface: that could only be told that nothing is served any more

    # -- bytes -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        turn = self.turn
        turn.depth += 1
        turn.now = monotonic()
        try:
            if len(data) >= BULK_BYTES and self.state is _OPEN:
                self.after_bulk(len(data))
            if self.engine is not None and self.state is _PRELUDE and self.proxy_header is None:
                self.queue_flight(data)
            else:
                self.take(data)
        except Exception as error:
            turn.failed(self, error)
        finally:
            turn.depth -= 1
            if turn.dirty and not turn.depth:
                turn.flush()

    def take_turn(self) -> None:
        """Go on with the handshake, or with what the client has sent ahead."""
        if self.state is _PRELUDE:
            self.waiting = False
            self.take_flight()
        elif self.state is _OPEN:
            super().take_turn()
        else:
            self.waiting = False

    def take(self, data: bytes) -> None:
        """Bytes from the client whose turn it is."""
        engine = self.engine
        if engine is not None and self.proxy_header is None:
            data = engine.receive(data)
            if engine.state is not _TLS_OPEN:
                self.drive_tls(engine)
            elif self.early is not None:
                early, self.early = self.early, None
                self.touch()  # session tickets, and a close that had to wait
                early.confirmed()
        if self.state is _OPEN:
            if data:
                self._receive(data)
        elif self.state is _LINGERING:
            self._discard(len(data))
        elif self.state is _PRELUDE:
            self.read_prelude(data)
        if engine is not None and (engine.eof_received or engine.state is _TLS_CLOSED) and self.state is _OPEN:
            self._client_sends_no_more()

    def _receive(self, data: bytes) -> None:
        codec = self.codec
        if not self.streams and not self.head_since:
            self.head_since = -1.0  # a head begins; the time is taken only if it stays unfinished
        if self.draining and not codec.multiplexed:  # HTTP/2 goes by the answer to its PING
            self.draining = False
            self.deliver(codec.receive(data))
            codec.drain()
        else:
            self.deliver(codec.receive(data))
        if self.streams:
            self.head_since = 0.0
        elif self.head_since < 0.0:
            self._wait_for_head()
        if codec.reading is self.read_paused or codec.multiplexed or codec.closing or codec.pending:
            self.after_receive()

    def after_pending(self) -> None:
        """Pipelined bytes were read: perhaps a head that is not complete."""
        if self.streams:
            self.head_since = 0.0
            if self.half_closed:
                now = self.turn.now
                self.listener.timers.set(self, now + PROBE_AFTER_S, now)
        elif not self.codec.closing:
            self._wait_for_head()
        if self.codec.closing:
            self.touch()

    def _wait_for_head(self) -> None:
        """Nothing is open after bytes came: a request was answered at once, or a head is unfinished."""
        self.head_since = 0.0
        if self.state is _OPEN and not self.codec.closing and self.codec.partial:
            now = self.head_since = monotonic()
            self.listener.timers.set(self, now + self.listener.settings.header_timeout_s, now)

    def unconfirmed(self, handler: RequestHandler) -> bool:
        """Whether the client's handshake is still under way; `handler.on_confirmed` is called when it is done."""
        if self.early is None:
            return False
        self.early.wait(handler)
        return True

    def eof_received(self) -> bool:
        """The client will send no more. True: what it asked for is still answered (half-close)."""
        self.turn.begin()
        try:
            engine = self.engine
            if self.flight:
                self.take_flight()
            if self.state is not _OPEN:
                return False
            if engine is not None:
                engine.receive_eof()
                if engine.truncated and self.streams:
                    self.fail_streams(
                        ProxyError(Kind.CLIENT_LEFT, "the client's connection ended without TLS close_notify")
                    )
                    self.end_now()
                    return False
            return self._client_sends_no_more()
        except Exception as error:
            self.turn.failed(self, error)
            return False
        finally:
            self.turn.end()

    def _client_sends_no_more(self) -> bool:
        if self.half_closed:
            return bool(self.streams)
        now = self.half_closed = monotonic()
        self.deliver(self.codec.receive_eof())
        if self.codec.pending:  # what it has sent ahead is answered, in turns
            self.touch()
            return True
        if not self.streams:
            self.touch()
            if not self.codec.closing:
                self.end_now()
            return False
        self.listener.timers.set(self, now + PROBE_AFTER_S, now)
        return True

    def _discard(self, size: int) -> None:
        self.lingered += size
        if self.lingered > (LINGER_SHARED_BYTES if self.codec.multiplexed else LINGER_BYTES):
            self.end_now()

    # -- requests ----------------------------------------------------------------------------------

    def on_request(self, event: HeadersReceived | HeadRefused) -> None:
        """A request's head arrived, or one that can't be accepted."""
        stream = ConnectionStream(self, event.stream_id, None)
        exchange = self.listener.service.new_exchange(self, stream)
        stream.handler = exchange
        self.streams[event.stream_id] = stream
        if isinstance(event, HeadersReceived):
            if event.end:
                stream.received_end = True
            head = cast("RequestHead", event.head)
            if self.engine is not None:
                head.scheme = b"https"
                if self.early is not None:
                    self.early.take(exchange, stream, head, event.end)
                    return
            exchange.on_headers(head, event.end)
        else:
            exchange.refuse_head(event.head or RequestHead(b"-", b"-", b"", [], {}), event.error)

    def stream_done(self, stream: ConnectionStream) -> None:
        """A request was answered."""
        if not self.streams:
            self.idle_since = self.turn.now
            self.touch()  # closing, or a pipelined request: `flush` sees to it

    # -- time --------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> None:
        """The connection's one timer: whatever it was set for, look at what is due."""
        listener = self.listener
        if self.state is _PRELUDE:
            self._end_slow()
        elif self.state is _LINGERING:
            self.end_now()
        elif self.state is _OPEN:
            if self.early is not None:
                self.end_now()  # 0-RTT, and a handshake that does not end: a replay
            elif self.draining:
                self.draining = False
                self.codec.drain()
                if self.codec.closing:
                    self.touch()
                elif self.codec.multiplexed:  # it has not answered our PING: it has seen the first GOAWAY all the same
                    self.touch()
                    listener.timers.set(self, now + IDLE_S, now)
                else:
                    self.end_now()  # it never asked for anything
            elif self.half_closed and self.streams:
                self._probe_half_closed(now)
            elif self.read_paused and reset_unseen(self.transport):
                self.fail_streams(ProxyError(Kind.CLIENT_LEFT, "the client reset the connection"))
                self.abort()
            elif self.streams:
                listener.timers.set(self, now + (UNSEEN_S if self.read_paused else IDLE_S), now)
            elif self.head_since > 0.0 and now >= self.head_since + listener.settings.header_timeout_s:
                self._end_slow()
            elif now >= self.idle_since + IDLE_S:
                self.codec.drain()
                if self.codec.multiplexed:  # GOAWAY first; at the next look the connection closes
                    self.touch()
                    listener.timers.set(self, now + LINGER_S, now)
                else:
                    self.end_now()
            else:
                due = self.idle_since + IDLE_S
                if self.head_since > 0.0:
                    due = min(due, self.head_since + listener.settings.header_timeout_s)
                listener.timers.set(self, due, now)

    def adjust_reading(self) -> None:
        """While we read nothing, the event loop tells us of no reset either: look from time to time."""
        super().adjust_reading()
        if self.read_paused and not self.half_closed:
            now = monotonic()
            self.listener.timers.set(self, now + UNSEEN_S, now)

    def _probe_half_closed(self, now: float) -> None:
        stream = next(iter(self.streams.values()))
        if not takes_probe(stream):
            return
        if reset_unseen(self.transport):
            self.fail_streams(ProxyError(Kind.CLIENT_LEFT, "the client left"))
            self.abort()
            return
        self.probes += 1
        self.listener.timers.set(self, now + probe(stream, self.probes), now)

    def _end_slow(self) -> None:
        """A head (or handshake) that did not come in time."""
        if self.state is _OPEN:
            text = f"no complete request head within {self.listener.settings.header_timeout_s:g} s"
            self.deliver(self.codec.expire(ProxyError(Kind.SLOW_REQUEST, text)))
            self.touch()  # HTTP/2 says it by GOAWAY, which no stream sends
        else:
            self.end_now()

    # -- the end -----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new requests. An idle HTTP/1.1 client may be sending one right now: it is still answered, with
        `connection: close`, and only after a silence (`_silence_s`) does the connection end.
        """
        if self.state is _OPEN:
            if self.codec.multiplexed or self.streams or self.codec.partial:
                self.codec.drain()
                self.touch()
                if self.codec.multiplexed:
                    self.draining = True
                    self.listener.timers.set(self, self.turn.now + GOAWAY_S, self.turn.now)
            else:
                self.draining = True
                now = self.turn.now
                self.listener.timers.set(self, now + self._silence_s(), now)
        elif self.state is _PRELUDE and self.engine is None and not self.prelude and self.proxy_header is None:
            # It has said nothing yet, but its first request may be on its way.
            self.listener.timers.set(self, self.turn.now + self._silence_s(), self.turn.now)

    def _silence_s(self) -> float:
        """After how long nothing can be on its way any more that was sent before the drain."""
        rtt_s = tcp_info(socket_of(self.transport))[0] if self.transport is not None else 0.0
        return min(DRAIN_IDLE_S, DRAIN_MARGIN_S + 2 * rtt_s)

    def close_gracefully(self) -> None:
        """The last answer has been written: shut down our side, then read on until the client has closed too."""
        if self.state in (_LINGERING, _CLOSED) or self.early is not None:
            return  # there is no close_notify before the handshake is complete
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.half_closed:
            self.state = _CLOSED
            self.close()
            return
        self.state = _LINGERING
        self.shut_down_writing()
        if self.read_paused:
            self.read_paused = False
            transport.resume_reading()
        now = monotonic()
        self.listener.timers.set(self, now + LINGER_S, now)

    def end_now(self) -> None:
        """Close, whatever is under way."""
        self.state = _CLOSED
        transport = self.transport
        if transport is not None and transport.get_write_buffer_size():
            self.abort()
        else:
            self.close()

    def on_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.state = _CLOSED
        listener = self.listener
        listener.timers.cancel(self)
        if self in listener.connections:
            listener.counters.connections -= 1
            listener.left(self)
