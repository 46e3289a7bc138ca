"""`workers: 1`: the worker and the admin endpoints share one process and one event loop.

It owns the worker. What is the same for several workers is `program`'s; it never forks.
"""

from __future__ import annotations

import signal
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.admin.questions import answer

from . import inheritance as listening
from .program import STARTING_UP, Program
from .tuning import tune_process
from .worker import Worker

if TYPE_CHECKING:
    import socket

    from proxy.config import Config
    from proxy.observe.metrics import Snapshot


class SingleProcess(Program):
    """`workers: 1`: the worker and the admin endpoints share one event loop."""

    worker: Worker

    async def run(self) -> int:
        """Serve until a signal ends it. Returns the exit code."""
        before = signal.signal(signal.SIGCHLD, lambda *_: self.reap())  # uvloop keeps this signal from its handlers
        try:
            return await super().run()
        finally:
            signal.signal(signal.SIGCHLD, before)

    async def ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """The worker answers directly."""
        return [await answer(self.worker, question)]

    async def start_workers(self) -> None:
        """Begin to accept."""
        self.worker = Worker(self.config, self.log, self.fork_server.keys, self.contexts)
        sockets = {name: sock.dup() for name, sock in self.sockets.items() if name != listening.ADMIN}
        await self.worker.start(sockets, self.drains.current(monotonic()))
        tune_process()

    async def readiness(self) -> str:
        """Whether the pools are warm."""
        return "" if self.worker.ready.is_set() else STARTING_UP

    async def snapshot(self) -> Snapshot:
        """The worker's samples."""
        return await self.worker.snapshot()

    async def wait_ready(self) -> None:
        """Until the pools are warm."""
        await self.worker.ready.wait()

    async def apply(self, config: Config, fresh: dict[str, socket.socket]) -> list[str]:
        """Swap in a config."""
        return await self.worker.reload(config, {name: sock.dup() for name, sock in fresh.items()})

    async def release_sessions(self) -> None:
        """Let another program have the worker's."""
        await self.worker.sessions.release()

    async def reclaim_sessions(self) -> None:
        """Have the worker hold sessions again."""
        self.worker.sessions.reclaim()

    async def drain_workers(self, deadline_s: float) -> int:
        """Drain the worker."""
        cut = await self.worker.drain(deadline_s)
        await self.worker.close()
        return cut

    def stop_now(self) -> None:
        """Cut everything."""
        for listener in self.worker.listeners.values():
            listener.abort()
        self.worker.access_log.close()
