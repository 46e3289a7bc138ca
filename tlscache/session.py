"""A TLS session as a value that outlives its connection, and the scope within which it may be used again.

Resumption skips the certificate and its name (RFC 8446 section 2.2): a session is proof that *some* peer was verified
in *some* way. So it may only ever be offered where everything that verification depended on is the same: that is its
`Scope`, and stores know sessions by nothing else.

A session ends with the first of: the lifetime its ticket was given, seven days after its issue (RFC 8446 section
4.6.1), seven days after the last full verification behind it (a resumed connection's tickets inherit that moment), and
the end of the peer's certificate. Times are seconds since 1970, because they outlive the process.
"""

from __future__ import annotations

import calendar
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

AGE_MAX_S: Final = 7 * 86_400
UNHINTED_LIFETIME_S: Final = (
    7200  # TLS 1.2 leaves a ticket's life to the client where the server says nothing (RFC 5077 section 3.3)
)
SESSION_BYTES_MAX: Final = 64 * 1024
_FORMAT: Final = 1
_HEADER: Final = struct.Struct(">Bd")
_TLS13: Final = 0x0304


Material: TypeAlias = bytes | str | bool | int | None


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything that a verification depended on. Two connections share sessions only where all of it is equal.

    `material` is `ClientContext.scope_material`: the settings with the contents of the files that they name. It changes
    when the context has loaded new ones: make the scope anew then. `digest` is 32 bytes that stand for all of it.
    """

    host: str
    port: int
    server_name: str
    material: tuple[Material, ...] = ()
    digest: bytes = field(init=False, compare=False, repr=False, default=b"")

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.to_bytes()).digest())

    def to_bytes(self) -> bytes:
        """A canonical and injective encoding: different scopes never have the same bytes."""
        return b"".join(_encoded((self.host.lower(), self.port, self.server_name.lower(), *self.material)))


def _encoded(values: tuple[Material, ...]) -> Iterator[bytes]:
    for value in values:
        if value is None:
            kind, body = b"n", b""
        elif isinstance(value, bool):
            kind, body = b"b", b"\x01" if value else b"\x00"
        elif isinstance(value, int):
            kind, body = b"i", str(value).encode()
        elif isinstance(value, str):
            kind, body = b"s", value.encode("utf-8", "surrogatepass")
        else:
            kind, body = b"y", value
        yield kind + struct.pack(">I", len(body)) + body


@dataclass(frozen=True, slots=True)
class Facts:
    """What a session's encoding says. `expires_at` 0 means that it can't be resumed at all.

    `single_use`: a TLS 1.3 ticket, to be offered once (RFC 8446 appendix C.4). `max_early_data` is in bytes, 0 where
    0-RTT is not allowed. `server_name` and `alpn` are the connection's, as far as the server confirmed them.
    """

    issued_at: float = 0.0
    expires_at: float = 0.0
    single_use: bool = True
    max_early_data: int = 0
    server_name: str = ""
    alpn: bytes = b""


class Session:
    """A session: OpenSSL's encoding of it, and when its peer was last verified (seconds since 1970).

    The encoding holds the secrets: whoever has it can resume. Most tickets are never used, so what the encoding says is
    read on first use.
    """

    __slots__ = ("_facts", "der", "verified_at")

    def __init__(self, der: bytes, verified_at: float) -> None:
        self.der = der
        self.verified_at = verified_at
        self._facts: Facts | None = None

    @property
    def facts(self) -> Facts:
        """What the encoding says; bytes that are no session make one that has expired."""
        if self._facts is None:
            try:
                self._facts = _parse(self.der, self.verified_at)
            except (IndexError, ValueError, StopIteration, OverflowError):
                self._facts = Facts()
        return self._facts

    def to_bytes(self) -> bytes:
        """The session as bytes for a store."""
        return _HEADER.pack(_FORMAT, self.verified_at) + self.der

    @classmethod
    def from_bytes(cls, data: bytes) -> Session | None:
        """What `to_bytes` made; None where the bytes are something else."""
        if not _HEADER.size < len(data) <= SESSION_BYTES_MAX or data[0] != _FORMAT:
            return None
        return cls(data[_HEADER.size :], _HEADER.unpack_from(data)[1])

    def __repr__(self) -> str:
        facts = self.facts
        return f"<Session {facts.server_name or '-'} {len(self.der)} bytes, expires {facts.expires_at:.0f}>"


def _elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    # DER: (tag, start, end) of each element's contents.
    while start < end:
        tag, size = data[start], data[start + 1]
        start += 2
        if size & 0x80:
            width = size & 0x7F
            size = int.from_bytes(data[start : start + width], "big")
            start += width
        if start + size > end:
            raise ValueError("element beyond its container")
        yield tag, start, start + size
        start += size


def _parse(der: bytes, verified_at: float) -> Facts:
    # SSL_SESSION_ASN1 of OpenSSL's ssl_asn1.c: five fixed elements, then explicitly tagged optional ones.
    (_, start, end), *rest = _elements(der, 0, len(der))
    if rest:
        raise ValueError("bytes after the session")
    _version, protocol, _cipher, session_id, _secret, *tagged = _elements(der, start, end)
    optional = {}
    tagged_at = {}
    for tag, inner_start, inner_end in tagged:
        if tag & 0xA0 == 0xA0:
            optional[tag & 0x1F] = next(_elements(der, inner_start, inner_end))
            tagged_at[tag & 0x1F] = inner_start

    def number(index: int) -> int:
        _tag, value_start, value_end = optional.get(index, (2, 0, 0))
        return int.from_bytes(der[value_start:value_end], "big")

    def octets(index: int) -> bytes:
        _tag, value_start, value_end = optional.get(index, (4, 0, 0))
        return der[value_start:value_end]

    single_use = int.from_bytes(der[protocol[1] : protocol[2]], "big") == _TLS13
    has_ticket = bool(octets(10))
    hint_s = number(9)
    if not (has_ticket or (not single_use and session_id[1] < session_id[2])) or (single_use and not hint_s):
        return Facts()
    issued_at = float(number(1))
    expires_at = min(issued_at + min(hint_s or UNHINTED_LIFETIME_S, AGE_MAX_S), verified_at + AGE_MAX_S)
    if 3 in optional:
        expires_at = min(expires_at, certificate_not_after(der[tagged_at[3] : optional[3][2]]))
    server_name = octets(6).decode("ascii", "replace")
    return Facts(issued_at, expires_at, single_use, number(15), server_name, octets(16))


@lru_cache(256)
def certificate_not_after(der: bytes) -> float:
    """The end of a certificate's validity in seconds since 1970; 0 where the bytes are no certificate."""
    try:
        return _not_after(der)
    except (IndexError, ValueError, StopIteration):
        return 0.0


def _not_after(der: bytes) -> float:
    # RFC 5280 section 4.1: Certificate → tbsCertificate → [version], serial, signature, issuer, validity.
    _tag, start, end = next(_elements(der, 0, len(der)))
    _tag, start, end = next(_elements(der, start, end))
    fields = [element for element in _elements(der, start, end) if element[0] != 0xA0]
    _before, (tag, start, end) = _elements(der, *fields[3][1:])
    text = der[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime: years 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    if len(text) != 15 or text[14] != "Z":
        raise ValueError("a time that RFC 5280 does not allow")
    year, *parts = int(text[:4]), *(int(text[place : place + 2]) for place in range(4, 14, 2))
    return float(calendar.timegm((year, *parts)))
