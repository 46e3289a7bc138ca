"""What the demo measured, the promises, and the verdict. Pure: figures in, tables and JSON out.

A promise is judged on what a client saw. Latencies are multiples of a region's round trip as the lab was told it, and
each limit has an allowance on top for the machine: what the same machine, in the same phase, added to the direct
requests' median, and how late its generator was. A busy laptop is forgiven what it does to both sides alike, up to
`ALLOWANCE_MAX_MS`, and nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .scenario import LATE_SHARE, NEAREST, NEXT, REGIONS
from .traffic import Series, quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scenario import Phase, Script
    from .traffic import Sample

ALLOWANCE_MIN_MS: Final = 2.0
ALLOWANCE_MAX_MS: Final = 12.0
BURST_ALLOWANCE_MAX_MS: Final = 36.0
"""With the limit of 1.2 this is 1.8 round trips, and a request that has to wait for a new connection takes three."""
FIRST_LIMIT: Final = 1.1
STEADY_LIMIT: Final = 1.1
BURST_LIMIT: Final = 1.2
TAIL_LIMIT: Final = 5.0
BLACKHOLE_LIMIT: Final = 1.2
BLACKHOLE_WITHIN_S: Final = 2.0
RETURN_MARGIN_S: Final = 5.0
"""On top of the hold and the ramp that the config asks for."""
RECOVERED_SHARE: Final = 0.9
RECOVERED_WINDOW_S: Final = 1.0


@dataclass(slots=True)
class Row:
    """A phase's figures on both sides."""

    phase: Phase
    direct: Series
    proxied: Series
    note: str = ""

    @property
    def rtt_ms(self) -> float:
        """The round trip that is the measure."""
        return REGIONS[self.phase.against]


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and what became of it. `measured` and `limit` are in `unit`; nan: nothing was measured."""

    text: str
    measured: float
    limit: float
    allowance: float
    unit: str

    @property
    def kept(self) -> bool:
        """Whether the measured value stays within the limit and its allowance (nan does not)."""
        return self.measured <= self.limit + self.allowance


@dataclass(slots=True)
class Results:
    """All that a run leaves. `rows` in the order of the script; `totals`: of the proxy's metrics.

    `unmeasured`: requests through the proxy that stand in no row (lead-in, beside bursts); they must not fail either.
    `control`: direct bursts on connections that were open.
    """

    script: Script
    mode: str = ""
    banner: str = ""
    rows: dict[str, Row] = field(default_factory=dict)
    unmeasured: Series = field(default_factory=Series)
    control: Series = field(default_factory=Series)
    ready_s: list[float] = field(default_factory=list)
    blackhole_s: float | None = None
    return_s: float | None = None
    states: list[str] = field(default_factory=list)
    lag_p99_ms: float = 0.0
    totals: dict[str, float] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def machine_ms(self) -> float:
        """What this machine adds to a request that does not go through the proxy, at the median."""
        steady = self.rows.get("steady")
        if steady is None:
            return 0.0
        return max(0.0, steady.direct.quantile_ms(0.5) - REGIONS[NEAREST])

    @property
    def allowance_ms(self) -> float:
        """What every limit is raised by."""
        return _allowed(self.machine_ms + self.lag_p99_ms, ALLOWANCE_MAX_MS)

    @property
    def burst_ms(self) -> float:
        """What this machine may add to a burst through a proxy: twice what it adds to a direct one on open connections
        (p90), since those requests pass two connections, and what they waited until they were written (p50), since
        this program opens as many connections to the proxy.
        """
        burst = self.rows.get("burst")
        own_ms = burst.proxied.waited_ms(0.5) if burst is not None else 0.0
        return 2 * max(0.0, self.control.quantile_ms(0.9) - REGIONS[NEAREST]) + own_ms

    @property
    def burst_allowance_ms(self) -> float:
        """What the burst's limit is raised by."""
        return _allowed(self.burst_ms, BURST_ALLOWANCE_MAX_MS)

    @property
    def failed(self) -> int:
        """Requests that failed through the proxy, in any phase."""
        return sum(row.proxied.failed for row in self.rows.values()) + self.unmeasured.failed

    @property
    def kept(self) -> bool:
        """Every promise was kept."""
        return all(promise.kept for promise in self.promises())

    def promises(self) -> list[Promise]:
        """The promises, in the order of the script, and the one over all of it last."""
        script = self.script
        back_within_s = script.hold_s + script.ramp_s + RETURN_MARGIN_S
        dark = f"{NEAREST} goes dark: back at {BLACKHOLE_LIMIT:g} × {NEXT}'s round trip after"
        return [
            self._latency("cold", 0.5, FIRST_LIMIT, f"the first request after a start (median of {script.starts})"),
            self._latency("steady", 0.5, STEADY_LIMIT, "steady requests, p50"),
            self._latency("burst", 0.5, BURST_LIMIT, f"a burst of {script.burst}, p50"),
            Promise(dark, _or_nan(self.blackhole_s), BLACKHOLE_WITHIN_S, 0.0, "s"),
            Promise(
                f"{NEAREST} returns: most requests go there after", _or_nan(self.return_s), back_within_s, 0.0, "s"
            ),
            self._latency("tail", 0.99, TAIL_LIMIT, f"{LATE_SHARE:.0%} of answers 1 s late, p99"),
            Promise("failed requests, in any phase", float(self.failed), 0.0, 0.0, "requests"),
        ]

    def _latency(self, key: str, share: float, limit: float, text: str) -> Promise:
        row = self.rows[key]
        allowance_ms = self.burst_allowance_ms if key == "burst" else self.allowance_ms
        return Promise(text, row.proxied.quantile_ms(share) / row.rtt_ms, limit, allowance_ms / row.rtt_ms, "RTT")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _allowed(wanted_ms: float, most_ms: float) -> float:
    return most_ms if math.isnan(wanted_ms) else min(most_ms, max(ALLOWANCE_MIN_MS, wanted_ms))


