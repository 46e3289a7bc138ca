"""Calling back at exact instants, on an event loop whose own timers count milliseconds.

uvloop's `call_later` rounds to whole milliseconds, which at 5,000 requests a second is five requests at once. A Linux
timerfd is a file descriptor that becomes readable at an instant given in nanoseconds: the loop wakes about 20 us after
it, at a cost of about 20 us of CPU, and sleeps in between. Where there is none, the loop sleeps until shortly before
the instant and then turns over (a core's worth of CPU at high rates).

The instants are on `time.monotonic`, which is CLOCK_MONOTONIC on Linux.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1
_COARSE_S: Final = 0.002  # call_later may be this late
_BATCH_MAX: Final = 32  # slots started before the loop gets to read answers again


class _Timerspec(ctypes.Structure):
    """struct itimerspec: interval and value, each of seconds and nanoseconds."""

    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]


class TimerFd:
    """A one-shot kernel timer, armed at absolute instants. OSError where the kernel has none."""

    __slots__ = ("_library", "_reference", "_spec", "descriptor")

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("timerfd is a Linux interface")
        self._library: Any = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._library, "timerfd_create"):
            raise OSError("this C library has no timerfd")
        self.descriptor: int = self._library.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _Timerspec()
        self._reference = ctypes.byref(self._spec)

    def arm(self, instant: float) -> None:
        """Become readable at `instant`. Arming again also takes back a readiness that nobody has read."""
        seconds = int(instant)
        self._spec.value_s = seconds
        self._spec.value_ns = max(1, int((instant - seconds) * 1e9))
        self._library.timerfd_settime(self.descriptor, _TFD_TIMER_ABSTIME, self._reference, None)

    def close(self) -> None:
        """Free the descriptor."""
        os.close(self.descriptor)


class Pacer:
    """Calls `fire(instant, index)` for every slot of a schedule, in order, as soon after its instant as the loop can.

    It never skips and never delays a slot on purpose: after a stall it catches up at once, and the instants passed on
    stay those of the schedule. `finished` is called after the last one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        slots: Iterator[tuple[float, int]],
        fire: Callable[[float, int], None],
        finished: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._fire = fire
        self._finished = finished
        self._clock = clock
        self._timer: TimerFd | None = None
        self._handle: asyncio.Handle | None = None
        self._start = 0.0
        self._next = 0.0
        self._index = 0
        self._running = False

    def start(self, instant: float) -> None:
        """Begin: a slot's instant is `instant` plus its offset."""
        self._start = instant
        self._running = True
        try:
            self._timer = TimerFd()
            self._loop.add_reader(self._timer.descriptor, self._wake)
        except OSError:
            self._timer = None
        if self._advance():
            self._sleep()

    def stop(self) -> None:
        """Fire no more. Idempotent."""
        self._running = False
        if self._timer is not None:
            self._loop.remove_reader(self._timer.descriptor)
            self._timer.close()
            self._timer = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _advance(self) -> bool:
        slot = next(self._slots, None)
        if slot is None:
            self.stop()
            self._finished()
            return False
        self._next = self._start + slot[0]
        self._index = slot[1]
        return True

    def _wake(self) -> None:
        clock = self._clock
        for _ in range(_BATCH_MAX):
            if not self._running or self._next > clock():
                break
            self._fire(self._next, self._index)
            if not self._running or not self._advance():
                return
        if self._running:
            self._sleep()

    def _sleep(self) -> None:
        if self._timer is not None:
            self._timer.arm(self._next)  # an instant in the past makes it readable at once, after the sockets' turn
            return
        left_s = self._next - self._clock()
        if left_s > _COARSE_S:
            self._handle = self._loop.call_later(left_s - _COARSE_S, self._sleep)
        else:
            self._handle = self._loop.call_soon(self._wake)
