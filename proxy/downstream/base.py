"""What listeners of every kind have in common: settings, connections, the end, and what all of them count.

    accepting ── stop_accepting ──> draining (`drain`) ──> drained (the event)
                                        └── `abort` cuts what is left

A reload replaces `settings`, one frozen value: connections under way keep what they have looked up already. It never
accepts, and never reads from a client: what a client is, and how it is accepted, is its subclass's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from proxy.http.h1 import H1Limits

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from proxy.config import Config, ListenerSection
    from proxy.loop.timers import Timers
    from proxy.loop.turn import Turn
    from proxy.observe.metrics import ListenerCounters, Snapshot
    from tlscache.context import ServerContext


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """What a config says of one listener, in the form that its connections use."""

    limits: H1Limits
    protocol: str = "http"
    header_timeout_s: float = 10.0
    connection_limit: int = 256
    tls: ServerContext | None = None
    proxy_protocol: bool = False
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    via_name: bytes = b"onetrip"
    instance: bytes = b"0"
    """What tells this proxy from others of its name."""

    @classmethod
    def of(
        cls, config: Config, section: ListenerSection, contexts: Mapping[str, ServerContext], instance: str
    ) -> ListenerSettings:
        """Those of one section; `instance` where the config names none."""
        limits = config.limits
        return cls(
            protocol=section.protocol,
            limits=H1Limits(header_bytes=limits.header_bytes, headers=limits.headers, body_bytes=limits.body_bytes),
            header_timeout_s=limits.header_timeout,
            connection_limit=limits.connections,
            tls=contexts.get(section.name),
            proxy_protocol=section.proxy_protocol,
            trusted=section.trusted,
            instance=(config.instance or instance).encode(),
        )

    def trusts(self, address: str) -> bool:
        """Whether a client's own claims (`x-forwarded-*`, `onetrip-debug`) count. A Unix socket's do."""
        if not address:
            return True
        ip = ip_address(address.partition("%")[0])
        return any(ip in network for network in self.trusted)


class Client(Protocol):
    """A client's connection, as its listener sees it."""

    def drain(self) -> None:
        """Finish what is under way, take nothing new."""

    def abort(self) -> None:
        """End at once."""


C = TypeVar("C", bound=Client)


class BaseListener(Generic[C]):
    """One listener of one worker."""

    def __init__(
        self,
        name: str,
        settings: ListenerSettings,
        *,
        turn: Turn,
        timers: Timers,
        log: Any,
        counters: ListenerCounters,
    ) -> None:
        self.name = name
        self.settings = settings
        self.turn = turn
        self.timers = timers
        self.log = log
        self.counters = counters
        self.connections: set[C] = set()
        self.draining = False
        self.drained = asyncio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self.connections)} connections>"

    # -- what a subclass does ----------------------------------------------------------------------

    async def open(self, sock: socket.socket) -> None:
        """Begin to accept. OSError where the socket can't."""
        raise NotImplementedError

    def stop_accepting(self) -> None:
        """Close the listening socket. Idempotent."""
        raise NotImplementedError

    def tick(self) -> None:
        """A second has passed."""

    # -- settings ----------------------------------------------------------------------------------

    def adopt(self, settings: ListenerSettings) -> None:
        """A reload changed this listener's settings: new requests and connections follow them."""
        self.settings = settings

    # -- the end -----------------------------------------------------------------------------------

    def left(self, connection: C) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self.drained.set()

    def drain(self) -> None:
        """Finish what is open, take nothing new."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        if not self.connections:
            self.drained.set()

    def abort(self) -> int:
        """Cut what is still open. Returns how many connections that was."""
        left = list(self.connections)
        for connection in left:
            connection.abort()
        return len(left)

    # -- questions ---------------------------------------------------------------------------------

    def export(self, snapshot: Snapshot) -> None:
        """The samples of every kind of listener."""
        counters, name = self.counters, self.name
        snapshot.add("connections_open", len(self.connections), side="downstream", listener=name)
        snapshot.add("connections_accepted", counters.accepted, listener=name)
        snapshot.add("connections_refused", counters.refused, listener=name)
        snapshot.add("tls_handshake_failures", counters.tls_failures, listener=name)

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        return {
            "name": self.name,
            "protocol": self.settings.protocol,
            "connections": len(self.connections),
            "draining": self.draining,
        }
