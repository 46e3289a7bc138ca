"""Recording latencies on the hot path, in HdrHistogram's buckets.

A value in microseconds falls into a bucket 1/1024 of its size or less wide (three significant digits), from 1 us to an
hour. The buckets and the rule for percentiles are those of HdrHistogram (Gil Tene), and `encode` gives its V2 format,
which its tools read. The library itself records in pure Python at 2 us a value and walks 20,000 buckets for a
percentile; one dictionary step records in a tenth of that, takes only the buckets that are used, and merges and
subtracts cheaply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from hdrh.histogram import HdrHistogram

from proxy.errors import Kind, ProxyError

from .request import STATES, UNCONNECTED

if TYPE_CHECKING:
    from .request import Request

HIGHEST_US: Final = 3_600_000_000
SIGNIFICANT_FIGURES: Final = 3
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)
PHASES: Final = ("queue", "dns", "tcp", "tls", "first_byte", "receive", "service", "total")

_HALF_BITS: Final = (
    10  # 2 * 10**3 rounded up to a power of two is 2**11 buckets in the first run, half as many in each further one
)
_DETAILS_MAX: Final = 3


class Histogram:
    """Counts of microseconds by HdrHistogram's bucket index, with the exact extremes and sum."""

    __slots__ = ("counts", "highest_us", "lowest_us", "sum_us")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.highest_us = 0
        self.lowest_us = HIGHEST_US
        self.sum_us = 0

    def __repr__(self) -> str:
        return f"<Histogram {self.count} values, p50 {self.percentile(50)} us, max {self.highest_us} us>"

    def record(self, seconds: float) -> None:
        """Count one value (clamped to 0 … one hour)."""
        us = int(seconds * 1e6 + 0.5)
        if us < 0:
            us = 0
        elif us > HIGHEST_US:
            us = HIGHEST_US
        shift = us.bit_length() - _HALF_BITS - 1
        index = us if shift <= 0 else (shift << _HALF_BITS) + (us >> shift)
        counts = self.counts
        counts[index] = counts.get(index, 0) + 1
        self.sum_us += us
        if us > self.highest_us:  # noqa: PLR1730  max() costs four times as much
            self.highest_us = us
        if us < self.lowest_us:  # noqa: PLR1730
            self.lowest_us = us

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts.values())

    @property
    def mean_us(self) -> float:
        """The arithmetic mean, 0 where there is nothing."""
        count = self.count
        return self.sum_us / count if count else 0.0

    def percentile(self, percent: float) -> int:
        """The largest value (us) of the bucket at which `percent` of the values are reached, and never above the
        maximum.
        """
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Iterable[float]) -> list[int]:
        """Several percentiles (us), in the order asked for; 0 where there is nothing."""
        return [min(us, self.highest_us) for us in percentiles_of(self.counts, percents)]

    def merge(self, other: Histogram) -> None:
        """Add another one's values."""
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count
        self.sum_us += other.sum_us
        self.highest_us = max(self.highest_us, other.highest_us)
        self.lowest_us = min(self.lowest_us, other.lowest_us)

    def encode(self) -> str:
        """HdrHistogram's compressed V2 format in base64 (unit: microseconds)."""
        library = HdrHistogram(1, HIGHEST_US, SIGNIFICANT_FIGURES)
        for index, count in self.counts.items():
            library.counts[index] = count
        if self.counts:
            library.set_internal_tacking_values(min(self.counts), max(self.counts), self.count)
        return str(library.encode().decode("ascii"))

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """The reverse of `encode`; extremes and sum come back with a bucket's precision. ValueError: not such a
        histogram.
        """
        try:
            library = HdrHistogram.decode(text.encode("ascii"))
        except Exception as error:  # the library raises what its C extension, zlib and ctypes raise
            raise ValueError(f"not an HdrHistogram: {error}") from error
        if library.significant_figures != SIGNIFICANT_FIGURES or library.unit_magnitude != 0:
            raise ValueError(
                "an HdrHistogram of another precision or unit: three significant digits of 1 us are expected"
            )
        self = cls()
        # Straight from the library's array: its iterators take milliseconds, and a result holds hundreds of histograms.
        self.counts = {index: count for index, count in enumerate(library.counts[:]) if count}
        self.sum_us = sum(highest_us(index) * count for index, count in self.counts.items())
        if self.counts:
            self.highest_us = highest_us(max(self.counts))
            self.lowest_us = lowest_us(min(self.counts))
        return self


