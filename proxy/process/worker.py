"""One worker: everything that one event loop runs. `server` makes workers; nothing else wires the parts together.

A worker holds a snapshot of the config. A reload builds the next snapshot beside it, and only when all of it could be
built (files read, sockets bound) swaps it in: listeners and upstreams that did not change stay as they are, with
their connections and warm pools.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.admin.explain import upstream_status
from proxy.config import Config, diff
from proxy.downstream.listener import Listener
from proxy.http.h1 import H1Limits
from proxy.l4.tunnel import TunnelListener
from proxy.loop.reactor import Reactor
from proxy.loop.timers import Timers
from proxy.loop.turn import Turn
from proxy.net.dial import Background, Resolver
from proxy.observe.access_log import AccessLog
from proxy.observe.metrics import Snapshot
from proxy.upstream.sessions import Sessions
from proxy.upstream.upstream import UpstreamRuntime
from tlscache.context import CertificatePair, ServerContext, ServerSettings

from .rehearsal import rehearse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from proxy.config import ListenerSection
    from routing.model import Upstream
    from tlscache.ticket_keys import TicketKeys

TICK_S: Final = 0.1
MEASURE_S: Final = 1.0
CERTIFICATES_S: Final = 5.0
READY_WAIT_S: Final = 10.0
"""Readiness waits at most this long for warm pools: a region that is down must not keep the others from being served.
"""
BACKLOG: Final = 4096

AnyListener = Listener | TunnelListener


class Worker:
    """All of one process's data plane."""

    def __init__(
        self,
        config: Config,
        log: Any,
        ticket_keys: TicketKeys,
        contexts: dict[str, ServerContext] | None = None,
        index: int = 0,
    ) -> None:
        self.config = config
        self.log = log
        self.index = index
        self.loop = asyncio.get_running_loop()
        self.turn = Turn(self.loop)
        self.timers = Timers(self.loop, self.turn)
        self.reactor = Reactor(self.loop, self.turn)
        self.background = Background(self._task_failed)
        self.resolver = Resolver(self.background)
        self.access_log = _access_log(config)
        self.sessions = Sessions.open(config, worker_count(config), log)
        self.listeners: dict[str, AnyListener] = {}
        self.upstreams: dict[str, UpstreamRuntime] = {}
        self.retired: list[UpstreamRuntime] = []
        self.contexts = contexts if contexts is not None else server_contexts(config, ticket_keys)
        self.ticket_keys = ticket_keys
        self.ready = asyncio.Event()
        self.stopping = False
        self.started_at = monotonic()
        self.reloads = {"ok": 0, "refused": 0}
        self._tick_handle: asyncio.TimerHandle | None = None
        self._next_measure = 0.0
        self._next_certificates = 0.0

    # -- starting ----------------------------------------------------------------------------------

    async def start(self, sockets: dict[str, socket.socket]) -> None:
        """Dial warm pools, begin to accept. Returns once accepting; `ready` is set when the pools are warm (or have had
        their time).
        """
        self.access_log.start(self.loop)
        for name in self.config.upstreams:
            self.upstreams[name] = self._new_upstream(self.config, name)
        await self._prefetch_sessions(self.upstreams.values())
        self._rehearse()
        for section in self.config.listeners:
            await self._open_listener(section, sockets[section.name])
        self._route_listeners()
        self.loop.call_later(READY_WAIT_S, self._become_ready, "some endpoints could not be reached yet")
        self.on_warm()
        self._tick()

    def _rehearse(self) -> None:
        for section in self.config.listeners:
            if section.protocol == "http":
                route = self.config.routes(section)[0]
                model = self.config.routing(route.upstream)
                region = replace(model.regions[0], endpoints=model.regions[0].endpoints[:1], standby=False)
                upstream = self._new_upstream(self.config, route.upstream, replace(model, regions=(region,)))
                listener = self._new_http_listener(section)
                listener.access_log = AccessLog("")
                listener.tls, listener.proxy_protocol = None, False  # requests alone are rehearsed
                rehearse(listener, upstream, route)
                return

    def _new_upstream(self, config: Config, name: str, model: Upstream | None = None) -> UpstreamRuntime:
        return UpstreamRuntime(
            model or config.routing(name),
            config.upstreams[name],
            turn=self.turn,
            timers=self.timers,
            reactor=self.reactor,
            background=self.background,
            resolver=self.resolver,
            limits=H1Limits(header_bytes=256 * 1024, headers=1024),  # what origins send is bounded too, more generously
            sessions=self.sessions,
            log=self.log,
            on_warm=self.on_warm,
        )

    async def _prefetch_sessions(self, upstreams: Iterable[UpstreamRuntime]) -> None:
        await self.sessions.prefetch([wanted for upstream in upstreams for wanted in upstream.sessions_wanted()])

    async def _open_listener(self, section: ListenerSection, sock: socket.socket) -> None:
        if section.protocol == "http":
            listener = self._new_http_listener(section)
            server = await self.loop.create_server(listener.accept, sock=sock, backlog=BACKLOG)
            listener.servers.append(server)
            self.listeners[section.name] = listener
        else:
            tunnel = TunnelListener(section, self.config.limits.connections, self.contexts.get(section.name), self)
            tunnel.open(sock)
            self.listeners[section.name] = tunnel

    def _new_http_listener(self, section: ListenerSection) -> Listener:
        limits = self.config.limits
        return Listener(
            section.name,
            turn=self.turn,
            timers=self.timers,
            access_log=self.access_log,
            log=self.log,
            limits=H1Limits(header_bytes=limits.header_bytes, headers=limits.headers, body_bytes=limits.body_bytes),
            header_timeout=limits.header_timeout,
            connection_limit=limits.connections,
            tls=self.contexts.get(section.name),
            proxy_protocol=section.proxy_protocol,
            trusted=section.trusted,
        )

    def _route_listeners(self) -> None:
        for section in self.config.listeners:
            self.listeners[section.name].route(self.config.routes(section), self.upstreams)

    def on_warm(self) -> None:
        """A first-round dial ended."""
        if not self.ready.is_set() and all(upstream.warm for upstream in self.upstreams.values()):
            self._become_ready("")

    def _become_ready(self, note: str) -> None:
        if not self.ready.is_set() and not self.stopping:
            self.ready.set()
            seconds = round(monotonic() - self.started_at, 3)
            if note:
                self.log.warning("ready", after_s=seconds, note=note)
            else:
                self.log.info("ready", after_s=seconds)

    def _task_failed(self, name: str, error: BaseException) -> None:
        self.log.error("task_failed", task=name, error=repr(error), exc_info=error)

    # -- upkeep ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = monotonic()
        self._tick_handle = self.loop.call_later(TICK_S, self._tick)
        self.turn.begin()
        try:
            for upstream in self.upstreams.values():
                upstream.tick(now)
            if now >= self._next_measure:
                self._next_measure = now + MEASURE_S
                for upstream in self.upstreams.values():
                    upstream.measure(now)
                for listener in self.listeners.values():
                    listener.tick()
            if now >= self._next_certificates:
                self._next_certificates = now + CERTIFICATES_S
                self._reload_certificates()
        finally:
            self.turn.end()

    def _reload_certificates(self) -> None:
        for name, context in self.contexts.items():
            self._report_certificates("listener", name, context.reload_if_changed())
        for name, upstream in self.upstreams.items():
            self._report_certificates("upstream", name, upstream.reload_certificates())

    def _report_certificates(self, what: str, name: str, problem: str | None) -> None:
        if problem:
            self.log.error("certificates_refused", **{what: name}, reason=problem, kept="the ones in use")

    # -- reloading ---------------------------------------------------------------------------------

    async def reload(self, config: Config, sockets: dict[str, socket.socket]) -> list[str]:
        """Swap in another config. `sockets` has those of added and rebound listeners. Returns the keys that need a
        restart.

        Raises (OSError, ContextError) before anything has changed.
        """
        change = diff(self.config, config)
        contexts = server_contexts(config, self.ticket_keys, self._kept_contexts(config))
        upstreams: dict[str, UpstreamRuntime] = {}
        fresh: list[UpstreamRuntime] = []
        for name in config.upstreams:
            if name in change.upstreams_unchanged:
                upstreams[name] = self.upstreams[name]
            else:
                upstreams[name] = self._new_upstream(config, name)
                fresh.append(upstreams[name])
        self.sessions.resize(config)
        await self._prefetch_sessions(fresh)
        self.config = config
        self.contexts = contexts
        for upstream in fresh:
            if (old := self.upstreams.get(upstream.name)) is not None:
                upstream.carry_over(old)
        for name, old in self.upstreams.items():
            if upstreams.get(name) is not old:
                old.close()
        self.upstreams = upstreams
        await self._reload_listeners(config, sockets, (*change.listeners_removed, *change.listeners_rebound))
        if "access_log" in change.other:
            self.access_log.close()
            self.access_log = _access_log(config)
            self.access_log.start(self.loop)
            for listener in self.listeners.values():
                listener.access_log = self.access_log
        return list(change.restart)

    def _kept_contexts(self, config: Config) -> dict[str, ServerContext]:
        old = {section.name: section.tls for section in self.config.listeners}
        return {
            s.name: self.contexts[s.name] for s in config.listeners if s.tls is not None and s.tls == old.get(s.name)
        }

    async def _reload_listeners(self, config: Config, sockets: dict[str, socket.socket], gone: tuple[str, ...]) -> None:
        for name in gone:
            self._close_listener(self.listeners.pop(name))
        for section in config.listeners:
            listener = self.listeners.get(section.name)
            if listener is None:
                await self._open_listener(section, sockets[section.name])
            elif isinstance(listener, Listener):
                listener.adopt(self._new_http_listener(section))
            else:
                listener.adopt(section, config.limits.connections, self.contexts.get(section.name))
        self._route_listeners()

    def _close_listener(self, listener: AnyListener) -> None:
        listener.stop_accepting()
        listener.drain()

    # -- stopping ----------------------------------------------------------------------------------

    async def drain(self, deadline_s: float) -> int:
        """Not ready, stop accepting, let what is open finish. Returns how many connections had to be cut."""
        self.stopping = True
        self.ready.clear()
        for listener in self.listeners.values():
            listener.stop_accepting()
        self.turn.begin()
        for listener in self.listeners.values():
            listener.drain()
        self.turn.end()
        left = 0
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*(listener.drained.wait() for listener in self.listeners.values()))
        except TimeoutError:
            left = sum(listener.abort() for listener in self.listeners.values())
        return left

    async def close(self) -> None:
        """Let go of everything."""
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self.turn.begin()
        for listener in self.listeners.values():
            listener.stop_accepting()
            listener.abort()
        for upstream in self.upstreams.values():
            upstream.close()
        self.turn.end()
        await self.background.close()
        await asyncio.sleep(0)
        self.reactor.close()
        self.access_log.close()
        await self.sessions.close()

    # -- questions ---------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything that `/metrics` shows of this worker."""
        snapshot = Snapshot()
        for listener in self.listeners.values():
            listener.export(snapshot)
        for upstream in self.upstreams.values():
            upstream.export(snapshot, monotonic())
        self.sessions.export(snapshot)
        snapshot.add("access_log_dropped", self.access_log.dropped)
        return snapshot

    def status(self) -> dict[str, Any]:
        """What `/status` shows of this worker."""
        now = monotonic()
        return {
            "worker": self.index,
            "ready": self.ready.is_set(),
            "uptime_s": round(now - self.started_at, 1),
            "tls_sessions": self.sessions.counts(),
            "listeners": [listener.status() for listener in self.listeners.values()],
            "upstreams": {
                name: upstream.add_sessions(upstream_status(upstream, now)) for name, upstream in self.upstreams.items()
            },
        }

    def drain_region(self, region: str, upstream: str | None, seconds: float | None) -> list[str]:
        """An operator moves traffic off a region. Returns the upstreams concerned; KeyError where none has it."""
        now = monotonic()
        touched = self._with_region(region, upstream)
        for one in touched:
            one.report(one.balancer.drain(region, now, None if seconds is None else now + seconds))
            for pool in one.pools:
                if pool.target.region.name == region:
                    pool.drain()
        return [one.name for one in touched]

    def undrain_region(self, region: str, upstream: str | None) -> list[str]:
        """The operator lets traffic back."""
        now = monotonic()
        touched = self._with_region(region, upstream)
        for one in touched:
            change = one.balancer.undrain(region, now)
            if change is not None:
                one.report(change)
        return [one.name for one in touched]

    def _with_region(self, region: str, upstream: str | None) -> list[UpstreamRuntime]:
        found = [
            one
            for one in self.upstreams.values()
            if (upstream is None or one.name == upstream) and any(r.name == region for r in one.balancer.regions)
        ]
        if not found:
            known = sorted({r.name for one in self.upstreams.values() for r in one.balancer.regions})
            raise KeyError(
                f"no upstream{f' {upstream}' if upstream else ''} has a region {region}; regions: {', '.join(known)}"
            )
        return found


