"""Starting the program that takes over, on SIGUSR2: forked where there are ticket keys to keep, else from scratch."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from . import sockets as listening
from .forkserver import Refused

if TYPE_CHECKING:
    import socket

    from .forkserver import ForkServer

READY_WAIT_S: Final = 60.0


async def start_successor(
    path: str, sockets: dict[str, socket.socket], fork_server: ForkServer | None, log: Any
) -> int:
    """The pid of a program that serves the config at `path` on these sockets, once it is ready; 0 where it does not get
    there, which is in the log. Without a `fork_server` it has other ticket keys.
    """
    read_fd, write_fd = os.pipe()
    environment, fds = listening.environment_for(sockets, write_fd)
    try:
        pid = await _fork(fork_server, environment, fds, log) or _spawn(path, environment, fds)
    except OSError as error:
        log.error("hand_over_failed", error=str(error), kept="this program goes on")
        os.close(read_fd)
        return 0
    finally:
        os.close(write_fd)
    log.info("hand_over", successor=pid)
    if await _read_pipe(read_fd, READY_WAIT_S):
        return pid
    log.error("hand_over_failed", successor=pid, kept="this program goes on")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return 0


async def _fork(fork_server: ForkServer | None, environment: dict[str, str], fds: list[int], log: Any) -> int:
    if fork_server is None:
        return 0
    try:
        return await asyncio.to_thread(fork_server.fork, environment, fds)
    except Refused as refused:
        log.warning("ticket_keys_lost", reason=str(refused), cost="a full handshake for each client")
        return 0


def _spawn(path: str, environment: dict[str, str], fds: list[int]) -> int:
    command = [sys.executable, "-m", "proxy.cli", "serve", path]
    return subprocess.Popen(command, pass_fds=fds, env={**os.environ, **environment}).pid  # noqa: S603 - ourselves


async def _read_pipe(fd: int, seconds: float) -> bytes:
    """What the other end writes; b"" where it closes, or takes too long."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(fd, False)
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(seconds):
            await readable.wait()
        return os.read(fd, 64)
    except (TimeoutError, OSError):
        return b""
    finally:
        loop.remove_reader(fd)
        os.close(fd)
