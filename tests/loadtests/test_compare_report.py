"""What the rounds amount to: tables, JSON, pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtests.compare import CONTENDERS, DEFAULT, choose, document, parse_arguments
from loadtests.wan import report
from loadtests.wan.catalogue import SCENARIOS
from loadtests.wan.plots import pictures
from loadtests.wan.report import Cell, Result
from loadtests.wan.scenarios import Column


def figures(scenario: str, **values: float) -> dict[str, float]:
    return {**{column.key: 0.0 for column in SCENARIOS[scenario].columns}, **values}


@pytest.fixture
def results() -> list[Result]:
    cold = Result(
        SCENARIOS["cold"],
        {
            "onetrip": Cell([figures("cold", first_ms=62.0, ready_s=0.8), figures("cold", first_ms=61.0, ready_s=0.8)]),
            "nginx": Cell([figures("cold", first_ms=186.0), figures("cold", first_ms=184.0, failed_get=1)]),
            "envoy": Cell(missing="not available: not installed: pip install it"),
        },
    )
    points = [(-0.5, 61.0, "us"), (0.1, 240.0, "eu"), (0.2, 5000.0, "")]
    dark = Result(
        SCENARIOS["blackhole"],
        {
            "onetrip": Cell([figures("blackhole", slowest_ms=240.0, took_over_s=0.3)], points=points, fault_s=6.0),
            "nginx": Cell([figures("blackhole", slowest_ms=490.0, over_300=44, took_over_s=math.inf)], points=points),
        },
    )
    tail = Result(
        SCENARIOS["tail"], {"onetrip": Cell([figures("tail", p50_ms=60, p99_ms=86, p999_ms=130, extra=0.006)])}
    )
    return [cold, dark, tail]


def test_latencies_are_multiples_of_a_round_trip(results: list[Result]) -> None:
    rows = results[0].rows()
    assert rows[0][:2] == ["proxy", "first request"]
    assert rows[1][:3] == ["onetrip", "1.02 ×", "0"]
    assert rows[2][1:3] == ["3.08 ×", "0.5"]  # medians of latencies, means of failures


def test_a_missing_peer_says_how_to_get_it(results: list[Result]) -> None:
    assert results[0].rows()[3] == ["envoy", "-", "-", "-", "not available: not installed: pip install it"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (math.nan, "rtt", "-"),
        (math.inf, "s", "never"),
        (126.0, "rtt", "2.10 ×"),
        (0.022, "share", "2.2%"),
        (3.0, "count", "3"),
        (0.84, "s", "0.8 s"),
    ],
)
def test_units(value: float, unit: str, text: str) -> None:
    assert report.show(value, Column("x", "x", unit), 60.0) == text  # type: ignore[arg-type]


def test_the_summary_has_a_line_for_what_was_measured(results: list[Result]) -> None:
    rows = report.summary_rows(results)
    assert rows[0] == ["", "onetrip", "nginx", "envoy"]
    assert [row[0] for row in rows[1:]] == [
        "first request of a process",
        "2 % of us late by 1 s: p50, p99, p99.9, extra requests",
        "us goes dark: slowest, over 300 ms, GETs and POSTs failed",
    ]
    assert rows[3][1:] == ["4.00 ×, 0, 0, 0", "8.17 ×, 44, 0, 0", "-"]


def test_every_line_of_the_summary_names_columns_that_exist() -> None:
    for line in report.SUMMARY:
        keys = {column.key for column in SCENARIOS[line.scenario].columns}
        assert set(line.keys) <= keys


def test_the_json_is_json_and_says_never(results: list[Result]) -> None:
    text = json.dumps(report.as_json(results, {"cpu": "x"}), allow_nan=False)
    scenarios = json.loads(text)["scenarios"]
    assert scenarios["cold"]["proxies"]["onetrip"]["figures"]["first_ms"] == 61.5
    assert scenarios["cold"]["proxies"]["envoy"] == {"missing": "not available: not installed: pip install it"}
    assert scenarios["blackhole"]["proxies"]["nginx"]["figures"]["took_over_s"] == "never"
    assert scenarios["blackhole"]["rtt_ms"] == 60


def test_repeatability_and_drift(results: list[Result]) -> None:
    worst, where = report.repeatability(results)[0]
    assert worst == pytest.approx(0.5 / 61.5)
    assert where == "cold, onetrip: first request"
    earlier = json.loads(json.dumps(report.as_json(results, {})))
    earlier["scenarios"]["cold"]["proxies"]["nginx"]["figures"]["first_ms"] = 200.0
    assert report.drift(results, earlier)[0] == (pytest.approx(15 / 200), "cold, nginx: first request")


def test_a_late_generator_is_said() -> None:
    assert "disturbed" in Cell([{}], late_ms=9.0).remarks()
    assert Cell([{}], late_ms=0.5, complaints={"GET 503": 2}).remarks() == "2 × GET 503"


def test_markdown_holds_every_table(results: list[Result]) -> None:
    text = report.as_markdown(results, {"kernel": "6.1"})
    assert text.count("| proxy |") == 3
    assert "× is 60 ms, us's round trip." in text
    assert "- kernel: 6.1" in text


def test_only_what_stands_between_the_markers_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "comparison.md"
    page.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    assert report.rewrite(page, "new\n")
    assert page.read_text() == f"# Before\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nafter\n"
    page.write_text("no markers")
    assert not report.rewrite(page, "new")
    assert page.read_text() == "no markers"


def test_the_docs_get_tables_and_pictures(tmp_path: Path, results: list[Result]) -> None:
    page = tmp_path / "comparison.md"
    page.write_text(f"{report.BEGIN}{report.END}")
    (tmp_path / "compare.md").write_text(report.as_markdown(results, {}))
    document(results, tmp_path, page)
    assert "us goes dark" in page.read_text()
    assert sorted(path.name for path in (tmp_path / "assets").iterdir()) == [
        "comparison-blackhole.svg",
        "comparison-first.svg",
        "comparison-tail.svg",
    ]


def test_pictures_are_well_formed_and_stand_alone(results: list[Result]) -> None:
    for name, svg in pictures(results).items():
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg"), name
        assert "href" not in svg
        assert "nan" not in svg
        width, height = (float(word) for word in root.attrib["viewBox"].split()[2:])
        for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= height


def test_pictures_of_nothing() -> None:
    assert pictures([]) == {}


def test_failed_requests_are_crosses(results: list[Result]) -> None:
    assert pictures(results)["comparison-blackhole.svg"].count('class="bad"') == 2  # one path for each proxy


def test_arguments() -> None:
    options = parse_arguments(["--only", "cold,burst", "--quick"])
    assert choose(options.only, dict(SCENARIOS), []) == ["cold", "burst"]
    with pytest.raises(SystemExit, match="unknown: colder"):
        choose("colder", dict(SCENARIOS), [])
    assert [contender.name for contender in DEFAULT] == ["envoy", "haproxy", "nginx", "onetrip"]
    assert set(CONTENDERS) > {"envoy", "haproxy", "nginx", "onetrip"}
