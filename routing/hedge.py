"""Hedges: a second try beside a slow first one. After how long, and within which budget.

When (`delay`), in service time beyond the primary's floor, counted from the request's arrival:
1. Not before `QUANTILE` of healthy answers are in, plus `MARGIN` of the whole: one in twenty answers is by
   definition slower than the 95th percentile, and where answers differ by a millisecond hedging those would be 5 %
   of load for nothing.
2. Not before it is worth it. Of the answers still out at t, some come before a hedge sent at t could be answered.
   The hedge waits for the first t where at least `USEFUL` of them would not. An outage is always possible (`OUTAGE`
   of requests), so there is always such a t: a service with a steep tail is hedged at its p95, one with a shallow
   tail only when something is wrong.
3. The percentile is clamped to the configured `min_delay` and `max_delay`. What would not pay is not sent at
   `max_delay` either.
The answers are those of healthy regions: a sick host must not raise the percentile that would expose it
(Cassandra-14293). Lost hedges are censored and never among the answers.

How often (`Budget`): extra attempts are paid in tokens that measured requests earn.
- Each request earns `hedge.budget` of a hedge and `retry.budget` of an attempt. A hedge pays both, a retry pays the
  second: hedges never exceed their share, hedges and retries together never exceed the retries' share.
- Unused tokens are kept up to what the last seconds earned (`HEDGES_WINDOW_S`, `ATTEMPTS_WINDOW_S`): enough for the
  second in which a region dies, too few for a storm.
- A floor for quiet upstreams: tokens earn at least `FLOOR_PER_S`, up to `FLOOR_TOKENS`. It replaces what requests
  earn, it does not add to it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from .region import well

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Hedge, Retry
    from .state import RegionState

QUANTILE: Final = 0.95
MARGIN: Final = 0.03
USEFUL: Final = 0.5
OUTAGE: Final = 0.002

UNWARMED_S: Final = 0.02
"""The p95 beyond the floor that is assumed before there are answers."""

HEDGES_WINDOW_S: Final = 10.0
ATTEMPTS_WINDOW_S: Final = 5.0
FLOOR_PER_S: Final = 0.5
FLOOR_TOKENS: Final = 10.0


def late_after(p95: float, floor: float) -> float:
    """Seconds from arrival after which an answer is late.

    `p95`: of healthy answers' service time; `floor`: the primary's round trip.
    """
    return floor + p95 + MARGIN * (floor + p95)


def pays_after(start: float, survivors: Sequence[tuple[float, float]], floor: float, alternate: float) -> float:
    """The first moment after `start` (seconds from arrival) at which a hedge pays; 0.0 where it pays at `start`.

    `survivors`: (service time, share of the answers that took longer), ascending, of the primary's region; `floor`:
    the primary's round trip; `alternate`: what a hedge is expected to take, in seconds.
    """
    if not survivors or _pays(survivors, start - floor, _survival(survivors, start - floor), alternate):
        return 0.0
    for service, share in survivors:
        if service > start - floor and _pays(survivors, service, share, alternate):
            return floor + service
    return 0.0


def _pays(survivors: Sequence[tuple[float, float]], at: float, left: float, alternate: float) -> bool:
    return _survival(survivors, at + alternate) + OUTAGE >= USEFUL * (left + OUTAGE)


def _survival(survivors: Sequence[tuple[float, float]], at: float) -> float:
    """The share of answers that took longer than `at`."""
    low, high = 0, len(survivors)
    while low < high:
        middle = (low + high) // 2
        if survivors[middle][0] <= at:
            low = middle + 1
        else:
            high = middle
    return survivors[low - 1][1] if low else 1.0


def due(late: float, pays: float, hedge: Hedge) -> float:
    """When a hedge is due by a route's settings: when an answer is late, within their bounds, but not before it
    pays.
    """
    seconds = min(max(late, hedge.min_delay), hedge.max_delay)
    return seconds if seconds > pays else pays


def plan(regions: Sequence[RegionState], now: float, delay_max: float) -> None:
    """Set every region's `late_after` and `hedge_after` by the healthy regions' percentile.

    A sick region keeps that of its better days. One with few answers of its own, or none, gets the others', or longer:
    it may be slower than they are, and could not show it if every one of its answers came second.
    """
    normal = [region for region in regions if well(region, now)]
    for region in normal:
        region.p95_well, region.p95_well_at = region.p95, now
    others = max((region.p95 for region in normal), default=UNWARMED_S)
    quickest = min((region.likely + region.hedge_service for region in regions if not region.health.out), default=0.0)
    for region in regions:
        if region.p95_well_at > -inf:
            p95 = region.p95_well
        else:
            p95 = region.p95 if region.survivors else max(others, region.usual, region.patience)
        region.late_after = late_after(p95, region.path)
        region.hedge_after = pays_after(min(region.late_after, delay_max), region.survivors, region.path, quickest)


class Budget:
    """The tokens of one upstream, or of routes with the same settings. `None` for `hedge` or `retry`: there are none
    of that kind.

    Callers count every request: `requests += 1`.
    """

    __slots__ = (
        "_attempt_share",
        "_attempts",
        "_hedge_share",
        "_hedges",
        "_rate",
        "_stamp",
        "denied",
        "requests",
        "taken",
    )

    def __init__(self, hedge: Hedge | None, retry: Retry | None, now: float) -> None:
        self._hedge_share = hedge.budget if hedge else 0.0
        # Retries off: hedges alone are bounded by their own share.
        self._attempt_share = max(retry.budget if retry else 0.0, self._hedge_share)
        self._hedges = FLOOR_TOKENS if hedge else 0.0
        self._attempts = FLOOR_TOKENS
        self.requests = 0
        self._rate = 0.0
        self._stamp = now
        self.taken = 0
        self.denied = 0

    def take_hedge(self, now: float) -> bool:
        """Pay for a hedge. False: the budget is spent."""
        self._earn(now)
        if self._hedges < 1 or self._attempts < 1:
            self.denied += 1
            return False
        self._hedges -= 1
        self._attempts -= 1
        self.taken += 1
        return True

    def take_retry(self, now: float) -> bool:
        """Pay for a retry. False: the budget is spent."""
        self._earn(now)
        if self._attempts < 1:
            self.denied += 1
            return False
        self._attempts -= 1
        self.taken += 1
        return True

    def _earn(self, now: float) -> None:
        """Turn the requests since the last call into tokens.

        Called when tokens are needed and on ticks, not per request.
        """
        seconds = now - self._stamp
        if seconds <= 0 and not self.requests:
            return
        requests, self.requests, self._stamp = self.requests, 0, now
        # The rate of requests, smoothed over about a window, bounds what may be saved up.
        rate = requests / seconds if seconds > 0 else 0.0
        self._rate += (rate - self._rate) * seconds / (seconds + HEDGES_WINDOW_S)
        floor = FLOOR_PER_S * seconds
        self._hedges = _saved(self._hedges, self._hedge_share, requests, floor, self._rate * HEDGES_WINDOW_S)
        self._attempts = _saved(self._attempts, self._attempt_share, requests, floor, self._rate * ATTEMPTS_WINDOW_S)

    def tick(self, now: float) -> None:
        """Keep the account current where nothing is taken."""
        self._earn(now)

    @property
    def tokens(self) -> tuple[float, float]:
        """Hedges and attempts that could be paid for at the last count."""
        return self._hedges, self._attempts


def _saved(tokens: float, share: float, requests: int, floor: float, window_requests: float) -> float:
    if not share:
        return 0.0
    earned = share * requests
    if tokens < FLOOR_TOKENS:
        earned = max(earned, min(floor, FLOOR_TOKENS - tokens))
    return min(tokens + earned, max(FLOOR_TOKENS, share * window_requests))
