"""Which requests may be sent twice, when, and what follows a try that failed: the one place for these rules.

The proxy's exchange and the simulator both ask here, then act. (How often is `hedge.Budget`'s, where to is
`choice.alternate`'s, after how long is `hedge.due`'s.)

Rules (RFC 9110 section 9.2.2, and the interface's):
- Nothing of the request was processed (connect or handshake failed, refused stream, GOAWAY): any method may be sent
  again, and no budget is asked, for what reached no origin loads none.
- A byte may have reached an origin: only GET, HEAD, OPTIONS, and requests with an `idempotency-key` where the route
  allows it.
- The body must still be in the replay buffer, nothing may have gone downstream, somebody must wait for the answer, and
  a further try must be left. Hedges are tries.
- With retries off, a request that met a connection which turned out dead still goes again once.
- An answer of 502, 503 or 504 is a failure of the try, and loses to one that is still possible; other answers are
  answers, also 500: sending them again would not help.
- Only a complete request is hedged, never an upgrade, CONNECT or one with `expect`. At most `OPEN_MAX` tries are open.
- A request whose region is drained goes elsewhere at once: instead, as long as nothing of it was sent, or beside.
- `retry-after` says when that endpoint may be asked again, not when the client may: another one is tried at once. Where
  there is no other, the answer and its `retry-after` are the client's.

Plain values in, a constant out: nothing is made on a request's path.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .model import Retry

SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""RFC 9110 section 9.2.1, without TRACE, which nobody sends twice. What is safe may be repeated, and may be early."""

RETRYABLE_STATUSES: Final = frozenset((502, 503, 504))
OPEN_MAX: Final = 3
"""A first try and two hedges: one nearby, one in another region."""


class Next(Enum):
    """What follows a try that failed, or a drain of the region where it waits."""

    WAIT = "wait"  # another try of this request is open and may win; or it stays where it is
    RESEND = "resend"  # no origin acted on it: send it again, no budget is asked
    RETRY = "retry"  # send it again, if the budget pays
    GIVE_UP = "give_up"  # relay what came, or the error


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
WAIT: Final = Next.WAIT
RESEND: Final = Next.RESEND
RETRY: Final = Next.RETRY
GIVE_UP: Final = Next.GIVE_UP


def replayable(method: bytes, has_idempotency_key: bool, retry: Retry | None) -> bool:
    """Whether a request may be sent again after a byte of it may have reached an origin."""
    return method in SAFE_METHODS or (has_idempotency_key and retry is not None and retry.idempotency_key)


def hedgeable(*, may_replay: bool, switching: bool, expect: bool) -> bool:
    """Whether a request may ever be hedged, by its head. `may_replay`: `replayable` said so; `switching`: it is an
    upgrade or CONNECT; `expect`: it waits for a 100.
    """
    return may_replay and not switching and not expect


def may_hedge_now(*, complete: bool, body_kept: bool, tries_open: int) -> bool:
    """Whether a `hedgeable` request may have a further try now that its time has come.

    `complete`: its end came from the client; `tries_open`: without one there is nothing to hedge, that would be a
    retry.
    """
    return complete and body_kept and 1 <= tries_open < OPEN_MAX


def answer_loses(status: int, call_status: int = 0) -> bool:
    """Whether a final answer counts as the try's failure, if another try is open or possible.

    `call_status`: of a gRPC call that answered nothing but its end, as an HTTP status; only UNAVAILABLE (503) loses.
    """
    return status in RETRYABLE_STATUSES or call_status == 503


def after_failure(
    retry: Retry | None,
    *,
    tries: int,
    others_open: bool,
    wanted: bool,
    body_kept: bool,
    may_replay: bool,
    processed: bool,
    stale: bool = False,
    shared: bool = False,
) -> Next:
    """What to do after a try failed (or its answer lost) and nothing has gone downstream.

    `tries`: made so far, the failed one and hedges included, without those that another request took along;
    `others_open`: another try of this request is still running; `wanted`: the client is there, its time is not over,
    and the fault is none that the request would meet anywhere; `body_kept`: all of the body so far is in the replay
    buffer; `may_replay`: `replayable` said so; `processed`: an origin may have acted on it (a losing answer: it did);
    `stale`: it met a connection that was dead already; `shared`: another request broke the connection under it.
    """
    if others_open:
        return WAIT
    further = retry.attempts if retry is not None else int(stale)
    if tries > further or not wanted or not body_kept:
        return GIVE_UP
    if not processed:
        return RESEND
    if not may_replay:
        return GIVE_UP
    return RESEND if shared else RETRY


def after_drain(
    retry: Retry | None, *, elsewhere: bool, sent: bool, complete: bool, body_kept: bool, hedgeable: bool
) -> Next:
    """What to do with a request that has no answer when a region of its tries is drained.

    `elsewhere`: one of its tries is in another region; `sent`: a byte of one may have reached an origin; `hedgeable`:
    `hedgeable` said so. RESEND: nothing was sent; withdraw what waits first, or the request goes out twice. RETRY: send
    it beside, as a hedge is.
    """
    if retry is None or elsewhere or not body_kept:
        return WAIT
    if not sent:
        return RESEND
    return RETRY if hedgeable and complete else WAIT


def must_pay(verdict: Next, weight: float, headroom: float) -> bool:
    """Whether the budget is asked before a further try goes to a region of this weight and headroom.

    It is free where no first tries go (a drained region, a standby), and none of late was answered with 503: that is
    the last resort before an error, and a retry of each request adds up to no more than the usual load. A region that
    was drained for being full is no such resort: free retries would keep it full.
    """
    return verdict is RETRY and (weight > 0.0 or headroom < 1.0)
