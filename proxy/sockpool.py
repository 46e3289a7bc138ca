"""Connected, handshaken sockets for L4: warm ones to every endpoint, and dials that need no task.

A new client connection of a `tcp` listener gets a socket that is already connected (and through its TLS handshake),
so that its first byte is one round trip from its answer. A server that speaks first has its greeting waiting in the
kernel's buffer.

    CONNECTING ──> HANDSHAKING (TLS) ──> READY ──> taken
         └──────────────┴──────────────────┴──> CLOSED (`error` says why a dial failed)

A link belongs to a client's connection from `take` on. `on_done` is called exactly once for a dial that became READY
or failed, perhaps before `SocketPool.dial` returns, and not for one that its owner closed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import select
import socket
from collections import deque
from enum import Enum
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Final

from tlscache.engine import State as TLSState

from .connect import connect_error, is_deferred, new_socket, open_socket
from .errors import Kind, ProxyError
from .metrics import PoolCounters
from .reactor import BROKEN, READ, UNWATCHED, WRITE
from .tcp import tcp_info

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from routing.balancer import EndpointState
    from routing.model import Endpoint
    from tlscache.engine import TLSEngine

    from .connect import SockAddress
    from .metrics import Snapshot
    from .pool import PoolSettings
    from .reactor import Reactor
    from .sessions import EndpointSessions
    from .timers import Timed
    from .upstream import UpstreamRuntime

RECEIVE_BYTES: Final = 64 * 1024
LENT_MAX: Final = 64
TICKETS_WAIT_S: Final = 5.0
_GREETING_SEEN: Final = select.EPOLLRDHUP  # an idle link that has bytes: only its end is of interest
_UNDER_WAY: Final = (0, errno.EINPROGRESS)
_ENDED: Final = (b"\x07", b"\x08")  # tcpi_state, the first octet of struct tcp_info: CLOSE and CLOSE_WAIT
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0


class State(Enum):
    """Where a dial stands."""

    CONNECTING = "connecting"
    HANDSHAKING = "handshaking"
    READY = "ready"
    CLOSED = "closed"


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
        "seconds",
        "sessions",
        "sock",
        "state",
        "timer_bucket",
    )

    def __init__(
        self,
        pool: SocketPool,
        on_done: Callable[[Link], None],
        preface: bytes = b"",
        sessions: EndpointSessions | None = None,
        resume: bool = True,
    ) -> None:
        self.pool = pool
        self.sessions = sessions  # None: plaintext, or the client's own TLS
        self.offered = sessions.take() if sessions is not None and resume else None
        self.engine: TLSEngine | None = sessions.new_engine(self.offered) if sessions is not None else None
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
            self._fail(ProxyError(Kind.UNAVAILABLE, f"no socket: {error.strerror}", unprocessed=True))
            return
        code = sock.connect_ex(address[1])
        if code not in _UNDER_WAY:  # EAGAIN too: a Unix socket whose backlog is full, or no local port is left
            self._fail(connect_error(pool.target.endpoint, OSError(code, os.strerror(code))))
            return
        self.deferred = code == 0 and pool.socket_options.fast_open
        self._watch(WRITE)
        pool.upstream.timers.set(self, self.born + pool.settings.connect_s, self.born)

    def adopt(self, sock: socket.socket, seconds: float) -> None:
        """A socket that was connected elsewhere (several addresses raced), in so many seconds."""
        self.sock = sock
        self.seconds = seconds
        self.deferred = self.pool.socket_options.fast_open and is_deferred(sock)
        now = monotonic()
        self.pool.upstream.timers.set(self, self.born + self.pool.settings.connect_s, now)
        self._connected()

    def fail(self, error: ProxyError) -> None:
        """It could not be connected elsewhere."""
        self._fail(error)

    def _watch(self, events: int) -> None:
        if self.sock is not None and events != self.events:
            self.events = events
            self.pool.reactor.watch(self.sock.fileno(), events, self)

    def on_timer(self, now: float) -> None:
        """The dial took too long."""
        text = f"{self.pool.target.endpoint}: no connection within {self.pool.settings.connect_s:g} s"
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
        engine = self.engine
        if engine is not None:
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
                self._fail(connect_error(self.pool.target.endpoint, error))
            else:
                self._fail_tls(f"{error.strerror} during the TLS handshake")
            return
        if not data:
            engine.receive_eof()
            self._fail(self.pool.upstream.tls_error(self.pool.target.endpoint, engine))
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
            self._fail(self.pool.upstream.tls_error(self.pool.target.endpoint, engine))

    def _send(self, data: bytes) -> None:
        data = self._unsent + data
        if data and self.sock is not None:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                if self.deferred and error.errno == errno.ECONNREFUSED:
                    self._fail(connect_error(self.pool.target.endpoint, error))
                else:
                    self._fail_tls(str(error.strerror))
                return
            # A fresh socket's buffer takes a handshake flight; a SYN takes one segment, and the rest waits its turn.
            self._unsent = data[sent:]
            if self._unsent and not self.deferred:
                self._fail_tls("takes no handshake")
        if self.state is State.HANDSHAKING:
            self._watch(READ | WRITE if self._unsent else READ)

    def _fail_tls(self, what: str) -> None:
        kind = Kind.TLS if self.engine is not None else Kind.TERMINATED
        self._fail(ProxyError(kind, f"{self.pool.target.endpoint}: {what}", unprocessed=True))

    def _ready(self) -> None:
        self.state = State.READY
        self.pool.upstream.timers.cancel(self)
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
        if sock.family == socket.AF_UNIX:
            return True
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) not in _ENDED

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
        self.pool.upstream.timers.cancel(self)
        sock, self.sock = self.sock, None
        if sock is not None:
            self.pool.reactor.closing(sock.fileno())
            sock.close()


class SocketPool:
    """Warm links to one endpoint."""

    def __init__(
        self, upstream: UpstreamRuntime, target: EndpointState, settings: PoolSettings, reactor: Reactor, tls: bool
    ) -> None:
        self.upstream = upstream
        self.target = target
        self.settings = settings
        self.reactor = reactor
        self.tls = tls
        self.socket_options = upstream.tls_socket_options if tls else upstream.socket_options
        self._address = _fixed_address(target.endpoint)
        self.counters = PoolCounters()
        self.idle: list[Link] = []
        self.dialling = 0
        self.open = 0
        self.closed = False
        self.first_round = 0
        self.last_error: ProxyError | None = None
        self._lent: deque[tuple[float, TLSEngine, EndpointSessions]] = deque(maxlen=LENT_MAX)
        self._failures = 0
        self._refill_at = 0.0
        header = upstream.section.proxy_protocol != "off"
        self.warm = (
            0 if header and tls else settings.warm
        )  # a PROXY header stands before the handshake, and names the client

    def __repr__(self) -> str:
        return f"<SocketPool {self.target.endpoint}: {len(self.idle)} idle, {self.open} open, {self.dialling} dialling>"

    def start(self) -> None:
        """Dial the warm links."""
        self.first_round = self.warm
        for _ in range(self.warm):
            self._refill_one(first=True)

    def take(self) -> Link | None:
        """A ready link, or None. What is taken is replaced."""
        while self.idle:
            link = self.idle.pop()
            self.target.ready -= 1
            if link.alive:
                self.counters.reused += 1
                self.refill()
                return link
            link.close()
        return None

    def dial(self, on_done: Callable[[Link], None], preface: bytes = b"", *, resume: bool = True) -> Link:
        """A new link for the caller; `on_done` is called once it is ready or has failed (`error`)."""
        endpoint = self.target.endpoint
        sessions = self.upstream.sessions_of(endpoint) if self.tls else None
        link = Link(self, on_done, preface, sessions, resume)
        address = self._address
        if address is None:
            known = self.upstream.resolver.known(endpoint.host, endpoint.port)
            if known is None or len(known) > 1:
                self.upstream.background.start(self._dial_slowly(link), f"dial {endpoint}")
                return link
            address = known[0]
        link.dial(address)
        return link

    async def _dial_slowly(self, link: Link) -> None:
        """Where the name is not known yet, or has several addresses to race."""
        endpoint, limit_s = self.target.endpoint, self.settings.connect_s
        try:
            async with asyncio.timeout(limit_s):
                sock, _, seconds = await open_socket(endpoint, self.upstream.resolver, self.socket_options)
        except ProxyError as error:
            link.fail(error)
        except TimeoutError:
            link.on_timer(monotonic())
        else:
            if link.state is State.CLOSED:
                sock.close()
            else:
                link.adopt(sock, seconds)

    def _refill_one(self, first: bool = False, resume: bool = True) -> None:
        self.dialling += 1

        def done(link: Link) -> None:
            self.dialling -= 1
            if first:
                self.first_round -= 1
            self._refilled(link)
            if first:
                self.upstream.on_warm_progress()

        self.dial(done, resume=resume)

    def _refilled(self, link: Link) -> None:
        now = monotonic()
        if link.error is not None:
            self.failed(link.error)
            return
        self.opened(link)
        if self.closed:
            link.close()
            return
        link.expires = now + self.settings.max_age_s * random.uniform(0.9, 1.0)
        self.idle.append(link)
        self.target.ready += 1
        link.rest()

    def probe(self, future: asyncio.Future[float]) -> None:
        """Dial once; the link stays warm. The future gets the seconds that the dial took, or its ProxyError."""

        def done(link: Link) -> None:
            self.dialling -= 1
            self._refilled(link)
            if future.done():
                return
            if link.error is not None:
                future.set_exception(link.error)
            else:
                future.set_result(max(link.seconds, 1e-6))

        self.dialling += 1
        self.dial(done)

    def opened(self, link: Link) -> None:
        """A dial succeeded: count it."""
        engine = link.engine
        self.counters.opened[link.handshake] += 1
        self.counters.tcp.observe(link.seconds)
        if engine is not None:
            self.counters.tls.observe(monotonic() - link.born - link.seconds)
        self._failures = 0
        self._refill_at = 0.0
        self.last_error = None
        self.upstream.balancer.observe_connect(self.target, monotonic(), True, link.seconds, "tcp")

    def failed(self, error: ProxyError) -> None:
        """A dial failed."""
        self.last_error = error
        self.counters.dial_failures += 1
        self._back_off()
        phase = "tls" if error.kind in (Kind.TLS, Kind.CERTIFICATE) else "tcp"
        self.upstream.balancer.observe_connect(self.target, monotonic(), False, 0.0, phase)
        self.upstream.on_dial_failed(self, error)

    def _back_off(self) -> None:
        self._failures += 1
        delay = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(self._failures - 1, 10))
        self._refill_at = monotonic() + delay * random.uniform(0.5, 1.0)

    def lost(self, link: Link) -> None:
        """An idle link died."""
        if link in self.idle:
            self.idle.remove(link)
            self.target.ready -= 1
            if monotonic() - link.born < 1.0:
                self._back_off()  # an endpoint that hangs up at once must not be dialled in a loop
            self.refill()

    def refill(self) -> None:
        """Dial what is missing."""
        if self.closed or monotonic() < self._refill_at:
            return
        room = self.settings.max_connections - self.open - len(self.idle) - self.dialling
        for _ in range(min(room, self.warm - len(self.idle) - self.dialling)):
            self._refill_one()

    def tick(self, now: float) -> None:
        """Now and then: replace what is old, refill."""
        for link in [one for one in self.idle if now > one.expires]:
            self.idle.remove(link)
            self.target.ready -= 1
            link.close()
        for link in self.idle[: max(0, len(self.idle) - self.warm)]:  # of probes and top-ups; the oldest stand first
            if now - link.born > TICKETS_WAIT_S:
                self.idle.remove(link)
                self.target.ready -= 1
                link.close()
        self.refill()
        self._collect_tickets(now)

    def watch_tickets(self, link: Link) -> None:
        """A link is handed out: its tickets may still be on their way (they come a round trip after the handshake)."""
        if link.engine is not None and link.sessions is not None and monotonic() - link.born < TICKETS_WAIT_S:
            self._lent.append((monotonic() + TICKETS_WAIT_S, link.engine, link.sessions))

    def _collect_tickets(self, now: float) -> None:
        lent = self._lent
        for _, engine, sessions in lent:
            if engine.tickets:
                sessions.keep(engine)
        while lent and now > lent[0][0]:
            lent.popleft()
        if self.tls and len(self.idle) >= self.warm > 0 and not self.dialling and not self.closed:
            held = self.upstream.sessions_of(self.target.endpoint)
            if held is not None and held.lacks_tickets(self.warm, now):
                self._refill_one(resume=False)

    def export(self, snapshot: Snapshot, upstream: str) -> None:
        """This pool's samples."""
        region, endpoint = self.target.region.name, str(self.target.endpoint)
        for handshake, count in self.counters.opened.items():
            snapshot.add("upstream_connections_opened", count, upstream=upstream, region=region, handshake=handshake)
        snapshot.add("upstream_connections_reused", self.counters.reused, upstream=upstream, region=region)
        snapshot.add("upstream_dial_failures", self.counters.dial_failures, upstream=upstream, region=region)
        for phase, histogram in (("tcp", self.counters.tcp), ("tls", self.counters.tls)):
            snapshot.add_histogram(
                "upstream_handshake_seconds", histogram, upstream=upstream, region=region, phase=phase
            )
        snapshot.add("upstream_pool_idle", len(self.idle), upstream=upstream, region=region, endpoint=endpoint)
        snapshot.add("connections_open", self.open + len(self.idle), side="upstream", upstream=upstream)

    def close(self) -> None:
        """No new connections."""
        self.closed = True
        for link in self.idle:
            self.target.ready -= 1
            link.close()
        self.idle.clear()


def _fixed_address(endpoint: Endpoint) -> SockAddress | None:
    """Where the endpoint is a Unix socket or an IP address; None for a name."""
    if endpoint.path:
        return socket.AF_UNIX, endpoint.path
    try:
        version = ip_address(endpoint.host).version
    except ValueError:
        return None
    return (socket.AF_INET if version == 4 else socket.AF_INET6), (endpoint.host, endpoint.port)
