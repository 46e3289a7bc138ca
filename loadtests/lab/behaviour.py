"""How a programmable origin treats requests: how long it takes, and what it does wrong. Pure.

For each request, in this order: `reset` closes its connection with a RST; `hang` never answers it; otherwise it is
answered after its service time, by `status` where that fault strikes. The service time is `constant`, `uniform`
(`service_ms` plus or minus `service_spread` of it) or `lognormal` (`service_ms` is the median, `service_spread` the
sigma), and `late_share` of requests take `late_ms` longer.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

_SERVICES = ("constant", "uniform", "lognormal")


class Outcome(Enum):
    """What becomes of a request."""

    ANSWER = "answer"
    HANG = "hang"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """An origin's settings.

    Times in milliseconds unless they end in `_s`; shares of one; a status of 0 means the right one.
    """

    service: str = "constant"
    service_ms: float = 0.0
    service_spread: float = 0.5
    late_share: float = 0.0
    late_ms: float = 1000.0
    status: int = 0
    status_share: float = 1.0
    retry_after_s: int = 0
    health_status: int = 0  # /healthz only: an origin that works and says it does not, or the other way round
    hang: bool = False
    hang_share: float = 1.0
    reset: bool = False
    reset_share: float = 1.0
    refuse: bool = False  # the listening socket is closed; open connections go on
    close_idle_s: float = 0.0
    body_bytes: int = 64  # of the answer to paths that say nothing else

    def __post_init__(self) -> None:
        if self.service not in _SERVICES:
            raise ValueError(f"service is one of {', '.join(_SERVICES)}, not {self.service!r}")
        for name in ("late_share", "status_share", "hang_share", "reset_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        for name in ("status", "health_status"):
            if getattr(self, name) and not 200 <= getattr(self, name) <= 599:
                raise ValueError(f"{name} is 0 or between 200 and 599, not {getattr(self, name)}")

    def changed(self, **values: Any) -> Behaviour:
        """The same with some settings replaced. Raises ValueError on what makes no sense."""
        unknown = values.keys() - SETTING_NAMES
        if unknown:
            raise ValueError(f"no such setting: {', '.join(sorted(unknown))} (there are {', '.join(SETTING_NAMES)})")
        return replace(self, **values)

    def values(self) -> dict[str, Any]:
        """All settings by name."""
        return {name: getattr(self, name) for name in SETTING_NAMES}

    @property
    def instant(self) -> bool:
        """Every request is answered well and at once: `decide` need not be asked."""
        return not (self.service_ms or self.late_share or self.status or self.health_status or self.hang or self.reset)

    def decide(self, randomness: random.Random, *, health: bool) -> tuple[Outcome, float, int]:
        """A request's (outcome, seconds until its answer, status or 0). `health`: it asks for /healthz."""
        chance = randomness.random
        if self.reset and chance() < self.reset_share:
            return Outcome.RESET, 0.0, 0
        if self.hang and chance() < self.hang_share:
            return Outcome.HANG, 0.0, 0
        milliseconds = self.service_ms
        if self.service == "uniform":
            milliseconds *= randomness.uniform(1 - self.service_spread, 1 + self.service_spread)
        elif self.service == "lognormal" and milliseconds:
            milliseconds = randomness.lognormvariate(math.log(milliseconds), self.service_spread)
        if self.late_share and chance() < self.late_share:
            milliseconds += self.late_ms
        status = self.status if self.status and chance() < self.status_share else 0
        if health and self.health_status:
            status = self.health_status
        return Outcome.ANSWER, max(0.0, milliseconds) / 1e3, status


SETTING_NAMES = tuple(field.name for field in fields(Behaviour))
