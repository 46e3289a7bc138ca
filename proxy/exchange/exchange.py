"""One request from its head to the end of its response: the downstream side's `StreamHandler`.

    ROUTING ──> TRYING ── the first acceptable final head ──> RELAYING ──> DONE
       │          └── nothing left to try: an error of ours ──────────────^
       └── refused, or answered here ─────────────────────────────────────^

| phase | comes in by | it may |
|---|---|---|
| ROUTING | `on_headers`, `refuse_head` | rewrite the head, bind a route, pick a place, or answer by itself |
| TRYING | body, heads, failures, drains, the timer | try again, hedge, wait, pass interim heads on, give up |
| RELAYING | the winner's bytes, the client's for a tunnel, the timer | pass them on, or cut both sides: no other try |
| DONE | nothing | nothing: counted and logged, its attempts forgotten |

Rules (DESIGN: replay, winner, hedge, loser):
- Nothing but interim heads of an only attempt reaches the client before there is a winner; afterwards there is no
  second try.
- Which request goes again, and how, is in `tries`; what of its body is kept for that, in `body`.
- What an origin is measured by is its own time (`origin_had_s`): from the end of the request, or from its last byte;
  how fast a client sends says nothing about an endpoint, and neither does what runs out here (`errors.Blame`).
- One timer holds the earliest of the hedge's time and the `deadlines`; activity moves a time stamp, not the timer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from proxy.errors import CLIENT_CLOSED_REQUEST, Kind, ProxyError, Source
from proxy.http.grpc import call_status, is_call, timeout_s
from routing.balancer import Outcome
from routing.retry import hedgeable, replayable

from . import deadlines, tries, zero_rtt
from .attempt import EARLY as ATTEMPT_EARLY
from .attempt import SENT as ATTEMPT_SENT
from .body import Body
from .forward import is_last_hop, rewrite, settle_tunnel
from .reply import debug_fields, final_answer
from .request import DONE, NO_TUNNEL, RELAYING, TRYING, TUNNEL_HALF_CLOSED, TUNNEL_OPEN, Request
from .service import Service

if TYPE_CHECKING:
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields, RequestHead, ResponseHead
    from proxy.http.serving import Downstream
    from proxy.upstream.contract import UpstreamConnection
    from routing.state import RegionState

    from .attempt import Attempt
    from .service import BoundRoute

WAITED_S: Final = 0.0005
"""An attempt that had its connection this late waited for the dial, and is logged with what it took."""


class Exchange(Request):
    """One request. Its connection makes it; it lives until its response has been sent, or nobody wants it any more."""

    __slots__ = ()

    # -- the request -------------------------------------------------------------------------------

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """The request's head: route it and try."""
        self.head = request = cast("RequestHead", head)
        record, service, hop = self.record, self.service, self.connection.hop
        service.counters.in_flight += 1
        record.head = request
        record.path = request.target
        record.trusted = hop.trusted
        method = request.method
        if not end:
            self.switching = bool(request.upgrade) or method == b"CONNECT"
            self.body = Body(self.stream, self.switching)
            if request.expect_continue:
                self.continue_at = record.started + deadlines.CONTINUE_AFTER_S
        self.grpc = request.te_trailers and method == b"POST" and is_call(request)
        if method in (b"OPTIONS", b"TRACE") and is_last_hop(request):
            answer, text = final_answer(request)
            self.reply(answer, text)
            return
        ids = rewrite(request, hop)
        if type(ids) is ProxyError:
            self.give_up(ids)
            return
        record.request_id, record.traceparent = cast("tuple[bytes, bytes]", ids)
        if request.early:
            zero_rtt.mark(request)
        bound = service.table.match(request.authority, request.target, method, request.fields)
        if bound is None:
            self.give_up(service.no_route(request))
            return
        if self.switching:
            refused = settle_tunnel(request, bound.route)
            if refused is not None:
                self.give_up(refused)
                return
            if not request.upgrade and method != b"CONNECT":  # ignored: the request ends with its head
                self.switching, self.body = False, None
                self.stream.received_end = True
        self.bind(bound)
        self._begin(request, bound)

    def _begin(self, head: RequestHead, bound: BoundRoute) -> None:
        """The first try."""
        route, upstream, now = bound.route, bound.upstream, self.record.started
        self.total = route.timeouts.total
        if self.grpc and (left := timeout_s(head)) is not None and left < self.total:
            self.total = left
        self.idempotent = replayable(head.method, b"idempotency-key" in head.known, route.retry)
        balancer = upstream.balancer
        if upstream.session_key is not None:
            self.session_key = upstream.affinity(head, self.connection.hop)
        target = balancer.pick(now, self.session_key)
        if target is None:
            self.retry_after = balancer.retry_after(now)
            self.give_up(ProxyError(Kind.UNAVAILABLE, upstream.nothing_available(now), unprocessed=True))
            return
        self.state = TRYING
        balancer.count_request(now, bound.budget)
        if route.hedge is not None and hedgeable(
            may_replay=self.idempotent, switching=self.switching, expect=head.expect_continue
        ):
            delay = balancer.hedge_delay(now, target, None, route.hedge)
            if delay is not None and self.complete():
                self.hedge_at = now + delay
            elif delay is not None:
                self.hedge_delay = delay
        tries.start(self, target, False, now)

    def refuse_head(self, head: RequestHead, error: ProxyError) -> None:
        """A request that can't be accepted: nothing that its head claims counts."""
        self.head = self.record.head = head
        self.service.counters.in_flight += 1
        self.give_up(error)

    def on_data(self, data: bytes, end: bool) -> None:
        """Request body bytes (or, in a tunnel, the client's)."""
        self.record.bytes_in += len(data)
        self.active_at = self.turn.now
        body = self.body
        if body is None:
            return
        if end:
            body.ended = True
        if self.tunnel is not NO_TUNNEL:
            if self.winner is not None:
                self.winner.send_data(data, end)
            if end and self.tunnel is TUNNEL_HALF_CLOSED:
                self.finish(self.active_at)
            return
        if body.chunks is not None:
            body.keep(data)
            if self.switching:  # what comes before the answer is the tunnel's, if there will be one: all of it
                if end:
                    body.tunnel_ended = True
                if body.full:
                    body.pause()
                return
            if body.full:
                if any(attempt.stream is not None for attempt in self.attempts):
                    body.let_go()
                elif self.state is not DONE:
                    body.pause()  # nowhere to send it yet: the client waits
        for attempt in self.attempts:
            attempt.send_data(data, end)
        if end:
            self._request_ended(body, self.active_at)

    def on_trailers(self, fields: Fields) -> None:
        """The request's trailers end it."""
        body = self.body
        if body is None:
            return
        body.ended = True
        body.trailers = fields
        for attempt in self.attempts:
            if attempt.stream is not None:
                attempt.stream.send_trailers(fields)
        self._request_ended(body, self.turn.now)

    def _request_ended(self, body: Body, now: float) -> None:
        body.ended_at = self.active_at = now
        if self.state is TRYING and self.hedge_delay:
            self.hedge_at = now + self.hedge_delay
        deadlines.arm(self, now)

    def on_confirmed(self) -> None:
        """The client's handshake is complete: what had to wait for that may go now."""
        target, self.too_early_at = self.too_early_at, None
        if target is not None and self.state is not DONE:
            tries.start_late(self, target, self.turn.now)

    # -- attempts ----------------------------------------------------------------------------------

    def on_sent(self, attempt: Attempt, connection: UpstreamConnection) -> None:
        """The request is on its way."""
        record = attempt.record
        if attempt.number > 1 or connection.uses == 1:
            now = self.turn.now
            record.connected_at = now
            deadlines.arm(self, now)  # from waiting for a connection to waiting for an answer
            if connection.uses == 1 and now - record.started > WAITED_S:
                record.seconds = connection.seconds
        else:
            record.connected_at = record.started

    def on_interim(self, attempt: Attempt, head: ResponseHead) -> None:
        """100, 102, 103: passed on at once where there is only one attempt, kept until it wins where there are more."""
        if head.status == 100:
            self.continue_at = 0.0
        alone = len(self.attempts) == 1 and not self.record.hedged
        if alone and (attempt.state is ATTEMPT_SENT or attempt.state is ATTEMPT_EARLY):
            self.active_at = self.turn.now
            self.stream.send_headers(head, False)
        elif attempt.interim is None:
            attempt.interim = [head]
        else:
            attempt.interim.append(head)

    def on_response(self, attempt: Attempt, head: ResponseHead, end: bool) -> None:
        """A final head: it wins, unless it is a gateway error and something better is still possible."""
        now = self.turn.now
        if self.grpc and end and head.status == 200:
            self.result = call_status(head.known.get(b"grpc-status"))
        if (head.status >= 425 or self.result) and tries.after_answer(self, attempt, head, now):
            self.result = 0
            return
        record, stream = self.record, self.stream
        self.winner, record.winner = attempt, attempt.record
        attempt.win()
        self.state = RELAYING
        record.first_byte_at = self.active_at = now
        self.answer_s = answer_s = self.answered_s(attempt, now)
        if len(self.attempts) > 1:
            self._cancel_losers(attempt, now)
        self.attempts = [attempt]
        self.upstream.counters.latency[attempt.target.region.name].observe(answer_s)
        if attempt.interim:
            for interim in attempt.interim:
                stream.send_headers(interim, False)
        if self.switching:
            self._decide_tunnel(attempt, head)
        record.status = head.status
        if b"date" not in head.known and head.status >= 200:
            head.fields.append((b"date", self.service.date()))
        if record.trusted and self.head.known.get(b"onetrip-debug") == b"1":
            head.fields += debug_fields(record, now)
        self.hedge_at = 0.0
        stream.send_headers(head, end)
        if end:
            self.finish(now)

    def _decide_tunnel(self, attempt: Attempt, head: ResponseHead) -> None:
        """The answer to an upgrade or CONNECT: bytes flow both ways from now on, or it was an ordinary request after
        all.
        """
        body = self.body
        if head.status == 101 or (self.head.method == b"CONNECT" and head.status < 300):
            self.tunnel = TUNNEL_OPEN
            attempt.hold(self.record.first_byte_at, self.answer_s)
            if body is not None:
                self._send_held(attempt, body)
            return
        if body is not None:
            body.let_go()
            body.resume()
        self.stream.received_end = True
        if attempt.stream is not None:
            attempt.stream.sent_end = True

    def _send_held(self, attempt: Attempt, body: Body) -> None:
        """The tunnel is open: its first bytes."""
        body.ended = body.tunnel_ended
        chunks, body.chunks = body.chunks, None
        for chunk in chunks or ():
            attempt.send_data(chunk, False)
        if body.tunnel_ended:
            attempt.send_data(b"", True)
        if body.paused and not attempt.blocked:
            body.resume()

    def on_response_data(self, data: bytes, end: bool) -> None:
        """The winner's body bytes."""
        self.record.bytes_out += len(data)
        winner = self.winner
        if not end and winner is not None:
            winner.hold(self.turn.now, self.answer_s)
        if not self.stream.send_data(data, end):
            if not self.downstream_blocked and self.winner is not None and self.winner.stream is not None:
                self.downstream_blocked = True
                self.winner.stream.pause()
        elif end:
            if self.tunnel is not NO_TUNNEL and not self.complete():
                self.tunnel = TUNNEL_HALF_CLOSED
                self.active_at = self.turn.now
                return  # the client may still send
            self.finish(self.turn.now)
            return
        self.active_at = self.turn.now

    def on_response_trailers(self, fields: Fields) -> None:
        """The winner's trailers end the response."""
        if self.grpc:
            self.result = call_status(next((value for name, value in fields if name == b"grpc-status"), None))
        self.stream.send_trailers(fields)
        self.finish(self.turn.now)

    def on_writable(self) -> None:
        """The client takes more."""
        if self.downstream_blocked:
            self.downstream_blocked = False
            if self.winner is not None and self.winner.stream is not None:
                self.winner.stream.resume()

    def _cancel_losers(self, winner: Attempt, now: float) -> None:
        hedges = self.upstream.counters.hedges
        hedges["won" if winner.hedge else "lost"] += 1
        winner_s = self.origin_had_s(winner.record.started, now)
        for attempt in self.attempts:
            if attempt is not winner:
                attempt.end(Outcome.HEDGE_LOST, now, winner_s)

    def may_move(self, attempt: Attempt) -> bool:
        """Whether an attempt that was left out can be sent once more: all of the request's body is still here."""
        return attempt.state is ATTEMPT_SENT and self.body_kept()

    def on_moved(self, attempt: Attempt) -> None:
        """It waits for another connection."""
        deadlines.arm(self, self.turn.now)

    def on_failed(self, attempt: Attempt, error: ProxyError) -> None:
        """An attempt ended without a response: wait for another, start another, or tell the client."""
        if attempt in self.attempts:
            self.attempts.remove(attempt)
        if self.state is DONE:
            return
        if attempt is self.winner:
            self.response_broke(error)
            return
        if attempt.sent_early:
            self.early_data = zero_rtt.REFUSED
        if not self.attempts and not tries.after_failure(self, attempt, error, self.turn.now):
            self.give_up(error)  # else: another one is open, or starts, and may still win

    def on_drained(self, region: RegionState, now: float) -> None:
        """The region that this request waits for takes no more."""
        tries.after_drain(self, region, now)

    def on_timer(self, now: float) -> None:
        """The hedge's time, or a deadline (perhaps one that activity has moved since)."""
        if self.state is DONE:
            return
        if self.hedge_at and now >= self.hedge_at:
            tries.hedge(self, now)
            if self.attempts:
                deadlines.arm(self, now)
            return
        if self.continue_at and now >= self.continue_at:
            deadlines.go_on(self, now)
        if now < deadlines.due(self):
            deadlines.arm(self, now)
            return
        deadlines.expire(self, now)

    # -- ends --------------------------------------------------------------------------------------

    def on_reset(self, error: ProxyError) -> None:
        """The client's side ended: it left (cancel everything), or its body was malformed (tell it, where that is still
        possible).
        """
        if self.state is DONE:
            return
        now = self.turn.now
        theirs = error.kind.source is Source.DOWNSTREAM and error.kind is not Kind.CLIENT_LEFT
        self.cancel_all(now)
        if theirs and self.state is not RELAYING:
            self.give_up(error)
            return
        record = self.record
        record.error = error if error.kind is not Kind.TERMINATED else ProxyError(Kind.CLIENT_LEFT, "the client left")
        if not record.status:
            record.status = CLIENT_CLOSED_REQUEST
        self.close(now)


class Exchanges(Service):
    """Makes an exchange of each request."""

    __slots__ = ()

    def new_exchange(self, connection: Downstream, stream: ConnectionStream) -> Exchange:
        """The handler of a request whose head has just come; it answers on `stream`."""
        return Exchange(self, connection, stream)