def lowest_us(index: int) -> int:
    """The smallest value that falls into a bucket."""
    if index < 2 << _HALF_BITS:
        return index
    shift = (index >> _HALF_BITS) - 1
    return (index - (shift << _HALF_BITS)) << shift


def highest_us(index: int) -> int:
    """The largest value that falls into a bucket."""
    return lowest_us(index + 1) - 1


def percentiles_of(counts: dict[int, int], percents: Iterable[float]) -> list[int]:
    """Percentiles (us) of bare bucket counts, by HdrHistogram's rule; 0 where there is nothing."""
    asked = list(percents)
    if not counts:
        return [0] * len(asked)
    indexes = sorted(counts)
    total = sum(counts.values())
    found: dict[float, int] = {}
    position = -1
    reached = 0
    for percent in sorted(set(asked)):
        wanted = max(1, int(min(percent, 100.0) * total / 100 + 0.5))
        while reached < wanted:
            position += 1
            reached += counts[indexes[position]]
        found[percent] = highest_us(indexes[position])
    return [found[percent] for percent in asked]


class Interval:
    """One step of the time series, by intended start."""

    __slots__ = ("failed", "service", "total")

    def __init__(self) -> None:
        self.total = Histogram()
        self.service = Histogram()
        self.failed = 0


class Recorder:
    """What one target answered. Warm-up requests come here too and are only counted.

    A request that timed out stands in `total` and `service` with the time it had waited: a lower bound of its latency.
    Leaving it out would let a server that hangs look fast. Other failures have no latency, because a refusal is quick
    and would do the same.
    """

    __slots__ = (
        "answered",
        "bytes_received",
        "details",
        "failures",
        "interval_count",
        "intervals",
        "phases",
        "recent",
        "started",
        "statuses",
        "tls_versions",
        "unfinished",
        "warmup",
    )

    def __init__(self, interval_count: int, *, live: bool = False) -> None:
        self.interval_count = interval_count
        self.intervals = [Interval() for _ in range(interval_count)]
        self.phases = {state: {phase: Histogram() for phase in PHASES} for state in (*STATES, UNCONNECTED)}
        self.recent: Histogram | None = Histogram() if live else None
        self.started = 0
        self.answered = 0
        self.warmup = 0
        self.unfinished = 0
        self.bytes_received = 0
        self.statuses: Counter[int] = Counter()
        self.failures: Counter[Kind] = Counter()
        self.details: dict[Kind, Counter[str]] = {}
        self.tls_versions: Counter[str] = Counter()

    def answered_at(self, request: Request, status: int, now: float) -> None:
        """A complete answer. `now`: when its last byte arrived."""
        if request.interval < 0:
            self.warmup += 1
            return
        self.answered += 1
        self.statuses[status] += 1
        phases = self.phases[request.state]
        total_s = now - request.intended
        service_s = now - request.began
        phases["queue"].record(request.began - request.intended)
        phases["first_byte"].record(request.first_byte - request.sent)
        phases["receive"].record(now - request.first_byte)
        phases["service"].record(service_s)
        phases["total"].record(total_s)
        if request.dialled:
            if request.dns_s >= 0:
                phases["dns"].record(request.dns_s)
            phases["tcp"].record(request.tcp_s)
            if request.tls_s >= 0:
                phases["tls"].record(request.tls_s)
        interval = self.intervals[request.interval]
        interval.total.record(total_s)
        interval.service.record(service_s)
        if self.recent is not None:
            self.recent.record(total_s)

    def failed_at(self, request: Request, error: ProxyError, now: float) -> None:
        """No complete answer."""
        if request.interval < 0:
            self.warmup += 1
            return
        self.failures[error.kind] += 1
        details = self.details.setdefault(error.kind, Counter())
        if error.details in details or len(details) < _DETAILS_MAX:
            details[error.details] += 1
        interval = self.intervals[request.interval]
        interval.failed += 1
        if error.kind is Kind.RESPONSE_TIMEOUT or error.kind is Kind.CONNECT_TIMEOUT:
            total_s = now - request.intended
            service_s = now - request.began if request.began else 0.0
            phases = self.phases[request.state]
            phases["total"].record(total_s)
            phases["service"].record(service_s)
            interval.total.record(total_s)
            interval.service.record(service_s)
            if self.recent is not None:
                self.recent.record(total_s)

    def phase(self, phase: str) -> Histogram:
        """One phase over all connection states."""
        merged = Histogram()
        for phases in self.phases.values():
            merged.merge(phases[phase])
        return merged
