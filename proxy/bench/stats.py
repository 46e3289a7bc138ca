"""How sure a difference of two percentiles is: a block bootstrap over a run's time intervals.

Latencies are not independent: a slow second makes a hundred slow requests. Drawing single requests with replacement
would take those for a hundred witnesses and promise far too much. So whole intervals are drawn (Künsch 1989, with
blocks that do not overlap), which keeps what happened together together. Where both sides met the same minutes (an A/B
run), the same intervals are drawn for both, and what disturbed both at once cancels out.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Final

from .record import highest_us, percentiles_of

CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 1000
_BLOCKS_MIN: Final = 8
_SEED: Final = 20  # the same files give the same interval


@dataclass(frozen=True, slots=True)
class Difference:
    """A percentile of both sides (us), and where the difference b - a lies with `CONFIDENCE` (None: too few intervals
    to say).
    """

    percent: float
    a_us: int
    b_us: int
    low_us: float | None
    high_us: float | None

    @property
    def us(self) -> int:
        """b - a."""
        return self.b_us - self.a_us

    @property
    def relative(self) -> float:
        """The change as a share of a (infinite where a is 0 and b is not)."""
        if self.a_us == 0:
            return 0.0 if self.b_us == 0 else float("inf")
        return self.us / self.a_us

    @property
    def certain(self) -> bool:
        """The interval excludes that nothing changed."""
        return self.low_us is not None and self.high_us is not None and (self.low_us > 0 or self.high_us < 0)


class _Blocks:
    """The intervals' counts, cumulated over one grid of buckets: a percentile of any mix is one binary search."""

    def __init__(self, blocks: Sequence[dict[int, int]]) -> None:
        self.grid = sorted(set().union(*blocks))
        rows = [list(accumulate(block.get(index, 0) for index in self.grid)) for block in blocks]
        self.columns = list(zip(*rows, strict=True))  # a column holds, for one bucket, every block's count up to it

    def percentiles(self, drawn: Sequence[int], percents: Sequence[float]) -> list[int]:
        """Of the blocks drawn, each as often as it was (at least two draws)."""
        pick = itemgetter(*drawn)
        total = sum(pick(self.columns[-1]))
        if not total:
            return [0] * len(percents)
        found = []
        for percent in percents:
            wanted = max(1, int(percent * total / 100 + 0.5))
            position = bisect_left(self.columns, wanted, key=lambda column: sum(pick(column)))
            found.append(highest_us(self.grid[position]))
        return found


def differences(
    a: Sequence[dict[int, int]], b: Sequence[dict[int, int]], percents: Sequence[float], *, paired: bool
) -> list[Difference]:
    """Compare two runs, given as bucket counts by interval. `paired`: interval i of both is the same stretch.

    Empty where one side has no latencies at all: nothing is known of their difference then.
    """
    a_all, b_all = _merged(a), _merged(b)
    if not a_all or not b_all:
        return []
    points = zip(percents, percentiles_of(a_all, percents), percentiles_of(b_all, percents), strict=True)
    filled_a, filled_b = sum(map(bool, a)), sum(map(bool, b))
    if min(filled_a, filled_b) < _BLOCKS_MIN or (paired and len(a) != len(b)):
        return [Difference(percent, a_us, b_us, None, None) for percent, a_us, b_us in points]
    draws = _draw(a, b, percents, paired=paired)
    tail = (1 - CONFIDENCE) / 2
    found = []
    for (percent, a_us, b_us), drawn in zip(points, draws, strict=True):
        drawn.sort()
        low, high = drawn[int(tail * len(drawn))], drawn[min(len(drawn) - 1, int((1 - tail) * len(drawn)))]
        found.append(Difference(percent, a_us, b_us, low, high))
    return found


def _draw(
    a: Sequence[dict[int, int]], b: Sequence[dict[int, int]], percents: Sequence[float], *, paired: bool
) -> list[list[float]]:
    choice = random.Random(_SEED)
    blocks_a, blocks_b = _Blocks(a), _Blocks(b)
    draws: list[list[float]] = [[] for _ in percents]
    for _ in range(_RESAMPLES):
        drawn_a = choice.choices(range(len(a)), k=len(a))
        drawn_b = drawn_a if paired else choice.choices(range(len(b)), k=len(b))
        sides = zip(blocks_a.percentiles(drawn_a, percents), blocks_b.percentiles(drawn_b, percents), strict=True)
        for column, (a_us, b_us) in enumerate(sides):
            draws[column].append(b_us - a_us)
    return draws


def _merged(blocks: Sequence[dict[int, int]]) -> dict[int, int]:
    merged: dict[int, int] = {}
    for block in blocks:
        for index, count in block.items():
            merged[index] = merged.get(index, 0) + count
    return merged
