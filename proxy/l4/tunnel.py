"""One client of an L4 listener, from its first byte to its last.

    PRELUDE (PROXY header, TLS handshake, or ClientHello) ──> CONNECTING ──> RELAYING ──> CLOSED
       └── a TLS handshake fails ──> LINGERING ─────────────────────────────────────────────┘

It owns the client's socket until the relay does, and never chooses an endpoint itself: CONNECTING is `race`.

While CONNECTING the client's bytes wait in the kernel, and (once that takes long) only its reset is noticed. A
connection is idle when no byte moved for `timeouts.idle`, give or take a quarter. LINGERING: our alert has been sent,
and our side shut down; what the client still sends is dropped for a while, because closing on unread bytes would make
the kernel reset the connection and destroy the alert.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.downstream.base import BaseListener
from proxy.downstream.client_hello import ClientHello, ClientHelloReader
from proxy.downstream.proxy_protocol import NotProxyProtocol, ProxyHeader, ProxyProtocolReader, write_v1, write_v2
from proxy.loop.reactor import BROKEN, READ, UNWATCHED
from proxy.net.address import unmapped
from routing.balancer import Outcome
from tlscache.engine import State as TLSState
from tlscache.engine import TLSEngine

from .flow import End
from .race import RACE_AFTER_S, Entrant, Race
from .relay import Relay

if TYPE_CHECKING:
    from proxy.loop.reactor import Reactor
    from proxy.loop.timers import Timed
    from proxy.upstream.link import Link
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.balancer import EndpointState
    from routing.model import Route
    from routing.table import RouteTable

LINGER_S: Final = 1.0
LINGER_READS: Final = 16
RECEIVE_BYTES: Final = 64 * 1024
IDLE_CHECKS: Final = 4
"""How often within the idle time a connection is looked at."""


class State(Enum):
    """Where an L4 connection stands."""

    PRELUDE = "prelude"
    CONNECTING = "connecting"
    RELAYING = "relaying"
    LINGERING = "lingering"
    CLOSED = "closed"


class TunnelOwner(BaseListener["Tunnel"]):
    """A listener, as its tunnels see it."""

    reactor: Reactor
    table: RouteTable[Route]
    upstreams: dict[str, UpstreamRuntime]

    def done(self, tunnel: Tunnel, reason: str) -> None:
        """It has ended; `reason` says what went wrong, where something did. Its relay's counts are final."""
        raise NotImplementedError


