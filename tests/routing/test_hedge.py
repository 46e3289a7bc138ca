"""When a hedge is due, and what the budget allows."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.hedge import (
    ATTEMPTS_WINDOW_S,
    FLOOR_PER_S,
    FLOOR_TOKENS,
    HEDGES_WINDOW_S,
    Budget,
    due,
    late_after,
    pays_after,
)
from routing.latency import SlidingCounts
from routing.model import Hedge, Retry


def survivors(samples: list[float]) -> list[tuple[float, float]]:
    counts = SlidingCounts(0.0)
    for sample in samples:
        counts.answer(sample)
    return counts.last().survivors()


def test_late_is_past_the_percentile_and_a_margin_of_the_whole() -> None:
    assert late_after(0.002, 0.060) == pytest.approx(0.062 * 1.03)


def test_where_answers_are_alike_a_hedge_pays_as_soon_as_one_is_late() -> None:
    assert pays_after(0.062, survivors([0.001] * 500), 0.060, 0.080) == 0.0


def test_where_slow_answers_are_much_slower_a_hedge_pays_at_once() -> None:
    assert pays_after(0.062, survivors([0.001] * 900 + [1.0] * 100), 0.060, 0.080) == 0.0


def test_a_hedge_waits_while_most_late_answers_would_beat_it() -> None:
    rng = random.Random(1)
    spread = survivors([rng.expovariate(100.0) for _ in range(20_000)])  # 10 ms on average: p95 30 ms
    pays = pays_after(0.090, spread, 0.060, 0.080)
    assert 0.110 < pays < 0.140


def test_without_history_a_late_answer_is_hedged() -> None:
    assert pays_after(0.062, [], 0.060, 0.080) == 0.0


def test_when_everything_is_slow_a_hedge_does_not_pay_until_almost_all_answers_are_in() -> None:
    assert pays_after(0.062, survivors([1.0] * 500), 0.060, 1.060) > 1.05


def test_the_configured_bounds_hold() -> None:
    bounds = Hedge(0.05, 0.005, 0.5)
    assert due(0.001, 0.0, bounds) == 0.005
    assert due(0.1, 0.0, bounds) == 0.1
    assert due(2.0, 0.0, bounds) == 0.5
    assert due(0.1, 0.7, bounds) == 0.7, "what would not pay is not sent at max_delay either"


def spend_hedges(budget: Budget, now: float) -> int:
    count = 0
    while budget.take_hedge(now):
        count += 1
    return count


def spend_retries(budget: Budget, now: float) -> int:
    count = 0
    while budget.take_retry(now):
        count += 1
    return count


def test_a_quiet_upstream_starts_with_the_floor() -> None:
    assert spend_hedges(Budget(Hedge(), Retry(), 0.0), 0.0) == FLOOR_TOKENS


def test_hedges_off_means_none() -> None:
    budget = Budget(None, Retry(), 0.0)
    assert spend_hedges(budget, 100.0) == 0
    assert budget.take_retry(100.0)


def test_the_floor_refills_slowly_and_no_further_than_itself() -> None:
    budget = Budget(Hedge(), Retry(), 0.0)
    spend_hedges(budget, 0.0)
    budget.tick(4.0 / FLOOR_PER_S)
    assert spend_hedges(budget, 4.0 / FLOOR_PER_S) == 4
    budget.tick(1000.0)
    assert spend_hedges(budget, 1000.0) == FLOOR_TOKENS


def test_requests_earn_their_share_and_savings_are_bounded() -> None:
    budget = Budget(Hedge(budget=0.05), Retry(budget=0.20), 0.0)
    for tick in range(1, 3001):  # 1,000 requests a second for five minutes
        budget.requests += 100
        budget.tick(tick * 0.1)
    assert spend_hedges(budget, 300.0) == pytest.approx(0.05 * 1000 * HEDGES_WINDOW_S, rel=0.02)
    assert spend_retries(budget, 300.0) == pytest.approx(
        0.20 * 1000 * ATTEMPTS_WINDOW_S - 0.05 * 1000 * HEDGES_WINDOW_S, rel=0.02
    )


def test_hedges_pay_into_the_same_budget_as_retries() -> None:
    budget = Budget(Hedge(budget=0.15), Retry(budget=0.2), 0.0)
    spend_retries(budget, 0.0)
    hedges = retries = 0
    for tick in range(1, 201):  # 100 requests a second for 20 seconds
        budget.requests += 10
        hedges += spend_hedges(budget, tick * 0.1)
        retries += spend_retries(budget, tick * 0.1)
    assert hedges + retries == pytest.approx(0.2 * 2000, abs=2)
    assert hedges > 200


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 50), st.booleans()), min_size=1, max_size=120),
    st.floats(0.01, 0.5),
)
def test_extra_attempts_never_exceed_the_share_and_the_savings(
    steps: list[tuple[int, int, bool]], share: float
) -> None:
    """Whatever the clients do: at most the initial floor, plus the share of the requests, plus the floor's trickle."""
    budget = Budget(Hedge(budget=share / 4), Retry(budget=share), 0.0)
    now = requests = taken = 0.0
    for count, wanted, hedge in steps:
        now += 0.1
        budget.requests += count
        requests += count
        for _ in range(wanted):
            taken += budget.take_hedge(now) if hedge else budget.take_retry(now)
        assert taken <= FLOOR_TOKENS + max(share * requests, 0.0) + FLOOR_PER_S * now + 1e-6
    assert budget.taken == taken


def test_tokens_never_jump() -> None:
    budget = Budget(Hedge(), Retry(), 0.0)
    seen = []
    for tick in range(1, 400):
        budget.requests += 20 if tick < 200 else 0
        budget.tick(tick * 0.1)
        seen.append(budget.tokens[1])
    assert all(abs(after - before) <= 4.0 + 1e-9 for before, after in pairwise(seen))
