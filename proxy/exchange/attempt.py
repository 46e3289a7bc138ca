"""One try of a request at one endpoint: the upstream side's `StreamHandler`.

    WAITING ── a connection ──> SENT ── the winning head ──> WON ── more of it ──> HELD ──> ENDED
      │ ^ └── a first flight ──> EARLY ──┘
      │ └─── its handshake failed ─┘
      └──────── none, lost, cancelled: from everywhere ────────────────────────────────────────^

- EARLY (0-RTT): sent while the connection's handshake goes on; back to WAITING, once, where that fails.
- SENT goes back to WAITING where its connection comes to an orderly end that leaves it out (GOAWAY).
- HELD: its answer goes on (a body, a tunnel): routing counts it as answered, and as open.

An attempt knows the contract of its owner and its stream: no exchange, no HTTP version. Every attempt that began is
settled exactly once with routing.
"""

from __future__ import annotations

from abc import abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from proxy.errors import Kind, ProxyError
from proxy.http.stream import RequestHandler
from proxy.observe.record import TryRecord
from proxy.upstream.contract import Waiter
from routing.balancer import Outcome

from . import zero_rtt

if TYPE_CHECKING:
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields, RequestHead, ResponseHead
    from proxy.loop.turn import Turn
    from proxy.upstream.contract import UpstreamConnection
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.balancer import EndpointState
    from routing.model import Route
    from routing.state import RegionState

    from .body import Body


MOVES_MAX: Final = 16
"""How often an attempt may be left out by the orderly end of a connection before that counts as its failure."""


class State(Enum):
    """Where an attempt stands."""

    WAITING = "waiting"
    EARLY = "early"
    SENT = "sent"
    WON = "won"
    HELD = "held"
    ENDED = "ended"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
WAITING: Final = State.WAITING
EARLY: Final = State.EARLY
SENT: Final = State.SENT
_WON: Final = State.WON
_HELD: Final = State.HELD
ENDED: Final = State.ENDED
_OK: Final = Outcome.OK
_ERROR_STATUS: Final = Outcome.ERROR_STATUS
DISCARD_BYTES: Final = 64 * 1024  # of an answer that nobody wants: past this its connection is worth less than it costs


class AttemptOwner(RequestHandler):
    """Whoever makes attempts for a request: what they read of it, and what they tell."""

    __slots__ = ("body", "early_data", "head", "route", "switching", "turn", "upstream")

    body: Body | None  # None: the request ends with its head
    early_data: zero_rtt.EarlyData
    head: RequestHead
    route: Route
    switching: bool  # it asks for a tunnel: an upgrade, or CONNECT
    turn: Turn
    upstream: UpstreamRuntime

    @abstractmethod
    def on_sent(self, attempt: Attempt, connection: UpstreamConnection) -> None:
        """The request is on its way."""

    @abstractmethod
    def on_interim(self, attempt: Attempt, head: ResponseHead) -> None:
        """100, 102, 103."""

    @abstractmethod
    def on_response(self, attempt: Attempt, head: ResponseHead, end: bool) -> None:
        """A final head: the attempt may win."""

    @abstractmethod
    def on_response_data(self, data: bytes, end: bool) -> None:
        """The winner's body bytes."""

    @abstractmethod
    def on_response_trailers(self, fields: Fields) -> None:
        """The winner's trailers end the response."""

    @abstractmethod
    def may_move(self, attempt: Attempt) -> bool:
        """Whether an attempt that was left out can be sent once more."""

    @abstractmethod
    def on_moved(self, attempt: Attempt) -> None:
        """It waits for another connection."""

    @abstractmethod
    def on_failed(self, attempt: Attempt, error: ProxyError) -> None:
        """It ended without a response."""

    @abstractmethod
    def on_drained(self, region: RegionState, now: float) -> None:
        """The region that an attempt waits for takes no more."""

    @abstractmethod
    def origin_had_s(self, since: float, now: float) -> float:
        """Seconds of the time since then (an attempt's start) that were the origin's: without the client's own pace."""


