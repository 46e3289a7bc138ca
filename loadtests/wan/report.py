"""What the rounds amount to: one figure of each, as text, Markdown and JSON. Pure but for `rewrite`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtests.peers.report import markdown_table

from .evaluate import Figures, median
from .scenarios import Column, Scenario

LATE_MS_MAX: Final = 3.0
"""When the witness saw more than this, the machine was busy with something else (see `site.Witness`)."""
NEVER: Final = "never"
BEGIN: Final = "<!-- comparison -->"
END: Final = "<!-- /comparison -->"


@dataclass(slots=True)
class Cell:
    """One proxy in one scenario: the figures of its rounds, or why there are none."""

    rounds: list[Figures] = field(default_factory=list)
    missing: str = ""
    complaints: dict[str, int] = field(default_factory=dict)
    late_ms: float = 0.0
    points: list[tuple[float, float, str]] = field(default_factory=list)
    """Of the first round: (seconds from the fault, ms, region or "" where it failed)."""
    fault_s: float = 0.0

    def value(self, column: Column) -> float:
        """One figure out of those of all rounds."""
        values = [figures[column.key] for figures in self.rounds]
        return sum(values) / len(values) if column.how == "mean" else median(values)

    def spread(self, column: Column) -> float:
        """How far the rounds are from their median, as a share of it; nan where that says nothing."""
        middle = median(figures[column.key] for figures in self.rounds)
        if not middle or not math.isfinite(middle):
            return math.nan
        return max(abs(figures[column.key] - middle) for figures in self.rounds) / middle

    def remarks(self) -> str:
        """What a reader has to know."""
        if self.missing:
            return self.missing
        parts = [f"{count} × {what}" for what, count in self.complaints.items()]
        if self.late_ms > LATE_MS_MAX:
            parts.append(f"disturbed: the machine made answers {self.late_ms:.0f} ms late")
        return "; ".join(parts)


@dataclass(slots=True)
class Result:
    """One scenario: a cell for every proxy, by name."""

    scenario: Scenario
    cells: dict[str, Cell]

    def rows(self) -> list[list[str]]:
        """Heading and one row for each proxy."""
        columns = self.scenario.columns
        rows = [["proxy", *(column.title for column in columns), "remarks"]]
        for name, cell in self.cells.items():
            if cell.rounds:
                figures = [show(cell.value(column), column, self.scenario.rtt_ms) for column in columns]
            else:
                figures = ["-"] * len(columns)
            rows.append([name, *figures, cell.remarks()])
        return rows


def show(value: float, column: Column, rtt_ms: float) -> str:
    """A figure as people read it: latencies as multiples of the round trip."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return NEVER
    if column.unit == "rtt":
        return f"{value / rtt_ms:.2f} ×"
    if column.unit == "s":
        return f"{value:.1f} s"
    if column.unit == "share":
        return f"{value:.1%}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the summary: a scenario, what it is called there, and which of its figures stand in a cell."""

    scenario: str
    title: str
    keys: tuple[str, ...]


_FAULT_KEYS: Final = ("slowest_ms", "over_300", "failed_get", "failed_post")
SUMMARY: Final = (
    Line("cold", "first request of a process", ("first_ms",)),
    Line("restart", "first request after a restart", ("first_ms",)),
    Line("idle", "after 8 s idle (origin closes)", ("first_ms",)),
    Line("idle-60", "after 60 s idle", ("first_ms",)),
    Line("burst", "50 at once: p50, slowest", ("p50_ms", "slowest_ms")),
    Line("single", "one region at 80 ms: first, after idle, 50 at once", ("first_ms", "idle_ms", "p50_ms")),
    Line("steady", "steady 200/s: p50, p99, p99.9", ("p50_ms", "p99_ms", "p999_ms")),
    Line(
        "tail",
        "2 % of us late by 1 s: p50, p99, p99.9, extra requests",
        ("p50_ms", "p99_ms", "p999_ms", "extra"),
    ),
    Line("loss", "2 % loss to us: p50, p99", ("p50_ms", "p99_ms")),
    Line("blackhole", "us goes dark: slowest, over 300 ms, GETs and POSTs failed", _FAULT_KEYS),
    Line("hang", "us hangs: the same", _FAULT_KEYS),
    Line("errors", "us answers 503: the same", _FAULT_KEYS),
    Line("drops", "us drops connections: the same", _FAULT_KEYS),
    Line("resets", "us resets every request: the same", _FAULT_KEYS),
    Line("refuse", "us is down: the same", _FAULT_KEYS),
    Line("slow-path", "us's round trip 60 → 400 ms: the same", _FAULT_KEYS),
    Line("return", "back at us after", ("return_returned_s",)),
    Line("restart", "a restart at 50/s: requests failed", ("refused",)),
)


