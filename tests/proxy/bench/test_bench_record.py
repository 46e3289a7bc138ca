from __future__ import annotations

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.bench.record import HIGHEST_US, PERCENTILES, Histogram, Recorder, highest_us, lowest_us
from proxy.bench.request import Request
from proxy.errors import Kind, ProxyError

microseconds = st.lists(st.integers(1, HIGHEST_US) | st.integers(1, 5000), min_size=1, max_size=60)


def filled(values_us: list[int]) -> Histogram:
    histogram = Histogram()
    for us in values_us:
        histogram.record(us / 1e6)
    return histogram


@settings(max_examples=40, deadline=None)
@given(values=microseconds)
def test_percentiles_are_those_of_the_library(values: list[int]) -> None:
    library = HdrHistogram(1, HIGHEST_US, 3)
    for us in values:
        library.record_value(us)
    expected = library.get_percentile_to_value_dict(list(PERCENTILES))
    found = dict(zip(PERCENTILES, filled(values).percentiles(PERCENTILES), strict=True))
    assert found == {percent: min(us, max(values)) for percent, us in expected.items()}


@settings(max_examples=40, deadline=None)
@given(values=microseconds)
def test_encoding_is_read_by_the_library_and_by_us(values: list[int]) -> None:
    histogram = filled(values)
    text = histogram.encode()
    library = HdrHistogram.decode(text)
    assert library.get_total_count() == len(values)
    assert Histogram.decode(text).counts == histogram.counts


@given(us=st.integers(0, HIGHEST_US))
def test_a_bucket_holds_its_value_within_a_thousandth(us: int) -> None:
    (index,) = filled([us]).counts
    assert lowest_us(index) <= us <= highest_us(index)
    assert highest_us(index) - lowest_us(index) <= us / 1000


@given(a=microseconds, b=microseconds)
def test_merging_is_recording_together(a: list[int], b: list[int]) -> None:
    merged = filled(a)
    merged.merge(filled(b))
    together = filled(a + b)
    assert merged.counts == together.counts
    assert (merged.highest_us, merged.lowest_us, merged.sum_us) == (
        together.highest_us,
        together.lowest_us,
        together.sum_us,
    )


def test_what_lies_outside_is_clamped() -> None:
    histogram = Histogram()
    histogram.record(-0.5)
    histogram.record(1e9)
    assert histogram.count == 2
    assert (histogram.lowest_us, histogram.highest_us) == (0, HIGHEST_US)


def test_an_empty_histogram_has_zeros() -> None:
    assert Histogram().percentiles(PERCENTILES) == [0, 0, 0, 0]
    assert Histogram().mean_us == 0
    assert Histogram.decode(Histogram().encode()).counts == {}


@pytest.mark.parametrize("text", ["", "not base64!", "AAAA", HdrHistogram(1, 10_000, 2).encode().decode()])
def test_what_is_no_such_histogram_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HdrHistogram"):
        Histogram.decode(text)


def request(intended: float, began: float, *, interval: int = 0, state: str = "reused") -> Request:
    made = Request(intended, interval)
    made.began = made.sent = began
    made.first_byte = began + 0.010
    made.state = state
    return made


def test_total_counts_from_the_intended_start_and_service_from_the_real_one() -> None:
    recorder = Recorder(1)
    recorder.answered_at(request(1.0, 1.5), 200, 1.520)
    phases = recorder.phases["reused"]
    assert phases["total"].highest_us == 520_000
    assert phases["service"].highest_us == 20_000
    assert phases["queue"].highest_us == 500_000
    assert phases["first_byte"].highest_us == 10_000
    assert phases["receive"].highest_us == 10_000
    assert not phases["tcp"].counts


def test_the_phases_of_a_new_connection_are_recorded_and_those_that_did_not_occur_are_not() -> None:
    recorder = Recorder(1)
    made = request(1.0, 1.0, state="cold")
    made.dialled = True
    made.tcp_s, made.tls_s = 0.1, 0.2
    recorder.answered_at(made, 200, 1.5)
    phases = recorder.phases["cold"]
    assert (phases["tcp"].highest_us, phases["tls"].highest_us) == (100_000, 200_000)
    assert not phases["dns"].counts


def test_a_time_out_stands_in_the_latencies_and_a_refusal_does_not() -> None:
    recorder = Recorder(1)
    recorder.failed_at(request(1.0, 1.0), ProxyError(Kind.RESPONSE_TIMEOUT, "slow"), 11.0)
    recorder.failed_at(request(1.0, 1.0), ProxyError(Kind.REFUSED, "closed"), 1.001)
    assert recorder.phase("total").count == 1
    assert recorder.phase("total").highest_us == 10_000_000
    assert recorder.failures == {Kind.RESPONSE_TIMEOUT: 1, Kind.REFUSED: 1}
    assert recorder.intervals[0].failed == 2


def test_the_warm_up_is_counted_and_left_out() -> None:
    recorder = Recorder(1)
    recorder.answered_at(request(1.0, 1.0, interval=-1), 200, 1.1)
    recorder.failed_at(request(1.0, 1.0, interval=-1), ProxyError(Kind.REFUSED, "closed"), 1.1)
    assert recorder.warmup == 2
    assert recorder.answered == 0
    assert not recorder.phase("total").counts
    assert not recorder.failures


def test_examples_of_failures_are_bounded() -> None:
    recorder = Recorder(1)
    for i in range(100):
        recorder.failed_at(request(1.0, 1.0), ProxyError(Kind.REFUSED, f"port {i}"), 1.1)
    assert recorder.failures[Kind.REFUSED] == 100
    assert len(recorder.details[Kind.REFUSED]) == 3
