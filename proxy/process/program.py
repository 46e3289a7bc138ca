"""The program `onetrip serve`, be it one process (`single`) or a supervisor and its workers (`supervisor`).

It owns the config's life, the listening sockets, the admin endpoints, what operators have drained, signals, and the
end; it never serves a client itself.

    SIGTERM, SIGINT  not ready, settle, stop accepting, drain until the deadline (a second one: stop at once)
    SIGHUP           read the config again; a faulty one is refused and the running one stays
    SIGUSR2          start the new program on the same sockets, and drain once it is ready
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.admin.admin import Admin, prepare
from proxy.admin.callers import Callers
from proxy.config import Config, ConfigError, diff
from proxy.config.aside import effective_yaml_aside, load_config_aside
from proxy.loop.background import Background
from proxy.loop.timers import Timers
from proxy.loop.turn import Turn
from tlscache.certificates import ContextError

from . import inheritance as listening
from .drains import OperatorDrains
from .forkserver import ForkServer
from .signals import STARTING
from .successor import end_successor, start_successor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from proxy.observe.metrics import Snapshot
    from tlscache.context import ServerContext

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_CUT: Final = 3
STARTING_UP: Final = "starting: warm connections are still being opened"


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a program begins with. `contexts` are the TLS listeners'; `fork_server` has the ticket keys, and forks a
    successor that has them too.
    """

    path: str
    config: Config
    sockets: dict[str, socket.socket]
    log: Any
    contexts: dict[str, ServerContext]
    fork_server: ForkServer


