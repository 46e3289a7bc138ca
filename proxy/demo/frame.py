"""What the demo shows while it runs: one value, taken several times a second, that views draw."""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .scenario import REGIONS
from .traffic import quantile

if TYPE_CHECKING:
    from .summary import Row
    from .traffic import Client

WINDOW_S: Final = 3.0


class Side(msgspec.Struct):
    """One side's last `WINDOW_S` seconds, milliseconds; None where nothing was answered."""

    name: str
    p50_ms: float | None
    p99_ms: float | None
    failed: int
    in_flight: int
    opened: int


class Region(msgspec.Struct):
    """A region as the proxy sees it. `path`: how the lab treats it now, "" for nothing special."""

    name: str
    rtt_ms: float
    path: str = ""
    state: str = "-"
    weight: float = 0.0
    latency_ms: float | None = None
    idle: int = 0
    busy: int = 0
    opened: int = 0
    reused: int = 0


class Done(msgspec.Struct):
    """A finished phase: multiples of its round trip (None: nothing was measured) and failures, direct and proxied."""

    title: str
    direct: tuple[float | None, float | None, int]
    proxied: tuple[float | None, float | None, int]
    note: str


class Frame(msgspec.Struct):
    """One picture."""

    elapsed_s: float
    total_s: float
    phase: str
    caption: str
    sides: list[Side]
    regions: list[Region]
    hedges: dict[str, int]
    done: list[Done]
    finished: bool = False
    hint: str = ""

    @property
    def saved(self) -> int:
        """Requests that the proxy sent on a connection that was there already."""
        return sum(region.reused for region in self.regions)


def side(client: Client) -> Side:
    """What a client has seen of late."""
    since = monotonic() - WINDOW_S
    recent = [sample for sample in client.recent if sample.due + sample.seconds >= since]
    seconds = [sample.seconds for sample in recent]
    failed = sum(1 for sample in recent if sample.failure)
    p50, p99 = (_ms(quantile(seconds, share)) for share in (0.5, 0.99))
    return Side(client.name, p50, p99, failed, client.in_flight, client.opened_total)


def regions(status: dict[str, Any] | None, upstream: str, paths: dict[str, str]) -> list[Region]:
    """The regions of the proxy's `/status` (None: it does not run), in the script's order."""
    found = [Region(name, rtt_ms, paths.get(name, "")) for name, rtt_ms in REGIONS.items()]
    if status is None:
        return found
    seen = {one["region"]: one for one in status["upstreams"][upstream]["regions"]}
    for region in found:
        one = seen[region.name]
        region.state, region.weight, region.latency_ms = one["state"], one["weight"], one["latency_ms"]
        for pool in (endpoint["pool"] for endpoint in one["endpoints"]):
            region.idle += pool["idle"]
            region.busy += pool["busy"]
            region.opened += sum(pool["opened"].values())
            region.reused += pool["reused"]
    return found


def done(row: Row) -> Done:
    """A finished phase."""
    sides = []
    for series in (row.direct, row.proxied):
        p50, p99 = (_finite(series.quantile_ms(share) / row.rtt_ms) for share in (0.5, 0.99))
        sides.append((p50, p99, series.failed))
    return Done(row.phase.title, sides[0], sides[1], row.note)


def _ms(seconds: float) -> float | None:
    return _finite(seconds * 1e3)


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
