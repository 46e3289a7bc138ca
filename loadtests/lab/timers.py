"""Timers for an event loop at a tenth of a millisecond: uvloop's and asyncio's own round to whole ones.

One heap and one Linux timerfd that the loop watches. Elsewhere than on Linux it falls back to `call_later` and its
resolution.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable
from heapq import heappop, heappush
from time import monotonic
from typing import Any, Final

_CLOCK_MONOTONIC: Final = 1
_TFD_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME: Final = 1
_EARLY_S: Final = 20e-6  # due within this: run it with the batch at hand


class Timers:
    """Callbacks at instants of `time.monotonic`. There is no cancel: a callback checks whether it is still wanted."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0
        self._descriptor = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
            loop.add_reader(self._descriptor, self._expired)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """Run `callback(*args)` at `when`, or as soon as possible where that has passed.

        Equal instants keep their order.
        """
        self._sequence += 1
        heappush(self._heap, (when, self._sequence, callback, args))
        if self._heap[0][1] == self._sequence:
            self._arm()

    def close(self) -> None:
        """Forget everything that has not run."""
        self._heap.clear()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _arm(self) -> None:
        when = self._heap[0][0]
        if self._descriptor < 0:
            self._loop.call_later(max(0.0, when - monotonic()), self._run)
            return
        nanoseconds = max(1, int(when * 1e9))  # zero would disarm it
        value = struct.pack("qqqq", 0, 0, nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
        self._libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, value, None)

    def _expired(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:  # armed anew since it expired
            return
        self._run()

    def _run(self) -> None:
        heap = self._heap
        # Only what was there at the start: a callback that schedules itself for now must not keep the loop.
        last = self._sequence
        while heap and heap[0][0] <= monotonic() + _EARLY_S and heap[0][1] <= last:
            _, _, callback, args = heappop(heap)
            callback(*args)
        if heap:
            self._arm()
