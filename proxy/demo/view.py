"""How the demo shows itself: a live view on a terminal, in a process of its own, and plain lines elsewhere.

Drawing a screen takes milliseconds that would stand in the latencies. So the demo writes a line of JSON to a pipe (one
that does not fit is dropped), and this module, run as a program, draws.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final, Protocol, TextIO

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .frame import WINDOW_S, Done, Frame, Region

if TYPE_CHECKING:
    from collections.abc import Callable

_START_MAX_S: Final = 5.0
_NICENESS: Final = 5
_LINE_EVERY_S: Final = 1.0
_SETTLED_S: Final = 3.1
_STATE_STYLE: Final = {
    "healthy": "green",
    "suspect": "yellow",
    "drained": "red",
    "probing": "magenta",
    "ramping": "cyan",
}


class View(Protocol):
    """Who shows frames."""

    def show(self, frame: Frame) -> None:
        """The newest picture."""

    def say(self, text: str) -> None:
        """A sentence about what happens now, where there is no picture yet."""

    def close(self) -> None:
        """No more. Idempotent."""


class Lines:
    """Plain lines: each phase as it begins and ends, and a line a second."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._phase = ""
        self._written = 0
        self._ended_s: list[float] = []
        self._next_s = 0.0

    def show(self, frame: Frame) -> None:
        """Write what is new; a phase's figures once its last requests have got their end."""
        self._ended_s += [frame.elapsed_s] * (len(frame.done) - len(self._ended_s))
        while self._written < len(frame.done) and (
            frame.finished or frame.elapsed_s > self._ended_s[self._written] + _SETTLED_S
        ):
            self._write(done_line(frame.done[self._written]))
            self._written += 1
        if frame.phase != self._phase:
            self._phase = frame.phase
            self._write(f"{frame.phase}: {frame.caption}")
            self._next_s = frame.elapsed_s + _LINE_EVERY_S
        elif frame.elapsed_s >= self._next_s:
            self._next_s += _LINE_EVERY_S
            self._write(frame_line(frame))

    def say(self, text: str) -> None:
        """Write it."""
        self._write(text)

    def close(self) -> None:
        """Nothing to do."""


class LiveView:
    """The demo's end of the live view: starts the viewer, feeds it, ends it. Its faults do not disturb the run."""

    def __init__(self) -> None:
        viewer = subprocess.Popen(
            [sys.executable, "-P", "-m", "proxy.demo.view"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert viewer.stdin is not None
        assert viewer.stdout is not None
        select.select([viewer.stdout], [], [], _START_MAX_S)  # its start takes CPU: better now than in a phase
        self._viewer: subprocess.Popen[bytes] | None = viewer
        self._pipe = viewer.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def show(self, frame: Frame) -> None:
        """Show it, or drop it."""
        self._send(msgspec.json.encode(frame))

    def say(self, text: str) -> None:
        """Show it until there is a frame."""
        self._send(msgspec.json.encode(text))

    def close(self) -> None:
        """End the viewer, which clears its screen, and wait for it."""
        viewer, self._viewer = self._viewer, None
        if viewer is None or viewer.stdin is None or viewer.stdout is None:
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
        viewer.stdout.close()

    def _send(self, line: bytes) -> None:
        if self._viewer is None:
            return
        try:
            os.write(self._pipe, line + b"\n")
        except (BlockingIOError, BrokenPipeError):
            pass


def frame_line(frame: Frame) -> str:
    """A frame in one line."""
    sides = ", ".join(
        f"{one.name} p50 {_ms(one.p50_ms)} p99 {_ms(one.p99_ms)} ms" + (f" {one.failed} failed" if one.failed else "")
        for one in frame.sides
    )
    regions = "  ".join(
        f"{region.name} {region.state} {region.weight:.0%}" + (f" ({region.path})" if region.path else "")
        for region in frame.regions
    )
    hedges = sum(count for result, count in frame.hedges.items() if result != "denied")
    return f"{frame.elapsed_s:5.0f} s  {sides} | {regions} | {hedges} hedges, {frame.saved} handshakes saved"


def done_line(finished: Done) -> str:
    """A finished phase in one line."""
    sides = "; ".join(
        f"{name} p50 {_times(p50)} p99 {_times(p99)}" + (f", {failed} FAILED" if failed else "")
        for name, (p50, p99, failed) in (("direct", finished.direct), ("proxied", finished.proxied))
    )
    return f"  = {finished.title}, in round trips: {sides}" + (f" ({finished.note})" if finished.note else "")


def render(frame: Frame) -> RenderableType:
    """The screen."""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text("onetrip demo", style="bold"),
        ProgressBar(total=frame.total_s, completed=min(frame.elapsed_s, frame.total_s), width=30),
        Text(f"{frame.elapsed_s:.0f} s of about {frame.total_s:.0f}", style="dim"),
    )
    phase = Text.assemble((frame.phase, "bold yellow"), f"  {frame.caption}")
    hedges = ", ".join(f"{count} {result}" for result, count in frame.hedges.items()) or "none"
    counts = Text(f"hedges: {hedges} · handshakes saved: {frame.saved}")
    parts: list[RenderableType] = [head, Text(), phase, _sides(frame), _regions(frame.regions), counts]
    if frame.done:
        notes = " · ".join(f"{one.title}: {one.note}" for one in frame.done if one.note)
        parts += [Text(), _done(frame.done), Text(notes, style="dim")]
    if frame.hint:
        parts += [Text(), Text(frame.hint, style="dim")]
    return Group(*parts)


def _sides(frame: Frame) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column(f"the last {WINDOW_S:g} s", min_width=18)
    for column in ("p50 ms", "p99 ms", "failed", "in flight", "opened"):
        table.add_column(column, justify="right")
    for one in frame.sides:
        failed = Text(str(one.failed), style="bold red" if one.failed else "")
        table.add_row(one.name, _ms(one.p50_ms), _ms(one.p99_ms), failed, str(one.in_flight), str(one.opened))
    return table


def _regions(regions: list[Region]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("the proxy's regions", min_width=19)
    table.add_column("state", min_width=7)
    for column in ("weight", "latency ms", "idle", "busy", "opened"):
        table.add_column(column, justify="right")
    for one in regions:
        table.add_row(
            Text.assemble(f"{one.name} {one.rtt_ms:g} ms", (f" {one.path}", "bold red")),
            Text(one.state, style=_STATE_STYLE.get(one.state, "")),
            f"{one.weight:.0%}",
            _ms(one.latency_ms),
            *(str(count) for count in (one.idle, one.busy, one.opened)),
        )
    return table


def _done(finished: list[Done]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("in round trips")
    for column in ("direct\np50", "\np99", "\nfailed", "proxied\np50", "\np99", "\nfailed"):
        table.add_column(column, justify="right")
    for one in finished:
        cells = [
            cell
            for p50, p99, failed in (one.direct, one.proxied)
            for cell in (_times(p50), _times(p99), Text(str(failed), style="bold red" if failed else ""))
        ]
        table.add_row(one.title, *cells)
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ×"


def main(source: TextIO = sys.stdin) -> None:
    """Draw what comes in on stdin until it ends. Ctrl-C is the demo's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    decoder = msgspec.json.Decoder(Frame | str)
    with Live(Text("starting …"), console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        for line in source:
            try:
                shown = decoder.decode(line)
            except msgspec.DecodeError:  # a line that was cut off by a full pipe
                continue
            live.update(Text(f"{shown} …") if isinstance(shown, str) else render(shown), refresh=True)


if __name__ == "__main__":
    main()
