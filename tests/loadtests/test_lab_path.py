from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.lab.path import Link, PathSettings


def link(**settings: float | bool) -> Link:
    return Link(PathSettings(**settings), seed=1)  # type: ignore[arg-type]


def test_delay_is_added_and_counted() -> None:
    path = link(delay_ms=40)
    assert path.schedule(10.0, 1500) == pytest.approx(10.04)
    assert path.counters() == {"packets": 1, "bytes": 1500, "lost": 0, "overflowed": 0, "swallowed": 0}


def test_a_shorter_delay_does_not_let_later_packets_overtake() -> None:
    path = link(delay_ms=400)
    first = path.schedule(0.0, 100)
    path.configure(path.settings.changed(delay_ms=60))
    second = path.schedule(0.001, 100)
    assert first is not None
    assert second == first
    assert path.schedule(1.0, 100) == pytest.approx(1.06)


@given(
    gaps=st.lists(st.floats(0, 0.02), min_size=1, max_size=60),
    jitter_ms=st.floats(0, 50),
    rate_mbit=st.sampled_from([0.0, 1.0, 50.0]),
)
def test_without_reordering_packets_arrive_in_order_and_not_before_they_could(
    gaps: list[float], jitter_ms: float, rate_mbit: float
) -> None:
    path = link(delay_ms=30, jitter_ms=jitter_ms, rate_mbit=rate_mbit, queue_ms=10_000)
    now, last = 0.0, 0.0
    for gap in gaps:
        now += gap
        due = path.schedule(now, 1000)
        assert due is not None
        assert due >= last
        assert due >= now + max(0.0, 30 - jitter_ms) / 1e3 - 1e-9
        last = due


def test_loss_takes_its_share() -> None:
    path = link(loss=0.02)
    arrived = sum(path.schedule(0.0, 100) is not None for _ in range(10_000))
    assert 9_700 <= arrived <= 9_900
    assert path.lost == 10_000 - arrived


def test_a_rate_serialises_and_its_queue_is_bounded() -> None:
    path = link(rate_mbit=8, queue_ms=5)  # a thousand bytes take a millisecond
    arrivals = [path.schedule(0.0, 1000) for _ in range(10)]
    assert arrivals[:6] == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.005, 0.006])
    assert arrivals[6:] == [None] * 4
    assert path.overflowed == 4
    assert path.schedule(1.0, 1000) == pytest.approx(1.001)


def test_a_blackhole_swallows_what_comes_and_not_what_is_on_its_way() -> None:
    path = link(delay_ms=10)
    assert path.schedule(0.0, 1) is not None
    path.configure(path.settings.changed(blackhole=True))
    assert path.schedule(0.0, 1) is None
    assert path.swallowed == 1
    path.configure(path.settings.changed(blackhole=False))
    assert path.schedule(1.0, 1) == pytest.approx(1.01)


def test_reordering_lets_later_packets_overtake() -> None:
    path = link(delay_ms=10, reorder=0.5, reorder_ms=5)
    arrivals = [path.schedule(index / 1000, 1) for index in range(100)]
    assert all(due is not None for due in arrivals)
    assert arrivals != sorted(arrivals)  # type: ignore[type-var]


def test_rtt_is_twice_the_delay() -> None:
    assert PathSettings().changed(rtt_ms=60, loss=0.1) == PathSettings(delay_ms=30, loss=0.1)


@pytest.mark.parametrize("values", [{"loss": 2}, {"delay_ms": -1}, {"delay": 3}, {"rtt_ms": -5}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"share|negative|no such"):
        PathSettings().changed(**values)
