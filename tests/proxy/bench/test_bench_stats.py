from __future__ import annotations

import random

import pytest

from proxy.bench.record import Histogram
from proxy.bench.stats import differences


def blocks(
    seed: int, shift_ms: float = 0.0, *, count: int = 40, drift_ms: list[float] | None = None
) -> list[dict[int, int]]:
    """Intervals of 50 latencies around 100 ms; `drift_ms` moves whole intervals."""
    choice = random.Random(seed)
    found = []
    for i in range(count):
        histogram = Histogram()
        base = 100 + shift_ms + (drift_ms[i] if drift_ms else 0.0)
        for _ in range(50):
            histogram.record((base + choice.uniform(-5, 5)) / 1000)
        found.append(histogram.counts)
    return found


def test_a_real_difference_is_certain_and_lies_in_its_interval() -> None:
    (median,) = differences(blocks(1), blocks(2, 8.0), [50], paired=False)
    assert median.certain
    assert median.low_us is not None
    assert median.high_us is not None
    assert median.low_us <= 8000 <= median.high_us
    assert median.relative == pytest.approx(0.08, abs=0.01)


def test_the_same_distribution_shows_no_difference() -> None:
    for found in differences(blocks(3), blocks(4), [50, 99], paired=False):
        assert not found.certain


def test_the_point_is_the_difference_of_the_percentiles() -> None:
    a, b = blocks(5), blocks(6, 3.0)
    merged = [Histogram(), Histogram()]
    for side, histogram in zip((a, b), merged, strict=True):
        for block in side:
            other = Histogram()
            other.counts = dict(block)
            other.highest_us = 10**9
            histogram.merge(other)
    for found in differences(a, b, [50, 90, 99], paired=False):
        assert found.us == merged[1].percentile(found.percent) - merged[0].percentile(found.percent)


def test_pairing_cancels_what_disturbed_both() -> None:
    choice = random.Random(9)
    drift = [choice.uniform(0, 200) for _ in range(40)]
    a, b = blocks(7, drift_ms=drift), blocks(8, 8.0, drift_ms=drift)
    (paired,) = differences(a, b, [50], paired=True)
    (apart,) = differences(a, b, [50], paired=False)
    assert paired.low_us is not None
    assert paired.high_us is not None
    assert apart.low_us is not None
    assert apart.high_us is not None
    assert paired.high_us - paired.low_us < 0.7 * (apart.high_us - apart.low_us)
    assert not apart.certain


def test_disturbed_intervals_widen_the_interval() -> None:
    drift = [60.0 if i % 8 == 0 else 0.0 for i in range(40)]
    (calm,) = differences(blocks(1), blocks(2), [90], paired=False)
    (rough,) = differences(blocks(1), blocks(2, drift_ms=drift), [90], paired=False)
    assert calm.low_us is not None
    assert calm.high_us is not None
    assert rough.low_us is not None
    assert rough.high_us is not None
    assert rough.high_us - rough.low_us > 5 * (calm.high_us - calm.low_us)


def test_too_few_intervals_give_no_confidence() -> None:
    (found,) = differences(blocks(1, count=5), blocks(2, 50.0, count=5), [50], paired=True)
    assert (found.low_us, found.high_us, found.certain) == (None, None, False)
    assert found.us > 40_000


def test_a_side_without_latencies_has_no_difference() -> None:
    assert differences([], [{}], [99], paired=False) == []
    assert differences(blocks(1), [{}] * 40, [99], paired=True) == []


def test_the_same_input_gives_the_same_interval() -> None:
    assert differences(blocks(1), blocks(2), [99], paired=False) == differences(
        blocks(1), blocks(2), [99], paired=False
    )
