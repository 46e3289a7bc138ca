"""What is known of one endpoint right now, and how attempts on it end."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from .latency import PeakEwma, RttFloor
from .outlier import Outlier, OutlierState

if TYPE_CHECKING:
    from .model import Endpoint
    from .region import RegionState

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


class EndpointState:
    """One endpoint.

    The owner sets `ready` (warm connections that could take a request at once; for a second attempt on the same
    endpoint: connections other than the first one's) and may keep what it likes in `pool`.
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
        "pool",
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
        self.pool: Any = None
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
