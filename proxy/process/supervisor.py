"""Several workers: one supervisor that binds, forks, restarts, and speaks for all of them.

The listening sockets and the TLS server contexts exist before the first fork, so that workers share accept queues (a
dead worker's connections-to-be are taken by the others) and session ticket keys. Each worker has a pipe for questions
(JSON lines, see `backend`) and one for the sockets of listeners that a reload adds.

Rules:
- A worker holds no descriptor of the supervisor but those it needs: else an admin client's connection, or a listener
  that was removed, would stay open in every worker that was forked while it existed.
- A worker that dies is replaced, at once and then less and less soon. One that can't even start ends the program,
  unless another one could.
- A worker whose supervisor is gone drains and ends.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import signal
import socket
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from proxy.config import Config
from proxy.observe.metrics import Ledger, Snapshot, export_log
from proxy.upstream.reach import client_settings
from tlscache.context import ClientContext

from . import inheritance as listening
from .child import ASK_TIMEOUT_S, LINE_MAX, Child, be_worker
from .contexts import server_contexts, worker_count
from .program import EXIT_FAILED, STARTING_UP, Beginning, Program

READY_TIMEOUT_S: Final = 1.0  # a load balancer that asks /readyz has little more patience
RELOAD_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 2.0  # beyond the deadline
PASS_TIMEOUT_S: Final = 5.0
RESTART_BACKOFF_S: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
QUICK_DEATH_S: Final = 5.0


class Supervisor(Program):
    """`workers: N`."""

    def __init__(self, beginning: Beginning) -> None:
        super().__init__(beginning)
        self.workers = worker_count(beginning.config)
        self._children: dict[int, Child] = {}
        self._restarts = 0
        self._registering = 0  # the pid of a child that is not in `_children` yet
        self._ended_early: int | None = None  # its wait status
        self._ledger = Ledger()  # what workers counted that have died
        self._quick_deaths = 0
        self._came_up = False
        self._changing = asyncio.Lock()  # no worker is forked with half a reload
        self._sampling = asyncio.Lock()  # older samples never replace newer ones
        self._forking = asyncio.Lock()  # or misses a drain
        self._all_gone = asyncio.Event()

    def restarts(self) -> int:
        """How often a worker had to be restarted."""
        return self._restarts

    async def run(self) -> int:
        """Serve until a signal ends it. Returns the exit code."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        try:
            return await super().run()
        except OSError as error:  # there can be no further process
            self.log.error("start_failed", error=error.strerror or str(error))
            self.stop_now()
            return EXIT_FAILED
        finally:
            # A worker may end while the loop closes, which first closes the socket that signals are written to.
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    # -- workers -----------------------------------------------------------------------------------

    async def start_workers(self) -> None:
        """Fork them."""
        for index in range(self.workers):
            await self._fork(index)

    async def _fork(self, index: int) -> None:
        """OSError where there can be no further process."""
        async with self._changing, self._forking:
            if self.stopping:
                return
            ours, theirs = socket.socketpair()
            our_descriptors, their_descriptors = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            our_descriptors.setblocking(False)
            their_descriptors.settimeout(PASS_TIMEOUT_S)
            # In the child a signal would still be written to our loop.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = os.fork()
                if pid == 0:
                    be_worker(self, index, theirs, their_descriptors)
            except OSError:
                ours.close()
                our_descriptors.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                theirs.close()
                their_descriptors.close()
            self._registering = pid
            reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_MAX)
            child = Child(index, pid, monotonic(), reader, writer, our_descriptors)
            self._children[pid] = child
            self._registering = 0
        self.background.start(child.listen(), f"worker {index}")
        self.log.info("worker_started", worker=index, pid=pid)
        if self._ended_early is not None:
            status, self._ended_early = self._ended_early, None
            self.on_child_end(pid, status)

    def on_child_end(self, pid: int, status: int) -> None:
        """A worker has died, or ended as it was told."""
        child = self._children.pop(pid, None)
        if child is None:
            if pid == self._registering:
                self._ended_early = status
            return
        child.gone = True
        child.writer.close()
        child.descriptors.close()
        if child.samples is not None:
            self._ledger.absorb(child.samples)
        code = os.waitstatus_to_exitcode(status)
        self._came_up = self._came_up or child.up
        if self.stopping:
            if not self._children:
                self._all_gone.set()
        elif code == EXIT_FAILED and not self._came_up and not any(one.up for one in self._children.values()):
            self._give_up()
        else:
            self.background.start(self._restart(child, code), f"restart worker {child.index}")

    def _give_up(self) -> None:
        """A worker could not start, and has said why."""
        self.stopping = True
        self.exit_code = EXIT_FAILED
        self.stop_now()
        self._done.set()

    async def _restart(self, child: Child, code: int) -> None:
        self._restarts += 1
        lived = monotonic() - child.started
        self._quick_deaths = self._quick_deaths + 1 if lived < QUICK_DEATH_S else 0
        delay = RESTART_BACKOFF_S[min(self._quick_deaths, len(RESTART_BACKOFF_S) - 1)]
        self.log.error(
            "worker_died",
            worker=child.index,
            pid=child.pid,
            exit_code=code,
            lived_s=round(lived, 1),
            restart_in_s=delay,
        )
        while True:
            await asyncio.sleep(delay)
            if self.stopping:
                return
            try:
                await self._fork(child.index)
            except OSError as error:
                delay = RESTART_BACKOFF_S[-1]
                self.log.error("fork_failed", worker=child.index, error=error.strerror, restart_in_s=delay)
            else:
                return

    # -- Program -----------------------------------------------------------------------------------

    async def ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """Every live worker's answer."""
        return [reply for _, reply in await self._ask_all(question, ASK_TIMEOUT_S) if reply is not None]

    async def _ask_all(self, question: dict[str, Any], timeout_s: float) -> list[tuple[Child, dict[str, Any] | None]]:
        """Every worker with its answer."""
        children = list(self._children.values())
        answers = await asyncio.gather(*(child.ask(question, timeout_s) for child in children))
        return list(zip(children, answers, strict=True))

    async def change_drain(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """An operator drains or undrains: every worker's answer."""
        async with self._forking:
            return await super().change_drain(question)

    async def readiness(self) -> str:
        """A worker that is being replaced is no reason: the others take what it would. One that hangs is: its
        connections hang with it.
        """
        answers = await self._ask_all({"do": "ready"}, READY_TIMEOUT_S)
        silent = [str(child.index) for child, reply in answers if reply is None and child.up and not child.gone]
        if silent:
            return f"not answering: worker {', '.join(silent)}"
        told = [reply["ready"] for _, reply in answers if reply is not None]
        return "" if told and all(told) else STARTING_UP

    async def snapshot(self) -> Snapshot:
        """All workers' samples; of one that does not answer the last that are known, and of the dead what they counted,
        so that no counter ever goes back.
        """
        async with self._sampling:
            answers = await self._ask_all({"do": "metrics"}, ASK_TIMEOUT_S)
            total = Snapshot()
            self._ledger.add_to(total)
            export_log(total, self.log)
            for child, reply in answers:
                if child.pid not in self._children:  # it has died meanwhile: it is in the ledger
                    continue
                if reply is not None:
                    child.samples = Snapshot.from_json(reply)
                if child.samples is not None:
                    total.merge(child.samples)
            return total

    async def wait_ready(self) -> None:
        """Until every worker is ready."""
        while True:
            answers = await self.ask({"do": "ready"})
            if len(answers) == self.workers and all(one["ready"] for one in answers):
                return
            await asyncio.sleep(0.05)

    async def apply(self, config: Config, fresh: dict[str, socket.socket]) -> list[str]:
        """Each worker gets the config and the sockets that it needs; what only shows when files are read is checked
        here first.

        A worker that fails all the same after another one has changed is ended: its replacement starts with the new
        config.
        """
        async with self._changing:
            contexts = server_contexts(config, self.fork_server.keys)
            for upstream in config.upstreams.values():
                settings = client_settings(upstream)
                if settings is not None:
                    ClientContext(settings)
            form = base64.b64encode(pickle.dumps(config)).decode()
            question = {"do": "reload", "config": form, "sockets": len(fresh)}
            # First one that answers: it says whether all can change. Then the others, those that hang among them.
            probed = await self._ask_all({"do": "ready"}, READY_TIMEOUT_S)
            left = [child for child, _ in sorted(probed, key=lambda one: one[1] is None)]
            restart: set[str] | None = None
            while left and restart is None:
                restart = await self._reload_child(left.pop(0), question, fresh, first=True)
            await asyncio.gather(*(self._reload_child(child, question, fresh, first=False) for child in left))
            self.contexts = contexts
            return sorted(restart or ())

    async def _reload_child(
        self, child: Child, question: dict[str, Any], fresh: dict[str, socket.socket], *, first: bool
    ) -> set[str] | None:
        """The keys that need a restart; None where the worker did not follow. OSError where the first could not."""
        reply = None
        if listening.pass_on(child.descriptors, fresh):
            reply = await child.ask(question, RELOAD_TIMEOUT_S)
        if reply is not None and "fault" not in reply:
            return set(reply["restart"])
        if reply is not None and first:
            raise OSError(f"worker {child.index}: {reply['fault']}")
        if not child.gone:
            reason = reply["fault"] if reply is not None else f"no answer within {RELOAD_TIMEOUT_S:g} s"
            instead = "its replacement starts with the new config"
            self.log.error("worker_kept_old_config", worker=child.index, error=reason, killed=True, instead=instead)
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        return None

    async def release_sessions(self) -> None:
        """Every worker lets another program have its sessions."""
        await self.ask({"do": "release sessions"})

    async def reclaim_sessions(self) -> None:
        """Every worker holds sessions again."""
        await self.ask({"do": "reclaim sessions"})

    async def drain_workers(self, deadline_s: float) -> int:
        """Every worker drains; the last one's end is ours."""
        question = {"do": "stop", "deadline_s": deadline_s}
        answers = await self._ask_all(question, deadline_s + STOP_TIMEOUT_S)
        cut = 0
        for child, reply in answers:
            if reply is not None:
                cut += int(reply["cut"])
            elif not child.gone:
                self.log.error("worker_did_not_stop", worker=child.index, pid=child.pid, killed=True)
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                if self._children:
                    await self._all_gone.wait()
        self.stop_now()
        return cut

    def stop_now(self) -> None:
        """End what is left of the workers."""
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
