"""A result as one HTML file: plots, tables, both colour schemes, nothing loaded from anywhere."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from math import log10
from string import Template
from typing import Final

from . import plots
from .plots import Line, Scale
from .record import Histogram, highest_us
from .report import COLUMNS, LABELS, figures, hidden, ms, rows, verdict
from .request import STATES
from .result import RegionResult, Result

_LABEL_MAX: Final = 14
_CURVE_POINTS_MAX: Final = 400


def to_html(result: Result) -> str:
    """The whole page."""
    data: dict[str, object] = {"regions": [region.name for region in result.regions]}
    sections = [_time(result, data), _percentiles(result, data), _phases(result)]
    if result.ab is not None and result.ab.percentiles:
        sections.insert(0, _ab(result))
    plan = result.plan
    started = result.started.replace("T", " ").replace("+00:00", " UTC")
    arrivals = "Poisson arrivals" if plan.poisson else "constant spacing"
    subtitle = (
        f"{plan.method} · {plan.rate:g} requests/s, {arrivals} · {result.measured_s:g} s · {plan.protocol}"
        f" · up to {plan.connections} connection{'s' if plan.connections > 1 else ''} each · {started}"
    )
    template = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(" · ".join(region.name for region in result.regions)),
        subtitle=escape(subtitle),
        warnings="".join(_warning(text) for text in result.warnings),
        cards="".join(_card(i, region) for i, region in enumerate(result.regions)),
        sections="".join(sections),
        states=_states(result),
        failures=_failures(result),
        generator=_generator(result),
        version=escape(result.version),
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def _warning(text: str) -> str:
    loud = text.startswith("THE GENERATOR LAGS")
    return f'<p class="warning{" loud" if loud else ""}" role="{"alert" if loud else "note"}">{escape(text)}</p>'


def _card(i: int, region: RegionResult) -> str:
    total, service = region.phases.get("total"), region.phases.get("service")
    head = f'<h2><i class="s{_colour(i)}"></i>{escape(region.name)}</h2><p class="url">{escape(region.url)}</p>'
    if total is None or service is None:
        body = '<p class="big">no answer</p>'
    else:
        pairs = zip(("p50", "p90", "p99", "p99.9", "max"), figures(total), figures(service), strict=True)
        cells = "".join(f"<tr><th>{name}</th><td>{t}</td><td class='dim'>{s}</td></tr>" for name, t, s in pairs)
        body = (
            f'<p class="big">{ms(total.p50_ms)}<small> ms median</small></p>'
            f"<table><thead><tr><th>ms</th><th>latency</th><th class='dim'>service</th></tr></thead>{cells}</table>"
        )
    failed = f'<b class="bad">{region.failed} failed</b>' if region.failed else "none failed"
    foot = f"{region.answered:,} answers, {region.rate:g}/s, {failed}<br>{region.connections_opened} connections opened"
    return f'<article class="card">{head}{body}<p class="foot">{foot}</p></article>'


def _time(result: Result, data: dict[str, object]) -> str:
    lines, bands, series = [], [], []
    failures: list[tuple[float, float]] = []
    middle_s = result.interval_s / 2
    for i, region in enumerate(result.regions):
        filled = [(step.start_s + middle_s, step.total) for step in region.intervals]
        known = [(t, total) for t, total in filled if total is not None]
        lines.append(Line("", [(t, s.p99_ms) for t, s in known], _colour(i), "thin"))
        lines.append(Line(_short(region.name), [(t, s.p50_ms) for t, s in known], _colour(i)))
        bands.append((_colour(i), [(t, s.p50_ms, s.p99_ms) for t, s in known]))
        failures.extend(
            (step.start_s + middle_s, step.failed / max(1, step.count + step.failed))
            for step in region.intervals
            if step.failed
        )
        series.append([[round(t, 3), s.p50_ms, s.p99_ms, s.max_ms, s.count] for t, s in known])
    svg, x, y = plots.time_plot(lines, bands, failures, max(result.measured_s, result.interval_s))
    data["time"] = {"x": _scale(x), "y": _scale(y), "series": series}
    note = "Median (strong) and 99th percentile (thin) of each interval, by intended start." + (
        " Red marks: failures." if failures else ""
    )
    return _section("Latency over time", note, svg)


def _percentiles(result: Result, data: dict[str, object]) -> str:
    lines, series = [], []
    for i, region in enumerate(result.regions):
        total, service = curve(region.histogram), curve(region.service_histogram)
        lines.append(Line("", service, _colour(i), "dashed"))
        lines.append(Line(_short(region.name), total, _colour(i)))
        series.append([[round(a, 4), b] for a, b in total])
    svg, x, y = plots.percentile_plot(lines)
    data["percentiles"] = {"x": _scale(x), "y": _scale(y), "series": series}
    note = "Full line: latency from the intended start. Dashed: service time, which leaves out waiting for a turn."
    return _section("Latency by percentile", note, svg)


def curve(encoded: str) -> list[tuple[float, float]]:
    """A histogram as (nines, milliseconds), up to the percentile that its last value but one stands for."""
    counts = Histogram.decode(encoded).counts
    total = sum(counts.values())
    points: list[tuple[float, float]] = []
    reached = 0
    for index in sorted(counts):
        value_ms = highest_us(index) / 1000
        if not points:
            points.append((0.0, value_ms))
        below = reached / total
        reached += counts[index]
        points.append((-log10(1 - below), value_ms))
        if reached < total:
            points.append((-log10(1 - reached / total), value_ms))
    if points:
        points.append((max(log10(total), points[-1][0]), points[-1][1]))
    step = max(1, len(points) // _CURVE_POINTS_MAX)
    # The tail's points are few and matter: only the crowd below the 90th percentile is thinned out.
    return [p for i, p in enumerate(points) if p[0] >= 1 or i % step == 0 or i == len(points) - 1]


def _phases(result: Result) -> str:
    found = []
    for region in result.regions:
        for state in STATES:
            phases = region.states.get(state, {})
            if "total" not in phases:
                continue
            count = phases["total"].count
            # The mean over all requests of the state: a phase that only some had (a look-up) counts by its share, so
            # the bar adds up.
            values = [
                phases[p].mean_ms * phases[p].count / count if p in phases else 0.0 for p, _ in plots.PHASES_SHOWN
            ]
            found.append((f"{_short(region.name)} {state}", f"{count:,} requests", values))
    if not found:
        return ""
    legend = "".join(f'<span><i class="phase {phase}"></i>{name}</span>' for phase, name in plots.PHASES_SHOWN)
    note = "Mean time in each phase, by region and connection state."
    return _section("Where the time goes", note, plots.phase_plot(found), f'<p class="legend">{legend}</p>')


def _ab(result: Result) -> str:
    assert result.ab is not None
    ab = result.ab
    found = [(name, d.difference_ms, d.low_ms, d.high_ms) for name, d in ab.percentiles.items()]
    cells = "".join(
        f"<tr><th>{name}</th><td>{ms(d.a_ms)}</td><td>{ms(d.b_ms)}</td><td>{d.difference_ms:+.3f}</td>"
        f"<td>{_interval(d.low_ms, d.high_ms)}</td>"
        f"<td class='text'>{verdict(d.certain, d.difference_ms, d.low_ms)}</td></tr>"
        for name, d in ab.percentiles.items()
    )
    table = (
        f"<table class='wide ab'><thead><tr><th></th><th>A {escape(ab.a)}</th><th>B {escape(ab.b)}</th><th>B - A</th>"
        f"<th>{ab.confidence:.0%} interval</th><th class='text'>verdict</th></tr></thead>{cells}</table>"
    )
    note = (
        f"B - A in milliseconds; left of zero, {ab.b} is faster. Whiskers: {ab.confidence:.0%} confidence, by a block"
        " bootstrap over the run's intervals. Pairs of requests went out in random order."
    )
    return _section("A against B", note, plots.difference_plot(found), table)


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:+.3f} … {high:+.3f}"


def _states(result: Result) -> str:
    body = []
    for i, region in enumerate(result.regions):
        before = ""
        for state, phase, summary in rows(region):
            if state == "all" or phase == "service" or hidden(phase, summary):
                continue
            name = f'<i class="s{_colour(i)}"></i>{escape(region.name)}' if not before else ""
            shown = state if state != before else ""
            style = ' class="total"' if phase == "total" else ""
            cells = "".join(f"<td>{value}</td>" for value in figures(summary))
            names = "".join(f"<th>{text}</th>" for text in (name, shown, LABELS.get(phase, phase)))
            body.append(f"<tr{style}>{names}<td>{summary.count:,}</td>{cells}</tr>")
            before = state
    heads = "".join(f"<th>{column}</th>" for column in ("region", "connection", "phase", "count", *COLUMNS))
    return f"<table class='wide states'><thead><tr>{heads}</tr></thead>{''.join(body)}</table>"


def _failures(result: Result) -> str:
    parts = []
    for region in result.regions:
        for failure in region.failures:
            examples = "".join(f"<li>{escape(example)}</li>" for example in failure.examples)
            title = f"{region.name}: {failure.kind}, {failure.count:,} times"
            parts.append(f"<h3>{escape(title)}</h3><ul>{examples}</ul><p>{escape(failure.advice)}</p>")
    statuses = [
        f"{region.name}: " + (", ".join(f"{s}: {n:,}" for s, n in region.statuses.items()) or "none")
        for region in result.regions
    ]
    head = f"<section><h2>Answers and failures</h2><p class='note'>{escape(' · '.join(statuses))}</p>"
    return f"{head}{''.join(parts)}</section>"


def _generator(result: Result) -> str:
    g = result.generator
    facts = []
    if g.lag is not None:
        facts.append(
            ("started late by", f"{g.lag.p50_ms:.3f} ms p50, {g.lag.p99_ms:.3f} ms p99, {g.lag.max_ms:.1f} ms at most")
        )
    facts.append(("later than 1 ms", f"{g.late_share:.2%} of requests"))
    facts.append(("CPU", f"{g.cpu_us_per_request:.0f} µs a request, {g.cpu_share:.0%} of a core"))
    if g.overhead_p50_ms is not None and g.overhead_p99_ms is not None:
        facts.append(
            (
                "own share of a latency",
                f"at most {g.overhead_p50_ms:.3f} ms p50, {g.overhead_p99_ms:.3f} ms p99; not subtracted",
            )
        )
    return "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)


def _section(title: str, note: str, svg: str, more: str = "") -> str:
    return f"<section><h2>{title}</h2><p class='note'>{escape(note)}</p><div class='plot'>{svg}</div>{more}</section>"


def _colour(i: int) -> int:
    return i % plots.SERIES_COLOURS


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_MAX else name[: _LABEL_MAX - 1] + "…"


def _scale(scale: Scale) -> dict[str, float | bool]:
    return {"low": scale.low, "high": scale.high, "start": scale.start, "end": scale.end, "log": scale.log}
