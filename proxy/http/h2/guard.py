"""How much a peer may make us do for nothing on one HTTP/2 connection.

Frames that cost us and earn the peer nothing (resets, pings, settings, empty frames, ...) each fill a bucket. Useful
work drains the buckets: a completed stream, a DATA frame with something in it. A full bucket ends the connection with
ENHANCE_YOUR_CALM (RFC 9113 section 10.5). There is no clock here, so a session in which peer and proxy only keep each
other alive would fill its bucket in the end: `tick`, once a second or so, counts as some work.

Draining is lazy: work is one counter, and a bucket looks at how far it moved when the next frame of its kind comes. A
bucket that is empty drains no further, but for WINDOW: credit is due for every DATA frame that we have sent, and a peer
that was slow to read them gives all of it at once.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

TICK_WORK: Final = 20
"""Units of work that one `tick` stands for."""


class Abuse(Enum):
    """What is counted: (label, how many a bucket holds, how many one unit of work drains, how many below empty)."""

    RESET = ("reset", 200, 1, 0)  # the peer ends a stream that we have not answered: rapid reset, CVE-2023-44487
    FAULT = ("fault", 200, 1, 0)  # the peer makes us end one: CVE-2025-8671
    PING = ("ping", 200, 1, 0)  # CVE-2019-9512
    SETTINGS = ("settings", 100, 1, 0)  # CVE-2019-9515
    EMPTY = ("empty", 200, 1, 0)  # DATA with nothing in it: CVE-2019-9518
    WINDOW = ("window", 2000, 4, 1 << 16)  # credit for DATA frames, and in crumbs: CVE-2019-9511, CVE-2019-9517
    IGNORED = ("ignored", 2000, 8, 0)  # PRIORITY (CVE-2019-9513), unknown types, refused streams and what comes on them

    def __init__(self, label: str, size: int, drain: int, saved: int) -> None:
        self.label = label
        self.size = size
        self.drain = drain
        self.saved = saved
        self.position = -1


for _position, _kind in enumerate(Abuse):
    _kind.position = _position


class Guard:
    """The buckets of one connection. `work` is added to by whoever does some."""

    __slots__ = ("_levels", "_seen", "_totals", "work")

    def __init__(self) -> None:
        self.work = 0
        self._levels = [0] * len(Abuse)
        self._seen = [0] * len(Abuse)  # `work` when the bucket was last looked at
        self._totals = [0] * len(Abuse)

    def spend(self, kind: Abuse) -> bool:
        """Count one; False: the bucket is full."""
        position = kind.position
        self._totals[position] += 1
        work = self.work
        level = self._levels[position] - (work - self._seen[position]) * kind.drain
        self._seen[position] = work
        floor = -kind.saved
        level = floor + 1 if level < floor else level + 1
        self._levels[position] = level
        return level <= kind.size

    def tick(self) -> None:
        """A second or so has passed."""
        self.work += TICK_WORK

    @property
    def totals(self) -> dict[str, int]:
        """How many of each kind were counted since the connection began."""
        return {kind.label: self._totals[kind.position] for kind in Abuse}
