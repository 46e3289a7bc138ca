"""Which requests may be sent twice, and what to do after an attempt failed. (How often is `hedge.Budget`'s.)

Rules (RFC 9110 section 9.2.2, and the interface's):
- Nothing of the request was processed (connect or handshake failed, refused stream, GOAWAY): any method may be sent
  again.
- A byte may have reached an origin: only GET, HEAD, OPTIONS, and requests with an `idempotency-key` where the route
  allows it.
- The body must still be in the replay buffer, nothing may have gone downstream, and a further attempt must be left.
- An answer of 502, 503 or 504 is a failure of the attempt; other answers are answers, also 500: sending them again
  would not help.
- `retry-after` says when that endpoint may be asked again, not when the client may: another one is tried at once. Where
  there is no other, the answer and its `retry-after` are the client's.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .model import Retry

SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
RETRYABLE_STATUSES: Final = frozenset((502, 503, 504))


class Next(Enum):
    """What follows a failed attempt."""

    RETRY = "retry"
    WAIT = "wait"  # the other attempt of this request is still open and may win
    GIVE_UP = "give_up"  # relay what came, or the error


def replayable(method: bytes, has_idempotency_key: bool, retry: Retry | None) -> bool:
    """Whether a request may be sent again after a byte of it may have reached an origin."""
    return method in SAFE_METHODS or (has_idempotency_key and retry is not None and retry.idempotency_key)


def hedgeable(method: bytes, has_idempotency_key: bool, retry: Retry | None, *, upgrade: bool, expect: bool) -> bool:
    """Whether a request may be hedged, once it is complete. CONNECT is not replayable, so it never is."""
    return not upgrade and not expect and replayable(method, has_idempotency_key, retry)


def after_failure(
    retry: Retry | None,
    *,
    retries_made: int,
    unprocessed: bool,
    may_replay: bool,
    body_kept: bool,
    others_open: bool,
) -> Next:
    """What to do after an attempt failed and nothing has gone downstream.

    `retries_made` counts those before; `unprocessed`: the origin can't have acted on it; `may_replay`: `replayable`
    said so; `body_kept`: the whole body so far is in the replay buffer; `others_open`: another attempt of this
    request is still running. The caller still asks the budget, and gives up where it refuses.
    """
    if others_open:
        return Next.WAIT
    if retry is None or retries_made >= retry.attempts or not body_kept:
        return Next.GIVE_UP
    return Next.RETRY if unprocessed or may_replay else Next.GIVE_UP


def parse_retry_after(value: bytes) -> float | None:
    """Seconds of a `retry-after` field's delay form (RFC 9110 section 10.2.3).

    Dates, which need a clock, and nonsense give None.
    """
    value = value.strip(b" \t")
    return float(value) if value.isdigit() and len(value) <= 9 else None
