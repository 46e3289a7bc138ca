"""What a process that serves is told once about its memory; it never looks at a config."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_process() -> None:
    """Once per process, before traffic.

    Requests make no reference cycles, so the collector only ever walks what lives long: it is told to leave the
    start-up's objects alone and to look rarely. glibc otherwise maps and unmaps memory for every 256 KiB read.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 22)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 23)