class Attempt(Waiter):
    """One try. `number` counts from one; `hedge`: it started while another one was still open."""

    __slots__ = (
        "blocked",
        "connection",
        "discarded",
        "hedge",
        "interim",
        "moves",
        "number",
        "owner",
        "record",
        "sent_early",
        "state",
        "stream",
        "target",
        "touched",
        "upgrade",
        "waiting",
    )

    def __init__(self, owner: AttemptOwner, target: EndpointState, number: int, hedge: bool, now: float) -> None:
        self.owner = owner
        self.target = target
        self.number = number
        self.hedge = hedge
        self.record = TryRecord(target, now)
        self.state = WAITING
        self.waiting = True  # as the state: it is what pools read
        self.upgrade = owner.switching and len(owner.head.upgrade) > 0  # not every connection takes one
        self.blocked = False
        self.sent_early = False  # the origin was told `early-data: 1`
        self.discarded = 0
        self.moves = 0
        self.touched = False  # a byte of the request may have reached the origin
        self.stream: ConnectionStream | None = None
        self.connection: UpstreamConnection | None = None
        self.interim: list[ResponseHead] | None = None

    def __repr__(self) -> str:
        return f"<Attempt {self.number} at {self.target.endpoint} {self.state.value}>"

    # -- from the pool -----------------------------------------------------------------------------

    def on_connection(self, connection: UpstreamConnection) -> None:
        """The pool lends a connection: send the request."""
        self.waiting = False
        self.connection = connection
        stream = self.stream = connection.open(self)
        self.state = SENT
        self.touched = True
        self.record.log_target = self.owner.upstream.pool_at[self.target].log_target
        owner = self.owner
        head = owner.head if self.number == 1 else zero_rtt.numbered(owner.head, self.number)
        body = owner.body
        if body is None:
            stream.send_headers(head, True)
        else:
            stream.send_headers(head, False)
            self._send_kept(body, stream)
        owner.on_sent(self, connection)

    def _send_kept(self, body: Body, stream: ConnectionStream) -> None:
        """What there is of the body so far; of a tunnel nothing, before there is one."""
        chunks = body.chunks
        if chunks is None or body.for_tunnel:
            return
        complete = body.ended and body.trailers is None
        last = len(chunks) - 1
        for index, chunk in enumerate(chunks):
            self.send_data(chunk, complete and index == last)
        if complete and not chunks:
            self.send_data(b"", True)
        if body.trailers is not None:
            stream.send_trailers(body.trailers)
        if body.full:
            body.let_go()
        if body.paused and not self.blocked:
            body.resume()

    def may_travel_early(self) -> bool:
        """Whether it may ride in the first flight of a new connection."""
        owner = self.owner
        return zero_rtt.may_travel(
            owner.head,
            owner.early_data,
            enabled=owner.route.early_data,
            has_body=owner.body is not None,
            upgrade=owner.switching,
        )

    def early_head(self) -> RequestHead:
        """The head as it travels in a first flight."""
        return zero_rtt.early_head(self.owner.head, self.number)

    def on_early(self, connection: UpstreamConnection, stream: ConnectionStream) -> None:
        """The request is in the first flight of a new connection."""
        self.waiting = False
        self.connection = connection
        self.stream = stream
        self.state = EARLY
        self.touched = self.sent_early = True
        self.record.log_target = self.owner.upstream.pool_at[self.target].log_target
        self.owner.on_sent(self, connection)

    def on_early_accepted(self) -> None:
        """The handshake is done, and the request simply under way."""
        if self.state is EARLY:
            self.state = SENT

    def on_early_rejected(self, connection: UpstreamConnection) -> None:
        """The origin did not look at it: send it again, now that the handshake is done."""
        self.sent_early = False
        self.on_connection(connection)

    def _wait_again(self) -> None:
        """The handshake that it was part of failed: wait for a connection, and for its handshake."""
        owner = self.owner
        self.sent_early = self.touched = False
        owner.early_data = zero_rtt.REFUSED
        self.stream = self.connection = None
        self.state = WAITING
        self.waiting = True
        pool = owner.upstream.pool_at[self.target]
        pool.carried_in_vain += 1
        owner.on_moved(self)  # within the time for a connection that began with the first handshake
        pool.acquire(self)

    def _move(self) -> None:
        """The orderly end of its connection left it out: the same attempt goes over another one."""
        owner = self.owner
        self.moves += 1
        self.blocked = False
        self.connection = None
        self.state = WAITING
        self.waiting = True
        self.record.started = owner.turn.now
        owner.on_moved(self)
        owner.upstream.pool_at[self.target].acquire(self)

    def on_drained(self, now: float) -> None:
        """Its region takes no more."""
        self.owner.on_drained(self.target.region, now)

    def on_no_connection(self, error: ProxyError) -> None:
        """The pool has none and will have none for this attempt."""
        self.waiting = False
        self._fail(error, _outcome(error, Outcome.CONNECT_FAILED))

    # -- from the stream ---------------------------------------------------------------------------

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """A response head: interim ones pass, the final one may win."""
        response = cast("ResponseHead", head)
        if response.status < 200 and response.status != 101:
            self.owner.on_interim(self, response)
        else:
            self.owner.on_response(self, response, end)

    def on_data(self, data: bytes, end: bool) -> None:
        """Response body bytes."""
        if self.state is _WON or self.state is _HELD:
            self.owner.on_response_data(data, end)
        elif self.state is ENDED:
            self.discarded += len(data)
            if self.discarded > DISCARD_BYTES and self.stream is not None:
                self.stream.reset(None)

    def on_trailers(self, fields: Fields) -> None:
        """The response's trailers."""
        if self.state is _WON or self.state is _HELD:
            self.owner.on_response_trailers(fields)

    def on_writable(self) -> None:
        """The origin takes more of the request's body."""
        body = self.owner.body
        if self.blocked and body is not None:
            self.blocked = False
            body.resume()

    def on_reset(self, error: ProxyError) -> None:
        """The stream ended before its time."""
        if self.state is EARLY:
            self._wait_again()
            return
        self.touched = not error.unprocessed
        self.stream = None
        if error.going_away and self.moves < MOVES_MAX and self.owner.may_move(self):
            self._move()
            return
        self._fail(error, _outcome(error, Outcome.REFUSED_STREAM if error.unprocessed else Outcome.RESET))

    # -- from the owner ----------------------------------------------------------------------------

    def send_data(self, data: bytes, end: bool) -> None:
        """Pass on request body bytes."""
        stream = self.stream
        if stream is not None and not stream.send_data(data, end) and not self.blocked:
            self.blocked = True
            body = self.owner.body
            assert body is not None, "nothing but a body's bytes are sent here"
            body.pause()

    def win(self) -> None:
        """This attempt's response goes to the client."""
        self.state = _WON

    def hold(self, now: float, first_byte_s: float) -> None:
        """The answer came and goes on (a body, a tunnel): routing hears of it now, and of its end later."""
        if self.state is _WON:
            self.state = _HELD
            self.owner.upstream.balancer.established(self.target, now, first_byte_s)

    def succeed(self, now: float, status: int, first_byte_s: float, retry_after: float | None) -> None:
        """Settle with routing: a response came."""
        before = self.state
        if before is ENDED:
            return
        self.state = ENDED
        balancer = self.owner.upstream.balancer
        if before is _HELD:
            balancer.closed(self.target)
        else:
            outcome = _OK if status < 500 or status in (501, 505) else _ERROR_STATUS
            balancer.finish(self.target, now, outcome, first_byte_s, status, retry_after=retry_after)

    def end(self, outcome: Outcome, now: float, winner_s: float = 0.0) -> None:
        """Give up: cancel on the wire, settle with routing. Idempotent. `winner_s`: the time of who won instead."""
        before = self.state
        if before is ENDED:
            return
        self.state = ENDED
        if self.waiting:
            self.waiting = False
            self.owner.upstream.pool_at[self.target].forget(self)
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(None)
        owner = self.owner
        balancer = owner.upstream.balancer
        if before is _HELD:
            balancer.closed(self.target)
        else:
            balancer.finish(self.target, now, outcome, owner.origin_had_s(self.record.started, now), winner=winner_s)

    def time_out(self, kind: Kind, text: str, now: float, outcome: Outcome) -> ProxyError:
        """End because a deadline passed."""
        error = self.record.error = ProxyError(kind, text, unprocessed=not self.touched)
        self.end(outcome, now)
        return error

    def _fail(self, error: ProxyError, outcome: Outcome) -> None:
        if self.state is ENDED:
            return
        self.record.error = error
        self.end(outcome, self.owner.turn.now)
        self.owner.on_failed(self, error)


def _outcome(error: ProxyError, otherwise: Outcome) -> Outcome:
    """What routing is told of a fault: nothing, where it says nothing about the endpoint."""
    return otherwise if error.blames_endpoint else Outcome.NEUTRAL
