"""A connection to an endpoint: dialled by its pool, lent to attempts, given back.

CONNECTING ── handshake done ──> READY <──> BUSY ──> CLOSED

0-RTT: a request that waits for the connection may ride in its first flight (`_send_early`): it is tied to this
connection from the moment when the ClientHello is written. Accepted, it is simply under way when the handshake is done.
Rejected, it is sent again on this connection. Where the handshake fails, it goes back to the pool, once.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from proxy.errors import Kind, ProxyError
from proxy.http.connection import BULK_BYTES, WRITE_HIGH_WATER, Connection, ConnectionStream
from proxy.net.dial import connect_error
from proxy.net.kernel import socket_of, tcp_bytes_sent, tcp_info, unacknowledged_s
from tlscache.early_data import EARLY_BYTES_MAX
from tlscache.engine import State as TLSState

from .contract import UpstreamConnection

_PING: Final = b"onetrip!"
LAST_WORDS_BYTES_MAX: Final = 1024 * 1024
"""What is read of a connection that broke; the kernel's receive buffers hold little more."""
_READ_BYTES: Final = 64 * 1024

if TYPE_CHECKING:
    from proxy.errors import ProxyError as Error
    from proxy.http.message import HeadersReceived, HeadRefused
    from proxy.http.stream import StreamHandler
    from proxy.loop.turn import Turn
    from tlscache.engine import TLSEngine
    from tlscache.session import Session

    from .contract import ConnectionOwner, Waiter
    from .sessions import EndpointSessions


class State(Enum):
    """Where a connection to an endpoint stands. APART: its owner uses it alone (health checks), no pool sees it."""

    CONNECTING = "connecting"
    READY = "ready"
    BUSY = "busy"
    APART = "apart"
    CLOSED = "closed"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_CONNECTING: Final = State.CONNECTING
_READY: Final = State.READY
_BUSY: Final = State.BUSY
_CLOSED: Final = State.CLOSED
_TLS_OPEN: Final = TLSState.OPEN
_TLS_HANDSHAKING: Final = TLSState.HANDSHAKING


