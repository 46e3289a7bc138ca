"""One direction of a path between two regions: when does what was handed to it now arrive, if it does?

Pure: `now` is an argument, in seconds of any monotonic clock. The packet carrier (namespaces) and the relay (loopback)
share it.

A packet meets, in this order:
- the blackhole: it is gone;
- loss: it is gone with probability `loss`;
- the bottleneck: it waits for the packets before it at `rate_mbit`, and is dropped where that wait would exceed
  `queue_ms` (a bounded tail-drop queue), then takes its own time to serialise;
- the distance: `delay_ms`, plus or minus up to `jitter_ms` (uniform). Jitter and changes of the delay never reorder;
- reordering: with probability `reorder` it takes `reorder_ms` longer, and later packets overtake it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class PathSettings:
    """What one direction does to packets. Milliseconds one way, shares of one, megabits a second (0: no limit)."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 0.0
    queue_ms: float = 100.0
    reorder: float = 0.0
    reorder_ms: float = 5.0
    blackhole: bool = False

    def __post_init__(self) -> None:
        for name in ("loss", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        for name in ("delay_ms", "jitter_ms", "rate_mbit", "queue_ms", "reorder_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} can't be negative: {getattr(self, name)}")

    def changed(self, **values: float | bool) -> PathSettings:
        """The same path with some settings replaced. `rtt_ms` sets `delay_ms` to its half.

        Raises ValueError on what makes no sense.
        """
        if "rtt_ms" in values:
            values["delay_ms"] = values.pop("rtt_ms") / 2
        unknown = values.keys() - SETTING_NAMES
        if unknown:
            raise ValueError(
                f"no such path setting: {', '.join(sorted(unknown))} (there are rtt_ms, {', '.join(SETTING_NAMES)})"
            )
        return replace(self, **values)  # type: ignore[arg-type]  # the names were checked; the values are, in __post_init__


SETTING_NAMES = tuple(field.name for field in fields(PathSettings))


class Link:
    """The state of one direction: its settings, its bottleneck's queue, and what has happened to packets."""

    __slots__ = (
        "_delay_s",
        "_free_at",
        "_last_due",
        "_random",
        "_simple",
        "bytes",
        "lost",
        "overflowed",
        "packets",
        "settings",
        "swallowed",
    )

    def __init__(self, settings: PathSettings, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._last_due = 0.0
        self.packets = 0
        self.bytes = 0
        self.lost = 0
        self.overflowed = 0
        self.swallowed = 0
        self.configure(settings)

    def __repr__(self) -> str:
        return f"<Link {self.settings.delay_ms:g} ms one way, {self.counters()}>"

    def configure(self, settings: PathSettings) -> None:
        """Take new settings; what is on its way already arrives as it would have."""
        self.settings = settings
        self._delay_s = settings.delay_ms / 1e3
        self._simple = settings == PathSettings(delay_ms=settings.delay_ms)

    def schedule(self, now: float, size: int) -> float | None:
        """When `size` bytes handed over now arrive; None where they never do."""
        self.packets += 1
        self.bytes += size
        if self._simple:
            due = now + self._delay_s
            if due < self._last_due:
                return self._last_due
            self._last_due = due
            return due
        return self._schedule(now, size)

    def _schedule(self, now: float, size: int) -> float | None:
        settings = self.settings
        if settings.blackhole:
            self.swallowed += 1
            return None
        if settings.loss and self._random.random() < settings.loss:
            self.lost += 1
            return None
        sent = now
        if settings.rate_mbit:
            start = max(now, self._free_at)
            if start - now > settings.queue_ms / 1e3:
                self.overflowed += 1
                return None
            sent = self._free_at = start + size * 8 / (settings.rate_mbit * 1e6)
        due = sent + self._delay_s
        if settings.jitter_ms:
            due = max(sent, due + self._random.uniform(-settings.jitter_ms, settings.jitter_ms) / 1e3)
        if settings.reorder and self._random.random() < settings.reorder:
            return max(due, self._last_due) + settings.reorder_ms / 1e3
        self._last_due = due = max(due, self._last_due)
        return due

    def counters(self) -> dict[str, int]:
        """Packets and bytes handed over, and how many packets each cause dropped."""
        return {
            "packets": self.packets,
            "bytes": self.bytes,
            "lost": self.lost,
            "overflowed": self.overflowed,
            "swallowed": self.swallowed,
        }
