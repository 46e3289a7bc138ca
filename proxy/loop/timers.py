"""Coarse timers: one event-loop timer for every deadline of a worker.

`call_later` costs about 0.8 us with its cancel; an exchange re-arms several deadlines. Here a deadline is a place in
a bucket: setting and cancelling are a set operation each, and one loop timer walks the buckets that are due. A target
holds at most one deadline.

Precision: deadlines under a second ahead fire within `NEAR_S` after their time, later ones within `FAR_S`; never
early.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

    from .turn import Turn

NEAR_S: Final = 0.002
FAR_S: Final = 0.1
_FAR_FROM_S: Final = 1.0
_NEAR_PER_S: Final = 1 / NEAR_S
_NEAR_PER_FAR: Final = round(FAR_S / NEAR_S)


class Timed(Protocol):
    """Something with a deadline. `timer_bucket` belongs to `Timers`: None while no deadline is set."""

    timer_bucket: set[Timed] | None

    def on_timer(self, now: float) -> None:
        """The deadline has passed (it is no longer set)."""


class Timers:
    """All deadlines of one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Turn) -> None:
        self._loop = loop
        self._turn = turn
        self._buckets: dict[int, set[Timed]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._next = 0  # the tick that the loop timer is set for; 0: none

    def __repr__(self) -> str:
        return f"<Timers {sum(map(len, self._buckets.values()))} in {len(self._buckets)} buckets>"

    def set(self, target: Timed, when: float, now: float) -> None:
        """Call `target.on_timer` at monotonic time `when`; replaces the target's earlier deadline."""
        bucket = target.timer_bucket
        if bucket is not None:
            bucket.discard(target)
        tick = int(when * _NEAR_PER_S) + 1
        if when - now > _FAR_FROM_S:  # far deadlines share coarse buckets, so that there are few of them
            tick += -tick % _NEAR_PER_FAR
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            if not self._next or tick < self._next:
                self._arm(tick, now)
        bucket.add(target)
        target.timer_bucket = bucket

    @staticmethod
    def cancel(target: Timed) -> None:
        """Forget the target's deadline, if it has one."""
        bucket = target.timer_bucket
        if bucket is not None:
            bucket.discard(target)
            target.timer_bucket = None

    def _arm(self, tick: int, now: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next = tick
        self._handle = self._loop.call_later(max(0.0, tick * NEAR_S - now), self._fire)

    def _fire(self) -> None:
        now = monotonic()
        self._next = 0
        self._handle = None
        due = int(now * _NEAR_PER_S)
        self._turn.begin()
        try:
            for tick in sorted(tick for tick in self._buckets if tick <= due):
                bucket = self._buckets.pop(tick)
                while bucket:
                    target = bucket.pop()
                    target.timer_bucket = None
                    try:
                        target.on_timer(now)
                    except Exception as error:
                        context = {"message": f"timer of {target!r}", "exception": error}
                        self._loop.call_exception_handler(context)
        finally:
            self._turn.end()
            if self._buckets:
                earliest = min(self._buckets)
                if not self._next or earliest < self._next:
                    self._arm(earliest, now)
