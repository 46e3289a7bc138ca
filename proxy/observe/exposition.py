"""Samples as Prometheus reads them: the text format 0.0.4
(https://prometheus.io/docs/instrumenting/exposition_formats/), made piece by piece, since 2,000 endpoints have 4,000
series.
"""

from __future__ import annotations

from math import inf, isnan
from typing import TYPE_CHECKING, Any, Final

from .metrics import BUCKETS_S, FAMILIES, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .metrics import Labels

_LE: Final = (*(f"{bound:g}" if bound % 1 else f"{bound:.1f}" for bound in BUCKETS_S), "+Inf")
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render(snapshot: Snapshot) -> bytes:
    """All of it."""
    return "".join(pieces(snapshot)).encode()


def pieces(snapshot: Snapshot) -> Iterator[str]:
    """The text, a series at a time. All series of a metric have the same labels, those that mean nothing empty."""
    for name, (kind, help_text) in FAMILIES.items():
        full = f"onetrip_{name}_total" if kind == "counter" else f"onetrip_{name}"
        yield f"# HELP {full} {help_text}\n# TYPE {full} {kind}\n"
        if kind == "histogram":
            histograms = snapshot.histograms.get(name, {})
            names = _label_names(histograms)
            for key, (counts, total) in list(histograms.items()):
                yield _histogram(full, names, dict(key), counts, total)
        else:
            values = snapshot.values.get(name, {})
            names = _label_names(values)
            for key, value in list(values.items()):
                yield f"{full}{_labels(names, dict(key))} {_number(value)}\n"


def _label_names(series: Iterable[Labels]) -> list[str]:
    return sorted({name for key in series for name, _ in key})


def _labels(names: list[str], labels: dict[str, str]) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{labels.get(name, "").translate(_ESCAPES)}"' for name in names) + "}"


def _histogram(full: str, names: list[str], labels: dict[str, Any], counts: list[int], total: float) -> str:
    cumulative = 0
    lines = []
    with_bound = sorted((*names, "le"))
    for bound, count in zip(_LE, counts, strict=True):
        cumulative += count
        labels["le"] = bound
        lines.append(f"{full}_bucket{_labels(with_bound, labels)} {float(cumulative)}\n")
    plain = _labels(names, labels)
    return "".join((*lines, f"{full}_count{plain} {float(cumulative)}\n", f"{full}_sum{plain} {_number(total)}\n"))


def _number(value: float) -> str:
    if isnan(value):
        return "NaN"
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
