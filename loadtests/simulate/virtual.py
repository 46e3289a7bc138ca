"""A world for the simulator: a virtual clock, origins with queues and faults, and proxies that run the very code of
`routing`.

Nothing sleeps: events come from a heap, and minutes of a fleet pass in seconds. What a proxy does with the
balancer's answers (timers for hedges, retries, probes) is a page of code here; the proxy's own does the same with
sockets.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from routing.balancer import Balancer, Change, DrainState, EndpointState, Outcome
from routing.retry import (
    GIVE_UP,
    WAIT,
    Next,
    after_drain,
    after_failure,
    answer_loses,
    hedgeable,
    may_hedge_now,
    must_pay,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from routing.model import Upstream

NEVER: Final = float("inf")
RETRANSMIT_S: Final = 0.26
"""What a lost packet of a short request costs: Linux's retransmission time-out at a 60 ms round trip (its tail-loss
probe comes no earlier).
"""

PROBE_TIMEOUT_S: Final = 1.0


class Clock:
    """Virtual time and what will happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Call it then."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Call it so many seconds from now."""
        self.at(self.now + delay, call, *args)

    def run(self, until: float) -> None:
        """Let time pass."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, call, args = heapq.heappop(events)
            call(*args)
        self.now = until


@dataclass
class Site:
    """One endpoint's origin and the path to it. Faults are switched by writing the attributes."""

    clock: Clock
    rng: random.Random
    rtt: float
    service: Callable[[random.Random], float]
    jitter: float = 0.0005
    servers: int = 0  # 0: as many as it takes
    queue_max: int = 1 << 60  # past it: 503
    dark: bool = False  # nothing passes, either way
    hang: bool = False  # accepts and never answers
    reset: bool = False
    refuse: bool = False
    status: int = 200
    late_share: float = 0.0
    late_by: float = 1.0
    loss: float = 0.0
    busy: int = 0
    waiting: deque[tuple[float, Callable[[int], None], float]] = field(default_factory=deque)
    received: int = 0
    shed: int = 0
    queue_peak: int = 0
    recent: float = 0.0  # a moving average of its answers' time here, queueing included

    def half(self) -> float:
        """One way, with jitter and perhaps a lost packet."""
        way = self.rtt / 2 + (self.rng.expovariate(1 / self.jitter) if self.jitter else 0.0)
        if self.loss and self.rng.random() < self.loss:
            way += max(RETRANSMIT_S, self.rtt + 0.2)
        return way

    def send(
        self, answered: Callable[[int], None], failed: Callable[[Outcome], None], work: float | None = None
    ) -> None:
        """A request leaves for this site over a warm connection. `work`: its own seconds, in place of `service`'s."""
        if self.refuse:
            self.clock.after(self.half() + self.rtt / 2, failed, Outcome.CONNECT_FAILED)
        elif self.reset:
            self.clock.after(self.half() + self.rtt / 2, failed, Outcome.RESET)
        elif not self.dark:
            self.clock.after(self.half(), self._arrive, answered, work)

    def _arrive(self, answered: Callable[[int], None], work: float | None) -> None:
        if self.dark:
            return
        self.received += 1
        if self.hang:
            return
        if self.status != 200:
            self._answer(answered, self.status)
            return
        seconds = self.service(self.rng) if work is None else work
        if self.late_share and self.rng.random() < self.late_share:
            self.clock.after(self.late_by + seconds, self._answer, answered, 200)
        elif not self.servers:
            self.clock.after(seconds, self._answer, answered, 200)
        elif self.busy < self.servers:
            self.busy += 1
            self.clock.after(seconds, self._done, answered, self.clock.now)
        elif len(self.waiting) >= self.queue_max:
            self.shed += 1
            self._answer(answered, 503)
        else:
            self.waiting.append((seconds, answered, self.clock.now))
            self.queue_peak = max(self.queue_peak, len(self.waiting))

    def _done(self, answered: Callable[[int], None], arrived: float) -> None:
        self.recent += (self.clock.now - arrived - self.recent) * 0.1
        self._answer(answered, 200)
        if self.waiting:
            seconds, following, since = self.waiting.popleft()
            self.clock.after(seconds, self._done, following, since)
        else:
            self.busy -= 1

    def _answer(self, answered: Callable[[int], None], status: int) -> None:
        if not self.dark:
            self.clock.after(self.half(), self._land, answered, status)

    def _land(self, answered: Callable[[int], None], status: int) -> None:
        if not self.dark:
            answered(status)


@dataclass(slots=True)
class Record:
    """What a client saw."""

    start: float
    latency: float
    status: int
    region: str
    attempts: int
    first: str  # the region of the first try; "": there was none


