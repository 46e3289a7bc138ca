"""One run: starting every request of the schedule at its instant, whatever became of the others, and ending it.

The hot path is a callback from the pacer (one request object, one write) and one from the socket (parse, record). The
run ends when the schedule has ended and every request has its answer, its failure or its time-out; `stop` (Ctrl-C) ends
it at once.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from typing import Final

from .pacer import Pacer
from .plan import Plan
from .pool import Pool
from .record import Histogram, Recorder
from .request import Request

_SWEEP_S: Final = 0.02  # time-outs are noticed this late at most
_FEED_S: Final = 0.25
_LEAD_S: Final = 0.05  # between the start of the loop and the first slot
_LATE_S: Final = 0.001
_GC_THRESHOLD: Final = 50_000


@dataclass(slots=True)
class Overhead:
    """What this program adds to a request, measured against a server in the same process: a bound from above."""

    requests: int
    p50_us: int
    p99_us: int


@dataclass(slots=True)
class Outcome:
    """What a run saw. Durations in seconds; `lag`: how much later than intended requests were started."""

    plan: Plan
    started: datetime
    recorders: list[Recorder]
    lag: Histogram
    late: int = 0
    elapsed_s: float = 0.0
    measured_s: float = 0.0
    cpu_s: float = 0.0
    interrupted: bool = False
    connections: list[int] = field(default_factory=list)
    overhead: Overhead | None = None


@dataclass(slots=True)
class Snapshot:
    """What a live view is told four times a second. `recent`: new bucket counts of `total`, by target."""

    elapsed_s: float
    in_flight: int
    started: list[int]
    answered: list[int]
    failed: list[int]
    open: list[int]
    queued: list[int]
    recent: list[dict[int, int]]
    lag_p99_us: int
    warming_up: bool


class Engine:
    """Runs one plan on the running loop."""

    def __init__(self, plan: Plan, feed: Callable[[Snapshot], None] | None = None) -> None:
        self._plan = plan
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._interval_count = max(1, ceil(plan.duration_s / plan.interval_s - 1e-9))
        self._recorders = [Recorder(self._interval_count, live=feed is not None) for _ in plan.targets]
        self._pools = [Pool(plan, t, r, self._settled) for t, r in zip(plan.targets, self._recorders, strict=True)]
        self._outcome = Outcome(plan, datetime.now(UTC), self._recorders, Histogram())
        self._recent_lag = Histogram()
        self._pacer = Pacer(self._loop, plan.schedule(), self._fire, self._schedule_ended)
        self._outstanding: deque[tuple[Request, Pool]] = deque()
        self._in_flight = 0
        self._schedule_over = False
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._start = 0.0
        self._measure_from = 0.0

    def __repr__(self) -> str:
        return f"<Engine {self._in_flight} in flight, {self._pools}>"

    async def run(self) -> Outcome:
        """Run to the end, or until `stop`."""
        thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, *thresholds[1:])
        cpu = _cpu_s()
        self._start = time.monotonic() + _LEAD_S
        self._measure_from = self._start + self._plan.warmup_s
        self._pacer.start(self._start)
        timers = [self._loop.call_later(_SWEEP_S, self._sweep)]
        if self._feed is not None:
            self._loop.call_later(_FEED_S, self._report)
        try:
            await self._finished
        finally:
            end = time.monotonic()
            for timer in timers:
                timer.cancel()
            self._pacer.stop()
            self._outcome.connections = [pool.opened_total for pool in self._pools]
            for pool in self._pools:
                pool.close()
            gc.set_threshold(*thresholds)
            gc.unfreeze()
        outcome = self._outcome
        outcome.elapsed_s = max(0.0, end - self._start)
        measured_s = self._plan.duration_s if self._schedule_over else max(0.0, end - self._measure_from)
        outcome.measured_s = min(self._plan.duration_s, measured_s)
        outcome.cpu_s = _cpu_s() - cpu
        for request, pool in self._outstanding:
            if not request.done and request.interval >= 0:
                pool.recorder.unfinished += 1
        await asyncio.sleep(0)  # transports close in the loop's next turn
        return outcome

    def stop(self) -> None:
        """End now; what is still open is counted as unfinished."""
        self._outcome.interrupted = True
        self._pacer.stop()
        self._finish()

    def _fire(self, intended: float, index: int) -> None:
        now = time.monotonic()
        since = intended - self._measure_from
        pool = self._pools[index]
        if since < 0:
            request = Request(intended, -1)
        else:
            request = Request(intended, min(int(since / self._plan.interval_s), self._interval_count - 1))
            pool.recorder.started += 1
            lag_s = now - intended
            self._recent_lag.record(lag_s)
            if lag_s > _LATE_S:
                self._outcome.late += 1
        self._in_flight += 1
        self._outstanding.append((request, pool))
        pool.submit(request, now)

    def _settled(self, request: Request) -> None:
        self._in_flight -= 1
        if self._schedule_over and self._in_flight == 0:
            self._finish()

    def _schedule_ended(self) -> None:
        self._schedule_over = True
        if self._in_flight == 0:
            self._finish()

    def _finish(self) -> None:
        if not self._finished.done():
            self._outcome.lag.merge(self._recent_lag)
            self._finished.set_result(None)

    def _sweep(self) -> None:
        if self._finished.done():
            return
        now = time.monotonic()
        oldest = now - self._plan.timeout_s
        outstanding = self._outstanding
        while outstanding:
            request, pool = outstanding[0]
            if not request.done:
                if request.intended > oldest:
                    break
                pool.time_out(request, now)
            outstanding.popleft()
        self._loop.call_later(_SWEEP_S, self._sweep)

    def _report(self) -> None:
        if self._finished.done() or self._feed is None:
            return
        recent = []
        for recorder in self._recorders:
            recent.append(recorder.recent.counts if recorder.recent is not None else {})
            recorder.recent = Histogram()
        now = time.monotonic()
        self._feed(
            Snapshot(
                elapsed_s=now - self._start,
                in_flight=self._in_flight,
                started=[r.started for r in self._recorders],
                answered=[r.answered for r in self._recorders],
                failed=[sum(r.failures.values()) for r in self._recorders],
                open=[pool.open for pool in self._pools],
                queued=[pool.queued for pool in self._pools],
                recent=recent,
                lag_p99_us=self._recent_lag.percentile(99),
                warming_up=now < self._measure_from,
            )
        )
        self._outcome.lag.merge(self._recent_lag)
        self._recent_lag = Histogram()
        self._loop.call_later(_FEED_S, self._report)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
