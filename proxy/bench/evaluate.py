"""From what a run recorded to its result: summaries, warnings, and whether the generator kept up."""

from __future__ import annotations

from collections import Counter
from typing import Final

from proxy.errors import Kind

from .engine import Outcome
from .plan import Plan
from .record import PERCENTILES, PHASES, Histogram, Interval, Recorder
from .result import (
    AbResult,
    DifferenceResult,
    Failure,
    GeneratorResult,
    IntervalResult,
    PlanResult,
    RegionResult,
    Result,
    Summary,
    program_version,
)
from .stats import CONFIDENCE, Difference, differences

# The generator lags where its lateness would be seen in the figures: half of the requests by a tenth of a millisecond;
# or the slowest hundredth by a millisecond and by a twentieth of the latencies measured; or where it ran out of CPU.
_LAG_P50_US: Final = 100
_LAG_P99_US: Final = 1000
_LAG_P99_SHARE: Final = 0.05
_CPU_SHARE: Final = 0.9

_ADVICE: Final = {
    Kind.DNS: "check the name, and that this machine's resolver knows it",
    Kind.REFUSED: "nothing listens there: check host and port, and that the server runs",
    Kind.UNREACHABLE: "check the address, the route to it and firewalls in between",
    Kind.CONNECT_TIMEOUT: "the address does not answer, or the handshake hangs: check firewalls, or raise --timeout",
    Kind.RESPONSE_TIMEOUT: "counted in the latencies with the time waited; raise --timeout to see how long they take",
    Kind.CERTIFICATE: "give the issuer by --ca FILE, or skip verification by --insecure",
    Kind.TLS: "check that the port speaks TLS, and which versions and client certificates it asks for",
    Kind.TERMINATED: "the server, or something before it, closes connections: see its log and its time-outs",
    Kind.BAD_RESPONSE: "check that the port speaks this version of HTTP (--h1, --h2) and the URL's scheme",
}


def evaluate(outcome: Outcome) -> Result:
    """Everything that a report shows."""
    plan = outcome.plan
    pairs = zip(plan.targets, outcome.recorders, outcome.connections, strict=True)
    regions = [_region(outcome, t.name, t.url, recorder, opened) for t, recorder, opened in pairs]
    generator = _generator(outcome)
    return Result(
        version=program_version(),
        started=outcome.started.isoformat(timespec="seconds"),
        interrupted=outcome.interrupted,
        elapsed_s=round(outcome.elapsed_s, 3),
        measured_s=round(outcome.measured_s, 3),
        interval_s=plan.interval_s,
        plan=_plan(plan),
        generator=generator,
        warnings=_warnings(outcome, generator, regions),
        regions=regions,
        ab=_ab(outcome) if plan.ab else None,
    )


def summary(histogram: Histogram) -> Summary | None:
    """A histogram's figures; None where it is empty."""
    if not histogram.counts:
        return None
    p50, p90, p99, p99_9 = (us / 1000 for us in histogram.percentiles(PERCENTILES))
    return Summary(
        count=histogram.count,
        mean_ms=round(histogram.mean_us / 1000, 4),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        **{"p99.9_ms": p99_9},
        max_ms=histogram.highest_us / 1000,
    )


def _plan(plan: Plan) -> PlanResult:
    return PlanResult(
        rate=plan.rate,
        duration_s=plan.duration_s,
        warmup_s=plan.warmup_s,
        timeout_s=plan.timeout_s,
        protocol=plan.protocol,
        connections=plan.connections,
        connection_requests=plan.connection_requests,
        method=plan.method,
        poisson=plan.poisson,
        body_bytes=len(plan.body),
        resume=plan.resume,
    )


def _region(outcome: Outcome, name: str, url: str, recorder: Recorder, opened: int) -> RegionResult:
    merged = {phase: recorder.phase(phase) for phase in PHASES}
    failed = sum(recorder.failures.values())
    server_errors = sum(count for status, count in recorder.statuses.items() if status >= 500)
    ended = recorder.answered + failed
    states = {}
    for state, phases in recorder.phases.items():
        summaries = _summaries(phases)
        if summaries:
            states[state] = summaries
    return RegionResult(
        name=name,
        url=url,
        requests=recorder.started,
        answered=recorder.answered,
        failed=failed,
        unfinished=recorder.unfinished,
        rate=round(recorder.answered / outcome.measured_s, 2) if outcome.measured_s else 0.0,
        error_share=(failed + server_errors) / ended if ended else 0.0,
        statuses={str(status): count for status, count in sorted(recorder.statuses.items())},
        failures=_failures(recorder),
        connections_opened=opened,
        bytes_received=recorder.bytes_received,
        tls_versions=dict(recorder.tls_versions),
        phases=_summaries(merged),
        states=states,
        histogram=merged["total"].encode(),
        service_histogram=merged["service"].encode(),
        intervals=_intervals(outcome, recorder.intervals),
    )


def _summaries(histograms: dict[str, Histogram]) -> dict[str, Summary]:
    found = ((phase, summary(histogram)) for phase, histogram in histograms.items())
    return {phase: figures for phase, figures in found if figures is not None}


