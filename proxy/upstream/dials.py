"""How dials to one endpoint go, for pools of requests and of L4 links alike: what is under way, what came of it, when
the next one may start by itself, how long what it opened lives.

A failure that says something about the endpoint is told to routing. What refills a pool backs off from `BACKOFF_MIN_S`
to `BACKOFF_MAX_S`; a dial that somebody waits for asks for no leave. It counts and times; it never dials.
"""

from __future__ import annotations

import random
from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError

if TYPE_CHECKING:
    from proxy.net.resolver import SockAddress
    from proxy.observe.metrics import PoolCounters
    from routing.balancer import EndpointState

    from .contract import PoolContext

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
_DOUBLINGS_MAX: Final = 10


class Dials:
    """`first_round`: initial dials still under way (readiness waits for zero); `failures` in a row; `again_at`: no
    refill before then.
    """

    __slots__ = (
        "_addresses",
        "again_at",
        "context",
        "counters",
        "failures",
        "first_round",
        "last_error",
        "target",
        "under_way",
    )

    def __init__(self, context: PoolContext, target: EndpointState, counters: PoolCounters) -> None:
        self.context = context
        self.target = target
        self.counters = counters
        self.under_way = 0
        self.first_round = 0
        self.last_error: ProxyError | None = None
        self.failures = 0
        self.again_at = 0.0
        self._addresses: list[SockAddress] | None = None  # of the endpoint's name, as connections follow it

    def ended(self, first: bool) -> None:
        """A dial is over, whatever came of it. `first`: it was of the first round."""
        self.under_way -= 1
        if first:
            self.first_round -= 1

    def opened(self, handshake: str) -> None:
        """A dial succeeded: "plain", "full", "resumed" or "early"."""
        self.failures = 0
        self.again_at = 0.0
        self.last_error = None
        self.counters.opened[handshake] += 1

    def failed(self, error: ProxyError) -> None:
        """A dial failed."""
        self.last_error = error
        self.counters.dial_failures += 1
        self.back_off()
        if error.blames_endpoint:
            phase = "tls" if error.kind in (Kind.TLS, Kind.CERTIFICATE) else "tcp"
            self.context.balancer.observe_connect(self.target, monotonic(), False, 0.0, phase)
        self.context.on_dial_failed(self.target, error)

    def back_off(self) -> None:
        """Let refilling wait, twice as long each time."""
        self.failures += 1
        delay = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(self.failures - 1, _DOUBLINGS_MAX))
        self.again_at = monotonic() + delay * random.uniform(0.5, 1.0)

    def hosts_if_moved(self, addresses: list[SockAddress] | None) -> set[str] | None:
        """The hosts that the endpoint's name has now, where they are others than at the last call."""
        if addresses is None or addresses is self._addresses:
            return None
        known, self._addresses = self._addresses, addresses
        if known is None or known == addresses:
            return None
        return {address[0] for _, address in addresses}

    def remember(self, addresses: list[SockAddress] | None) -> None:
        """What the endpoint's name had when its first connection was made."""
        if self._addresses is None:
            self._addresses = addresses


def expiry(now: float, max_age_s: float) -> float:
    """When a connection that was opened now is too old: earlier by up to 10 %, so that no two pools redial together."""
    return now + max_age_s * random.uniform(0.9, 1.0)
