"""What `onetrip status` shows a person of a status."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from proxy.admin.show import render_status
from tlscache.cache import EVENTS


def endpoint(address: str, opened: dict[str, int], reused: int, tickets: int | None = None) -> dict[str, Any]:
    pool = {"idle": 1, "busy": 0, "opened": opened, "reused": reused}
    return {"endpoint": address, "pool": pool, **({"tls_sessions": tickets} if tickets is not None else {})}


def status(*endpoints: dict[str, Any], **more: Any) -> dict[str, Any]:
    region = {
        "region": "here", "state": "healthy", "weight": 1.0, "rtt_ms": 80.0, "service_p50_ms": None,
        "service_p95_ms": None, "in_flight": 0, "endpoints": list(endpoints),
    }  # fmt: skip
    return {
        "ready": True,
        "upstreams": {"app": {"policy": "latency", "requests_per_s": 1.0, "regions": [region]}},
    } | more


def shown(status: dict[str, Any]) -> list[str]:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(render_status(status))
    return [line.rstrip() for line in capture.get().splitlines()]


def row(lines: list[str], address: str) -> dict[str, str]:
    """An endpoint's cells from `endpoint` on, by column; columns end where their heads do, or begin there."""
    head = next(line for line in lines if line.startswith("region "))
    found = next(line for line in lines if address in line)
    heads = [one for one in head.split("  ") if one.strip()]
    cells = [one for one in found.split("  ") if one.strip()]
    return dict(zip((one.strip() for one in heads), (one.strip() for one in cells), strict=True))


def test_how_connections_were_opened_and_how_often_they_were_reused() -> None:
    lines = shown(status(endpoint("a:443", {"full": 2, "resumed": 5, "early": 1}, 92, 7)))
    cells = row(lines, "a:443")
    assert cells["opened"] == "2 full 5 resumed 1 early"
    assert cells["reused"] == "92 (92%)"
    assert cells["tickets"] == "7"


def test_nothing_was_opened_yet() -> None:
    cells = row(shown(status(endpoint("a:443", {}, 0, 0))), "a:443")
    assert (cells["opened"], cells["reused"], cells["tickets"]) == ("0", "0", "0")


def test_plaintext_has_no_tickets() -> None:
    lines = shown(status(endpoint("a:80", {"plain": 1}, 3)))
    assert row(lines, "a:80")["reused"] == "3 (75%)"
    assert not any("tickets" in line for line in lines)


def test_what_became_of_sessions() -> None:
    events = dict.fromkeys(EVENTS, 0)
    assert not any("TLS sessions" in line for line in shown(status(tls_sessions=events)))
    events |= {"stored": 9, "resumed": 5, "rejected": 1}
    assert shown(status(tls_sessions=events))[-1] == "TLS sessions · 9 stored · 5 resumed · 1 rejected · 0 expired"
    events |= {"early_accepted": 4, "early_rejected": 1}
    assert shown(status(tls_sessions=events))[-1].endswith(" · 0-RTT 4 accepted 1 rejected")