def recovered_after(samples: Sequence[Sample], since: float, limit_ms: float, share: float) -> float | None:
    """Seconds from `since` until answers were good again; None where they were not.

    Good: of the requests due in one second, at least `share` took no longer than `limit_ms`. The second's beginning
    counts, and all of it must have been seen.
    """
    after = sorted((sample for sample in samples if sample.due >= since), key=lambda sample: sample.due)
    if not after:
        return None
    last_due = after[-1].due
    good = [not sample.failure and sample.seconds * 1e3 <= limit_ms for sample in after]
    end = count = 0
    for begin, sample in enumerate(after):
        if sample.due + RECOVERED_WINDOW_S > last_due:
            return None
        while end < len(after) and after[end].due < sample.due + RECOVERED_WINDOW_S:
            count += good[end]
            end += 1
        if count >= share * (end - begin):
            return sample.due - since
        count -= good[begin]
    return None


def document(results: Results, config: str) -> dict[str, Any]:
    """What `--json` prints. Latencies in milliseconds and as multiples of `rtt_ms`; null: nothing was measured."""
    return {
        "kept": results.kept,
        "mode": results.mode,
        "banner": results.banner,
        "regions_rtt_ms": dict(REGIONS),
        "rate_per_s": results.script.rate,
        "duration_s": round(results.duration_s, 1),
        "machine": {
            "direct_p50_over_rtt_ms": _number(results.machine_ms),
            "generator_late_p99_ms": _number(results.lag_p99_ms),
            "burst_over_rtt_ms": _number(results.burst_ms),
            "allowance_ms": _number(results.allowance_ms),
            "burst_allowance_ms": _number(results.burst_allowance_ms),
        },
        "ready_s": [round(seconds, 3) for seconds in results.ready_s],
        "phases": [
            {
                "phase": key,
                "rtt_ms": row.rtt_ms,
                "direct": _side(row.direct, row.rtt_ms),
                "proxied": _side(row.proxied, row.rtt_ms),
            }
            for key, row in results.rows.items()
        ],
        "recovered_s": {"blackhole": _number(results.blackhole_s), "return": _number(results.return_s)},
        "region_states": results.states,
        "promises": [
            {
                "promise": promise.text,
                "unit": promise.unit,
                "measured": _number(promise.measured),
                "limit": promise.limit,
                "allowance": _number(promise.allowance),
                "kept": promise.kept,
            }
            for promise in results.promises()
        ],
        "metrics": results.totals,
        "config": config,
    }


def _side(series: Series, rtt_ms: float) -> dict[str, Any]:
    seconds = [sample.seconds for sample in series.samples]
    figures = {
        name: quantile(seconds, share) * 1e3
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    }
    return {
        "requests": len(series.samples),
        "failed": series.failed,
        "failures": series.failures,
        **{f"{name}_ms": _number(value) for name, value in figures.items()},
        **{f"{name}_rtt": _number(value / rtt_ms) for name, value in figures.items()},
    }


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)
