"""Work in a child process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
import uvloop

from proxy.loop.aside import AsideError, aside


def test_returns_what_the_work_returns() -> None:
    big = os.urandom(3_000_000)
    assert asyncio.run(aside(lambda: (os.getpid() != os.getppid(), big))) == (True, big)


def test_the_work_runs_in_another_process_that_has_ended() -> None:
    pid = asyncio.run(aside(os.getpid))
    assert pid != os.getpid()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_what_the_work_raises_is_told() -> None:
    with pytest.raises(AsideError, match="ZeroDivisionError: "):
        asyncio.run(aside(lambda: 1 // 0))  # type: ignore[arg-type]


def test_an_exit_in_the_work_never_runs_the_parents_code() -> None:
    with pytest.raises(AsideError, match="SystemExit: 3"):
        asyncio.run(aside(lambda: sys.exit(3)))


def test_a_child_that_is_killed_is_told() -> None:
    with pytest.raises(AsideError, match="was killed"):
        asyncio.run(aside(lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_work_without_end_is_ended() -> None:
    with pytest.raises(AsideError, match=r"more than 0\.1 seconds"):
        asyncio.run(aside(lambda: time.sleep(60), 0.1))


def test_no_descriptor_and_no_signal_reaches_the_child() -> None:
    ours, theirs = socket.socketpair()

    def work() -> tuple[list[str], bool]:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        files = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the directory's own
                files.append(os.readlink(f"/proc/self/fd/{fd}"))
        return [file for file in files if "socket" in file], signal.SIGTERM in signal.sigpending()

    with ours, theirs:
        assert asyncio.run(aside(work)) == ([], True)
    assert not signal.sigpending() & {signal.SIGTERM, signal.SIGHUP}


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_loop_goes_on_meanwhile(run: Callable[..., int]) -> None:
    async def main() -> int:
        turns = 0
        task = asyncio.ensure_future(aside(lambda: time.sleep(0.3)))
        while not task.done():
            turns += 1
            await asyncio.sleep(0.001)
        return turns

    assert run(main()) > 10


def test_cancellation_ends_the_child() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(aside(lambda: time.sleep(60)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
