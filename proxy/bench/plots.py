"""Plots as SVG text: readable without a script, in both colour schemes (colours come from the page's custom
properties).

Series are told apart by colour and by the label at their end; corrected and uncorrected latency by full and dashed
lines. What the page's script adds (a cross-hair with figures) it reads from the JSON that `html` puts beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 960
HEIGHT: Final = 320
LEFT: Final = 58
RIGHT: Final = 104
TOP: Final = 14
BOTTOM: Final = 36
SERIES_COLOURS: Final = 8
PHASES_SHOWN: Final = (
    ("queue", "queue"),
    ("dns", "DNS"),
    ("tcp", "TCP"),
    ("tls", "TLS"),
    ("first_byte", "first byte"),
    ("receive", "receive"),
)

_LOG_FROM: Final = 25.0  # a larger ratio of the largest to the smallest value gets a logarithmic scale
_LABEL_GAP: Final = 15.0
_ROW: Final = 34
_BAR: Final = 20

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series: its name at the end (none: ""), points, colour number, and style class."""

    label: str
    points: Sequence[Point]
    colour: int
    style: str = "main"


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels, with its ticks. The script gets the same numbers to find what is under the pointer."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        if self.log:
            share = (log10(max(value, self.low)) - log10(self.low)) / (log10(self.high) - log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def latency_scale(values: Sequence[float], height: int = HEIGHT) -> Scale:
    """For milliseconds upwards: from zero, or logarithmic where the values span too much for that."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    start, end = height - BOTTOM, TOP
    if high / low <= _LOG_FROM:
        ticks = nice_ticks(high * 1.05)
        return Scale(0.0, max(ticks[-1], high), start, end, False, ticks)
    first, last = floor(log10(low)), ceil(log10(high * 1.001))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    bottom = max((mark for mark in marks if mark <= low), default=marks[0])
    top = min((mark for mark in marks if mark >= high), default=marks[-1])
    return Scale(bottom, top, start, end, True, tuple(mark for mark in marks if bottom <= mark <= top))


def nice_ticks(high: float, wanted: int = 5) -> tuple[float, ...]:
    """Round numbers from 0 to at least `high`."""
    raw = max(high, 1e-9) / wanted
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return tuple(round(i * step, 10) for i in range(ceil(high / step - 1e-9) + 1))


def number(value: float) -> str:
    """A tick's label, without needless digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"


def time_plot(
    lines: Sequence[Line],
    bands: Sequence[tuple[int, Sequence[tuple[float, float, float]]]],
    failures: Sequence[Point],
    end_s: float,
) -> tuple[str, Scale, Scale]:
    """Latency over time. `bands`: (colour, (t, low, high) …) shaded; `failures`: (t, share) as marks at the bottom."""
    y = latency_scale([value for line in lines for _, value in line.points])
    x = Scale(0.0, end_s, LEFT, WIDTH - RIGHT, False, nice_ticks(end_s, 6))
    parts = [_frame(x, y, lambda t: f"{number(t)} s")]
    for colour, points in bands:
        if len(points) > 1:
            upper = [f"{x(t):.1f},{y(high):.1f}" for t, _, high in points]
            lower = [f"{x(t):.1f},{y(low):.1f}" for t, low, _ in reversed(points)]
            parts.append(f'<polygon class="band s{colour}" points="{" ".join(upper + lower)}"/>')
    parts.extend(_drawn(lines, x, y))
    for t, share in failures:
        size = 4 + 12 * min(1.0, share)
        parts.append(
            f'<rect class="fault" x="{x(t) - 1.5:.1f}" y="{HEIGHT - BOTTOM - size:.1f}" width="3" height="{size:.1f}"/>'
        )
    return _svg("time", "Latency over time", parts, HEIGHT), x, y


def percentile_plot(lines: Sequence[Line]) -> tuple[str, Scale, Scale]:
    """Latency by percentile; a point's x is the number of nines, -log10(1 - p)."""
    y = latency_scale([value for line in lines for _, value in line.points])
    most = max([1.0, *(nines for line in lines for nines, _ in line.points)])
    shown = tuple(nines for nines in (0.0, log10(2), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0) if nines <= most)
    x = Scale(0.0, most, LEFT, WIDTH - RIGHT, False, shown)
    parts = [_frame(x, y, _percent), *_drawn(lines, x, y)]
    return _svg("percentiles", "Latency by percentile", parts, HEIGHT), x, y


def phase_plot(rows: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """Stacked bars. A row: its label, a note, and the milliseconds of each of `PHASES_SHOWN`."""
    height = TOP + _ROW * len(rows) + BOTTOM
    left = 190
    highest = max([1e-6, *(sum(values) for _, _, values in rows)])
    ticks = nice_ticks(highest, 6)
    x = Scale(0.0, ticks[-1], left, WIDTH - 80, False, ticks)
    bottom = height - BOTTOM
    parts = []
    for tick in x.ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>')
        unit = " ms" if tick == x.ticks[-1] else ""
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{number(tick)}{unit}</text>'
        )
    for i, (label, note, values) in enumerate(rows):
        top = TOP + i * _ROW + (_ROW - _BAR) / 2
        middle = top + _BAR / 2 + 4
        parts.append(
            f'<text class="label" x="{left - 12}" y="{middle:.1f}" text-anchor="end">{escape(label)}'
            f'<tspan class="note"> {escape(note)}</tspan></text>'
        )
        parts.extend(_stack(values, x, top))
        parts.append(
            f'<text class="value" x="{x(sum(values)) + 8:.1f}" y="{middle:.1f}">{milliseconds(sum(values))}</text>'
        )
    return _svg("phases", "Mean time in each phase", parts, height)


def difference_plot(rows: Sequence[tuple[str, float, float | None, float | None]]) -> str:
    """Differences with whiskers. A row: its label, the difference, and the interval's ends (None: none)."""
    height = TOP + _ROW * len(rows) + BOTTOM
    reach = max([1e-6, *(abs(v) for _, *values in rows for v in values if v is not None)]) * 1.1
    ticks = nice_ticks(reach, 3)
    both = (*(-tick for tick in reversed(ticks[1:])), *ticks)
    x = Scale(-ticks[-1], ticks[-1], LEFT + 40, WIDTH - RIGHT, False, both)
    bottom = height - BOTTOM
    parts = []
    for tick in x.ticks:
        style = "zero" if tick == 0 else "grid"
        sign = "+" if tick > 0 else ""
        parts.append(f'<line class="{style}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{sign}{number(tick)}</text>'
        )
    for i, (label, value, low, high) in enumerate(rows):
        y = TOP + i * _ROW + _ROW / 2
        parts.append(f'<text class="label" x="{LEFT + 28}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        if low is not None and high is not None:
            parts.append(f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            for edge in (low, high):
                parts.append(
                    f'<line class="whisker" x1="{x(edge):.1f}" x2="{x(edge):.1f}" y1="{y - 5:.1f}" y2="{y + 5:.1f}"/>'
                )
        parts.append(f'<circle class="dot" cx="{x(value):.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text class="value" x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}">{value:+.3f} ms</text>')
    return _svg("differences", "Difference with its confidence interval", parts, height)


def milliseconds(value: float) -> str:
    """A latency with its unit, three significant digits."""
    return (
        f"{value:.3f} ms"
        if value < 1
        else f"{value:.2f} ms"
        if value < 10
        else f"{value:.1f} ms"
        if value < 100
        else f"{value:.0f} ms"
    )


def _stack(values: Sequence[float], x: Scale, top: float) -> list[str]:
    parts = []
    reached = 0.0
    for (phase, name), value in zip(PHASES_SHOWN, values, strict=True):
        start, end = x(reached), x(reached + value)
        reached += value
        if end - start < 0.3:
            continue
        box = f'x="{start:.1f}" y="{top:.1f}" width="{max(0.5, end - start - 1):.1f}" height="{_BAR}"'
        parts.append(f'<rect class="phase {phase}" {box}><title>{name}: {milliseconds(value)}</title></rect>')
        if end - start > 8 * len(name) + 8:
            at = f'x="{(start + end) / 2:.1f}" y="{top + 14:.1f}"'
            parts.append(f'<text class="inside" {at} text-anchor="middle">{name}</text>')
    return parts


def _frame(x: Scale, y: Scale, label: Callable[[float], str]) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        at = y(tick)
        unit = " ms" if tick == y.ticks[-1] else ""
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}{unit}</text>'
        )
    for tick in x.ticks:
        if tick <= x.high:
            at = x(tick)
            parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
            parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{label(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _drawn(lines: Sequence[Line], x: Scale, y: Scale) -> list[str]:
    parts = []
    for line in lines:
        if line.points:
            points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
            parts.append(f'<polyline class="line {line.style} s{line.colour}" points="{points}"/>')
    # Labels at the lines' ends, moved apart where they would cover each other.
    labelled = [line for line in lines if line.label and line.points]
    ends = [(y(line.points[-1][1]), x(line.points[-1][0]), line) for line in labelled]
    at = TOP - _LABEL_GAP
    placed = []
    for end, end_x, line in sorted(ends, key=lambda item: item[0]):
        at = max(end, at + _LABEL_GAP)
        placed.append((at, end_x, line))
    excess = max(0.0, at - (HEIGHT - BOTTOM)) if placed else 0.0
    for label_y, end_x, line in placed:
        place = f'x="{end_x + 8:.1f}" y="{label_y - excess + 4:.1f}"'
        parts.append(f'<text class="end s{line.colour}" {place}>{escape(line.label)}</text>')
    return parts


def _percent(nines: float) -> str:
    return f"{100 * (1 - 10**-nines):.6g}%"


def _svg(name: str, title: str, parts: Sequence[str], height: int) -> str:
    return (
        f'<svg id="plot-{name}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
