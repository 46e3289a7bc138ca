"""What the runs amount to: medians, ratios to Envoy, the project's targets; as text, Markdown and JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .scenarios import Measures, Scenario

REFERENCE: Final = "envoy"
FOREIGN_PERCENT_MAX: Final = 5.0


@dataclass(slots=True)
class Cell:
    """One proxy in one scenario: its runs, or why there are none."""

    runs: list[Measures] = field(default_factory=list)
    missing: str = ""

    def median(self, key: str) -> float:
        """The median of one figure over the runs."""
        return statistics.median(run[key] for run in self.runs)

    def spread(self, key: str) -> tuple[float, float]:
        """Its smallest and its largest value."""
        values = [run[key] for run in self.runs]
        return min(values), max(values)

    def remarks(self) -> str:
        """What a reader must know before believing the figures."""
        if self.missing:
            return self.missing
        remarks = []
        if errors := sum(run["errors"] for run in self.runs):
            remarks.append(f"{errors:.0f} errors")
        if (foreign := max(run["foreign_percent"] for run in self.runs)) > FOREIGN_PERCENT_MAX:
            remarks.append(f"disturbed: other programs took {foreign:.0f} % of its core")
        return "; ".join(remarks)


@dataclass(slots=True)
class Result:
    """One scenario: a cell for every proxy, by name, in the order they are shown."""

    scenario: Scenario
    cells: dict[str, Cell]

    def ratio(self, name: str, key: str, reference: str = REFERENCE) -> float | None:
        """How many times the reference's a proxy's figure is, or None where either is missing.

        The median of the ratios within each round: what a machine's mood does to both at once cancels out.
        """
        cell, other = self.cells.get(name), self.cells.get(reference)
        if cell is None or other is None or not cell.runs or not other.runs:
            return None
        pairs = zip(cell.runs, other.runs, strict=False)
        ratios = [run[key] / reference_run[key] for run, reference_run in pairs if reference_run[key]]
        return statistics.median(ratios) if ratios else None

    def rows(self) -> list[list[str]]:
        """Heading and one row a proxy, as text."""
        kind = self.scenario.kind
        rows = [["proxy", f"x {REFERENCE}", *(heading for _, heading, _ in kind.columns), "range", "remarks"]]
        for name, cell in self.cells.items():
            if not cell.runs:
                rows.append([name, *["-"] * (len(kind.columns) + 2), cell.remarks()])
                continue
            ratio = self.ratio(name, kind.figure)
            figures = [f"{cell.median(key):,.{decimals}f}" for key, _, decimals in kind.columns]
            decimals = next(decimals for key, _, decimals in kind.columns if key == kind.figure)
            low, high = cell.spread(kind.figure)
            span = f"{low:,.{decimals}f}-{high:,.{decimals}f}"
            rows.append([name, "-" if ratio is None else f"{ratio:.2f}", *figures, span, cell.remarks()])
        return rows


def text_table(rows: list[list[str]]) -> str:
    """Aligned columns: names and remarks to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[i]) if i in {0, last} else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: list[list[str]]) -> str:
    """The same as a Markdown table."""
    ruler = ["---", *["---:"] * (len(rows[0]) - 2), "---"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ruler, *rows[1:]])


@dataclass(frozen=True, slots=True)
class Target:
    """One promise: `figure` computes what must be at most or at least `limit`, None where it was not measured."""

    scenario: str
    title: str
    limit: float
    at_most: bool
    figure: Callable[[Result], float | None]

    def verdict(self, result: Result) -> tuple[float, bool] | None:
        """The figure and whether it keeps the promise."""
        value = self.figure(result)
        if value is None:
            return None
        return value, value <= self.limit if self.at_most else value >= self.limit


def _own(key: str) -> Callable[[Result], float | None]:
    def figure(result: Result) -> float | None:
        cell = result.cells.get("onetrip")
        return cell.median(key) if cell and cell.runs else None

    return figure


def _ratio(key: str, reference: str) -> Callable[[Result], float | None]:
    return lambda result: result.ratio("onetrip", key, reference)


def _beside(result: Result) -> float | None:
    cell = result.cells.get("onetrip")
    return cell.median("us_per_request") / cell.median("alone_us_per_request") if cell and cell.runs else None