def _access_log(config: Config) -> AccessLog:
    section = config.access_log
    if section is None:
        return AccessLog("")
    return AccessLog(str(section.path.path or "-"), section.sample)


def worker_count(config: Config) -> int:
    """How many processes serve."""
    return config.workers if isinstance(config.workers, int) else len(os.sched_getaffinity(0))


def server_contexts(
    config: Config, ticket_keys: TicketKeys, kept: dict[str, ServerContext] | None = None
) -> dict[str, ServerContext]:
    """The TLS contexts of listeners that terminate TLS.

    Raises ContextError, which names the file and what is wrong with it.
    """
    contexts = dict(kept or {})
    for section in sorted(config.listeners, key=lambda one: one.name):  # for `TicketKeys.base`
        if section.tls is None or section.name in contexts:
            continue
        settings = ServerSettings(
            tuple(CertificatePair(str(pair.certificate), str(pair.key)) for pair in section.tls.certificates),
            _text(section.tls.client_ca),
            (b"h2", b"http/1.1") if section.protocol == "http" else (),
            early_data=section.tls.early_data,
            min_version=section.tls.min_version,
        )
        contexts[section.name] = ServerContext(
            settings, name=section.name, ticket_keys=ticket_keys, replay_register=ticket_keys.replays
        )
    return contexts


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
