"""L4 listeners: `tcp` (plain or terminated TLS in, plain or TLS out) and `sni` (TLS passed through by server name).

    PRELUDE (PROXY header, TLS handshake, or ClientHello) ──> CONNECTING ──> RELAYING ──> CLOSED
       └── a TLS handshake fails ──> LINGERING ─────────────────────────────────────────────┘

A new client gets a warm link where there is one. Else links are dialled, and as no byte of the client has been sent
yet, dials to other regions may race: a further one (as many as `retry` allows) starts when one fails, or when nothing
is ready after `RACE_AFTER_S`; the first that is ready wins.

While CONNECTING the client's bytes wait in the kernel, and (once that takes long) only its reset is noticed. A
connection is idle when no byte moved for `timeouts.idle`, give or take a quarter. LINGERING: our alert has been sent,
and our side shut down; what the client still sends is dropped for a while, because closing on unread bytes would make
the kernel reset the connection and destroy the alert.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.downstream.client_hello import ClientHello, ClientHelloReader
from proxy.downstream.proxy_protocol import NotProxyProtocol, ProxyHeader, ProxyProtocolReader, write_v1, write_v2
from proxy.loop.reactor import BROKEN, READ, UNWATCHED
from proxy.net.address import unmapped
from proxy.observe.access_log import AccessRecord, encode
from proxy.observe.metrics import Histogram
from proxy.upstream.link import Link
from proxy.upstream.link import State as LinkState
from routing.balancer import Outcome
from routing.table import RouteTable
from tlscache.engine import State as TLSState
from tlscache.engine import TLSEngine

from .flow import End
from .relay import Relay

if TYPE_CHECKING:
    from proxy.config import ListenerSection
    from proxy.config.model import LimitsSection
    from proxy.loop.timers import Timed
    from proxy.observe.access_log import AccessLog
    from proxy.observe.metrics import Snapshot
    from proxy.process.worker import Worker
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.balancer import EndpointState
    from routing.model import Route
    from tlscache.context import ServerContext

RACE_AFTER_S: Final = 0.25
ACCEPT_BATCH: Final = 16
ACCEPT_PAUSE_S: Final = 0.1
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


class Tunnel:
    """One client connection."""

    __slots__ = (
        "_begun",
        "_connecting_since",
        "_dials",
        "_engine",
        "_events",
        "_first_bytes",
        "_hello",
        "_link",
        "_proxy_header",
        "_quiet",
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

    def __init__(self, listener: TunnelListener, sock: socket.socket, address: Any) -> None:
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
        self._engine = TLSEngine(listener.tls) if listener.tls is not None else None
        self._proxy_header = ProxyProtocolReader() if listener.section.proxy_protocol else None
        self._hello = ClientHelloReader() if listener.section.protocol == "sni" else None
        self._first_bytes = b""
        self._events = UNWATCHED
        self._dials: list[Link] = []
        self.tried: list[EndpointState] = []
        self._begun: list[EndpointState] = []
        self._link: Link | None = None
        self._connecting_since = 0.0
        self._quiet = 0
        self._refusal = ""

    def __repr__(self) -> str:
        return f"<Tunnel {self.client} to {self.target.endpoint if self.target else '-'} {self.state.value}>"

    def start(self) -> None:
        """The client connected."""
        if self._engine is None and self._proxy_header is None and self._hello is None:
            self._connect()
            return
        self.listener.worker.timers.set(self, self.started + self.listener.header_timeout, self.started)
        self._watch(READ)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self.listener.worker.reactor.watch(self.sock.fileno(), events, self)

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
            self.listener.tls_failures += 1
            self._linger(f"TLS handshake: {engine.error}")

    def _linger(self, refusal: str) -> None:
        self._refusal = refusal
        self.state = State.LINGERING
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        now = monotonic()
        self.listener.worker.timers.set(self, now + LINGER_S, now)

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
        now = self._connecting_since = monotonic()
        key = self.peer[0].encode() if upstream.session_key is not None and self.peer[0] else None
        balancer = upstream.balancer
        balancer.count_request(now)
        target = balancer.pick(now, key)
        if target is None:
            self._end(upstream.nothing_available(now), Outcome.CANCELLED)
            return
        self._try(target, now)
        if self.state is State.CONNECTING:
            listener.worker.timers.set(self, now + RACE_AFTER_S, now)
            if self._events != UNWATCHED:
                self._watch(0)

    def _try(self, target: EndpointState, now: float) -> None:
        self.tried.append(target)
        self._begun.append(target)
        self.upstream.balancer.begin(target, now)
        pool = self.upstream.socket_pool(target, passthrough=self.listener.section.protocol == "sni")
        link = pool.take()
        if link is not None:
            self._joined(link)
            return
        link = pool.dial(self._dialled, self._header_for_upstream() if pool.tls else b"")
        if link.state in (LinkState.CONNECTING, LinkState.HANDSHAKING):
            self._dials.append(link)
        elif self.state is State.CONNECTING and not self._dials:  # each failed at once
            assert link.error is not None
            self._end(link.error.details, Outcome.CONNECT_FAILED)

    def _dialled(self, link: Link) -> None:
        pool = link.pool
        if link.error is None:
            pool.opened(link)
        else:
            pool.failed(link.error)
        if self.state is not State.CONNECTING:
            link.close()
            return
        within_dial = link not in self._dials
        if not within_dial:
            self._dials.remove(link)
        if link.error is None:
            self._joined(link)
            return
        now = monotonic()
        blamed = link.error.blames_endpoint
        self._settle(pool.target, Outcome.CONNECT_FAILED if blamed else Outcome.NEUTRAL, now)
        if not self._try_another(now) and not self._dials and not within_dial:
            self._end(link.error.details, Outcome.CONNECT_FAILED)

    def _try_another(self, now: float) -> bool:
        retry = self.route.retry
        if retry is None or len(self.tried) > retry.attempts:
            return False
        target = self.upstream.balancer.pick_alternate(now, self.tried, False)
        if target is None:
            return False
        self._try(target, now)
        return True

    def on_timer(self, now: float) -> None:
        """The prelude took too long; a dial is slow; or the relay is idle."""
        if self.state is State.PRELUDE:
            self._end(f"the client said nothing for {self.listener.header_timeout:g} s", Outcome.CANCELLED)
        elif self.state is State.LINGERING:
            self._end(self._refusal, Outcome.CANCELLED)
        elif self.state is State.CONNECTING:
            if now - self._connecting_since > self.route.timeouts.connect * 2:
                self._end("no endpoint could be reached in time", Outcome.TIMEOUT)
                return
            self._try_another(now)
            if self.state is State.CONNECTING:
                self._watch(0)
                self.listener.worker.timers.set(self, now + RACE_AFTER_S, now)
        elif self.relay is not None:
            self._check_idle(self.relay, now)

    def _check_idle(self, relay: Relay, now: float) -> None:
        idle = self.route.timeouts.idle
        self._quiet = 0 if relay.active else self._quiet + 1
        relay.active = False
        if self._quiet >= IDLE_CHECKS:
            relay.abort(f"idle for {idle:g} s")
        else:
            self.listener.worker.timers.set(self, now + idle / IDLE_CHECKS, now)

    def _joined(self, link: Link) -> None:
        """A link is ready: relay."""
        now = monotonic()
        target = self.target = link.pool.target
        self._link = link
        for loser in self._dials:
            loser.close()
        self._dials.clear()
        self._begun.remove(target)
        for other in list(self._begun):  # one may be the same endpoint, dialled once more
            self._settle(other, Outcome.CANCELLED, now)
        self.upstream.balancer.established(target, now, target.floor.value)  # L4 shows no service time
        link.pool.lent()
        self.state = State.RELAYING
        worker = self.listener.worker
        client = End(self.sock, self._engine, self._events)
        relay = self.relay = Relay(
            worker.reactor, client, End(link.take(), link.engine, link.events), self._relay_closed
        )
        worker.timers.set(self, now + self.route.timeouts.idle / IDLE_CHECKS, now)
        first, self._first_bytes = self._first_bytes, b""
        relay.start(b"" if link.pool.tls else self._header_for_upstream(), first, link.early)

    def _header_for_upstream(self) -> bytes:
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

    def _settle(self, target: EndpointState, outcome: Outcome, now: float) -> None:
        if target in self._begun:
            self._begun.remove(target)
            self.upstream.balancer.finish(target, now, outcome, now - self.started)

    def _relay_closed(self, reason: str) -> None:
        link, relay, target = self._link, self.relay, self.target
        assert link is not None
        assert relay is not None
        assert target is not None
        self._link = None
        link.pool.ended()
        self.listener.bytes_up += relay.up.bytes
        self.listener.bytes_down += relay.down.bytes
        self.upstream.balancer.closed(target)
        self._closed(reason)
        self.relay = None  # which holds on to this tunnel: no cycle is left for the collector

    def _end(self, reason: str, outcome: Outcome) -> None:
        """Before (or instead of) a relay: close the client's socket."""
        if self.state is State.CLOSED:
            return
        now = monotonic()
        for link in self._dials:
            link.close()
        self._dials.clear()
        for target in list(self._begun):
            self._settle(target, outcome, now)
        self.listener.worker.reactor.closing(self.sock.fileno())
        self.sock.close()
        self._closed(reason)

    def _closed(self, reason: str) -> None:
        self.state = State.CLOSED
        self.listener.worker.timers.cancel(self)
        self.listener.done(self, reason)

    def abort(self, reason: str = "the proxy is stopping") -> None:
        """Cut it."""
        if self.relay is not None:
            self.relay.abort(reason)
        else:
            self._end(reason, Outcome.CANCELLED)

    def break_down(self, error: Exception) -> None:
        """Our code for it raised."""
        self.abort(f"failed within the proxy: {error!r}")


