"""Raw sockets beside uvloop: one epoll instance of our own, itself watched by the loop as a single descriptor.

A relayed TCP connection needs neither transports nor protocols: two descriptors, a shared buffer, and splice(2).
Watching a descriptor costs one epoll_ctl here, against a libuv handle each in the loop.

Rules:
- Events are level-triggered: what a watcher leaves unread is reported again. `BROKEN` is reported whether asked for or
  not, so a watcher that can do nothing about it has to `forget`.
- Descriptor numbers are reused at once. Events that were fetched before their descriptor was forgotten are dropped.
- A watcher that raises is our bug: it is reported to the loop and no longer called, and the others get their events.
- A relay in bulk rests after each big splice: one timer for all of them instead of a wake-up for each few packets. It
  is what network drivers call interrupt moderation, for the same reason: going to sleep and waking up cost more than
  moving the bytes.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import asyncio

    from .turn import Turn

READ: Final[int] = select.EPOLLIN | select.EPOLLRDHUP
WRITE: Final[int] = select.EPOLLOUT
BROKEN: Final[int] = select.EPOLLERR | select.EPOLLHUP
UNWATCHED: Final = -1
EVENTS_MAX: Final = 256
REST_S: Final = 0.001
"""What the loop's timers resolve."""
ROUNDS_MAX: Final = 4
"""How often one wake-up asks for events, where each time brought several: under load that spares the loop's own
polling; the rest of the worker has its turn in between."""
_SEVERAL: Final = 4


class Watcher(Protocol):
    """Who is told what happens on a descriptor."""

    def on_event(self, fd: int, events: int) -> None:
        """The descriptor is readable, writable or broken (an epoll event mask)."""


class Resting(Protocol):
    """Who is told when it has rested."""

    def on_rested(self) -> None:
        """Time to go on."""


class Reactor:
    """The descriptors of one worker's L4 connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Turn) -> None:
        self._loop = loop
        self._turn = turn
        self._epoll = select.epoll()
        self._watchers: dict[int, Watcher] = {}
        self._resting: list[Resting] = []
        self._forgotten: set[int] = set()  # since the events at hand were fetched
        loop.add_reader(self._epoll.fileno(), self._poll)

    def __repr__(self) -> str:
        return f"<Reactor {len(self._watchers)} descriptors>"

    def watch(self, fd: int, events: int, watcher: Watcher) -> None:
        """Begin to watch, or change for what and by whom."""
        if fd in self._watchers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watchers[fd] = watcher

    def hand_over(self, fd: int, watcher: Watcher) -> None:
        """Another watcher from now on, for the same events."""
        self._watchers[fd] = watcher

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor that stays open. Idempotent."""
        if self._watchers.pop(fd, None) is not None:
            self._forgotten.add(fd)
            self._epoll.unregister(fd)

    def closing(self, fd: int) -> None:
        """Stop watching a descriptor that the caller closes now: the kernel forgets it by itself then (epoll(7)).
        Idempotent.
        """
        if self._watchers.pop(fd, None) is not None:
            self._forgotten.add(fd)

    def _poll(self) -> None:
        turn = self._turn
        turn.begin()
        try:
            for _ in range(ROUNDS_MAX):
                self._forgotten.clear()
                ready = self._epoll.poll(0, EVENTS_MAX)
                for fd, events in ready:
                    if fd not in self._forgotten:
                        self._tell(fd, events)
                if len(ready) < _SEVERAL:
                    break
        finally:
            turn.end()

    def rest(self, relay: Resting) -> None:
        """Tell it in a moment. The caller keeps a flag, and asks once."""
        self._resting.append(relay)
        if len(self._resting) == 1:
            self._loop.call_later(REST_S, self._rested)

    def _rested(self) -> None:
        turn = self._turn
        turn.begin()
        try:
            resting, self._resting = self._resting, []
            for relay in resting:
                try:
                    relay.on_rested()
                except Exception as error:
                    self._loop.call_exception_handler({"message": f"{relay!r} failed", "exception": error})
        finally:
            turn.end()

    def _tell(self, fd: int, events: int) -> None:
        watcher = self._watchers.get(fd)
        if watcher is None:
            return
        try:
            watcher.on_event(fd, events)
        except Exception as error:
            self.forget(fd)
            self._loop.call_exception_handler({"message": f"{watcher!r} failed", "exception": error})

    def close(self) -> None:
        """Watch nothing any more."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._watchers.clear()
            self._epoll.close()
