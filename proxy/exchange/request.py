"""What there is of a request while it is being served, and the ways in which it ends.

It never decides that it ends. The rules stand beside it, as functions of it: `tries` (another attempt) and `deadlines`
(what has taken too long); `Exchange` is told what happens, and asks them.
"""

from __future__ import annotations

from abc import abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.http.grpc import error_trailers
from proxy.observe.access_line import access_line
from proxy.observe.record import RequestRecord
from routing.balancer import Outcome

from . import zero_rtt
from .attempt import ENDED, AttemptOwner
from .reply import error_reply

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import ResponseHead
    from proxy.http.serving import Downstream
    from proxy.loop.timers import Timed
    from routing.balancer import EndpointState

    from .attempt import Attempt
    from .service import BoundRoute, Service


class State(Enum):
    """Where a request stands."""

    ROUTING = "routing"
    TRYING = "trying"
    RELAYING = "relaying"
    DONE = "done"


class Tunnel(Enum):
    """Whether bytes of another protocol flow. HALF_CLOSED: the origin has sent all of its own, the client may go on."""

    NONE = "none"
    OPEN = "open"
    HALF_CLOSED = "half closed"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
ROUTING: Final = State.ROUTING
TRYING: Final = State.TRYING
RELAYING: Final = State.RELAYING
DONE: Final = State.DONE
NO_TUNNEL: Final = Tunnel.NONE
TUNNEL_OPEN: Final = Tunnel.OPEN
TUNNEL_HALF_CLOSED: Final = Tunnel.HALF_CLOSED


