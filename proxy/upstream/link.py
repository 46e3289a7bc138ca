"""One connected, handshaken socket to an endpoint, for L4: dialled without a task, then idle until a client comes.

    CONNECTING ──> HANDSHAKING (TLS) ──> READY ──> taken
         └──────────────┴──────────────────┴──> CLOSED (`error` says why a dial failed)

A link belongs to a client's connection from `take` on. `on_done` is called exactly once for a dial that became READY
or failed, perhaps before the pool's `dial` returns, and not for one that its owner closed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.loop.reactor import BROKEN, READ, UNWATCHED, WRITE
from proxy.net.dial import connect_error, is_deferred, new_socket, no_source
from proxy.net.kernel import has_hung_up, tcp_info
from tlscache.engine import State as TLSState

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.loop.timers import Timed
    from proxy.net.dial import SocketOptions
    from proxy.net.resolver import SockAddress
    from routing.balancer import EndpointState
    from tlscache.cache import EndpointSessions
    from tlscache.engine import TLSEngine
    from tlscache.session import Session

    from .contract import PoolContext

RECEIVE_BYTES: Final = 64 * 1024
_GREETING_SEEN: Final = select.EPOLLRDHUP  # an idle link that has bytes: only its end is of interest
_UNDER_WAY: Final = (0, errno.EINPROGRESS)


class State(Enum):
    """Where a dial stands."""

    CONNECTING = "connecting"
    HANDSHAKING = "handshaking"
    READY = "ready"
    CLOSED = "closed"


class LinkOwner:
    """What a link tells, and asks of, the pool that dialled it."""

    __slots__ = ()

    target: EndpointState
    context: PoolContext
    socket_options: SocketOptions
    tls: bool

    def tls_error(self, engine: TLSEngine) -> ProxyError:
        """Why a handshake failed."""
        raise NotImplementedError

    def connect_s(self) -> float:
        """How long a dial may take."""
        raise NotImplementedError

    def opened(self, link: Link) -> None:
        """A dial succeeded."""
        raise NotImplementedError

    def failed(self, error: ProxyError) -> None:
        """A dial failed."""
        raise NotImplementedError

    def lent(self) -> None:
        """A client has one of the links."""
        raise NotImplementedError

    def ended(self) -> None:
        """That client's connection is over."""
        raise NotImplementedError

    def lost(self, link: Link) -> None:
        """An idle link died."""
        raise NotImplementedError

    def watch_tickets(self, link: Link) -> None:
        """A link is handed out: its tickets may still be on their way."""
        raise NotImplementedError


