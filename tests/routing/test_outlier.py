"""Ejecting endpoints: what it takes, how long it lasts, what brings one back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.outlier import (
    FAILURES,
    FORGIVE_S,
    HANDSHAKES,
    HOLD_MAX_S,
    HOLD_S,
    LOSING_S,
    LOSSES,
    PROBES,
    RETRY_AFTER_MAX_S,
    SHARE_MIN,
    TRIALS,
    Outlier,
    OutlierState,
    ejectable,
)


def fail(outlier: Outlier, count: int, *, since: float = 0.0, every: float = 0.1, handshake: bool = False) -> None:
    for step in range(count):
        outlier.fail(since + (step + 1) * every, handshake=handshake)


def test_failures_in_a_row() -> None:
    outlier = Outlier()
    fail(outlier, FAILURES - 1)
    assert outlier.verdict() == ""
    outlier.answer()
    fail(outlier, FAILURES - 1, since=5.0)
    assert outlier.verdict() == ""
    outlier.fail(10.0)
    assert "in a row" in outlier.verdict()


def test_failed_handshakes_take_fewer() -> None:
    outlier = Outlier()
    fail(outlier, HANDSHAKES, handshake=True)
    assert "handshakes" in outlier.verdict()


def test_a_connection_that_breaks_with_many_requests_is_one_failure() -> None:
    outlier = Outlier()
    for _ in range(SHARE_MIN):
        outlier.answer()
    fail(outlier, 10, every=0.0001)
    assert (outlier.failures, outlier.verdict()) == (1, "")


def test_lost_hedges_count_only_when_they_go_on() -> None:
    burst, lasting = Outlier(), Outlier()
    for step in range(LOSSES):
        burst.lose(10.0 + step * 0.01)
        lasting.lose(10.0 + step * LOSING_S / (LOSSES - 1))
    assert burst.verdict() == ""
    assert "lost hedges" in lasting.verdict()


def test_half_of_many_attempts() -> None:
    outlier = Outlier()
    for step in range(SHARE_MIN // 2):
        outlier.fail(float(step))
        outlier.answer()
    assert "50%" in outlier.verdict()


def test_counts_fade() -> None:
    outlier = Outlier()
    for step in range(SHARE_MIN):
        outlier.fail(float(step))
        outlier.answer()
    outlier.tick(30.0, 30.0)
    assert outlier.verdict() == ""


def test_it_comes_back_after_its_trials() -> None:
    outlier = Outlier()
    outlier.eject(100.0, "test", 0.5)
    outlier.tick(100.0 + HOLD_S - 0.01, 0.1)
    assert outlier.state is OutlierState.EJECTED
    outlier.tick(100.0 + HOLD_S, 0.1)
    assert outlier.state is OutlierState.HALF_OPEN
    for _ in range(TRIALS):
        outlier.answer()
    assert outlier.state is OutlierState.OK


def test_a_failure_at_its_trial_ejects_it_for_longer() -> None:
    outlier = Outlier()
    holds = []
    now = 0.0
    for _ in range(9):
        outlier.eject(now, "test", 0.5)
        holds.append(outlier.until - now)
        now = outlier.until
        outlier.tick(now, 0.1)
        outlier.fail(now)
        assert "trial" in outlier.verdict()
    assert holds[:3] == [HOLD_S, 2 * HOLD_S, 4 * HOLD_S]
    assert holds[-1] == HOLD_MAX_S


def test_good_days_are_forgiven() -> None:
    outlier = Outlier()
    outlier.eject(0.0, "test", 0.5)
    outlier.tick(HOLD_S, 0.1)
    for _ in range(TRIALS):
        outlier.answer()
    outlier.tick(HOLD_S + FORGIVE_S, 0.1)
    outlier.eject(200.0, "test", 0.5)
    assert outlier.until - 200.0 == HOLD_S


def test_retry_after_lengthens_a_hold_within_reason_but_makes_none() -> None:
    outlier = Outlier()
    outlier.fail(0.0, retry_after=3600.0)
    assert outlier.verdict() == ""
    outlier.eject(0.0, "test", 0.5)
    assert outlier.until == RETRY_AFTER_MAX_S


def test_failed_checks_eject_and_good_ones_bring_back() -> None:
    outlier = Outlier()
    for _ in range(PROBES):
        assert outlier.probe_verdict() == ""
        outlier.probe(False)
    assert "checks" in outlier.probe_verdict()
    outlier.eject(0.0, "test", 0.5)
    outlier.tick(2 * HOLD_S, 0.1)
    assert outlier.state is OutlierState.EJECTED, "its checks still fail"
    outlier.probe(True)
    outlier.tick(2 * HOLD_S, 0.1)
    outlier.probe(True)
    outlier.probe(True)
    assert outlier.state is OutlierState.OK


@pytest.mark.parametrize(("endpoints", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)])
def test_passive_signs_never_eject_more_than_half(endpoints: int, most: int) -> None:
    ejected = 0
    while ejectable(endpoints, ejected):
        ejected += 1
    assert ejected == most


@given(st.lists(st.sampled_from(("answer", "fail", "lose", "good", "bad", "wait")), max_size=200), st.floats(0, 0.999))
def test_any_history_leaves_a_state_that_can_end(history: list[str], jitter: float) -> None:
    outlier = Outlier()
    now = 0.0
    for event in history:
        now += 0.05
        match event:
            case "answer":
                outlier.answer()
            case "fail":
                outlier.fail(now)
            case "lose":
                outlier.lose(now)
            case "good" | "bad":
                outlier.probe(event == "good")
            case "wait":
                now += 5.0
        outlier.tick(now, 0.05)
        verdict = outlier.verdict() or outlier.probe_verdict()
        if verdict and outlier.state is not OutlierState.EJECTED:
            outlier.eject(now, verdict, jitter)
    outlier.probe(True)
    outlier.tick(max(now, outlier.until), 0.05)
    assert outlier.state is not OutlierState.EJECTED
