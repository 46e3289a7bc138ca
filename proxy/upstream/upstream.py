"""One upstream of one worker: its balancer, a pool per endpoint, and how to reach the endpoints."""

from __future__ import annotations

import random
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.errors import Kind, ProxyError
from proxy.http.h1 import H1ClientCodec, H1Limits
from proxy.http.h2 import STREAMS_BEFORE_SETTINGS, H2ClientCodec, H2Limits
from proxy.net.dial import SocketOptions
from proxy.observe.metrics import UpstreamCounters
from routing.balancer import Balancer, Change, DrainState, EndpointState
from tlscache.context import ClientContext, ClientSettings
from tlscache.fault import FaultKind

from .health import Health
from .links import SocketPool
from .pool import Pool, PoolSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.config import UpstreamSection
    from proxy.exchange.forward import Hop
    from proxy.http.message import RequestHead
    from proxy.http.stream import Codec
    from proxy.loop.reactor import Reactor
    from proxy.loop.timers import Timers
    from proxy.loop.turn import Turn
    from proxy.net.dial import Background, Resolver
    from proxy.observe.metrics import Snapshot
    from routing.model import Endpoint, Upstream
    from tlscache.engine import TLSEngine

    from .sessions import EndpointSessions, Sessions


ALPN: Final[dict[str, tuple[bytes, ...]]] = {
    "auto": (b"h2", b"http/1.1"),
    "h1": (b"http/1.1",),
    "h2": (b"h2",),
    "tcp": (),
}
"""What connections to an upstream offer, by its `protocol`."""


