"""The routing policies in the simulator's world, at a small scale: the promises of docs/routing.md, seeded."""

import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.simulate import figures
from loadtests.simulate.__main__ import main
from loadtests.simulate.fleets import fleet, spike, storm
from loadtests.simulate.policies import RULES, choice, tail_at_scale
from loadtests.simulate.scenarios import SCENARIOS
from loadtests.simulate.virtual import Clock
from loadtests.simulate.worlds import NEAR, RTTS, quantile

TRIOS = pytest.mark.parametrize("rtts", [RTTS, NEAR], ids=["regions", "near"])


def run(name: str, **settings: Any) -> dict[str, Any]:
    return SCENARIOS[name](**settings)


def test_the_clock_runs_events_in_order() -> None:
    clock = Clock()
    seen: list[str] = []
    clock.after(2.0, seen.append, "b")
    clock.after(1.0, lambda: clock.after(0.5, seen.append, "a"))
    clock.at(2.0, seen.append, "c")
    clock.at(9.0, seen.append, "never")
    clock.run(5.0)
    assert (seen, clock.now) == (["a", "b", "c"], 5.0)


@TRIOS
@pytest.mark.parametrize("fault", ["blackhole", "hang", "reset", "refuse", "503"])
def test_a_lost_region_costs_no_request_and_comes_back_without_a_flap(fault: str, rtts: dict[str, float]) -> None:
    found = run(fault, rtts=rtts)
    assert found["failed"] == found["failed_after"] == 0
    assert found["slower_than_250ms"] == 0
    assert found["median_at_eu_after_s"] < 1.0
    assert found["back_after_s"] < 30.0
    assert [line.split(":")[0].split(" ", 1)[1] for line in found["changes"]] == [
        "us HEALTHY -> SUSPECT",
        "us SUSPECT -> DRAINED",
        "us DRAINED -> PROBING",
        "us PROBING -> RAMPING",
        "us RAMPING -> HEALTHY",
    ]


@pytest.mark.parametrize("fault", ["hang", "reset", "refuse", "503"])
@pytest.mark.parametrize("endpoints", [1, 2])
def test_beside_its_region_a_proxy_leaves_it_whatever_the_ratio_of_distances(fault: str, endpoints: int) -> None:
    found = run(fault, rtts=NEAR, endpoints=endpoints)
    assert found["failed"] == found["failed_after"] == 0
    assert found["max_ms"] < 100.0


def test_two_percent_of_late_answers_cost_neither_the_tail_nor_a_drain() -> None:
    found = run("late2")
    assert found["failed"] == 0
    assert found["p99_rtt"] < 1.5
    assert found["p99.9_rtt"] < 2.2
    assert found["extra"] <= 0.03
    assert found["changes"] == []


def test_two_percent_of_late_answers_beside_the_proxy_do_not_send_users_far_away() -> None:
    found = run("late2", rtts=NEAR)
    assert found["failed"] == 0
    assert found["shares"]["us"] > 0.98
    assert found["p99_ms"] < 12.0
    assert found["changes"] == []


def test_packet_loss_on_the_nearest_path() -> None:
    assert run("loss2")["p99_rtt"] <= 2.4


def test_a_brownout_of_everything_stays_within_the_budget() -> None:
    found = run("brownout")
    assert found["failed"] == 0
    assert found["extra"] <= 0.05


@TRIOS
def test_a_longer_path_is_left_at_once_and_found_again(rtts: dict[str, float]) -> None:
    found = run("rtt", rtts=rtts)
    assert found["failed"] == 0
    assert found["median_at_eu_after_s"] <= 2.0
    assert found["back_after_s"] <= 30.0


def test_unsafe_requests_fail_only_where_bytes_had_reached_the_origin() -> None:
    assert run("refuse", safe=False)["failed"] == 0
    assert 0 < run("blackhole", safe=False)["failed"] < 60, "those on their way when the region died"


def test_a_fleet_that_loses_a_region_neither_swings_nor_topples_the_next() -> None:
    found = fleet(proxies=40, rate=8.0, end=42.0, window=(12.0, 32.0))
    assert found["failed"] == 0
    assert found["drains_of_others"] == 0
    assert found["us_drains_per_proxy"] <= 1.0, "nobody flaps"
    assert found["eu_share_swing"] < 0.35
    assert found["steady"]["p99_ms"] < 700.0, "queues stay short"


@TRIOS
def test_retries_make_no_storm_when_every_region_fails(rtts: dict[str, float]) -> None:
    found = storm(proxies=8, rtts=rtts)
    assert found["extra_during"] < 0.30
    assert found["failed_after_5_s"] == 0


@TRIOS
def test_an_overload_ends_with_its_cause(rtts: dict[str, float]) -> None:
    found = spike(proxies=8, rtts=rtts)
    assert found["during"]["failed"] > 0
    assert found["after_5_s"]["failed"] <= 0.01 * found["after_5_s"]["requests"]


def test_hedges_have_the_shape_of_the_tail_at_scale() -> None:
    rows = {row["hedge_after"]: row for row in tail_at_scale(requests=6000, replicas=30)}
    assert rows["none"]["p99.9_ms"] > 300.0
    assert rows["p95"]["p99.9_ms"] < 0.1 * rows["none"]["p99.9_ms"]
    assert rows["p95"]["extra"] < 0.06
    assert rows["p50"]["extra"] > 0.4, "hedging earlier costs load …"
    assert rows["p50"]["p99.9_ms"] > 0.4 * rows["p95"]["p99.9_ms"], "… and gains little"
    assert rows["policy"]["p99.9_ms"] < 0.1 * rows["none"]["p99.9_ms"]
    assert rows["policy"]["extra"] < 0.05


def test_among_unequal_replicas_it_is_no_worse_than_the_best_known_rules() -> None:
    rows = {rule: choice(rule, 0.6, replicas=12, clients=4, end=12.0) for rule in RULES}
    ours = rows["onetrip"]["p99.9_ms"]
    assert ours < 0.5 * rows["round_robin"]["p99.9_ms"]
    assert ours < rows["least_request"]["p99.9_ms"]
    assert ours < rows["peak_ewma"]["p99.9_ms"]
    assert ours < 1.25 * rows["prequal"]["p99.9_ms"]
    assert rows["onetrip"]["extra"] <= 0.06


def test_the_same_seed_gives_the_same_figures() -> None:
    assert storm(proxies=3, end=45.0) == storm(proxies=3, end=45.0)


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blackhole", "--json", "--seed", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["blackhole"]["failed"] == 0
    assert main(["late2"]) == 0
    assert "p99_rtt" in capsys.readouterr().out


def test_unknown_scenarios_are_refused() -> None:
    with pytest.raises(SystemExit):
        main(["mars"])


def test_quantiles_of_little() -> None:
    assert quantile([], 0.5) == 0.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0], 1.0) == 1.0


def test_charts_are_drawn(tmp_path: Path) -> None:
    rows = [{"us": 0.5, "eu": 0.5, "ap": 0.0}, {"us": 0.0, "eu": 1.0, "ap": 0.0}]
    figures.shares(rows, 10, (10.0, 11.0), tmp_path / "shares.svg")
    text = (tmp_path / "shares.svg").read_text()
    assert text.startswith("<svg")
    assert text.count("<polyline") == 3
    chart = figures.Chart("a & b", "x", "y", [("line", [(1.0, 2.0), (100.0, 2000.0)])], log_x=True, log_y=True)
    assert "a &amp; b" in chart.svg()
    assert ">1000<" in chart.svg()
