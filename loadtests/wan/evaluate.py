"""From samples to figures. Pure.

Latency figures are milliseconds here and become multiples of a region's round trip where they are shown. They are of
GETs; POSTs, which nobody may send twice, are only counted. A request that got no answer has no latency: it is among
the failed ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from .load import Sample

SLOW_MS: Final = 300.0
WINDOW_S: Final = 0.5
"""Over which a rolling median is taken."""
RETURNED_SHARE: Final = 0.9
LEFT_SHARE: Final = 0.5
REGION_WINDOW_S: Final = 1.0

Figures = dict[str, float]


def quantile(values: Iterable[float], share: float) -> float:
    """The nearest rank; nan where there are none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * share) - 1)] if ranked else math.nan


def median(values: Iterable[float]) -> float:
    """The middle one, or between the two middle ones; nan where there are none. Infinities are ordinary values."""
    ranked = sorted(value for value in values if not math.isnan(value))
    if not ranked:
        return math.nan
    middle = len(ranked) // 2
    if len(ranked) % 2:
        return ranked[middle]
    low, high = ranked[middle - 1], ranked[middle]
    return high if math.isinf(high) else (low + high) / 2


def between(samples: Sequence[Sample], begin: float, end: float) -> list[Sample]:
    """Those that were due from `begin` until before `end`."""
    return [sample for sample in samples if begin <= sample.at < end]


def answered(samples: Sequence[Sample]) -> list[float]:
    """Latencies of the GETs that were answered well, in ms."""
    return [sample.latency_ms for sample in samples if sample.method == "GET" and not sample.failed]


def failures(samples: Sequence[Sample]) -> Figures:
    """Failed requests, GETs and POSTs apart."""
    return {
        "failed_get": float(sum(sample.failed for sample in samples if sample.method == "GET")),
        "failed_post": float(sum(sample.failed for sample in samples if sample.method != "GET")),
    }


def latencies(samples: Sequence[Sample]) -> Figures:
    """p50, p99, p99.9 and the slowest, and how many took longer than `SLOW_MS`."""
    values = answered(samples)
    return {
        "p50_ms": quantile(values, 0.5),
        "p99_ms": quantile(values, 0.99),
        "p999_ms": quantile(values, 0.999),
        "slowest_ms": quantile(values, 1.0),
        "over_300": float(sum(value > SLOW_MS for value in values)),
    }


def fault(samples: Sequence[Sample], began: float, ended: float, *, lead_s: float, settled_ms: float) -> Figures:
    """A fault from `began` to `ended`.

    Counted are the requests due in it, and those due up to `lead_s` before: they were on their way when it struck.
    `took_over_s`: after how long the median of the answers had come down to `settled_ms` and stayed there.
    """
    struck = between(samples, began - lead_s, ended)
    return {
        **latencies(struck),
        **failures(struck),
        "took_over_s": took_over_s(samples, began, ended, settled_ms),
        "failed_after": float(sum(sample.failed for sample in samples if sample.at >= ended)),
    }


def took_over_s(samples: Sequence[Sample], began: float, ended: float, settled_ms: float) -> float:
    """Seconds from `began` until every window of `WINDOW_S` has a median of at most `settled_ms`; inf: never.

    A failed request counts as infinitely slow. Windows slide by a tenth of their length.
    """
    gets = [sample for sample in between(samples, began, ended) if sample.method == "GET"]
    step = WINDOW_S / 10
    last_bad = 0.0
    windows = max(1, math.floor((ended - began - WINDOW_S) / step) + 1)
    for number in range(windows):
        begin = began + number * step
        values = [math.inf if sample.failed else sample.latency_ms for sample in between(gets, begin, begin + WINDOW_S)]
        if not values or quantile(values, 0.5) > settled_ms:
            last_bad = (number + 1) * step
    return last_bad if last_bad < windows * step else math.inf


def returned(samples: Sequence[Sample], ended: float, region: str) -> Figures:
    """How the traffic came back to `region` after a fault's end.

    `first_s`: its first answer; `returned_s`: when it has `RETURNED_SHARE` of a second's answers, and `flaps`: how
    often it had lost half of them again after that.
    """
    after = [sample for sample in samples if sample.at >= ended and not sample.failed]
    first = next((sample.at - ended for sample in after if sample.region == region), math.inf)
    returned_s = math.inf
    flaps = 0
    here = False
    last = after[-1].at - ended if after else 0.0
    step = REGION_WINDOW_S / 10
    for number in range(max(0, math.floor((last - REGION_WINDOW_S) / step) + 1)):
        begin = ended + number * step
        window = between(after, begin, begin + REGION_WINDOW_S)
        share = sum(sample.region == region for sample in window) / len(window) if window else 0.0
        if not here and share >= RETURNED_SHARE:
            here = True
            returned_s = min(returned_s, number * step)
        elif here and share < LEFT_SHARE:
            here = False
            flaps += 1
    return {"first_s": first, "returned_s": returned_s, "flaps": float(flaps), **failures(after_all(samples, ended))}


def after_all(samples: Sequence[Sample], instant: float) -> list[Sample]:
    """Every request due from then on."""
    return [sample for sample in samples if sample.at >= instant]


def regions(samples: Sequence[Sample]) -> dict[str, int]:
    """Answers by region."""
    return dict(Counter(sample.region for sample in samples if sample.region))


def complaints(samples: Sequence[Sample]) -> dict[str, int]:
    """Why requests failed, and how many each."""
    return dict(Counter(f"{s.method} {s.error or s.status}" for s in samples if s.failed).most_common(5))
