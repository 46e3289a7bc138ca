"""What the runs amount to, and the command around them."""

import json
import os

import pytest

from loadtests import cpu
from loadtests.peers.report import Cell, Result, as_json, as_markdown, markdown_table, text_table, verdicts
from loadtests.peers.scenarios import SCENARIOS, Settings, scenario_load

from ..programs import needs


def run(us, **more):
    measures = dict.fromkeys(
        ("user_us", "system_us", "requests_per_s", "busy_percent", "foreign_percent", "errors"), 0.0
    )
    return {**measures, "us_per_request": us, **more}


def h1(**cells):
    return Result(SCENARIOS["h1"], {name: Cell([run(us) for us in values]) for name, values in cells.items()})


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    # The machine was twice as slow in the second round: medians of each would say 30 / 40.
    result = h1(onetrip=[20.0, 40.0, 20.0], envoy=[40.0, 80.0, 40.0])
    assert result.ratio("onetrip", "us_per_request") == 0.5
    result = h1(onetrip=[30.0, 60.0, 10.0], envoy=[40.0, 80.0, 40.0])
    assert result.ratio("onetrip", "us_per_request") == 0.75


def test_there_is_no_ratio_to_what_is_missing():
    assert h1(onetrip=[20.0]).ratio("onetrip", "us_per_request") is None
    assert h1(onetrip=[20.0], envoy=[]).ratio("onetrip", "us_per_request") is None


def test_rows_show_medians_ranges_and_remarks():
    result = h1(onetrip=[20.0, 24.0, 22.0], envoy=[40.0, 40.0, 40.0])
    result.cells["nginx"] = Cell(missing="not available: not installed: apt install nginx")
    result.cells["envoy"].runs[0].update(errors=7, foreign_percent=20.0)
    heading, onetrip, envoy, nginx = result.rows()
    assert heading[:3] == ["proxy", "x envoy", "us/request"]
    assert onetrip[:3] == ["onetrip", "0.55", "22.0"]
    assert onetrip[-2:] == ["20.0-24.0", ""]
    assert envoy[-1] == "7 errors; disturbed: other programs took 20 % of its core"
    assert nginx[1:-1] == ["-"] * (len(heading) - 2)
    assert nginx[-1].endswith("apt install nginx")


def test_tables_are_aligned_and_of_one_width():
    rows = [["a", "b", "c"], ["long", "1", "x"], ["s", "1,000", ""]]
    assert text_table(rows).splitlines() == ["a         b  c", "long      1  x", "s     1,000"]
    assert markdown_table(rows).splitlines()[1] == "| --- | ---: | --- |"


@pytest.mark.parametrize(("us", "kept"), [(34.0, True), (34.1, False)])
def test_a_target_is_kept_up_to_its_limit(us, kept):
    ((target, value, verdict),) = verdicts([h1(onetrip=[us], envoy=[40.0])])
    assert target.limit == 0.85
    assert value == pytest.approx(us / 40)
    assert verdict is kept


def test_a_target_of_at_least_looks_the_other_way():
    def tcp(onetrip):
        runs = {"onetrip": run(0, mb_per_cpu_s=onetrip), "haproxy": run(0, mb_per_cpu_s=4000.0)}
        return Result(SCENARIOS["tcp"], {name: Cell([measures]) for name, measures in runs.items()})

    assert [kept for _, _, kept in verdicts([tcp(4100.0)])] == [True]
    assert [kept for _, _, kept in verdicts([tcp(3900.0)])] == [False]


def test_a_target_is_left_open_where_nothing_was_measured():
    assert verdicts([h1(envoy=[40.0])]) == []
    assert verdicts([Result(SCENARIOS["idle"], {"onetrip": Cell(missing="gone")})]) == []


def test_added_latency_counts_from_the_direct_one():
    cells = {
        "onetrip": Cell([run(25.0, p50_ms=0.25, p99_ms=0.5)]),
        "envoy": Cell([run(40.0, p50_ms=0.2, p99_ms=0.4)]),
        "direct": Cell([run(0.0, p50_ms=0.1, p99_ms=0.2)]),
    }
    found = {target.title: value for target, value, _ in verdicts([Result(SCENARIOS["latency"], cells)])}
    assert found["added p50, ms"] == pytest.approx(0.15)
    assert found["p99, times Envoy's"] == pytest.approx(1.25)


def test_both_reports_hold_every_cell():
    result = h1(onetrip=[20.0], envoy=[40.0])
    result.cells["nginx"] = Cell(missing="not installed")
    whole = json.loads(json.dumps(as_json([result], {"cpu": "fast"})))
    proxies = whole["scenarios"]["h1"]["proxies"]
    assert proxies["onetrip"]["x_envoy"] == 0.5
    assert proxies["onetrip"]["median"]["us_per_request"] == 20.0
    assert proxies["nginx"] == {"missing": "not installed"}
    assert whole["targets"][0]["kept"] is True
    markdown = as_markdown([result], {"cpu": "fast"})
    assert "- cpu: fast" in markdown
    assert "| onetrip | 0.50 | 20.0 |" in markdown
    assert "not installed" in markdown


def test_connections_apply_to_the_usual_64_only():
    settings = Settings(connections=8)
    assert scenario_load(SCENARIOS["h1"], settings).connections == 8
    assert scenario_load(SCENARIOS["download"], settings).connections == 16


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match="unknown: h9; known: h1, tls-up"):
        cpu.main(["--only", "h9"])


def test_one_core_is_not_enough(capsys):
    assert cpu.main(["--proxy-core", "0", "--load-core", "0"]) == 2
    assert "two cores" in capsys.readouterr().err


@pytest.mark.interop
def test_a_run_from_end_to_end(tmp_path, capsys):
    cores = sorted(os.sched_getaffinity(0))
    needs("nginx", "ngx_stream_module", "wrk", "h2load", "two cores")
    where = ["--proxy-core", str(cores[1]), "--load-core", str(cores[0]), "--out", str(tmp_path)]
    assert cpu.main(["--only", "h1", "--proxies", "nginx", "--rounds", "1", "--seconds", "1", *where]) == 0
    median = json.loads((tmp_path / "cpu.json").read_text())["scenarios"]["h1"]["proxies"]["nginx"]["median"]
    assert median["errors"] == 0
    assert median["requests_per_s"] > 0
    assert median["user_us"] + median["system_us"] == pytest.approx(median["us_per_request"], rel=1e-3)
    assert "| nginx |" in (tmp_path / "cpu.md").read_text()
    assert "nginx" in capsys.readouterr().out