def _added_p50_ms(result: Result) -> float | None:
    cell, direct = result.cells.get("onetrip"), result.cells.get("direct")
    return cell.median("p50_ms") - direct.median("p50_ms") if cell and direct and cell.runs and direct.runs else None


TARGETS: Final = (
    Target("h1", "CPU per request, times Envoy's", 0.85, True, _ratio("us_per_request", "envoy")),
    Target("tls-up", "CPU per request, times Envoy's", 0.85, True, _ratio("us_per_request", "envoy")),
    Target("tls-down", "CPU per request, times Envoy's", 1.0, True, _ratio("us_per_request", "envoy")),
    Target("h2-down", "CPU per request, times Envoy's", 2.0, True, _ratio("us_per_request", "envoy")),
    Target("h2-up", "CPU per request, times Envoy's", 2.0, True, _ratio("us_per_request", "envoy")),
    Target("grpc", "CPU per call, times Envoy's", 2.5, True, _ratio("us_per_request", "envoy")),
    Target("tcp", "MB per CPU second, times HAProxy's", 1.0, False, _ratio("mb_per_cpu_s", "haproxy")),
    Target(
        "tcp-connect",
        "connections per CPU second, times HAProxy's",
        0.5,
        False,
        _ratio("connections_per_cpu_s", "haproxy"),
    ),
    Target("idle", "KiB for an idle connection", 12.0, True, _own("kib_per_connection")),
    Target("idle", "CPU per request beside idle connections, times alone", 1.1, True, _beside),
    Target("latency", "added p50, ms", 0.3, True, _added_p50_ms),
    Target("latency", "p99, times Envoy's", 2.0, True, _ratio("p99_ms", "envoy")),
)


def verdicts(results: list[Result]) -> list[tuple[Target, float, bool]]:
    """Every target that was measured, with its figure and whether it is kept."""
    by_name = {result.scenario.name: result for result in results}
    found = []
    for target in TARGETS:
        if target.scenario in by_name and (verdict := target.verdict(by_name[target.scenario])) is not None:
            found.append((target, *verdict))
    return found


def verdict_rows(results: list[Result]) -> list[list[str]]:
    """The targets as a table."""
    rows = [["scenario", "target", "measured", "kept"]]
    for target, value, kept in verdicts(results):
        bound = f"{'at most' if target.at_most else 'at least'} {target.limit:g}"
        rows.append([target.scenario, f"{target.title}: {bound}", f"{value:.2f}", "yes" if kept else "NO"])
    return rows


def machine() -> dict[str, str]:
    """Where it ran, as far as it matters to the figures."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def as_markdown(results: list[Result], facts: dict[str, str]) -> str:
    """The whole report."""
    parts = ["# CPU per request, side by side\n", "\n".join(f"- {key}: {value}" for key, value in facts.items())]
    for result in results:
        parts.append(f"\n## {result.scenario.name}: {result.scenario.title}\n\n{markdown_table(result.rows())}")
    if verdicts(results):
        parts.append(f"\n## Targets\n\n{markdown_table(verdict_rows(results))}")
    return "\n".join(parts) + "\n"


def as_json(results: list[Result], facts: dict[str, str]) -> dict[str, Any]:
    """Everything measured: `scenarios` by name, then proxies by name with `runs`, `median` and `x_envoy`."""
    scenarios: dict[str, Any] = {}
    for result in results:
        kind = result.scenario.kind
        proxies: dict[str, Any] = {}
        for name, cell in result.cells.items():
            if not cell.runs:
                proxies[name] = {"missing": cell.missing}
                continue
            medians = {key: round(cell.median(key), 4) for key in cell.runs[0]}
            proxies[name] = {"x_envoy": result.ratio(name, kind.figure), "median": medians, "runs": cell.runs}
        scenarios[result.scenario.name] = {"title": result.scenario.title, "figure": kind.figure, "proxies": proxies}
    targets = [
        {
            "scenario": target.scenario,
            "target": target.title,
            "limit": target.limit,
            "at_most": target.at_most,
            "measured": value,
            "kept": kept,
        }
        for target, value, kept in verdicts(results)
    ]
    return {"schema": 1, "facts": facts, "scenarios": scenarios, "targets": targets}
