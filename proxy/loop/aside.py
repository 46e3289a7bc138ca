"""Work that would hold the loop for too long, done by a child process.

A thread would not do: it holds the interpreter's lock in turns of 5 ms. A fork takes a millisecond or two, needs no
imports, and runs the code and sees the memory of this very process, whatever has since been installed on disk.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

TIMEOUT_S: Final = 30.0
_NICE: Final = 5  # requests come first where there is one core
_READ_BYTES: Final = 1024 * 1024


class AsideError(Exception):
    """There was no child, it did not answer in time, it died, or the work raised; the text says which."""


async def aside(work: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """What `work` returns, pickled, from a child process that has ended by then. The child has this process's memory
    and the standard files, and nothing else that is open; it is killed after `timeout_s` seconds, or on cancellation.

    Raises AsideError.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pid = _fork(work, write_fd)
    except OSError as error:
        os.close(read_fd)
        raise AsideError(f"can't fork: {error.strerror or error}") from error
    finally:
        os.close(write_fd)
    try:
        async with asyncio.timeout(timeout_s):
            content = await _read(read_fd)
    except TimeoutError:
        raise AsideError(f"it took more than {timeout_s:g} seconds") from None
    finally:
        os.close(read_fd)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it has nothing more to do
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)  # noqa: ASYNC222 - at once: it is dead
    if not content:
        raise AsideError("the process that did it was killed")
    done, value = pickle.loads(content)  # noqa: S301 - from our own child
    if not done:
        raise AsideError(value)
    result: T = value
    return result


def _fork(work: Callable[[], Any], write_fd: int) -> int:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the work does not wait for
            pid = os.fork()
        if pid == 0:
            _child(work, write_fd)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _child(work: Callable[[], Any], write_fd: int) -> None:
    """Never returns. Signals stay blocked: those for the program are its business, and SIGKILL still comes."""
    try:
        signal.set_wakeup_fd(-1, warn_on_full_buffer=False)
        os.closerange(3, write_fd)
        os.closerange(write_fd + 1, os.sysconf("SC_OPEN_MAX"))
        os.set_blocking(write_fd, True)
        with suppress(OSError):
            os.nice(_NICE)
        sys.setrecursionlimit(10_000)
        try:
            content = pickle.dumps((True, work()))
        except BaseException as error:
            content = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        view = memoryview(content)
        while view:
            view = view[os.write(write_fd, view) :]
    finally:
        os._exit(0)


async def _read(fd: int) -> bytes:
    """Until the other end closes."""
    loop = asyncio.get_running_loop()
    content = bytearray()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            with suppress(BlockingIOError):
                piece = os.read(fd, _READ_BYTES)
                if not piece:
                    return bytes(content)
                content += piece
    finally:
        loop.remove_reader(fd)
