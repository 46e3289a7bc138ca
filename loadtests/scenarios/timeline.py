"""Latency second by second with the faults marked: recorded while Locust runs, shown as a page. Pure.

Locust's own charts show percentiles of the last ten seconds, in which a fault of one second drowns; here every second
stands for itself, and counts where a request *ended*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

SECONDS_MAX: Final = 4 * 3600
"""Beyond that the oldest seconds are forgotten."""
WIDTH: Final = 900
HEIGHT: Final = 320
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 34
_TICKS_MS: Final = (1, 10, 30, 100, 300, 1000, 3000, 10000)
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.g{stroke:#d0d7de}.bg{fill:#fff}.f{fill:#d1242f;opacity:.12}"
    ".p50{stroke:#0a7d5a}.p99{stroke:#8a63d2}.max{stroke:#d2872f;stroke-dasharray:2 3}.bad{fill:#d1242f}"
    "path{fill:none;stroke-width:1.6}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#3d444d}.bg{fill:#0d1117}}"
)


@dataclass(slots=True)
class Second:
    """What ended within one second."""

    latencies_ms: list[float] = field(default_factory=list)
    failed: int = 0


@dataclass(slots=True)
class Mark:
    """A fault from `begin` to `end` (None: it goes on). Seconds of the wall clock."""

    label: str
    begin: float
    end: float | None = None


class Timeline:
    """Seconds of the wall clock, and marks."""

    def __init__(self) -> None:
        self.seconds: dict[int, Second] = {}
        self.marks: list[Mark] = []

    def __repr__(self) -> str:
        return f"<Timeline {len(self.seconds)} s, {len(self.marks)} marks>"

    def clear(self) -> None:
        """A new test begins."""
        self.seconds.clear()
        self.marks.clear()

    def add(self, at: float, latency_ms: float, failed: bool) -> None:
        """A request ended."""
        second = self.seconds.get(int(at))
        if second is None:
            second = self.seconds[int(at)] = Second()
            if len(self.seconds) > SECONDS_MAX:
                del self.seconds[min(self.seconds)]
        if failed:
            second.failed += 1
        else:
            second.latencies_ms.append(latency_ms)

    def begin(self, label: str, at: float) -> None:
        """Something begins to go wrong."""
        self.marks.append(Mark(label, at))

    def end(self, label: str, at: float) -> None:
        """It is over."""
        for mark in self.marks:
            if mark.label == label and mark.end is None:
                mark.end = at

    def drain(self) -> list[list[Any]]:
        """What was recorded since the last call, for the master process: [[second, latencies, failed], …]."""
        rows = [[at, second.latencies_ms, second.failed] for at, second in self.seconds.items()]
        self.seconds.clear()
        return rows

    def merge(self, rows: Iterable[Sequence[Any]]) -> None:
        """What a worker process has drained."""
        for at, latencies_ms, failed in rows:
            second = self.seconds.setdefault(int(at), Second())
            second.latencies_ms += latencies_ms
            second.failed += failed

    def rows(self) -> list[tuple[int, int, float, float, float, int]]:
        """For each second: (second, requests, p50, p99, slowest in ms, failed)."""
        found = []
        for at in sorted(self.seconds):
            second = self.seconds[at]
            ranked = sorted(second.latencies_ms)
            quantiles = (_rank(ranked, 0.5), _rank(ranked, 0.99), _rank(ranked, 1.0))
            found.append((at, len(ranked) + second.failed, *quantiles, second.failed))
        return found


def _rank(ranked: Sequence[float], share: float) -> float:
    return ranked[max(0, math.ceil(len(ranked) * share) - 1)] if ranked else math.nan


def svg(timeline: Timeline) -> str:
    """The picture: p50, p99 and slowest of every second on a logarithmic scale; faults shaded, failures as red bars."""
    rows = timeline.rows()
    first = rows[0][0] if rows else 0
    span = max(1, (rows[-1][0] - first) if rows else 1)
    known = [value for row in rows for value in row[2:5] if not math.isnan(value)]
    low, high = max(0.5, min(known, default=1.0) * 0.8), max(known, default=100.0) * 1.2

    def x_of(at: float) -> float:
        return LEFT + min(1.0, max(0.0, (at - first) / span)) * (WIDTH - LEFT - RIGHT)

    def y_of(milliseconds: float) -> float:
        share = math.log(max(milliseconds, low) / low) / math.log(high / low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<rect class="bg" width="{WIDTH}" height="{HEIGHT}"/>']
    end = rows[-1][0] + 1 if rows else 1
    for mark in timeline.marks:
        left, right = x_of(mark.begin), x_of(mark.end if mark.end is not None else end)
        parts.append(
            f'<rect class="f" x="{left:.1f}" y="{TOP}" width="{max(2.0, right - left):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/><text x="{left:.1f}" y="{TOP - 6}">{escape(mark.label)}</text>'
        )
    for tick in _TICKS_MS:
        if low <= tick <= high:
            y = y_of(tick)
            parts.append(f'<line class="g" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick} ms</text>')
    worst = max((row[5] for row in rows), default=0)
    for at, *_, failed in rows:
        if failed:
            height = 4 + 30 * failed / worst
            parts.append(
                f'<rect class="bad" x="{x_of(at):.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="3" '
                f'height="{height:.1f}"><title>{failed} failed</title></rect>'
            )
    for name, column in (("max", 4), ("p99", 3), ("p50", 2)):
        points = [(x_of(row[0]), y_of(row[column])) for row in rows if not math.isnan(row[column])]
        if points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            parts.append(f'<path class="{name}" d="{path}"/>')
    for second in range(0, span + 1, _step(span)):
        parts.append(f'<text x="{x_of(first + second):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{second} s</text>')
    for number, name in enumerate(("p50", "p99", "max")):
        x = WIDTH - RIGHT - 190 + 65 * number
        parts.append(f'<path class="{name}" d="M{x} 16h18"/><text x="{x + 22}" y="20">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def page(timeline: Timeline, *, refresh_s: int = 0) -> str:
    """The picture and what failed, as one HTML page that loads nothing. `refresh_s`: reload so often (0: never)."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    items = "".join(
        f"<li>{escape(mark.label)}: {_length(mark)}; {_during(timeline, mark)}</li>" for mark in timeline.marks
    )
    return (
        f'<!doctype html><meta charset="utf-8">{refresh}<title>Faults and latency</title>'
        "<style>body{font:14px system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;"
        "color-scheme:light dark}</style>"
        f"<h1>Latency, second by second</h1>{svg(timeline)}<ul>{items}</ul>"
    )


def _length(mark: Mark) -> str:
    return "still going on" if mark.end is None else f"{mark.end - mark.begin:.0f} s"


def _during(timeline: Timeline, mark: Mark) -> str:
    end = mark.end if mark.end is not None else math.inf
    inside = [second for at, second in timeline.seconds.items() if int(mark.begin) <= at < end]
    ranked = sorted(value for second in inside for value in second.latencies_ms)
    failed = sum(second.failed for second in inside)
    if not ranked:
        return f"{failed} failed"
    p50, p99 = _rank(ranked, 0.5), _rank(ranked, 0.99)
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, slowest {ranked[-1]:.0f} ms, {failed} failed"


def _step(span: int) -> int:
    """Seconds between labels: about ten of them."""
    return next((step for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600) if span / step <= 12), 1800)
