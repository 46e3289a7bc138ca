"""A result as tables on a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .record import PHASES
from .request import STATES, UNCONNECTED
from .result import AbResult, RegionResult, Result, Summary

COLUMNS: Final = ("p50", "p90", "p99", "p99.9", "max")
LABELS: Final = {"first_byte": "first byte"}
_RECEIVE_SHOWN_MS: Final = 0.1
_WIDTH_PIPED: Final = 110  # rich takes 80 where there is no terminal, which would cut figures off


def console(*, stderr: bool = False) -> Console:
    """A console that does not cut tables off in a pipe."""
    probe = Console(stderr=stderr, highlight=False)
    return probe if probe.is_terminal else Console(stderr=stderr, highlight=False, width=max(_WIDTH_PIPED, probe.width))


def ms(value: float) -> str:
    """Milliseconds with the digits that mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def figures(summary: Summary) -> list[str]:
    """A summary's columns, as in `COLUMNS`."""
    return [ms(v) for v in (summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.p99_9_ms, summary.max_ms)]


def tables(result: Result) -> RenderableType:
    """Everything that a reader at a terminal wants, the warnings first."""
    parts: list[RenderableType] = []
    for warning in result.warnings:
        loud = warning.startswith("THE GENERATOR LAGS")
        parts.append(
            Panel(Text(warning, style="bold"), style="red", title="lagging")
            if loud
            else Text(f"! {warning}", style="yellow")
        )
    parts.append(_overview(result))
    parts.append(_states(result))
    for region in result.regions:
        parts.extend(_failures(region))
    if result.ab is not None and result.ab.percentiles:
        parts.append(_ab(result.ab))
    parts.append(Text(_footer(result), style="dim"))
    return Group(*parts)


def to_csv(result: Result) -> str:
    """One row for every region, connection state (`all`: all of them) and phase."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["region", "state", "phase", "count", "mean_ms", *(f"{column}_ms" for column in COLUMNS)])
    for region in result.regions:
        for state, phase, s in rows(region):
            writer.writerow(
                [region.name, state, phase, s.count, s.mean_ms, s.p50_ms, s.p90_ms, s.p99_ms, s.p99_9_ms, s.max_ms]
            )
    return text.getvalue()


def rows(region: RegionResult) -> Iterator[tuple[str, str, Summary]]:
    """A region's summaries in reading order: all states first, and each one's phases in the order they happen."""
    groups = {"all": region.phases, **{state: region.states.get(state, {}) for state in (*STATES, UNCONNECTED)}}
    for state, phases in groups.items():
        for phase in PHASES:
            if phase in phases:
                yield state, phase, phases[phase]


def hidden(phase: str, summary: Summary) -> bool:
    """A phase that would only fill a table: answers of one packet have no receive phase to speak of."""
    return phase == "receive" and summary.p99_ms < _RECEIVE_SHOWN_MS


def _overview(result: Result) -> Table:
    plan = result.plan
    arrivals = "Poisson" if plan.poisson else "constant"
    title = (
        f"{plan.method} at {plan.rate:g}/s ({arrivals}) for {result.measured_s:g} s by {plan.protocol}, milliseconds"
    )
    caption = "Latency counts from when a request should have started, service time from when it did (uncorrected)."
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    table.add_column("region", style="bold", overflow="fold")
    table.add_column("", no_wrap=True)
    for column in ("answers", "/s", "failed", *COLUMNS):
        table.add_column(column, justify="right", no_wrap=True)
    for region in result.regions:
        total, service = region.phases.get("total"), region.phases.get("service")
        failed = Text(f"{region.failed}", style="red" if region.failed else "")
        cells = figures(total) if total else ["-"] * len(COLUMNS)
        answers: list[str | Text] = [str(region.answered), f"{region.rate:g}", failed]
        table.add_row(
            region.name,
            "latency",
            *answers,
            *cells,
            style="bold",
        )
        if service:
            table.add_row("", "service time", "", "", "", *figures(service), style="dim")
    return table


def _states(result: Result) -> Table:
    table = Table(title="By connection state and phase, milliseconds", title_justify="left", box=SIMPLE_HEAD)
    for column in ("region", "connection", "phase"):
        table.add_column(column)
    for column in ("count", *COLUMNS):
        table.add_column(column, justify="right")
    for region in result.regions:
        before = ""
        for state, phase, summary in rows(region):
            if state == "all" or phase == "service" or hidden(phase, summary):
                continue
            if before and before != state:
                table.add_section()
            new = before != state
            style = "bold" if phase == "total" else ""
            names = (region.name if not before else "", state if new else "", LABELS.get(phase, phase))
            table.add_row(*names, str(summary.count), *figures(summary), style=style)
            before = state
        table.add_section()
    return table


def _failures(region: RegionResult) -> list[RenderableType]:
    found: list[RenderableType] = []
    for failure in region.failures:
        text = Text(f"{region.name}: {failure.kind}, {failure.count} times", style="red")
        for example in failure.examples:
            text.append(f"\n    {example}", style="default")
        if failure.advice:
            text.append(f"\n    → {failure.advice}", style="default")
        found.append(text)
    return found


def _ab(ab: AbResult) -> Table:
    table = Table(title=f"A/B: {ab.b} against {ab.a}, milliseconds", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for column in (f"A {ab.a}", f"B {ab.b}", "B - A", f"{ab.confidence:.0%} interval"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for name, d in ab.percentiles.items():
        interval = "-" if d.low_ms is None or d.high_ms is None else f"{d.low_ms:+.3f} … {d.high_ms:+.3f}"
        table.add_row(
            name,
            ms(d.a_ms),
            ms(d.b_ms),
            f"{d.difference_ms:+.3f}",
            interval,
            verdict(d.certain, d.difference_ms, d.low_ms),
        )
    return table


def verdict(certain: bool, difference_ms: float, low_ms: float | None) -> str:
    """What an interval says, in words."""
    if low_ms is None:
        return "too few intervals to say"
    if not certain:
        return "no difference shown"
    return "B is slower" if difference_ms > 0 else "B is faster"


def _footer(result: Result) -> str:
    generator = result.generator
    parts = []
    if generator.lag is not None:
        parts.append(
            f"Generator: started requests {generator.lag.p50_ms:.3f} ms late at p50, {generator.lag.p99_ms:.3f} at p99"
            f" ({generator.late_share:.2%} above 1 ms)"
        )
    parts.append(f"{generator.cpu_us_per_request:.0f} us of CPU a request, {generator.cpu_share:.0%} of a core")
    if generator.overhead_p50_ms is not None and generator.overhead_p99_ms is not None:
        parts.append(
            f"its own share of a latency is at most {generator.overhead_p50_ms:.3f} ms at p50,"
            f" {generator.overhead_p99_ms:.3f} at p99 (against an empty server in this process; not subtracted)"
        )
    lines = ["; ".join(parts) + "."]
    for region in result.regions:
        statuses = ", ".join(f"{status}: {count}" for status, count in region.statuses.items()) or "no answers"
        tls = "".join(f", {version}: {count}" for version, count in region.tls_versions.items())
        lines.append(
            f"{region.name}: {statuses}; {region.connections_opened} connections opened{tls};"
            f" {region.bytes_received} bytes."
        )
    return "\n".join(lines)
