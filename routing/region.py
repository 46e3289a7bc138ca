"""What is known of one region right now: where it is, how slow its tail is, how full it is.

Attributes that every request touches are plain slots, written by `balancer`; derived ones (`cost`, `weight`,
`limit`, `late_after` …) are recomputed on ticks and on changes of state, and only read in between.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from .drain import DrainState, RegionHealth
from .latency import SlidingCounts, tail_share
from .outlier import OutlierState, ejectable

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Drain, Region, Upstream
    from .state import EndpointState

TAIL: Final = 0.03
"""A region's tail is the mean of its slowest 3 % of answers: what makes a region worth leaving for one that is
farther away.
"""

TAIL_TAU_S: Final = 15.0
"""How slowly a bad tail is forgotten; it is learnt at once."""

SERVICE_RISE_S: Final = 20.0
SERVICE_FALL_S: Final = 8.0
"""Costs follow service times slowly: a queue that our own requests made is answered by headroom, or fleets would
swing between regions.
"""

BASELINE_RISE_S: Final = 60.0
BASELINE_FALL_S: Final = 5.0
UNKNOWN_S: Final = 1.0
"""The cost of a region whose path was never measured; known ones are nearer, and the configuration's order decides
among unknown ones.
"""

WELL_S: Final = 30.0

FEW: Final = 3
USUAL: Final = 2.0
"""Of a region's first answers, or its few, the median of `FEW` or more times this is usual, until a percentile says
more.
"""

PATIENCE: Final = 4.0
"""A region that never answered before its hedges gets this much more time with every one that it loses."""

MEDIAN_MIN: Final = 10
QUANTILES_MIN: Final = 30

INFLATED: Final = 1.3
CROWD: Final = 1.5
CROWD_MIN: Final = 4
CROWD_UNSHOWN: Final = 16
"""A region that never answered may be slow, or dead: so many may wait there to find out."""
UNLIMITED: Final = 1 << 60

HEADROOM_MIN: Final = 0.05
HEADROOM_RISE_PER_S: Final = 0.05
SLOW_STEP, SLOW_PER_S = 0.07, 0.35
SHED_STEP, SHED_PER_S = 0.15, 0.70
"""By how much an answer, and at most how much of them in a second, lowers a region's headroom: late ones, and 503s."""


