"""Counters as plain attributes and arrays on the hot path, and what `/metrics` makes of them.

The hot path adds to an int or a list cell; no lock, no label look-up. A scrape walks the live objects once and builds
samples, which add up across workers (`merge`) and become text in `exposition`.
"""

from __future__ import annotations

from bisect import bisect_left
from math import nan
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable


BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
HANDSHAKES: Final = ("full", "resumed", "early", "plain")
PHASES: Final = ("dns", "tcp", "tls")
"""Of a dial."""


class Histogram:
    """Durations in seconds, in the buckets `BUCKETS_S`."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total += seconds

    def add(self, other: Histogram) -> None:
        """Add what another one counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class ListenerCounters:
    """What a listener counts. `codes` by status; `in_flight` and `connections` are gauges."""

    __slots__ = ("accepted", "codes", "connections", "duration", "in_flight", "refused", "sent_bytes", "tls_failures")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.duration = Histogram()
        self.in_flight = 0
        self.connections = 0
        self.accepted = 0
        self.refused = 0
        self.tls_failures = 0
        self.sent_bytes = 0


class PoolCounters:
    """What a pool counts."""

    __slots__ = ("dial_failures", "dns", "opened", "reused", "tcp", "tls")

    def __init__(self) -> None:
        self.opened = dict.fromkeys(HANDSHAKES, 0)
        self.reused = 0
        self.dial_failures = 0
        self.dns = Histogram()
        self.tcp = Histogram()
        self.tls = Histogram()

    def observe_phases(self, seconds: tuple[float, float, float]) -> None:
        """What a dial took: (dns, tcp, tls)."""
        self.dns.observe(seconds[0])
        self.tcp.observe(seconds[1])
        self.tls.observe(seconds[2])

    def add(self, other: PoolCounters) -> None:
        """Add what another pool counted."""
        for handshake, count in other.opened.items():
            self.opened[handshake] += count
        self.reused += other.reused
        self.dial_failures += other.dial_failures
        for phase in PHASES:
            getattr(self, phase).add(getattr(other, phase))

    def export(self, snapshot: Snapshot, upstream: str, region: str) -> None:
        """As samples."""
        labels = {"upstream": upstream, "region": region}
        for handshake, count in self.opened.items():
            snapshot.add("upstream_connections_opened", count, handshake=handshake, **labels)
        snapshot.add("upstream_connections_reused", self.reused, **labels)
        snapshot.add("upstream_dial_failures", self.dial_failures, **labels)
        for phase in PHASES:
            snapshot.add_histogram("upstream_handshake_seconds", getattr(self, phase), phase=phase, **labels)


class UpstreamCounters:
    """What an upstream counts. `retries` by (reason, result), `hedges` by result."""

    __slots__ = ("drains", "hedges", "latency", "retries")

    def __init__(self, regions: Iterable[str]) -> None:
        self.latency = {region: Histogram() for region in regions}
        self.hedges = {"won": 0, "lost": 0, "denied": 0}
        self.retries: dict[tuple[str, str], int] = {}
        self.drains: dict[tuple[str, str], int] = {}

    def know(self, regions: Iterable[str]) -> None:
        """A reload may have brought regions; those that went keep what they counted."""
        for region in regions:
            self.latency.setdefault(region, Histogram())

    def retry(self, reason: str, result: str) -> None:
        """Count a retry, or that it was denied."""
        key = (reason, result)
        self.retries[key] = self.retries.get(key, 0) + 1


Labels: TypeAlias = tuple[tuple[str, str], ...]

