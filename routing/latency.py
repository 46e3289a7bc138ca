"""How far a region is, and how slow its tail: RTT floors, peak-EWMA service times, sliding counts with quantiles.

A latency is split in two. The *floor* is the path's round trip (TCP_INFO, handshakes, probes); the *service* time is
what an answer took beyond it. A fast failure can therefore never make an endpoint look nearer than its path, an idle
endpoint decays to its path instead of to zero (the fault of peak-EWMA over a WAN), and the service times of regions
at different distances can be compared.

Three estimates, for three questions:
- `PeakEwma` (Finagle, linkerd): which of two endpoints now? A slow answer counts at once, a fast one slowly.
- `SlidingCounts`: the median tells where a region is, the 95th percentile when an answer is late. Failures and lost
  hedges are counted beside the answers, never among them: a censored sample has no value, only a lower bound.
- `tail_share`: how many requests a region serves badly, as a lower confidence bound, so that one slow answer moves
  nothing and forty do.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SERVICE_TAU_S: Final = 10.0
"""The memory of the peak-EWMA (linkerd's)."""

FLOOR_WINDOW_S: Final = 2.0
"""The floor is the least round trip of this window and the one before: a path that got longer shows within two of
them.
"""

PARTS: Final = 32
PART_S: Final = 1.0
"""Counts slide over 32 parts of a second each."""

BUCKETS_PER_E: Final = 50
"""Buckets are 2 % wide: 50 of them for each factor of e."""

SERVICE_MIN_S: Final = 1e-5
SERVICE_MAX_S: Final = 1e3
BUCKET_MAX: Final = int(log(SERVICE_MAX_S / SERVICE_MIN_S) * BUCKETS_PER_E)


class RttFloor:
    """The least round trip of the last seconds. It keeps its value while nothing is measured."""

    __slots__ = ("_current", "_previous", "_since", "value")

    def __init__(self) -> None:
        self.value = 0.0  # 0: unknown
        self._current = 0.0
        self._previous = 0.0
        self._since = 0.0

    def observe(self, now: float, rtt: float) -> None:
        """Take a measured round trip in seconds."""
        if now - self._since >= FLOOR_WINDOW_S:
            self._previous = self._current if now - self._since < 2 * FLOOR_WINDOW_S else 0.0
            self._current = 0.0
            self._since = now
        if not self._current or rtt < self._current:
            self._current = rtt
        self.value = min(self._current, self._previous) if self._previous else self._current

    def at_most(self, bound: float) -> None:
        """An answer took `bound` seconds in all, so the path can't be longer.

        (No sample: answers don't keep a floor fresh.)
        """
        if bound < self.value:
            self.value = bound
            self._current = min(self._current, bound)


class PeakEwma:
    """A moving average that a larger sample replaces at once, and that falls back with `SERVICE_TAU_S`.

    Between samples it falls toward zero, that is toward the path's round trip: an avoided endpoint is tried again.
    """

    __slots__ = ("stamp", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.stamp = 0.0

    def observe(self, now: float, sample: float) -> None:
        """Take a sample in seconds."""
        value = self.value
        if sample >= value:
            self.value = sample
        else:
            # age / (age + tau) stands for 1 - e^(-age/tau): the same near 0 and at infinity, and no call to exp.
            age = now - self.stamp
            self.value = value + (sample - value) * age / (age + SERVICE_TAU_S)
        self.stamp = now

    def observe_at_least(self, now: float, bound: float) -> None:
        """Take a censored sample: it took `bound` seconds or more."""
        if bound > self.read(now):
            self.value = bound
            self.stamp = now

    def read(self, now: float) -> float:
        """The average now."""
        return self.value * exp((self.stamp - now) / SERVICE_TAU_S)


class _Part:
    __slots__ = ("answered", "counts", "failed", "lost")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.answered = 0
        self.lost = 0
        self.failed = 0


class SlidingCounts:
    """Answers by service time, lost hedges and failures of the last `PARTS` seconds.

    Hot callers write to `current` themselves: `current.answered += 1`, `current.counts[bucket] …` with `bucket_of`.
    """

    __slots__ = ("_parts", "_since", "current")

    def __init__(self, now: float) -> None:
        self.current = _Part()
        self._parts: list[_Part] = [self.current]
        self._since = now

    def answer(self, service: float) -> None:
        """Count an answer that took `service` seconds beyond the floor."""
        part = self.current
        part.answered += 1
        bucket = bucket_of(service)
        part.counts[bucket] = part.counts.get(bucket, 0) + 1

    def rotate(self, now: float) -> None:
        """Let time pass. Call it before reading."""
        passed = int((now - self._since) / PART_S)
        if passed <= 0:
            return
        self._since += passed * PART_S
        for _ in range(min(passed, PARTS)):
            self.current = _Part()
            self._parts.append(self.current)
        del self._parts[:-PARTS]

    def last(self, parts: int = PARTS) -> Totals:
        """The totals of the last `parts` parts, the current one included."""
        return Totals(self._parts[-parts:])

    def shares(self) -> Iterable[tuple[int, int]]:
        """(bad, all) over the last 1, 2, 4 … parts."""
        bad = total = 0
        width = 1
        for count, part in enumerate(reversed(self._parts), 1):
            bad += part.lost + part.failed
            total += part.answered + part.lost + part.failed
            if count == width:
                yield bad, total
                width *= 2


class Totals:
    """The sum of some parts: `answered`, `lost`, `failed`, and the answers' quantiles."""

    __slots__ = ("_buckets", "_counts", "answered", "failed", "lost")

    def __init__(self, parts: Iterable[_Part]) -> None:
        self.answered = self.lost = self.failed = 0
        counts: dict[int, int] = {}
        for part in parts:
            self.answered += part.answered
            self.lost += part.lost
            self.failed += part.failed
            for bucket, count in part.counts.items():
                counts[bucket] = counts.get(bucket, 0) + count
        self._counts = counts
        self._buckets = sorted(counts)

    def quantile(self, share: float) -> float:
        """The service time in seconds that `share` of the answers did not exceed (by at most 2 %).

        0.0 without answers.
        """
        rank = share * self.answered
        seen = 0
        for bucket in self._buckets:
            seen += self._counts[bucket]
            if seen >= rank:
                return bound_of(bucket)
        return bound_of(self._buckets[-1]) if self._buckets else 0.0

    def survivors(self) -> list[tuple[float, float]]:
        """(service time, share of the answers that took longer), ascending."""
        left = self.answered
        found = []
        for bucket in self._buckets:
            left -= self._counts[bucket]
            found.append((bound_of(bucket), left / self.answered))
        return found


def bucket_of(service: float) -> int:
    """The bucket of a service time in seconds; times outside the range count in the outermost ones."""
    if service <= SERVICE_MIN_S:
        return 0
    return int(log(service / SERVICE_MIN_S) * BUCKETS_PER_E) if service < SERVICE_MAX_S else BUCKET_MAX


def bound_of(bucket: int) -> float:
    """A bucket's upper bound in seconds."""
    return SERVICE_MIN_S * exp((bucket + 1) / BUCKETS_PER_E)


def tail_share(shares: Iterable[tuple[int, int]]) -> float:
    """The share of requests served badly: over several windows, the largest lower bound (one standard error below
    the mean).

    Short windows see a fault that just began, long ones a rare one. With one bad request the bound is zero.
    """
    worst = 0.0
    for bad, total in shares:
        if bad > 1:
            worst = max(worst, (bad - sqrt(bad)) / total)
    return worst