def summary_rows(results: list[Result]) -> list[list[str]]:
    """One row for each line of `SUMMARY` that was measured, one column for each proxy."""
    by_name = {result.scenario.name: result for result in results}
    names = list(dict.fromkeys(name for result in results for name in result.cells))
    rows = [["", *names]]
    for line in SUMMARY:
        result = by_name.get(line.scenario)
        if result is None:
            continue
        columns = [next(c for c in result.scenario.columns if c.key == key) for key in line.keys]
        cells = []
        for name in names:
            cell = result.cells.get(name)
            if cell is None or not cell.rounds:
                cells.append("-")
            else:
                cells.append(", ".join(show(cell.value(c), c, result.scenario.rtt_ms) for c in columns))
        rows.append([line.title, *cells])
    return rows


def repeatability(results: list[Result]) -> list[tuple[float, str]]:
    """How far rounds differ in what should repeat, the worst first: (share, where).

    First requests and medians are a number of round trips. Other figures (the slowest, p99.9) are those of single
    requests, which chance picks.
    """
    found = []
    for result in results:
        for column in result.scenario.columns:
            if column.unit != "rtt" or column.key not in {"first_ms", "idle_ms", "p50_ms"}:
                continue
            for name, cell in result.cells.items():
                if len(cell.rounds) > 1 and not math.isnan(spread := cell.spread(column)):
                    found.append((spread, f"{result.scenario.name}, {name}: {column.title}"))
    return sorted(found, reverse=True)


def as_markdown(results: list[Result], facts: dict[str, str]) -> str:
    """The summary, then a table for each scenario, then where and how it ran."""
    rows = summary_rows(results)
    ruler = ["---", *["---:"] * (len(rows[0]) - 1)]
    parts = ["\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ruler, *rows[1:]])]
    for result in results:
        scenario = result.scenario
        unit = f"× is {scenario.rtt_ms:g} ms, {scenario.against}'s round trip."
        parts.append(f"### {scenario.title} (`{scenario.name}`)\n\n{scenario.caption}. {unit}")
        parts.append(markdown_table(result.rows()))
    parts.append("### Where and how\n\n" + "\n".join(f"- {key}: {value}" for key, value in facts.items()))
    return "\n\n".join(parts) + "\n"


def as_json(results: list[Result], facts: dict[str, str]) -> dict[str, Any]:
    """Everything: scenarios by name, then proxies by name with `figures`, `rounds` and, where there is a plot,
    `points`.

    Latencies are milliseconds; null is no figure, "never" is infinite.
    """
    scenarios: dict[str, Any] = {}
    for result in results:
        scenario = result.scenario
        proxies: dict[str, Any] = {}
        for name, cell in result.cells.items():
            if not cell.rounds:
                proxies[name] = {"missing": cell.missing}
                continue
            proxies[name] = {
                "figures": {column.key: _plain(cell.value(column)) for column in scenario.columns},
                "rounds": [{key: _plain(value) for key, value in figures.items()} for figures in cell.rounds],
                "failures": cell.complaints,
                "late_ms": _plain(cell.late_ms),
                "fault_s": round(cell.fault_s, 3),
                "points": [[round(at, 3), round(ms, 1), region] for at, ms, region in cell.points],
            }
        scenarios[scenario.name] = {
            "title": scenario.title,
            "caption": scenario.caption,
            "against": scenario.against,
            "rtt_ms": scenario.rtt_ms,
            "columns": [{"key": c.key, "title": c.title, "unit": c.unit, "rounds": c.how} for c in scenario.columns],
            "proxies": proxies,
        }
    return {"schema": 1, "facts": facts, "scenarios": scenarios}


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return NEVER if math.isinf(value) else round(value, 4)


def drift(results: list[Result], earlier: dict[str, Any]) -> list[tuple[float, str]]:
    """How far this run's medians are from an earlier one's JSON, the worst first: (share, where)."""
    found = []
    for result in results:
        before = earlier["scenarios"].get(result.scenario.name, {}).get("proxies", {})
        for column in result.scenario.columns:
            if column.unit != "rtt" or column.key not in {"first_ms", "idle_ms", "p50_ms"}:
                continue
            for name, cell in result.cells.items():
                was = before.get(name, {}).get("figures", {}).get(column.key)
                if cell.rounds and isinstance(was, float) and was:
                    share = abs(cell.value(column) - was) / was
                    found.append((share, f"{result.scenario.name}, {name}: {column.title}"))
    return sorted((pair for pair in found if not math.isnan(pair[0])), reverse=True)


def rewrite(path: Path, text: str) -> bool:
    """Put `text` between the markers of a file; False where it has none."""
    whole = path.read_text()
    head, begin, rest = whole.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        return False
    path.write_text(f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}")
    return True
