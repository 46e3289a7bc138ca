"""One upstream of one worker: its balancer, a pool per endpoint, and how to reach the endpoints.

It lives as long as its name stands in the config: a reload changes it in place (`prepare`, then `adopt`), so that
whoever holds it (exchanges, attempts, tunnels) goes on with what is right now. It owns the link between an endpoint and
its pool: `_link` is the only place that writes it, and what `balancer.endpoints` has and what the pools have is the
same at every moment.
"""

from __future__ import annotations

import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.errors import Kind, ProxyError
from proxy.observe.metrics import PoolCounters, UpstreamCounters
from routing.balancer import Balancer, Change, DrainState, EndpointState

from .contract import PoolContext, replaced
from .health import Health
from .links import SocketPool
from .pool import Pool
from .reach import Reach
from .settings import PoolSettings, pool_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.config import UpstreamSection
    from proxy.http.message import RequestHead
    from proxy.http.serving import Hop
    from proxy.loop.background import Background
    from proxy.loop.reactor import Reactor
    from proxy.loop.timers import Timers
    from proxy.loop.turn import Turn
    from proxy.net.resolver import Resolver
    from proxy.observe.metrics import Snapshot
    from routing.model import Endpoint, Upstream
    from tlscache.cache import EndpointSessions, Sessions

_STOPPING: Final = ProxyError(Kind.STOPPING, "the proxy is stopping", unprocessed=True)


