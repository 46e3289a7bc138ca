from __future__ import annotations

import random
from dataclasses import replace

import pytest

from proxy.bench import compare
from proxy.bench.compare import Rule, RuleError, cautions, document, judge, pair_up, rule
from proxy.bench.engine import Outcome
from proxy.bench.evaluate import evaluate
from proxy.bench.plan import Plan, targets
from proxy.bench.record import Histogram, Recorder
from proxy.bench.request import Request
from proxy.bench.result import Result, ResultError
from proxy.errors import Kind, ProxyError


def result(
    *ms: float,
    seed: int = 1,
    names: tuple[str, ...] = ("us", "eu"),
    failures: int = 0,
    spread: float = 0.02,
    rate: float = 200,
) -> Result:
    """A run whose regions answer in about `ms`, one each."""
    from datetime import UTC, datetime

    choice = random.Random(seed)
    plan = Plan(targets([f"{name}=http://h/" for name in names[: len(ms)]]), rate=rate, duration_s=10)
    steps = round(plan.duration_s / plan.interval_s)
    recorders = []
    for latency in ms:
        recorder = Recorder(steps)
        for i in range(1000):
            request = Request(0.0, i * steps // 1000)
            request.state = "reused"
            request.first_byte = latency / 1000 * choice.uniform(1 - spread, 1 + spread)
            recorder.started += 1
            if i < failures:
                recorder.failed_at(request, ProxyError(Kind.REFUSED, "no"), 0.0)
            else:
                recorder.answered_at(request, 200, request.first_byte)
        recorders.append(recorder)
    return evaluate(
        Outcome(plan, datetime.now(UTC), recorders, Histogram(), elapsed_s=10, measured_s=10, connections=[1] * len(ms))
    )


A = result(60, 80)
SLOWER = result(60, 100, seed=2)
PAIRS = pair_up(A, SLOWER)


def broken(text: str, a: Result = A, b: Result = SLOWER, *, significant: bool = False) -> list[str]:
    pairs = PAIRS if (a, b) == (A, SLOWER) else pair_up(a, b)
    return [v.region for v in judge([rule(text)], pairs, significant=significant) if v.broken]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p99>+5%", Rule("", "", "total", "p99", True, False, True, True, 0.05)),
        ("p99>5%", Rule("", "", "total", "p99", True, False, True, True, 0.05)),
        ("p99.9 >= +2 ms", Rule("", "", "total", "p99.9", True, True, True, False, 2.0)),
        ("us:tls.p50>30ms", Rule("", "us", "tls", "p50", True, False, False, False, 30.0)),
        ("localhost:8080:max>1s", Rule("", "localhost:8080", "total", "max", True, False, False, False, 1000.0)),
        ("mean<-100us", Rule("", "", "total", "mean", False, False, True, False, -0.1)),
        ("errors>0", Rule("", "", "total", "errors", True, False, False, False, 0.0)),
        ("errors>+0.5%", Rule("", "", "total", "errors", True, False, True, False, 0.005)),
        ("rate<-10%", Rule("", "", "total", "rate", False, False, True, True, -0.1)),
        ("rate<190", Rule("", "", "total", "rate", False, False, False, False, 190.0)),
    ],
)
def test_rules(text: str, expected: Rule) -> None:
    assert replace(rule(text), text="") == expected


@pytest.mark.parametrize(
    "text", ["", "p99", "p98>5%", "p99=5%", "p99>5", "p99>fast", "nosuch.p50>1ms", "errors>3", "errors>1ms", "rate>1ms"]
)
def test_what_is_no_rule_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RuleError, match="--fail-if"):
        rule(text)


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("p99>+5%", ["eu"]),
        ("p50>+30%", []),
        ("us:p50>+5%", []),
        ("eu:p50>+5%", ["eu"]),
        ("p50>+10ms", ["eu"]),
        ("p50>+30ms", []),
        ("p50>90ms", ["eu"]),
        ("p50>50ms", ["us", "eu"]),
        ("p50<90ms", ["us"]),
        ("first_byte.p50>+5%", ["eu"]),
        ("errors>0", []),
        ("rate<-1%", []),
        ("tls.p50>+1%", []),
    ],
)
def test_a_rule_is_broken_where_it_holds(text: str, regions: list[str]) -> None:
    assert broken(text) == regions


