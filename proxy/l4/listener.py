"""L4 listeners: `tcp` (plain or terminated TLS in, plain or TLS out) and `sni` (TLS passed through by server name).

It owns the listening socket, accepts in batches, and counts and logs what has ended; what becomes of a client in
between is `tunnel`'s.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.loop.reactor import READ
from proxy.observe.access_log import AccessRecord, encode
from proxy.observe.metrics import ListenerCounters
from routing.table import RouteTable

from .tunnel import Tunnel, TunnelOwner

if TYPE_CHECKING:
    from proxy.downstream.base import ListenerSettings
    from proxy.loop.loop import Loop
    from proxy.observe.access_log import AccessLog
    from proxy.observe.metrics import Snapshot
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.model import Route

ACCEPT_BATCH: Final = 16
ACCEPT_PAUSE_S: Final = 0.1


class TunnelListener(TunnelOwner):
    """One `tcp` or `sni` listener of one worker."""

    def __init__(self, name: str, settings: ListenerSettings, *, loop: Loop, log: Any, access_log: AccessLog) -> None:
        super().__init__(name, settings, turn=loop.turn, timers=loop.timers, log=log, counters=ListenerCounters())
        self.reactor = loop.reactor
        self.access_log = access_log
        self.table: RouteTable[Route] = RouteTable(())
        self.upstreams: dict[str, UpstreamRuntime] = {}
        self.failed = 0
        self.bytes_up = self.bytes_down = 0
        self._loop = loop
        self._sock: socket.socket | None = None

    async def open(self, sock: socket.socket) -> None:
        """Begin to accept."""
        self._sock = sock
        if sock.family != socket.AF_UNIX:  # what is accepted inherits it (tcp(7))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reactor.watch(sock.fileno(), READ, self)

    def route(self, routes: tuple[Route, ...], upstreams: dict[str, UpstreamRuntime], *, warm: bool = True) -> None:
        """Swap in routes; connections under way keep theirs. `warm`: open the upstreams' pools."""
        self.table = RouteTable(routes)
        self.upstreams = upstreams
        for upstream in {route.upstream for route in routes} if warm else ():
            upstreams[upstream].open_socket_pools(passthrough=self.settings.protocol == "sni")

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
            self.counters.accepted += 1
            if len(self.connections) >= self.settings.connection_limit:
                self.counters.refused += 1
                client.close()
                continue
            client.setblocking(False)
            tunnel = Tunnel(self, client, address)
            self.connections.add(tunnel)
            tunnel.start()

    def break_down(self, error: Exception) -> None:
        """Our code for a client raised while it was accepted: the others are still to be."""
        if self._sock is not None:
            self.reactor.watch(self._sock.fileno(), READ, self)

    def _pause_accepting(self, sock: socket.socket, error: OSError) -> None:
        """Out of descriptors, or memory: the backlog holds the clients meanwhile."""
        self.log.error("accept_failed", listener=self.name, error=error.strerror, paused_s=ACCEPT_PAUSE_S)
        self.reactor.forget(sock.fileno())
        self._loop.events.call_later(ACCEPT_PAUSE_S, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self._sock is not None:
            self.reactor.watch(self._sock.fileno(), READ, self)

    def done(self, tunnel: Tunnel, reason: str) -> None:
        """A connection has ended: count and log it."""
        self.left(tunnel)
        relay = tunnel.relay
        if relay is not None:
            self.bytes_up += relay.up.bytes
            self.bytes_down += relay.down.bytes
        if reason:
            self.failed += 1
        if self.access_log.enabled:
            self.access_log.add(encode(_record(tunnel, self.access_log, reason, monotonic())), bool(reason))

    def stop_accepting(self) -> None:
        """Close the listening socket. Idempotent."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self.reactor.closing(sock.fileno())
            sock.close()

    def export(self, snapshot: Snapshot) -> None:
        """This listener's samples."""
        super().export(snapshot)
        name, counters = self.name, self.counters
        live = [one.relay for one in self.connections if one.relay is not None]
        snapshot.add(
            "tunnel_bytes", self.bytes_up + sum(relay.up.bytes for relay in live), listener=name, direction="up"
        )
        snapshot.add(
            "tunnel_bytes", self.bytes_down + sum(relay.down.bytes for relay in live), listener=name, direction="down"
        )
        ended = counters.accepted - counters.refused - len(self.connections)
        snapshot.add("tunnel_connections", ended - self.failed, listener=name, result="ok")
        snapshot.add("tunnel_connections", self.failed, listener=name, result="failed")

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        return {**super().status(), "accepted": self.counters.accepted, "failed": self.failed}


def _record(tunnel: Tunnel, access_log: AccessLog, reason: str, now: float) -> AccessRecord:
    record = AccessRecord(
        access_log.timestamp(now).decode(),
        tunnel.listener.name,
        tunnel.client,
        host=tunnel.server_name,
        protocol=tunnel.listener.settings.protocol,
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