def _intervals(outcome: Outcome, intervals: list[Interval]) -> list[IntervalResult]:
    width_s = outcome.plan.interval_s
    reached = [i for i in range(len(intervals)) if i * width_s < outcome.measured_s]
    return [
        IntervalResult(
            start_s=round(i * width_s, 4),
            count=intervals[i].total.count,
            failed=intervals[i].failed,
            total=summary(intervals[i].total),
            histogram=intervals[i].total.encode() if intervals[i].total.counts else "",
        )
        for i in reached
    ]


def _failures(recorder: Recorder) -> list[Failure]:
    return [
        Failure(
            kind=kind.label,
            count=count,
            examples=list(recorder.details.get(kind, Counter())),
            advice=_ADVICE.get(kind, ""),
        )
        for kind, count in recorder.failures.most_common()
    ]


def _generator(outcome: Outcome) -> GeneratorResult:
    lag = outcome.lag
    p50_us, p99_us = lag.percentiles((50, 99))
    total = Histogram()
    for recorder in outcome.recorders:
        total.merge(recorder.phase("total"))
    cpu_share = outcome.cpu_s / outcome.elapsed_s if outcome.elapsed_s else 0.0
    visible_us = max(_LAG_P99_US, _LAG_P99_SHARE * total.percentile(99))
    requests = sum(recorder.started + recorder.warmup for recorder in outcome.recorders)
    overhead = outcome.overhead
    return GeneratorResult(
        lagging=p50_us > _LAG_P50_US or p99_us > visible_us or cpu_share > _CPU_SHARE,
        lag=summary(lag),
        late_share=outcome.late / lag.count if lag.counts else 0.0,
        cpu_share=round(cpu_share, 4),
        cpu_us_per_request=round(outcome.cpu_s / requests * 1e6, 1) if requests else 0.0,
        overhead_p50_ms=overhead.p50_us / 1000 if overhead else None,
        overhead_p99_ms=overhead.p99_us / 1000 if overhead else None,
    )


def _warnings(outcome: Outcome, generator: GeneratorResult, regions: list[RegionResult]) -> list[str]:
    plan = outcome.plan
    found = []
    lag = generator.lag
    if generator.lagging and lag is not None:
        found.append(
            f"THE GENERATOR LAGS: it started requests {lag.p50_ms:.2f} ms (p50) and {lag.p99_ms:.2f} ms"
            f" (p99) late, {generator.late_share:.1%} of them by over 1 ms, at {generator.cpu_share:.0%} of a core."
            " The latencies hold this program's own delay: lower --rate, take --h1, or give it a free core."
        )
    if outcome.interrupted:
        found.append(
            f"Interrupted after {outcome.measured_s:.1f} of {plan.duration_s:g} s: these are the figures until then."
        )
    if plan.ab and not all("total" in region.phases for region in regions):
        found.append("A/B: there is no difference to give, because one side answered nothing.")
    for region in regions:
        found.extend(_region_warnings(region, generator, plan))
    return found


def _region_warnings(region: RegionResult, generator: GeneratorResult, plan: Plan) -> list[str]:
    found = []
    total, queue = region.phases.get("total"), region.phases.get("queue")
    if region.requests and not region.answered and not region.unfinished:
        found.append(f"{region.name}: not one request was answered.")
    elif region.failed:
        found.append(f"{region.name}: {region.failed} of {region.requests} requests failed.")
    refused = sum(count for status, count in region.statuses.items() if int(status) >= 400)
    if refused:
        codes = ", ".join(f"{status}: {count}" for status, count in region.statuses.items() if int(status) >= 400)
        found.append(f"{region.name}: {refused} answers were errors ({codes}), and their latencies are in the figures.")
    if total and queue and not generator.lagging:  # a lagging generator makes queues of its own
        waited_ms = queue.p99_ms - (generator.lag.p99_ms if generator.lag else 0.0)
        if waited_ms > 1 and waited_ms > 0.1 * total.p99_ms:
            found.append(
                f"{region.name}: requests waited for a connection (p99 {queue.p99_ms:.1f} ms), because all"
                f" {plan.connections} were busy: raise --connections, unless that is what you measure."
            )
    if total and total.count < 1000:
        least = "p99" if total.count < 100 else "p99.9"
        found.append(
            f"{region.name}: {total.count} samples are few: {least} rests on the slowest one alone."
            " Run longer for a firm figure."
        )
    return found


def _ab(outcome: Outcome) -> AbResult:
    a, b = ([interval.total.counts for interval in recorder.intervals] for recorder in outcome.recorders)
    found = differences(a, b, PERCENTILES, paired=True)
    names = [target.name for target in outcome.plan.targets]
    return AbResult(
        a=names[0], b=names[1], confidence=CONFIDENCE, percentiles={f"p{d.percent:g}": difference(d) for d in found}
    )


def difference(found: Difference) -> DifferenceResult:
    """A difference in milliseconds."""
    return DifferenceResult(
        a_ms=found.a_us / 1000,
        b_ms=found.b_us / 1000,
        difference_ms=round(found.us / 1000, 4),
        low_ms=None if found.low_us is None else round(found.low_us / 1000, 4),
        high_ms=None if found.high_us is None else round(found.high_us / 1000, 4),
        certain=found.certain,
    )
