"""What happened: attempts and measurements, booked to endpoints and regions, and judged at once where they speak
against one.

The half of the balancer that writes. `Balancer` reads what stands here and chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .choice import name_key
from .drain import LATE, Change, DrainState
from .evidence import HEDGE_ALPHA, charge
from .latency import bucket_of
from .outlier import OutlierState
from .state import EndpointState, Outcome, RegionState

if TYPE_CHECKING:
    import random

    from .model import Upstream

PROBE_EVERY_S: Final = 1.0


NEAR_S: Final = 0.001
"""A round trip below this ends on this machine."""


class Ledger:
    """The endpoints and regions of one upstream, and what is booked to them. Use it through `Balancer`."""

    def __init__(self, upstream: Upstream, rng: random.Random, now: float) -> None:
        self.upstream = upstream
        self.regions = [
            RegionState(region, index, upstream, now, name_key(region.name))
            for index, region in enumerate(upstream.regions)
        ]
        for region in self.regions:
            for index, endpoint in enumerate(region.region.endpoints):
                region.endpoints.append(EndpointState(endpoint, region, index, name_key(f"{region.name} {endpoint}")))
            region.usable = list(region.endpoints)
        self.endpoints = [endpoint for region in self.regions for endpoint in region.endpoints]
        self.changes: list[Change] = []  # not yet told by `tick`
        self._random = rng.random

    def refresh_table(self, now: float, seconds: float) -> None:
        """A region's state changed: `Balancer` chooses anew."""

    # Attempts.

    def begin(self, ep: EndpointState, now: float) -> None:
        """An attempt goes to this endpoint. Every `begin` needs its `finish`."""
        ep.in_flight += 1
        region = ep.region
        if region.in_flight == region.held:  # nothing was waiting for an answer
            region.busy_since = now
            region.asked = 0
        if not region.asked:
            region.asked_since = now
        region.asked += 1
        region.in_flight += 1

    def finish(
        self,
        ep: EndpointState,
        now: float,
        outcome: Outcome,
        elapsed: float,
        status: int = 0,
        *,
        retry_after: float | None = None,
        winner: float = 0.0,
    ) -> None:
        """An attempt ended `elapsed` seconds after it was sent (OK: when its final head came).

        `status`: of an ERROR_STATUS; `retry_after`: the seconds that its answer asked for; `winner`: of a
        HEDGE_LOST, the elapsed seconds of the attempt that won: who lost to one that took longer was not slow, only
        late to start.
        """
        ep.in_flight -= 1
        region = ep.region
        region.in_flight -= 1
        if outcome is not Outcome.OK:
            if ep.departed:
                return
            cause = charge(ep, now, outcome, elapsed, status, retry_after or 0.0, winner)
            if cause:
                self._bad(region, now, cause)
            return
        self._answered(ep, region, now, elapsed)

    def established(self, ep: EndpointState, now: float, elapsed: float) -> None:
        """An attempt was answered after `elapsed` seconds but stays open: an L4 connection, a tunnel, a long body.

        It counts as OK now, and as in flight until `closed`, which takes `finish`'s place.
        """
        ep.held += 1
        ep.region.held += 1
        self._answered(ep, ep.region, now, elapsed)

    def closed(self, ep: EndpointState) -> None:
        """What was `established` has ended."""
        for state in (ep, ep.region):
            state.held -= 1
            state.in_flight -= 1

    def _answered(self, ep: EndpointState, region: RegionState, now: float, elapsed: float) -> None:
        service = elapsed - ep.floor.value
        if service < 0.0:
            ep.floor.at_most(elapsed)
            service = 0.0
        ep.service.observe(now, service)
        ep.last_good = region.last_good = now
        region.asked = 0
        region.note_elapsed(elapsed)
        if elapsed > region.late_after and region.survivors:
            region.slow_down()
        region.answers += 1
        if region.hedge_service:
            region.hedge_service = max(
                0.0, region.hedge_service + (service - region.hedge_service) * HEDGE_ALPHA - 1e-6
            )
        part = region.counts.current
        part.answered += 1
        bucket = bucket_of(service)
        part.counts[bucket] = part.counts.get(bucket, 0) + 1
        region.health.streak = 0
        outlier = ep.outlier
        if outlier.failures or outlier.losses or outlier.handshakes or outlier.state is not OutlierState.OK:
            outlier.answer()
        else:
            outlier.answers += 1

    def _bad(self, region: RegionState, now: float, cause: str) -> None:
        """Evidence against a region: judge it at once, not on the next tick."""
        region.tell_answers()
        region.health.bad(now, cause)
        self.judge(region, now)

    # Measurements.

    def observe_rtt(self, ep: EndpointState, now: float, rtt: float) -> None:
        """A round trip measured by TCP_INFO (the smoothed one, not the minimum) or a PING."""
        if rtt > 0.0 and not _near(ep):
            ep.floor.observe(now, rtt)

    def observe_connect(self, ep: EndpointState, now: float, ok: bool, elapsed: float, phase: str) -> None:
        """A dial's phase ended: `tcp` (one round trip) or `tls`."""
        if ep.departed:
            return
        if not ok:
            ep.outlier.fail(now, handshake=True, tls=phase == "tls")
            if _all_out_of_reach(ep):
                self._bad(ep.region, now, "connect_failed" if phase == "tcp" else "handshake_failed")
            return
        ep.outlier.connected(phase == "tls")
        if phase == "tcp":
            self.observe_rtt(ep, now, elapsed)
        elif _near(ep):
            ep.floor.observe(now, elapsed)  # TLS ends behind it: no less than a round trip

    def observe_probe(self, ep: EndpointState, now: float, ok: bool, elapsed: float) -> None:
        """An active check, or a probe that `probes_wanted` asked for, ended."""
        if ep.departed:
            return
        ep.outlier.probe(ok)
        ep.region.health.probe(ep.region.probes_row)
        if ok:
            if not _near(ep):
                ep.floor.at_most(elapsed)
            elif elapsed > NEAR_S:
                ep.floor.observe(now, elapsed)  # a check's request and answer; a dial's TCP would be below
        elif (ep.region.state is not DrainState.HEALTHY or ep.region.health.streak) and _all_out_of_reach(ep):
            self._bad(ep.region, now, "probe_failed")

    def observe_unanswered(self, ep: EndpointState, now: float, seconds: float) -> None:
        """Bytes sent to this endpoint have been unacknowledged for so long: the sign of a blackhole.

        Call it again while it lasts.
        """
        region = ep.region
        if ep.departed or not ep.speaks_for_region:
            return
        if region.last_good > now - seconds:
            if ep.last_good < now - seconds and seconds > 1.0 + 4 * ep.floor.value:
                ep.outlier.unreachable()  # the others answer: it is this endpoint
            return
        region.health.unanswered(now, seconds, ep.floor.value)
        self.judge(region, now)

    def probes_wanted(self, now: float) -> list[EndpointState]:
        """Endpoints to probe now, by a health check or a dial with its handshake; then tell `observe_probe`.

        They are those of regions that are not healthy or whose last attempt failed, and ejected ones. Ask on every
        tick; each is named once a second at most.
        """
        wanted = []
        for endpoint in self.endpoints:
            health = endpoint.region.health
            needed = (
                health.state is not DrainState.HEALTHY or health.streak or endpoint.outlier.state is not OutlierState.OK
            )
            if needed and now >= endpoint.probe_at:
                endpoint.probe_at = now + PROBE_EVERY_S * (0.8 + 0.4 * self._random())
                wanted.append(endpoint)
        return wanted

    # Judging.

    def judge(self, region: RegionState, now: float) -> None:
        """Let the region's state machine move; a change takes effect at once."""
        out = sum(other.health.out for other in self.regions if other is not region)
        may_drain = out + 1 <= self.upstream.drain.max_drained * len(self.regions)
        if region.health.out:  # endpoints come and go without a probe
            region.health.probes_good = region.probes_row
        change = region.health.tick(now, may_drain, self._random())
        if change is None and region.health.out and self._nothing_left(now):
            change = region.health.release(now)
        if change is None and region.stranded:
            change = region.health.no_endpoints(now, may_drain, self._random())
        if change is not None:
            if change.after is DrainState.RAMPING:
                region.forget_tail(now)
                if region.health.flaps and region.health.cause == LATE:
                    region.forget_usual()
            elif change.after is DrainState.DRAINED:
                region.forget_probes()
            self.changes.append(change)
            self.refresh_table(now, 0.0)

    def _nothing_left(self, now: float) -> bool:
        """Whether every region that takes requests is kept in by the cap alone."""
        return all(region.health.kept_in for region in self.regions if region.admission(now) > 0.0)


def _all_out_of_reach(ep: EndpointState) -> bool:
    """Whether a failed dial or probe of this endpoint speaks against its region: only where none of the endpoints in
    use can be reached, as far as anybody has tried. One that nobody tried yet convicts no region.
    """
    if ep.region.stranded:
        return True
    return ep.speaks_for_region and all(other.outlier.out_of_reach for other in ep.region.usable)


def _near(ep: EndpointState) -> bool:
    """TCP ends on this machine (a relay, a sidecar, a tunnel): its round trips say nothing of the way behind it."""
    endpoint = ep.endpoint
    return bool(endpoint.path) or endpoint.host.startswith("127.") or endpoint.host in ("localhost", "::1")
