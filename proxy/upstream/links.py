"""Warm links for L4: connected, handshaken sockets to an endpoint (`link`), kept ready and dialled on demand.

A new client connection of a `tcp` listener gets a socket that is already connected (and through its TLS handshake),
so that its first byte is one round trip from its answer. A server that speaks first has its greeting waiting in the
kernel's buffer.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.errors import ProxyError
from proxy.observe.metrics import PoolCounters

from .dials import Dials, expiry
from .link import Link, LinkOwner, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.net.resolver import SockAddress
    from proxy.observe.metrics import Snapshot
    from routing.balancer import EndpointState
    from routing.model import Endpoint
    from tlscache.cache import EndpointSessions
    from tlscache.engine import TLSEngine

    from .contract import PoolContext
    from .reach import Reach
    from .settings import PoolSettings

LENT_MAX: Final = 64
TICKETS_WAIT_S: Final = 5.0


class SocketPool(LinkOwner):
    """Warm links to one endpoint."""

    def __init__(
        self,
        context: PoolContext,
        target: EndpointState,
        settings: PoolSettings,
        reach: Reach,
        counters: PoolCounters,
        tls: bool,
    ) -> None:
        self.context = context
        self.target = target
        self.tls = tls
        self._address = _fixed_address(target.endpoint)
        self.counters = counters
        self.idle: list[Link] = []
        self.dials = Dials(context, target, counters)
        self.open = 0
        self.closed = False
        self._lent: deque[tuple[float, TLSEngine, EndpointSessions]] = deque(maxlen=LENT_MAX)
        self._set(settings, reach)

    def __repr__(self) -> str:
        counts = f"{len(self.idle)} idle, {self.open} open, {self.dials.under_way} dialling"
        return f"<SocketPool {self.target.endpoint}: {counts}>"

    def _set(self, settings: PoolSettings, reach: Reach) -> None:
        self.settings = settings
        self.reach = reach
        self.socket_options = reach.tls_socket_options if self.tls else reach.socket_options
        # A PROXY header stands before the handshake, and names the client.
        self.warm = 0 if reach.proxy_protocol != "off" and self.tls else settings.warm

    def adopt(self, settings: PoolSettings, reach: Reach) -> None:
        """A reload changed how many links there are, or how long they live: those that exist stay."""
        older = self.settings.max_age_s - settings.max_age_s
        for link in self.idle:
            link.expires -= older
        self._set(settings, reach)
        self.dials.again_at = 0.0

    def start(self) -> None:
        """Dial the warm links."""
        self.dials.first_round = self.warm
        for _ in range(self.warm):
            self._refill_one(first=True)

    def take(self) -> Link | None:
        """A ready link, or None."""
        while self.idle:
            link = self.idle.pop()
            self.target.ready -= 1
            if link.alive:
                self.counters.reused += 1
                return link
            link.close()
        return None

    def lent(self) -> None:
        """A client has one of the links: it is replaced."""
        self.open += 1
        self.refill()

    def ended(self) -> None:
        """That connection is over."""
        self.open -= 1
        self.refill()

    def dial(self, on_done: Callable[[Link], None], preface: bytes = b"", *, resume: bool = True) -> Link:
        """A new link for the caller; `on_done` is called once it is ready or has failed (`error`)."""
        endpoint = self.target.endpoint
        sessions = self.reach.sessions_of(endpoint) if self.tls else None
        link = Link(self, on_done, preface, sessions, resume)
        address = self._address
        if address is None:
            known = self.reach.addresses(endpoint)
            if known is None or len(known) > 1 or self.reach.is_old(endpoint):
                self.context.background.start(self._dial_slowly(link), f"dial {endpoint}")
                return link
            address = known[0]
        link.dial(address)
        return link

    async def _dial_slowly(self, link: Link) -> None:
        """Where the name is not known yet, or has several addresses to race."""
        endpoint, limit_s = self.target.endpoint, self.settings.connect_s
        try:
            async with asyncio.timeout(limit_s):
                sock, _, seconds = await self.reach.open_socket(endpoint, self.socket_options)
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
        self.dials.under_way += 1

        def done(link: Link) -> None:
            self.dials.ended(first)
            self._refilled(link)
            if first:
                self.context.on_warm_progress()

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
        link.expires = expiry(now, self.settings.max_age_s)
        self.idle.append(link)
        self.target.ready += 1
        link.rest()

    def probe(self, future: asyncio.Future[float | None]) -> None:
        """Dial once; the link stays warm. The future gets the seconds that the dial took, or its ProxyError; None where
        `max_connections` leaves no room.
        """
        if self.open + len(self.idle) + self.dials.under_way >= self.settings.max_connections:
            if not self.idle:
                future.set_result(None)
                return
            self.target.ready -= 1
            self.idle.pop(0).close()

        def done(link: Link) -> None:
            self.dials.ended(False)
            self._refilled(link)
            if future.done():
                return
            if link.error is not None:
                future.set_exception(link.error)
            else:
                future.set_result(max(link.seconds, 1e-6))

        self.dials.under_way += 1
        self.dial(done)

    def opened(self, link: Link) -> None:
        """A dial succeeded: count it."""
        now = monotonic()
        balancer = self.context.balancer
        self.dials.opened(link.handshake)
        self.counters.tcp.observe(link.seconds)
        balancer.observe_connect(self.target, now, True, link.seconds, "tcp")
        if link.engine is not None:
            tls_s = now - link.born - link.seconds
            self.counters.tls.observe(tls_s)
            balancer.observe_connect(self.target, now, True, tls_s, "tls")

    def failed(self, error: ProxyError) -> None:
        """A dial failed."""
        self.dials.failed(error)

    def lost(self, link: Link) -> None:
        """An idle link died."""
        if link in self.idle:
            self.idle.remove(link)
            self.target.ready -= 1
            if monotonic() - link.born < 1.0:
                self.dials.back_off()  # an endpoint that hangs up at once must not be dialled in a loop
            self.refill()

    def refill(self) -> None:
        """Dial what is missing."""
        if self.closed or monotonic() < self.dials.again_at:
            return
        room = self.settings.max_connections - self.open - len(self.idle) - self.dials.under_way
        for _ in range(min(room, self.warm - len(self.idle) - self.dials.under_way)):
            self._refill_one()

    def _follow_name(self) -> None:
        """Links to addresses that the endpoint's name no longer has are replaced one by one."""
        if self._address is None:
            hosts = self.dials.hosts_if_moved(self.reach.addresses(self.target.endpoint))
            for link in self.idle if hosts is not None else ():
                if hosts is not None and link.peer_host not in hosts:
                    link.expires = 0.0

    def tick(self, now: float) -> None:
        """Now and then: replace what is old, refill."""
        self._follow_name()
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
        if self.tls and len(self.idle) >= self.warm > 0 and not self.dials.under_way and not self.closed:
            held = self.reach.sessions_of(self.target.endpoint)
            if held is not None and held.lacks_tickets(self.warm, now):
                self._refill_one(resume=False)

    def export(self, snapshot: Snapshot, upstream: str) -> None:
        """This pool's samples."""
        region, endpoint = self.target.region.name, str(self.target.endpoint)
        snapshot.add("upstream_pool_idle", len(self.idle), upstream=upstream, region=region, endpoint=endpoint)
        snapshot.add("connections_open", self.open + len(self.idle), side="upstream", upstream=upstream)

    def close(self) -> None:
        """No new connections."""
        self.closed = True
        for link in self.idle:
            self.target.ready -= 1
            link.close()
        self.idle.clear()

    def tls_error(self, engine: TLSEngine) -> ProxyError:
        """Why a handshake failed."""
        return self.reach.tls_error(self.target.endpoint, engine)

    def connect_s(self) -> float:
        """How long a dial may take."""
        return self.settings.connect_s

    @property
    def over(self) -> bool:
        """Closed, and nothing is under way any more."""
        return self.closed and not self.open and not self.dials.under_way


def _fixed_address(endpoint: Endpoint) -> SockAddress | None:
    """Where the endpoint is a Unix socket or an IP address; None for a name."""
    if endpoint.path:
        return socket.AF_UNIX, endpoint.path
    try:
        version = ip_address(endpoint.host).version
    except ValueError:
        return None
    return (socket.AF_INET if version == 4 else socket.AF_INET6), (endpoint.host, endpoint.port)
