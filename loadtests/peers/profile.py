"""Where onetrip's time goes while a load runs: py-spy's samples, summed by function."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from .process import Program, on_core
from .wiring import Unavailable, find_binary

RATE_HZ: Final = 500
WAITING: Final = frozenset({"Condition.wait (threading.py)", "wait (threading.py)", "Event.wait (threading.py)"})
"""A thread that waits for a lock is not always told from a running one; these leaves cost nothing and are left out."""


def find_py_spy() -> str:
    """py-spy, beside this interpreter or in PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else find_binary("py-spy", "pip install py-spy")


def start_recording(program: Program, seconds: float, core: int, output: Path, native: bool) -> subprocess.Popen[bytes]:
    """Sample the program's stacks into `output` for that long, from the load's core."""
    command = [find_py_spy(), "record", "--pid", str(program.pid), "--subprocesses", "--duration", str(round(seconds))]
    command += ["--rate", str(RATE_HZ), "--format", "raw", "--output", str(output)]
    with on_core(core):
        return subprocess.Popen(
            [*command, *(["--native"] if native else [])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )


def finish_recording(recording: subprocess.Popen[bytes]) -> None:
    """Wait for its end; raise `Unavailable` with what it said where it failed."""
    _, errors = recording.communicate()
    if recording.returncode:
        raise Unavailable(f"py-spy: {errors.decode(errors='replace').strip()[-300:]}")


def flat(raw: str, top: int = 40) -> str:
    """Functions by their own share of the samples, with their share including callees, from py-spy's folded stacks."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples = 0
    for line in raw.splitlines():
        stack, _, count_text = line.rpartition(" ")
        if not count_text.isdigit():
            continue
        count = int(count_text)
        # `function (file.py:123)`: lines of one function belong together.
        frames = [
            frame.rpartition(":")[0] + ")" if frame.endswith(")") and ":" in frame else frame
            for frame in stack.split(";")
        ]
        frames = [frame for frame in frames if not frame.startswith("process ")]
        if not frames or frames[-1] in WAITING:
            continue
        samples += count
        own[frames[-1]] += count
        for frame in set(frames):
            total[frame] += count
    if not samples:
        return "no samples"
    lines = [f"{samples} samples at {RATE_HZ} Hz", "  own %  total %  function"]
    lines += [
        f"{100 * n / samples:7.1f}  {100 * total[name] / samples:7.1f}  {name}" for name, n in own.most_common(top)
    ]
    return "\n".join(lines)