class Proxy:
    """A proxy: one balancer, its timers, and its clients' records."""

    def __init__(self, clock: Clock, upstream: Upstream, sites: dict[str, list[Site]], seed: int) -> None:
        self.clock = clock
        self.rng = random.Random(seed)
        self.balancer = Balancer(upstream, self.rng, clock.now)
        self.upstream = upstream
        self.records: list[Record] = []
        self.changes: list[tuple[float, Change]] = []
        self.hedges = self.requests = self.attempts = 0
        self.open: dict[Request, None] = {}  # in the order of their arrival, or no two runs would be the same
        self.hedge_after: float | None = None  # a fixed delay in place of the policy's
        self.work: Callable[[random.Random], float] | None = None  # what a request takes wherever it goes
        self._unacknowledged: dict[EndpointState, float] = {}
        self.sites: dict[EndpointState, Site] = {}
        for endpoint in self.balancer.endpoints:
            site = self.sites[endpoint] = sites[endpoint.region.name][endpoint.index]
            endpoint.ready = 16
            self.balancer.observe_rtt(endpoint, clock.now, site.rtt)
        clock.after(self.rng.random() * 0.1, self._tick)
        clock.after(self.rng.random(), self._measure)

    def request(self, safe: bool = True) -> None:
        """A client's request arrives."""
        self.requests += 1
        Request(self, safe).begin()

    def drive(self, rate: float, until: float, *, safe: bool = True, poisson: bool = True) -> None:
        """Open-loop clients: `rate` requests a second until then."""
        if self.clock.now < until:
            self.request(safe)
            gap = self.rng.expovariate(rate) if poisson else 1.0 / rate
            self.clock.after(gap, self._drive_on, rate, until, safe, poisson)

    def _drive_on(self, rate: float, until: float, safe: bool, poisson: bool) -> None:
        self.drive(rate, until, safe=safe, poisson=poisson)

    def _tick(self) -> None:
        now = self.clock.now
        for endpoint in self.balancer.endpoints:
            self._watch(endpoint, now)
        for change in self.balancer.tick(now):
            self.changes.append((now, change))
            if change.after is DrainState.DRAINED:
                for request in list(self.open):
                    request.rescue(change.region)
        for endpoint in self.balancer.probes_wanted(now):
            self._probe(endpoint)
        self.clock.after(0.1, self._tick)

    def _watch(self, endpoint: EndpointState, now: float) -> None:
        """What TCP_INFO would say of unacknowledged bytes."""
        site = self.sites[endpoint]
        endpoint.ready = 0 if site.refuse else 16
        if not site.dark or not endpoint.in_flight:
            self._unacknowledged.pop(endpoint, None)
            return
        since = self._unacknowledged.setdefault(endpoint, now)
        self.balancer.observe_unanswered(endpoint, now, now - since)

    def _measure(self) -> None:
        """Keepalive probes and the round trips they give."""
        for endpoint in self.balancer.endpoints:
            site = self.sites[endpoint]
            if not site.dark and not site.refuse:
                self.balancer.observe_rtt(endpoint, self.clock.now, site.rtt + site.rng.expovariate(2000))
        self.clock.after(1.0, self._measure)

    def _probe(self, endpoint: EndpointState) -> None:
        site = self.sites[endpoint]
        good = not (site.dark or site.hang or site.reset or site.refuse or site.status != 200)
        seconds = site.rtt if good or not site.dark else PROBE_TIMEOUT_S
        self.clock.after(seconds, self._probed, endpoint, good, seconds)

    def _probed(self, endpoint: EndpointState, good: bool, seconds: float) -> None:
        self.balancer.observe_probe(endpoint, self.clock.now, good, seconds)


class Attempt:
    """One try."""

    __slots__ = ("endpoint", "open", "request", "start")

    def __init__(self, request: Request, endpoint: EndpointState) -> None:
        self.request = request
        self.endpoint = endpoint
        self.start = request.proxy.clock.now
        self.open = True

    def send(self) -> None:
        """Leave for the origin."""
        proxy = self.request.proxy
        proxy.attempts += 1
        proxy.balancer.begin(self.endpoint, self.start)
        proxy.sites[self.endpoint].send(self._answered, self._failed, self.request.work)
        proxy.clock.after(proxy.upstream.timeouts.response, self._failed, Outcome.TIMEOUT)

    def close(self, outcome: Outcome, status: int = 0, winner: float = 0.0) -> None:
        """Tell the balancer how it ended."""
        self.open = False
        now = self.request.proxy.clock.now
        self.request.proxy.balancer.finish(self.endpoint, now, outcome, now - self.start, status, winner=winner)

    def _answered(self, status: int) -> None:
        if self.open:
            self.close(Outcome.OK if status < 500 else Outcome.ERROR_STATUS, status)
            self.request.attempt_answered(self, status)

    def _failed(self, outcome: Outcome) -> None:
        if self.open:
            self.close(outcome)
            self.request.attempt_failed(outcome, 502 if outcome is not Outcome.TIMEOUT else 504)


