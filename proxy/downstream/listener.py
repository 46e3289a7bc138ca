"""A listening socket for HTTP, and the client connections that it accepts.

A connection begins with what the listener asks for, in this order: a PROXY header, a TLS handshake, then the HTTP
version (ALPN, or the HTTP/2 preface). Then each request goes to the listener's `RequestService`.

    PRELUDE ──> OPEN ──> LINGERING ──> closed

Time: `header_timeout` from the first byte of anything unfinished that comes before a request (PROXY header,
handshake, head); `IDLE_S` between requests. LINGERING: our last answer has been sent and our side shut down; what the
client still sends is read and dropped for a while, because closing on unread bytes would make the kernel reset the
connection and destroy the answer (RFC 9112 section 9.6).
"""

from __future__ import annotations

import asyncio
import socket
from enum import Enum
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from proxy.errors import Kind, ProxyError
from proxy.http.connection import BULK_BYTES, WRITE_HIGH_WATER, ConnectionStream, socket_of
from proxy.http.h1 import H1Limits, H1ServerCodec
from proxy.http.h2 import H2Limits, H2ServerCodec
from proxy.http.message import HeadersReceived, HeadRefused, RequestHead, ResponseHead
from proxy.http.serving import Downstream, Hop
from proxy.http.stream import RequestHandler
from proxy.net.address import unmapped
from tlscache.early_data import may_travel_early
from tlscache.engine import State as TLSState
from tlscache.engine import TLSEngine

from .early import HeldRequest
from .proxy_protocol import NotProxyProtocol, ProxyProtocolReader

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from proxy.http.serving import RequestService
    from proxy.http.stream import Codec
    from proxy.loop.timers import Timed, Timers
    from proxy.loop.turn import Turn
    from proxy.observe.metrics import ListenerCounters, Snapshot
    from tlscache.context import ServerContext

IDLE_S: Final = 300.0
UNSEEN_S: Final = 1.0
DRAIN_IDLE_S: Final = 0.5
LINGER_S: Final = 2.0
FLIGHT_BYTES_MAX: Final = 32 * 1024  # of a handshake that waits for its turn
GOAWAY_S: Final = 2.0
"""How long a client has to notice a GOAWAY: what it sends after the last one is refused."""
LINGER_BYTES: Final = 4 * 1024 * 1024
LINGER_SHARED_BYTES: Final = 20 * 1024 * 1024  # what an HTTP/2 client had credit for, and some frames
PROBE_AFTER_S: Final = 0.5
HELD_MAX: Final = 16  # requests of a connection's 0-RTT data that wait for the handshake; more are answered 425
H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class State(Enum):
    """Where a client connection stands."""

    PRELUDE = "prelude"
    OPEN = "open"
    LINGERING = "lingering"
    CLOSED = "closed"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_PRELUDE: Final = State.PRELUDE
_OPEN: Final = State.OPEN
_LINGERING: Final = State.LINGERING
_CLOSED: Final = State.CLOSED
_TLS_OPEN: Final = TLSState.OPEN
_TLS_CLOSED: Final = TLSState.CLOSED


