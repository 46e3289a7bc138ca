"""What request and response heads share: the bounds, the reading of field lines, and the words for what is wrong.

The grammar of a head is small (RFC 9112 sections 2.1 and 5): lines that end with CRLF; `token ":" OWS value OWS`; no
control character but the tab. So it is read here, in one pass, which is faster than llhttp under Python callbacks and
leaves one reading of what decides where a message ends. The tests compare it with llhttp and h11.

Two tables make it fast. A name is looked up as it was written: the answer is the name in lower case, and what to do
with the field. And a whole line of the kind that repeats from message to message (never a credential) is looked up
before it is taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.errors import Kind, ProxyError
from proxy.http import semantics
from proxy.http.claims import CLAIMED, is_claim
from proxy.http.message import Field, Fields
from proxy.http.semantics import quoted


@dataclass(frozen=True, slots=True)
class H1Limits:
    """Bounds of one connection. Past them: 431, 431, 414, 413, and no more reading."""

    header_bytes: int = 65536  # one head; also one trailer section, and pipelined bytes that wait
    headers: int = 128  # field lines of one head, or of one trailer section
    target_bytes: int = 32768
    body_bytes: int = 0  # 0: unlimited
    buffer_bytes: int = 262144  # body bytes delivered and not yet consumed


# What to do with a field.
PLAIN: Final = 0  # pass it on
KNOWN: Final = 1  # pass it on, and put it into `known`
CONTROL: Final = 2  # the codec reads it, and it does not pass
DROPPED: Final = 3
CLAIM: Final = 4  # pass it on, and put `CLAIMED` into `known`

_NAMES_MAX: Final = 1024  # learnt spellings; past it they are forgotten
_NAME_BYTES_MAX: Final = 64  # longer spellings are not learnt
_LINES_MAX: Final = 1024  # remembered lines; past it they are forgotten
_LINE_BYTES_MAX: Final = 256  # longer lines are not remembered

_COMMON: Final = frozenset(
    b"""accept-charset accept-encoding accept-language accept-ranges access-control-allow-origin age allow cache-control
    content-disposition content-encoding content-language content-location content-range content-security-policy
    content-type dnt etag expires from grpc-encoding grpc-timeout if-match if-modified-since if-none-match
    if-range if-unmodified-since last-modified link location origin pragma priority range referer sec-ch-ua
    sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user
    sec-websocket-accept sec-websocket-extensions sec-websocket-key sec-websocket-protocol sec-websocket-version
    server set-cookie strict-transport-security tracestate trailer upgrade-insecure-requests vary
    www-authenticate x-content-type-options x-frame-options x-powered-by x-requested-with
    x-xss-protection""".split()
)
_REPEATING: Final = frozenset(
    b"""accept accept-charset accept-encoding accept-language accept-ranges access-control-allow-origin cache-control
    connection content-encoding content-length content-type date dnt host origin pragma priority sec-ch-ua
    sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user server
    strict-transport-security te transfer-encoding upgrade-insecure-requests user-agent vary via
    x-content-type-options x-forwarded-proto x-frame-options x-powered-by x-requested-with x-xss-protection""".split()
)
_SPELLINGS: Final = {b"etag": b"ETag", b"dnt": b"DNT", b"te": b"TE", b"www-authenticate": b"WWW-Authenticate"}
_NOT_IN_VALUES: Final = bytes(octet for octet in range(32) if octet != 9) + b"\x7f"


class FieldReader:
    """Reads the field lines of one role's heads, and remembers names and lines between them. Shared by all
    connections.
    """

    __slots__ = ("_fault", "_lines", "_names", "_other", "_seed")

    def __init__(self, kinds: dict[bytes, int], fault: Kind, other: Callable[[bytes], int] | None = None) -> None:
        """`kinds` says what to do with a field, `other` with one that is not in there; without it, it is passed on."""
        self._fault = fault
        self._other = other
        self._seed: dict[bytes, tuple[bytes, int, bool]] = {}
        for name in sorted({*_COMMON, *kinds}):
            entry = (name, kinds.get(name, PLAIN), name in _REPEATING)
            self._seed[name] = self._seed[name.title()] = self._seed[_SPELLINGS.get(name, name)] = entry
        self._names = dict(self._seed)
        self._lines: dict[bytes, tuple[Field, int]] = {}

    def read(self, lines: list[bytes]) -> tuple[Fields, dict[bytes, bytes], dict[bytes, bytes]]:
        """Field lines as (fields to pass on, values of known ones, values of control ones). Raises ProxyError."""
        fields: Fields = []
        known: dict[bytes, bytes] = {}
        control: dict[bytes, bytes] = {}
        remembered, names = self._lines, self._names
        for line in lines:
            entry = remembered.get(line)
            if entry is not None:
                field, kind = entry
            else:
                raw, colon, value = line.partition(b":")
                value = value.strip(b" \t")
                name, kind, repeats = names.get(raw) or self._learn(raw, line)
                if not colon or value.translate(None, _NOT_IN_VALUES) != value:
                    raise ProxyError(self._fault, line_fault(line))
                field = (name, value)
                if repeats and len(line) <= _LINE_BYTES_MAX:
                    self._remember(line, field, kind)
            if not kind:
                fields.append(field)
            elif kind == KNOWN:
                fields.append(field)
                name, value = field
                if name in known:
                    known[name] += (b"; " if name == b"cookie" else b", ") + value
                else:
                    known[name] = value
            elif kind == CONTROL:
                # Repeated lines are one list (RFC 9110 section 5.3). Where none is allowed, its comma will be refused.
                name, value = field
                control[name] = control[name] + b", " + value if name in control else value
            elif kind == CLAIM:
                fields.append(field)
                known[CLAIMED] = b""
        return fields, known, control

    def _learn(self, raw: bytes, line: bytes) -> tuple[bytes, int, bool]:
        """The entry of a spelling not met before.

        White space before the colon of a response is removed, as RFC 9112 section 5.1 asks of a proxy, but not where
        the field decides how the message is read; in a request it is a fault.
        """
        if not semantics.is_token(raw):
            name = raw.rstrip(b" \t").lower()
            entry = self._seed.get(name) or (name, PLAIN, False)
            if self._fault is Kind.BAD_RESPONSE and semantics.is_token(name) and entry[1] != CONTROL:
                return name, entry[1], False
            raise ProxyError(self._fault, line_fault(line))
        name = raw.lower()
        entry = self._seed.get(name) or (name, self._other(name) if self._other is not None else PLAIN, False)
        if len(raw) <= _NAME_BYTES_MAX:
            if len(self._names) >= len(self._seed) + _NAMES_MAX:
                self._names.clear()
                self._names.update(self._seed)
            self._names[raw] = entry
        return entry

    def _remember(self, line: bytes, field: Field, kind: int) -> None:
        if len(self._lines) >= _LINES_MAX:
            self._lines.clear()
        self._lines[line] = (field, kind)


def remove_nominated(fields: Fields, known: dict[bytes, bytes], options: list[bytes]) -> Fields:
    """Fields without those that `connection` names, but for the ones it may not name (RFC 9110 section 7.6.1)."""
    removed = set(options) - semantics.HOP_BY_HOP - semantics.NOT_NOMINABLE - {b"close"}
    removed = {name for name in removed if not is_claim(name)}
    if not removed:
        return fields
    for name in removed:
        known.pop(name, None)
    return [field for field in fields if field[0] not in removed]


def check_sendable(fields: Fields) -> None:
    """Fields that another HTTP version framed could hold what would end a line here. Its codec has checked: this is
    the second lock.
    """
    fault = semantics.validate_fields(fields)
    if fault is not None:
        raise ValueError(fault)


# Faults.

_BAD_OCTET: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def bad_octet(data: bytes, start: int = 0) -> str | None:
    """The first octet that no head may hold: a control character, or a CR or LF that is not half of a CRLF."""
    match = _BAD_OCTET.search(data, start)
    if match is None:
        return None
    name = {b"\n": "LF without CR", b"\r": "CR without LF"}.get(match[0], f"control character 0x{match[0][0]:02x}")
    return f"{name} after {quoted(data[max(0, match.start() - 32) : match.start()])}"


def line_fault(line: bytes) -> str:
    """What is wrong with a field line."""
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return f"folded field line {quoted(line)}"
    if not colon:
        return f"field line without a colon {quoted(line)}"
    if not semantics.is_token(name):
        return f"invalid field name {quoted(name)}"
    return f"invalid value of {quoted(name)}: {quoted(value)}"
