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
import json
import os
import pickle
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

import uvloop

from proxy.admin.questions import answer
from proxy.config import Config
from proxy.exchange import forward
from proxy.upstream.reach import client_settings
from tlscache.context import ClientContext

from . import inheritance as listening
from .forkserver import open_files
from .program import EXIT_FAILED, EXIT_OK, Beginning, Program, tune_process
from .worker import Worker, server_contexts, worker_count

ASK_TIMEOUT_S: Final = 2.0
RELOAD_TIMEOUT_S: Final = 30.0
PASS_TIMEOUT_S: Final = 5.0
LINE_MAX: Final = 16 * 1024 * 1024
RESTART_BACKOFF_S: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
QUICK_DEATH_S: Final = 5.0


@dataclass(slots=True)
class Child:
    """A worker process, as the supervisor sees it."""

    index: int
    pid: int
    started: float
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    descriptors: socket.socket
    waiting: dict[int, asyncio.Future[dict[str, Any] | None]] = field(default_factory=dict)
    serial: int = 0
    up: bool = False  # it has started
    gone: bool = False

    async def ask(self, question: dict[str, Any], timeout_s: float = ASK_TIMEOUT_S) -> dict[str, Any] | None:
        """The worker's answer; None where it died or took too long."""
        if self.gone:
            return None
        self.serial += 1
        number = self.serial
        future: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self.waiting[number] = future
        try:
            self.writer.write(json.dumps({"n": number, **question}).encode() + b"\n")
            async with asyncio.timeout(timeout_s):
                return await future
        except (TimeoutError, ConnectionError):
            return None
        finally:
            self.waiting.pop(number, None)

    async def listen(self) -> None:
        """Match answers with their questions until the worker is gone."""
        with suppress(ConnectionError):
            while line := await self.reader.readline():
                reply = json.loads(line)
                self.up = True
                future = self.waiting.get(reply.pop("n"))
                if future is not None and not future.done():
                    future.set_result(reply)
        self.gone = True
        for future in self.waiting.values():
            if not future.done():
                future.set_result(None)


