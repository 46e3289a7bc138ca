"""`onetrip bench compare`: two results side by side, and a verdict for a pipeline.

A rule is `[REGION:][PHASE.]METRIC OP [+|-]VALUE[UNIT]`:

    p99>+5%           the 99th percentile of the latency rose by more than 5 %
    us:p50>+2ms       in region us, the median rose by more than 2 ms
    tls.p50>30ms      the median TLS handshake is above 30 ms (no sign: the new value itself)
    errors>0.1%       more than one in a thousand requests failed (no sign)
    errors>+1%        one percentage point more of them failed than before
    rate<-10%         a tenth fewer answers per second

A rule is broken by the measured change as it stands. The confidence interval is printed beside it, and `significant`
lets only those changes break a rule whose interval excludes that nothing changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .record import PERCENTILES, PHASES, Histogram
from .report import ms
from .result import RegionResult, Result, ResultError
from .stats import Difference, differences

_RULE: Final = re.compile(
    r"(?:(?P<region>.+):)?(?:(?P<phase>[a-z_]+)\.)?(?P<metric>p50|p90|p99\.9|p99|max|mean|errors|rate)"
    r"\s*(?P<op>>=|<=|>|<)\s*(?P<sign>[+-])?(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>%|us|ms|s)?"
)
_UNIT_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class RuleError(ValueError):
    """A rule that can't be read, or that names what the results don't hold."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One `--fail-if`. `region` "" is every region. `change`: against the first result; else the second one's own
    value.
    """

    text: str
    region: str
    phase: str
    metric: str
    above: bool
    inclusive: bool
    change: bool
    relative: bool
    threshold: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule against one region: broken or not, and why in a sentence."""

    rule: str
    region: str
    broken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One region in both results, with the differences of its percentiles."""

    name: str
    a: RegionResult
    b: RegionResult
    differences: dict[str, Difference]


def rule(text: str) -> Rule:
    """Read a rule. RuleError: it can't be."""
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise RuleError(f"--fail-if {text!r}: write it like 'p99>+5%', 'us:p50>+2ms', 'tls.p50>30ms' or 'errors>0.1%'")
    metric, unit, sign = match["metric"], match["unit"], match["sign"]
    phase = match["phase"] or "total"
    if phase not in PHASES:
        raise RuleError(f"--fail-if {text!r}: {phase!r} is no phase; there are {', '.join(PHASES)}")
    value = float(match["value"])
    latency = metric not in ("errors", "rate")
    if latency and unit is None:
        raise RuleError(f"--fail-if {text!r}: give the value a unit: %, ms, us or s")
    if not latency and unit not in (None, "%"):
        raise RuleError(f"--fail-if {text!r}: {metric} has no unit but %")
    if metric == "errors":
        # A share: with % it is one already; without, only 0 ("any error") makes sense.
        if unit is None and value != 0:
            raise RuleError(f"--fail-if {text!r}: errors are a share of the requests: write 'errors>0' or 'errors>1%'")
        relative, threshold = False, value / 100
    elif unit == "%":
        relative, threshold = True, value / 100
    else:
        relative, threshold = False, value * _UNIT_MS[unit] if unit else value
    change = sign is not None or relative
    threshold = -threshold if sign == "-" else threshold
    op = match["op"]
    return Rule(text, match["region"] or "", phase, metric, op[0] == ">", len(op) == 2, change, relative, threshold)


def pair_up(a: Result, b: Result) -> list[Pair]:
    """The regions that both results hold; two results of one region each are compared whatever they are called."""
    regions_b = {region.name: region for region in b.regions}
    pairs = [(region, regions_b[region.name]) for region in a.regions if region.name in regions_b]
    if not pairs and len(a.regions) == len(b.regions) == 1:
        pairs = [(a.regions[0], b.regions[0])]
    if not pairs:
        names_a, names_b = (", ".join(region.name for region in result.regions) for result in (a, b))
        raise ResultError(
            f"no region stands in both results: the first has {names_a}, the second {names_b};"
            " name them alike (NAME=URL)"
        )
    return [
        Pair(ra.name if ra.name == rb.name else f"{ra.name} → {rb.name}", ra, rb, _differences(ra, rb))
        for ra, rb in pairs
    ]


def _differences(a: RegionResult, b: RegionResult) -> dict[str, Difference]:
    found = differences(_blocks(a), _blocks(b), PERCENTILES, paired=False)
    return {f"p{d.percent:g}": d for d in found}


def _blocks(region: RegionResult) -> list[dict[int, int]]:
    try:
        return [Histogram.decode(i.histogram).counts if i.histogram else {} for i in region.intervals]
    except ValueError as error:
        raise ResultError(f"region {region.name}: {error}") from None


def judge(rules: list[Rule], pairs: list[Pair], *, significant: bool = False) -> list[Verdict]:
    """Every rule against every region that it speaks of."""
    names = [pair.b.name for pair in pairs]
    verdicts: list[Verdict] = []
    for r in rules:
        if r.region and r.region not in names:
            raise RuleError(f"--fail-if {r.text!r}: no region is called {r.region!r}; there are {', '.join(names)}")
        verdicts.extend(_judge(r, pair, significant) for pair in pairs if not r.region or pair.b.name == r.region)
    return verdicts


