"""From exec to a program that serves: what a client waits for comes first.

    read the file ──▶ bind ──▶ fork the fork server ──▶ import everything else ──▶ check the config ──▶ serve

Once a socket listens, the kernel answers and queues connections; a client then waits where it would have been refused.
So sockets are bound as soon as the file has been read as YAML, and what takes longest to import, which is the program,
comes after. Rules:

- What is bound is compared with the config once that has been checked; what it does not ask for is closed unused.
- A faulty config leaves nothing bound, and no file of a Unix socket: those are bound later.
- Where sockets are inherited (systemd, SIGUSR2) there is no hurry: they listen.
- `STARTING` signals wait until the program can do what they ask; SIGINT ends a start as SIGTERM does.
"""

from __future__ import annotations

import atexit
import gc
import os
import resource
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from proxy.config import source
from proxy.config.faults import ConfigError

from . import inheritance
from .signals import STARTING

if TYPE_CHECKING:
    import socket

    from proxy.config.units import Address

    from .forkserver import ForkServer

EXIT_FAILED: Final = 1
STANDARD: Final = frozenset((0, 1, 2))
NOT_IMPORTED: Final = ("rich",)
"""Optional parts of others' packages that take a tenth of a second, and that a proxy has no use for."""


def start(path: str) -> int:
    """`onetrip serve PATH`. Returns the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STARTING)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(100_000, 50, 50)  # a start makes much that lives long; see also `tuning`
    open_standard_files()
    raise_descriptor_limit()
    path = str(Path(path).absolute())
    try:
        read = source.read_source(path)
    except ConfigError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)  # noqa: T201 - what `onetrip check` prints
        return EXIT_FAILED
    bound = bind_early(read)
    from . import forkserver  # noqa: PLC0415 - its ticket keys are OpenSSL's; see `test_imports`

    return serve(path, forkserver.start(path, __name__, tuple(bound.values())), read, bound)


def serve(
    path: str,
    fork_server: ForkServer,
    read: source.Source | None = None,
    bound: dict[tuple[Address, bool], socket.socket] | None = None,
) -> int:
    """Import the program and run it. Returns the exit code. Successors begin here: they have sockets, and read anew."""
    for name in NOT_IMPORTED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # makes `import` say that there is none
    return int(import_module("proxy.process.serve").serve(path, fork_server, read, bound))


def leave(code: int) -> NoReturn:
    """End the process at once, its output written: whoever restarts it waits for that, and taking an interpreter down
    takes as long as the half of a start.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def bind_early(read: source.Source) -> dict[tuple[Address, bool], socket.socket]:
    """Sockets for the addresses in a file, by (address, fast open). What can't be bound is left to be said later."""
    found: dict[tuple[Address, bool], socket.socket] = {}
    if inheritance.inherits():
        return found
    for address, fast_open in source.addresses(read):
        with suppress(OSError):
            found[address, fast_open] = inheritance.bind(address, fast_open)
    return found


def raise_descriptor_limit() -> None:
    """A proxy has two descriptors a connection; the soft limit that most systems start with (1,024) is for programs
    that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_standard_files() -> None:
    """A program that was started with one of them closed would have a socket for it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) in STANDARD:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