class Supervisor(Program):
    """`workers: N`."""

    def __init__(self, beginning: Beginning) -> None:
        super().__init__(beginning)
        self.workers = worker_count(beginning.config)
        self._children: dict[int, Child] = {}
        self._restarts = 0
        self._quick_deaths = 0
        self._came_up = False
        self._changing = asyncio.Lock()  # no worker is forked with half a reload
        self._all_gone = asyncio.Event()

    def restarts(self) -> int:
        """How often a worker had to be restarted."""
        return self._restarts

    async def run(self) -> int:
        """Serve until a signal ends it. Returns the exit code."""
        try:
            return await super().run()
        finally:
            # A worker may end while the loop closes, which first closes the socket that signals are written to.
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    # -- workers -----------------------------------------------------------------------------------

    async def start_workers(self) -> None:
        """Fork them."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._on_child_signal)
        for index in range(self.workers):
            await self._fork(index)

    async def _fork(self, index: int) -> None:
        """OSError where there can be no further process."""
        async with self._changing:
            ours, theirs = socket.socketpair()
            our_descriptors, their_descriptors = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            our_descriptors.settimeout(PASS_TIMEOUT_S)
            their_descriptors.settimeout(PASS_TIMEOUT_S)
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                code = EXIT_FAILED
                try:
                    listeners = {name: sock for name, sock in self.sockets.items() if name != listening.ADMIN}
                    replays = self.fork_server.keys.replays
                    _leave_supervisor({*map(_number, (theirs, their_descriptors, replays, *listeners.values()))})
                    code = uvloop.run(self._worker_main(index, theirs, their_descriptors, listeners))
                except BaseException as error:
                    self.log.error("worker_failed", worker=index, error=str(error) or repr(error))
                finally:
                    self.log.close()
                    os._exit(code)
            theirs.close()
            their_descriptors.close()
            reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_MAX)
            child = Child(index, pid, monotonic(), reader, writer, our_descriptors)
            self._children[pid] = child
        self.background.start(child.listen(), f"worker {index}")
        self.log.info("worker_started", worker=index, pid=pid)

    def _on_child_signal(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            child.gone = True
            child.writer.close()
            child.descriptors.close()
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
        answers = await asyncio.gather(*(child.ask(question) for child in list(self._children.values())))
        return [one for one in answers if one is not None]

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
            restart: set[str] | None = None
            for child in list(self._children.values()):
                reply = None
                if listening.pass_on(child.descriptors, fresh):
                    reply = await child.ask(question, RELOAD_TIMEOUT_S)
                if reply is None:  # it has died, or is as good as dead; its replacement starts with the new config
                    with suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)
                    continue
                if "fault" not in reply:
                    restart = (restart or set()) | set(reply["restart"])
                elif restart is None:
                    raise OSError(f"worker {child.index}: {reply['fault']}")
                else:
                    self.log.error("worker_kept_old_config", worker=child.index, error=reply["fault"])
                    os.kill(child.pid, signal.SIGKILL)
            self.contexts = contexts
            return sorted(restart or ())

    async def release_sessions(self) -> None:
        """Every worker lets another program have its sessions."""
        await self.ask({"do": "release sessions"})

    async def reclaim_sessions(self) -> None:
        """Every worker holds sessions again."""
        await self.ask({"do": "reclaim sessions"})

    async def drain_workers(self, deadline_s: float) -> int:
        """Every worker drains; the last one's end is ours."""
        question = {"do": "stop", "deadline_s": deadline_s}
        children = list(self._children.values())
        answers = await asyncio.gather(*(child.ask(question, deadline_s + 10.0) for child in children))
        cut = sum(int(one["cut"]) for one in answers if one is not None)
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

    # -- in the worker's process -------------------------------------------------------------------

    async def _worker_main(
        self, index: int, pipe: socket.socket, descriptors: socket.socket, sockets: dict[str, socket.socket]
    ) -> int:
        forward.identifiers.reseed()
        worker = Worker(self.config, self.log.bind(worker=index), self.fork_server.keys, self.contexts, index)
        await worker.start(sockets)
        tune_process()
        reader, writer = await asyncio.open_connection(sock=pipe, limit=LINE_MAX)
        writer.write(b'{"n": 0}\n')  # it is up
        ending: asyncio.Task[None] | None = None
        while line := await reader.readline():
            question = json.loads(line)
            number = question["n"]
            if question["do"] == "stop":  # other questions are still answered meanwhile
                stop = _stop_worker(worker, question, reader, writer)
                ending = asyncio.get_running_loop().create_task(stop, name="stop")
                continue
            reply = await _reply(worker, question, descriptors)
            writer.write(json.dumps({"n": number, **reply}).encode() + b"\n")
        if ending is not None:
            await ending
        else:
            await worker.drain(self.config.shutdown.deadline)  # the supervisor is gone
        await worker.close()
        return EXIT_OK


async def _reply(worker: Worker, question: dict[str, Any], descriptors: socket.socket) -> dict[str, Any]:
    """The supervisor's own questions are answered here, those that come from outside by `backend`."""
    match question["do"]:
        case "reload":
            return await _reload_worker(worker, question, descriptors)
        case "release sessions":
            await worker.sessions.release()
            return {}
        case "reclaim sessions":
            worker.sessions.reclaim()
            return {}
    return await answer(worker, question)


async def _stop_worker(
    worker: Worker, question: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    cut = await worker.drain(question["deadline_s"])
    with suppress(ConnectionError):
        writer.write(json.dumps({"n": question["n"], "cut": cut}).encode() + b"\n")
        await writer.drain()
    reader.feed_eof()  # no more questions


async def _reload_worker(worker: Worker, question: dict[str, Any], descriptors: socket.socket) -> dict[str, Any]:
    fresh: dict[str, socket.socket] = {}
    try:
        fresh = listening.take_over(descriptors, question["sockets"])
        config: Config = pickle.loads(base64.b64decode(question["config"]))  # noqa: S301 - from our own supervisor
        return {"restart": await worker.reload(config, fresh)}
    except (OSError, ValueError) as error:
        listening.close_all(fresh.values())
        return {"fault": str(error)}


def _number(file: Any) -> int:
    return int(file.fileno())


def _leave_supervisor(kept: set[int]) -> None:
    """In the child: forget the parent's event loop and signals, and let go of its descriptors.

    Their numbers stay taken, by /dev/null: objects of the parent that still hold them may close them any time.
    """
    asyncio.events._set_running_loop(None)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in open_files() - kept - {nothing}:
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