FAMILIES: Final[dict[str, tuple[str, str]]] = {
    "requests": ("counter", "Requests answered, by status."),
    "request_duration_seconds": ("histogram", "Seconds from a request's arrival to the end of its response."),
    "upstream_request_duration_seconds": ("histogram", "Seconds from sending an attempt to its response head."),
    "requests_in_flight": ("gauge", "Requests under way."),
    "connections_open": ("gauge", "Open connections, by side."),
    "connections_accepted": ("counter", "Client connections accepted."),
    "connections_refused": ("counter", "Client connections refused at a limit."),
    "tls_handshake_failures": ("counter", "TLS handshakes with clients that failed."),
    "upstream_connections_opened": ("counter", "Connections opened to endpoints, by handshake."),
    "upstream_connections_reused": ("counter", "Requests that found a connection ready."),
    "upstream_dial_failures": ("counter", "Connections to endpoints that could not be opened."),
    "upstream_handshake_seconds": ("histogram", "Seconds of a dial, by phase."),
    "upstream_pool_idle": ("gauge", "Connections ready for a request."),
    "tls_sessions_stored": ("gauge", "TLS sessions held in memory, by endpoint."),
    "tls_sessions": ("counter", "TLS sessions, by what became of them."),
    "hedges": ("counter", "Hedged attempts, by result."),
    "retries": ("counter", "Retries, by reason and result."),
    "region_weight": ("gauge", "A region's share of new requests."),
    "region_latency_seconds": ("gauge", "A region's latency: round trip and service time."),
    "region_state": ("gauge", "0 healthy, 1 suspect, 2 drained, 3 probing, 4 ramping."),
    "region_drains": ("counter", "Drains, by cause."),
    "endpoint_ejected": ("gauge", "1 while an endpoint is ejected."),
    "config_reloads": ("counter", "Reloads of the configuration, by result."),
    "tunnel_bytes": ("counter", "Bytes carried by L4 connections, by direction."),
    "tunnel_connections": ("counter", "L4 connections, by result."),
    "access_log_dropped": ("counter", "Access-log lines lost because the log could not keep up."),
    "log_lines_dropped": ("counter", "Lines of the program's own log that were left out, by reason."),
    "worker_restarts": ("counter", "Workers restarted after they died."),
    "build_info": ("gauge", "The version that runs."),
}
"""Name (without prefix; counters get `_total`), type and help of every metric."""

AS_IS: Final = frozenset(("region_state", "build_info", "region_weight", "region_latency_seconds", "endpoint_ejected"))
"""Gauges that do not add up across workers: the largest stands for all."""


class Snapshot:
    """Samples of one process: scalar values and histograms by name and labels. JSON-able, so that workers can hand them
    over.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[Labels, float]] = {}
        self.histograms: dict[str, dict[Labels, tuple[list[int], float]]] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter or gauge."""
        series = self.values.setdefault(name, {})
        key = tuple(labels.items())
        series[key] = series.get(key, 0.0) + value

    def add_histogram(self, name: str, histogram: Histogram, **labels: str) -> None:
        """Add a histogram's counts."""
        series = self.histograms.setdefault(name, {})
        key = tuple(labels.items())
        counts, total = series.get(key, ([0] * len(histogram.counts), 0.0))
        series[key] = ([a + b for a, b in zip(counts, histogram.counts, strict=True)], total + histogram.total)

    def merge(self, other: Snapshot) -> None:
        """Add another process's samples."""
        for name, series in other.values.items():
            mine = self.values.setdefault(name, {})
            for key, value in series.items():
                if name in AS_IS:
                    mine[key] = max(mine.get(key, value), value)
                else:
                    mine[key] = mine.get(key, 0.0) + value
        for name, histograms in other.histograms.items():
            mine_h = self.histograms.setdefault(name, {})
            for key, (counts, total) in histograms.items():
                before, sum_before = mine_h.get(key, ([0] * len(counts), 0.0))
                mine_h[key] = ([a + b for a, b in zip(before, counts, strict=True)], sum_before + total)

    def to_json(self) -> dict[str, Any]:
        """A form that survives JSON, where a tuple becomes a list. As it stands: the encoder does the walking."""
        return {
            "values": {name: list(series.items()) for name, series in self.values.items()},
            "histograms": {
                name: [(key, counts, total) for key, (counts, total) in series.items()]
                for name, series in self.histograms.items()
            },
        }

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> Snapshot:
        """The reverse of `to_json`."""
        snapshot = cls()
        for name, series in form["values"].items():
            snapshot.values[name] = {
                tuple((a, b) for a, b in key): nan if value is None else value for key, value in series
            }  # JSON has no infinity, and nobody measured one
        for name, series in form["histograms"].items():
            snapshot.histograms[name] = {
                tuple((a, b) for a, b in key): (counts, total) for key, counts, total in series
            }
        return snapshot


class Ledger:
    """What was counted by something that is gone (a worker, a listener, an upstream's endpoints), so that no counter of
    `/metrics` vanishes or goes back. Gauges go with what they measured.
    """

    def __init__(self) -> None:
        self._gone = Snapshot()

    def absorb(self, snapshot: Snapshot) -> None:
        """Take over the last samples of something that will count no more."""
        counted = Snapshot()
        counted.values = {name: one for name, one in snapshot.values.items() if FAMILIES[name][0] == "counter"}
        counted.histograms = snapshot.histograms
        self._gone.merge(counted)

    def add_to(self, snapshot: Snapshot) -> None:
        """Add them to the samples of what is there."""
        snapshot.merge(self._gone)


def export_log(snapshot: Snapshot, log: Any) -> None:
    """What the program's own log left out (`EventLog`): nobody took it, or there was too much of one event."""
    snapshot.add("log_lines_dropped", log.dropped, reason="full")
    snapshot.add("log_lines_dropped", log.suppressed, reason="rate")
