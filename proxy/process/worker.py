"""One worker: everything that one event loop runs. It owns its listeners and upstreams, wires the parts together, and
never reads a file of configuration nor handles a signal (`program`).

A worker holds a snapshot of the config. A reload makes everything of the next one that can fail (certificates and
authorities read, the log opened, listeners opened), and only then swaps it in, in one go that nothing can interrupt:
listeners and upstreams live on under their names, and what did not change keeps its connections and warm pools.

What a reload removes ends in its own time (`leaving`). Until then it ticks, counts, and shows itself.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from proxy.admin import regions
from proxy.admin.explain import upstream_status
from proxy.config import Config, diff
from proxy.downstream.listener import Listener
from proxy.loop.bites import Bites
from proxy.loop.loop import Loop
from proxy.net.resolver import Resolver
from proxy.observe.access_log import AccessLog
from proxy.observe.metrics import Snapshot, export_log
from proxy.upstream.upstream import UpstreamRuntime

from .contexts import server_contexts, worker_count
from .leaving import Leaving
from .listeners import leads_of, new_listener, settings_of
from .rehearsal import rehearse
from .sessions import export_sessions, open_sessions, sessions_per_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.config import ConfigDiff, ListenerSection
    from proxy.exchange.service import Service
    from proxy.l4.listener import TunnelListener
    from routing.model import Upstream
    from tlscache.context import ServerContext
    from tlscache.ticket_keys import TicketKeys

    from .drains import OperatorDrain
    from .listeners import AnyListener

TICK_S: Final = 0.1
MEASURE_S: Final = 1.0
CERTIFICATES_S: Final = 5.0
READY_WAIT_S: Final = 10.0
"""Readiness waits at most this long for warm pools: a region that is down must not keep the others from being served.
"""


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
        self.loop = Loop(self._task_failed)
        self.turn, self.timers, self.reactor = self.loop.turn, self.loop.timers, self.loop.reactor
        self.background = self.loop.background
        self.resolver = Resolver(self.background)
        self.access_log = _access_log(config)
        self.sessions = open_sessions(config, worker_count(config), log)
        self.listeners: dict[str, AnyListener] = {}
        self.upstreams: dict[str, UpstreamRuntime] = {}
        self.leaving = Leaving()
        self.contexts = contexts if contexts is not None else server_contexts(config, ticket_keys)
        self.ticket_keys = ticket_keys
        self.ready = asyncio.Event()
        self.stopping = False
        self.started_at = monotonic()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._next_measure = 0.0
        self._next_certificates = 0.0

    # -- starting ----------------------------------------------------------------------------------

    async def start(self, sockets: dict[str, socket.socket], drains: Iterable[OperatorDrain] = ()) -> None:
        """Dial warm pools, begin to accept, what operators have drained being so. Returns once accepting; `ready` is
        set when the pools are warm (or have had their time).
        """
        self.access_log.start(self.loop.events, self.log)
        for name in self.config.upstreams:
            self.upstreams[name] = self._new_upstream(self.config, name)
        await self._prefetch_sessions(self.upstreams.values())
        self._rehearse()
        for drain in drains:
            seconds = None if drain.until is None else max(0.0, drain.until - monotonic())
            with suppress(KeyError):  # the config was changed meanwhile, and has no such region
                regions.drain(self.upstreams.values(), drain.region, drain.upstream, seconds)
        for section in self.config.listeners:
            await self._open_listener(section, sockets[section.name])
        self.loop.events.call_later(READY_WAIT_S, self._become_ready, "some endpoints could not be reached yet")
        self.on_warm()
        self._tick()

    def _rehearse(self) -> None:
        for section in self.config.listeners:
            if section.protocol == "http":
                route = self.config.routes(section)[0]
                model = self.config.routing(route.upstream)
                region = replace(model.regions[0], endpoints=model.regions[0].endpoints[:1], standby=False)
                upstream = self._new_upstream(self.config, route.upstream, replace(model, regions=(region,)))
                settings = settings_of(self.config, section, {})
                settings = replace(settings, proxy_protocol=False)  # requests alone are rehearsed, and without TLS
                listener = new_listener(section.name, settings, loop=self.loop, log=self.log, access_log=AccessLog(""))
                assert isinstance(listener, Listener)
                rehearse(listener, cast("Service", listener.service), upstream, route)
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
            sessions=self.sessions,
            log=self.log,
            on_warm=self.on_warm,
        )

    async def _prefetch_sessions(self, upstreams: Iterable[UpstreamRuntime]) -> None:
        await self.sessions.prefetch([wanted for upstream in upstreams for wanted in upstream.sessions_wanted()])

    async def _open_listener(self, section: ListenerSection, sock: socket.socket) -> None:
        listener = self._new_listener(self.config, section, self.contexts, self.access_log)
        self.listeners[section.name] = listener
        leads_of(listener).route(self.config.routes(section), self.upstreams)
        await listener.open(sock)

    def _new_listener(
        self, config: Config, section: ListenerSection, contexts: dict[str, ServerContext], access_log: AccessLog
    ) -> AnyListener:
        settings = settings_of(config, section, contexts)
        return new_listener(section.name, settings, loop=self.loop, log=self.log, access_log=access_log)

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
        self._tick_handle = self.loop.events.call_later(TICK_S, self._tick)
        self.turn.begin()
        try:
            for upstream in self._every_upstream():
                self._guarded(upstream, upstream.tick, now)
            if now >= self._next_measure:
                self._next_measure = now + MEASURE_S
                for upstream in self._every_upstream():
                    self._guarded(upstream, upstream.measure, now)
                for listener in self._every_listener():
                    self._guarded(listener, listener.tick)
                self._guarded(self.leaving, self.leaving.let_go)
            if now >= self._next_certificates:
                self._next_certificates = now + CERTIFICATES_S
                for name, context in self.contexts.items():
                    self._guarded(context, self._reload_certificates, "listener", name, context.reload_if_changed)
                for name, upstream in self.upstreams.items():
                    self._guarded(upstream, self._reload_certificates, "upstream", name, upstream.reload_certificates)
        finally:
            self.turn.end()

    def _guarded(self, part: object, do: Callable[..., object], *given: object) -> None:
        """What our code does wrong with one part is reported; the others are seen to all the same."""
        try:
            do(*given)
        except Exception as error:
            self.turn.report(part, error)

    def _reload_certificates(self, what: str, name: str, reload: Callable[[], str | None]) -> None:
        problem = reload()
        if problem:
            self.log.error("certificates_refused", **{what: name}, reason=problem, kept="the ones in use")

    # -- reloading ---------------------------------------------------------------------------------

    async def reload(self, config: Config, sockets: dict[str, socket.socket]) -> list[str]:
        """Swap in another config. `sockets` has those of added and rebound listeners. Returns the keys that need a
        restart.

        Raises (OSError, ContextError) before anything has changed. The caller lets one reload run at a time.
        """
        change = diff(self.config, config)
        contexts = server_contexts(config, self.ticket_keys, self._kept_contexts(config))
        kept = {name: self.upstreams[name] for name in config.upstreams if name in self.upstreams}
        changed = [name for name in kept if name in change.upstreams_changed or not kept[name].reach.is_current]
        reaches = {name: kept[name].prepare(config.upstreams[name]) for name in changed}
        added = {name: self._new_upstream(config, name) for name in change.upstreams_added}
        upstreams = {**kept, **added}
        access_log = self.access_log
        if "access_log" in change.other:
            access_log = _access_log(config, self.access_log)
            access_log.start(self.loop.events, self.log)
        opened: dict[str, AnyListener] = {}
        try:
            await self._prefetch_sessions(added.values())
            for name in (*change.listeners_added, *change.listeners_rebound):
                section = config.listener(name)
                fresh = opened[name] = self._new_listener(config, section, contexts, access_log)
                leads_of(fresh).route(config.routes(section), upstreams, warm=False)
                await fresh.open(sockets[name])
        except BaseException:
            for fresh in opened.values():
                fresh.stop_accepting()
                fresh.abort()
            for upstream in added.values():
                upstream.close()
            if access_log is not self.access_log:
                access_log.retire()
            raise
        for name, reach in reaches.items():
            kept[name].adopt(config.routing(name), config.upstreams[name], reach)
        self._swap(config, change, contexts, upstreams, opened, access_log)
        return list(change.restart)

    def _swap(
        self,
        config: Config,
        change: ConfigDiff,
        contexts: dict[str, ServerContext],
        upstreams: dict[str, UpstreamRuntime],
        opened: dict[str, AnyListener],
        access_log: AccessLog,
    ) -> None:
        """The reload's second half: nothing here can fail, and nothing else runs meanwhile."""
        self.config, self.contexts = config, contexts
        self.leaving.upstreams += [self.upstreams[name] for name in change.upstreams_removed]
        self.upstreams = upstreams
        if access_log is not self.access_log:
            before, self.access_log = self.access_log, access_log
            for listener in self._every_listener():
                leads_of(listener).access_log = access_log
            before.retire()
        for name in (*change.listeners_removed, *change.listeners_rebound):
            self._close_listener(self.listeners.pop(name))
        for section in config.listeners:
            name = section.name
            if name in opened:  # made from this config
                listener = self.listeners[name] = opened[name]
            else:
                listener = self.listeners[name]
                listener.adopt(settings_of(config, section, contexts))
            leads_of(listener).route(config.routes(section), upstreams)
        self.sessions.resize(sessions_per_scope(config, self.sessions.workers))
        self.leaving.let_go()

    def _kept_contexts(self, config: Config) -> dict[str, ServerContext]:
        """Of listeners whose TLS is the same to the last file: whoever asks for a reload need not wait for
        `CERTIFICATES_S`, and hears of a file that can't be used.
        """
        old = {section.name: section.tls for section in self.config.listeners}
        same = [one.name for one in config.listeners if one.tls is not None and one.tls == old.get(one.name)]
        return {name: self.contexts[name] for name in same if self.contexts[name].is_current}

    def _close_listener(self, listener: AnyListener) -> None:
        self.leaving.listeners.append(listener)
        self._guarded(listener, listener.stop_accepting)
        self.turn.begin()
        try:
            self._guarded(listener, listener.drain)
        finally:
            self.turn.end()

    def _every_listener(self) -> Iterator[AnyListener]:
        """Those of the config, and those that leave."""
        return chain(self.listeners.values(), self.leaving.listeners)

    def _every_upstream(self) -> Iterator[UpstreamRuntime]:
        return chain(self.upstreams.values(), self.leaving.upstreams)

    # -- stopping ----------------------------------------------------------------------------------

    async def drain(self, deadline_s: float) -> int:
        """Not ready, stop accepting, let what is open finish. Returns how many connections had to be cut."""
        self.stopping = True
        self.ready.clear()
        for listener in self.listeners.values():
            self._guarded(listener, listener.stop_accepting)
        self.turn.begin()
        try:
            for listener in self.listeners.values():
                self._guarded(listener, listener.drain)
        finally:
            self.turn.end()
        left = 0
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*(listener.drained.wait() for listener in self._every_listener()))
        except TimeoutError:
            left = sum(self._cut(listener) for listener in self._every_listener())
        return left

    def _cut(self, listener: AnyListener) -> int:
        try:
            return listener.abort()
        except Exception as error:
            self.turn.report(listener, error)
            return 0

    async def close(self) -> None:
        """Let go of everything."""
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self.turn.begin()
        try:
            for listener in self._every_listener():
                self._guarded(listener, listener.stop_accepting)
                self._cut(listener)
            for upstream in self._every_upstream():
                self._guarded(upstream, upstream.close)
        finally:
            self.turn.end()
        await self.background.close()
        await asyncio.sleep(0)
        self.reactor.close()
        self.access_log.close()
        await self.sessions.close()

    # -- questions ---------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Everything that `/metrics` shows of this worker."""
        snapshot, bites = Snapshot(), Bites()
        self.leaving.ledger.add_to(snapshot)  # what leaves from here on is counted below
        for listener in [*self._every_listener()]:
            listener.export(snapshot)
        for upstream in [*self._every_upstream()]:
            for _ in upstream.exporting(snapshot, monotonic()):
                await bites.rest()
        export_sessions(self.sessions, snapshot)
        snapshot.add("access_log_dropped", self.access_log.dropped)
        export_log(snapshot, self.log)
        return snapshot

    async def status(self) -> dict[str, Any]:
        """What `/status` shows of this worker."""
        now, bites = monotonic(), Bites()
        upstreams = {}
        for name, upstream in [*self.upstreams.items()]:
            upstreams[name] = upstream.add_sessions(await upstream_status(upstream, now, bites))
            await bites.rest()
        return {
            "worker": self.index,
            "ready": self.ready.is_set(),
            "uptime_s": round(now - self.started_at, 1),
            "tls_sessions": self.sessions.counts(),
            "listeners": [listener.status() for listener in self._every_listener()],
            "upstreams": upstreams,
        }

    def leads(self) -> list[Service | TunnelListener]:
        """Where the clients of each listener go."""
        return [leads_of(listener) for listener in self.listeners.values()]


def _access_log(config: Config, before: AccessLog | None = None) -> AccessLog:
    section = config.access_log
    if section is None:
        return AccessLog("", before=before)
    return AccessLog(str(section.path.path or "-"), section.sample, before)
