"""The comparison's pictures: small SVG files that stand alone, light and dark. Pure: figures in, text out.

`first`: round trips of first requests, a bar for each proxy. `faults`: what users saw around a fault, a strip of dots
for each proxy. `spread`: p50, p99 and p99.9 with and without a slow tail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from .report import Cell, Result
from .scenarios import Column

WIDTH: Final = 760
LEFT: Final = 150
RIGHT: Final = 24
COLOURS: Final = {"onetrip": "#0a7d5a", "envoy": "#8a63d2", "haproxy": "#2f7fd3", "nginx": "#d2872f"}
OTHER: Final = "#7a7f87"
STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.t{font-size:15px;font-weight:600}.m{fill:#656d76}"
    ".g{stroke:#d0d7de;stroke-width:1}.w{fill:#d1242f;opacity:.09}.bad{stroke:#d1242f}.bg{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.m{fill:#9198a1}.g{stroke:#3d444d}.bg{fill:#0d1117}}"
)
_DOTS_MS_MAX: Final = 1200.0
_FIRST: Final = (
    ("cold", "first_ms", "first of a process"),
    ("restart", "first_ms", "after a restart"),
    ("idle", "first_ms", "after 8 s idle"),
    ("idle-60", "first_ms", "after 60 s idle"),
    ("burst", "p50_ms", "50 at once (p50)"),
)


def first(results: Sequence[Result]) -> str:
    """Grouped bars: how many round trips a request took that could not rely on luck."""
    groups = []
    for scenario, key, title in _FIRST:
        result = next((one for one in results if one.scenario.name == scenario), None)
        if result is not None:
            column = _column(result, key)
            bars = [
                (name, cell.value(column) / result.scenario.rtt_ms)
                for name, cell in result.cells.items()
                if cell.rounds
            ]
            groups.append((title, [(name, value) for name, value in bars if math.isfinite(value)]))
    top, bar, gap = 64, 15, 16
    longest = max((value for _, bars in groups for _, value in bars), default=1.0)
    scale = (WIDTH - LEFT - RIGHT - 60) / max(longest, 1.0)
    parts = []
    y = top
    for title, bars in groups:
        parts.append(_text(LEFT - 10, y + bar * len(bars) / 2 + 4, title, anchor="end"))
        for name, value in bars:
            length = value * scale
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{bar - 3}" rx="2" fill="{_colour(name)}"/>'
            )
            parts.append(_text(LEFT + length + 6, y + bar - 5, f"{value:.2f}", "m"))
            y += bar
        y += gap
    for trips in range(1, math.floor(longest) + 1):
        x = LEFT + trips * scale
        parts.insert(0, f'<line class="g" x1="{x:.1f}" y1="{top - 8}" x2="{x:.1f}" y2="{y - gap + 4}"/>')
        parts.append(_text(x, y + 4, f"{trips} RTT", "m", "middle"))
    names = list(dict.fromkeys(name for _, bars in groups for name, _ in bars))
    return _page("Round trips that a request takes", y + 18, [*_legend(names, 44), *parts])


def faults(result: Result, title: str) -> str:
    """A strip for each proxy: every request at its time, as high as it was slow; crosses failed."""
    strip, top, space = 96, 48, 16
    rows = [(name, cell) for name, cell in result.cells.items() if cell.points]
    begin, end = -1.0, max(cell.fault_s for _, cell in rows) + 0.5
    x_scale = (WIDTH - LEFT - RIGHT) / (end - begin)

    def x_of(at: float) -> float:
        return LEFT + (at - begin) * x_scale

    parts = []
    for number, (name, cell) in enumerate(rows):
        bottom = top + number * (strip + space) + strip
        width = cell.fault_s * x_scale
        parts.append(f'<rect class="w" x="{x_of(0):.1f}" y="{bottom - strip}" width="{width:.1f}" height="{strip}"/>')
        for milliseconds in (100, 300, 1000):
            y = bottom - _height(milliseconds, strip)
            parts.append(f'<line class="g" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
            parts.append(_text(LEFT - 6, y + 4, f"{milliseconds} ms", "m", "end"))
        parts.append(_text(12, bottom - strip + 22, name))
        parts += [
            _text(12, bottom - strip + 40 + 15 * line, text, "m") for line, text in enumerate(_verdict(result, cell))
        ]
        good, bad = [], []
        for at, ms, region in cell.points:
            if begin <= at <= end:
                if region:
                    good.append(f"M{x_of(at):.1f} {bottom - _height(ms, strip):.1f}h0")
                else:
                    bad.append(f"M{x_of(at) - 3:.1f} {bottom - strip + 2:.1f}l6 6m0-6l-6 6")
        parts.append(_strokes(good, f'stroke="{_colour(name)}" stroke-width="3"'))
        parts.append(_strokes(bad, 'class="bad" stroke-width="1.5"'))
    height = top + len(rows) * (strip + space)
    for second in range(math.ceil(begin), math.floor(end) + 1):
        parts.append(_text(x_of(second), height + 4, f"{second:+d} s" if second else "fault", "m", "middle"))
    return _page(title, height + 16, parts)


def spread(results: Sequence[Result]) -> str:
    """p50, p99 and p99.9 of each proxy, steady and with a slow tail, in round trips."""
    names = ("steady", "tail")
    chosen = [result for result in results if result.scenario.name in names]
    top, row, gap = 60, 17, 30
    parts = []
    y = top
    longest = 1.0
    for result in chosen:
        for cell in result.cells.values():
            if cell.rounds:
                longest = max(longest, cell.value(_column(result, "p999_ms")) / result.scenario.rtt_ms)
    longest = min(longest, _DOTS_MS_MAX / 60)
    scale = (WIDTH - LEFT - RIGHT - 40) / longest
    for result in chosen:
        parts.append(_text(LEFT, y - 8, f"{result.scenario.title}: {result.scenario.caption}", "m"))
        for name, cell in result.cells.items():
            if not cell.rounds:
                continue
            low, middle, high = (
                min(cell.value(_column(result, key)) / result.scenario.rtt_ms, longest)
                for key in ("p50_ms", "p99_ms", "p999_ms")
            )
            colour = _colour(name)
            centre = y + row / 2
            parts.append(_text(LEFT - 10, centre + 4, name, anchor="end"))
            parts.append(
                f'<line x1="{LEFT + low * scale:.1f}" y1="{centre}" x2="{LEFT + high * scale:.1f}" y2="{centre}" '
                f'stroke="{colour}" stroke-width="2"/>'
            )
            for value, radius in ((low, 5), (middle, 4), (high, 3)):
                parts.append(f'<circle cx="{LEFT + value * scale:.1f}" cy="{centre}" r="{radius}" fill="{colour}"/>')
            y += row
        y += gap
    for trips in range(1, math.floor(longest) + 1):
        x = LEFT + trips * scale
        parts.insert(0, f'<line class="g" x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{y - gap + 4}"/>')
        parts.append(_text(x, y - gap + 20, f"{trips} RTT", "m", "middle"))
    return _page("p50 (large), p99, p99.9 (small)", y, parts)


def pictures(results: Sequence[Result]) -> dict[str, str]:
    """Every picture for which there are figures, by file name."""
    by_name = {result.scenario.name: result for result in results}
    files = {}
    if any(name in by_name for name, _, _ in _FIRST):
        files["comparison-first.svg"] = first(results)
    for name, title in (("blackhole", "The nearest region goes dark"), ("slow-path", "The nearest region moves away")):
        if name in by_name and any(cell.points for cell in by_name[name].cells.values()):
            files[f"comparison-{name}.svg"] = faults(by_name[name], title)
    if "steady" in by_name or "tail" in by_name:
        files["comparison-tail.svg"] = spread(results)
    return files


def _column(result: Result, key: str) -> Column:
    return next(column for column in result.scenario.columns if column.key == key)


def _verdict(result: Result, cell: Cell) -> list[str]:
    over, slowest = (cell.value(_column(result, key)) for key in ("over_300", "slowest_ms"))
    failed = cell.value(_column(result, "failed_get")) / len(cell.rounds)
    return [f"{over:.0f} slow", f"{failed:.0f} failed", f"max {slowest:.0f} ms"]


def _height(milliseconds: float, strip: float) -> float:
    """Logarithmic, from 50 to 1,200 ms."""
    share = math.log(max(milliseconds, 50.0) / 50.0) / math.log(_DOTS_MS_MAX / 50.0)
    return min(share, 1.0) * strip


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER)


def _legend(names: Iterable[str], y: float) -> list[str]:
    parts = []
    x = float(LEFT)
    for name in names:
        parts.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" rx="2" fill="{_colour(name)}"/>')
        parts.append(_text(x + 16, y, name))
        x += 34 + 7.0 * len(name)
    return parts


def _strokes(moves: Sequence[str], attributes: str) -> str:
    return f'<path d="{"".join(moves)}" fill="none" stroke-linecap="round" {attributes}/>' if moves else ""


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "") -> str:
    styled = f' class="{style}"' if style else ""
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{styled}{anchored}>{escape(text)}</text>'


def _page(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="bg" width="{WIDTH}" height="{height:.0f}" rx="6"/>\n'
        f"{_text(LEFT, 24, title, 't')}\n" + "\n".join(part for part in parts if part) + "\n</svg>\n"
    )