class ServerConnection(Downstream):
    """The downstream role."""

    __slots__ = (
        "draining",
        "early",
        "flight",
        "half_closed",
        "head_since",
        "idle_since",
        "lingered",
        "listener",
        "peer_port",
        "prelude",
        "probes",
        "proxy_header",
        "state",
        "timer_bucket",
    )

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener.turn)
        self.listener = listener
        self.state = _PRELUDE
        self.timer_bucket: set[Timed] | None = None
        self.client = ""
        self.early: list[HeldRequest | RequestHandler] | None = None  # 0-RTT is served: who waits for the end
        self.draining = False  # it was idle when the drain began
        self.log_start = b""
        self.idle_since = 0.0
        self.head_since = 0.0
        self.lingered = 0
        self.half_closed = 0.0
        self.probes = 0
        self.prelude = b""
        self.flight = b""  # of the client's TLS handshake, while it waits for its turn
        self.proxy_header: ProxyProtocolReader | None = None

    def __repr__(self) -> str:
        return f"<ServerConnection from {self.client} {self.state.value} streams={len(self.streams)}>"

    # -- opening -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        transport = cast("asyncio.Transport", transport)
        self.transport = transport
        listener = self.listener
        counters = listener.counters
        counters.accepted += 1
        counters.connections += 1
        listener.connections.add(self)
        if len(listener.connections) > listener.connection_limit or listener.stopping:
            counters.refused += 1
            self.state = _CLOSED
            if listener.tls is None and not listener.stopping:
                transport.write(_OVERLOADED)
            transport.close()
            return
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        peer = transport.get_extra_info("peername")
        self._set_client(unmapped(peer[0]) if isinstance(peer, tuple) and peer else "")
        now = self.head_since = self.idle_since = self.turn.now
        if listener.proxy_protocol:
            self.proxy_header = ProxyProtocolReader()
        if listener.tls is not None:
            self.engine = TLSEngine(listener.tls)
        listener.timers.set(self, now + listener.header_timeout, now)

    def _set_client(self, address: str) -> None:
        listener = self.listener
        self.client = address or "unix"
        self.log_start = msgspec.json.encode({"listener": listener.name, "client": self.client})[1:-1]
        proto = b"https" if listener.tls is not None else b"http"
        trusted, loop_name = listener.trusts(address), listener.via_name + b"-" + listener.instance
        self.hop = Hop(address.encode() or b"unknown", proto, listener.via_name, trusted, loop_name)

    def _open(self, codec: Codec) -> None:
        self.codec = codec
        self.state = _OPEN
        if self.listener.draining:
            codec.drain()

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
                self._queue_flight(data)
            else:
                self._take(data)
        except Exception as error:
            turn.failed(self, error)
        finally:
            turn.depth -= 1
            if turn.dirty and not turn.depth:
                turn.flush()

    def _queue_flight(self, data: bytes) -> None:
        """A step of a handshake costs as much as many requests: those of a thousand clients at once take turns."""
        self.flight += data
        if not self.waiting:
            self.waiting = True
            self.turn.wait(self)
        if len(self.flight) > FLIGHT_BYTES_MAX and not self.read_paused and self.transport is not None:
            self.read_paused = True
            self.transport.pause_reading()

    def take_turn(self) -> None:
        """Go on with the handshake, or with what the client has sent ahead."""
        if self.state is _PRELUDE:
            self.waiting = False
            self._take_flight()
        elif self.state is _OPEN:
            super().take_turn()
        else:
            self.waiting = False

    def _take_flight(self) -> None:
        flight, self.flight = self.flight, b""
        transport = self.transport
        if self.read_paused and transport is not None and not transport.is_closing():
            self.read_paused = False
            transport.resume_reading()
        if flight and transport is not None:
            self._take(flight)

    def _take(self, data: bytes) -> None:
        engine = self.engine
        if engine is not None and self.proxy_header is None:
            data = engine.receive(data)
            if engine.state is not _TLS_OPEN:
                self._drive_tls(engine)
            elif self.early is not None:
                self._confirm(self.early)
        if self.state is _OPEN:
            if data:
                self._receive(data)
        elif self.state is _LINGERING:
            self._discard(len(data))
        elif self.state is _PRELUDE:
            self._read_prelude(data)
        if engine is not None and (engine.eof_received or engine.state is _TLS_CLOSED) and self.state is _OPEN:
            self._client_sends_no_more()

    def _receive(self, data: bytes) -> None:
        codec = self.codec
        if not self.streams and not self.head_since:
            self.head_since = -1.0  # a head begins; the time is taken only if it stays unfinished
        if self.draining:
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
            self.listener.timers.set(self, now + self.listener.header_timeout, now)

    def _read_prelude(self, data: bytes) -> None:
        """PROXY header, TLS handshake, or the first plaintext bytes."""
        reader = self.proxy_header
        if reader is not None:
            found = reader.receive(data)
            if found is None:
                return
            if isinstance(found, NotProxyProtocol):
                self.listener.log.warning(
                    "proxy_header_refused", listener=self.listener.name, client=self.client, reason=found.details
                )
                self._end_now()
                return
            self.proxy_header = None
            if found.source is not None:
                self._set_client(found.source[0])
            data = reader.rest
            if self.engine is not None:
                if data:
                    self.data_received(data)
                return
        engine = self.engine
        if engine is not None:
            if engine.state is _TLS_OPEN:
                data, self.prelude = self.prelude + data, b""
                self._open(self.listener.codec_for(engine.alpn))
                if data:
                    self._receive(data)
                else:
                    self.touch()  # session tickets: a client that keeps connections warm needs them now
                return
            if not data or engine.state is not TLSState.HANDSHAKING:
                return
        self.prelude += data
        if H2_PREFACE.startswith(self.prelude[: len(H2_PREFACE)]) and len(self.prelude) < len(H2_PREFACE):
            return  # may still become HTTP/2 with prior knowledge
        data, self.prelude = self.prelude, b""
        if data:
            if engine is not None:
                self.early = []  # 0-RTT; ALPN's choice is reported at the handshake's end, the first bytes tell as well
            self._open(self.listener.codec_for(b"h2" if data.startswith(H2_PREFACE) else b""))
            self._receive(data)

    def _confirm(self, waiting: list[HeldRequest | RequestHandler]) -> None:
        """The handshake of a client that sent 0-RTT is complete: it is no replay."""
        self.early = None
        self.touch()  # session tickets, and a close that had to wait
        for one in waiting:
            one.on_confirmed()

    def unconfirmed(self, handler: RequestHandler) -> bool:
        """Whether the client's handshake is still under way; `handler.on_confirmed` is called when it is done."""
        if self.early is None:
            return False
        self.early.append(handler)
        return True

    def _drive_tls(self, engine: TLSEngine) -> None:
        transport = self.transport
        data = engine.data_to_send()
        if data and transport is not None:
            transport.write(data)
        if engine.state is TLSState.FAILED:
            if self.state is _PRELUDE:
                self.listener.counters.tls_failures += 1
                self.listener.log.info(
                    "tls_handshake_failed", listener=self.listener.name, client=self.client, reason=str(engine.error)
                )
            self.fail_streams(ProxyError(Kind.CLIENT_LEFT, f"TLS with the client failed: {engine.error}"))
            self._end_now()

    def eof_received(self) -> bool:
        """The client will send no more. True: what it asked for is still answered (half-close)."""
        self.turn.begin()
        try:
            engine = self.engine
            if self.flight:
                self._take_flight()
            if self.state is not _OPEN:
                return False
            if engine is not None:
                engine.receive_eof()
                if engine.truncated and self.streams:
                    self.fail_streams(
                        ProxyError(Kind.CLIENT_LEFT, "the client's connection ended without TLS close_notify")
                    )
                    self._end_now()
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
                self._end_now()
            return False
        self.listener.timers.set(self, now + PROBE_AFTER_S, now)
        return True

    def _discard(self, size: int) -> None:
        self.lingered += size
        if self.lingered > (LINGER_SHARED_BYTES if self.codec.multiplexed else LINGER_BYTES):
            self._end_now()

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
                    self._take_early(exchange, stream, head, event.end, self.early)
                    return
            exchange.on_headers(head, event.end)
        else:
            exchange.refuse_head(event.head or RequestHead(b"-", b"-", b"", [], {}), event.error)

    def _take_early(
        self,
        exchange: RequestHandler,
        stream: ConnectionStream,
        head: RequestHead,
        end: bool,
        waiting: list[HeldRequest | RequestHandler],
    ) -> None:
        """A request in 0-RTT data: a safe one goes on, saying so; others wait for the handshake, or are refused."""
        upgrade, expect = len(head.upgrade) > 0, head.expect_continue
        if may_travel_early(head.method, enabled=True, has_body=not end, upgrade=upgrade, expect_continue=expect):
            head.early = True
            exchange.on_headers(head, end)
        elif len(waiting) < HELD_MAX:
            waiting.append(HeldRequest(exchange, stream, head, end))
        else:
            text = f"more than {HELD_MAX} requests that have to wait for the TLS handshake"
            exchange.refuse_head(head, ProxyError(Kind.TOO_EARLY, text))

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
            self._end_now()
        elif self.state is _OPEN:
            if self.early is not None:
                self._end_now()  # 0-RTT, and a handshake that does not end: a replay
            elif self.draining:
                self.draining = False
                self.codec.drain()
                if self.codec.closing:
                    self.touch()
                elif self.codec.multiplexed:  # it has not answered our PING: it has seen the first GOAWAY all the same
                    self.touch()
                    listener.timers.set(self, now + IDLE_S, now)
                else:
                    self._end_now()  # it never asked for anything
            elif self.half_closed and self.streams:
                self._probe_half_closed(now)
            elif self.read_paused and self._reset_unseen():
                self.fail_streams(ProxyError(Kind.CLIENT_LEFT, "the client reset the connection"))
                self.abort()
            elif self.streams:
                listener.timers.set(self, now + (UNSEEN_S if self.read_paused else IDLE_S), now)
            elif self.head_since > 0.0 and now >= self.head_since + listener.header_timeout:
                self._end_slow()
            elif now >= self.idle_since + IDLE_S:
                self.codec.drain()
                if self.codec.multiplexed:  # GOAWAY first; at the next look the connection closes
                    self.touch()
                    listener.timers.set(self, now + LINGER_S, now)
                else:
                    self._end_now()
            else:
                due = self.idle_since + IDLE_S
                if self.head_since > 0.0:
                    due = min(due, self.head_since + listener.header_timeout)
                listener.timers.set(self, due, now)

    def adjust_reading(self) -> None:
        """While we read nothing, the event loop tells us of no reset either: look from time to time."""
        super().adjust_reading()
        if self.read_paused and not self.half_closed:
            now = monotonic()
            self.listener.timers.set(self, now + UNSEEN_S, now)

    def _reset_unseen(self) -> bool:
        """Whether the kernel has dropped the connection (TCP_CLOSE) behind our back."""
        transport = self.transport
        sock = socket_of(transport) if transport is not None else None
        if sock is None or sock.family == socket.AF_UNIX:
            return False
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7)

    def _probe_half_closed(self, now: float) -> None:
        """A client that shut down its side either waits for the answer or is gone; TCP tells only by what a write
        meets.

        An interim response, which every HTTP/1.1 client has to accept (RFC 9110 section 15.2), is that write: a
        client that is gone answers with a reset, and its request is cancelled upstream.
        """
        stream = next(iter(self.streams.values()))
        handler = stream.handler
        if not self.codec.multiplexed and isinstance(handler, RequestHandler) and handler.takes_interim():
            if self._reset_unseen():
                self.fail_streams(ProxyError(Kind.CLIENT_LEFT, "the client left"))
                self.abort()
                return
            self.probes += 1
            if self.probes % 2:  # what it meets is known a round trip later
                stream.send_headers(ResponseHead(100, [], {}, reason=b"Continue"), False)
            self.listener.timers.set(self, now + (0.2 if self.probes % 2 else 2.0), now)

    def _end_slow(self) -> None:
        """A head (or handshake) that did not come in time."""
        if self.state is _OPEN:
            text = f"no complete request head within {self.listener.header_timeout:g} s"
            self.deliver(self.codec.expire(ProxyError(Kind.SLOW_REQUEST, text)))
            self.touch()  # HTTP/2 says it by GOAWAY, which no stream sends
        else:
            self._end_now()

    # -- the end -----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new requests. An idle HTTP/1.1 client may be sending one right now: it is still answered, with
        `connection: close`, and only after `DRAIN_IDLE_S` of silence does the connection end.
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
                self.listener.timers.set(self, now + DRAIN_IDLE_S, now)
        elif self.state is _PRELUDE and self.engine is None and not self.prelude and self.proxy_header is None:
            # It has said nothing yet, but its first request may be on its way.
            self.listener.timers.set(self, self.turn.now + DRAIN_IDLE_S, self.turn.now)

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

    def _end_now(self) -> None:
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
            listener.connections.discard(self)
            listener.counters.connections -= 1
            if listener.draining and not listener.connections:
                listener.drained.set()


