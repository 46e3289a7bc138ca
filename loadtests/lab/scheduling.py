"""Processes that keep time: the best scheduling that this user may give them."""

from __future__ import annotations

import os
import sys
from ctypes import CDLL
from typing import Final

CARRYING: Final = 10  # real-time priorities: who carries packets goes before
MEASURING: Final = 1  # who measures them
_PR_SET_TIMERSLACK: Final = 29


def hurry(priority: int, pid: int = 0) -> str:
    """Give a process (0: this one) a real-time priority, or else a better nice value; returns what it got, in words.

    This one's timers also become as exact as the kernel can make them (1 us of slack, not 50).
    """
    if sys.platform == "linux":
        if pid == 0:
            CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        try:
            os.sched_setscheduler(pid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
            return "real-time"
        except OSError:
            pass
    try:
        os.setpriority(os.PRIO_PROCESS, pid, -10)
        return "nice -10"
    except OSError:
        return "ordinary"