def _judge(r: Rule, pair: Pair, significant: bool) -> Verdict:
    before, after = value_of(r, pair.a), value_of(r, pair.b)
    label = r.metric if r.phase == "total" else f"{r.phase}.{r.metric}"
    if after is None:
        # Nothing was measured. That must not pass as fast; where the rule is about a phase that simply did not occur,
        # it does.
        absent = r.phase == "total"
        return Verdict(r.text, pair.name, absent, f"{pair.name}: {label} has no samples in the second result")
    if before is None:
        if r.change:
            return Verdict(
                r.text, pair.name, False, f"{pair.name}: {label} has no samples in the first result to compare with"
            )
        before = 0.0
    if not r.change:
        found, shown = after, f"is {_shown(r, after)}"
    elif r.relative:
        found = (after - before) / before if before else (float("inf") if after else 0.0)
        shown = f"went from {_shown(r, before)} to {_shown(r, after)} ({found:+.1%})"
    else:
        found, shown = (
            after - before,
            f"went from {_shown(r, before)} to {_shown(r, after)} ({_shown(r, after - before, '+')})",
        )
    broken = found > r.threshold if r.above else found < r.threshold
    broken = broken or (r.inclusive and found == r.threshold)
    interval = ""
    d = pair.differences.get(r.metric) if r.phase == "total" else None
    if d is not None and r.change:
        if d.low_us is None or d.high_us is None:
            interval = "; the runs are too short for a confidence interval"
        else:
            interval = f"; 95% interval {d.low_us / 1000:+.3f} … {d.high_us / 1000:+.3f} ms"
            if not d.certain:
                interval += ", which holds 0: it may be noise"
        if broken and significant and not d.certain:
            broken = False
            interval += " (not counted: --significant)"
    return Verdict(r.text, pair.name, broken, f"{pair.name}: {label} {shown}{interval}")


def value_of(r: Rule, region: RegionResult) -> float | None:
    """What a rule looks at: milliseconds, a share, or answers per second. None: no samples."""
    if r.metric == "errors":
        return region.error_share
    if r.metric == "rate":
        return region.rate
    summary = region.phases.get(r.phase)
    if summary is None:
        return None
    values = {
        "p50": summary.p50_ms,
        "p90": summary.p90_ms,
        "p99": summary.p99_ms,
        "p99.9": summary.p99_9_ms,
        "max": summary.max_ms,
        "mean": summary.mean_ms,
    }
    return values[r.metric]


def _shown(r: Rule, value: float, sign: str = "") -> str:
    if r.metric == "errors":
        return f"{value:{sign}.2%}"
    return f"{value:{sign}.1f}/s" if r.metric == "rate" else f"{value:{sign}.3f} ms"


def cautions(a: Result, b: Result) -> list[str]:
    """Why the comparison may not be a fair one."""
    found = []
    for name in ("rate", "protocol", "connections", "connection_requests", "method", "poisson", "body_bytes", "resume"):
        before, after = getattr(a.plan, name), getattr(b.plan, name)
        if before != after:
            found.append(f"The runs differ in {name.replace('_', ' ')}: {before} and {after}.")
    for which, result in (("first", a), ("second", b)):
        if result.generator.lagging:
            found.append(f"The generator lagged in the {which} run: its latencies hold this program's own delay.")
        if result.interrupted:
            found.append(f"The {which} run was interrupted after {result.measured_s:g} s.")
    return found


def tables(pairs: list[Pair], verdicts: list[Verdict], warnings: list[str]) -> RenderableType:
    """The comparison on a terminal."""
    table = Table(title="Latency from the intended start, milliseconds", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("region", style="bold")
    table.add_column("")
    for column in ("before", "after", "change", "", "95% interval"):
        table.add_column(column, justify="right")
    for pair in pairs:
        for position, (name, d) in enumerate(pair.differences.items()):
            interval = (
                "-" if d.low_us is None or d.high_us is None else f"{d.low_us / 1000:+.3f} … {d.high_us / 1000:+.3f}"
            )
            style = ("red" if d.us > 0 else "green") if d.certain else ""
            table.add_row(
                pair.name if position == 0 else "",
                name,
                ms(d.a_us / 1000),
                ms(d.b_us / 1000),
                Text(f"{d.us / 1000:+.3f}", style=style),
                Text(f"{d.relative:+.1%}", style=style),
                interval,
            )
        name = "" if pair.differences else pair.name
        table.add_row(name, "errors", f"{pair.a.error_share:.2%}", f"{pair.b.error_share:.2%}", "", "", "")
        table.add_section()
    parts: list[RenderableType] = [Text(f"! {warning}", style="yellow") for warning in warnings]
    parts.append(table)
    for verdict in verdicts:
        mark, style = ("FAILED", "bold red") if verdict.broken else ("ok", "green")
        parts.append(Text.assemble((f"{mark:6} ", style), (f"{verdict.rule}  ", "bold"), verdict.reason))
    return Group(*parts)


def document(pairs: list[Pair], verdicts: list[Verdict], warnings: list[str]) -> dict[str, object]:
    """The comparison for `--json`."""
    return {
        "format": "onetrip-bench-compare/1",
        "passed": not any(verdict.broken for verdict in verdicts),
        "warnings": warnings,
        "regions": [
            {
                "name": pair.name,
                "errors": {"before": pair.a.error_share, "after": pair.b.error_share},
                "percentiles": {
                    name: {
                        "before_ms": d.a_us / 1000,
                        "after_ms": d.b_us / 1000,
                        "change_ms": d.us / 1000,
                        "low_ms": None if d.low_us is None else d.low_us / 1000,
                        "high_ms": None if d.high_us is None else d.high_us / 1000,
                        "certain": d.certain,
                    }
                    for name, d in pair.differences.items()
                },
            }
            for pair in pairs
        ],
        "rules": [{"rule": v.rule, "region": v.region, "broken": v.broken, "reason": v.reason} for v in verdicts],
    }