class Request(AttemptOwner):
    """The parts. Times are the event loop's, in seconds; 0.0: not yet, or never."""

    __slots__ = (
        "active_at",
        "answer_s",
        "attempts",
        "bound",
        "connection",
        "continue_at",
        "downstream_blocked",
        "grpc",
        "hedge_at",
        "hedge_delay",
        "idempotent",
        "record",
        "result",
        "retry_after",
        "service",
        "session_key",
        "shared_faults",
        "state",
        "stream",
        "timer_bucket",
        "too_early_at",
        "total",
        "tunnel",
        "winner",
    )

    bound: BoundRoute

    def __init__(self, service: Service, connection: Downstream, stream: ConnectionStream) -> None:
        turn = connection.turn
        now = turn.now
        self.service = service
        self.connection = connection
        self.stream = stream
        self.turn = turn
        self.record = RequestRecord(connection.client, connection.log_start, now)
        self.state = ROUTING
        self.tunnel = NO_TUNNEL
        self.timer_bucket: set[Timed] | None = None
        # The request.
        self.body = None
        self.switching = False
        self.early_data = zero_rtt.OPEN
        self.too_early_at: EndpointState | None = None  # who answered 425: AWAITED
        self.idempotent = False
        self.grpc = False
        self.session_key: bytes | None = None
        self.total = 0.0  # for all of it: the route's, or what the client has left
        # Its tries.
        self.attempts: list[Attempt] = []  # live ones; all of them are in the record
        self.winner: Attempt | None = None
        self.shared_faults = 0  # tries that another request's fault took with it: they don't count
        # Time.
        self.active_at = now
        self.hedge_at = 0.0
        self.hedge_delay = 0.0  # of a request whose body is under way: from its end
        self.continue_at = 0.0  # when a client that waits for 100 gets it from us
        # The response.
        self.answer_s = 0.0  # what the winner took for its head
        self.downstream_blocked = False
        self.result = 0  # of a gRPC call, as an HTTP status; 0: the status tells it
        self.retry_after = 0.0

    def __repr__(self) -> str:
        tries = len(self.record.tries)
        return f"<{type(self).__name__} {self.head!r} {self.state.value} attempts={tries} winner={self.winner!r}>"

    # -- what follows ------------------------------------------------------------------------------

    def complete(self) -> bool:
        """Whether all of the request came (of an upgrade or CONNECT, its head)."""
        body = self.body
        return body is None or body.ended

    def body_kept(self) -> bool:
        """Whether it could be sent once more."""
        body = self.body
        return body is None or body.chunks is not None

    def wanted(self, now: float) -> bool:
        """Whether the client is there, and its time not over."""
        return self.connection.transport is not None and now - self.record.started < self.total

    def places(self) -> list[EndpointState]:
        """Where it was tried, in order."""
        return [one.target for one in self.record.tries]

    def origin_had_s(self, since: float, now: float) -> float:
        """Seconds of the time since then (an attempt's start) that were the origin's: without the client's own pace."""
        body = self.body
        asked = 0.0 if body is None else body.ended_at if body.ended else self.active_at
        return now - (asked if asked > since else since)

    def answered_s(self, attempt: Attempt, now: float) -> float:
        """What an answer took. One that comes before the request is complete may answer any part of it: it is never
        taken for slower than the endpoint is believed to be.
        """
        since = attempt.record.connected_at
        if self.complete():
            return self.origin_had_s(since, now)
        target = attempt.target
        return min(now - since, target.floor.value + target.service.read(now))

    def deadline_is_clients(self) -> bool:
        """Whether the client's own limit (gRPC) is the shorter one."""
        return self.total < self.route.timeouts.total

    def bind(self, bound: BoundRoute) -> None:
        """The route that was found for it."""
        self.bound = bound
        self.route = bound.route
        self.upstream = bound.upstream
        self.record.upstream = bound.route.upstream
        self.head.scheme = bound.upstream.scheme

    def answer(self, head: ResponseHead) -> bytes:
        """How a final answer is called in a fault: its status, or a gRPC call's."""
        return b"grpc-status " + head.known[b"grpc-status"] if self.result else b"%d" % head.status

    def takes_interim(self) -> bool:
        """Whether the client is still without an answer, and can be sent an interim one."""
        return not self.record.status and self.head.version == b"1.1"

    @abstractmethod
    def on_timer(self, now: float) -> None:
        """The timer that `deadlines` sets."""

    # -- ends --------------------------------------------------------------------------------------

    def break_down(self, error: Exception) -> None:
        """Our code for it raised: its client sees the connection end."""
        self.connection.break_down(error)

    def cancel_all(self, now: float) -> None:
        """Nobody wants an answer any more. Where the client was still sending, that says nothing about the endpoint."""
        body = self.body
        theirs = body is None or body.ended or body.paused
        for attempt in self.attempts:
            if attempt is self.winner:
                self._settle_answered(attempt, now)
            else:
                attempt.end(Outcome.CANCELLED if theirs else Outcome.NEUTRAL, now)
        self.attempts.clear()

    def _settle_answered(self, winner: Attempt, now: float) -> None:
        """What came after the winner's head, or did not, is no word about the endpoint that routing does not have."""
        winner.succeed(now, self.result or self.record.status, self.answer_s, None)
        if winner.stream is not None:
            winner.stream.reset(None)

    def response_broke(self, error: ProxyError) -> None:
        """After the winner's head there is no other way than to cut the response short, visibly."""
        now = self.turn.now
        self.record.error = error
        winner = self.winner
        if winner is not None and winner.state is not ENDED:
            self._settle_answered(winner, now)  # a time-out of ours: the origin answered, then one of them was quiet
        self.attempts.clear()
        self.close(now)
        if self.head.version == b"1.0":
            self.connection.break_off()  # its body ends with the connection: only a reset shows that this one is cut
        if self.grpc:
            self.stream.send_trailers(error_trailers(error))
            self.stream.reset(None)
        else:
            self.stream.reset(error)

    def give_up(self, error: ProxyError) -> None:
        """Answer with an error of ours."""
        self.cancel_all(self.turn.now)
        self.record.error = error
        head, body = error_reply(self.record, error, self.grpc, self.retry_after)
        self.reply(head, body)

    def reply(self, head: ResponseHead, body: bytes) -> None:
        """An answer of our own: the last word."""
        head.fields.append((b"date", self.service.date()))
        now = self.turn.now
        record = self.record
        record.status = head.status
        record.first_byte_at = now
        record.bytes_out = len(body)
        stream = self.stream
        if self.switching:
            stream.received_end = True
        self.close(now)
        if body:
            stream.send_headers(head, False)
            stream.send_data(body, True)
        else:
            stream.send_headers(head, True)
        if not stream.received_end:
            stream.reset(None)

    def finish(self, now: float) -> None:
        """The response has been handed over completely."""
        winner = self.winner
        assert winner is not None
        winner.succeed(now, self.result or self.record.status, self.answer_s, None)
        unfinished = not self.complete()
        if unfinished and winner.stream is not None:
            winner.stream.reset(None)  # an early response: what is left of the request is of no use
        self.close(now)
        if unfinished:
            self.stream.reset(None)

    def close(self, now: float) -> None:
        """It ended: count and log it, and forget what it was made of."""
        if self.state is DONE:
            return
        self.state = DONE
        bucket = self.timer_bucket
        if bucket is not None:
            bucket.discard(self)
            self.timer_bucket = None
        record, service = self.record, self.service
        counters, status = service.counters, record.status
        counters.in_flight -= 1
        counters.codes[status] = counters.codes.get(status, 0) + 1
        counters.duration.observe(now - record.started)
        log = service.access_log
        if log.enabled:
            log.add(access_line(record, service.name, log.timestamp(now), now), record.error is not None)
        # Attempts know their owner: without these lines each request would be a reference cycle, left to the collector.
        self.winner = None
        self.attempts = []
        if self.body is not None:
            self.body.let_go()
