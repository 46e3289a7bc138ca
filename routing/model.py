"""The values that routing decides over: what the configuration says, frozen.

Durations are seconds, shares are fractions of one (5% is 0.05). Nothing here changes while it is in use; what
changes (latencies, requests in flight, a region's state) lives in `balancer`, `latency`, `outlier` and `drain`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that serves an upstream in a region: a host (name or IP literal) and port, or a Unix socket's
    `path`.
    """

    host: str
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Region:
    """A region's endpoints and how much it may carry. `standby`: only when the others can't take it."""

    name: str
    endpoints: tuple[Endpoint, ...]
    weight: float = 1.0
    standby: bool = False
    max_in_flight: int | None = None


class Policy(Enum):
    """How a region is chosen among the healthy ones."""

    LATENCY = "latency"
    WEIGHTED = "weighted"
    ORDERED = "ordered"


@dataclass(frozen=True, slots=True)
class Hedge:
    """A second try while the first is still open: at most `budget` of requests, after the healthy regions' p95
    clamped to the delays.
    """

    budget: float = 0.05
    min_delay: float = 0.005
    max_delay: float = 1.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Further tries after a failed one.

    `attempts` counts those beyond the first; `idempotency_key`: that field makes any method safe.
    """

    attempts: int = 2
    budget: float = 0.20
    idempotency_key: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each phase of a request; `total` covers all tries."""

    connect: float = 2.0
    response: float = 15.0
    idle: float = 60.0
    total: float = 60.0


@dataclass(frozen=True, slots=True)
class Drain:
    """The region state machine's settings: failures in a row before a drain, seconds it holds, seconds the ramp back
    takes.
    """

    after: int = 3
    hold: float = 10.0
    ramp: float = 30.0
    max_drained: float = 0.5


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What keeps a client on one endpoint: `kind` is header, cookie or source; `name` the header's or cookie's."""

    kind: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A named service and the regions that serve it, nearest configured first (that order is `ordered`'s)."""

    name: str
    regions: tuple[Region, ...]
    policy: Policy = Policy.LATENCY
    spread: float = 0.05
    hedge: Hedge | None = field(default_factory=Hedge)
    retry: Retry | None = field(default_factory=Retry)
    timeouts: Timeouts = field(default_factory=Timeouts)
    drain: Drain = field(default_factory=Drain)
    session_key: SessionKey | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """What a request must look like: host (exact, or `*.suffix`), path prefix (or exact, where `exact`), methods,
    header values.

    An empty string, tuple or None means any.
    """

    host: str = ""
    path: str = "/"
    exact: bool = False
    methods: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Where a matching request goes, and what it overrides. `hedge`/`retry` None: off.

    All values are effective ones (inherited already). `upgrades` (lower case) and `connect`: which tunnels it takes.
    """

    match: Match
    upstream: str
    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: Retry | None = field(default_factory=Retry)
    hedge: Hedge | None = field(default_factory=Hedge)
    early_data: bool = False
    upgrades: tuple[bytes, ...] = (b"websocket",)
    connect: bool = False
