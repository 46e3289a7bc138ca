"""The live view of a run, in a process of its own.

Drawing a screen costs milliseconds. Done by the generator, four times a second, these would stand in the latencies. So
the generator writes a line of JSON to a pipe (microseconds; a line that does not fit is dropped), and this module, run
as a program, draws.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from typing import Final, TextIO

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .engine import Snapshot
from .plan import Plan
from .record import percentiles_of
from .report import ms

_START_MAX_S: Final = 5.0
_NICENESS: Final = 5  # where there is one core for both, the generator comes first
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_TREND: Final = 40  # snapshots in a sparkline: ten seconds
_WINDOW: Final = 20  # snapshots behind the moving percentiles: five seconds


class Header(msgspec.Struct):
    """The first line: what will be shown."""

    names: list[str]
    rate: float
    total_s: float
    lead_s: float


class LiveView:
    """The generator's end: starts the viewer, feeds it, ends it. A viewer that fails does not disturb the run."""

    def __init__(self, plan: Plan) -> None:
        viewer = subprocess.Popen(
            [sys.executable, "-m", "proxy.bench.live"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert viewer.stdin is not None
        assert viewer.stdout is not None
        # Its start takes half a second of CPU: better before the run than in it.
        select.select([viewer.stdout], [], [], _START_MAX_S)
        self._viewer: subprocess.Popen[bytes] | None = viewer
        self._pipe = viewer.stdin.fileno()
        os.set_blocking(self._pipe, False)
        names = [target.name for target in plan.targets]
        self._write(msgspec.json.encode(Header(names, plan.rate, plan.warmup_s + plan.duration_s, plan.warmup_s)))

    def feed(self, snapshot: Snapshot) -> None:
        """Show it, or drop it."""
        self._write(msgspec.json.encode(snapshot))

    def close(self) -> None:
        """End the viewer, which clears its screen, and wait for it."""
        viewer, self._viewer = self._viewer, None
        if viewer is None or viewer.stdin is None:
            return
        try:
            viewer.stdin.close()
        except BrokenPipeError:
            pass
        try:
            viewer.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            viewer.kill()
            viewer.wait()
        if viewer.stdout is not None:
            viewer.stdout.close()

    def _write(self, line: bytes) -> None:
        if self._viewer is None:
            return
        try:
            os.write(
                self._pipe, line + b"\n"
            )  # up to PIPE_BUF at once; a longer line may be cut, and is then skipped by the reader
        except (BlockingIOError, BrokenPipeError):
            pass


class Screen:
    """What the viewer knows, and how it looks."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._snapshot: Snapshot | None = None
        self._windows: list[deque[dict[int, int]]] = [deque(maxlen=_WINDOW) for _ in header.names]
        self._trends: list[deque[float]] = [deque(maxlen=_TREND) for _ in header.names]
        self._counts: deque[tuple[float, list[int]]] = deque(maxlen=_WINDOW // 4)

    def take(self, snapshot: Snapshot) -> None:
        """Take the newest state in."""
        self._snapshot = snapshot
        self._counts.append((snapshot.elapsed_s, snapshot.answered))
        for i, recent in enumerate(snapshot.recent):
            self._windows[i].append(recent)
            if recent:
                self._trends[i].append(percentiles_of(recent, (50,))[0] / 1000)

    def render(self) -> RenderableType:
        """The screen."""
        header, snapshot = self._header, self._snapshot
        if snapshot is None:
            return Text("starting …", style="dim")
        elapsed_s = max(0.0, min(snapshot.elapsed_s, header.total_s))
        bar = Table.grid(padding=(0, 1))
        stage = (
            "warming up"
            if snapshot.warming_up
            else "measuring"
            if snapshot.elapsed_s < header.total_s
            else "waiting for answers"
        )
        bar.add_row(
            ProgressBar(total=header.total_s, completed=elapsed_s, width=36),
            Text(f"{elapsed_s:.0f}/{header.total_s:g} s"),
            Text(stage, style="yellow" if snapshot.warming_up else "green"),
            Text(f"{header.rate:g}/s asked, {snapshot.in_flight} in flight", style="dim"),
        )
        lag_ms = snapshot.lag_p99_us / 1000
        lag = Text(f"generator {lag_ms:.2f} ms late (p99)", style="bold red" if lag_ms > 1 else "dim")
        return Group(bar, self._table(snapshot), lag)

    def _table(self, snapshot: Snapshot) -> Table:
        table = Table(box=SIMPLE_HEAD)
        table.add_column("region", style="bold")
        for column in ("/s", "answers", "failed", "open", "queued", "p50 ms", "p99 ms", "max ms"):
            table.add_column(column, justify="right")
        table.add_column("p50, last 10 s", style="cyan", min_width=_TREND)
        for i, name in enumerate(self._header.names):
            merged: dict[int, int] = {}
            for window in self._windows[i]:
                for index, count in window.items():
                    merged[index] = merged.get(index, 0) + count
            p50, p99, most = (ms(us / 1000) if merged else "-" for us in percentiles_of(merged, (50, 99, 100)))
            failed = snapshot.failed[i]
            table.add_row(
                name,
                f"{self._rate(i):.0f}",
                str(snapshot.answered[i]),
                Text(str(failed), style="bold red" if failed else ""),
                str(snapshot.open[i]),
                str(snapshot.queued[i]),
                p50,
                p99,
                most,
                sparkline(self._trends[i]),
            )
        return table

    def _rate(self, i: int) -> float:
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        return (last[i] - first[i]) / (last_s - first_s) if last_s > first_s else 0.0


def sparkline(values: Iterable[float]) -> str:
    """Values as bars from the smallest to the largest of them."""
    points = list(values)
    if not points:
        return ""
    low, high = min(points), max(points)
    span = max(high - low, 0.1 * high, 1e-9)  # a tenth of noise should not look like mountains
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int((value - low) / span * len(_SPARKS)))] for value in points)


def main(source: TextIO = sys.stdin) -> None:
    """Draw what comes in on stdin until it ends. Ctrl-C is the generator's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    header = msgspec.json.decode(source.readline(), type=Header)
    decoder = msgspec.json.Decoder(Snapshot)
    screen = Screen(header)
    with Live(screen.render(), console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        for line in source:
            try:
                screen.take(decoder.decode(line))
            except msgspec.DecodeError:
                continue
            live.update(screen.render(), refresh=True)


if __name__ == "__main__":
    main()
