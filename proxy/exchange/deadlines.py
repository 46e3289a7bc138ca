"""What takes too long, and what is said of it: one timer per request holds the earliest of its deadlines and its hedge.

| until | no longer than | since |
|---|---|---|
| a connection | `connect` | the try began |
| an answer's head, the request being complete | `response` | it was sent, or its last byte |
| the next bytes of either body, or of a tunnel | `idle` | the last ones |
| the end of it all, but for a tunnel | the route's `total`, or a gRPC client's own | the request came |
| a word on `expect: 100-continue` | `CONTINUE_AFTER_S`, then the 100 is ours | the request came |

Activity moves a time stamp, not the timer: it may ring early, and is set again. Nothing is decided here about other
tries: a try that timed out has failed like any other.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.http.message import ResponseHead
from routing.balancer import Outcome

from .attempt import EARLY, WAITING
from .request import NO_TUNNEL, RELAYING, TRYING

if TYPE_CHECKING:
    from .attempt import Attempt
    from .request import Request

CONTINUE_AFTER_S: Final = 1.0
"""What an origin has to answer an expectation (RFC 9110 section 10.1.1). Some never do, and some clients wait for ever:
then the 100 is ours."""


def arm(request: Request, now: float) -> None:
    """Set the timer."""
    when = due(request)
    if request.hedge_at and request.hedge_at < when:
        when = request.hedge_at
    request.service.timers.set(request, when, now)


def due(request: Request) -> float:
    """The earliest time at which something has taken too long."""
    timeouts = request.route.timeouts
    if request.tunnel is not NO_TUNNEL:
        return request.active_at + timeouts.idle
    deadline = request.record.started + request.total
    if request.state is RELAYING or not request.complete():
        deadline = min(deadline, request.active_at + timeouts.idle, _connected_by(request))
        return min(deadline, request.continue_at) if request.continue_at else deadline
    if request.attempts:
        latest = request.attempts[-1]
        connecting = _connecting(latest)
        allowed = timeouts.connect if connecting else timeouts.response
        record = latest.record
        since = record.started if connecting else max(record.connected_at, request.active_at)
        deadline = min(deadline, since + allowed)
    return deadline


def _connecting(attempt: Attempt) -> bool:
    return attempt.state is WAITING or attempt.state is EARLY


def _connected_by(request: Request) -> float:
    """By when an attempt that waits for a connection has one, whether or not the request's body is complete."""
    if request.state is RELAYING or not request.attempts or not request.attempts[-1].waiting:
        return inf
    return request.attempts[-1].record.started + request.route.timeouts.connect


def go_on(request: Request, now: float) -> None:
    """The client may wait for a 100, and no origin has said a word about it."""
    request.continue_at = 0.0
    if request.state is not TRYING or request.complete() or request.record.bytes_in:
        return
    if any(attempt.stream is not None for attempt in request.attempts):
        request.stream.send_headers(ResponseHead(100, [], {}, reason=b"Continue"), False)
    else:
        request.continue_at = now + CONTINUE_AFTER_S  # nobody is there yet to take the body


def expire(request: Request, now: float) -> None:
    """The deadline has passed: end what it was for."""
    timeouts = request.route.timeouts
    total = now >= request.record.started + request.total
    if request.state is RELAYING:
        whole = total and request.tunnel is NO_TUNNEL
        what = f"total time-out of {request.total:g} s" if whole else f"idle for {timeouts.idle:g} s"
        request.response_broke(ProxyError(Kind.READ_TIMEOUT, what))
        return
    body = request.body
    if body is not None and not body.ended and (total or now < _connected_by(request)):
        if total:
            text = f"the request was not complete within the total time-out of {request.total:g} s"
        else:
            text = f"the request's body made no progress for {timeouts.idle:g} s"
        request.give_up(ProxyError(Kind.RESPONSE_TIMEOUT if body.paused else Kind.SLOW_REQUEST, text))
        return
    error: ProxyError | None = None
    for attempt in list(request.attempts):
        error = _expire_attempt(request, attempt, total, now)
    last = request.attempts[-1] if request.attempts else None
    request.attempts.clear()
    if error is None or last is None or total:
        if error is None or (request.grpc and total):
            kind = Kind.DEADLINE if request.deadline_is_clients() else Kind.RESPONSE_TIMEOUT
            error = ProxyError(kind, f"no response within {request.total:g} s")
        request.give_up(error)
        return
    request.on_failed(last, error)


def _expire_attempt(request: Request, attempt: Attempt, total: bool, now: float) -> ProxyError:
    """`total`: the time for all of the request is over, which is the endpoint's doing where the limit is ours and it
    had most of the time.
    """
    timeouts = request.route.timeouts
    where = attempt.target.endpoint
    outcome = Outcome.TIMEOUT
    clients = request.deadline_is_clients()
    if total and (clients or 2.0 * request.origin_had_s(attempt.record.started, now) < request.total):
        outcome = Outcome.CANCELLED
    if total and clients:
        text = f"{where}: no response within the client's own {request.total:g} s"
        return attempt.time_out(Kind.DEADLINE, text, now, outcome)
    if _connecting(attempt):
        text = f"{where}: no connection within {timeouts.connect:g} s"
        return attempt.time_out(Kind.CONNECT_TIMEOUT, text, now, outcome)
    text = f"{where}: no response within {request.total if total else timeouts.response:g} s"
    return attempt.time_out(Kind.RESPONSE_TIMEOUT, text, now, outcome)