class Tunnel(Entrant):
    """One client connection."""

    __slots__ = (
        "_engine",
        "_events",
        "_first_bytes",
        "_hello",
        "_link",
        "_proxy_header",
        "_quiet",
        "_race",
        "_refusal",
        "client",
        "destination",
        "listener",
        "peer",
        "relay",
        "route",
        "server_name",
        "sock",
        "started",
        "state",
        "target",
        "timer_bucket",
        "tried",
        "upstream",
    )

    upstream: UpstreamRuntime
    route: Route

    def __init__(self, listener: TunnelOwner, sock: socket.socket, address: Any) -> None:
        self.listener = listener
        self.sock = sock
        self.peer: tuple[str, int] = (unmapped(address[0]), address[1]) if isinstance(address, tuple) else ("", 0)
        self.client = self.peer[0] or "unix"
        self.destination: tuple[str, int] | None = None  # as a PROXY header names it
        self.started = monotonic()
        self.state = State.PRELUDE
        self.timer_bucket: set[Timed] | None = None
        self.relay: Relay | None = None
        self.target: EndpointState | None = None
        self.server_name = ""
        settings = listener.settings
        self._engine = TLSEngine(settings.tls) if settings.tls is not None else None
        self._proxy_header = ProxyProtocolReader() if settings.proxy_protocol else None
        self._hello = ClientHelloReader() if settings.protocol == "sni" else None
        self._first_bytes = b""
        self._events = UNWATCHED
        self.tried: list[EndpointState] = []
        self._race: Race | None = None
        self._link: Link | None = None
        self._quiet = 0
        self._refusal = ""

    def __repr__(self) -> str:
        return f"<Tunnel {self.client} to {self.target.endpoint if self.target else '-'} {self.state.value}>"

    def start(self) -> None:
        """The client connected."""
        if self._engine is None and self._proxy_header is None and self._hello is None:
            self._connect()
            return
        listener = self.listener
        listener.timers.set(self, self.started + listener.settings.header_timeout_s, self.started)
        self._watch(READ)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self.listener.reactor.watch(self.sock.fileno(), events, self)

    # -- prelude -----------------------------------------------------------------------------------

    def on_event(self, fd: int, events: int) -> None:
        """The client sent something (before the relay watches its socket), or left."""
        if self.state is State.CONNECTING:
            self._end("the client left", Outcome.CANCELLED)  # only a broken socket is reported while connecting
            return
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            if events & BROKEN:
                self._end("the client left", Outcome.CANCELLED)
            return
        except OSError:
            data = b""
        if self.state is State.LINGERING:
            self._quiet += 1
            if not data or self._quiet > LINGER_READS:
                self._end(self._refusal, Outcome.CANCELLED)
            return
        if not data:
            self._end("the client left before it said where to", Outcome.CANCELLED)
            return
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        reader = self._proxy_header
        if reader is not None:
            found = reader.receive(data)
            if found is None:
                return
            if isinstance(found, NotProxyProtocol):
                self._end(f"PROXY header refused: {found.details}", Outcome.CANCELLED)
                return
            self._proxy_header = None
            if found.source is not None:
                self.peer = found.source
                self.client = found.source[0]
                self.destination = found.destination
            data = reader.rest
        if self._engine is not None:
            self._shake_hands(self._engine, data)
            return
        self._first_bytes += data
        if self._hello is not None:
            if not data:
                return
            hello = self._hello.receive(data)
            if hello is None:
                return
            if not isinstance(hello, ClientHello):
                self._end(f"no TLS ClientHello: {hello.details}", Outcome.CANCELLED)
                return
            self.server_name = hello.server_name
        self._connect()

    def _shake_hands(self, engine: TLSEngine, data: bytes) -> None:
        if data:
            self._first_bytes += engine.receive(data)
        reply = engine.data_to_send()
        if reply:
            try:
                sent = self.sock.send(reply)
            except OSError:
                sent = 0
            if sent < len(reply):
                self._end("the client takes no TLS handshake", Outcome.CANCELLED)
                return
        if engine.state is TLSState.OPEN:
            self.server_name = engine.server_name or ""
            self._connect()
        elif engine.state is not TLSState.HANDSHAKING:
            self.listener.counters.tls_failures += 1
            self._linger(f"TLS handshake: {engine.error}")

    def _linger(self, refusal: str) -> None:
        self._refusal = refusal
        self.state = State.LINGERING
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        now = monotonic()
        self.listener.timers.set(self, now + LINGER_S, now)

    # -- connecting --------------------------------------------------------------------------------

    def _connect(self) -> None:
        listener = self.listener
        route = listener.table.match(self.server_name.encode(), b"/", b"CONNECT", [])
        if route is None:
            self._end(f"no route for server name {self.server_name!r}", Outcome.CANCELLED)
            return
        self.route = route
        upstream = self.upstream = listener.upstreams[route.upstream]
        self.state = State.CONNECTING
        now = monotonic()
        key = self.peer[0].encode() if upstream.session_key is not None and self.peer[0] else None
        passthrough = listener.settings.protocol == "sni"
        race = self._race = Race(self, upstream, route, self.started, passthrough=passthrough)
        self.tried = race.tried
        race.start(key, now)
        if self.state is State.CONNECTING:
            listener.timers.set(self, now + RACE_AFTER_S, now)
            if self._events != UNWATCHED:
                self._watch(0)

    def on_timer(self, now: float) -> None:
        """The prelude took too long; a dial is slow; or the relay is idle."""
        if self.state is State.PRELUDE:
            self._end(f"the client said nothing for {self.listener.settings.header_timeout_s:g} s", Outcome.CANCELLED)
        elif self.state is State.LINGERING:
            self._end(self._refusal, Outcome.CANCELLED)
        elif self._race is not None:
            self._race.go_on(now)
            if self.state is State.CONNECTING:
                self._watch(0)
                self.listener.timers.set(self, now + RACE_AFTER_S, now)
        elif self.relay is not None:
            self._check_idle(self.relay, now)

    def _check_idle(self, relay: Relay, now: float) -> None:
        idle = self.route.timeouts.idle
        self._quiet = 0 if relay.active else self._quiet + 1
        relay.active = False
        if self._quiet >= IDLE_CHECKS:
            relay.abort(f"idle for {idle:g} s")
        else:
            self.listener.timers.set(self, now + idle / IDLE_CHECKS, now)

    def on_link(self, link: Link) -> None:
        """A link is ready: relay."""
        now = monotonic()
        self.target = link.pool.target
        self._link = link
        self._race = None
        self.state = State.RELAYING
        listener = self.listener
        client = End(self.sock, self._engine, self._events)
        relay = self.relay = Relay(
            listener.reactor, client, End(link.take(), link.engine, link.events), self._relay_closed
        )
        listener.timers.set(self, now + self.route.timeouts.idle / IDLE_CHECKS, now)
        first, self._first_bytes = self._first_bytes, b""
        relay.start(b"" if link.pool.tls else self.header_for_upstream(), first, link.early)

    def on_no_link(self, reason: str, outcome: Outcome) -> None:
        """No endpoint takes the client."""
        self._end(reason, outcome)

    def header_for_upstream(self) -> bytes:
        """The PROXY header for a link, b"" where the upstream wants none."""
        version = self.upstream.section.proxy_protocol
        if version == "off":
            return b""
        destination = self.destination
        if destination is None:
            name = self.sock.getsockname()
            destination = (unmapped(name[0]), name[1]) if isinstance(name, tuple) else None
        header = ProxyHeader(self.peer, destination) if self.peer[0] else ProxyHeader()
        return write_v1(header) if version == "v1" else write_v2(header)

    # -- the end -----------------------------------------------------------------------------------

    def _relay_closed(self, reason: str) -> None:
        link, target = self._link, self.target
        assert link is not None
        assert target is not None
        self._link = None
        link.pool.ended()
        self.upstream.balancer.closed(target)
        self._closed(reason)
        self.relay = None  # which holds on to this tunnel: no cycle is left for the collector

    def _end(self, reason: str, outcome: Outcome) -> None:
        """Before (or instead of) a relay: close the client's socket."""
        if self.state is State.CLOSED:
            return
        race, self._race = self._race, None
        if race is not None:
            race.stop(outcome, monotonic())
        self.listener.reactor.closing(self.sock.fileno())
        self.sock.close()
        self._closed(reason)

    def _closed(self, reason: str) -> None:
        self.state = State.CLOSED
        self.listener.timers.cancel(self)
        self.listener.done(self, reason)

    def drain(self) -> None:
        """What is relayed may finish; a client that has not got so far ends."""
        if self.state in (State.PRELUDE, State.LINGERING):
            self.abort()

    def abort(self, reason: str = "the proxy is stopping") -> None:
        """Cut it."""
        if self.relay is not None:
            self.relay.abort(reason)
        else:
            self._end(reason, Outcome.CANCELLED)

    def break_down(self, error: Exception) -> None:
        """Our code for it raised."""
        self.abort(f"failed within the proxy: {error!r}")
