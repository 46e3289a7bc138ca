"""From samples to figures: the arithmetic of the comparison."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.wan import evaluate
from loadtests.wan.load import Sample

finite = st.floats(0.1, 1e4, allow_nan=False)


def sample(
    at: float, ms: float = 60.0, *, method: str = "GET", status: int = 200, region: str = "us", error: str = ""
) -> Sample:
    return Sample(at, ms, method, status, region if status else "", error, 0.1)


def every(step: float, begin: float, end: float, ms: float, region: str = "us") -> list[Sample]:
    count = round((end - begin) / step)
    return [sample(begin + number * step, ms, region=region) for number in range(count)]


class TestQuantiles:
    @pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
    def test_nearest_rank(self, share: float, value: float) -> None:
        assert evaluate.quantile([float(number) for number in range(100, 0, -1)], share) == value

    def test_of_nothing(self) -> None:
        assert math.isnan(evaluate.quantile([], 0.5))
        assert math.isnan(evaluate.median([math.nan]))

    @given(st.lists(finite, min_size=1, max_size=60), st.floats(0.01, 1.0))
    def test_a_quantile_is_one_of_the_values_and_ranks_right(self, values: list[float], share: float) -> None:
        found = evaluate.quantile(values, share)
        assert found in values
        assert sum(value <= found for value in values) >= share * len(values) - 1e-9

    def test_median_of_an_even_number_lies_between(self) -> None:
        assert evaluate.median([1.0, 2.0, 4.0, 9.0]) == 3.0

    def test_a_median_that_is_never_is_never(self) -> None:
        assert evaluate.median([1.0, math.inf]) == math.inf
        assert evaluate.median([1.0, 2.0, math.inf]) == 2.0


class TestLatencies:
    def test_only_gets_that_were_answered_well(self) -> None:
        samples = [
            sample(0, 60),
            sample(1, 999, method="POST"),
            sample(2, 5, status=503),
            sample(3, 5000, status=0, error="no answer"),
        ]
        assert evaluate.answered(samples) == [60]
        assert evaluate.failures(samples) == {"failed_get": 2.0, "failed_post": 0.0}

    def test_over_300_ms(self) -> None:
        figures = evaluate.latencies([sample(0, 300.0), sample(1, 300.1), sample(2, 1000)])
        assert figures["over_300"] == 2
        assert figures["slowest_ms"] == 1000

    def test_posts_fail_apart(self) -> None:
        failed = [sample(0, 5, method="POST", status=502), sample(1, 5, method="POST")]
        assert evaluate.failures(failed) == {"failed_get": 0.0, "failed_post": 1.0}

    def test_complaints_are_counted_by_their_text(self) -> None:
        failed = [sample(0, 5, status=503), sample(1, 5, status=503), sample(2, 9, status=0, error="closed")]
        assert evaluate.complaints(failed) == {"GET 503": 2, "GET closed": 1}


class TestFault:
    def test_requests_under_way_when_it_struck_count(self) -> None:
        samples = [*every(0.01, 0, 0.92, 60), sample(0.95, 800), *every(0.01, 1.0, 3.0, 80, "eu")]
        figures = evaluate.fault(samples, 1.0, 3.0, lead_s=0.08, settled_ms=88)
        assert figures["slowest_ms"] == 800
        assert evaluate.fault(samples, 1.0, 3.0, lead_s=0.0, settled_ms=88)["slowest_ms"] == 80

    def test_failures_afterwards_stand_apart(self) -> None:
        samples = [*every(0.01, 0, 2, 80, "eu"), sample(2.5, 5, status=502)]
        figures = evaluate.fault(samples, 0.0, 2.0, lead_s=0.0, settled_ms=88)
        assert figures["failed_get"] == 0
        assert figures["failed_after"] == 1

    def test_took_over_at_once(self) -> None:
        assert evaluate.took_over_s(every(0.01, 0, 3, 80, "eu"), 0.0, 3.0, 88) == 0.0

    def test_took_over_after_a_second(self) -> None:
        samples = [*every(0.01, 0, 1, 400), *every(0.01, 1, 4, 80, "eu")]
        found = evaluate.took_over_s(samples, 0.0, 4.0, 88)
        assert 0.7 <= found <= 1.05  # a window of half a second is good once most of it is

    def test_never_took_over(self) -> None:
        assert evaluate.took_over_s(every(0.01, 0, 3, 400), 0.0, 3.0, 88) == math.inf

    def test_failed_requests_are_no_good_median(self) -> None:
        samples = [sample(at / 100, 5, status=503) for at in range(300)]
        assert evaluate.took_over_s(samples, 0.0, 3.0, 88) == math.inf

    def test_a_relapse_counts(self) -> None:
        samples = [*every(0.01, 0, 2, 80), *every(0.01, 2, 2.6, 500), *every(0.01, 2.6, 5, 80)]
        assert evaluate.took_over_s(samples, 0.0, 5.0, 88) > 2.0


class TestReturn:
    def test_first_answer_and_ninety_percent(self) -> None:
        samples = [
            *every(0.01, 0, 10, 80, "eu"),
            *[sample(10 + n / 100, 60, region="us" if n % 2 else "eu") for n in range(500)],
            *every(0.01, 15, 20, 60, "us"),
        ]
        figures = evaluate.returned(samples, 5.0, "us")
        assert figures["first_s"] == pytest.approx(5.01, abs=0.02)
        assert 9.5 <= figures["returned_s"] <= 10.1
        assert figures["flaps"] == 0

    def test_never(self) -> None:
        figures = evaluate.returned(every(0.01, 0, 10, 80, "eu"), 2.0, "us")
        assert figures["first_s"] == figures["returned_s"] == math.inf

    def test_a_flap(self) -> None:
        samples = [
            *every(0.01, 0, 3, 60, "us"),
            *every(0.01, 3, 6, 80, "eu"),
            *every(0.01, 6, 9, 60, "us"),
        ]
        assert evaluate.returned(samples, 0.0, "us")["flaps"] == 1

    def test_failures_after_the_end_are_counted(self) -> None:
        samples = [*every(0.01, 0, 3, 60, "us"), sample(2.0, 5, status=502), sample(0.5, 5, status=502)]
        assert evaluate.returned(samples, 1.0, "us")["failed_get"] == 1

    def test_nothing_was_sent(self) -> None:
        assert evaluate.returned([], 1.0, "us")["returned_s"] == math.inf
