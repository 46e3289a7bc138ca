"""The two ends between the supervisor and one worker: `Child` asks, `be_worker` answers. JSON lines over one pipe (see
`proxy.admin.questions`), and another one for the sockets of listeners that a reload adds.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

import msgspec
import uvloop

from proxy.admin.questions import answer
from proxy.config import Config
from proxy.exchange import forward
from proxy.observe.metrics import Snapshot

from . import inheritance as listening
from .forkserver import open_files
from .program import EXIT_FAILED, EXIT_OK, Program
from .tuning import tune_process
from .worker import Worker

ASK_TIMEOUT_S: Final = 2.0
LINE_MAX: Final = 16 * 1024 * 1024


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
    samples: Snapshot | None = None  # the last that are known
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
            self.writer.write(msgspec.json.encode({"n": number, **question}) + b"\n")
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
                reply = msgspec.json.decode(line)
                self.up = True
                future = self.waiting.get(reply.pop("n"))
                if future is not None and not future.done():
                    future.set_result(reply)
        self.gone = True
        for future in self.waiting.values():
            if not future.done():
                future.set_result(None)


# In the worker's process.


def be_worker(program: Program, index: int, pipe: socket.socket, descriptors: socket.socket) -> None:
    """In the forked process; never returns."""
    code = EXIT_FAILED
    try:
        listeners = {name: sock for name, sock in program.sockets.items() if name != listening.ADMIN}
        replays = program.fork_server.keys.replays
        _leave_supervisor({*map(_number, (pipe, descriptors, replays, *listeners.values()))})
        code = uvloop.run(_worker_main(program, index, pipe, descriptors, listeners))
    except BaseException as error:
        program.log.error("worker_failed", worker=index, error=str(error) or repr(error))
    finally:
        program.log.close()
        os._exit(code)


async def _worker_main(
    program: Program, index: int, pipe: socket.socket, descriptors: socket.socket, sockets: dict[str, socket.socket]
) -> int:
    forward.identifiers.reseed()
    worker = Worker(program.config, program.log.bind(worker=index), program.fork_server.keys, program.contexts, index)
    await worker.start(sockets, program.drains.current(monotonic()))
    tune_process()
    reader, writer = await asyncio.open_connection(sock=pipe, limit=LINE_MAX)
    writer.write(b'{"n": 0}\n')  # it is up
    ending: asyncio.Task[None] | None = None
    while line := await reader.readline():
        question = msgspec.json.decode(line)
        number = question["n"]
        if question["do"] == "stop":  # other questions are still answered meanwhile
            stop = _stop_worker(worker, question, reader, writer)
            ending = asyncio.get_running_loop().create_task(stop, name="stop")
            continue
        reply = await _reply(worker, question, descriptors)
        writer.write(msgspec.json.encode({"n": number, **reply}) + b"\n")
    if ending is not None:
        await ending
    else:
        await worker.drain(program.config.shutdown.deadline)  # the supervisor is gone
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
        writer.write(msgspec.json.encode({"n": question["n"], "cut": cut}) + b"\n")
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in open_files() - kept - {nothing}:
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