class Request:
    """One client request: what the proxy's Exchange does with the balancer and the rules of `routing.retry`."""

    __slots__ = ("attempts", "done", "hedgeable", "proxy", "safe", "start", "work")

    def __init__(self, proxy: Proxy, safe: bool) -> None:
        self.proxy = proxy
        self.safe = safe
        self.hedgeable = hedgeable(may_replay=safe, switching=False, expect=False)
        self.start = proxy.clock.now
        self.attempts: list[Attempt] = []
        self.done = False
        self.work = proxy.work(proxy.rng) if proxy.work is not None else None

    def begin(self) -> None:
        """Route it."""
        balancer, now = self.proxy.balancer, self.start
        balancer.count_request(now)
        endpoint = balancer.pick(now)
        if endpoint is None:
            self._finish(503, "")
            return
        self.proxy.open[self] = None
        self._try(endpoint)
        delay = self.proxy.hedge_after
        if delay is None and self.hedgeable:
            delay = balancer.hedge_delay(now, endpoint)
        if delay is not None:
            self.proxy.clock.after(delay, self._hedge)

    def _try(self, endpoint: EndpointState) -> None:
        attempt = Attempt(self, endpoint)
        self.attempts.append(attempt)
        attempt.send()

    def _tries_open(self) -> int:
        return sum(attempt.open for attempt in self.attempts)

    def _elsewhere(self, warm_only: bool) -> EndpointState | None:
        """Where a further try may go."""
        tried = [attempt.endpoint for attempt in self.attempts]
        return self.proxy.balancer.pick_alternate(self.proxy.clock.now, tried, warm_only)

    def _pays(self, verdict: Next, endpoint: EndpointState) -> bool:
        region, balancer = endpoint.region, self.proxy.balancer
        return not must_pay(verdict, region.weight, region.headroom) or balancer.take_retry(self.proxy.clock.now)

    def _hedge(self) -> None:
        if self.done or not may_hedge_now(complete=True, body_kept=True, tries_open=self._tries_open()):
            return
        balancer, now = self.proxy.balancer, self.proxy.clock.now
        endpoint = self._elsewhere(True)
        if endpoint is None or not balancer.take_hedge(now):
            return
        self.proxy.hedges += 1
        self._try(endpoint)
        if len(self.attempts) == 2:
            further = balancer.hedge_delay(now, self.attempts[0].endpoint, endpoint)
            if further is not None:
                self.proxy.clock.at(max(now, self.start + further), self._hedge)

    def rescue(self, region: str) -> None:
        """A region was drained: what waits for it alone goes elsewhere now."""
        verdict = after_drain(
            self.proxy.upstream.retry,
            elsewhere=any(attempt.endpoint.region.name != region for attempt in self.attempts if attempt.open),
            sent=True,  # over a warm connection
            complete=True,
            body_kept=True,
            hedgeable=self.hedgeable,
        )
        if verdict is WAIT or not self._tries_open():
            return
        endpoint = self._elsewhere(False)
        if endpoint is not None and endpoint.region.name != region and self._pays(verdict, endpoint):
            self.proxy.hedges += 1
            self._try(endpoint)

    def attempt_answered(self, attempt: Attempt, status: int) -> None:
        """The first acceptable answer wins."""
        if self.done:
            return
        if answer_loses(status):
            self.attempt_failed(Outcome.ERROR_STATUS, status)
            return
        self._finish(status, attempt.endpoint.region.name, self.proxy.clock.now - attempt.start)

    def attempt_failed(self, outcome: Outcome, status: int) -> None:
        """Retry, wait for the other attempt, or give up."""
        if self.done:
            return
        verdict = after_failure(
            self.proxy.upstream.retry,
            tries=len(self.attempts),
            others_open=self._tries_open() > 0,
            wanted=True,
            body_kept=True,
            may_replay=self.safe,
            processed=outcome is not Outcome.CONNECT_FAILED,
        )
        if verdict is WAIT:
            return
        endpoint = self._elsewhere(False) if verdict is not GIVE_UP else None
        if endpoint is not None and self._pays(verdict, endpoint):
            self._try(endpoint)
            return
        self._finish(status, "")

    def _finish(self, status: int, region: str, winner: float = 0.0) -> None:
        self.done = True
        self.proxy.open.pop(self, None)
        for attempt in self.attempts:
            if attempt.open:
                attempt.close(Outcome.HEDGE_LOST, winner=winner)
        latency = self.proxy.clock.now - self.start
        first = self.attempts[0].endpoint.region.name if self.attempts else ""
        self.proxy.records.append(Record(self.start, latency, status, region, len(self.attempts), first))
