"""What a forwarded request says of its way: `x-forwarded-*`, `via`, `cdn-loop`, `x-request-id`, `traceparent` (RFC 9110
section 7.6.3, RFC 8586, W3C Trace Context).

All of this kind have one name in `via`, so two in a row are no loop. What tells them apart is `cdn-loop`, which is made
for that: each adds its own name, nobody removes another's, and who finds his own refuses the request.

From a trusted peer, what it said is kept and added to; anybody else's claims are removed (`http.claims`). Routes are
matched after that: a claim chooses no route.
"""

from __future__ import annotations

import re
from os import urandom
from typing import TYPE_CHECKING, Any, Final

from proxy.errors import Kind, ProxyError
from proxy.http.claims import CLAIMED, is_claim
from proxy.http.semantics import decimal, first_allowed, quoted

if TYPE_CHECKING:
    from proxy.http.message import RequestHead
    from proxy.http.serving import Hop
    from routing.model import Route

_REWRITTEN: Final = frozenset(
    (
        CLAIMED,
        b"via",
        b"cdn-loop",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-request-id",
        b"traceparent",
        b"onetrip-attempt",
        b"onetrip-debug",
        b"early-data",
        b"max-forwards",
    )
)
_TRACEPARENT: Final = re.compile(
    rb"(?:00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[0-9A-Za-z_.-]{0,128})?)\Z"
)
"""Version 00 has exactly these 55 octets. What a higher one may add behind another dash is not known yet, and kept
where it is as plain as the rest: a JSON line can hold it as it stands."""
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,200}\Z")

NO_CONNECT: Final = "this route forwards no CONNECT: `connect: true` on the route would allow it"

_ENTROPY_BYTES: Final = 24 * 256


class Identifiers:
    """Fresh request ids and trace ids: slices of random hex digits, made 256 at a time. A fork must not share them
    (`reseed`).
    """

    __slots__ = ("_at", "_digits")

    def __init__(self) -> None:
        self._digits = b""
        self._at = 0

    def take(self) -> bytes:
        """48 hex digits that nobody has had."""
        at = self._at
        if at >= len(self._digits):
            self._digits = urandom(_ENTROPY_BYTES).hex().encode()
            at = 0
        self._at = at + 48
        return self._digits[at : at + 48]

    def reseed(self) -> None:
        """After a fork."""
        self._digits = b""
        self._at = 0


identifiers: Final = Identifiers()


def new_traceparent() -> bytes:
    """A W3C traceparent with fresh ids, sampled. The leading 1s keep both from being all zeros, which is invalid."""
    digits = identifiers.take()
    return b"00-1" + digits[1:32] + b"-1" + digits[33:48] + b"-01"


def rewrite(head: RequestHead, hop: Hop) -> tuple[bytes, bytes] | ProxyError:
    """Change `head.fields` into what the origin gets. Returns (request id, traceparent), or the error for a loop."""
    known = head.known
    fields = head.fields
    if head.version != b"1.1" or (known and not _REWRITTEN.isdisjoint(known)):
        return _rewrite_known(head, hop)
    request_id = identifiers.take()[:32]
    traceparent = new_traceparent()
    fields += hop.standing
    fields.append((b"x-forwarded-host", head.authority))
    fields.append((b"x-request-id", request_id))
    fields.append((b"traceparent", traceparent))
    return request_id, traceparent


def _rewrite_known(head: RequestHead, hop: Hop) -> tuple[bytes, bytes] | ProxyError:
    known = head.known
    via = known.get(b"via", b"")
    loop = known.get(b"cdn-loop", b"")
    if loop and _names(loop, hop.loop_name):
        text = f"this proxy ({hop.loop_name.decode()}) already forwarded the request: cdn-loop is {quoted(loop)}"
        return ProxyError(Kind.LOOP, text)
    mine = head.version + b" " + hop.via_name
    request_id = known.get(b"x-request-id", b"")
    if not _REQUEST_ID.match(request_id):
        request_id = identifiers.take()[:32]
    received: list[Any] = head.fields  # Any: compiled code would rebuild tuples, and HTTP/2 marks some by their type
    traceparent = known.get(b"traceparent", b"")
    if not _TRACEPARENT.match(traceparent):
        if traceparent:  # its state goes with it (W3C Trace Context section 4.3)
            received = [field for field in received if field[0] != b"tracestate"]
        traceparent = new_traceparent()
    peers, proto, host = hop.peer, hop.proto, head.authority
    if not hop.trusted:
        known.pop(b"early-data", None)  # a stranger's word, also for what becomes of a 425
    else:
        earlier = known.get(b"x-forwarded-for")
        peers = earlier + b", " + hop.peer if earlier else hop.peer
        proto = known.get(b"x-forwarded-proto") or proto
        host = known.get(b"x-forwarded-host") or host
    if CLAIMED in known and not hop.trusted:
        received = [field for field in received if not is_claim(field[0])]
    fields = [field for field in received if field[0] not in _REWRITTEN]
    fields.append((b"x-forwarded-for", peers))
    fields.append((b"x-forwarded-proto", proto))
    fields.append((b"via", via + b", " + mine if via else mine))
    fields.append((b"cdn-loop", loop + b", " + hop.loop_name if loop else hop.loop_name))
    fields.append((b"x-forwarded-host", host))
    fields.append((b"x-request-id", request_id))
    fields.append((b"traceparent", traceparent))
    forwards = known.get(b"max-forwards")
    if forwards is not None:
        hops = decimal(forwards, 9) if head.method in (b"OPTIONS", b"TRACE") else None
        fields.append((b"max-forwards", forwards if hops is None else b"%d" % max(0, hops - 1)))
    if known.get(b"early-data") == b"1":
        fields.append((b"early-data", b"1"))
    head.fields = fields
    return request_id, traceparent


def _names(loop: bytes, name: bytes) -> bool:
    """Whether a `cdn-loop` has this name, with parameters or without (RFC 8586 section 2)."""
    return any(member.partition(b";")[0].strip(b" \t") == name for member in loop.split(b","))


def settle_tunnel(head: RequestHead, route: Route) -> ProxyError | None:
    """CONNECT, or an upgrade that the client asks for: None where this route lets it go on, or it is ignored.

    Nobody here reads what passes in a tunnel, so routes name the ones that they take. Else CONNECT is refused, and an
    upgrade is ignored (RFC 9110 section 7.8): `head.upgrade` is b"" then, and the request one like any other. That is
    no way out for HTTP/2's extended CONNECT, which asks for nothing but the tunnel; it is refused.
    """
    if head.method == b"CONNECT":
        return None if route.connect else ProxyError(Kind.NOT_IMPLEMENTED, NO_CONNECT)
    asked = head.upgrade
    head.upgrade = first_allowed(asked, route.upgrades)
    if head.upgrade or head.version != b"2":
        return None
    return ProxyError(
        Kind.NOT_IMPLEMENTED,
        f"this route takes no upgrade to {quoted(asked)}: `upgrade` on the route names what it takes",
    )


def is_last_hop(head: RequestHead) -> bool:
    """`max-forwards: 0` (RFC 9110 section 7.6.2): the request ends here."""
    value = head.known.get(b"max-forwards")
    return value is not None and value.isdigit() and not value.strip(b"0")
