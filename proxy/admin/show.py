"""A running proxy's status on a terminal."""

from __future__ import annotations

from time import sleep
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

_STATE_STYLE: Final = {
    "healthy": "green",
    "suspect": "yellow",
    "drained": "red",
    "probing": "magenta",
    "ramping": "cyan",
}


NOTHING: Final = "–"
"""Where there is no figure."""


def _number(value: Any, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:g}{unit}"


def _latency(value: float | None) -> str:
    """Nothing takes no time at all: where it says so, nothing was measured."""
    return _number(value or None, " ms")


def _header(status: dict[str, Any]) -> Text:
    ready = "ready" if status.get("ready") else "not ready"
    if status.get("stopping"):
        ready = "draining"
    workers = status.get("workers", 1)
    uptime = f"{status.get('uptime_s', 0):g} s"
    return Text(
        f"onetrip {status.get('version', '')} · {ready} · up {uptime} · {workers} worker{'s' if workers != 1 else ''}"
    )


def _listeners(status: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("listener", "protocol", "connections", "in flight", "requests"):
        table.add_column(column, justify="left" if column in ("listener", "protocol") else "right")
    for one in status.get("listeners", []):
        open_now, done = one.get("requests_in_flight", 0), one.get("requests", one.get("accepted", 0))
        table.add_row(one["name"], one["protocol"], str(one["connections"]), str(open_now), str(done))
    return table


def _upstream(name: str, upstream: dict[str, Any]) -> Table:
    hedges = upstream.get("hedges", {})
    title = f"{name} · {upstream.get('policy')} · {_number(upstream.get('requests_per_s'))} requests/s"
    if any(hedges.values()):
        title += f" · hedges won {hedges['won']} lost {hedges['lost']} denied {hedges['denied']}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    left = ("region", "state", "endpoint")
    tls = any("tls_sessions" in endpoint for region in upstream["regions"] for endpoint in region["endpoints"])
    for column in (
        "region",
        "state",
        "weight",
        "rtt",
        "p50",
        "p95",
        "in flight",
        "endpoint",
        "idle",
        "busy",
        "opened",
        "reused",
        *(("tickets",) if tls else ()),
    ):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for region in upstream["regions"]:
        state = region["state"]
        first = True
        for endpoint in region["endpoints"]:
            pool = endpoint["pool"]
            head = [
                region["region"],
                Text(state, style=_STATE_STYLE.get(state, "")),
                f"{region['weight']:.0%}",
                _latency(region["rtt_ms"]),
                _latency(region["service_p50_ms"]),
                _latency(region["service_p95_ms"]),
                str(region["in_flight"]),
            ]
            table.add_row(
                *(head if first else [""] * 7),
                endpoint["endpoint"],
                str(pool["idle"]),
                str(pool["busy"]),
                " ".join(f"{count} {kind}" for kind, count in pool["opened"].items()) or "0",
                _reused(pool),
                *((str(endpoint.get("tls_sessions", NOTHING)),) if tls else ()),
            )
            first = False
    return table


def _reused(pool: dict[str, Any]) -> str:
    """How often a connection was used again, also as a share: the rest is what was opened."""
    reused = pool["reused"]
    total = reused + sum(pool["opened"].values())
    return f"{reused} ({reused / total:.0%})" if reused else "0"


def _sessions(events: dict[str, int]) -> Text:
    """What became of TLS sessions since the start."""
    told = [f"{events[event]} {event}" for event in ("stored", "resumed", "rejected", "expired")]
    accepted, rejected = events["early_accepted"], events["early_rejected"]
    if accepted or rejected:
        told.append(f"0-RTT {accepted} accepted {rejected} rejected")
    return Text(f"TLS sessions · {' · '.join(told)}")


def render_status(status: dict[str, Any]) -> Group:
    """The whole status as one renderable."""
    parts: list[Any] = [_header(status), Text(), _listeners(status)]
    for name, upstream in status.get("upstreams", {}).items():
        parts += [Text(), _upstream(name, upstream)]
        for region in upstream["regions"]:
            for endpoint in region["endpoints"]:
                if "last_error" in endpoint:
                    parts.append(Text(f"  {region['region']}: {endpoint['last_error']}", style="red"))
    sessions: dict[str, int] = status.get("tls_sessions", {})
    if any(sessions.values()):
        parts += [Text(), _sessions(sessions)]
    return Group(*parts)


def print_status(status: dict[str, Any]) -> None:
    """Once. Where there is no terminal, lines are as long as they need to be."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(render_status(status))


def run_top(ask: Callable[[], dict[str, Any]], interval_s: float) -> None:
    """Again and again, until Ctrl-C."""
    try:
        with Live(render_status(ask()), console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                sleep(interval_s)
                live.update(render_status(ask()), refresh=True)
    except KeyboardInterrupt:
        return


def print_explanation(found: dict[str, Any]) -> None:
    """`onetrip explain`."""
    console = Console()
    for way in found["listeners"]:
        if way["route"] is None:
            console.print(f"listener {way['listener']}: {way['why']}")
            continue
        route = way["route"]
        console.print(
            f"listener {way['listener']}: route {route['host']}{route['path']} → upstream {way['upstream']}",
            highlight=False,
        )
        if way["region"] is None:
            console.print("  nothing can take it now")
        else:
            console.print(
                f"  → {way['region']} at {way['endpoint']} ({way['warm_connections']} warm connections)",
                highlight=False,
            )
        if way.get("hedge_after_ms"):
            console.print(f"  hedged after {way['hedge_after_ms']:g} ms")
        for region in way["regions"]:
            console.print(
                f"  {region['region']}: {region['state']}, weight {region['weight']:.0%}: {region['why']}",
                highlight=False,
            )
