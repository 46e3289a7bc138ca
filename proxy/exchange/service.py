"""What the requests of one listener share: its routes and where they lead, and the books in which each ends.

It never looks into a request that is under way. Requests keep the bound route that they were given; a reload binds
anew.
"""

from __future__ import annotations

from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING

from proxy.errors import Kind, ProxyError
from proxy.http.serving import RequestService
from proxy.observe.metrics import ListenerCounters
from routing.table import RouteTable

if TYPE_CHECKING:
    from proxy.http.message import RequestHead
    from proxy.loop.timers import Timers
    from proxy.observe.access_log import AccessLog
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.hedge import Budget
    from routing.model import Match, Route


class BoundRoute:
    """A route with what it leads to: made once per configuration."""

    __slots__ = ("budget", "match", "route", "upstream")

    def __init__(self, route: Route, upstream: UpstreamRuntime, now: float) -> None:
        self.route = route
        self.match: Match = route.match
        self.upstream = upstream
        self.budget: Budget = upstream.balancer.budget(route.hedge, route.retry, now)  # of routes with these settings

    def __repr__(self) -> str:
        return f"<BoundRoute {self.match} to {self.upstream.name}>"


class Service(RequestService):
    """`name`: the listener's."""

    __slots__ = ("_date", "_date_at", "access_log", "counters", "name", "table", "timers", "upstreams")

    def __init__(self, name: str, timers: Timers, access_log: AccessLog) -> None:
        self.name = name
        self.timers = timers
        self.access_log = access_log
        self.counters = ListenerCounters()
        self.table: RouteTable[BoundRoute] = RouteTable(())
        self.upstreams: dict[str, UpstreamRuntime] = {}
        self._date = b""
        self._date_at = -1

    def __repr__(self) -> str:
        return f"<Service of listener {self.name}: {self.table}>"

    def route(self, routes: tuple[Route, ...], upstreams: dict[str, UpstreamRuntime], *, warm: bool = True) -> None:
        """Swap in a new configuration's routes; requests under way keep theirs. `warm`: open the upstreams' pools."""
        now = monotonic()
        self.table = RouteTable([BoundRoute(route, upstreams[route.upstream], now) for route in routes])
        self.upstreams = upstreams
        if warm:
            for name in {route.upstream for route in routes}:
                upstreams[name].open_pools()

    def no_route(self, head: RequestHead) -> ProxyError:
        """The 404's text."""
        host, path = head.authority.decode("latin-1"), head.target.decode("latin-1")
        method = head.method.decode("latin-1")
        return ProxyError(Kind.NO_ROUTE, f"no route of listener {self.name} matches {method} {host}{path[:200]}")

    def date(self) -> bytes:
        """The `date` field's value (RFC 9110 section 6.6.1), made once a second."""
        now = int(monotonic())
        if now != self._date_at:
            self._date_at, self._date = now, formatdate(usegmt=True).encode()
        return self._date
