"""Pipes for splice(2), shared by all relays of a process: a relay has one only while bytes are in it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final, TypeAlias

Pipe: TypeAlias = tuple[int, int]
"""The descriptors to read from and to write to."""

PIPE_BYTES: Final = 1024 * 1024
"""The default size (64 KiB) would take four times the calls."""
PIPE_BYTES_MIN: Final = 128 * 1024
KEPT_MAX: Final = 16
_F_SETPIPE_SZ: Final = 1031
_F_GETPIPE_SZ: Final = 1032

kept: list[Pipe] = []
"""Empty ones."""


def take() -> Pipe | None:
    """An empty pipe; None where there is none worth having: descriptors are spent, or the user's share of pipe memory
    (pipe(7): from then on the kernel makes them two pages small).
    """
    if kept:
        return kept.pop()
    try:
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, PIPE_BYTES)
    if fcntl.fcntl(pipe[1], _F_GETPIPE_SZ) < PIPE_BYTES_MIN:
        close(pipe)
        return None
    return pipe


def give(pipe: Pipe) -> None:
    """Back, empty."""
    if len(kept) < KEPT_MAX:
        kept.append(pipe)
    else:
        close(pipe)


def close(pipe: Pipe) -> None:
    """Away with it, and with what is in it."""
    os.close(pipe[0])
    os.close(pipe[1])
