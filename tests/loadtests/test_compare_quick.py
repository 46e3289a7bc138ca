"""The whole command once, as short as can be: onetrip over the loopback lab."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from loadtests import compare
from loadtests.wan.scenarios import QUICK


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
