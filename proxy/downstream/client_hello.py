"""What a TLS client asks for, read from its first flight without answering it (RFC 8446 sections 4.1.2 and 5.1).

A ClientHello is one handshake message, which may be cut over several records, and a record over several reads.
`ClientHelloReader` takes the octets as they come and keeps them (`data`): whoever the connection goes to gets them
unchanged.

States: `receive` returns None while more is needed, and then, for good, a `ClientHello` or a `NotTls`. Bounds: 16 KiB
of octets in all, which is eight times the largest first flight in use (post-quantum key shares and a session ticket
included).

Only what is needed is read: cipher suites, key shares and the like may say anything, as long as the lengths add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

CLIENT_HELLO_BYTES_MAX: Final = 16 * 1024

_HANDSHAKE: Final = 22  # content type
_CLIENT_HELLO: Final = 1  # handshake type
_RECORD_HEADER: Final = 5
_RECORD_BYTES_MAX: Final = 16384  # of plaintext (RFC 8446 section 5.1)
_SERVER_NAME: Final = 0  # extensions
_ALPN: Final = 16
_HOST_NAME: Final = 0
_NAME_OCTETS: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_."


@dataclass(frozen=True, slots=True)
class ClientHello:
    """`server_name`: lower case, without a final dot, "" where none was sent. `alpn`: the protocols offered, best
    first.
    """

    server_name: str
    alpn: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NotTls:
    """The octets are no ClientHello, or none that is acceptable; `details` says why."""

    details: str

    def __str__(self) -> str:
        return self.details


Result: TypeAlias = ClientHello | NotTls


class ClientHelloReader:
    """Reads one first flight. `data` is all that was received, to be passed on."""

    __slots__ = ("_at", "_message", "_result", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._at = 0  # where the next record begins
        self._message = bytearray()  # the handshake message, as far as complete records have brought it
        self._result: Result | None = None

    def receive(self, data: bytes) -> Result | None:
        """Take bytes; return the result as soon as it is certain, None before."""
        self.data += data
        if self._result is None:
            try:
                self._result = self._read()
            except _Fault as fault:
                self._result = NotTls(str(fault))
        return self._result

    def receive_eof(self) -> Result:
        """The client sends no more: what is unfinished is no ClientHello."""
        if self._result is None:
            self._result = NotTls("closed within the ClientHello" if self.data else "closed before the ClientHello")
        return self._result

    def _read(self) -> Result | None:
        while True:
            header = self.data[self._at : self._at + _RECORD_HEADER]
            _check_record_header(header)
            if len(header) < _RECORD_HEADER:
                break
            size = int.from_bytes(header[3:], "big")
            if not 0 < size <= _RECORD_BYTES_MAX:
                raise _Fault(f"TLS record of {size} bytes")
            if self._at + _RECORD_HEADER + size > CLIENT_HELLO_BYTES_MAX:
                raise _Fault(f"ClientHello larger than {CLIENT_HELLO_BYTES_MAX} bytes")
            start = self._at + _RECORD_HEADER
            fragment = self.data[start : start + size]
            _check_message_start(self._message[:4] + fragment[:4])
            if len(fragment) < size:
                break
            self._message += fragment
            self._at = start + size
            if len(self._message) >= 4:
                end = 4 + int.from_bytes(self._message[1:4], "big")
                if len(self._message) >= end:
                    return _parse(bytes(self._message[4:end]))
        return None


class _Fault(Exception):
    """Why octets are no ClientHello. It stays inside this module."""


def _check_record_header(header: bytearray) -> None:
    """Refuse what can't be a handshake record by its first octets: they tell plaintext apart."""
    if header[:1] and header[0] != _HANDSHAKE:
        raise _Fault(f"no TLS handshake: the first octet is 0x{header[0]:02x}")
    if header[1:2] and header[1] != 3:
        raise _Fault(f"TLS record version {header[1]}")


def _check_message_start(start: bytearray) -> None:
    if start[:1] and start[0] != _CLIENT_HELLO:
        raise _Fault(f"handshake message {start[0]} instead of a ClientHello")
    if len(start) >= 4 and 4 + int.from_bytes(start[1:4], "big") > CLIENT_HELLO_BYTES_MAX:
        raise _Fault(f"ClientHello larger than {CLIENT_HELLO_BYTES_MAX} bytes")


class _Cursor:
    """Reads length-prefixed vectors, and refuses those that reach past the end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise _Fault("a length in the ClientHello reaches past its end")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, prefix: int) -> bytes:
        return self.take(self.number(prefix))


def _parse(body: bytes) -> ClientHello:
    """A ClientHello's body, behind its handshake header. Raises `_Fault`."""
    hello = _Cursor(body)
    hello.take(2 + 32)  # legacy_version, random
    hello.vector(1)  # legacy_session_id
    hello.vector(2)  # cipher_suites
    hello.vector(1)  # legacy_compression_methods
    server_name = ""
    alpn: tuple[bytes, ...] = ()
    if hello.left:  # TLS 1.2 clients may send no extensions at all
        extensions = _Cursor(hello.vector(2))
        if hello.left:
            raise _Fault("octets behind the extensions of the ClientHello")
        seen = set()
        while extensions.left:
            kind = extensions.number(2)
            data = extensions.vector(2)
            if kind in seen:
                raise _Fault(f"extension {kind} twice")
            seen.add(kind)
            if kind == _SERVER_NAME:
                server_name = _server_name(data)
            elif kind == _ALPN:
                alpn = _alpn(data)
    return ClientHello(server_name, alpn)


def _server_name(data: bytes) -> str:
    """The one host name of the extension (RFC 6066 section 3)."""
    extension = _Cursor(data)
    names = _Cursor(extension.vector(2))
    name = b""
    while names.left:
        kind = names.number(1)
        value = names.vector(2)
        if kind == _HOST_NAME:
            if name:
                raise _Fault("two server names")
            name = value.lower().removesuffix(b".")
            if not 0 < len(name) <= 255 or name.translate(None, _NAME_OCTETS):
                raise _Fault(f"invalid server name {value[:64]!r}"[:100])
    if extension.left or not name:
        raise _Fault("malformed server_name extension")
    return name.decode("ascii")


def _alpn(data: bytes) -> tuple[bytes, ...]:
    """The protocol names of the extension (RFC 7301 section 3.1)."""
    extension = _Cursor(data)
    names = _Cursor(extension.vector(2))
    protocols = []
    while names.left:
        protocols.append(names.vector(1))
    if extension.left or not protocols or not all(protocols):
        raise _Fault("malformed application_layer_protocol_negotiation extension")
    return tuple(protocols)
