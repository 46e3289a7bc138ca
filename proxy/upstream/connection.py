"""A connection to an endpoint over TCP or a Unix socket: how it opens, and what its bytes mean (`pooled` has the rest).

0-RTT: a request that waits for the connection may ride in its first flight (`_send_early`): it is tied to this
connection from the moment when the ClientHello is written. Accepted, it is simply under way when the handshake is done.
Rejected, it is sent again on this connection. Where the handshake fails, it goes back to the pool, once.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from proxy.errors import Kind, ProxyError
from proxy.http.connection import BULK_BYTES, WRITE_HIGH_WATER, ConnectionStream
from proxy.net.dial import connect_error, is_deferred
from proxy.net.kernel import socket_of, tcp_bytes_sent, tcp_info
from tlscache.early_data import EARLY_BYTES_MAX
from tlscache.engine import State as TLSState

from .pooled import PooledConnection, State

LAST_WORDS_BYTES_MAX: Final = 1024 * 1024
"""What is read of a connection that broke; the kernel's receive buffers hold little more."""
_READ_BYTES: Final = 64 * 1024

if TYPE_CHECKING:
    from proxy.errors import ProxyError as Error
    from proxy.loop.turn import Turn
    from tlscache.cache import EndpointSessions
    from tlscache.engine import TLSEngine
    from tlscache.session import Session

    from .contract import ConnectionOwner, PoolContext, Waiter
    from .reach import Reach


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_CONNECTING: Final = State.CONNECTING
_READY: Final = State.READY
_BUSY: Final = State.BUSY
_CLOSED: Final = State.CLOSED
_TLS_OPEN: Final = TLSState.OPEN
_TLS_HANDSHAKING: Final = TLSState.HANDSHAKING


class ClientConnection(PooledConnection):
    """How a connection to an endpoint opens, and what its bytes mean."""

    __slots__ = ("_handshaking_since", "early", "may_carry", "offered", "ready", "sessions")

    def __init__(
        self,
        turn: Turn,
        pool: ConnectionOwner,
        sessions: EndpointSessions | None = None,
        offered: Session | None = None,
    ) -> None:
        super().__init__(turn, pool)
        self.sessions = sessions  # None: plaintext
        self.offered = offered
        self.may_carry = False  # a request may ride in the first flight
        self.early: Waiter | None = None  # the one that does, until the handshake is done
        self.engine = sessions.new_engine(offered) if sessions is not None else None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handshaking_since = 0.0

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
            self.leave()
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
            self.leave()


async def open_connection(
    pool: ConnectionOwner, context: PoolContext, reach: Reach, *, resume: bool, apart: bool, carry: bool
) -> ClientConnection:
    """A new connection, handshaken, for a pool that has not got it yet. `resume`: with a session, where there is one;
    `apart`: in the version that takes upgrades; `carry`: its first flight may carry a request that waits (it is the
    pool's and `lent` then). Routing hears how long each phase took. Raises ProxyError; the caller bounds the time.
    """
    target = pool.target
    sock, dns_s, tcp_s = await reach.open_socket(target.endpoint, reach.tls_socket_options)
    deferred = reach.tls_socket_options.fast_open and is_deferred(sock)
    if not deferred:
        context.balancer.observe_connect(target, monotonic(), True, tcp_s, "tcp")
    sessions = reach.sessions_of(target.endpoint, apart=apart)
    offered = sessions.take() if sessions is not None and resume else None
    connection = ClientConnection(context.turn, pool, sessions, offered)
    connection.may_carry = carry
    connection.seconds = (dns_s, tcp_s, 0.0)
    try:
        await asyncio.get_running_loop().create_connection(lambda: cast(Any, connection), sock=sock)
        await connection.ready
    except asyncio.CancelledError:
        connection.state = State.CLOSED
        connection.abort()
        raise
    if deferred and connection.transport is not None:  # the SYN went with the ClientHello: the kernel has timed it
        connection.peer = socket_of(connection.transport).getpeername()[0]
        rtt_s = connection.rtt_s()
        connection.seconds = (dns_s, rtt_s, connection.seconds[2])
        context.balancer.observe_connect(target, monotonic(), True, rtt_s, "tcp")
    if sessions is not None:
        context.balancer.observe_connect(target, monotonic(), True, connection.seconds[2], "tls")
    return connection
