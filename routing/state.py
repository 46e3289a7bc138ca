"""What is known of one region and of one endpoint right now, and how attempts on them end.

Attributes that every request touches are plain slots, written by `balancer` and `ledger`; derived ones (`cost`,
`weight`, `limit`, `late_after` …) are recomputed on ticks and on changes of state (`region`, `hedge`, `choice`), and
only read in between. The two know each other: a region its endpoints, an endpoint its region.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from .drain import DrainState, RegionHealth
from .latency import PeakEwma, RttFloor, SlidingCounts
from .outlier import Outlier, OutlierState

if TYPE_CHECKING:
    from .model import Endpoint, Region, Upstream

TAIL: Final = 0.03
"""A region's tail is the mean of its slowest 3 % of answers: what makes a region worth leaving for one that is
farther away.
"""

UNKNOWN_S: Final = 1.0
"""The cost of a region whose path was never measured; known ones are nearer, and the configuration's order decides
among unknown ones.
"""

PATIENCE: Final = 4.0
"""A region that never answered before its hedges gets this much more time with every one that it loses."""

SHARE_ALPHA: Final = 0.1
MOST: Final = 0.5
UNLIMITED: Final = 1 << 60

HEADROOM_MIN: Final = 0.05
SLOW_STEP: Final = 0.07
SLOW_PER_S: Final = 0.35
SHED_STEP: Final = 0.15
SHED_PER_S: Final = 0.70
"""By how much an answer, and at most how much of them in a second, lowers a region's headroom: late ones, and 503s."""

TRIAL_LOAD_S: Final = 1e9
"""The load of an endpoint on trial that has its one attempt already: only where there is nothing else."""


class Outcome(Enum):
    """How an attempt ended."""

    OK = "ok"
    ERROR_STATUS = "error_status"  # the origin answered with a 5xx
    CONNECT_FAILED = "connect_failed"
    HANDSHAKE_FAILED = "handshake_failed"
    RESET = "reset"
    TIMEOUT = "timeout"
    HEDGE_LOST = "hedge_lost"  # another attempt answered first: it took at least `elapsed`
    CANCELLED = "cancelled"  # the client left: no verdict, but it took at least `elapsed`
    REFUSED_STREAM = "refused_stream"  # not processed, the peer said so
    NEUTRAL = "neutral"  # the client's or the proxy's own doing: it says nothing about the endpoint, not even how slow


class RegionState:
    """One region. Times are seconds, shares fractions of one."""

    __slots__ = (
        "answer_rate",
        "answers",
        "asked",
        "asked_since",
        "baseline",
        "busy",
        "busy_since",
        "closeness",
        "cost",
        "counts",
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
        "late_share",
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
        "slow_after",
        "slow_share",
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
        self.busy = 0.0  # how many usually wait for an answer
        self.busy_since = now
        self.last_good = now
        self.asked = 0  # requests that came since the last answer, the first of them at `asked_since`
        self.asked_since = now
        self.slow_share = 0.0  # of the last answers: `note_elapsed`
        self.late_share = 0.0
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
        self.slow_after = UNKNOWN_S
        self.hedge_service = (
            0.0  # what hedges took here beyond the floor, at least: late requests may be slow everywhere
        )
        self.hedge_after = 0.0  # before this a hedge would not pay

    @property
    def state(self) -> DrainState:
        """Its drain's: what share of requests it may take at all."""
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
        return bool(self.survivors) and self.late_share > MOST

    @property
    def likely(self) -> float:
        """What a further attempt of a late request will probably take here: a bad tail rarely strikes twice."""
        return self.path + self.service + self.tail * self.excess if self.known else UNKNOWN_S

    def admission(self, now: float) -> float:
        """The share it may take of what it would get: by its state, and by how full it is."""
        return 0.0 if self.stranded else self.health.admission(now) * self.headroom * self.slack

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
        """Whether answers stopped coming: four times the usual gap has passed since the last one, and requests wait
        that came after it. (Older ones may be long polls.)
        """
        since = now - max(self.last_good, self.busy_since + self.expected)
        return self.in_flight > self.held and self.asked > 0 and since * self.answer_rate > 4.0

    def note_elapsed(self, elapsed: float) -> None:
        """Follow how many of the last answers were slow, and late: shares, and no averages of what they took, because
        one long poll in ten is a tenth of a share and a hundred times an average.
        """
        self.slow_share += ((1.0 if elapsed > self.slow_after else 0.0) - self.slow_share) * SHARE_ALPHA
        self.late_share += ((1.0 if elapsed > self.late_after else 0.0) - self.late_share) * SHARE_ALPHA

    def tell_answers(self) -> None:
        """Answers are counted here, cheaply, and told to the state machine before it judges."""
        if self.answers > self.told:
            self.health.goods(self.answers - self.told, self.last_good)
            self.told = self.answers

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

    def forget_tail(self, now: float) -> None:
        """It comes back from a drain: what was learnt of its tail is about the fault."""
        self.counts = SlidingCounts(now)
        self.tail = 0.0
        self.slow_share = self.late_share = 0.0
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


class EndpointState:
    """One endpoint.

    The owner sets `ready` (warm connections that could take a request at once; for a second attempt on the same
    endpoint: connections other than the first one's).
    """

    __slots__ = (
        "departed",
        "endpoint",
        "floor",
        "held",
        "in_flight",
        "index",
        "key",
        "last_good",
        "not_before",
        "outlier",
        "probe_at",
        "ready",
        "region",
        "service",
    )

    def __init__(self, endpoint: Endpoint, region: RegionState, index: int, key: int) -> None:
        self.endpoint = endpoint
        self.region = region
        self.index = index
        self.key = key
        self.departed = False  # a reload took it away: how its last attempts end says nothing of its region
        self.in_flight = 0
        self.held = 0  # of them, answered and still open
        self.ready = 0
        self.floor = RttFloor()
        self.service = PeakEwma()
        self.outlier = Outlier()
        self.last_good = 0.0
        self.probe_at = 0.0
        self.not_before = 0.0  # a `retry-after` of its: no second attempts until then

    def load(self, now: float) -> float:
        """Latency times requests in flight, in seconds: what two choices compare."""
        load = (self.floor.value + self.service.read(now)) * (self.in_flight + 1)
        if self.ready < 1:
            load += 2 * self.floor.value
        if self.outlier.state is OutlierState.HALF_OPEN and self.in_flight:
            load += TRIAL_LOAD_S  # one trial at a time
        return load

    @property
    def speaks_for_region(self) -> bool:
        """Whether what goes wrong here says anything about the region: not once it is ejected, unless all are."""
        return self.outlier.state is not OutlierState.EJECTED or self.region.stranded

    @property
    def ejected_until(self) -> float:
        """When its ejection ends at the earliest; 0.0 while it is in use."""
        return self.outlier.until if self.outlier.state is OutlierState.EJECTED else 0.0

    def __repr__(self) -> str:
        return (
            f"<EndpointState {self.endpoint} in {self.region.name}: {self.in_flight} in flight, {self.ready} ready, "
            f"rtt {self.floor.value * 1e3:.1f} ms, {self.outlier.state.name.lower()}>"
        )