class ClientConnection(Connection, UpstreamConnection):
    """The upstream role. `seconds` are what its dial took: (dns, tcp, tls)."""

    __slots__ = (
        "_handshaking_since",
        "bytes_sent",
        "early",
        "expires",
        "handshake",
        "idle_since",
        "lent",
        "may_carry",
        "offered",
        "peer",
        "ping_since",
        "pinged_at",
        "pool",
        "ready",
        "request_offset",
        "seconds",
        "sessions",
        "stale",
        "state",
        "unanswered_since",
        "uses",
    )

    def __init__(
        self,
        turn: Turn,
        pool: ConnectionOwner,
        sessions: EndpointSessions | None = None,
        offered: Session | None = None,
    ) -> None:
        super().__init__(turn)
        self.pool = pool
        self.sessions = sessions  # None: plaintext
        self.offered = offered
        self.may_carry = False  # a request may ride in the first flight
        self.early: Waiter | None = None  # the one that does, until the handshake is done
        self.lent = False  # the pool has lent it before its dial was done
        self.engine = sessions.new_engine(offered) if sessions is not None else None
        self.state = _CONNECTING
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.handshake = "plain"
        self.seconds = (0.0, 0.0, 0.0)
        self.uses = 0
        self.peer = ""  # the address that it leads to; "": none (a Unix socket)
        self.stale = False  # the endpoint's name no longer has that address
        self.idle_since = 0.0
        self.expires = 0.0
        self.unanswered_since = 0.0  # all that the peer has not acknowledged was written after that; 0.0: nothing
        self.ping_since = 0.0  # a PING is out since then; 0.0: none
        self.pinged_at = monotonic()
        self.bytes_sent = 0
        self.request_offset = 0
        self._handshaking_since = 0.0

    def __repr__(self) -> str:
        where = self.pool.target.endpoint
        return f"<ClientConnection to {where} {self.state.value} uses={self.uses} streams={len(self.streams)}>"

    # -- opening -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected: shake hands, or be ready."""
        transport = cast("asyncio.Transport", transport)
        self.transport = transport
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peer = peer[0]
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._handshaking_since = monotonic()
        engine = self.engine
        if engine is None:
            self._become_ready(b"")
            return
        if self.may_carry and self.offered is not None:
            self._send_early(engine, self.offered)
        engine.start()
        data = engine.data_to_send()
        if data:
            self.bytes_sent += len(data)
            transport.write(data)

    def _send_early(self, engine: TLSEngine, session: Session) -> None:
        """Put a waiting request into the first flight (RFC 8446 section 2.3), where request and session allow it."""
        attempt = self.pool.early_waiter() if session.facts.max_early_data else None
        if attempt is None:
            return
        codec = self.pool.new_codec(session.facts.alpn)
        stream_id = codec.open_stream()
        codec.send_headers(stream_id, attempt.early_head(), True)
        data = codec.data_to_send()
        if len(data) > EARLY_BYTES_MAX or not engine.write_early(data):
            return
        self.turn.begin()
        try:
            self.codec = codec
            self.early = attempt
            self.bytes_sent = len(data)
            self.uses = 1
            stream = self.streams[stream_id] = ConnectionStream(self, stream_id, attempt)
            stream.sent_end = True
            attempt.on_early(self, stream)
            self.pool.forget(attempt)
        finally:
            self.turn.end()

    def _settle_early(self, attempt: Waiter, rejected: bool) -> None:
        """The handshake is done: the early request is under way, or is to be sent again."""
        self.early = None
        wanted = len(self.streams) > 0  # else it was given up meanwhile
        if rejected:
            for stream in self.streams.values():
                stream.handler = None
            self.streams.clear()
            self.bytes_sent = self.uses = 0
            if not wanted:
                return  # as new as any other: its dial gives it to the pool
        self.state = _BUSY
        self.lent = True
        self.pool.opened_early(self)
        if rejected:
            attempt.on_early_rejected(self)
        else:
            attempt.on_early_accepted()
            if self.codec.closing:
                self.retire_after_flush()

    def _become_ready(self, alpn: bytes) -> None:
        early, engine = self.early, self.engine
        rejected = engine is not None and engine.early == "rejected"
        if early is None or rejected:
            self.codec = self.pool.new_codec(alpn)
        if self.codec.multiplexed:
            self.touch()  # the preface
        now = monotonic()
        self.seconds = (self.seconds[0], self.seconds[1], now - self._handshaking_since)
        self.state = _READY
        self.idle_since = now
        if early is not None:
            self._settle_early(early, rejected)
        if not self.ready.done():
            self.ready.set_result(None)

    def _advance_handshake(self, engine: TLSEngine) -> None:
        transport = self.transport
        if transport is None:
            return
        data = engine.data_to_send()
        if data:
            self.bytes_sent += len(data)
            transport.write(data)
        if engine.state is _TLS_OPEN:
            assert self.sessions is not None
            self.handshake = self.sessions.settle(self.offered, engine)
            self._become_ready(engine.alpn)
        elif engine.state is not _TLS_HANDSHAKING:
            self._fail_opening(self.pool.tls_error(engine))

    def _fail_opening(self, error: Error) -> None:
        self.state = _CLOSED
        if not self.ready.done():
            self.ready.set_exception(error)
        if self.early is not None:
            self.early = None
            self.fail_streams(error)
        self.abort()

    # -- bytes -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes from the origin."""
        turn = self.turn
        turn.depth += 1
        turn.now = monotonic()
        self.unanswered_since = 0.0
        try:
            if len(data) >= BULK_BYTES:
                self.after_bulk(len(data))
            engine = self.engine
            if engine is not None:
                data = engine.receive(data)
                if self.state is _CONNECTING:
                    self._advance_handshake(engine)
                    if self.state is _CONNECTING:
                        return
                if engine.tickets and self.sessions is not None:
                    self.sessions.keep(engine)
            if data and self.state is not _CLOSED:
                codec = self.codec
                self.deliver(codec.receive(data))
                if codec.reading is self.read_paused or codec.multiplexed or codec.closing or codec.pending:
                    self.after_receive()
            if (
                engine is not None
                and (engine.eof_received or engine.state is not _TLS_OPEN)
                and self.state is not _CLOSED
            ):
                self._tls_ended(engine)
        except Exception as error:
            turn.failed(self, error)
        finally:
            turn.depth -= 1
            if turn.dirty and not turn.depth:
                turn.flush()

    def read_last_words(self, transport: asyncio.Transport) -> None:
        """An origin may answer early and close, with part of the request unread: its kernel resets the connection, and
        what fails here is a write. Linux keeps what had arrived before the reset, and the answer is in it.

        The end of these bytes proves nothing: a body that ends with its connection is not complete.
        """
        if self.state is _CONNECTING or self.state is _CLOSED:
            return
        descriptor = socket_of(transport).fileno()
        left = LAST_WORDS_BYTES_MAX
        with suppress(OSError):  # the reset, behind the last byte
            while left > 0 and self.streams and (data := os.read(descriptor, _READ_BYTES)):
                left -= len(data)
                self.data_received(data)

    def _tls_ended(self, engine: TLSEngine) -> None:
        if engine.error is not None:
            self.fail_streams(ProxyError(Kind.TLS, f"{self.pool.target.endpoint}: {engine.error}"))
            self.retire()
        else:
            self._origin_ended()  # close_notify: some wait for ours before their FIN

    def _origin_ended(self) -> bool:
        """The origin will send no more. True: a tunnel, half-closed: the client may still send."""
        if self.streams and self.request_unread():
            text = "the connection closed while idle, before the request arrived"
            self.fail_streams(ProxyError(Kind.TERMINATED, text, unprocessed=True))
        self.deliver(self.codec.receive_eof())
        if self.streams and not self.codec.closing:
            return True
        self.retire()
        return False

    def eof_received(self) -> bool:
        """The origin will send no more. False: the transport closes itself."""
        self.turn.begin()
        try:
            if self.state is _CONNECTING:
                what = "closed the connection during the TLS handshake" if self.engine else "closed the connection"
                self._fail_opening(ProxyError(Kind.TLS, f"{self.pool.target.endpoint} {what}", unprocessed=True))
                return False
            engine = self.engine
            if engine is not None:
                told = engine.eof_received  # by a close_notify before
                engine.receive_eof()
                if engine.truncated and not self.codec.tunnel:
                    self._end_truncated()
                    return False
                if told and self.streams:
                    return True  # a tunnel, half-closed
            return self._origin_ended()
        except Exception as error:
            self.turn.failed(self, error)
            return False
        finally:
            self.turn.end()

    def _end_truncated(self) -> None:
        unprocessed = self.request_unread()
        self.fail_streams(
            ProxyError(Kind.TERMINATED, "the connection ended without TLS close_notify", unprocessed=unprocessed)
        )
        self.retire()

    def request_unread(self) -> bool:
        """Whether the origin's kernel had not acknowledged any byte of the open request when it said that it closes.

        Its FIN carries the number of the last byte it had received: a request beyond that was never read, and any
        method may be sent again. The SYN counts as one acknowledged byte.
        """
        if self.transport is None or self.codec.multiplexed:
            return False
        _, _, acked = tcp_info(socket_of(self.transport))
        return 0 < acked <= self.request_offset + 1

    def request_unsent(self) -> bool:
        """Whether our kernel had sent no byte of the open request when the connection broke.

        A reset, unlike a FIN, does not say what was received: an origin may have read the request, acted on it and
        reset the connection before its kernel acknowledged anything (delayed ACK). So only what never left counts.
        """
        if self.transport is None or self.codec.multiplexed:
            return False
        sent = tcp_bytes_sent(socket_of(self.transport))
        return 0 <= sent <= self.request_offset

    def touch(self) -> None:
        """There is something to send. A connection that several requests share waits for the others of this moment."""
        if not self.dirty:
            self.dirty = True
            if len(self.streams) > 1:
                self.turn.add_later(self)
            else:
                self.turn.add(self)

    def flush(self) -> None:
        """As `Connection.flush`, counting bytes."""
        self.dirty = False
        transport = self.transport
        if transport is None or self.state is _CONNECTING:
            return
        codec = self.codec
        data = codec.data_to_send()
        engine = self.engine
        if engine is not None:
            if data:
                engine.send(data)
            data = engine.data_to_send()
        if data:
            self.bytes_sent += len(data)
            if not self.unanswered_since:
                self.unanswered_since = self.turn.now
            transport.write(data)
        if codec.closing or self.state is _CLOSED:
            self._leave()
            if transport.get_write_buffer_size() > len(data):
                self.abort()  # the origin does not take even what was written before
            else:
                self.close()
            return
        if codec.send_eof:
            self.shut_down_writing()
        if codec.reading is self.read_paused:
            self.adjust_reading()
        if codec.pending and not self.waiting:
            self.waiting = True
            self.turn.wait(self)

    def may_go_on(self) -> bool:
        """An answer is read whether or not the origin takes the rest of the request."""
        return True

    def take_turn(self) -> None:
        """Go on with what the origin has sent ahead, or sends in bulk."""
        if self.state is _CONNECTING or self.state is _CLOSED:
            self.waiting = False
        else:
            super().take_turn()

    def probe_path(self, now: float, every_s: float, dead_after_s: float) -> bool:
        """A PING now and then. False: the last one was not answered in time, the path is dead."""
        if self.ping_since:
            return now - self.ping_since < dead_after_s
        if now - self.pinged_at >= every_s:
            self.pinged_at = self.ping_since = now
            self.codec.ping(_PING)
            self.touch()
        return True

    def on_ping(self, payload: bytes) -> None:
        """The origin answered a PING: its round trip."""
        if payload == _PING and self.ping_since:
            rtt_s, self.ping_since = monotonic() - self.ping_since, 0.0
            self.pool.on_round_trip(rtt_s)

    def rtt_s(self) -> float:
        """The kernel's smoothed round-trip time, in seconds; 0.0 where it has none."""
        return tcp_info(socket_of(self.transport))[0] if self.transport is not None else 0.0

    def unacknowledged_s(self, now: float, at_least_s: float) -> float:
        """For how long the peer's kernel has not acknowledged bytes of an open request, if for `at_least_s`."""
        since = self.unanswered_since
        if not self.streams or not since or now - since < at_least_s or self.transport is None:
            return 0.0
        waiting = unacknowledged_s(socket_of(self.transport))
        if not waiting:
            self.unanswered_since = 0.0  # read, if not answered yet
            return 0.0
        return min(waiting, now - since)

    def tick(self) -> None:
        """A second has passed: what the codec counts over time."""
        self.codec.tick()
        if self.codec.pending:
            self.touch()

    # -- as its pool sees it -----------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """It takes nothing any more."""
        return self.state is _CLOSED

    @property
    def load(self) -> int:
        """How many requests are open."""
        return len(self.streams)

    @property
    def can_open(self) -> bool:
        """Another request may start now."""
        return self.codec.can_open

    @property
    def multiplexed(self) -> bool:
        """Several requests may be open at once."""
        return self.codec.multiplexed

    @property
    def stream_limit(self) -> int:
        """How many requests the peer takes at once."""
        return self.codec.stream_limit

    @property
    def upgrades(self) -> bool | None:
        """Whether the peer can be asked for an upgrade; None while that is not known."""
        return self.codec.upgrades

    def handlers(self) -> list[StreamHandler]:
        """Who waits for answers on it."""
        return [stream.handler for stream in self.streams.values() if stream.handler is not None]

    def lend(self) -> None:
        """It is for one request alone from now on."""
        self.state = _BUSY

    def rest(self, now: float) -> None:
        """It stands ready, without a request since now."""
        self.state = _READY
        self.idle_since = now

    def age(self, expires: float) -> None:
        """Its time ends then."""
        self.expires = expires

    def mark_stale(self, stale: bool) -> None:
        """Whether the endpoint's name still leads there."""
        self.stale = stale

    # -- requests ----------------------------------------------------------------------------------

    def open(self, handler: StreamHandler) -> ConnectionStream:
        """Start a request."""
        stream_id = self.codec.open_stream()
        stream = ConnectionStream(self, stream_id, handler)
        if not self.streams:
            self.unanswered_since = 0.0  # what was sent between requests (acknowledgements) is answered by nobody
        self.streams[stream_id] = stream
        self.uses += 1
        self.request_offset = self.bytes_sent
        return stream

    def stream_done(self, stream: ConnectionStream) -> None:
        """A request ended: back to the pool, or away."""
        if self.state is _BUSY or self.state is _READY:
            codec = self.codec
            if codec.closing:
                self.retire_after_flush()
            elif codec.can_open:
                self.pool.release(self)
            elif codec.multiplexed and not self.streams:
                self.retire_after_flush()  # it takes no more (GOAWAY), and its last request has ended

    def on_request(self, event: HeadersReceived | HeadRefused) -> None:
        """A response on a stream that we gave up: nobody waits for it."""

    def on_goaway(self, calm: bool) -> None:
        """The origin drains this connection: finish what is open, take nothing new."""
        if calm:
            self.pool.calm_down()
        self.pool.withdraw(self)
        if not self.streams:
            self.retire_after_flush()

    def on_limits(self) -> None:
        """The origin said how many requests it takes at once, and whether upgrades are among them."""
        if self.state is _READY or self.state is _BUSY:
            self.pool.on_limits(self)

    def on_failed(self, error: Error) -> None:
        """The codec can't go on."""
        self.fail_streams(error)
        self.retire_after_flush()

    # -- the end -----------------------------------------------------------------------------------

    def retire_after_flush(self) -> None:
        """Leave the pool now; the socket closes once what is buffered has gone."""
        self._leave()
        self.codec.drain()
        self.touch()

    def retire(self) -> None:
        """Leave the pool and close. Bytes that the origin does not take are of no use to anybody any more."""
        self._leave()
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.abort()
        else:
            self.close()

    def give_up(self, error: Error) -> None:
        """The path is dead: end its requests now, and the socket with it."""
        self.turn.begin()
        try:
            self.fail_streams(error)
            self.abort()
        finally:
            self.turn.end()

    def fail_streams(self, error: Error) -> None:
        """Reset every open stream towards its handler; none of them may find its next try on this connection."""
        if self.state is not _CONNECTING:
            self._leave()
        super().fail_streams(error)

    def _leave(self) -> None:
        if self.state is not _CLOSED:
            self.state = _CLOSED
            self.pool.lost(self)

    def close_gracefully(self) -> None:
        """The codec says that this connection is finished."""
        self.retire()

    def on_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if self.state is _CONNECTING:
            if isinstance(exc, ConnectionRefusedError):  # with Fast Open it is the first write that meets it
                if self.sessions is not None and self.offered is not None:
                    self.sessions.give_back(self.offered)
                self._fail_opening(connect_error(self.pool.target.endpoint, exc))
                return
            text = f"{self.pool.target.endpoint}: {exc or 'closed the connection during the handshake'}"
            kind = Kind.TLS if self.engine is not None else Kind.TERMINATED
            self._fail_opening(ProxyError(kind, text, unprocessed=True))
        else:
            self._leave()
