"""A request's tries: how one starts, and what follows when one fails, is late, or loses its region.

What may follow is said in `routing.retry`, where to in `routing.choice`, how often in `routing.hedge`. Here they are
asked and obeyed, for a request whose answer nobody has seen yet.
- What is not idempotent is in one place at a time: an attempt that is replaced is withdrawn before its successor
  starts.
- Every further try is counted, with the reason and with what became of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.errors import Blame, Kind, ProxyError
from proxy.http.semantics import decimal
from routing import retry as rules
from routing.balancer import Outcome

from . import zero_rtt
from .attempt import MOVES_MAX, Attempt
from .deadlines import arm
from .request import DONE, TRYING

if TYPE_CHECKING:
    from proxy.http.message import ResponseHead
    from routing.balancer import EndpointState
    from routing.state import RegionState

    from .request import Request

HEDGE_AGAIN_S: Final = 0.05
"""After how long a hedge that the budget did not pay is asked for again."""


def start(request: Request, target: EndpointState, hedge: bool, now: float, moves: int = 0) -> None:
    """Try there. `hedge`: beside another one; `moves`: of the attempt in whose place it goes."""
    tries = request.record.tries
    attempt = Attempt(request, target, len(tries) + 1, hedge, now)
    attempt.moves = moves
    request.attempts.append(attempt)
    tries.append(attempt.record)
    request.upstream.balancer.begin(target, now)
    request.upstream.pool_at[target].acquire(attempt)
    if request.state is not DONE:
        arm(request, now)


def after_failure(request: Request, attempt: Attempt, error: ProxyError, now: float) -> bool:
    """Whether another try follows one that failed, the last that was open."""
    if error.kind is Kind.REPLACED and error.unprocessed:
        return _elsewhere(request, attempt, now)
    if error.shared and request.shared_faults < MOVES_MAX:
        request.shared_faults += 1
    verdict = rules.after_failure(
        request.route.retry,
        tries=len(request.record.tries) - request.shared_faults,
        others_open=False,
        wanted=error.kind.blame is not Blame.REQUEST and request.wanted(now),
        body_kept=request.body_kept(),
        may_replay=request.idempotent,
        processed=attempt.touched and not error.unprocessed,
        stale=error.unprocessed and attempt.connection is not None,  # it died before it could read the request
        shared=error.shared,
    )
    if verdict is rules.GIVE_UP:
        return False
    places = request.places()
    target = request.upstream.balancer.pick_alternate(now, places, False)
    if target in places and error.kind.blame is Blame.PROXY:
        target = None  # what ran out there has not come back by now
    reason = error.kind.label
    if target is not None and _paid(request, verdict, target, now):
        request.upstream.counters.retry(reason, "started")
        start(request, target, False, now)
        return True
    request.upstream.counters.retry(reason, "denied" if target is not None else "nowhere")
    return False


def _paid(request: Request, verdict: rules.Next, target: EndpointState, now: float) -> bool:
    if not rules.must_pay(verdict, target.region.weight, target.region.headroom):
        return True
    return request.upstream.balancer.take_retry(now, request.bound.budget)


def _elsewhere(request: Request, attempt: Attempt, now: float) -> bool:
    """A reload closed the pool where it waited: the same try goes to whatever the new configuration picks."""
    head = request.head
    if attempt.moves >= MOVES_MAX or not request.body_kept():
        return False
    bound = request.service.table.match(head.authority, request.record.path, head.method, head.fields)
    if bound is None:
        return False
    target = bound.upstream.balancer.pick(now, request.session_key)
    if target is None:
        return False
    request.bind(bound)
    request.record.tries.remove(attempt.record)
    start(request, target, attempt.hedge, now, attempt.moves + 1)
    return True


def after_answer(request: Request, attempt: Attempt, head: ResponseHead, now: float) -> bool:
    """Whether a final answer loses: to an attempt that is still open, or to a try that starts now."""
    if head.status == 425:
        return _after_too_early(request, attempt, now)
    if not rules.answer_loses(head.status, request.result):
        return False
    verdict = rules.after_failure(
        request.route.retry,
        tries=len(request.record.tries) - request.shared_faults,
        others_open=len(request.attempts) > 1,
        wanted=request.wanted(now),
        body_kept=request.body_kept(),
        may_replay=request.idempotent,
        processed=True,
    )
    if verdict is rules.GIVE_UP:
        return False
    target = None
    if verdict is not rules.WAIT:
        target = request.upstream.balancer.pick_alternate(now, request.places(), False)
        if target is None or not _paid(request, verdict, target, now):
            request.upstream.counters.retry("status", "denied")
            return False
    answer = request.answer(head).decode("latin-1")
    attempt.record.error = ProxyError(Kind.UNAVAILABLE, f"{attempt.target.endpoint} answered {answer}")
    request.attempts.remove(attempt)
    attempt.succeed(now, request.result or head.status, request.answered_s(attempt, now), _retry_after(head))
    if attempt.stream is not None:
        attempt.stream.reset(None)
    if target is not None:
        request.upstream.counters.retry("status", "started")
        start(request, target, False, now)
    return True


def _retry_after(head: ResponseHead) -> float | None:
    seconds = decimal(head.known.get(b"retry-after", b""), 5)
    return float(min(seconds, 300)) if seconds is not None else None


def _after_too_early(request: Request, attempt: Attempt, now: float) -> bool:
    head = request.head
    if not zero_rtt.goes_again(head, request.early_data, attempt.sent_early):
        return False
    request.attempts.remove(attempt)
    attempt.record.error = ProxyError(Kind.TOO_EARLY, f"{attempt.target.endpoint} answered 425")
    attempt.succeed(now, 425, request.answered_s(attempt, now), None)
    if request.attempts:
        return True
    if head.early and request.connection.unconfirmed(request):
        request.early_data = zero_rtt.AWAITED
        request.too_early_at = attempt.target
    else:
        start_late(request, attempt.target, now)
    return True


def start_late(request: Request, target: EndpointState, now: float) -> None:
    """Try there again, without early data."""
    request.early_data = zero_rtt.REFUSED
    zero_rtt.unmark(request.head)
    request.upstream.counters.retry("too_early", "started")
    start(request, target, False, now)


def hedge(request: Request, now: float) -> None:
    """The hedge's time has come."""
    request.hedge_at = 0.0
    if not rules.may_hedge_now(
        complete=request.complete(), body_kept=request.body_kept(), tries_open=len(request.attempts)
    ):
        return
    upstream = request.upstream
    balancer = upstream.balancer
    target = balancer.pick_alternate(now, request.places(), True)
    if target is None:
        return
    if not balancer.take_hedge(now, request.bound.budget):
        upstream.counters.hedges["denied"] += 1
        request.hedge_at = now + HEDGE_AGAIN_S  # requests earn the budget back
        return
    request.record.hedged = True
    again = balancer.hedge_delay(now, request.attempts[0].target, target, request.route.hedge)
    if again is not None:
        body = request.body
        request.hedge_at = max(request.record.started, body.ended_at if body is not None else 0.0) + again
    start(request, target, True, now)


def after_drain(request: Request, region: RegionState, now: float) -> None:
    """The region that this request waits for takes no more: go elsewhere at once, where that may be."""
    attempts = request.attempts
    if request.state is not TRYING or not attempts:
        return
    sent = any(attempt.touched for attempt in attempts)
    verdict = rules.after_drain(
        request.route.retry,
        elsewhere=any(attempt.target.region is not region for attempt in attempts),
        sent=sent,
        complete=request.complete(),
        body_kept=request.body_kept(),
        # What a complete request expected is past.
        hedgeable=rules.hedgeable(may_replay=request.idempotent, switching=request.switching, expect=False),
    )
    if verdict is rules.WAIT:
        return
    balancer = request.upstream.balancer
    target = balancer.pick_alternate(now, request.places(), False)
    if target is None or target.region is region:
        return
    started = verdict is rules.RESEND or balancer.take_retry(now, request.bound.budget)
    request.upstream.counters.retry("drained", "started" if started else "denied")
    if not started:
        return
    if sent:
        request.record.hedged = True
    else:
        for attempt in attempts:
            attempt.end(Outcome.NEUTRAL, now)
        attempts.clear()
    start(request, target, sent, now)
