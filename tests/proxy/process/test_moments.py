"""Signals at any moment of the start; what is left when a program ends; children that end when nobody looks."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ..program import ROOT, WAIT_S, HttpOrigin, Onetrip, alive, config, free_port, get, http_origin, serving, wait_for

SET_CHILD_SUBREAPER = 36
MOMENTS, PARTS = 40, 5


@pytest.fixture(scope="module")
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        yield found


def descendants(marker: str) -> list[int]:
    """The processes that run this config, orphans among them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
                if b"serve" in line and marker.encode() in line and alive(int(entry)):
                    found.append(int(entry))
    return found


def start(path: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "proxy.cli", "serve", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=before,
    )


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_at_any_moment_of_the_start(origin: HttpOrigin, tmp_path: Path, workers: int, part: int) -> None:
    """Exit 0, or the signal's default where it comes before anything was begun; nobody is left, and nobody complains."""
    path = tmp_path / "moments.yaml"
    path.write_text(config(origin.port, workers=workers))
    began = time.monotonic()
    process = start(path)
    assert process.stderr is not None
    while '"listening"' not in process.stderr.readline():
        pass
    whole_s = time.monotonic() - began
    process.terminate()
    process.communicate(timeout=WAIT_S)
    ends = set()
    for moment in range(part, MOMENTS, PARTS):
        moment_s = 1.2 * whole_s * moment / MOMENTS
        process = start(path)
        try:
            time.sleep(moment_s)  # what is tested is a moment; whichever it hits must do
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
        ends.add(process.returncode)
        assert process.returncode in (0, -signal.SIGTERM), (moment_s, said)
        assert "Traceback" not in said, (moment_s, said)
        assert "worker_died" not in said, (moment_s, said)
        wait_for(lambda: not descendants(str(path)), f"the end of all of it, {moment_s:.3f} s after the start")
    if part == 0:
        assert -signal.SIGTERM in ends, "no moment was before it began"


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_when_the_first_worker_is_there(origin: HttpOrigin, tmp_path: Path, workers: int) -> None:
    path = tmp_path / "moments.yaml"
    path.write_text(config(origin.port, workers=workers))
    process = start(path)
    assert process.stderr is not None
    line = process.stderr.readline()  # worker_started, or listening
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, line + said
    assert '"stopped"' in said
    wait_for(lambda: not descendants(str(path)), "the end of all of it")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_for_later_does_not_end_a_program_that_starts(
    origin: HttpOrigin, tmp_path: Path, number: signal.Signals
) -> None:
    program = Onetrip(tmp_path, config(origin.port))
    try:
        # The process that serves has forked off the one that holds the ticket keys: signals are kept by then.
        wait_for(lambda: len(descendants(str(program.path))) > 1, "the fork server")
        program.signal(number)
        program.event("config_reloaded" if number == signal.SIGHUP else "hand_over")
    finally:
        program.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_whoever_inherits_orphans_lets_no_zombie_stay(origin: HttpOrigin, tmp_path: Path, workers: int) -> None:
    """The dismissed fork server (no listener has TLS) is a child of process 1, which a program may be itself."""
    path = tmp_path / "reaper.yaml"
    path.write_text(config(origin.port, workers=workers))

    def adopt() -> None:
        assert ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    process = start(path, adopt)
    try:
        assert process.stderr is not None
        while '"ready"' not in (line := process.stderr.readline()):
            assert line
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        expected = workers if workers > 1 else 0
        wait_for(lambda: len(children.read_text().split()) == expected, "no child but the workers")
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_S)


def test_a_worker_that_dies_at_birth_is_replaced(origin: HttpOrigin, tmp_path: Path) -> None:
    """It is dead before the supervisor has written it down."""
    script = tmp_path / "born_dead.py"
    script.write_text(BORN_DEAD)
    path = tmp_path / "born.yaml"
    port = free_port()
    path.write_text(config(origin.port, workers=2).replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
    process = subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stderr is not None
        lines = []
        while sum('"worker_started"' in line for line in lines) < 3:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        assert any('"worker_died"' in line and '"exit_code":-9' in line for line in lines), lines
        assert get(port).status == 200
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 0


BORN_DEAD = """
import os, signal, sys
from proxy.process import supervisor
from proxy.process.serve import serve

fork, first = os.fork, [True]

def deadly():
    pid = fork()
    if pid == 0 and first[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    if first[0]:
        first[0] = False
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has died, and is still to be reaped
    return pid

supervisor.os.fork = deadly
sys.exit(serve(sys.argv[1]))
"""


@pytest.mark.parametrize("workers", [2])
def test_a_worker_that_is_stopped_holds_nobody_up(origin: HttpOrigin, tmp_path: Path, workers: int) -> None:
    with serving(tmp_path, config(origin.port, workers=workers, shutdown="deadline: 1s")) as program:
        program.event("ready", 2)
        first, second = program.workers()
        os.kill(first, signal.SIGSTOP)
        stopped = next(event["worker"] for event in program.events if event.get("pid") == first)
        program.signal(signal.SIGHUP)
        event = program.event("worker_kept_old_config", worker=stopped)
        assert event["error"].startswith("no answer within")
        program.event("config_reloaded")
        program.event("worker_died", worker=stopped)
        wait_for(lambda: len(program.workers()) == 2, "its replacement")
        os.kill(second, signal.SIGSTOP)
        program.signal(signal.SIGTERM)
        program.event("worker_did_not_stop", pid=second)
        assert program.wait() == 0
    wait_for(lambda: not descendants(str(program.path)), "the end of all of it")
