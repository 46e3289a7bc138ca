"""The whole command once, as short as can be: onetrip over the loopback lab."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from loadtests import compare
from loadtests.peers.wiring import Unavailable
from loadtests.wan.catalogue import SCENARIOS
from loadtests.wan.load import Sample
from loadtests.wan.report import Cell
from loadtests.wan.scenarios import QUICK, Run
from loadtests.wan.site import REGIONS, UNTOUCHED, Witness


def test_one_scenario_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "QUICK", dataclasses.replace(QUICK, starts=1))
    out, kept = tmp_path / "out", tmp_path / "kept"
    arguments = ["--quick", "--mode", "loopback", "--only", "cold", "--proxies", "onetrip", "--out", str(out)]
    assert compare.main([*arguments, "--keep", str(kept)]) == 0
    found = json.loads((out / "compare.json").read_text())["scenarios"]["cold"]["proxies"]["onetrip"]
    assert found["figures"]["failed_get"] == 0
    assert found["figures"]["first_ms"] >= 55  # not faster than the path
    assert (out / "compare.md").read_text().startswith("|")
    assert (out / "comparison-first.svg").exists()
    assert (kept / "cold-onetrip" / "access.log").exists()
    assert (kept / "cold-onetrip" / "stats.txt").read_text().startswith("# HELP")
    assert "first request" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = compare.facts_of([compare.CONTENDERS["haproxy"]], 1, QUICK)
    found = facts["haproxy"]
    assert found.startswith(("missing, not installed: apt install haproxy", "HAProxy version"))  # sbin is looked at too


@pytest.mark.parametrize(("late", "kept_ms"), [([0.3], 0.3), ([9.0, 0.2], 0.2), ([9.0, 4.0, 7.0], 4.0)])
async def test_a_disturbed_run_is_repeated_and_the_calmest_counts(
    late: list[float], kept_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter(late)

    async def run_once(*_: object) -> tuple[Run, float]:
        late_ms = next(made)
        return Run(None, None, QUICK, figures={"first_ms": late_ms}), late_ms  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "run_once", run_once)
    cell = Cell()
    contender = compare.CONTENDERS["onetrip"]
    await compare.turn(None, SCENARIOS["cold"], contender, QUICK, cell)  # type: ignore[arg-type]
    assert cell.rounds == [{"first_ms": kept_ms}]
    assert cell.late_ms == kept_ms
    assert next(made, None) is None


async def test_what_does_not_come_up_stands_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_once(*_: object) -> Run:
        raise Unavailable("did not start: no such file")

    monkeypatch.setattr(compare, "run_once", run_once)
    cell = Cell()
    await compare.turn(None, SCENARIOS["cold"], compare.CONTENDERS["onetrip"], QUICK, cell)  # type: ignore[arg-type]
    assert cell.remarks() == "not available: did not start: no such file"
    assert not cell.rounds


class Fixed:
    """A witness that has seen these excesses (ms), one every 20 ms from 0 on."""

    def __init__(self, excess_ms: list[float]) -> None:
        trip_ms = REGIONS[UNTOUCHED]
        self.samples = [Sample(n / 50, trip_ms + late, "GET", 200, "ap", "", 0) for n, late in enumerate(excess_ms)]

    def witness(self) -> Witness:
        made = object.__new__(Witness)
        made._load = self  # type: ignore[assignment]
        return made


def test_the_witness_speaks_for_the_windows_alone() -> None:
    witness = Fixed([0.1] * 100 + [40.0] + [0.1] * 99).witness()
    assert compare.lateness_ms(witness, []) == 0.0
    assert compare.lateness_ms(witness, [(0.5, 0.56)]) == pytest.approx(0.1)
    assert compare.lateness_ms(witness, [(0.5, 0.56), (2.1, 2.2)]) == pytest.approx(40.0)  # it was out then
    assert compare.lateness_ms(witness, [(0.2, 3.9)]) == pytest.approx(0.1)  # one in two hundred is not the 99th
