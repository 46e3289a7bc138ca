from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bench.plan import Plan, PlanError, duration_s, header, targets

ONE = targets(["http://localhost:8080/"])
TWO = targets(["a=http://localhost:1/", "b=http://localhost:2/"])


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1.5", 1.5), ("250us", 0.00025)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1d", "nan", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="not a duration"):
        duration_s(text)


def test_a_target_knows_where_to_connect_and_what_to_ask() -> None:
    (target,) = targets(["us=https://api.example.com:8443/v1?x=1"])
    assert (target.name, target.host, target.port, target.tls) == ("us", "api.example.com", 8443, True)
    assert (target.target, target.authority) == ("/v1?x=1", "api.example.com:8443")


def test_default_ports_stay_out_of_host() -> None:
    https, http, six = targets(["https://a.example", "http://b.example:80/", "http://[::1]:8080/"])
    assert (https.port, https.authority, https.target) == (443, "a.example", "/")
    assert (http.port, http.authority) == (80, "b.example")
    assert (six.host, six.authority) == ("::1", "[::1]:8080")


def test_an_equals_sign_in_a_query_is_not_a_name() -> None:
    (target,) = targets(["http://h/?a=http://x"])
    assert target.name == "h"


def test_unnamed_targets_of_one_host_are_told_apart() -> None:
    names = [target.name for target in targets(["http://h/a", "http://h/b", "http://other/", "http://h/a"])]
    assert names == ["h/a", "h/b", "other", "h/a #2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("localhost:8080", "did you mean http://localhost:8080"),
        ("us=localhost", "did you mean us=http://localhost"),
        ("ftp://h/", "must be http or https"),
        ("http:///x", "names no host"),
        ("http://h:99999/", "not a URL"),
        ("http://user:secret@h/", "--header"),
        ("http://h/ü", "percent-encode"),
        ("http://h/a b", "percent-encode"),
    ],
)
def test_a_bad_url_is_refused_with_advice(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        targets([text])


def test_one_name_for_two_targets_is_refused() -> None:
    with pytest.raises(PlanError, match="given twice"):
        targets(["us=http://a/", "us=http://b/"])


def test_headers() -> None:
    assert header("X-Tier:  gold: really ") == ("X-Tier", "gold: really")
    for bad in ("novalue", ": x", "a b: c", "a: b\r\nc: d"):
        with pytest.raises(PlanError, match="name: value"):
            header(bad)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rate": 0.0},
        {"rate": float("nan")},
        {"duration_s": 0.0},
        {"timeout_s": 0.0},
        {"warmup_s": -1.0},
        {"connections": 0},
        {"streams": 0},
        {"connection_requests": -1},
        {"protocol": "h3"},
        {"method": "G ET"},
        {"ab": True},
        {"rate": 1.0, "duration_s": 0.5},
    ],
)
def test_a_run_that_makes_no_sense_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        Plan(ONE, **arguments)  # type: ignore[arg-type]


@given(rate=st.floats(1, 20_000), duration=st.floats(1, 5))
def test_constant_spacing_never_drifts(rate: float, duration: float) -> None:
    slots = list(islice(Plan(ONE, rate=rate, duration_s=duration).schedule(), 2000))
    assert slots[0] == (0.0, 0)
    assert all(offset == pytest.approx(i / rate, abs=1e-12) for i, (offset, _) in enumerate(slots))
    assert slots[-1][0] < duration


def test_targets_take_turns() -> None:
    slots = [index for _, index in Plan(TWO, rate=100, duration_s=1).schedule()]
    assert slots == [0, 1] * 50


def test_an_ab_run_sends_each_pair_to_both_in_random_order() -> None:
    order = [index for _, index in Plan(TWO, rate=1000, duration_s=1, ab=True, seed=1).schedule()]
    pairs = Counter(zip(order[::2], order[1::2], strict=True))
    assert set(pairs) == {(0, 1), (1, 0)}
    assert min(pairs.values()) > 150


def test_poisson_arrivals_keep_the_mean_rate_and_vary() -> None:
    offsets = [offset for offset, _ in Plan(ONE, rate=1000, duration_s=10, poisson=True, seed=7).schedule()]
    assert len(offsets) == pytest.approx(10_000, rel=0.05)
    gaps = [b - a for a, b in pairwise(offsets)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)  # the exponential distribution's mark


def test_a_seed_repeats_a_schedule() -> None:
    plans = [Plan(ONE, rate=100, duration_s=1, poisson=True, seed=seed) for seed in (3, 3, 4)]
    first, second, third = (list(plan.schedule()) for plan in plans)
    assert first == second != third


def test_the_warm_up_is_part_of_the_schedule() -> None:
    assert sum(1 for _ in Plan(ONE, rate=100, duration_s=1, warmup_s=0.5).schedule()) == 150


@given(duration=st.floats(0.1, 100_000))
def test_the_time_series_has_a_readable_number_of_steps(duration: float) -> None:
    plan = Plan(ONE, rate=100, duration_s=duration)
    steps = duration / plan.interval_s
    assert steps >= 59
    assert steps <= 151 or plan.interval_s == 300
