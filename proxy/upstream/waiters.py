"""Who waits for a connection to one endpoint, in the order in which they came.

One that gives up stays in its queue and is passed over (`Waiter.waiting`); `forget` keeps such from piling up.
It queues, and never lends, dials or fails anybody.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .contract import Waiter

WAITERS_MAX: Final = 4096
_FORGOTTEN_MAX: Final = 64


class Waiters:
    """`queue`: they take any connection; `upgrades`: they wait until a shared connection's peer has said whether it
    takes upgrades.
    """

    __slots__ = ("queue", "upgrades")

    def __init__(self) -> None:
        self.queue: deque[Waiter] = deque()
        self.upgrades: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self.queue)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self.queue)

    @property
    def full(self) -> bool:
        """Nobody else may wait."""
        return len(self.queue) >= WAITERS_MAX

    @property
    def upgrades_full(self) -> bool:
        """No other upgrade may wait."""
        return len(self.upgrades) >= WAITERS_MAX

    def next(self) -> Waiter | None:
        """The first who still waits, out of the queue."""
        queue = self.queue
        while queue:
            waiter = queue.popleft()
            if waiter.waiting:
                return waiter
        return None

    def early(self) -> Waiter | None:
        """The first whose request may ride in the first flight of a connection made now; it stays in the queue."""
        for waiter in self.queue:
            if waiter.waiting and waiter.may_travel_early():
                return waiter
        return None

    def count(self) -> int:
        """How many still wait for any connection."""
        return sum(1 for waiter in self.queue if waiter.waiting)

    def forget(self) -> None:
        """One no longer waits (its `waiting` is False already)."""
        queue = self.queue
        while queue and not queue[0].waiting:
            queue.popleft()
        if len(queue) > _FORGOTTEN_MAX and self.count() * 2 < len(queue):
            self.queue = deque(waiter for waiter in queue if waiter.waiting)

    def take_upgrades(self) -> list[Waiter]:
        """All upgrades that still wait, out of their queue."""
        upgrades, self.upgrades = self.upgrades, deque()
        return [waiter for waiter in upgrades if waiter.waiting]

    def take_all(self) -> list[Waiter]:
        """Everybody who still waits, out of both queues."""
        waiting = [waiter for waiter in self.queue if waiter.waiting] + self.take_upgrades()
        self.queue.clear()
        return waiting
