"""From recorded runs to results, tables, CSV and the page."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from proxy.bench import plots
from proxy.bench.engine import Outcome, Overhead
from proxy.bench.evaluate import evaluate
from proxy.bench.html import curve, to_html
from proxy.bench.plan import Plan, targets
from proxy.bench.record import Histogram, Recorder
from proxy.bench.report import ms, tables, to_csv
from proxy.bench.request import Request
from proxy.bench.result import Result, ResultError, load
from proxy.errors import Kind, ProxyError

URLS = ["us=http://localhost:1/", "e<u>&=http://localhost:2/"]


def outcome(
    *, ab: bool = False, lag_s: float = 0.0, failures: int = 0, waiting_s: float = 0.0, answers: int = 2000
) -> Outcome:
    """A made-up run of ten seconds: us takes about 60 ms, the other one about 80."""
    choice = random.Random(1)
    plan = Plan(targets(URLS), rate=200, duration_s=10, ab=ab)
    count = round(plan.duration_s / plan.interval_s)
    recorders = [Recorder(count), Recorder(count)]
    lag = Histogram()
    for i in range(answers):
        recorder = recorders[i % 2]
        at = i / 200
        request = Request(at, min(count - 1, int(at / plan.interval_s)))
        request.began = request.sent = at + lag_s + waiting_s
        request.state = "reused" if i > 20 else "cold"
        if i <= 20:
            request.dialled = True
            request.dns_s, request.tcp_s, request.tls_s = 0.001, 0.06, 0.06
            request.sent += 0.121
        request.first_byte = request.sent + 0.06 + 0.02 * (i % 2) + choice.uniform(0, 0.002)
        recorder.started += 1
        lag.record(lag_s)
        if i < failures:
            recorder.failed_at(request, ProxyError(Kind.REFUSED, "127.0.0.1 port 1: <refused>"), at)
        else:
            recorder.answered_at(request, 503 if i == 100 else 200, request.first_byte + 0.001)
    return Outcome(
        plan,
        datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        recorders,
        lag,
        elapsed_s=10.1,
        measured_s=10.0,
        cpu_s=0.5,
        connections=[11, 10],
        overhead=Overhead(150, 60, 140),
    )


def shown(result: Result) -> str:
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(tables(result))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_result_survives_its_json(tmp_path: Path) -> None:
    result = evaluate(outcome(ab=True))
    path = tmp_path / "a.json"
    path.write_text(result.to_json())
    assert load(path) == result
    raw = json.loads(result.to_json())
    assert raw["format"] == "onetrip-bench/1"
    total = raw["regions"][0]["phases"]["total"]
    assert set(total) == {"count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms"}
    assert 61 < total["p50_ms"] < 64
    assert raw["regions"][0]["states"]["cold"]["tls"]["p50_ms"] == pytest.approx(60, rel=0.001)


def test_the_schema_describes_what_is_written() -> None:
    schema = Result.model_json_schema(by_alias=True)
    raw = json.loads(evaluate(outcome()).to_json())
    assert set(schema["required"]) <= set(raw) <= set(schema["properties"])
    assert set(schema["$defs"]["Summary"]["required"]) == set(raw["regions"][0]["phases"]["total"])


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "Invalid JSON"), ("[]", "not a result"), ('{"format": "onetrip-bench/2"}', "format"), ("{}", "version")],
)
def test_another_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=said):
        load(path)
    with pytest.raises(ResultError, match="No such file"):
        load(tmp_path / "none.json")


def test_the_numbers_add_up() -> None:
    result = evaluate(outcome(failures=10))
    for region in result.regions:
        assert region.requests == region.answered + region.failed + region.unfinished
        assert region.answered == sum(region.statuses.values()) == region.phases["total"].count
        assert sum(step.count for step in region.intervals) == region.answered
        assert sum(step.failed for step in region.intervals) == region.failed == 5
        assert sum(state["total"].count for state in region.states.values()) == region.answered
        assert Histogram.decode(region.histogram).count == region.answered
    assert result.regions[0].error_share == pytest.approx(6 / 1000)  # five refusals and the 503
    assert result.regions[0].failures[0].advice


def test_a_generator_on_time_is_not_accused() -> None:
    result = evaluate(outcome())
    assert not result.generator.lagging
    assert not any("LAGS" in warning for warning in result.warnings)
    assert result.generator.overhead_p50_ms == 0.06


@pytest.mark.parametrize("lag_s", [0.0002, 0.02])
def test_a_lagging_generator_is_said_everywhere(lag_s: float) -> None:
    result = evaluate(outcome(lag_s=lag_s))
    assert result.generator.lagging
    assert "THE GENERATOR LAGS" in shown(result)
    assert 'class="warning loud" role="alert">THE GENERATOR LAGS' in to_html(result)
    assert json.loads(result.to_json())["generator"]["lagging"] is True


def test_lag_is_judged_against_what_is_measured() -> None:
    run = outcome()
    for _ in range(40):
        run.lag.record(0.002)  # p99 of 2 ms: below a twentieth of 80
    assert not evaluate(run).generator.lagging
    for _ in range(40):
        run.lag.record(0.02)
    assert evaluate(run).generator.lagging


def test_waiting_for_a_connection_is_named() -> None:
    warnings = evaluate(outcome(waiting_s=0.05)).warnings
    assert any("raise --connections" in warning for warning in warnings)
    assert not any("raise --connections" in warning for warning in evaluate(outcome()).warnings)


def test_few_samples_and_error_answers_are_named() -> None:
    warnings = " ".join(evaluate(outcome(answers=300)).warnings)
    assert "150 samples are few: p99.9" in warnings
    assert "1 answers were errors (503: 1)" in warnings


def test_nothing_answered_is_still_a_report() -> None:
    result = evaluate(outcome(failures=2000))
    assert "not one request was answered" in " ".join(result.warnings)
    assert "nothing listens there" in shown(result)
    assert "no answer" in to_html(result)
    assert to_csv(result).count("\n") == 1


def test_an_ab_run_with_a_dead_side_gives_no_difference() -> None:
    run = outcome(ab=True)
    run.recorders[1] = Recorder(run.recorders[1].interval_count)
    result = evaluate(run)
    assert result.ab is not None
    assert result.ab.percentiles == {}
    text = shown(result)
    assert "one side answered nothing" in text
    assert "B is faster" not in text
    assert "A against B" not in to_html(result)


def test_the_table_shows_both_latencies_and_the_difference() -> None:
    text = shown(evaluate(outcome(ab=True, waiting_s=0.05)))
    assert re.search(r"us +latency +1000 ", text)
    assert re.search(r"service time +\d", text)
    assert re.search(r"p50 .*B is slower", text)
    assert "first byte" in text


def test_csv_has_a_row_for_each_region_state_and_phase() -> None:
    result = evaluate(outcome())
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    found = {(row["region"], row["state"], row["phase"]): row for row in rows}
    assert {("us", "all", "total"), ("us", "cold", "tls"), ("e<u>&", "reused", "first_byte")} <= set(found)
    assert len(found) == len(rows)
    assert float(found["us", "all", "total"]["p99.9_ms"]) == result.regions[0].phases["total"].p99_9_ms


def test_an_ab_run_finds_the_difference() -> None:
    result = evaluate(outcome(ab=True))
    assert result.ab is not None
    median = result.ab.percentiles["p50"]
    assert median.certain
    assert median.low_ms is not None
    assert median.high_ms is not None
    assert median.low_ms <= 20 <= median.high_ms
    assert set(result.ab.percentiles) == {"p50", "p90", "p99", "p99.9"}


@pytest.mark.parametrize(("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_milliseconds_have_the_digits_that_mean_something(value: float, text: str) -> None:
    assert ms(value) == text


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps the attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("run", [outcome(ab=True, failures=10), outcome(), outcome(failures=2000), outcome(answers=3)])
def test_the_page_stands_alone_and_is_well_formed(run: Outcome) -> None:
    text = to_html(evaluate(run))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert "@import" not in text
    assert "url(" not in text
    assert re.findall(r"<(?:link|iframe|img|object|embed)\b", text) == []
    assert "e<u>" not in text.split("<script")[0]
    assert "e<u>&" in page.text
    svgs = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(svgs) >= 2
    for svg in svgs:
        numbers = [value for element in ET.fromstring(svg).iter() for value in element.attrib.values()]
        assert not any("nan" in value or "inf" in value for value in numbers)
    match = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert match is not None
    assert len(json.loads(match[1])["time"]["series"]) == 2


def test_the_percentile_curve_only_rises_and_ends_at_the_maximum() -> None:
    histogram = Histogram()
    choice = random.Random(4)
    for _ in range(5000):
        histogram.record(choice.expovariate(20))
    points = curve(histogram.encode())
    assert points == sorted(points)
    assert points[0][0] == 0.0
    assert points[-1][1] == pytest.approx(histogram.highest_us / 1000, rel=0.001)
    assert points[-1][0] == pytest.approx(3.7, abs=0.01)  # log10(5000)
    for percent, wanted in ((90, 1.0), (99, 2.0), (99.9, 3.0)):
        reached = next(value for nines, value in points if nines >= wanted - 1e-9)
        assert reached == pytest.approx(histogram.percentile(percent) / 1000)
    assert curve(Histogram().encode()) == []


@pytest.mark.parametrize("values", [[1.0], [0.0], [], [5.0, 100.0], [0.05, 900.0], [1.0, 30.0], [1e-3, 1e-3]])
def test_a_latency_scale_holds_its_values(values: list[float]) -> None:
    scale = plots.latency_scale(values)
    assert len(scale.ticks) >= 2
    for value in values:
        if value > 0:
            assert plots.TOP - 0.01 <= scale(value) <= plots.HEIGHT - plots.BOTTOM + 0.01
    assert scale.log == (bool(values) and min(values) > 0 and max(values) / min(values) > 25)


@pytest.mark.parametrize("high", [0.003, 0.9, 1.0, 7.0, 99.0, 12345.0])
def test_ticks_are_round_and_reach_the_top(high: float) -> None:
    ticks = plots.nice_ticks(high)
    assert ticks[0] == 0
    assert high <= ticks[-1] < 2 * high
    assert 3 <= len(ticks) <= 7
