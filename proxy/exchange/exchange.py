"""One request from its head to the end of its response: the downstream side's `StreamHandler`.

    ROUTING ──> TRYING ── the first acceptable final head ──> RELAYING ──> DONE
                  └── nothing left to try: an error of ours ─────────────────┘

Rules (DESIGN: replay, winner, hedge, loser):
- Nothing but interim heads of an only attempt reaches the client before there is a winner; afterwards there is no
  second try.
- At most `REPLAY_BYTES` of the request's body are kept for another try. Past that the live attempt goes on, and none
  can follow.
- A request goes again on its own only while no byte of it may have reached an origin, or where its method (or an
  idempotency key) makes that safe. A 502, 503 or 504 of a first try loses to a try that is still possible.
- What is not idempotent is in one place at a time: an attempt that is replaced is withdrawn before its successor
  starts.
- What an origin is measured by is its own time (`origin_had_s`): from the end of the request, or from its last byte;
  how fast a client sends says nothing about an endpoint, and neither does what runs out here (`errors.Blame`).
- A hedge starts only when the request is complete, never for an upgrade, CONNECT or `expect`, and only on a warm
  connection.
- One timer holds the earliest of the hedge's time and the deadlines; activity moves a time stamp, not the timer.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final, cast

from proxy.errors import CLIENT_CLOSED_REQUEST, Blame, Kind, ProxyError, Source
from proxy.http.grpc import call_status, error_trailers, is_call, timeout_s
from proxy.http.message import ResponseHead
from proxy.http.semantics import decimal
from proxy.http.stream import RequestHandler
from proxy.observe.access_line import access_line
from routing.balancer import Outcome

from .attempt import _SENT as ATTEMPT_SENT
from .attempt import _WON as ATTEMPT_WON
from .attempt import MOVES_MAX, Attempt
from .forward import is_last_hop, rewrite, settle_tunnel
from .reply import debug_fields, error_reply, final_answer
from .service import Service

if TYPE_CHECKING:
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields, RequestHead
    from proxy.http.serving import Downstream
    from proxy.loop.timers import Timed
    from proxy.upstream.contract import UpstreamConnection
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.balancer import EndpointState
    from routing.model import Route
    from routing.region import RegionState

    from .service import BoundRoute

REPLAY_BYTES: Final = 64 * 1024
HEDGE_AGAIN_S: Final = 0.05
CONTINUE_AFTER_S: Final = 1.0
"""What an origin has to answer an expectation (RFC 9110 section 10.1.1). Some never do, and some clients wait for ever:
then the 100 is ours."""
SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
RETRIED_STATUSES: Final = frozenset((425, 502, 503, 504))


class State(Enum):
    """Where an exchange stands."""

    ROUTING = "routing"
    TRYING = "trying"
    RELAYING = "relaying"
    DONE = "done"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_ROUTING: Final = State.ROUTING
_TRYING: Final = State.TRYING
_RELAYING: Final = State.RELAYING
_DONE: Final = State.DONE


class Exchange(RequestHandler):
    """One request. Its connection makes it; it lives until its response has been sent, or nobody wants it any more."""

    __slots__ = (
        "active_at",
        "answer_s",
        "attempts",
        "bodyless",
        "bound",
        "bytes_in",
        "bytes_out",
        "client_eof",
        "connection",
        "continue_at",
        "downstream_blocked",
        "early_refused",
        "error",
        "first_byte_at",
        "grpc",
        "head",
        "hedge_at",
        "hedge_delay",
        "hedged",
        "hop_trusted",
        "idempotent",
        "path",
        "replay",
        "replay_bytes",
        "replay_trailers",
        "request_end",
        "request_ended_at",
        "request_id",
        "request_paused",
        "response_end",
        "result",
        "retry_after",
        "route",
        "sent_at",
        "service",
        "session_key",
        "shared_faults",
        "started",
        "state",
        "status",
        "stream",
        "switching",
        "timer_bucket",
        "too_early_at",
        "total",
        "traceparent",
        "tried",
        "tunnel",
        "upstream",
        "winner",
    )

    upstream: UpstreamRuntime
    route: Route
    head: RequestHead
    bound: BoundRoute

    def __init__(self, service: Service, connection: Downstream, stream: ConnectionStream) -> None:
        self.service = service
        self.stream = stream
        self.connection = connection
        self.state = _ROUTING
        self.timer_bucket: set[Timed] | None = None
        self.started = self.active_at = self.connection.turn.now
        self.sent_at = self.first_byte_at = 0.0
        self.hedge_at = 0.0
        self.hedge_delay = 0.0  # of a request whose body is under way: from its end
        self.request_ended_at = 0.0  # 0.0: with its head
        self.answer_s = 0.0  # what the winner took for its head
        self.continue_at = 0.0  # when a client that waits for 100 gets it from us
        self.attempts: list[Attempt] = []  # live ones
        self.tried: list[Attempt] = []  # all, in order
        self.winner: Attempt | None = None
        self.replay: list[bytes] | None = None
        self.replay_bytes = 0
        self.replay_trailers: Fields | None = None
        self.bodyless = True
        self.request_end = True
        self.request_paused = False
        self.response_end = False
        self.downstream_blocked = False
        self.idempotent = False
        self.switching = False
        self.tunnel = False
        self.hedged = False
        self.client_eof = False
        self.early_refused = False  # 0-RTT was tried in vain: not again
        self.too_early_at: EndpointState | None = None  # who answered 425 before the client's handshake was done
        self.bytes_in = self.bytes_out = 0
        self.status = 0
        self.grpc = False
        self.result = 0  # of a gRPC call, as an HTTP status; 0: `status` tells it
        self.total = 0.0  # seconds for all of it: the route's, or what the client has left
        self.error: ProxyError | None = None
        self.shared_faults = 0  # tries that another request's fault took with it: they don't count
        self.retry_after = 0.0
        self.request_id = self.traceparent = b""
        self.session_key: bytes | None = None
        self.path = b""

    def __repr__(self) -> str:
        return f"<Exchange {self.head!r} {self.state.value} attempts={len(self.tried)} winner={self.winner!r}>"

    # -- the request -------------------------------------------------------------------------------

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """The request's head: route it and try."""
        self.head = request = cast("RequestHead", head)
        service = self.service
        service.counters.in_flight += 1
        self.path = request.target
        method = request.method
        if not end:
            self.bodyless = False
            self.switching = bool(request.upgrade) or method == b"CONNECT"
            self.request_end = self.switching
            self.replay = []
            if request.expect_continue:
                self.continue_at = self.started + CONTINUE_AFTER_S
        hop = self.connection.hop
        self.hop_trusted = hop.trusted
        self.grpc = request.te_trailers and method == b"POST" and is_call(request)
        if method in (b"OPTIONS", b"TRACE") and is_last_hop(request):
            self._reply(final_answer(request))
            return
        ids = rewrite(request, hop)
        if type(ids) is ProxyError:
            self.refuse(ids)
            return
        self.request_id, self.traceparent = cast("tuple[bytes, bytes]", ids)
        if request.early and (b"early-data", b"1") not in request.fields:
            request.fields.append((b"early-data", b"1"))
        bound = service.table.match(request.authority, request.target, method, request.fields)
        if bound is None:
            self.refuse(service.no_route(request))
            return
        route = bound.route
        if self.switching:
            refused = settle_tunnel(request, route)
            if refused is not None:
                self.refuse(refused)
                return
            if not request.upgrade and method != b"CONNECT":  # ignored: the request ends with its head
                self.switching, self.bodyless, self.replay = False, True, None
                self.stream.received_end = True
        self.bound = bound
        self.route = route
        self.total = route.timeouts.total
        if self.grpc and (left := timeout_s(request)) is not None and left < self.total:
            self.total = left
        self.upstream = upstream = bound.upstream
        retry = route.retry
        self.idempotent = method in SAFE_METHODS or (
            retry is not None and retry.idempotency_key and b"idempotency-key" in request.known
        )
        balancer = upstream.balancer
        request.scheme = upstream.scheme
        if upstream.session_key is not None:
            self.session_key = upstream.affinity(request, hop)
        now = self.started
        target = balancer.pick(now, self.session_key)
        if target is None:
            self.retry_after = balancer.retry_after(now)
            self._give_up(ProxyError(Kind.UNAVAILABLE, upstream.nothing_available(now), unprocessed=True))
            return
        self.state = _TRYING
        balancer.count_request(now, bound.budget)
        if route.hedge is not None and self.idempotent and not self.switching and not request.expect_continue:
            delay = balancer.hedge_delay(now, target, None, route.hedge)
            if delay is not None and self.request_end:
                self.hedge_at = now + delay
            elif delay is not None:
                self.hedge_delay = delay
        self._try(Attempt(self, target, 1, False, now), now)

    def on_data(self, data: bytes, end: bool) -> None:
        """Request body bytes (or, in a tunnel, the client's)."""
        self.bytes_in += len(data)
        self.active_at = self.connection.turn.now
        if end:
            self.request_end = True
        if self.tunnel:
            if self.winner is not None:
                self.winner.send_data(data, end)
            if end and self.response_end:
                self._finish(self.active_at)
            return
        replay = self.replay
        if replay is not None:
            if data:
                replay.append(data)
                self.replay_bytes += len(data)
            if self.switching:
                self._hold_for_tunnel(end)
                return
            if self.replay_bytes > REPLAY_BYTES:
                if any(attempt.stream is not None for attempt in self.attempts):
                    self.replay = None
                elif self.state is not _DONE:
                    self.pause_request()  # nowhere to send it yet: the client waits
        for attempt in self.attempts:
            attempt.send_data(data, end)
        if end:
            self._request_ended(self.active_at)

    def _hold_for_tunnel(self, end: bool) -> None:
        """What comes before the answer is the tunnel's, if there will be one: kept until then, all of it."""
        if end:
            self.client_eof = True
        if self.replay_bytes > REPLAY_BYTES:
            self.pause_request()

    def _send_held(self, attempt: Attempt) -> None:
        """The tunnel is open: its first bytes."""
        chunks, self.replay = self.replay, None
        for chunk in chunks or ():
            attempt.send_data(chunk, False)
        if self.client_eof:
            attempt.send_data(b"", True)
        if self.request_paused and not attempt.blocked:
            self.resume_request()

    def on_trailers(self, fields: Fields) -> None:
        """The request's trailers end it."""
        self.request_end = True
        self.replay_trailers = fields
        for attempt in self.attempts:
            if attempt.stream is not None:
                attempt.stream.send_trailers(fields)
        self._request_ended(self.connection.turn.now)

    def _request_ended(self, now: float) -> None:
        self.request_ended_at = self.active_at = now
        if self.state is _TRYING and self.hedge_delay:
            self.hedge_at = now + self.hedge_delay
        self._arm(now)

    def origin_had_s(self, since: float, now: float) -> float:
        """Seconds of the time since then (an attempt's start) that were the origin's: without the client's own pace."""
        asked = self.request_ended_at if self.request_end else self.active_at
        return now - (asked if asked > since else since)

    def _answered_s(self, attempt: Attempt, now: float) -> float:
        """What an answer took. One that comes before the request is complete may answer any part of it: it is never
        taken for slower than the endpoint is believed to be.
        """
        if self.request_end:
            return self.origin_had_s(attempt.connected_at, now)
        target = attempt.target
        return min(now - attempt.connected_at, target.floor.value + target.service.read(now))

    def send_replay(self, attempt: Attempt) -> None:
        """An attempt has its connection: send what there is of the body so far."""
        chunks = self.replay
        if self.switching or chunks is None:
            return
        stream = attempt.stream
        assert stream is not None
        complete = self.request_end and self.replay_trailers is None
        last = len(chunks) - 1
        for index, chunk in enumerate(chunks):
            attempt.send_data(chunk, complete and index == last)
        if complete and not chunks:
            attempt.send_data(b"", True)
        if self.replay_trailers is not None:
            stream.send_trailers(self.replay_trailers)
        if self.replay_bytes > REPLAY_BYTES:
            self.replay = None
        if self.request_paused and not attempt.blocked:
            self.resume_request()

    def pause_request(self) -> None:
        """The origin (or the replay buffer) takes no more: stop reading the body."""
        if not self.request_paused:
            self.request_paused = True
            self.stream.pause()

    def resume_request(self) -> None:
        """Read on."""
        if self.request_paused:
            self.request_paused = False
            self.stream.resume()

    # -- attempts ----------------------------------------------------------------------------------

    def _try(self, attempt: Attempt, now: float) -> None:
        self.attempts.append(attempt)
        self.tried.append(attempt)
        self.upstream.balancer.begin(attempt.target, now)
        attempt.target.pool.acquire(attempt)
        if self.state is not _DONE:
            self._arm(now)

    def on_attempt_sent(self, attempt: Attempt, connection: UpstreamConnection) -> None:
        """The request is on its way."""
        if attempt.number > 1 or connection.uses == 1:
            now = self.connection.turn.now
            attempt.connected_at = now
            self._arm(now)  # from waiting for a connection to waiting for an answer
            if connection.uses == 1 and now - attempt.started > 0.0005:
                attempt.seconds = connection.seconds
        else:
            attempt.connected_at = attempt.started
        if not self.sent_at:
            self.sent_at = attempt.connected_at

    def on_interim(self, attempt: Attempt, head: ResponseHead) -> None:
        """100, 102, 103: passed on at once where there is only one attempt, kept until it wins where there are more."""
        if head.status == 100:
            self.continue_at = 0.0
        if attempt.state is ATTEMPT_SENT and len(self.attempts) == 1 and not self.hedged:
            self.active_at = self.connection.turn.now
            self.stream.send_headers(head, False)
        elif attempt.interim is None:
            attempt.interim = [head]
        else:
            attempt.interim.append(head)

    def on_response(self, attempt: Attempt, head: ResponseHead, end: bool) -> None:
        """A final head: it wins, unless it is a gateway error and something better is still possible."""
        now = self.connection.turn.now
        if self.grpc and end and head.status == 200:
            self.result = call_status(head.known.get(b"grpc-status"))
        if (head.status in RETRIED_STATUSES or self.result == 503) and self._replaced(attempt, head, now):
            self.result = 0
            return
        self.winner = attempt
        attempt.win()
        self.state = _RELAYING
        self.first_byte_at = now
        self.answer_s = answer_s = self._answered_s(attempt, now)
        self.active_at = now
        if len(self.attempts) > 1:
            self._cancel_losers(attempt, now)
        self.attempts = [attempt]
        self.upstream.counters.latency[attempt.target.region.name].observe(answer_s)
        stream = self.stream
        if attempt.interim:
            for interim in attempt.interim:
                stream.send_headers(interim, False)
        if self.switching:
            self._decide_tunnel(attempt, head)
        self.status = head.status
        if b"date" not in head.known and head.status >= 200:
            head.fields.append((b"date", self.service.date()))
        if self.hop_trusted and self.head.known.get(b"onetrip-debug") == b"1":
            head.fields += debug_fields(self, now)
        if self.hedge_at or self.timer_bucket is not None:
            self.hedge_at = 0.0
        stream.send_headers(head, end)
        if end:
            self._finish(now)

    def _decide_tunnel(self, attempt: Attempt, head: ResponseHead) -> None:
        """The answer to an upgrade or CONNECT: bytes flow both ways from now on, or it was an ordinary request after
        all.
        """
        if head.status == 101 or (self.head.method == b"CONNECT" and head.status < 300):
            self.tunnel = True
            self.request_end = self.client_eof
            attempt.hold(self.first_byte_at, self.answer_s)
            self._send_held(attempt)
            return
        self.replay = None
        self.resume_request()
        self.stream.received_end = True
        if attempt.stream is not None:
            attempt.stream.sent_end = True

    def on_response_data(self, data: bytes, end: bool) -> None:
        """The winner's body bytes."""
        self.bytes_out += len(data)
        winner = self.winner
        if not end and winner is not None and not winner.held:
            winner.hold(self.connection.turn.now, self.answer_s)
        if not self.stream.send_data(data, end):
            if not self.downstream_blocked and self.winner is not None and self.winner.stream is not None:
                self.downstream_blocked = True
                self.winner.stream.pause()
        elif end:
            self.response_end = True
            if self.tunnel and not self.request_end:
                self.active_at = self.connection.turn.now
                return  # half-closed: the client may still send
            self._finish(self.connection.turn.now)
            return
        self.active_at = self.connection.turn.now

    def on_response_trailers(self, fields: Fields) -> None:
        """The winner's trailers end the response."""
        if self.grpc:
            self.result = call_status(next((value for name, value in fields if name == b"grpc-status"), None))
        self.stream.send_trailers(fields)
        self._finish(self.connection.turn.now)

    def on_writable(self) -> None:
        """The client takes more."""
        if self.downstream_blocked:
            self.downstream_blocked = False
            if self.winner is not None and self.winner.stream is not None:
                self.winner.stream.resume()

    def _replaced(self, attempt: Attempt, head: ResponseHead, now: float) -> bool:
        """Whether a gateway error loses: to an attempt that is still open, or to a retry that starts now."""
        if head.status == 425:
            return self._too_early(attempt, now)
        after = _retry_after(head)
        others = len(self.attempts) > 1
        if not others and not (self.idempotent and self._may_retry(now)):
            return False
        target = None
        if not others:
            balancer = self.upstream.balancer
            target = balancer.pick_alternate(now, [a.target for a in self.tried], False)
            if target is None or not self._may_load(target, now):
                self.upstream.counters.retry("status", "denied")
                return False
        status = self.result or head.status
        answer = b"grpc-status " + head.known[b"grpc-status"] if self.result else b"%d" % status
        attempt.error = ProxyError(Kind.UNAVAILABLE, f"{attempt.target.endpoint} answered {answer.decode('latin-1')}")
        self.attempts.remove(attempt)
        attempt.succeed(now, status, self._answered_s(attempt, now), after)
        if attempt.stream is not None:
            attempt.stream.reset(None)
        if target is not None:
            self.upstream.counters.retry("status", "started")
            self._try(Attempt(self, target, len(self.tried) + 1, False, now), now)
        return True

    def _too_early(self, attempt: Attempt, now: float) -> bool:
        """425 (RFC 8470 section 5.2): whether the request goes again, once, without early data.

        The answer is the client's own business where its request said `early-data` already, or none travelled early.
        """
        head = self.head
        if self.early_refused or b"early-data" in head.known or not (attempt.sent_early or head.early):
            return False
        self.attempts.remove(attempt)
        attempt.error = ProxyError(Kind.TOO_EARLY, f"{attempt.target.endpoint} answered 425")
        attempt.succeed(now, 425, self._answered_s(attempt, now), None)
        if not self.attempts:
            self.early_refused = True
            if head.early and self.connection.unconfirmed(self):
                self.too_early_at = attempt.target  # a replay never gets further than this
            else:
                self._try_late(attempt.target, now)
        return True

    def on_confirmed(self) -> None:
        """The client's handshake is complete: what had to wait for that may go now."""
        target, self.too_early_at = self.too_early_at, None
        if target is not None and self.state is not _DONE:
            self._try_late(target, self.connection.turn.now)

    def _try_late(self, target: EndpointState, now: float) -> None:
        head = self.head
        if head.early:
            head.early = False
            head.fields.remove((b"early-data", b"1"))
        self.upstream.counters.retry("too_early", "started")
        self._try(Attempt(self, target, len(self.tried) + 1, False, now), now)

    def _cancel_losers(self, winner: Attempt, now: float) -> None:
        hedges = self.upstream.counters.hedges
        hedges["won" if winner.hedge else "lost"] += 1
        winner_s = self.origin_had_s(winner.started, now)
        for attempt in self.attempts:
            if attempt is not winner:
                attempt.end(Outcome.HEDGE_LOST, now, winner_s)

    def may_move(self, attempt: Attempt) -> bool:
        """Whether an attempt that was left out can be sent once more: all of the request's body is still here."""
        return attempt.state is ATTEMPT_SENT and (self.bodyless or self.switching or self.replay is not None)

    def on_moved(self, attempt: Attempt) -> None:
        """It waits for another connection."""
        self._arm(self.connection.turn.now)

    def on_attempt_failed(self, attempt: Attempt, error: ProxyError) -> None:
        """An attempt ended without a response: wait for another, start another, or tell the client."""
        now = self.connection.turn.now
        if attempt in self.attempts:
            self.attempts.remove(attempt)
        if self.state is _DONE:
            return
        if attempt is self.winner:
            self._response_broke(error)
            return
        if attempt.sent_early:
            self.early_refused = True
        if self.attempts:
            return  # the other one may still win
        replaced = error.kind is Kind.REPLACED and error.unprocessed
        if not (self._replace(attempt, now) if replaced else self._retry(attempt, error, now)):
            self._give_up(error)

    def _retry(self, attempt: Attempt, error: ProxyError, now: float) -> bool:
        """Another attempt, where the fault is none that would meet it too, and the request may be sent (again)."""
        stale = error.unprocessed and attempt.connection is not None  # it died before it could read the request
        unseen = error.unprocessed or not attempt.touched
        if error.shared and self.shared_faults < MOVES_MAX:
            self.shared_faults += 1
        if error.kind.blame is Blame.REQUEST or not self._may_retry(now, stale) or not (unseen or self.idempotent):
            return False
        tried = [a.target for a in self.tried]
        target = self.upstream.balancer.pick_alternate(now, tried, False)
        if target in tried and error.kind.blame is Blame.PROXY:
            target = None  # what ran out there has not come back by now
        reason = error.kind.label
        # What reached no origin loads none: such a retry is bounded by `attempts` alone. And where one request breaks a
        # connection, its tries are counted, not those of all others that were on it.
        if target is not None and (unseen or error.shared or self._may_load(target, now)):
            self.upstream.counters.retry(reason, "started")
            self._try(Attempt(self, target, len(self.tried) + 1, False, now), now)
            return True
        self.upstream.counters.retry(reason, "denied" if target is not None else "nowhere")
        return False

    def _may_load(self, target: EndpointState, now: float) -> bool:
        """Whether a further try may go there: paid from the budget, or free where no first tries go (a drained region,
        a standby). Those are the last resort before an error, and a retry of each request adds up to no more than the
        usual load.
        """
        return target.region.weight <= 0.0 or self.upstream.balancer.take_retry(now, self.bound.budget)

    def _replace(self, attempt: Attempt, now: float) -> bool:
        """A reload closed the pool where it waited: the same try goes to whatever the new configuration picks."""
        head = self.head
        if attempt.moves >= MOVES_MAX or not (self.bodyless or self.switching or self.replay is not None):
            return False
        bound = self.service.table.match(head.authority, self.path, head.method, head.fields)
        if bound is None:
            return False
        upstream = bound.upstream
        target = upstream.balancer.pick(now, self.session_key)
        if target is None:
            return False
        self.bound = bound
        self.route = bound.route
        self.upstream = upstream
        head.scheme = upstream.scheme
        self.tried.remove(attempt)
        successor = Attempt(self, target, len(self.tried) + 1, attempt.hedge, now)
        successor.moves = attempt.moves + 1
        self._try(successor, now)
        return True

    def _may_retry(self, now: float, stale: bool = False) -> bool:
        """`stale`: a connection turned out dead; with retries off, that is still mended once."""
        retry = self.route.retry
        attempts = retry.attempts if retry is not None else int(stale)
        return (
            len(self.tried) - self.shared_faults <= attempts
            and (self.bodyless or self.replay is not None)
            and not self.client_eof_seen()
            and now - self.started < self.total
        )

    def client_eof_seen(self) -> bool:
        """The client is gone for good: nobody would read the answer."""
        return self.connection.transport is None

    def _hedge(self, now: float) -> None:
        """The hedge's time has come."""
        self.hedge_at = 0.0
        if not self.request_end or not 1 <= len(self.attempts) <= 2 or not (self.bodyless or self.replay is not None):
            return
        balancer = self.upstream.balancer
        target = balancer.pick_alternate(now, [a.target for a in self.tried], True)
        if target is None:
            return
        if not balancer.take_hedge(now, self.bound.budget):
            self.upstream.counters.hedges["denied"] += 1
            self.hedge_at = now + HEDGE_AGAIN_S  # requests earn the budget back
            return
        self.hedged = True
        hedge = Attempt(self, target, len(self.tried) + 1, True, now)
        again = balancer.hedge_delay(now, self.attempts[0].target, target, self.route.hedge)
        if again is not None:
            self.hedge_at = max(self.started, self.request_ended_at) + again
        self._try(hedge, now)

    def rescue(self, region: RegionState, now: float) -> None:
        """The region that this request waits for has been drained: go elsewhere at once.

        An attempt that still waits for a connection moves: it is withdrawn first, so that it can't go out as well. One
        that was sent stays, and only a request that is complete and idempotent gets a second one beside it.
        """
        if self.state is not _TRYING or self.route.retry is None or not self.attempts:
            return
        if not (self.bodyless or self.switching or self.replay is not None):
            return
        sent = False
        for attempt in self.attempts:
            if attempt.target.region is not region:
                return
            sent = sent or attempt.touched
        if sent and not (self.idempotent and self.request_end and not self.switching):
            return
        balancer = self.upstream.balancer
        target = balancer.pick_alternate(now, [a.target for a in self.tried], False)
        if target is None or target.region is region:
            return
        started = not sent or balancer.take_retry(now, self.bound.budget)
        self.upstream.counters.retry("drained", "started" if started else "denied")
        if not started:
            return
        if sent:
            self.hedged = True
        else:
            for attempt in self.attempts:
                attempt.end(Outcome.NEUTRAL, now)
            self.attempts.clear()
        self._try(Attempt(self, target, len(self.tried) + 1, sent, now), now)

    # -- time --------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        when = self._deadline()
        if self.hedge_at and self.hedge_at < when:
            when = self.hedge_at
        self.service.timers.set(self, when, now)

    def _deadline(self) -> float:
        """The earliest time at which something has taken too long."""
        timeouts = self.route.timeouts
        if self.tunnel:
            return self.active_at + timeouts.idle
        deadline = self.started + self.total
        if self.state is _RELAYING or not self.request_end:
            deadline = min(deadline, self.active_at + timeouts.idle, self._connect_deadline())
            return min(deadline, self.continue_at) if self.continue_at else deadline
        if self.attempts:
            latest = self.attempts[-1]
            connecting = latest.waiting or latest.early
            allowed = timeouts.connect if connecting else timeouts.response
            since = latest.started if connecting else max(latest.connected_at, self.active_at)
            deadline = min(deadline, since + allowed)
        return deadline

    def _connect_deadline(self) -> float:
        """By when an attempt that waits for a connection has one, whether or not the request's body is complete."""
        if self.state is _RELAYING or not self.attempts or not self.attempts[-1].waiting:
            return inf
        return self.attempts[-1].started + self.route.timeouts.connect

    def on_timer(self, now: float) -> None:
        """The hedge's time, or a deadline (perhaps one that activity has moved since)."""
        if self.state is _DONE:
            return
        if self.hedge_at and now >= self.hedge_at:
            self._hedge(now)
            if self.attempts:
                self._arm(now)
            return
        if self.continue_at and now >= self.continue_at:
            self._continue(now)
        if now < self._deadline():
            self._arm(now)
            return
        self._time_out(now)

    def break_down(self, error: Exception) -> None:
        """Our code for it raised: its client sees the connection end."""
        self.connection.break_down(error)

    def _continue(self, now: float) -> None:
        """The client may wait for a 100, and no origin has said a word about it."""
        self.continue_at = 0.0
        if self.state is not _TRYING or self.request_end or self.bytes_in:
            return
        if any(attempt.stream is not None for attempt in self.attempts):
            self.stream.send_headers(ResponseHead(100, [], {}, reason=b"Continue"), False)
        else:
            self.continue_at = now + CONTINUE_AFTER_S  # nobody is there yet to take the body

    def _time_out(self, now: float) -> None:
        timeouts = self.route.timeouts
        total = now >= self.started + self.total
        if self.state is _RELAYING:
            what = (
                f"total time-out of {self.total:g} s" if total and not self.tunnel else f"idle for {timeouts.idle:g} s"
            )
            self._response_broke(ProxyError(Kind.READ_TIMEOUT, what))
            return
        if not self.request_end and (total or now < self._connect_deadline()):
            if total:
                text = f"the request was not complete within the total time-out of {self.total:g} s"
            else:
                text = f"the request's body made no progress for {timeouts.idle:g} s"
            blocked = self.request_paused
            self._give_up(ProxyError(Kind.RESPONSE_TIMEOUT if blocked else Kind.SLOW_REQUEST, text))
            return
        error: ProxyError | None = None
        for attempt in list(self.attempts):
            error = self._time_out_attempt(attempt, total, now)
        last = self.attempts[-1] if self.attempts else None
        self.attempts.clear()
        if error is None or last is None or total:
            if error is None or (self.grpc and total):
                kind = Kind.DEADLINE if self._deadline_is_clients() else Kind.RESPONSE_TIMEOUT
                error = ProxyError(kind, f"no response within {self.total:g} s")
            self._give_up(error)
            return
        self.on_attempt_failed(last, error)

    def _deadline_is_clients(self) -> bool:
        return self.total < self.route.timeouts.total

    def _time_out_attempt(self, attempt: Attempt, total: bool, now: float) -> ProxyError:
        """`total`: the time for all of the request is over, which is the endpoint's doing where the limit is ours and
        it had most of the time.
        """
        timeouts = self.route.timeouts
        where = attempt.target.endpoint
        outcome = Outcome.TIMEOUT
        if total and (self._deadline_is_clients() or 2.0 * self.origin_had_s(attempt.started, now) < self.total):
            outcome = Outcome.CANCELLED
        if total and self._deadline_is_clients():
            text = f"{where}: no response within the client's own {self.total:g} s"
            return attempt.time_out(Kind.DEADLINE, text, now, outcome)
        if attempt.waiting or attempt.early:
            text = f"{where}: no connection within {timeouts.connect:g} s"
            return attempt.time_out(Kind.CONNECT_TIMEOUT, text, now, outcome)
        text = f"{where}: no response within {self.total if total else timeouts.response:g} s"
        return attempt.time_out(Kind.RESPONSE_TIMEOUT, text, now, outcome)

    # -- ends --------------------------------------------------------------------------------------

    def on_reset(self, error: ProxyError) -> None:
        """The client's side ended: it left (cancel everything), or its body was malformed (tell it, where that is still
        possible).
        """
        if self.state is _DONE:
            return
        now = self.connection.turn.now
        if (
            error.kind.source is Source.DOWNSTREAM
            and error.kind is not Kind.CLIENT_LEFT
            and self.state is not _RELAYING
        ):
            self._cancel_all(now)
            self._give_up(error)
            return
        self._cancel_all(now)
        self.error = error if error.kind is not Kind.TERMINATED else ProxyError(Kind.CLIENT_LEFT, "the client left")
        if not self.status:
            self.status = CLIENT_CLOSED_REQUEST
        self._close(now)

    def refuse_head(self, head: RequestHead, error: ProxyError) -> None:
        """A request that can't be accepted: nothing that its head claims counts."""
        self.head = head
        self.hop_trusted = False
        self.service.counters.in_flight += 1
        self.refuse(error)

    def refuse(self, error: ProxyError) -> None:
        """Answer without trying: the request can't be accepted, or goes nowhere."""
        self._give_up(error)

    def takes_interim(self) -> bool:
        """Whether the client is still without an answer, and can be sent an interim one."""
        return not self.status and self.head.version == b"1.1"

    def _cancel_all(self, now: float) -> None:
        """Nobody wants an answer any more. Where the client was still sending, that says nothing about the endpoint."""
        theirs = self.request_end or self.request_paused
        for attempt in self.attempts:
            if attempt is self.winner:
                self._settle_answered(attempt, now)
            else:
                attempt.end(Outcome.CANCELLED if theirs else Outcome.NEUTRAL, now)
        self.attempts.clear()

    def _settle_answered(self, winner: Attempt, now: float) -> None:
        """What came after the winner's head, or did not, is no word about the endpoint that routing does not have."""
        winner.succeed(now, self.result or self.status, self.answer_s, None)
        if winner.stream is not None:
            winner.stream.reset(None)

    def _response_broke(self, error: ProxyError) -> None:
        """After the winner's head there is no other way than to cut the response short, visibly."""
        now = self.connection.turn.now
        self.error = error
        winner = self.winner
        if winner is not None and winner.state is ATTEMPT_WON:
            self._settle_answered(winner, now)  # a time-out of ours: the origin answered, then one of them was quiet
        self.attempts.clear()
        self._close(now)
        if self.head.version == b"1.0":
            self.connection.break_off()  # its body ends with the connection: only a reset shows that this one is cut
        if self.grpc:
            self.stream.send_trailers(error_trailers(error))
            self.stream.reset(None)
        else:
            self.stream.reset(error)

    def _give_up(self, error: ProxyError) -> None:
        """Answer with an error of ours."""
        self._cancel_all(self.connection.turn.now)
        self.error = error
        self._reply(error_reply(self, error))

    def _reply(self, reply: tuple[ResponseHead, bytes]) -> None:
        head, body = reply
        head.fields.append((b"date", self.service.date()))
        self.status = head.status
        now = self.connection.turn.now
        self.first_byte_at = now
        self.bytes_out = len(body)
        stream = self.stream
        if self.switching:
            stream.received_end = True
        self._close(now)
        if body:
            stream.send_headers(head, False)
            stream.send_data(body, True)
        else:
            stream.send_headers(head, True)
        if not stream.received_end:
            stream.reset(None)

    def _finish(self, now: float) -> None:
        """The response has been handed over completely."""
        winner = self.winner
        assert winner is not None
        winner.succeed(now, self.result or self.status, self.answer_s, None)
        if not self.request_end and winner.stream is not None:
            winner.stream.reset(None)  # an early response: what is left of the request is of no use
        self._close(now)
        if not self.request_end:
            self.stream.reset(None)

    def _record(self, now: float) -> None:
        """Count and log it."""
        service = self.service
        counters = service.counters
        counters.in_flight -= 1
        codes, status = counters.codes, self.status
        codes[status] = codes.get(status, 0) + 1
        counters.duration.observe(now - self.started)
        log = service.access_log
        if log.enabled:
            log.add(access_line(self, now), self.error is not None)

    def _close(self, now: float) -> None:
        if self.state is _DONE:
            return
        self.state = _DONE
        bucket = self.timer_bucket
        if bucket is not None:
            bucket.discard(self)
            self.timer_bucket = None
        self._record(now)
        # Attempts know their exchange: without these lines each request would be a reference cycle, left to the
        # collector.
        self.replay = self.winner = None
        self.attempts = []
        self.tried = []


class Exchanges(Service):
    """Makes an exchange of each request."""

    __slots__ = ()

    def new_exchange(self, connection: Downstream, stream: ConnectionStream) -> Exchange:
        """The handler of a request whose head has just come; it answers on `stream`."""
        return Exchange(self, connection, stream)


def _retry_after(head: ResponseHead) -> float | None:
    seconds = decimal(head.known.get(b"retry-after", b""), 5)
    return float(min(seconds, 300)) if seconds is not None else None
