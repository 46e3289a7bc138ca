"""Early data (0-RTT, RFC 8470) on both sides of a request: what may travel early, and what becomes of a 425.

    OPEN ── a first flight was in vain, or 425 ──> REFUSED: not again
      └── 425, and the client's own handshake is not done ──> AWAITED ── it is ──> REFUSED, and a try without early data

Rules:
- An attempt that rides in a first flight says so (`early-data: 1`, section 5.1), and one whose request came in one.
- A 425 is the client's own business where its request said `early-data` already, or where none travelled early.
- A replay never gets further than AWAITED: only the client itself can finish its handshake (section 3).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.http.message import RequestHead
from routing.retry import SAFE_METHODS
from tlscache.early_data import may_travel_early

if TYPE_CHECKING:
    from proxy.http.message import Fields


class EarlyData(Enum):
    """Whether a request may still travel early."""

    OPEN = "open"
    AWAITED = "awaited"
    REFUSED = "refused"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
OPEN: Final = EarlyData.OPEN
AWAITED: Final = EarlyData.AWAITED
REFUSED: Final = EarlyData.REFUSED
_FIELD: Final = (b"early-data", b"1")


def mark(head: RequestHead) -> None:
    """A request that came in a client's first flight says so to whoever gets it."""
    if _FIELD not in head.fields:
        head.fields.append(_FIELD)


def unmark(head: RequestHead) -> None:
    """It goes without early data from now on."""
    if head.early:
        head.early = False
        head.fields.remove(_FIELD)


def may_travel(head: RequestHead, state: EarlyData, *, enabled: bool, has_body: bool, upgrade: bool) -> bool:
    """Whether an attempt may ride in the first flight of a new connection."""
    return state is OPEN and may_travel_early(
        safe=head.method in SAFE_METHODS,
        enabled=enabled,
        has_body=has_body,
        upgrade=upgrade,
        expect_continue=head.expect_continue,
    )


def goes_again(head: RequestHead, state: EarlyData, sent_early: bool) -> bool:
    """425 (section 5.2): whether the request goes again, once, without early data. `sent_early`: the attempt was."""
    return state is OPEN and b"early-data" not in head.known and (sent_early or head.early)


def early_head(head: RequestHead, number: int) -> RequestHead:
    """The head of an attempt as it travels in a first flight."""
    fields = [] if head.early else [_FIELD]
    if number > 1:
        fields.append((b"onetrip-attempt", b"%d" % number))
    return _with_fields(head, fields)


def numbered(head: RequestHead, number: int) -> RequestHead:
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
