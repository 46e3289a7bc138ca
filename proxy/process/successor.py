"""Starting the program that takes over, on SIGUSR2: forked where there are ticket keys to keep, else from scratch."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from . import inheritance as listening
from .forkserver import Refused

if TYPE_CHECKING:
    import socket

    from .forkserver import ForkServer

READY_WAIT_S: Final = 60.0


async def start_successor(
    path: str, sockets: dict[str, socket.socket], fork_server: ForkServer | None, log: Any
) -> int:
    """The pid of a program that serves the config at `path` on these sockets, once it is ready; 0 where it does not get
    there, which is in the log. With a `fork_server` it has our ticket keys; where that fails, another is tried without.
    """
    pid = 0
    if fork_server is not None:
        pid = await _start(lambda *inheritance: asyncio.to_thread(fork_server.fork, *inheritance), sockets, log)
    return pid or await _start(lambda *inheritance: _spawn(path, *inheritance), sockets, log)


Way = Callable[[dict[str, str], list[int]], Awaitable[int]]
"""How to start a program with these variables and descriptors: its pid. Raises Refused or OSError."""


async def _start(way: Way, sockets: dict[str, socket.socket], log: Any) -> int:
    read_fd, write_fd = os.pipe()
    try:
        pid = await way(*listening.environment_for(sockets, write_fd))
    except (OSError, Refused) as error:
        os.close(read_fd)
        if isinstance(error, Refused):
            log.warning("ticket_keys_lost", reason=str(error), cost="a full handshake for each client")
        else:
            log.error("hand_over_failed", error=str(error), kept="this program goes on")
        return 0
    finally:
        os.close(write_fd)
    log.info("hand_over", successor=pid)
    try:
        if await _read_pipe(read_fd, READY_WAIT_S):
            return pid
    except asyncio.CancelledError:  # this program ends before that one is ready, and was not replaced
        end_successor(pid)
        raise
    log.error("hand_over_failed", successor=pid, kept="this program goes on")
    end_successor(pid)
    return 0


async def _spawn(path: str, environment: dict[str, str], fds: list[int]) -> int:
    command = [sys.executable, "-m", "proxy.cli", "serve", path]
    return subprocess.Popen(command, pass_fds=fds, env={**os.environ, **environment}).pid  # noqa: S603, ASYNC220 - us


def end_successor(pid: int) -> None:
    """It is not to serve after all."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


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
