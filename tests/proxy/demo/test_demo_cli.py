"""The command: its options, its exit codes, a short performance on the real stage, and Ctrl-C in the middle of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loadtests.lab import LabError
from proxy.demo import run
from proxy.demo.cli import EPILOG, EXIT_FAILED, EXIT_INTERRUPTED, demo
from proxy.demo.scenario import FAST

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = "import typer; from proxy.demo.cli import demo; typer.run(demo)"
SHORT_S = {"cold": 1.0, "steady": 1.8, "burst": 0.8, "blackhole": 0.3, "return": 1.5, "tail": 0.4}

app = typer.Typer()
app.command(epilog=EPILOG)(demo)


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def performed(monkeypatch):
    """Instead of performing: what it was asked for; it returns or raises `then`."""
    asked: dict[str, object] = {"then": True}

    async def instead(script, **options):
        asked.update(options, script=script)
        if isinstance(asked["then"], BaseException):
            raise asked["then"]
        return asked["then"]

    monkeypatch.setattr(run, "demo", instead)
    return asked


class TestOptions:
    def test_defaults(self, performed):
        assert invoke().exit_code == 0
        assert (performed["mode"], performed["as_json"], performed["keep"]) == ("loopback", False, False)
        assert performed["live"] is False  # the runner's stderr is no terminal

    def test_fast_is_another_script(self, performed):
        invoke("--fast", "--mode", "netns", "--keep", "--json")
        assert performed["script"] is FAST
        assert (performed["mode"], performed["as_json"], performed["keep"]) == ("netns", True, True)

    def test_a_broken_promise(self, performed):
        performed["then"] = False
        assert invoke().exit_code == EXIT_FAILED

    def test_a_lab_that_can_not_be_had(self, performed):
        performed["then"] = LabError("no namespaces here")
        result = invoke("--mode", "netns")
        assert result.exit_code == EXIT_FAILED
        assert "no namespaces here" in result.stderr

    def test_interrupted(self, performed):
        performed["then"] = KeyboardInterrupt()
        assert invoke().exit_code == EXIT_INTERRUPTED

    def test_wrong_usage(self):
        assert invoke("--mode", "moon").exit_code == 2

    def test_help_has_examples(self):
        result = invoke("--help")
        assert "onetrip demo --fast" in result.stdout


async def test_a_short_performance(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    phases = tuple(replace(phase, seconds=SHORT_S[phase.key]) for phase in FAST.phases)
    script = replace(FAST, phases=phases, starts=1, bursts=1, rate=20.0, warm=8, burst=6)
    await run.demo(script, mode="loopback", live=False, as_json=True, keep=True)
    written = capsys.readouterr()
    found = json.loads(written.out)
    assert [one["phase"] for one in found["phases"]] == list(SHORT_S)
    assert all(one[side]["requests"] > 0 for one in found["phases"] for side in ("direct", "proxied"))
    assert found["phases"][0]["direct"]["p50_rtt"] > 2.9  # a new client's handshakes, whatever else the machine does
    assert found["metrics"]["onetrip_requests_total"] > 20
    assert len(found["promises"]) == 7
    assert "cold start: " in written.err
    assert "= slow tail" in written.err
    (kept,) = [path for path in tmp_path.iterdir() if path.name.startswith("onetrip-demo-")]
    assert {"onetrip.yaml", "proxy.log", "results.json"} <= {path.name for path in kept.iterdir()}
    assert json.loads((kept / "results.json").read_text()) == found


@pytest.mark.needs("/proc")
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--fast", "--no-live"], stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("steady: "):
                break
        children = children_of(process.pid)
        assert len(children) >= 6, seen  # relay, four origins, the proxy
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    assert process.returncode == EXIT_INTERRUPTED, rest
    assert "interrupted" in rest
    assert [pid for pid in children if running(pid)] == []
    assert list(tmp_path.iterdir()) == []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
