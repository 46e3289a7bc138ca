"""What a field, an authority or a target may be, in any HTTP version (RFC 9110, RFC 3986). Pure functions; None or
False means: refuse.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from .claims import is_claim

if TYPE_CHECKING:
    from .message import Fields

HOP_BY_HOP: Final = frozenset(
    (b"connection", b"http2-settings", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
"""Fields that mean only one connection and never pass (RFC 9110 section 7.6.1; RFC 7540 section 3.2.1 for
http2-settings).
"""

FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"host"))
"""Fields that `connection` must never name: who removed them would read another message (RFC 9110 section 7.6.1)."""

UNDERSCORE_TWINS_REFUSED: Final = frozenset((b"content_length", b"transfer_encoding"))
"""CGI and WSGI origins map `_` and `-` to the same variable: these would frame a message for them, so requests with
one are refused.
"""

NEVER_FORWARDED: Final = frozenset((b"http2-settings", b"proxy", b"proxy-authorization"))
"""Requests' fields that end here in every version. CGI origins read `proxy` as the variable HTTP_PROXY
(https://httpoxy.org); it is no field of any standard.
"""

NOT_NOMINABLE: Final = frozenset(
    (
        b"accept",
        b"authorization",
        b"cache-control",
        b"cdn-loop",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"early-data",
        b"expires",
        b"idempotency-key",
        b"location",
        b"origin",
        b"pragma",
        b"range",
        b"set-cookie",
        b"traceparent",
        b"tracestate",
        b"vary",
        b"via",
        b"www-authenticate",
        b"x-request-id",
    )
)
"""End-to-end fields that stay although `connection` names them, as claims do: else a client could strip what an origin
relies on.
"""

_NOT_IN_TRAILERS: Final = (
    HOP_BY_HOP
    | NOT_NOMINABLE
    | NEVER_FORWARDED
    | frozenset((b"age", b"alt-svc", b"clear-site-data", b"expect", b"grpc-timeout", b"host", b"max-forwards"))
    | frozenset((b"retry-after", b"strict-transport-security", b"trailer", b"user-agent", b"warning"))
) - frozenset((b"date", b"via"))
_NOT_IN_TRAILERS_PREFIXES: Final = (b"access-control-", b"content-", b"if-", b"proxy-", b"sec-")
_IN_TRAILERS: Final = frozenset((b"content-digest", b"content-md5"))
"""Known only at the end of a body, and made for it (RFC 9530 section 6)."""

NEVER_UPGRADED: Final = frozenset((b"h2c", b"h2", b"h3", b"http", b"tls"))
"""What no upgrade leads to, whatever a route says."""

BODYLESS_STATUSES: Final = frozenset((204, 304))
"""Final statuses that never have a body (RFC 9110 section 6.4.1)."""

CONTENT_LENGTH_MAX: Final = 2**63 - 1

_TOKEN_OCTETS: Final = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HEXADECIMAL_OCTETS: Final = b"0123456789ABCDEFabcdef"
_VALUE_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_REG_NAME: Final = re.compile(
    rb"(?P<host>[A-Za-z0-9._~-]{1,255}|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\])(?::(?P<port>[0-9]{0,5}))?"
)
_ABSOLUTE: Final = re.compile(rb"https?://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?", re.IGNORECASE)
TARGET_OCTETS: Final = bytes(octet for octet in range(0x21, 0x7F) if octet != 0x23)
_PROTOCOL: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:/[!#$%&'*+\-.^_`|~0-9A-Za-z]+)?")
_QUOTED_MAX: Final = 64


def quoted(value: bytes) -> str:
    """A peer's bytes, safe in a log line or a message: printable ASCII with escapes, cut at 64 bytes."""
    return repr(value[:_QUOTED_MAX])[1:] + ("…" if len(value) > _QUOTED_MAX else "")


def is_token(value: bytes) -> bool:
    """A token: methods, field names, connection options (RFC 9110 section 5.6.2)."""
    return bool(value) and not value.translate(None, _TOKEN_OCTETS)


def is_field_value(value: bytes) -> bool:
    """A field value without control characters (tab is none) or white space around it (RFC 9110 section 5.5)."""
    return _VALUE_CONTROLS.search(value) is None and value.strip(b" \t") == value


def validate_fields(fields: Fields) -> str | None:
    """What is wrong with the first bad field, or None. For names that must be lower case already (RFC 9113 section
    8.2.1).
    """
    for name, value in fields:
        if not is_token(name) or name != name.lower():
            return f"invalid field name {quoted(name)}"
        if not is_field_value(value):
            return f"invalid value of {quoted(name)}: {quoted(value)}"
    return None


def decimal(value: bytes, digits_max: int) -> int | None:
    """A peer's number of 1 to `digits_max` ASCII digits (RFC 5234's DIGIT); None where it is anything else.

    This and `hexadecimal` are the only ways to read one: `int()` alone takes "+5", "5_0", " 5" and "0x5", too.
    """
    return int(value) if value.isdigit() and len(value) <= digits_max else None  # bytes.isdigit: ASCII only


def hexadecimal(value: bytes, digits_max: int) -> int | None:
    """A peer's number of 1 to `digits_max` hexadecimal digits (RFC 5234's HEXDIG, either case), or None."""
    if not value or len(value) > digits_max or value.translate(None, _HEXADECIMAL_OCTETS):
        return None
    return int(value, 16)


def content_length(value: bytes) -> int | None:
    """A body's length, or None where it is not exactly one decimal number up to 2^63-1 (RFC 9110 section 8.6).

    Lists of one repeated number are refused as well, which section 8.6 allows.
    """
    length = decimal(value, 19)
    return length if length is not None and length <= CONTENT_LENGTH_MAX else None


def authority(value: bytes) -> bytes | None:
    """`host` or `host:port` (RFC 9110 section 7.2), without an empty port's colon; None where invalid.

    Narrower than RFC 3986's reg-name: no percent-encoding and no sub-delims, which no name that resolves has and
    which routers read differently. An IPv6 literal must be one; userinfo, spaces, commas and an empty host are
    refused."""
    match = _REG_NAME.fullmatch(value)
    if match is None:
        return None
    if match["v6"] is not None:
        try:
            ipaddress.IPv6Address(match["v6"].decode())
        except ValueError:
            return None
    port = match["port"]
    if port and (decimal(port, 5) or 0) > 65535:
        return None
    return value[:-1] if port == b"" else value


def is_target(value: bytes) -> bool:
    """Octets that may stand in a target: visible ASCII without `#` (RFC 9112 section 3.2; browsers send more than
    RFC 3986 lists).
    """
    return bool(value) and not value.translate(None, TARGET_OCTETS)


def split_absolute(target: bytes) -> tuple[bytes, bytes] | None:
    """An absolute-form http(s) target as (authority, origin-form target), or None where it is none (RFC 9112 section
    3.2.2).

    The path is b"" where the URI has neither path nor query: `/`, or `*` for OPTIONS (section 3.2.4)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return None
    host = authority(match["authority"])
    if host is None:
        return None
    path, query = match["path"], match["query"]
    return host, (path or b"/") + query if query is not None else path


def list_members(value: bytes) -> list[bytes]:
    """The members of a comma-separated list, lower case, empty ones left out (RFC 9110 section 5.6.1)."""
    return [member for part in value.lower().split(b",") if (member := part.strip(b" \t"))]


def upgrade_protocols(value: bytes) -> bytes:
    """What of an `upgrade` list a route may allow, comma-separated and in lower case; b"" where it is nothing.

    Other HTTP versions and TLS are left out: they would let requests through that nobody here has read ("h2c
    smuggling")."""
    members = list_members(value)
    kept = [m for m in members if _PROTOCOL.fullmatch(m) and m.partition(b"/")[0] not in NEVER_UPGRADED]
    return b", ".join(kept)


def first_allowed(protocols: bytes, allowed: tuple[bytes, ...]) -> bytes:
    """The one of those allowed that a client likes best (RFC 9110 section 7.8), or b"".

    Only one goes on: whoever reads the list in another way can't choose what this route does not take.
    """
    for protocol in list_members(protocols):
        if protocol in allowed:
            return protocol
    return b""


def allowed_trailers(fields: Fields) -> Fields:
    """Trailer fields without those that framing, routing, authentication, caching or trust would read too late (RFC
    9110 section 6.5.1): a recipient that merges trailers into the head would believe them unseen.
    """
    return [field for field in fields if _may_trail(field[0])]


def _may_trail(name: bytes) -> bool:
    name = name.replace(b"_", b"-")  # as CGI origins read it
    if name in _NOT_IN_TRAILERS or is_claim(name):
        return False
    return name in _IN_TRAILERS or not name.startswith(_NOT_IN_TRAILERS_PREFIXES)
