"""Floors, averages, sliding counts: what the estimates do with time and with what is missing."""

import random
from math import e

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.latency import (
    FLOOR_WINDOW_S,
    PARTS,
    SERVICE_TAU_S,
    PeakEwma,
    RttFloor,
    SlidingCounts,
    bound_of,
    bucket_of,
    tail_share,
)


def test_the_floor_is_the_least_of_two_windows() -> None:
    floor = RttFloor()
    floor.observe(0.0, 0.080)
    floor.observe(0.5, 0.060)
    floor.observe(1.0, 0.070)
    assert floor.value == 0.060


def test_a_path_that_got_longer_shows_within_two_windows() -> None:
    floor = RttFloor()
    floor.observe(0.0, 0.060)
    for step in range(1, 9):
        floor.observe(step * FLOOR_WINDOW_S / 2, 0.400)
    assert floor.value == 0.400


def test_a_floor_keeps_its_value_while_nothing_is_measured() -> None:
    floor = RttFloor()
    floor.observe(0.0, 0.060)
    assert floor.value == 0.060
    floor.observe(1000.0, 0.090)
    assert floor.value == 0.090


def test_an_answer_faster_than_the_floor_lowers_it() -> None:
    floor = RttFloor()
    floor.observe(0.0, 0.060)
    floor.at_most(0.055)
    assert floor.value == 0.055
    floor.at_most(0.070)
    assert floor.value == 0.055


def test_a_peak_counts_at_once_and_fades_slowly() -> None:
    average = PeakEwma()
    average.observe(0.0, 0.001)
    average.observe(1.0, 1.0)
    assert average.read(1.0) == 1.0
    average.observe(2.0, 0.001)
    assert 0.8 < average.read(2.0) < 1.0
    assert average.read(2.0 + SERVICE_TAU_S) == pytest.approx(average.read(2.0) / e)


def test_a_censored_sample_only_raises() -> None:
    average = PeakEwma()
    average.observe(0.0, 0.5)
    average.observe_at_least(0.0, 0.1)
    assert average.read(0.0) == 0.5
    average.observe_at_least(0.0, 0.9)
    assert average.read(0.0) == 0.9


@given(st.lists(st.floats(1e-5, 900.0), min_size=1, max_size=50), st.floats(0.0, 1.0))
def test_quantiles_are_within_a_bucket_of_the_truth(samples: list[float], share: float) -> None:
    counts = SlidingCounts(0.0)
    for sample in samples:
        counts.answer(sample)
    ordered = sorted(samples)
    rank = max(1, -int(-share * len(ordered) // 1))
    truth = ordered[rank - 1]
    assert truth * 0.999 <= counts.last().quantile(share) <= truth * 1.021


@given(st.floats(1e-6, 1e4))
def test_a_bucket_bounds_what_is_in_it(service: float) -> None:
    within = min(max(service, 1e-5), 1e3)
    assert within * 0.999 <= bound_of(bucket_of(service)) <= within * 1.021


def test_answers_slide_out_of_the_window() -> None:
    counts = SlidingCounts(0.0)
    counts.answer(0.010)
    counts.rotate(1.0)
    counts.answer(0.020)
    assert (counts.last().answered, counts.last(1).answered) == (2, 1)
    counts.rotate(PARTS + 0.5)
    assert counts.last().answered == 1
    counts.rotate(3 * PARTS)
    assert counts.last().answered == 0
    assert counts.last().quantile(0.5) == 0.0


def test_survivors_fall_to_zero() -> None:
    counts = SlidingCounts(0.0)
    for sample in (0.001, 0.001, 0.010, 0.100):
        counts.answer(sample)
    shares = [share for _, share in counts.last().survivors()]
    assert shares == [0.5, 0.25, 0.0]


def test_failures_and_losses_are_counted_beside_the_answers() -> None:
    counts = SlidingCounts(0.0)
    counts.answer(0.010)
    counts.current.failed += 1
    counts.current.lost += 2
    totals = counts.last()
    assert (totals.answered, totals.failed, totals.lost) == (1, 1, 2)
    assert totals.quantile(1.0) < 0.011
    assert list(counts.shares()) == [(3, 4)]


def test_one_bad_request_is_no_tail() -> None:
    assert tail_share([(1, 10), (1, 1000)]) == 0.0


def test_a_fault_that_just_began_shows_in_the_short_window() -> None:
    assert tail_share([(16, 20), (16, 2000)]) == pytest.approx(0.6)


def test_the_bound_approaches_the_share_from_below() -> None:
    rng = random.Random(1)
    for total in (200, 1000, 5000):
        bad = sum(rng.random() < 0.02 for _ in range(total))
        assert tail_share([(bad, total)]) < bad / total
    assert tail_share([(2000, 100_000)]) == pytest.approx(0.02, rel=0.03)
