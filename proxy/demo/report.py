"""The end of the demo on a terminal: the figures, the promises, the config, and what to try next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from .scenario import NEAREST, REGIONS

if TYPE_CHECKING:
    from pathlib import Path

    from .summary import Promise, Results, Row

_WIDTH_PIPED: Final = 110  # rich takes 80 where there is no terminal
_SLOW: Final = 2.0  # multiples above it are red


def console() -> Console:
    """Standard output, not narrower than the tables where it is no terminal."""
    probe = Console(highlight=False)
    return probe if probe.is_terminal else Console(highlight=False, width=max(_WIDTH_PIPED, probe.width))


def report(results: Results, config: str, kept_in: Path | None) -> RenderableType:
    """Everything, top to bottom. `kept_in`: the directory that stays, if it does."""
    parts: list[RenderableType] = [figures(results), promises(results), _sentences(results), Text()]
    where = f"The config that the proxy ran with ({kept_in}):" if kept_in else "The config that the proxy ran with:"
    parts += [Text(where, style="bold"), Syntax(config.rstrip(), "yaml", background_color="default"), Text()]
    parts.append(_next(kept_in))
    return Group(*parts)


def figures(results: Results) -> Table:
    """Each phase's latencies on both sides as multiples of a round trip."""
    table = Table(
        title="Latency in round trips (RTT) of the region that is the measure",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption=(
            f"direct: a client with TLS and a keep-alive pool that dials {NEAREST} itself; "
            "proxied: the same client, and the proxy beside it. A time-out stands with the time it had waited."
        ),
        caption_justify="left",
    )
    table.add_column("phase", style="bold", no_wrap=True)
    table.add_column("RTT of", no_wrap=True)
    for column in ("direct\np50", "\np99", "\nfailed", "proxied\np50", "\np99", "\nfailed"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in results.rows.values():
        region = row.phase.against
        table.add_row(row.phase.title, f"{region} {REGIONS[region]:g} ms", *_cells(row))
    return table


def promises(results: Results) -> Table:
    """What was promised, and what became of it."""
    table = Table(
        title="Promises",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption=(
            f"Allowance: what this machine does to both sides. It added {results.machine_ms:.1f} ms to the direct "
            f"requests' median, the generator was {results.lag_p99_ms:.1f} ms late at p99, and fifty requests at once "
            f"cost it {results.burst_ms:.1f} ms where no handshake was needed."
        ),
        caption_justify="left",
    )
    table.add_column("through the proxy")
    for column in ("measured", "limit", "allowance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for promise in results.promises():
        verdict = Text("kept", style="green") if promise.kept else Text("BROKEN", style="bold red")
        table.add_row(promise.text, *_amounts(promise), verdict)
    return table


def verdict(results: Results) -> Text:
    """The last line."""
    broken = [promise for promise in results.promises() if not promise.kept]
    if not broken:
        return Text("Every promise was kept.", style="bold green")
    noun = "promise was" if len(broken) == 1 else "promises were"
    return Text(f"{len(broken)} {noun} not kept: " + "; ".join(p.text for p in broken) + ".", style="bold red")


def _sentences(results: Results) -> Text:
    totals = results.totals
    prefix = "onetrip_"
    opened = totals.get(f"{prefix}upstream_connections_opened_total", 0)
    reused = totals.get(f"{prefix}upstream_connections_reused_total", 0)
    hedges = {key: totals.get(f"{prefix}hedges_total/{key}", 0) for key in ("won", "lost", "denied")}
    lines = [
        f"The proxy opened {opened:.0f} connections and sent {reused:.0f} requests on ones that were open: "
        "as many handshakes saved.",
        f"Hedges: {hedges['won']:.0f} won, {hedges['lost']:.0f} lost, {hedges['denied']:.0f} denied by the budget.",
    ]
    lines += [f"{row.phase.title.capitalize()}: {row.note}." for row in results.rows.values() if row.note]
    if results.states:
        lines.append("Region states: " + "; ".join(results.states) + ".")
    lines.append(f"The WAN ({results.mode}): {results.banner}.")
    return Text("\n".join(lines))


def _cells(row: Row) -> list[Text | str]:
    cells: list[Text | str] = []
    for series in (row.direct, row.proxied):
        for share in (0.5, 0.99):
            value = series.quantile_ms(share) / row.rtt_ms
            style = "red" if value >= _SLOW else "green"
            cells.append("-" if math.isnan(value) else Text(f"{value:.2f} ×", style=style))
        cells.append(Text(str(series.failed), style="bold red" if series.failed else ""))
    return cells


def _amounts(promise: Promise) -> list[str]:
    if promise.unit == "requests":
        return [f"{promise.measured:.0f}", f"{promise.limit:.0f}", ""]
    unit = " ×" if promise.unit == "RTT" else f" {promise.unit}"
    digits = 2 if promise.unit == "RTT" else 1
    measured = "never" if math.isnan(promise.measured) else f"{promise.measured:.{digits}f}{unit}"
    allowance = f"+ {promise.allowance:.{digits}f}{unit}" if promise.allowance else ""
    return [measured, f"{promise.limit:.{digits}f}{unit}", allowance]


def _next(kept_in: Path | None) -> Text:
    lines = [
        "Try next:",
        "  onetrip demo --mode netns           the same over real TCP, in network namespaces (root, or where allowed)",
        "  onetrip bench us=https://YOUR-US/ eu=https://YOUR-EU/   your own regions side by side",
        "  onetrip serve CONFIG                the proxy; onetrip top shows what this demo's live view shows",
        "  docs/demo.md                        what was run and how it was counted",
    ]
    if kept_in is None:
        lines.insert(
            1, "  onetrip demo --keep                 leaves the config, the proxy's log and the figures to look at"
        )
    return Text("\n".join(lines))