class Link:
    """A socket to an endpoint, with its TLS engine where there is one. `early` is plaintext that came with the
    handshake; `preface` goes out before everything else (a PROXY header, which stands before TLS); `events` is what the
    reactor watches the socket for.
    """

    __slots__ = (
        "_unsent",
        "born",
        "deferred",
        "early",
        "engine",
        "error",
        "events",
        "expires",
        "handshake",
        "offered",
        "on_done",
        "pool",
        "preface",
        "resume",
        "seconds",
        "sessions",
        "sock",
        "state",
        "timer_bucket",
    )

    def __init__(
        self,
        pool: LinkOwner,
        on_done: Callable[[Link], None],
        preface: bytes = b"",
        sessions: EndpointSessions | None = None,
        resume: bool = True,
    ) -> None:
        self.pool = pool
        self.sessions = sessions  # None: plaintext, or the client's own TLS
        self.resume = resume
        self.offered: Session | None = None
        self.engine: TLSEngine | None = None
        self.handshake = "plain"
        self.on_done: Callable[[Link], None] | None = on_done
        self.preface = preface
        self.deferred = False  # Fast Open: connected by the first bytes
        self._unsent = b""
        self.events = UNWATCHED
        self.sock: socket.socket | None = None
        self.state = State.CONNECTING
        self.error: ProxyError | None = None
        self.early = b""
        self.born = monotonic()
        self.seconds = 0.0  # what connecting took, without TLS: one round trip
        self.expires = 0.0
        self.timer_bucket: set[Timed] | None = None

    def __repr__(self) -> str:
        return f"<Link to {self.pool.target.endpoint} {self.state.value}>"

    # -- opening -----------------------------------------------------------------------------------

    def dial(self, address: SockAddress) -> None:
        """Connect without a task."""
        pool = self.pool
        try:
            sock = self.sock = new_socket(address[0], pool.socket_options)
        except OSError as error:
            self._fail(connect_error(pool.target.endpoint, error))
            return
        code = sock.connect_ex(address[1])
        if code not in _UNDER_WAY:  # EAGAIN too: a Unix socket whose backlog is full, or no local port is left
            fault = no_source(address, OSError(code, os.strerror(code)))
            self._fail(connect_error(pool.target.endpoint, fault))
            return
        self.deferred = code == 0 and pool.socket_options.fast_open
        self._watch(WRITE)
        pool.context.timers.set(self, self.born + pool.connect_s(), self.born)

    @property
    def peer_host(self) -> str:
        """The address that it leads to; "" where it leads nowhere."""
        if self.sock is None:
            return ""
        try:
            name = self.sock.getpeername()
        except OSError:
            return ""
        return str(name[0]) if isinstance(name, tuple) else ""

    def adopt(self, sock: socket.socket, seconds: float) -> None:
        """A socket that was connected elsewhere (several addresses raced), in so many seconds."""
        self.sock = sock
        self.seconds = seconds
        self.deferred = self.pool.socket_options.fast_open and is_deferred(sock)
        now = monotonic()
        self.pool.context.timers.set(self, self.born + self.pool.connect_s(), now)
        self._connected()

    def fail(self, error: ProxyError) -> None:
        """It could not be connected elsewhere."""
        self._fail(error)

    def _watch(self, events: int) -> None:
        if self.sock is not None and events != self.events:
            self.events = events
            self.pool.context.reactor.watch(self.sock.fileno(), events, self)

    def on_timer(self, now: float) -> None:
        """The dial took too long."""
        text = f"{self.pool.target.endpoint}: no connection within {self.pool.connect_s():g} s"
        self._fail(ProxyError(Kind.CONNECT_TIMEOUT, text, unprocessed=True))

    def on_event(self, fd: int, events: int) -> None:
        """The socket is connected, the peer's handshake goes on, or an idle link got something (or died)."""
        sock = self.sock
        assert sock is not None
        if self.state is State.CONNECTING:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(connect_error(self.pool.target.endpoint, OSError(code, os.strerror(code))))
            else:
                self.seconds = monotonic() - self.born
                self._connected()
        elif self.state is State.HANDSHAKING:
            if self._unsent and events & select.EPOLLOUT:
                self._send(b"")
            self._shake_hands()
        elif self.state is State.READY:
            self._idle_event(fd, events)

    def _connected(self) -> None:
        sessions = self.sessions
        if sessions is not None:  # not before: a dial that fails takes no ticket
            self.offered = sessions.take() if self.resume else None
            engine = self.engine = sessions.new_engine(self.offered)
            self.state = State.HANDSHAKING
            engine.start()
            self._send(self.preface + engine.data_to_send())
            return
        self._send(self.preface)
        if self.state is State.CONNECTING:
            self._ready()

    def _shake_hands(self) -> None:
        engine, sock = self.engine, self.sock
        assert engine is not None
        assert sock is not None
        try:
            data = sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if self.deferred and error.errno == errno.ECONNREFUSED:
                self._fail_refused(error)
            else:
                self._fail_tls(f"{error.strerror} during the TLS handshake")
            return
        if not data:
            engine.receive_eof()
            self._fail(self.pool.tls_error(engine))
            return
        self.early += engine.receive(data)
        self._send(engine.data_to_send())
        if engine.state is TLSState.OPEN:
            if self.state is State.HANDSHAKING and self.sessions is not None:
                self.handshake = self.sessions.settle(self.offered, engine)
                self.sessions.keep(engine)
                if self.deferred:
                    self.seconds, _, _ = tcp_info(sock)  # the SYN went with the ClientHello
                self._ready()
        elif engine.state is not TLSState.HANDSHAKING:
            self._fail(self.pool.tls_error(engine))

    def _send(self, data: bytes) -> None:
        data = self._unsent + data
        if data and self.sock is not None:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                if self.deferred and error.errno == errno.ECONNREFUSED:
                    self._fail_refused(error)
                else:
                    self._fail_tls(str(error.strerror))
                return
            # A fresh socket's buffer takes a handshake flight; a SYN takes one segment, and the rest waits its turn.
            self._unsent = data[sent:]
            if self._unsent and not self.deferred:
                self._fail_tls("takes no handshake")
        if self.state is State.HANDSHAKING:
            self._watch(READ | WRITE if self._unsent else READ)

    def _fail_refused(self, error: OSError) -> None:
        if self.sessions is not None and self.offered is not None:
            self.sessions.give_back(self.offered)
        self._fail(connect_error(self.pool.target.endpoint, error))

    def _fail_tls(self, what: str) -> None:
        kind = Kind.TLS if self.engine is not None else Kind.TERMINATED
        self._fail(ProxyError(kind, f"{self.pool.target.endpoint}: {what}", unprocessed=True))

    def break_down(self, error: Exception) -> None:
        """Our code for it raised."""
        if self.state is State.READY:
            self.pool.lost(self)
            self.close()
        else:
            self._fail(ProxyError(Kind.UNAVAILABLE, f"the dial failed within the proxy: {error!r}", unprocessed=True))

    def _ready(self) -> None:
        self.state = State.READY
        self.pool.context.timers.cancel(self)
        self._tell()

    def _fail(self, error: ProxyError) -> None:
        if self.state is State.CLOSED:
            return
        self.error = error
        on_done = self.on_done
        self.close()
        self.on_done = on_done
        self._tell()

    def _tell(self) -> None:
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            on_done(self)

    # -- idle --------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Wait for a client: notice when the endpoint hangs up."""
        self._watch(READ)

    def _idle_event(self, fd: int, events: int) -> None:
        if events & (BROKEN | select.EPOLLRDHUP):
            self.pool.lost(self)
            self.close()
        elif self.engine is not None and self.sessions is not None and len(self.early) < RECEIVE_BYTES:
            self._read_idle(self.engine, self.sessions)
        elif events & select.EPOLLIN:  # a server that speaks first: its greeting stays in the kernel's buffer
            self._watch(_GREETING_SEEN)

    def _read_idle(self, engine: TLSEngine, sessions: EndpointSessions) -> None:
        """What comes after the handshake: tickets, and the greeting of a server that speaks first."""
        assert self.sock is not None
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.early += engine.receive(data) if data else b""
        if engine.tickets:
            sessions.keep(engine)
        if not data or engine.state is not TLSState.OPEN or engine.eof_received:
            self.pool.lost(self)
            self.close()

    @property
    def alive(self) -> bool:
        """The peer had not hung up a moment ago, though its end may not have been reported to us yet."""
        sock = self.sock
        if sock is None or self.state is not State.READY:
            return False
        return sock.family == socket.AF_UNIX or not has_hung_up(sock)

    def take(self) -> socket.socket:
        """The socket, for the caller from now on: it closes it, and hands its descriptor over in the reactor."""
        sock, self.sock = self.sock, None
        assert sock is not None
        self.pool.watch_tickets(self)
        return sock

    def close(self) -> None:
        """Give up. Idempotent."""
        self.state = State.CLOSED
        self.on_done = None
        self.pool.context.timers.cancel(self)
        sock, self.sock = self.sock, None
        if sock is not None:
            self.pool.context.reactor.closing(sock.fileno())
            sock.close()
