"""Several workers: one supervisor that binds, forks, restarts, and speaks for all of them.

The listening sockets and the TLS server contexts exist before the first fork, so that workers share accept queues (a
dead worker's connections-to-be are taken by the others) and session ticket keys. Each worker has a pipe for questions
(JSON lines, see `backend`) and one for the sockets of listeners that a reload adds. A worker whose supervisor is gone
drains and ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import uvloop

from . import forward
from . import sockets as listening
from .backend import answer
from .config import Config, ConfigError, load_config
from .server import EXIT_FAILED, EXIT_OK, Program, tune_process
from .worker import Worker, server_contexts

if TYPE_CHECKING:
    from tlscache.context import ServerContext

ASK_TIMEOUT_S: Final = 5.0
LINE_MAX: Final = 16 * 1024 * 1024
RESTART_BACKOFF_S: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
QUICK_DEATH_S: Final = 5.0
_FDS_MAX: Final = 256


@dataclass(slots=True)
class Child:
    """A worker process, as the supervisor sees it."""

    index: int
    pid: int
    started: float
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    descriptors: socket.socket
    waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    serial: int = 0

    async def ask(self, question: dict[str, Any], timeout_s: float = ASK_TIMEOUT_S) -> dict[str, Any] | None:
        """The worker's answer; None where it died or took too long."""
        self.serial += 1
        number = self.serial
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.waiting[number] = future
        try:
            self.writer.write(json.dumps({"n": number, **question}).encode() + b"\n")
            async with asyncio.timeout(timeout_s):
                return await future
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            return None
        finally:
            self.waiting.pop(number, None)

    async def listen(self) -> None:
        """Match answers with their questions until the worker is gone."""
        with suppress(ConnectionError):
            while line := await self.reader.readline():
                reply = json.loads(line)
                future = self.waiting.get(reply.pop("n"))
                if future is not None and not future.done():
                    future.set_result(reply)
        for future in self.waiting.values():
            future.cancel()


class Supervisor(Program):
    """`workers: N`."""

    def __init__(
        self,
        path: str,
        config: Config,
        sockets: dict[str, socket.socket],
        log: Any,
        workers: int,
        contexts: dict[str, ServerContext],
    ) -> None:
        super().__init__(path, config, sockets, log)
        self.workers = workers
        self._contexts = contexts
        self._children: dict[int, Child] = {}
        self._restarts = 0
        self._quick_deaths = 0
        self._exits: dict[int, int] = {}
        self._cut = 0
        self._all_gone = asyncio.Event()

    def restarts(self) -> int:
        """How often a worker had to be restarted."""
        return self._restarts

    # -- workers -----------------------------------------------------------------------------------

    async def start_workers(self) -> None:
        """Fork them."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._on_child_signal)
        for index in range(self.workers):
            await self._fork(index)

    async def _fork(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        our_descriptors, their_descriptors = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = EXIT_FAILED
            try:
                ours.close()
                our_descriptors.close()
                self._leave_parent()
                code = uvloop.run(self._worker_main(index, theirs, their_descriptors))
            except BaseException as error:
                self.log.error("worker_failed", worker=index, error=repr(error))
            finally:
                os._exit(code)
        theirs.close()
        their_descriptors.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_MAX)
        child = Child(index, pid, monotonic(), reader, writer, our_descriptors)
        self._children[pid] = child
        self.background.start(child.listen(), f"worker {index}")
        self.log.info("worker_started", worker=index, pid=pid)

    def _leave_parent(self) -> None:
        """In the child: forget the parent's event loop, signals, and the other workers' pipes."""
        asyncio.events._set_running_loop(None)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        for sibling in self._children.values():
            sibling.descriptors.close()
            transport_socket = sibling.writer.get_extra_info("socket")
            if transport_socket is not None:
                with suppress(OSError):
                    os.close(transport_socket.fileno())
        forward.identifiers.reseed()

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
            child.writer.close()
            child.descriptors.close()
            code = os.waitstatus_to_exitcode(status)
            if self.stopping:
                if not self._children:
                    self._all_gone.set()
                continue
            self.background.start(self._restart(child, code), f"restart worker {child.index}")

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
        await asyncio.sleep(delay)
        if not self.stopping:
            await self._fork(child.index)

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
        """Each worker reads the config by itself and gets the sockets that it needs. The new TLS contexts are checked
        here first.
        """
        contexts = server_contexts(config)
        restart: set[str] = set()
        for child in list(self._children.values()):
            if fresh:
                socket.send_fds(
                    child.descriptors, [",".join(fresh).encode()], [sock.fileno() for sock in fresh.values()]
                )
            reply = await child.ask({"do": "reload", "sockets": len(fresh)}, 30.0)
            if reply is None:
                continue  # it died; its replacement starts with the new config
            if "fault" in reply:
                raise OSError(f"worker {child.index}: {reply['fault']}")
            restart.update(reply["restart"])
        self._contexts = contexts
        return sorted(restart)

    async def drain_workers(self, settle_s: float, deadline_s: float) -> int:
        """Every worker drains; the last one's end is ours."""
        question = {"do": "stop", "settle_s": settle_s, "deadline_s": deadline_s}
        children = list(self._children.values())
        answers = await asyncio.gather(*(child.ask(question, settle_s + deadline_s + 10.0) for child in children))
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

    async def _worker_main(self, index: int, pipe: socket.socket, descriptors: socket.socket) -> int:
        worker = Worker(self.config, self.log.bind(worker=index), index, self._contexts)
        await worker.start({name: sock.dup() for name, sock in self.sockets.items() if name != listening.ADMIN})
        tune_process()
        reader, writer = await asyncio.open_connection(sock=pipe, limit=LINE_MAX)
        shutdown = self.config.shutdown
        while line := await reader.readline():
            question = json.loads(line)
            number = question["n"]
            if question["do"] == "stop":
                cut = await worker.drain(question["settle_s"], question["deadline_s"])
                writer.write(json.dumps({"n": number, "cut": cut}).encode() + b"\n")
                await writer.drain()
                await worker.close()
                return EXIT_OK
            reply = (
                await self._worker_reload(worker, question, descriptors)
                if question["do"] == "reload"
                else await answer(worker, question)
            )
            writer.write(json.dumps({"n": number, **reply}).encode() + b"\n")
        await worker.drain(0.0, shutdown.deadline)  # the supervisor is gone
        await worker.close()
        return EXIT_OK

    async def _worker_reload(
        self, worker: Worker, question: dict[str, Any], descriptors: socket.socket
    ) -> dict[str, Any]:
        fresh: dict[str, socket.socket] = {}
        if question["sockets"]:
            names, fds, _, _ = socket.recv_fds(descriptors, 65536, _FDS_MAX)
            fresh = {name: socket.socket(fileno=fd) for name, fd in zip(names.decode().split(","), fds, strict=True)}
            for sock in fresh.values():
                sock.setblocking(False)
        try:
            return {"restart": await worker.reload(load_config(self.path), fresh)}
        except (ConfigError, OSError, ValueError) as error:
            listening.close_all(fresh.values())
            return {"fault": str(error)}