def test_an_improvement_breaks_no_rule_against_rises() -> None:
    assert broken("p99>+5%", SLOWER, A) == []
    assert broken("p99<-5%", SLOWER, A) == ["eu"]


def test_errors_and_rate_are_judged() -> None:
    failing = result(60, 80, failures=20)
    assert broken("errors>1%", A, failing) == ["us", "eu"]
    assert broken("errors>+3%", A, failing) == []
    assert broken("rate<-1%", A, failing) == ["us", "eu"]


def test_the_same_file_breaks_nothing() -> None:
    assert broken("p99>+0%", A, A) == []
    assert broken("p99>=+0%", A, A) == ["us", "eu"]


def test_a_reason_gives_both_values_the_change_and_the_interval() -> None:
    (verdict,) = judge([rule("eu:p50>+5%")], PAIRS)
    assert "went from" in verdict.reason
    assert "(+2" in verdict.reason
    assert "95% interval" in verdict.reason
    assert "noise" not in verdict.reason


def test_noise_is_named_and_may_be_let_through() -> None:
    a, b = result(60, seed=1, spread=0.9), result(60.3, seed=9, spread=0.9)
    change = pair_up(a, b)[0].differences["p50"]
    assert not change.certain
    text = "p50>+0%" if change.us > 0 else "p50<-0%"
    (verdict,) = judge([rule(text)], pair_up(a, b))
    assert verdict.broken
    assert "it may be noise" in verdict.reason
    assert broken(text, a, b, significant=True) == []
    assert broken("p50>+5%", A, SLOWER, significant=True) == ["eu"]


def test_no_answers_never_pass_as_fast() -> None:
    dead = result(60, 80, failures=1000)
    assert broken("p99>+5%", A, dead) == ["us", "eu"]
    assert broken("p99>1s", A, dead) == ["us", "eu"]


def test_single_regions_are_compared_whatever_their_names() -> None:
    a, b = result(60, names=("before",)), result(80, names=("after",))
    (pair,) = pair_up(a, b)
    assert pair.name == "before → after"
    assert broken("p50>+5%", a, b) == ["before → after"]
    assert broken("after:p50>+5%", a, b) == ["before → after"]


def test_results_without_a_common_region_are_refused() -> None:
    with pytest.raises(ResultError, match="the first has us, eu, the second x, y"):
        pair_up(A, result(1, 2, names=("x", "y")))


def test_a_rule_for_an_unknown_region_is_refused() -> None:
    with pytest.raises(RuleError, match="there are us, eu"):
        broken("ap:p50>+5%")


def test_runs_that_differ_are_pointed_out() -> None:
    assert cautions(A, SLOWER) == []
    assert cautions(A, result(60, 80, rate=100)) == ["The runs differ in rate: 200.0 and 100.0."]


def test_the_document_says_whether_it_passed() -> None:
    pairs = PAIRS
    made = document(pairs, judge([rule("p99>+5%"), rule("errors>0")], pairs), ["careful"])
    assert made["passed"] is False
    rules = made["rules"]
    assert isinstance(rules, list)
    assert [entry["broken"] for entry in rules] == [False, True, False, False]
    assert document(pairs, judge([rule("errors>0")], pairs), [])["passed"] is True


def test_a_damaged_histogram_is_refused() -> None:
    step = A.regions[0].intervals[0].model_copy(update={"histogram": "damaged"})
    region = A.regions[0].model_copy(update={"intervals": [step]})
    with pytest.raises(ResultError, match="region us"):
        compare.pair_up(A, A.model_copy(update={"regions": [region]}))