class RegionState:
    """One region. Times are seconds, shares fractions of one."""

    __slots__ = (
        "answer_rate",
        "answers",
        "baseline",
        "busy_since",
        "closeness",
        "cost",
        "counts",
        "elapsed",
        "endpoints",
        "excess",
        "headroom",
        "health",
        "hedge_after",
        "hedge_service",
        "held",
        "in_flight",
        "index",
        "key",
        "last_good",
        "late_after",
        "limit",
        "max_in_flight",
        "name",
        "p50",
        "p95",
        "p95_well",
        "p95_well_at",
        "p99",
        "path",
        "patience",
        "region",
        "service",
        "service_known_at",
        "slack",
        "standby",
        "stranded",
        "survivors",
        "tail",
        "told",
        "usable",
        "usual",
        "weight",
    )

    def __init__(self, region: Region, index: int, upstream: Upstream, now: float, key: int) -> None:
        self.region = region
        self.name = region.name
        self.index = index
        self.key = key
        self.standby = region.standby
        self.max_in_flight = region.max_in_flight or UNLIMITED
        self.endpoints: list[EndpointState] = []
        self.usable: list[EndpointState] = []
        self.stranded = False  # every endpoint is ejected
        self.health = RegionHealth(region.name, upstream.drain, now)
        self.counts = SlidingCounts(now)
        # Touched by every request.
        self.in_flight = 0
        self.held = 0  # of them, answered and still open (`Balancer.established`)
        self.limit = self.max_in_flight
        self.busy_since = now
        self.last_good = now
        self.elapsed = 0.0  # a quick average of the last answers' whole time
        self.answers = 0  # since the last tick
        self.told = 0  # how many of them its health knows of
        # Derived.
        self.path = 0.0  # 0: unknown
        self.service = 0.0
        self.service_known_at = -1e9
        self.baseline = 0.0  # the service time that is normal here
        self.p50 = self.p95 = self.p99 = 0.0
        self.p95_well = 0.0  # the last p95 of better days
        self.p95_well_at = -inf
        self.usual = 0.0  # by its own answers, beyond the floor; 0: it has not shown yet
        self.patience = 0.0  # what hedges wait beyond the floor until then
        self.survivors: list[tuple[float, float]] = []
        self.tail = 0.0
        self.excess = 0.0  # what a badly served request takes beyond a normal one
        self.cost = UNKNOWN_S * (1 + index)
        self.closeness = 0.0
        self.weight = 0.0  # the share of requests it gets
        self.headroom = 1.0  # falls with 503s
        self.slack = 1.0  # falls with late answers
        self.answer_rate = 0.0
        self.late_after = UNKNOWN_S
        self.hedge_service = (
            0.0  # what hedges took here beyond the floor, at least: late requests may be slow everywhere
        )
        self.hedge_after = 0.0  # before this a hedge would not pay

    @property
    def state(self) -> DrainState:
        """Where its drain stands."""
        return self.health.state

    @property
    def known(self) -> bool:
        """Whether anything was ever measured."""
        return self.path > 0.0 or self.service_known_at >= 0.0

    @property
    def expected(self) -> float:
        """What an answer normally takes in all."""
        return self.path + self.baseline

    @property
    def crowded(self) -> bool:
        """Whether its usual answer is late."""
        return bool(self.survivors) and self.elapsed > self.late_after

    @property
    def likely(self) -> float:
        """What a further attempt of a late request will probably take here: a bad tail rarely strikes twice."""
        return self.path + self.service + self.tail * self.excess if self.known else UNKNOWN_S

    def admission(self, now: float) -> float:
        """The share it may take of what it would get: by its state, and by how full it is."""
        return 0.0 if self.stranded else self.health.admission(now) * self.headroom * self.slack

    def review_endpoints(self, now: float, seconds: float, draw: Callable[[], float]) -> None:
        """Eject and readmit endpoints. `draw` gives numbers in [0, 1) for the jitter of holds."""
        ejected = sum(endpoint.outlier.state is OutlierState.EJECTED for endpoint in self.endpoints)
        for endpoint in self.endpoints:
            outlier = endpoint.outlier
            outlier.tick(now, seconds)
            if outlier.state is OutlierState.EJECTED:
                continue
            evidence = outlier.probe_verdict()
            if not evidence and ejectable(len(self.endpoints), ejected):
                evidence = outlier.verdict()
            if evidence:
                outlier.eject(now, evidence, draw())
                ejected += 1
        self.refresh_usable()

    def refresh_usable(self) -> None:
        """The endpoints that requests may go to; all of them where all are ejected and no other region is left."""
        usable = [endpoint for endpoint in self.endpoints if endpoint.outlier.state is not OutlierState.EJECTED]
        self.stranded = not usable
        self.usable = usable or list(self.endpoints)

    @property
    def probes_row(self) -> int:
        """Good probes in a row at the better half of the endpoints in use. A dead one is ejected and not asked; one
        that answers now and then holds nobody up.
        """
        if self.stranded:
            return 0
        rows = sorted((endpoint.outlier.probes_good for endpoint in self.usable), reverse=True)
        return rows[(len(rows) - 1) // 2]

    def forget_probes(self) -> None:
        """It was drained: what was good before says nothing."""
        for endpoint in self.endpoints:
            endpoint.outlier.probes_good = 0

    def quiet(self, now: float) -> bool:
        """Whether answers stopped coming: requests are open, and four times the usual gap has passed."""
        since = now - max(self.last_good, self.busy_since + self.expected)
        return self.in_flight > self.held and since * self.answer_rate > 4.0

    def refresh(self, now: float, seconds: float, assumed: float, rotated: bool) -> None:
        """Recompute what is derived, `seconds` after the last time.

        `assumed`: service time where nothing is known of its own.
        """
        floors = [endpoint.floor.value for endpoint in self.usable if endpoint.floor.value]
        if floors:
            self.path = sum(floors) / len(floors)
        self._refresh_service(now, seconds, assumed)
        if rotated:
            totals = self.counts.last()
            self.p50, self.p95, self.p99 = (totals.quantile(share) for share in (0.5, 0.95, 0.99))
            self.survivors = totals.survivors() if totals.answered >= QUANTILES_MIN else []
            if totals.answered >= FEW:
                self.usual = USUAL * self.p50
        # Where even usual answers are late it is no tail but a queue, or a fault that the drain sees.
        found = 0.0 if self.crowded else min(tail_share(self.counts.shares()), 1.5 * TAIL)
        if found >= self.tail:
            self.tail = found
        else:
            self.tail += (found - self.tail) * seconds / (seconds + TAIL_TAU_S)
        if self.known:
            self.cost = self.path + self.service + min(1.0, self.tail / TAIL) * self.excess
        self.headroom = min(1.0, self.headroom + HEADROOM_RISE_PER_S * seconds)
        self.slack = min(1.0, self.slack + HEADROOM_RISE_PER_S * seconds)
        self.answer_rate += (self.answers / seconds - self.answer_rate) * seconds / (seconds + 1.0) if seconds else 0.0
        self.tell_answers()
        self.answers = self.told = 0

    def tell_answers(self) -> None:
        """Answers are counted here, cheaply, and told to the state machine before it judges."""
        if self.answers > self.told:
            self.health.goods(self.answers - self.told, self.last_good)
            self.told = self.answers

    def _refresh_service(self, now: float, seconds: float, assumed: float) -> None:
        """The median of the last seconds, approached smoothly; where none is known, slowly back to what is assumed."""
        for width in (2, 4, 12):
            totals = self.counts.last(width)
            if totals.answered >= MEDIAN_MIN:
                median = totals.quantile(0.5)
                if self.service_known_at < 0:
                    self.service = self.baseline = median
                self.service_known_at = now
                tau = SERVICE_RISE_S if median > self.service else SERVICE_FALL_S
                self.service += (median - self.service) * seconds / (seconds + tau)
                tau = BASELINE_RISE_S if self.service > self.baseline else BASELINE_FALL_S
                self.baseline += (self.service - self.baseline) * seconds / (seconds + tau)
                return
        tau = BASELINE_RISE_S if self.service_known_at >= 0 else SERVICE_FALL_S
        self.service += (assumed - self.service) * seconds / (seconds + tau)
        if self.service_known_at < 0:
            self.baseline = self.service

    def be_patient(self, service: float) -> None:
        """It lost to a hedge after so long, and nobody knows yet what is usual here: let it show it."""
        self.patience = max(self.patience, PATIENCE * service)

    def shed(self) -> None:
        """It answered 503: its share shrinks a little."""
        self.headroom = max(HEADROOM_MIN, self.headroom * (1.0 - self._step(SHED_STEP, SHED_PER_S)))

    def slow_down(self) -> None:
        """It answered late: others that are not slow take a little more of its share."""
        self.slack = max(HEADROOM_MIN, self.slack * (1.0 - self._step(SLOW_STEP, SLOW_PER_S)))

    def _step(self, step: float, per_s: float) -> float:
        """Every answer counts at once, as in TCP, because a fleet's loop is stable only while it is short."""
        return step if step * self.answer_rate < per_s else per_s / self.answer_rate

    def refresh_limit(self, now: float, arrivals: float) -> None:
        """Requests in flight first, latency second.

        A region that slows down under its load keeps only what it normally carries. `arrivals`: requests per second
        at the upstream. Without slowness there is no limit but the configured one: bursts pass.
        """
        self.limit = self.max_in_flight
        if not self.known:
            return
        expected = self.expected
        if self.service_known_at < 0.0:  # what others take is no measure of it
            expected = max(expected, self.path + self.usual)
        crowd = max(CROWD_MIN if self.usual else CROWD_UNSHOWN, int(CROWD * arrivals * expected))
        if self.in_flight - self.held < crowd // 2:
            return
        stalled = now - max(self.last_good, self.busy_since) > CROWD * expected + 0.01
        if stalled or self.elapsed > INFLATED * expected + 0.005:
            self.limit = min(self.limit, crowd + self.held)

    def well(self, now: float) -> bool:
        """Whether its answers say what is normal. What lasts longer than `WELL_S` has become normal."""
        return (
            self.state is DrainState.HEALTHY
            and self.tail < TAIL / 2
            and bool(self.survivors)
            and (not self.crowded or now - self.p95_well_at >= WELL_S)
        )

    def adopt(self, before: RegionState, drain: Drain) -> None:
        """Take over what was learnt before a reload, and the endpoints that stay, with what is in flight on them."""
        self.health, self.counts = before.health, before.counts
        self.health.settings = drain
        for name in _LEARNT:
            setattr(self, name, getattr(before, name))
        known = {endpoint.endpoint: endpoint for endpoint in before.endpoints}
        for index, endpoint in enumerate(self.endpoints):
            kept = known.get(endpoint.endpoint)
            if kept is not None:
                kept.region, kept.index = self, index
                self.endpoints[index] = kept
        self.refresh_usable()
        self.in_flight = sum(endpoint.in_flight for endpoint in self.endpoints)
        self.held = sum(endpoint.held for endpoint in self.endpoints)

    def forget_tail(self, now: float) -> None:
        """It comes back from a drain: what was learnt of its tail is about the fault."""
        self.counts = SlidingCounts(now)
        self.tail = 0.0
        self.elapsed = 0.0
        self.headroom = self.slack = 1.0

    def forget_usual(self) -> None:
        """It was drained for being late, twice: that may be what it is now. Hedges let it show that."""
        self.usual = 0.0
        self.p95_well_at = -inf
        self.survivors = []

    def __repr__(self) -> str:
        return (
            f"<RegionState {self.name} {self.state.name.lower()}: weight {self.weight:.2f}, "
            f"cost {self.cost * 1e3:.1f} ms, {self.in_flight} in flight>"
        )


_LEARNT: Final = (
    "answer_rate",
    "baseline",
    "busy_since",
    "closeness",
    "cost",
    "elapsed",
    "excess",
    "headroom",
    "hedge_after",
    "last_good",
    "late_after",
    "p50",
    "p95",
    "p95_well",
    "p95_well_at",
    "p99",
    "path",
    "patience",
    "service",
    "service_known_at",
    "slack",
    "survivors",
    "tail",
    "usual",
)