class TunnelListener:
    """One `tcp` or `sni` listener of one worker."""

    def __init__(
        self, section: ListenerSection, limits: LimitsSection, tls: ServerContext | None, worker: Worker
    ) -> None:
        self.name = section.name
        self.worker = worker
        self.adopt(section, limits, tls)
        self.access_log: AccessLog = worker.access_log
        self.table: RouteTable[Route] = RouteTable(())
        self.upstreams: dict[str, UpstreamRuntime] = {}
        self.tunnels: set[Tunnel] = set()
        self.draining = False
        self.drained = asyncio.Event()
        self.accepted = self.refused = self.failed = self.tls_failures = 0
        self.bytes_up = self.bytes_down = 0
        self.duration = Histogram()
        self._sock: socket.socket | None = None

    def __repr__(self) -> str:
        return f"<TunnelListener {self.name}: {len(self.tunnels)} connections>"

    def open(self, sock: socket.socket) -> None:
        """Begin to accept."""
        self._sock = sock
        if sock.family != socket.AF_UNIX:  # what is accepted inherits it (tcp(7))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.worker.reactor.watch(sock.fileno(), READ, self)

    def route(self, routes: tuple[Route, ...], upstreams: dict[str, UpstreamRuntime], *, warm: bool = True) -> None:
        """Swap in routes; connections under way keep theirs. `warm`: open the upstreams' pools."""
        self.table = RouteTable(routes)
        self.upstreams = upstreams
        for upstream in {route.upstream for route in routes} if warm else ():
            upstreams[upstream].open_socket_pools(passthrough=self.section.protocol == "sni")

    def adopt(self, section: ListenerSection, limits: LimitsSection, tls: ServerContext | None) -> None:
        """A reload changed this listener's settings: new connections follow them."""
        self.section = section
        self.connection_limit = limits.connections
        self.header_timeout = limits.header_timeout
        self.tls = tls

    def on_event(self, fd: int, events: int) -> None:
        """Clients wait to be accepted."""
        sock = self._sock
        for _ in range(ACCEPT_BATCH):
            if sock is None or sock is not self._sock:
                return
            try:
                client, address = sock.accept()
            except BlockingIOError:
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as error:
                self._pause_accepting(sock, error)
                return
            self.accepted += 1
            if len(self.tunnels) >= self.connection_limit:
                self.refused += 1
                client.close()
                continue
            client.setblocking(False)
            tunnel = Tunnel(self, client, address)
            self.tunnels.add(tunnel)
            tunnel.start()

    def break_down(self, error: Exception) -> None:
        """Our code for a client raised while it was accepted: the others are still to be."""
        if self._sock is not None:
            self.worker.reactor.watch(self._sock.fileno(), READ, self)

    def _pause_accepting(self, sock: socket.socket, error: OSError) -> None:
        """Out of descriptors, or memory: the backlog holds the clients meanwhile."""
        self.worker.log.error("accept_failed", listener=self.name, error=error.strerror, paused_s=ACCEPT_PAUSE_S)
        self.worker.reactor.forget(sock.fileno())
        self.worker.loop.call_later(ACCEPT_PAUSE_S, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self._sock is not None:
            self.worker.reactor.watch(self._sock.fileno(), READ, self)

    def tick(self) -> None:
        """Once a second. Nothing here is counted over time."""

    def done(self, tunnel: Tunnel, reason: str) -> None:
        """A connection has ended: count and log it."""
        self.tunnels.discard(tunnel)
        now = monotonic()
        self.duration.observe(now - tunnel.started)
        if reason:
            self.failed += 1
        if self.access_log.enabled:
            self.access_log.add(encode(_record(tunnel, reason, now)), bool(reason))
        if self.draining and not self.tunnels:
            self.drained.set()

    def stop_accepting(self) -> None:
        """Close the listening socket. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self.worker.reactor.closing(sock.fileno())
            sock.close()

    def drain(self) -> None:
        """What is open may finish."""
        self.draining = True
        for tunnel in [one for one in self.tunnels if one.state in (State.PRELUDE, State.LINGERING)]:
            tunnel.abort()
        if not self.tunnels:
            self.drained.set()

    def abort(self) -> int:
        """Cut what is open."""
        left = list(self.tunnels)
        for tunnel in left:
            tunnel.abort()
        return len(left)

    def export(self, snapshot: Snapshot) -> None:
        """This listener's samples."""
        name = self.name
        snapshot.add("connections_open", len(self.tunnels), side="downstream", listener=name)
        snapshot.add("connections_accepted", self.accepted, listener=name)
        snapshot.add("connections_refused", self.refused, listener=name)
        snapshot.add("tls_handshake_failures", self.tls_failures, listener=name)
        live = [one.relay for one in self.tunnels if one.relay is not None]
        snapshot.add(
            "tunnel_bytes", self.bytes_up + sum(relay.up.bytes for relay in live), listener=name, direction="up"
        )
        snapshot.add(
            "tunnel_bytes", self.bytes_down + sum(relay.down.bytes for relay in live), listener=name, direction="down"
        )
        ended = self.accepted - self.refused - len(self.tunnels)
        snapshot.add("tunnel_connections", ended - self.failed, listener=name, result="ok")
        snapshot.add("tunnel_connections", self.failed, listener=name, result="failed")

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        return {
            "name": self.name,
            "protocol": self.section.protocol,
            "connections": len(self.tunnels),
            "accepted": self.accepted,
            "failed": self.failed,
            "draining": self.draining,
        }


def _record(tunnel: Tunnel, reason: str, now: float) -> AccessRecord:
    record = AccessRecord(
        tunnel.listener.access_log.timestamp(now).decode(),
        tunnel.listener.name,
        tunnel.client,
        host=tunnel.server_name,
        protocol=tunnel.listener.section.protocol,
    )
    record.total = int((now - tunnel.started) * 1e6) / 1e3
    relay = tunnel.relay
    if relay is not None:
        record.bytes_in, record.bytes_out = relay.up.bytes, relay.down.bytes
    target = tunnel.target
    if target is not None:
        record.upstream = tunnel.route.upstream
        record.region = target.region.name
        record.endpoint = str(target.endpoint)
    record.attempts = len(tunnel.tried)
    if reason:
        record.error = "tunnel"
        record.details = reason
    return record