_OVERLOADED: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n"
    b'proxy-status: onetrip; error=connection_limit_reached; details="limits.connections is reached"\r\n\r\n'
)


class Listener:
    """One HTTP listener of one worker: its connections, and what it counts. What becomes of requests is `service`'s."""

    def __init__(
        self,
        name: str,
        *,
        turn: Turn,
        timers: Timers,
        log: Any,
        limits: H1Limits,
        header_timeout: float,
        connection_limit: int,
        tls: ServerContext | None = None,
        proxy_protocol: bool = False,
        trusted: tuple[IPv4Network | IPv6Network, ...] = (),
        via_name: bytes = b"onetrip",
        instance: bytes = b"0",
        service: RequestService,
        counters: ListenerCounters,
    ) -> None:
        self.name = name
        self.turn = turn
        self.timers = timers
        self.log = log
        self.limits = limits
        self.header_timeout = header_timeout
        self.connection_limit = connection_limit
        self.tls = tls
        self.proxy_protocol = proxy_protocol
        self.trusted = trusted
        self.via_name = via_name
        self.instance = instance
        self.service = service  # who answers
        self.counters = counters
        self.connections: set[ServerConnection] = set()
        self.servers: list[asyncio.Server] = []
        self.stopping = False
        self.draining = False
        self.drained = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Listener {self.name}: {len(self.connections)} connections>"

    def codec_for(self, alpn: bytes) -> Codec:
        """The codec that ALPN, or the first bytes, asked for."""
        limits = self.limits
        if alpn == b"h2":
            return H2ServerCodec(
                H2Limits(header_bytes=limits.header_bytes, headers=limits.headers, body_bytes=limits.body_bytes)
            )
        return H1ServerCodec(limits)

    def tick(self) -> None:
        """Once a second: what codecs count over time."""
        for connection in list(self.connections):
            try:
                if connection.state is _OPEN and connection.codec.multiplexed:
                    connection.codec.tick()
                    if connection.codec.pending:
                        connection.touch()
            except Exception as error:
                self.turn.failed(connection, error)

    def trusts(self, address: str) -> bool:
        """Whether a client's own claims (`x-forwarded-*`, `onetrip-debug`) count. A Unix socket's do."""
        if not address:
            return True
        ip = ip_address(address.partition("%")[0])
        return any(ip in network for network in self.trusted)

    def adopt(self, fresh: Listener) -> None:
        """A reload changed this listener's settings: new requests and connections follow them."""
        self.limits = fresh.limits
        self.header_timeout = fresh.header_timeout
        self.connection_limit = fresh.connection_limit
        self.tls = fresh.tls
        self.proxy_protocol = fresh.proxy_protocol
        self.trusted = fresh.trusted
        self.instance = fresh.instance

    # -- connections -------------------------------------------------------------------------------

    def accept(self) -> Any:
        """The protocol factory. (Any: a compiled class can't inherit from asyncio.Protocol; it has its methods.)"""
        return ServerConnection(self)

    def stop_accepting(self) -> None:
        """Close the listening socket. Idempotent."""
        for server in self.servers:
            server.close()
        self.servers.clear()

    def drain(self) -> None:
        """Finish what is open, take nothing new."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        if not self.connections:
            self.drained.set()

    def abort(self) -> int:
        """Cut what is still open. Returns how many connections that was."""
        left = len(self.connections)
        for connection in list(self.connections):
            connection.abort()
        return left

    # -- questions ---------------------------------------------------------------------------------

    def export(self, snapshot: Snapshot) -> None:
        """This listener's samples."""
        counters = self.counters
        for code, count in counters.codes.items():
            snapshot.add("requests", count, listener=self.name, code=str(code))
        snapshot.add_histogram("request_duration_seconds", counters.duration, listener=self.name)
        snapshot.add("requests_in_flight", counters.in_flight, listener=self.name)
        snapshot.add("connections_open", counters.connections, side="downstream", listener=self.name)
        snapshot.add("connections_accepted", counters.accepted, listener=self.name)
        snapshot.add("connections_refused", counters.refused, listener=self.name)
        snapshot.add("tls_handshake_failures", counters.tls_failures, listener=self.name)

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        counters = self.counters
        return {
            "name": self.name,
            "protocol": "http",
            "connections": counters.connections,
            "requests_in_flight": counters.in_flight,
            "requests": sum(counters.codes.values()),
            "draining": self.draining,
        }
