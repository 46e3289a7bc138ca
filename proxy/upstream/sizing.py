"""How many connections an endpoint should have, and how many dials may start for that now.

- `target_size`: what is in use, what will be in use once a dial started now is done, and the warm reserve.
- Multiplexed connections: the warm ones, and one more while all are near their limit of streams.
- What is missing is dialled a few at once, the rest when it has been missed for a tick: a burst takes all idle
  connections and has brought most of them back by then, and as many handshakes would be in the way of its answers.

It counts and decides; it never dials.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .settings import PoolSettings
    from .stock import Stock

REFILLS_AT_ONCE: Final = 2
_RISE_SMOOTHING: Final = 0.3
_DIAL_SMOOTHING: Final = 0.2


def target_size(busy: int, rise_per_s: float, dial_s: float, settings: PoolSettings) -> int:
    """How many connections there should be, busy ones included.

    What is in use, plus what will be in use once a dial started now is done (`rise_per_s` × `dial_s`), plus the warm
    reserve.
    """
    ahead = math.ceil(max(0.0, rise_per_s) * dial_s)
    return min(settings.max_connections, busy + ahead + settings.warm)


class Sizing:
    """The demand for connections as it has been, and what of it is not met."""

    __slots__ = ("_busy_before", "_missed", "_refills_left", "_rise_per_s", "_ticked", "dial_s", "settings")

    def __init__(self, settings: PoolSettings, now: float) -> None:
        self.settings = settings
        self.dial_s = 0.3  # what a dial takes
        self._refills_left = REFILLS_AT_ONCE
        self._missed = 0  # at the last tick
        self._rise_per_s = 0.0
        self._busy_before = 0
        self._ticked = now

    def dialled(self, seconds: float) -> None:
        """A dial took that long."""
        self.dial_s += _DIAL_SMOOTHING * (seconds - self.dial_s)

    def missing(self, stock: Stock, dialling: int) -> int:
        """How many connections there should be beyond those that are open or being dialled; negative: too many."""
        settings = self.settings
        if stock.shared:
            wanted = max(1, settings.warm, len(stock.shared) + 1 if stock.all_full() else 0)
            standing = len(stock.shared)
        else:
            wanted = target_size(stock.busy, self._rise_per_s, self.dial_s, settings)
            standing = len(stock.connections)
        room = settings.max_connections - len(stock.connections) - dialling
        return min(wanted - standing + stock.stale_ready() - dialling, room)

    def refills(self, stock: Stock, dialling: int) -> int:
        """How many dials may start now; they count as started."""
        count = min(self.missing(stock, dialling), self._refills_left)
        if count > 0:
            self._refills_left -= count
        return count

    def tick(self, now: float, stock: Stock) -> None:
        """Follow the demand."""
        busy = stock.busy
        elapsed = now - self._ticked
        if elapsed > 0:
            rise = (busy - self._busy_before) / elapsed
            self._rise_per_s += _RISE_SMOOTHING * (rise - self._rise_per_s)
        self._busy_before = busy
        self._ticked = now

    def renew(self, stock: Stock, dialling: int) -> None:
        """A tick has passed: what was missing then and still is may be dialled."""
        missing = self.missing(stock, dialling)
        self._refills_left = min(missing, self._missed) if missing > 0 else REFILLS_AT_ONCE
        self._missed = missing
