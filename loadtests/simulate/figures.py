"""The figures of docs/routing.md as small SVG files: lines over linear or logarithmic axes, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any, Final

from .worlds import RTTS, quantile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .virtual import Record

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 46, 56
COLOURS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#7f7f7f")

Points = list[tuple[float, float]]


@dataclass
class Chart:
    """A chart of lines. A line is (name, points); `shade` marks a span of x; `labels` names points."""

    title: str
    x_name: str
    y_name: str
    lines: list[tuple[str, Points]] = field(default_factory=list)
    shade: tuple[float, float] | None = None
    labels: list[tuple[float, float, str]] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False

    def svg(self) -> str:
        """The file's text."""
        xs = [x for _, points in self.lines for x, _ in points]
        ys = [y for _, points in self.lines for _, y in points]
        x_axis = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, self.log_x)
        y_axis = _Axis(min(ys) if self.log_y else 0.0, max(ys), HEIGHT - BOTTOM, TOP, self.log_y)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{LEFT}" y="24" font-size="15">{escape(self.title)}</text>',
        ]
        if self.shade:
            left, right = (x_axis.at(value) for value in self.shade)
            parts.append(
                f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}" '
                'fill="#f3e3e3"/>'
            )
        parts += self._grid(x_axis, y_axis)
        for index, (name, points) in enumerate(self.lines):
            colour = COLOURS[index % len(COLOURS)]
            path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            row = TOP + 8 + 18 * index
            parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{row - 5}" width="14" height="4" fill="{colour}"/>')
            parts.append(f'<text x="{WIDTH - RIGHT + 32}" y="{row}">{escape(name)}</text>')
        for x, y, text in self.labels:
            left, top = x_axis.at(x), y_axis.at(y)
            parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3"/>')
            parts.append(f'<text x="{left + 6:.1f}" y="{top - 6:.1f}">{escape(text)}</text>')
        return "\n".join([*parts, "</svg>", ""])

    def _grid(self, x_axis: _Axis, y_axis: _Axis) -> list[str]:
        parts = []
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for tick in y_axis.ticks():
            top = y_axis.at(tick)
            parts.append(f'<line x1="{LEFT}" y1="{top:.1f}" x2="{right}" y2="{top:.1f}" stroke="#dddddd"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{top + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in x_axis.ticks():
            left = x_axis.at(tick)
            parts.append(f'<line x1="{left:.1f}" y1="{bottom}" x2="{left:.1f}" y2="{bottom + 5}" stroke="#888888"/>')
            parts.append(f'<text x="{left:.1f}" y="{bottom + 19}" text-anchor="middle">{tick:g}</text>')
        middle = (LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(self.x_name)}</text>')
        parts.append(
            f'<text x="18" y="{(TOP + bottom) / 2}" text-anchor="middle" '
            f'transform="rotate(-90 18 {(TOP + bottom) / 2})">{escape(self.y_name)}</text>'
        )
        return parts


class _Axis:
    """Values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool) -> None:
        self.log = logarithmic
        if logarithmic:
            low, high = 10 ** floor(log10(low)), 10 ** ceil(log10(high))
        self.low, self.high, self.start, self.end = low, high if high > low else low + 1.0, start, end

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if self.log:
            share = log10(max(value, self.low) / self.low) / log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values."""
        if self.log:
            return [10.0**power for power in range(round(log10(self.low)), round(log10(self.high)) + 1)]
        step = 10 ** floor(log10((self.high - self.low) / 5))
        step = next(step * times for times in (1, 2, 5, 10) if (self.high - self.low) / (step * times) <= 8)
        first = ceil(self.low / step)
        return [round(step * count, 10) for count in range(first, floor(self.high / step + 1e-9) + 1)]


def timeline(records: Sequence[Record], fault: tuple[float, float], path: Path) -> None:
    """Latency over time around a blackhole of the nearest region."""
    lines: dict[str, Points] = {"median": [], "slowest": []}
    begin, end = fault[0] - 5.0, fault[1] + 30.0
    when = begin
    while when < end:
        seen = [1e3 * record.latency for record in records if when <= record.start < when + 0.5]
        for name, share in (("median", 0.5), ("slowest", 1.0)):
            lines[name].append((when - fault[0], quantile(seen, share)))
        when += 0.5
    shade = (0.0, fault[1] - fault[0])
    chart = Chart("The nearest region goes dark (shaded)", "seconds", "latency, ms", list(lines.items()), shade)
    path.write_text(chart.svg())


def tail(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """p99.9 against extra load, by the hedging delay."""
    swept = [row for row in rows if row["hedge_after"] not in {"none", "policy"}]
    points = [(100 * row["extra"], row["p99.9_ms"]) for row in swept]
    none = next(row for row in rows if row["hedge_after"] == "none")
    policy = next(row for row in rows if row["hedge_after"] == "policy")
    lines = [
        ("fixed delay", points),
        ("no hedges", [(points[-1][0], none["p99.9_ms"]), (points[0][0], none["p99.9_ms"])]),
    ]
    labels = [(100 * row["extra"], row["p99.9_ms"], row["hedge_after"]) for row in swept]
    labels.append((100 * policy["extra"], policy["p99.9_ms"], "the policy"))
    chart = Chart(
        "Hedges: the tail against their cost", "extra requests, %", "p99.9, ms", lines, None, labels, True, True
    )
    path.write_text(chart.svg())


def choice(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """p99.9 against load, by rule."""
    lines: dict[str, Points] = {}
    for row in rows:
        lines.setdefault(row["rule"], []).append((100 * row["load"], row["p99.9_ms"]))
    chart = Chart(
        "Choosing among unequal replicas", "load, % of capacity", "p99.9, ms", list(lines.items()), log_y=True
    )
    path.write_text(chart.svg())


def shares(rows: Sequence[dict[str, float]], first: int, fault: tuple[float, float], path: Path) -> None:
    """Each region's share of a fleet's requests over time."""
    lines = [(name, [(first + second - fault[0], 100 * row[name]) for second, row in enumerate(rows)]) for name in RTTS]
    shade = (0.0, fault[1] - fault[0])
    chart = Chart("200 proxies lose us (shaded), with room for 1.3 times the load", "seconds", "share, %", lines, shade)
    path.write_text(chart.svg())
