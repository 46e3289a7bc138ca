"""Which region and which endpoint a request takes: the decisions for one upstream in one worker.

    pick → begin → (hedge_delay … take_hedge, pick_alternate, begin)* → finish for every attempt that began

The region first. Its *cost* is the path's round trip, plus the median service time of the last seconds, plus a
penalty for its tail: the mean of its slowest 3 % counts in full (`state.TAIL`). Shares follow from closeness
(`choice`), from admission (`drain`) and from headroom; requests in flight go before all of it: a full region, or one
that slows down under its load, passes the rest on to the next. Then the endpoint: two random choices on latency ×
(in flight + 1), or the session's.

`pick` only reads a table. The table is rebuilt by `tick`, about every 100 ms, and at once when evidence changes a
region's state.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from .choice import alternate, score, session_key, share_out, spill_order
from .drain import Change, DrainState
from .hedge import Budget, due, plan
from .ledger import Ledger
from .region import refresh, refresh_limit, review_endpoints
from .reload import adopt
from .state import UNKNOWN_S, EndpointState, Outcome, RegionState

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from .model import Hedge, Retry, Upstream

__all__ = ["Balancer", "Change", "DrainState", "EndpointState", "Outcome", "RegionState"]

RETRY_AFTER_MAX_S: Final = 30.0


def _has_room(region: RegionState, now: float) -> bool:
    return region.weight > 0.0 and region.in_flight < region.limit


def _has_some_room(region: RegionState, now: float) -> bool:
    return region.weight > 0.0 and region.in_flight < region.max_in_flight


def _stands_by(region: RegionState, now: float) -> bool:
    return region.in_flight < region.max_in_flight and region.admission(now) > 0.0


def _is_left(region: RegionState, now: float) -> bool:
    return region.in_flight < region.max_in_flight and region.health.operator_until is None


class Balancer(Ledger):
    """See the module. Not thread-safe; every method is quick, none waits."""

    def __init__(self, upstream: Upstream, rng: random.Random, now: float) -> None:
        super().__init__(upstream, rng, now)
        self.arrivals = 0.0  # requests per second
        self._budgets: dict[tuple[Hedge | None, Retry | None], Budget] = {}
        self._budget = self.budget(upstream.hedge, upstream.retry, now)
        self._hedge = upstream.hedge
        self._arrived = 0
        self._ticked = now
        self._rotated = now
        self._table: list[tuple[float, RegionState]] = []
        self._order: list[RegionState] = []
        self.refresh_table(now, 0.0)

    # Choosing.

    def pick(self, now: float, key: bytes | None = None) -> EndpointState | None:
        """The endpoint for a new request. None: nothing can take it (answer 503 with `retry_after`).

        `key`: of the session that should stay on one endpoint.
        """
        if key is None:
            draw = self._random()
            for bound, region in self._table:
                if draw < bound:
                    if region.in_flight < region.limit:
                        usable = region.usable
                        return usable[0] if len(usable) == 1 else self._pick_endpoint(usable, now)
                    break
        return self._pick_carefully(now, key)

    def _pick_endpoint(self, usable: Sequence[EndpointState], now: float) -> EndpointState:
        """Two random choices."""
        count = len(usable)
        if count == 1:
            return usable[0]
        first = int(self._random() * count)
        second = first + 1 + int(self._random() * (count - 1))
        one, other = usable[first], usable[second if second < count else second - count]
        return one if one.load(now) <= other.load(now) else other

    def _pick_carefully(self, now: float, key: bytes | None) -> EndpointState | None:
        """The rest of `pick`: sessions, and spilling over when a region is full.

        First regions below their limit, then those that are crowded but below the configured limit, then the standby
        ones, then what was drained by evidence: it may fail, and a refusal is sure to. What an operator drained gets
        nothing.
        """
        hashed = session_key(key) if key is not None else None
        preference = self._preference(hashed)
        for takes in (_has_room, _has_some_room, _stands_by, _is_left):
            for region in preference:
                usable = region.usable
                if not usable or not takes(region, now):
                    continue
                if hashed is not None:
                    return max(usable, key=lambda endpoint: score(hashed, endpoint.key, 1.0))
                return self._pick_endpoint(usable, now)
        return None

    def _preference(self, hashed: int | None) -> list[RegionState]:
        """Regions in the order in which a request that was not placed tries them."""
        if hashed is None:
            return self._order
        ranked = {region: score(hashed, region.key, region.weight) for region in self._order if region.weight}
        return [
            *sorted(ranked, key=lambda region: -ranked[region]),
            *(region for region in self._order if region not in ranked),
        ]

    def pick_alternate(self, now: float, tried: Sequence[EndpointState], warm_only: bool) -> EndpointState | None:
        """Where a second attempt of a request should go: for hedges (`warm_only`) and retries. None: nowhere.

        A retry leaves what failed, however far the next one is: the endpoint first, and after two tries the region.
        Regions in use come first, then a standby, then what was drained by evidence, then endpoints that were tried
        already, and last what an operator drained.
        A hedge goes to the region that should answer first: an isolated slow answer is tried again nearby. But where
        anything failed since the last answer, or answers stopped, or two tries wait already, it leaves.
        """
        return alternate(self.regions, now, tried, warm_only)

    # Hedges and budgets.

    def hedge_delay(
        self, now: float, primary: EndpointState, hedge: EndpointState | None = None, settings: Hedge | None = None
    ) -> float | None:
        """Seconds after the request's arrival when a hedge is due; None: no hedge.

        With `hedge`, the one that is out already: when a further one is due. There is one only where the first
        stayed in the primary's region: if that was an outage after all, the second leaves it. `settings`: a route's
        own.
        """
        if settings is None:
            settings = self._hedge
        if settings is None:
            return None
        region = primary.region
        if hedge is None:
            return due(region.late_after, region.hedge_after, settings)
        if hedge.region is not region or len(self.regions) == 1:
            return None
        return 2.0 * due(region.late_after, region.hedge_after, settings)

    def budget(self, hedge: Hedge | None, retry: Retry | None, now: float) -> Budget:
        """The budget of routes with these settings; the upstream's own for its own settings."""
        key = (hedge, retry)
        if key not in self._budgets:
            self._budgets[key] = Budget(hedge, retry, now)
        return self._budgets[key]

    def count_request(self, now: float, budget: Budget | None = None) -> None:
        """A request arrived for this upstream (`budget`: its route's)."""
        self._arrived += 1
        (budget or self._budget).requests += 1

    def take_hedge(self, now: float, budget: Budget | None = None) -> bool:
        """Pay for a hedge. False: the budget is spent, don't send it."""
        return (budget or self._budget).take_hedge(now)

    def take_retry(self, now: float, budget: Budget | None = None) -> bool:
        """Pay for a retry. False: the budget is spent, don't send it."""
        return (budget or self._budget).take_retry(now)

    # Time.

    def tick(self, now: float) -> list[Change]:
        """Move the state machines and recompute shares and delays.

        Returns the changes since the last call, for log and metric.
        """
        seconds = now - self._ticked
        if seconds > 0.0:
            self._ticked = now
            rotated = now - self._rotated >= 1.0
            rate = self._arrived / seconds
            self._arrived = 0
            self.arrivals += (rate - self.arrivals) * seconds / (seconds + 1.0)
            for budget in self._budgets.values():
                budget.tick(now)
            known = [region.service for region in self.regions if now - region.service_known_at < 5.0]
            baselines = [region.baseline for region in self.regions if region.service_known_at >= 0.0]
            assumed = min(known + baselines, default=0.0)
            for region in self.regions:
                review_endpoints(region, now, seconds, self._random)
                region.counts.rotate(now)
                refresh(region, now, seconds, assumed, rotated)
                refresh_limit(region, now, seconds, self.arrivals)
            if rotated:
                self._rotated = now
        for region in self.regions:
            self.judge(region, now)
        self.refresh_table(now, seconds)
        plan(self.regions, now, self._hedge.max_delay if self._hedge else UNKNOWN_S)
        changes, self.changes = self.changes, []
        return changes

    def refresh_table(self, now: float, seconds: float) -> None:
        """Shares from costs and admissions, and the table of cumulative shares that `pick` reads."""
        shares = share_out(self.upstream, self.regions, now, seconds)
        bound = 0.0
        table = []
        for region, share in sorted(shares, key=lambda item: -item[1]):
            bound += share
            table.append((bound, region))
        table[-1] = (2.0, table[-1][1])  # whatever the sum's rounding
        self._table = table
        self._order = spill_order(self.upstream.policy, self.regions)

    # The operator.

    def _region(self, name: str) -> RegionState:
        for region in self.regions:
            if region.name == name:
                return region
        raise KeyError(name)

    def drain(self, region: str, now: float, until: float | None) -> Change:
        """An operator's drain, until then or until `undrain`. KeyError: no such region."""
        state = self._region(region)
        change = state.health.drain(now, until)
        state.forget_probes()
        self.refresh_table(now, 0.0)
        return change

    def undrain(self, region: str, now: float) -> Change:
        """The end of an operator's drain. KeyError: no such region."""
        state = self._region(region)
        change = state.health.undrain(now)
        self.refresh_table(now, 0.0)
        return change

    # What clients are told, and reloads.

    def retry_after(self, now: float) -> float:
        """Whole seconds after which a refused client may try again: what origins asked for, one at least."""
        asked = min(endpoint.not_before for endpoint in self.endpoints) - now
        return float(min(RETRY_AFTER_MAX_S, max(1.0, ceil(asked))))

    def carry_over(self, old: Balancer, now: float) -> None:
        """Keep what was learnt of regions and endpoints that a reload did not change.

        Endpoints that stay keep their very `EndpointState` (with requests in flight):
        attempts that began under the old balancer may be finished with either.
        """
        learnt = {region.name: region for region in old.regions}
        for region in self.regions:
            if region.name in learnt:
                adopt(region, learnt[region.name], self.upstream.drain)
        self.endpoints = [endpoint for region in self.regions for endpoint in region.endpoints]
        for endpoint in old.endpoints:
            endpoint.departed = endpoint not in self.endpoints
        for settings, budget in old._budgets.items():
            if settings in self._budgets:
                self._budgets[settings] = budget
        self._budget = self._budgets[self.upstream.hedge, self.upstream.retry]
        self.arrivals = old.arrivals
        self.refresh_table(now, 0.0)
        plan(self.regions, now, self._hedge.max_delay if self._hedge else UNKNOWN_S)

    def __repr__(self) -> str:
        shares = ", ".join(f"{region.name} {region.state.name.lower()} {region.weight:.2f}" for region in self.regions)
        return f"<Balancer {self.upstream.name}: {shares}>"
