"""One try of a request at one endpoint: the upstream side's `StreamHandler`.

    WAITING ── a connection ──> SENT ── the winning head ──> WON ──> ENDED
       └──────── none, lost, cancelled ────────┴─────────────────────┘

With 0-RTT (`early`) it is SENT while the connection's handshake goes on, and back to WAITING, once, where that fails.
It also goes back where its connection comes to an orderly end that leaves it out (GOAWAY).

An attempt knows its exchange and its stream, no HTTP version. Every attempt that began is settled exactly once with
routing.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from proxy.errors import Kind, ProxyError
from proxy.http.message import RequestHead, ResponseHead
from proxy.upstream.contract import Waiter
from routing.balancer import Outcome
from tlscache.early_data import may_travel_early

if TYPE_CHECKING:
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields
    from proxy.upstream.contract import UpstreamConnection
    from routing.balancer import EndpointState

    from .exchange import Exchange


MOVES_MAX: Final = 16
"""How often an attempt may be left out by the orderly end of a connection before that counts as its failure."""


class State(Enum):
    """Where an attempt stands."""

    WAITING = "waiting"
    SENT = "sent"
    WON = "won"
    ENDED = "ended"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_WAITING: Final = State.WAITING
_SENT: Final = State.SENT
_WON: Final = State.WON
_ENDED: Final = State.ENDED
_OK: Final = Outcome.OK
_ERROR_STATUS: Final = Outcome.ERROR_STATUS
_EARLY_DATA: Final = (b"early-data", b"1")
DISCARD_BYTES: Final = 64 * 1024  # of an answer that nobody wants: past this its connection is worth less than it costs


class Attempt(Waiter):
    """One try. `number` counts from one; `hedge`: it started while another one was still open."""

    __slots__ = (
        "blocked",
        "connected_at",
        "connection",
        "discarded",
        "early",
        "error",
        "exchange",
        "hedge",
        "held",
        "interim",
        "moves",
        "number",
        "seconds",
        "sent_early",
        "started",
        "state",
        "stream",
        "target",
        "touched",
        "upgrade",
        "waiting",
    )

    def __init__(self, exchange: Exchange, target: EndpointState, number: int, hedge: bool, now: float) -> None:
        self.exchange = exchange
        self.target = target
        self.number = number
        self.hedge = hedge
        self.started = now
        self.connected_at = 0.0
        self.state = _WAITING
        self.waiting = True  # the pool reads this: False, and it passes the attempt over
        self.upgrade = exchange.switching and len(exchange.head.upgrade) > 0  # not every connection takes one
        self.blocked = False
        self.held = False  # routing counts it as answered, and as open
        self.early = False  # it rides in a first flight whose handshake goes on
        self.sent_early = False  # the origin was told `early-data: 1`
        self.discarded = 0
        self.moves = 0
        self.touched = False  # a byte of the request may have reached the origin
        self.stream: ConnectionStream | None = None
        self.connection: UpstreamConnection | None = None
        self.seconds = (0.0, 0.0, 0.0)  # the dial that this attempt waited for: dns, tcp, tls
        self.error: ProxyError | None = None
        self.interim: list[ResponseHead] | None = None

    def __repr__(self) -> str:
        return f"<Attempt {self.number} at {self.target.endpoint} {self.state.value}>"

    # -- from the pool -----------------------------------------------------------------------------

    def on_connection(self, connection: UpstreamConnection) -> None:
        """The pool lends a connection: send the request."""
        self.waiting = False
        self.connection = connection
        stream = self.stream = connection.open(self)
        self.state = _SENT
        self.touched = True
        exchange = self.exchange
        head = exchange.head if self.number == 1 else _numbered(exchange.head, self.number)
        if exchange.bodyless:
            stream.send_headers(head, True)
        else:
            stream.send_headers(head, False)
            exchange.send_replay(self)
        exchange.on_attempt_sent(self, connection)

    def may_travel_early(self) -> bool:
        """Whether it may ride in the first flight of a new connection."""
        exchange = self.exchange
        head = exchange.head
        return not exchange.early_refused and may_travel_early(
            head.method,
            enabled=exchange.route.early_data,
            has_body=not exchange.bodyless,
            upgrade=exchange.switching,
            expect_continue=head.expect_continue,
        )

    def early_head(self) -> RequestHead:
        """The head as it travels in a first flight: it says so (RFC 8470 section 5.1)."""
        head = self.exchange.head
        fields = [] if head.early else [_EARLY_DATA]
        if self.number > 1:
            fields.append((b"onetrip-attempt", b"%d" % self.number))
        return _with_fields(head, fields)

    def on_early(self, connection: UpstreamConnection, stream: ConnectionStream) -> None:
        """The request is in the first flight of a new connection."""
        self.waiting = False
        self.connection = connection
        self.stream = stream
        self.state = _SENT
        self.touched = self.early = self.sent_early = True
        self.exchange.on_attempt_sent(self, connection)

    def on_early_accepted(self) -> None:
        """The handshake is done, and the request simply under way."""
        self.early = False

    def on_early_rejected(self, connection: UpstreamConnection) -> None:
        """The origin did not look at it: send it again, now that the handshake is done."""
        self.early = self.sent_early = False
        self.on_connection(connection)

    def _wait_again(self) -> None:
        """The handshake that it was part of failed: wait for a connection, and for its handshake."""
        self.early = self.sent_early = self.touched = False
        self.exchange.early_refused = True
        self.stream = self.connection = None
        self.state = _WAITING
        self.waiting = True
        self.target.pool.carried_in_vain += 1
        self.exchange.on_moved(self)  # within the time for a connection that began with the first handshake
        self.target.pool.acquire(self)

    def _move(self) -> None:
        """The orderly end of its connection left it out: the same attempt goes over another one."""
        exchange = self.exchange
        self.moves += 1
        self.blocked = False
        self.connection = None
        self.state = _WAITING
        self.waiting = True
        self.started = exchange.connection.turn.now
        exchange.on_moved(self)
        self.target.pool.acquire(self)

    def on_drained(self, now: float) -> None:
        """Its region takes no more."""
        self.exchange.rescue(self.target.region, now)

    def on_no_connection(self, error: ProxyError) -> None:
        """The pool has none and will have none for this attempt."""
        self.waiting = False
        self._fail(error, _outcome(error, Outcome.CONNECT_FAILED))

    # -- from the stream ---------------------------------------------------------------------------

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """A response head: interim ones pass, the final one may win."""
        response = cast("ResponseHead", head)
        if response.status < 200 and response.status != 101:
            self.exchange.on_interim(self, response)
        else:
            self.exchange.on_response(self, response, end)

    def on_data(self, data: bytes, end: bool) -> None:
        """Response body bytes."""
        if self.state is _WON:
            self.exchange.on_response_data(data, end)
        elif self.state is _ENDED:
            self.discarded += len(data)
            if self.discarded > DISCARD_BYTES and self.stream is not None:
                self.stream.reset(None)

    def on_trailers(self, fields: Fields) -> None:
        """The response's trailers."""
        if self.state is _WON:
            self.exchange.on_response_trailers(fields)

    def on_writable(self) -> None:
        """The origin takes more of the request's body."""
        if self.blocked:
            self.blocked = False
            self.exchange.resume_request()

    def on_reset(self, error: ProxyError) -> None:
        """The stream ended before its time."""
        if self.early and self.state is _SENT:
            self._wait_again()
            return
        self.touched = not error.unprocessed
        self.stream = None
        if error.going_away and self.moves < MOVES_MAX and self.exchange.may_move(self):
            self._move()
            return
        self._fail(error, _outcome(error, Outcome.REFUSED_STREAM if error.unprocessed else Outcome.RESET))

    # -- from the exchange -------------------------------------------------------------------------

    def send_data(self, data: bytes, end: bool) -> None:
        """Pass on request body bytes."""
        stream = self.stream
        if stream is not None and not stream.send_data(data, end) and not self.blocked:
            self.blocked = True
            self.exchange.pause_request()

    def win(self) -> None:
        """This attempt's response goes to the client."""
        self.state = _WON

    def hold(self, now: float, first_byte_s: float) -> None:
        """The answer came and goes on (a body, a tunnel): routing hears of it now, and of its end later."""
        if not self.held and self.state is _WON:
            self.held = True
            self.exchange.upstream.balancer.established(self.target, now, first_byte_s)

    def succeed(self, now: float, status: int, first_byte_s: float, retry_after: float | None) -> None:
        """Settle with routing: a response came."""
        if self.state is _ENDED:
            return
        self.state = _ENDED
        balancer = self.exchange.upstream.balancer
        if self.held:
            balancer.closed(self.target)
        else:
            outcome = _OK if status < 500 or status in (501, 505) else _ERROR_STATUS
            balancer.finish(self.target, now, outcome, first_byte_s, status, retry_after=retry_after)

    def end(self, outcome: Outcome, now: float, winner_s: float = 0.0) -> None:
        """Give up: cancel on the wire, settle with routing. Idempotent. `winner_s`: the time of who won instead."""
        if self.state is _ENDED:
            return
        self.state = _ENDED
        if self.waiting:
            self.waiting = False
            self.target.pool.forget(self)
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.reset(None)
        exchange = self.exchange
        balancer = exchange.upstream.balancer
        if self.held:
            balancer.closed(self.target)
        else:
            balancer.finish(self.target, now, outcome, exchange.origin_had_s(self.started, now), winner=winner_s)

    def time_out(self, kind: Kind, text: str, now: float, outcome: Outcome) -> ProxyError:
        """End because a deadline passed."""
        error = self.error = ProxyError(kind, text, unprocessed=not self.touched)
        self.end(outcome, now)
        return error

    def _fail(self, error: ProxyError, outcome: Outcome) -> None:
        if self.state is _ENDED:
            return
        self.error = error
        self.end(outcome, self.exchange.connection.turn.now)
        self.exchange.on_attempt_failed(self, error)


def _outcome(error: ProxyError, otherwise: Outcome) -> Outcome:
    """What routing is told of a fault: nothing, where it says nothing about the endpoint."""
    return otherwise if error.blames_endpoint else Outcome.NEUTRAL


def _numbered(head: RequestHead, number: int) -> RequestHead:
    """The head of a further attempt: it tells the origin which one it is."""
    return _with_fields(head, [(b"onetrip-attempt", b"%d" % number)])


def _with_fields(head: RequestHead, fields: Fields) -> RequestHead:
    return RequestHead(
        head.method,
        head.target,
        head.authority,
        [*head.fields, *fields],
        head.known,
        scheme=head.scheme,
        content_length=head.content_length,
        upgrade=head.upgrade,
        expect_continue=head.expect_continue,
        te_trailers=head.te_trailers,
        version=head.version,
    )