class UpstreamRuntime:
    """What requests to one upstream share. Made from its section of the config; a changed section makes a new one."""

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
        limits: H1Limits,
        sessions: Sessions,
        log: Any,
        on_warm: Callable[[], None],
    ) -> None:
        self.model = model
        self.name = model.name
        self.section = section
        self.turn = turn
        self.timers = timers
        self.reactor = reactor
        self.background = background
        self.resolver = resolver
        self.codec_limits = limits
        self.sessions = sessions
        self._sessions_of: dict[tuple[Endpoint, bool], EndpointSessions] = {}
        self._tls_apart: ClientContext | None = None
        self.log = log
        self.on_warm_progress = on_warm
        self.balancer = Balancer(model, random.Random(), monotonic())
        self.counters = UpstreamCounters(region.name for region in model.regions)
        self.session_key = model.session_key
        self.socket_options = SocketOptions(keepalive_s=section.pool.keepalive)
        # With TLS the ClientHello rides in the SYN; without it a warm connection would stay unconnected.
        self.tls_socket_options = replace(self.socket_options, fast_open=section.fast_open and section.tls is not None)
        settings_tls = client_settings(section)
        self.tls = ClientContext(settings_tls) if settings_tls is not None else None
        self.scheme = b"https" if self.tls is not None else b"http"
        settings = PoolSettings(
            warm=section.pool.warm,
            max_connections=section.pool.max_connections,
            max_age_s=section.pool.max_age,
            idle_s=section.timeouts.idle,
            keepalive_s=section.pool.keepalive,
            connect_s=section.timeouts.connect,
            streams=STREAMS_BEFORE_SETTINGS if section.protocol == "h2" else 1,
        )
        self.pools = [Pool(self, target, settings) for target in self.balancer.endpoints]
        for pool in self.pools:
            pool.target.pool = pool
        self.health = Health(self)
        self._started = False
        self._pool_settings = settings
        self._socket_pools: dict[bool, list[SocketPool]] = {}
        self._reported: dict[Endpoint, str] = {}

    def __repr__(self) -> str:
        return f"<UpstreamRuntime {self.name}: {self.pools}>"

    # -- connections -------------------------------------------------------------------------------

    def open_pools(self) -> None:
        """An HTTP listener routes here: begin to dial the warm connections of every endpoint. Idempotent."""
        if not self._started:
            self._started = True
            for pool in self.pools:
                pool.start()

    def open_socket_pools(self, *, passthrough: bool) -> list[SocketPool]:
        """An L4 listener routes here. `passthrough`: the client's own TLS goes through. Idempotent."""
        pools = self._socket_pools.get(passthrough)
        if pools is None:
            tls = self.tls is not None and not passthrough
            pools = self._socket_pools[passthrough] = [
                SocketPool(self, target, self._pool_settings, self.reactor, tls) for target in self.balancer.endpoints
            ]
            for pool in pools:
                pool.start()
        return pools

    def socket_pool(self, target: EndpointState, *, passthrough: bool) -> SocketPool:
        """The L4 links to an endpoint."""
        return self.open_socket_pools(passthrough=passthrough)[self.balancer.endpoints.index(target)]

    @property
    def warm(self) -> bool:
        """The first round of dials is over, whatever became of each."""
        links = [pool for pools in self._socket_pools.values() for pool in pools]
        return not any(pool.first_round for pool in self.pools) and not any(pool.first_round for pool in links)

    def sessions_of(self, endpoint: Endpoint, *, apart: bool = False) -> EndpointSessions | None:
        """The TLS sessions of connections to the endpoint; None for plaintext. `apart`: of those for upgrades."""
        tls = self.tls
        if tls is None:
            return None
        found = self._sessions_of.get((endpoint, apart))
        if found is None:
            if apart:
                tls = self._tls_apart = self._tls_apart or ClientContext(replace(tls.settings, alpn=ALPN["h1"]))
            found = self._sessions_of[endpoint, apart] = self.sessions.of(endpoint, tls)
        return found

    @property
    def dials_apart(self) -> bool:
        """An upgrade that HTTP/2 connections to the endpoints don't take may go over HTTP/1.1."""
        return self.tls is not None and self.section.protocol == "auto"

    def sessions_wanted(self) -> list[tuple[EndpointSessions, int]]:
        """How many sessions each endpoint's warm connections will take."""
        count = self.section.pool.warm
        found = [self.sessions_of(target.endpoint) for target in self.balancer.endpoints]
        return [(one, count) for one in found if one is not None]

    def authority(self, endpoint: Endpoint) -> bytes:
        """What a request of our own puts into `host`."""
        if self.section.tls is not None and self.section.tls.server_name:
            return self.section.tls.server_name.encode()
        return str(endpoint).encode() if not endpoint.path else b"localhost"

    def new_codec(self, alpn: bytes, streams: int = 1) -> Codec:
        """The codec for what was agreed on; without TLS, HTTP/2 is spoken where the config says that the origin knows
        it. `streams`: how many the endpoint took at once on an earlier connection.
        """
        if alpn == b"h2" or self.section.protocol == "h2":
            limits = self.codec_limits
            return H2ClientCodec(
                H2Limits(header_bytes=limits.header_bytes, headers=limits.headers),
                streams if streams > 1 else STREAMS_BEFORE_SETTINGS,
            )
        return H1ClientCodec(self.codec_limits)

    def tls_error(self, endpoint: Endpoint, engine: TLSEngine) -> ProxyError:
        """Why a handshake with the endpoint failed."""
        fault = engine.error
        kind = Kind.CERTIFICATE if fault is not None and fault.kind is FaultKind.CERTIFICATE else Kind.TLS
        return ProxyError(kind, f"{endpoint}: {fault or 'the TLS handshake was cut off'}", unprocessed=True)

    def on_dial_failed(self, pool: Pool | SocketPool, error: ProxyError) -> None:
        """Log the first failure of a kind per endpoint, and again once it changes."""
        endpoint = pool.target.endpoint
        if self._reported.get(endpoint) != error.details:
            self._reported[endpoint] = error.details
            self.log.warning(
                "dial_failed",
                upstream=self.name,
                region=pool.target.region.name,
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
            field, _, value = pair.strip().partition(b"=")
            if field == key.name.encode():
                return value
        return None

    def nothing_available(self, now: float) -> str:
        """Why no endpoint can take a request: the 503's text."""
        states = ", ".join(f"{r.name} {r.state.name.lower()} {r.in_flight} in flight" for r in self.balancer.regions)
        return f"no region of upstream {self.name} can take a request now: {states}"

    def add_sessions(self, status: dict[str, Any]) -> dict[str, Any]:
        """Write into a status how many TLS sessions are held for each endpoint."""
        held = {str(one.endpoint): self.sessions_of(one.endpoint) for one in self.balancer.endpoints}
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
        for links in self._socket_pools.values():
            for link_pool in links:
                link_pool.tick(now)
        if self._started or self._socket_pools:
            self.health.tick(now, not self._started)

    def _rescue(self, region: str, now: float) -> None:
        """Requests that wait for a drained region go elsewhere too."""
        for pool in self.pools:
            if pool.target.region.name == region:
                for attempt in pool.attempts():
                    attempt.exchange.rescue(pool.target.region, now)

    def measure(self, now: float) -> None:
        """Once a second: round-trip times from the kernel, and what codecs count over time."""
        for pool in self.pools:
            pool.measure_rtt(now)
            for connection in pool.shared:
                connection.codec.tick()
                if connection.codec.pending:
                    connection.touch()
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
        tls = self.tls
        if tls is None:
            return None
        before = tls.scope_material
        problem = tls.reload_if_changed()
        if tls.scope_material != before:
            self._tls_apart = None
            self._sessions_of.clear()  # what was verified in another way proves nothing now
        return problem

    def carry_over(self, old: UpstreamRuntime) -> None:
        """A changed section replaces `old`: keep what it had learnt."""
        self.balancer.carry_over(old.balancer, monotonic())

    def export(self, snapshot: Snapshot, now: float) -> None:
        """This upstream's samples."""
        name = self.name
        counters = self.counters
        for target in self.balancer.endpoints:
            held = self.sessions_of(target.endpoint)
            if held is not None:
                labels = {"upstream": name, "region": target.region.name, "endpoint": str(target.endpoint)}
                snapshot.add("tls_sessions_stored", held.held, **labels)
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
        for pool in self.pools:
            pool.export(snapshot, name, now)
        for links in self._socket_pools.values():
            for link_pool in links:
                link_pool.export(snapshot, name)

    def close(self) -> None:
        """No more requests come; those under way finish."""
        self.health.close()
        for pool in self.pools:
            pool.close()
        for links in self._socket_pools.values():
            for link_pool in links:
                link_pool.close()

    def target_of(self, endpoint: Endpoint) -> EndpointState | None:
        """The state of an endpoint, by its address."""
        return next((target for target in self.balancer.endpoints if target.endpoint == endpoint), None)


def client_settings(section: UpstreamSection) -> ClientSettings | None:
    """TLS towards an upstream's endpoints; None for plaintext."""
    tls = section.tls
    if tls is None:
        return None
    alpn = ALPN[section.protocol]
    return ClientSettings(
        server_name=tls.server_name,
        ca=_text(tls.ca),
        certificate=_text(tls.certificate),
        key=_text(tls.key),
        verify=tls.verify,
        alpn=alpn,
        spiffe_id=tls.spiffe_id,
        early_data=tls.early_data,
        groups=":".join(tls.groups) or None,
    )


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
