"""What was measured against what was promised: pure figures."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.demo.report import console, report, verdict
from proxy.demo.scenario import FAST, FULL, NEAREST, NEXT, REGIONS
from proxy.demo.summary import (
    ALLOWANCE_MAX_MS,
    ALLOWANCE_MIN_MS,
    BURST_ALLOWANCE_MAX_MS,
    Results,
    Row,
    document,
    recovered_after,
)
from proxy.demo.traffic import Sample, Series, quantile

RTT_MS = REGIONS[NEAREST]


def series(*milliseconds: float, waited_ms: float = 0.0) -> Series:
    return Series([Sample(number / 100, ms / 1e3, "", waited_ms / 1e3) for number, ms in enumerate(milliseconds)])


def good() -> Results:
    """A run that kept everything, on a machine that adds nothing."""
    rows = {
        phase.key: Row(phase, series(*[REGIONS[phase.against]] * 50), series(*[REGIONS[phase.against]] * 50))
        for phase in FULL.phases
    }
    return Results(
        FULL, "loopback", "an imitation", rows, control=series(*[RTT_MS] * 50), blackhole_s=0.8, return_s=5.0
    )


def broken(results: Results) -> list[str]:
    return [promise.text for promise in results.promises() if not promise.kept]


class TestScript:
    @pytest.mark.parametrize(("script", "most_s"), [(FULL, 85.0), (FAST, 30.0)])
    def test_stays_within_its_time(self, script, most_s):
        assert script.seconds <= most_s

    def test_has_a_warm_connection_for_each_request_of_a_burst(self):
        assert all(script.warm > script.burst for script in (FULL, FAST))

    def test_the_nearest_is_the_first(self):
        assert min(REGIONS, key=REGIONS.__getitem__) == NEAREST


class TestQuantile:
    def test_is_the_nearest_rank(self):
        values = [float(value) for value in range(1, 101)]
        assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]

    def test_of_nothing_is_nan(self):
        assert math.isnan(quantile([], 0.5))

    def test_a_time_out_stands_with_its_waiting(self):
        both = Series([Sample(0, 0.06), Sample(1, 3.0, "no answer")])
        assert both.quantile_ms(1.0) == 3000
        assert both.failed == 1
        assert both.failures == {"no answer": 1}
        assert both.over(100) == 1


class TestRecoveredAfter:
    @staticmethod
    def samples(slow_until_s: float, end_s: float = 5.0, failure: str = "") -> list[Sample]:
        dues = [number / 100 for number in range(int(end_s * 100))]
        return [Sample(due, 0.5 if due < slow_until_s else 0.08, failure if due < slow_until_s else "") for due in dues]

    def test_counts_from_the_cut_to_the_beginning_of_the_good_second(self):
        assert recovered_after(self.samples(2.0), 0.0, 100, 0.9) == pytest.approx(1.9, abs=0.011)

    def test_at_once_where_nothing_was_slow(self):
        assert recovered_after(self.samples(0.0), 0.0, 100, 0.9) == 0.0

    def test_what_was_due_before_the_cut_does_not_count(self):
        assert recovered_after(self.samples(2.0), 2.0, 100, 1.0) == 0.0

    def test_failed_is_not_good_however_fast(self):
        fast_failures = [Sample(number / 100, 0.001, "refused") for number in range(500)]
        assert recovered_after(fast_failures, 0.0, 100, 0.9) is None

    def test_the_second_must_have_been_seen_to_its_end(self):
        assert recovered_after(self.samples(4.5), 0.0, 100, 0.9) is None

    def test_of_nothing(self):
        assert recovered_after([], 0.0, 100, 0.9) is None

    def test_order_of_arrival_does_not_matter(self):
        samples = self.samples(2.0)
        assert recovered_after(samples[::-1], 0.0, 100, 0.9) == recovered_after(samples, 0.0, 100, 0.9)

    @given(
        latencies=st.lists(st.sampled_from([0.05, 0.2]), min_size=1, max_size=80),
        share=st.sampled_from([0.5, 0.9, 1.0]),
    )
    def test_agrees_with_counting(self, latencies, share):
        samples = [Sample(number / 20, seconds) for number, seconds in enumerate(latencies)]
        expected = None
        for sample in samples:
            window = [one for one in samples if sample.due <= one.due < sample.due + 1.0]
            if sample.due + 1.0 <= samples[-1].due and sum(o.seconds < 0.1 for o in window) >= share * len(window):
                expected = sample.due
                break
        assert recovered_after(samples, 0.0, 100, share) == expected


class TestPromises:
    def test_all_kept(self):
        results = good()
        assert results.kept
        assert broken(results) == []
        assert "Every promise was kept" in verdict(results).plain

    @pytest.mark.parametrize(
        ("key", "times", "word"),
        [("cold", 2.0, "first request"), ("steady", 1.35, "steady"), ("burst", 2.0, "burst"), ("tail", 6.0, "late")],
    )
    def test_a_latency_over_its_limit_is_broken(self, key, times, word):
        results = good()
        results.rows[key].proxied = series(*[times * RTT_MS] * 50)
        (text,) = broken(results)
        assert word in text
        assert not results.kept
        assert "1 promise was not kept" in verdict(results).plain

    def test_one_failed_request_breaks_it_wherever_it_was(self):
        for samples in (lambda r: r.rows["steady"].proxied.samples, lambda r: r.unmeasured.samples):
            results = good()
            samples(results).append(Sample(0.0, 0.06, "status 502"))
            assert broken(results) == ["failed requests, in any phase"]

    def test_direct_failures_break_nothing(self):
        results = good()
        results.rows["blackhole"].direct.samples.append(Sample(0.0, 3.0, "no answer within 3 s"))
        assert results.kept

    @pytest.mark.parametrize(("name", "value"), [("blackhole_s", None), ("blackhole_s", 4.0), ("return_s", None)])
    def test_a_late_or_missing_recovery_is_broken(self, name, value):
        results = good()
        setattr(results, name, value)
        assert len(broken(results)) == 1

    def test_nothing_measured_is_broken(self):
        results = good()
        results.rows["cold"].proxied = Series()
        assert len(broken(results)) == 1


class TestAllowance:
    def test_an_idle_machine_gets_the_least(self):
        assert good().allowance_ms == ALLOWANCE_MIN_MS
        assert good().burst_allowance_ms == ALLOWANCE_MIN_MS

    def test_is_what_the_machine_did_to_direct_requests(self):
        results = good()
        results.rows["steady"].direct = series(*[RTT_MS + 4] * 50)
        results.lag_p99_ms = 1.5
        assert results.allowance_ms == pytest.approx(5.5)

    def test_has_a_bound_that_no_handshake_fits_into(self):
        results = good()
        results.rows["steady"].direct = series(*[RTT_MS * 3] * 50)
        results.control = series(*[RTT_MS * 3] * 50)
        assert results.allowance_ms == ALLOWANCE_MAX_MS
        assert results.burst_allowance_ms == BURST_ALLOWANCE_MAX_MS
        results.rows["burst"].proxied = results.rows["cold"].proxied = series(*[RTT_MS * 2] * 50)
        assert len(broken(results)) == 2

    def test_never_lets_the_next_region_pass_for_the_nearest(self):
        results = good()
        results.lag_p99_ms = 1000.0
        results.rows["steady"].proxied = series(*[REGIONS[NEXT]] * 50)
        assert len(broken(results)) == 1

    def test_of_a_burst_has_this_programs_own_delay(self):
        results = good()
        results.rows["burst"].proxied = series(*[RTT_MS] * 50, waited_ms=5.0)
        results.control = series(*[RTT_MS + 3] * 50)
        assert results.burst_allowance_ms == pytest.approx(11.0)


class TestDocument:
    def test_is_json_without_nan_and_says_what_the_table_says(self):
        results = good()
        results.blackhole_s = None
        results.rows["tail"].direct = Series()
        found = json.loads(json.dumps(document(results, "listeners: []"), allow_nan=False))
        assert found["kept"] is False
        assert [one["phase"] for one in found["phases"]] == list(results.rows)
        assert [one["kept"] for one in found["promises"]] == [promise.kept for promise in results.promises()]
        assert found["recovered_s"] == {"blackhole": None, "return": 5.0}
        assert found["phases"][1]["proxied"]["p50_rtt"] == 1.0

    def test_the_report_shows_every_phase_promise_and_the_config(self):
        results = good()
        results.states = ["us drained 0.9 s into the blackhole"]
        shown = console()
        with shown.capture() as capture:
            shown.print(report(results, "listeners:\n  - name: api", None))
        text = capture.get()
        assert all(phase.title in text for phase in FULL.phases)
        assert text.count("kept") >= len(results.promises())
        assert "name: api" in text
        assert "us drained 0.9 s" in text
        assert "--keep" in text