class UpstreamRuntime:
    """What requests to one upstream share."""

    def __init__(
        self,
        model: Upstream,
        section: UpstreamSection,
        *,
        turn: Turn,
        timers: Timers,
        reactor: Reactor,
        background: Background,
        resolver: Resolver,
        sessions: Sessions,
        log: Any,
        on_warm: Callable[[], None],
    ) -> None:
        self.name = model.name
        self.turn = turn
        self.background = background
        self.resolver = resolver
        self.sessions = sessions
        self.log = log
        self.model = model
        self.section = section
        self.reach = Reach(section, resolver, sessions)
        self.balancer = Balancer(model, random.Random(), monotonic())
        self.context = PoolContext(
            model.name,
            self.balancer,
            turn=turn,
            timers=timers,
            reactor=reactor,
            background=background,
            on_dial_failed=self.on_dial_failed,
            on_warm_progress=on_warm,
        )
        self.counters = UpstreamCounters(region.name for region in model.regions)
        self.session_key = model.session_key
        self.scheme = self.reach.scheme
        self.pool_at: dict[EndpointState, Any] = {}  # a Pool each, until it is over; Any: tests put others there
        self._counted: dict[tuple[str, Endpoint, str], PoolCounters] = {}  # by region, endpoint, and what for
        self._departed: dict[str, PoolCounters] = {}  # by region: of endpoints that went
        self._links: dict[bool, dict[EndpointState, SocketPool]] = {}
        self._leaving: list[Pool | SocketPool] = []  # closed, and not yet without connections
        self._started = False
        self._reported: dict[Endpoint, str] = {}
        self._link(pool_settings(section, self.reach.streams_expected), replace_all=True)
        self.health = Health(self, section.health)

    def __repr__(self) -> str:
        return f"<UpstreamRuntime {self.name}: {self.pools}>"

    # -- reloading ---------------------------------------------------------------------------------

    def prepare(self, section: UpstreamSection) -> Reach:
        """What a changed section needs that can fail. Changes nothing. Raises ContextError."""
        return Reach(section, self.resolver, self.sessions, self.reach)

    def adopt(self, model: Upstream, section: UpstreamSection, reach: Reach) -> None:
        """Go on with another section: endpoints that stay keep what is known of them, and their connections where those
        would be made in the same way now. Requests that wait for an endpoint that went find another.
        """
        now = monotonic()
        balancer = Balancer(model, random.Random(), now)
        balancer.carry_over(self.balancer, now)
        other = reach.identity != self.reach.identity
        self.model, self.section, self.reach = model, section, reach
        self.balancer = self.context.balancer = balancer
        self.session_key = model.session_key
        self.scheme = reach.scheme
        self.counters.know(region.name for region in model.regions)
        self.turn.begin()
        try:
            self._link(pool_settings(section, reach.streams_expected), replace_all=other)
            self.health.adopt(section.health)
        finally:
            self.turn.end()

    def _link(self, settings: PoolSettings, *, replace_all: bool) -> None:
        """Give every endpoint its pool, and let go of those that nobody asks for any more."""
        before = self.pool_at.copy()
        for target in self.balancer.endpoints:
            pool = before.get(target)
            if pool is None or replace_all:
                self.pool_at[target] = fresh = Pool(
                    self.context, target, settings, self.reach, self._counters_of(target, "http")
                )
                if self._started:
                    fresh.start()
            else:
                pool.adopt(settings, self.reach)
        for target, old in before.items():
            if (target.departed or self.pool_at[target] is not old) and not old.closed:
                old.close()
                self._leaving.append(old)
                successor = None if target.departed else self.pool_at[target]
                old.hand_over(successor, replaced(target.endpoint))
        for passthrough, links in self._links.items():
            self._relink(links, passthrough, settings, replace_all=replace_all and not passthrough)

    def _relink(
        self, links: dict[EndpointState, SocketPool], passthrough: bool, settings: PoolSettings, *, replace_all: bool
    ) -> None:
        for target, old in list(links.items()):
            if replace_all or target not in self.balancer.endpoints:
                del links[target]
                old.close()
                self._leaving.append(old)
            else:
                old.adopt(settings, self.reach)
        for target in self.balancer.endpoints:
            if target not in links:
                links[target] = self._new_links(target, settings, passthrough)

    def _new_links(self, target: EndpointState, settings: PoolSettings, passthrough: bool) -> SocketPool:
        tls = self.reach.tls is not None and not passthrough
        counters = self._counters_of(target, "passthrough" if passthrough else "links")
        pool = SocketPool(self.context, target, settings, self.reach, counters, tls)
        pool.start()
        return pool

    def _counters_of(self, target: EndpointState, kind: str) -> PoolCounters:
        """A pool's counters: its successor counts on."""
        return self._counted.setdefault((target.region.name, target.endpoint, kind), PoolCounters())

    def _forget_ended(self) -> None:
        """What closed pools carried is over: those of endpoints that are gone count for their region from now on."""
        self._leaving = [pool for pool in self._leaving if not pool.over]
        for target in [one for one, pool in self.pool_at.items() if one.departed and pool.over]:
            del self.pool_at[target]
        counting = [pool.counters for pool in self.every_pool()]
        counting += [pool.counters for pool in self.every_socket_pool()]
        for key, counters in list(self._counted.items()):
            if not any(counters is one for one in counting):
                self._departed.setdefault(key[0], PoolCounters()).add(self._counted.pop(key))

    # -- connections -------------------------------------------------------------------------------

    def open_pools(self) -> None:
        """An HTTP listener routes here: begin to dial the warm connections of every endpoint. Idempotent."""
        if not self._started:
            self._started = True
            for pool in self.pools:
                pool.start()

    def open_socket_pools(self, *, passthrough: bool) -> dict[EndpointState, SocketPool]:
        """An L4 listener routes here. `passthrough`: the client's own TLS goes through. Idempotent."""
        links = self._links.get(passthrough)
        if links is None:
            settings = pool_settings(self.section, self.reach.streams_expected)
            links = self._links[passthrough] = {
                target: self._new_links(target, settings, passthrough) for target in self.balancer.endpoints
            }
        return links

    @property
    def pools(self) -> list[Pool]:
        """Those of the endpoints that there are."""
        return [self.pool_at[target] for target in self.balancer.endpoints]

    def socket_pool(self, target: EndpointState, *, passthrough: bool) -> SocketPool:
        """The L4 links to an endpoint. Raises ProxyError where a reload took it away."""
        pool = self.open_socket_pools(passthrough=passthrough).get(target)
        if pool is None:
            raise replaced(target.endpoint)
        return pool

    def every_pool(self) -> Iterator[Pool]:
        """Those in use, and those whose last requests go on."""
        yield from self.pools
        for pool in self._leaving:
            if isinstance(pool, Pool):
                yield pool

    def every_socket_pool(self) -> Iterator[SocketPool]:
        """The same of L4."""
        for links in self._links.values():
            yield from links.values()
        for pool in self._leaving:
            if isinstance(pool, SocketPool):
                yield pool

    @property
    def warm(self) -> bool:
        """The first round of dials is over, whatever became of each."""
        links = [pool for pools in self._links.values() for pool in pools.values()]
        return not any(pool.dials.first_round for pool in self.pools) and not any(
            pool.dials.first_round for pool in links
        )

    @property
    def idle(self) -> bool:
        """No request is under way, and no L4 connection."""
        return not any(region.in_flight for region in self.balancer.regions) and not self._leaving

    def sessions_wanted(self) -> list[tuple[EndpointSessions, int]]:
        """How many sessions each endpoint's warm connections will take."""
        count = self.section.pool.warm
        found = [self.reach.sessions_of(target.endpoint) for target in self.balancer.endpoints]
        return [(one, count) for one in found if one is not None]

    def on_dial_failed(self, target: EndpointState, error: ProxyError) -> None:
        """Log the first failure of a kind per endpoint, and again once it changes."""
        endpoint = target.endpoint
        if self._reported.get(endpoint) != error.details:
            self._reported[endpoint] = error.details
            self.log.warning(
                "dial_failed",
                upstream=self.name,
                region=target.region.name,
                endpoint=str(endpoint),
                error=error.kind.label,
                details=error.details,
            )

    # -- requests ----------------------------------------------------------------------------------

    def affinity(self, head: RequestHead, hop: Hop) -> bytes | None:
        """What `session_key` says of this request; None where it lacks it."""
        key = self.session_key
        assert key is not None
        if key.kind == "source":
            return hop.peer
        name = key.name.lower().encode()
        if key.kind == "header":
            return next((value for field, value in head.fields if field == name), None)
        for pair in head.known.get(b"cookie", b"").split(b";"):
            field, _, value = pair.strip(b" \t").partition(b"=")
            if field == key.name.encode():
                return value
        return None

    def nothing_available(self, now: float) -> str:
        """Why no endpoint can take a request: the 503's text."""
        states = ", ".join(f"{r.name} {r.state.name.lower()} {r.in_flight} in flight" for r in self.balancer.regions)
        return f"no region of upstream {self.name} can take a request now: {states}"

    def add_sessions(self, status: dict[str, Any]) -> dict[str, Any]:
        """Write into a status how many TLS sessions are held for each endpoint."""
        held = {str(one.endpoint): self.reach.sessions_of(one.endpoint) for one in self.balancer.endpoints}
        for region in status["regions"]:
            for endpoint in region["endpoints"]:
                sessions = held[endpoint["endpoint"]]
                if sessions is not None:
                    endpoint["tls_sessions"] = sessions.held
        return status

    # -- upkeep ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Every 100 ms: state machines, pools."""
        for change in self.balancer.tick(now):
            self.report(change)
            if change.after is DrainState.DRAINED:
                self._rescue(change.region, now)
        if self._started:
            for pool in self.pools:
                pool.tick(now)
        for links in self._links.values():
            for link_pool in links.values():
                link_pool.tick(now)
        if self._started or self._links:
            self.health.tick(now, not self._started)
        if self._leaving:
            self._forget_ended()

    def _rescue(self, region: str, now: float) -> None:
        """Requests that wait for a drained region go elsewhere too."""
        for pool in self.pools:
            if pool.target.region.name == region:
                for attempt in pool.attempts():
                    attempt.on_drained(now)

    def measure(self, now: float) -> None:
        """Once a second: round-trip times from the kernel, and what codecs count over time."""
        for pool in self.pools:
            pool.measure_rtt(now)
            for connection in pool.stock.shared:
                connection.tick()
        self.health.tick_codecs()

    def report(self, change: Change) -> None:
        """A region changed state: an event with its evidence, and a count."""
        if change.after.name == "DRAINED":
            key = (change.region, change.cause)
            self.counters.drains[key] = self.counters.drains.get(key, 0) + 1
        self.log.warning(
            "region_state",
            upstream=self.name,
            region=change.region,
            before=change.before.name.lower(),
            after=change.after.name.lower(),
            cause=change.cause,
            evidence=change.evidence,
        )

    def reload_certificates(self) -> str | None:
        """Look whether certificate files changed. Returns what is wrong with the new ones (the old ones stay)."""
        return self.reach.reload_certificates()

    def export(self, snapshot: Snapshot, now: float) -> None:
        """This upstream's samples."""
        for _ in self.exporting(snapshot, now):
            pass

    def exporting(self, snapshot: Snapshot, now: float) -> Iterator[None]:
        """The same in steps, since there may be thousands of endpoints."""
        name = self.name
        counters = self.counters
        for target in [*self.balancer.endpoints]:
            held = self.reach.sessions_of(target.endpoint)
            if held is not None:
                labels = {"upstream": name, "region": target.region.name, "endpoint": str(target.endpoint)}
                snapshot.add("tls_sessions_stored", held.held, **labels)
                yield
        for region, histogram in counters.latency.items():
            snapshot.add_histogram("upstream_request_duration_seconds", histogram, upstream=name, region=region)
        for result, count in counters.hedges.items():
            snapshot.add("hedges", count, upstream=name, result=result)
        for (reason, result), count in counters.retries.items():
            snapshot.add("retries", count, upstream=name, reason=reason, result=result)
        for (region, cause), count in counters.drains.items():
            snapshot.add("region_drains", count, upstream=name, region=region, cause=cause)
        for state in self.balancer.regions:
            snapshot.add("region_weight", state.weight, upstream=name, region=state.name)
            snapshot.add("region_state", int(state.state), upstream=name, region=state.name)
            snapshot.add("region_latency_seconds", state.path, upstream=name, region=state.name, kind="rtt")
            snapshot.add("region_latency_seconds", state.service, upstream=name, region=state.name, kind="service")
        for (region, _, _), counted in self._counted.items():
            counted.export(snapshot, name, region)
        for region, counted in self._departed.items():
            counted.export(snapshot, name, region)
        for pool in [*self.every_pool()]:
            pool.export(snapshot, name, now)
            yield
        for link_pool in [*self.every_socket_pool()]:
            link_pool.export(snapshot, name)
            yield

    def close(self) -> None:
        """No more requests come; those under way finish."""
        self.health.close()
        for pool in self.pools:
            pool.close()
            pool.hand_over(None, _STOPPING)
        for links in self._links.values():
            for link_pool in links.values():
                link_pool.close()