class Program:
    """What one process and a supervisor have in common: the config's life, admin, signals, the end."""

    def __init__(self, beginning: Beginning) -> None:
        self.path = beginning.path
        self.config = beginning.config
        self.sockets = beginning.sockets
        self.log = beginning.log
        self.contexts = beginning.contexts
        self.fork_server = beginning.fork_server
        self.drains = OperatorDrains.inherited(os.environ)
        self.stopping = False
        self._up = False
        self._asked: list[Callable[[], None]] = []  # by signals that came while it started
        self._handing_over = False
        self.exit_code = EXIT_OK
        self._yaml: tuple[Config, str] | None = None
        self._reloads = {"ok": 0, "refused": 0}
        self._done: asyncio.Event
        self._reloading = asyncio.Lock()
        self.background: Background
        self.admin: Admin

    # -- what the two kinds do differently ---------------------------------------------------------

    async def ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """See `Backend.ask`."""
        raise NotImplementedError

    async def start_workers(self) -> None:
        """Begin to accept."""
        raise NotImplementedError

    async def wait_ready(self) -> None:
        """Until the workers are ready."""
        raise NotImplementedError

    async def apply(self, config: Config, fresh: dict[str, socket.socket]) -> list[str]:
        """Swap in a config; `fresh` are sockets that it needs and did not have. Raises before anything changed."""
        raise NotImplementedError

    async def release_sessions(self) -> None:
        """Let another program have the TLS sessions that the workers hold."""
        raise NotImplementedError

    async def reclaim_sessions(self) -> None:
        """Have them hold sessions again."""
        raise NotImplementedError

    async def drain_workers(self, deadline_s: float) -> int:
        """Drain; how many connections were cut."""
        raise NotImplementedError

    def restarts(self) -> int:
        """How often a worker had to be restarted."""
        return 0

    async def readiness(self) -> str:
        """See `Backend.readiness`."""
        raise NotImplementedError

    async def snapshot(self) -> Snapshot:
        """See `Backend.snapshot`."""
        raise NotImplementedError

    # -- Backend -----------------------------------------------------------------------------------

    def reloads(self) -> dict[str, int]:
        """Reloads so far, by result."""
        return self._reloads

    async def config_yaml(self) -> str:
        """The config in use. Made once for each, off the loop."""
        config = self.config
        if self._yaml is None or self._yaml[0] is not config:
            self._yaml = config, await effective_yaml_aside(config)
        return self._yaml[1]

    async def change_drain(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """An operator drains or undrains: every worker's answer."""
        answers = await self.ask(question)
        if answers and not any("fault" in one for one in answers):
            self.drains.note(question, answers[0], monotonic())
        return answers

    async def reload(self) -> dict[str, Any]:
        """SIGHUP, and POST /reload. One at a time: whoever asks meanwhile waits, and the file is read again for it."""
        async with self._reloading:
            if self.stopping:
                return self._refused(["the program is stopping"])
            await self.ask({"do": "reopen logs"})  # whatever becomes of the config
            fresh: dict[str, socket.socket] = {}
            try:
                config = await load_config_aside(self.path)
                change = diff(self.config, config)
                fresh = listening.for_change(self.sockets, self.config, config, change)
                restart = await self.apply(config, fresh)
            except ConfigError as error:
                return self._refused([str(fault) for fault in error.faults])
            except (OSError, ContextError) as error:
                listening.close_all(fresh.values())
                return self._refused([str(error)])
            except Exception as error:
                listening.close_all(fresh.values())
                self.log.exception("reload_failed")
                return self._refused([repr(error)])
            for name in (*change.listeners_removed, *change.listeners_rebound):
                self.sockets.pop(name).close()
            self.sockets |= fresh
            self.config = config
            self.drains.keep(config)
            self.admin.callers = Callers.of(config.admin)
            self._reloads["ok"] += 1
            self.log.info("config_reloaded", path=self.path, changed=bool(change), needs_restart=restart)
            return {"reloaded": True, "restart": restart, "faults": []}

    def _refused(self, faults: list[str]) -> dict[str, Any]:
        self._reloads["refused"] += 1
        self.log.error("config_refused", path=self.path, faults=faults, kept="the running config")
        return {"reloaded": False, "restart": [], "faults": faults}

    # -- running -----------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until a signal ends it. Returns the exit code."""
        self._done = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.background = Background(lambda name, error: self.log.error("task_failed", task=name, error=repr(error)))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_signal, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR2, self._on_signal, self._on_user_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STARTING)
        self.reap()  # what has ended by now sends no further signal
        await self.start_workers()
        await asyncio.sleep(0)  # the first dials go out, and for a round trip there is nothing else to do
        prepare()
        await self._start_admin(loop)
        self.log.info(
            "listening",
            pid=os.getpid(),
            listeners={one.name: _bound(self.sockets[one.name]) for one in self.config.listeners},
            admin=_bound(self.sockets[listening.ADMIN]),
        )
        self.background.start(self._announce_ready(), "announce ready")
        self._up = True
        for action in self._asked:
            action()
        await self._done.wait()
        await self.background.close()
        return self.exit_code

    async def _announce_ready(self) -> None:
        await self.wait_ready()
        listening.notify_systemd("READY=1", f"MAINPID={os.getpid()}")  # first: the predecessor's word comes after ours
        listening.tell_predecessor()

    async def _start_admin(self, loop: asyncio.AbstractEventLoop) -> None:
        turn = Turn(loop)
        self.admin = Admin(
            self,
            Callers.of(self.config.admin),
            turn=turn,
            timers=Timers(loop, turn),
            background=self.background,
            log=self.log,
            restarts=self.restarts,
        )
        await self.admin.listener.open(self.sockets[listening.ADMIN].dup())

    # -- signals -----------------------------------------------------------------------------------

    def _on_signal(self, action: Callable[[], None]) -> None:
        """A program that is half started finishes that first: it takes milliseconds, and there is one way to stop."""
        if self._up:
            action()
        else:
            self._asked.append(action)

    def _on_hangup(self) -> None:
        self.background.start(self._reload_quietly(), "reload")

    def _on_user_signal(self) -> None:
        self.background.start(self._hand_over(), "hand over")

    def reap(self) -> None:
        """Children end: a successor that failed; for process 1, whatever lost its parent (the fork server is such)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.on_child_end(pid, status)

    def on_child_end(self, pid: int, status: int) -> None:
        """One of them, with its wait status."""

    async def _reload_quietly(self) -> None:
        await self.reload()

    # -- stopping ----------------------------------------------------------------------------------

    def _on_stop(self) -> None:
        if self._done.is_set():
            return
        if self.stopping:
            self.log.warning("stopping_at_once")
            self.exit_code = EXIT_CUT
            self.stop_now()
            self._done.set()
            return
        self.log.info("draining", settle_s=self.config.shutdown.settle, deadline_s=self.config.shutdown.deadline)
        self.background.start(self.drain(), "drain")

    def stop_now(self) -> None:
        """A second signal."""

    async def drain(self, *, replaced: bool = False) -> None:
        """Stop for good: let what is open finish. `replaced`: the service goes on in another process."""
        if self.stopping:
            return
        self.stopping = True
        if not replaced:
            listening.notify_systemd("STOPPING=1")
        shutdown = self.config.shutdown
        if shutdown.settle:
            await asyncio.sleep(shutdown.settle)
        # The workers close their copies; while ours were open the kernel would go on completing handshakes for nobody.
        listening.close_all(sock for name, sock in self.sockets.items() if name != listening.ADMIN)
        cut = await self.drain_workers(shutdown.deadline)
        if cut:
            self.exit_code = EXIT_CUT
            self.log.warning("stopped", connections_cut=cut)
        else:
            self.log.info("stopped")
        self.admin.listener.stop_accepting()
        self._done.set()

    async def _hand_over(self) -> None:
        """SIGUSR2: the new program gets our sockets and sessions; once it is ready, we drain."""
        if self.stopping or self._handing_over:
            return
        if os.getpid() == 1:
            reason = "this is process 1: with it the container would end, and the successor in it"
            self.log.error("hand_over_refused", reason=reason, instead="replace the container")
            return
        self._handing_over = True
        try:
            await self.release_sessions()  # before it starts: its first dials want them
            keep_tickets = any(one.tls for one in self.config.listeners)
            server = self.fork_server if keep_tickets else None
            drains = self.drains.environment(monotonic())
            pid = await start_successor(self.path, self.sockets, server, self.log, drains)
            if not pid:
                await self.reclaim_sessions()
        finally:
            self._handing_over = False
        if pid:
            await self._give_way(pid)

    async def _give_way(self, successor: int) -> None:
        if self.stopping:  # told to meanwhile, and that goes for the service
            end_successor(successor)
        else:
            listening.notify_systemd(f"MAINPID={successor}")
            await self.drain(replaced=True)


def _bound(sock: socket.socket) -> str:
    name = sock.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
