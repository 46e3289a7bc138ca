"""The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt): who a forwarded connection comes from.

`ProxyProtocolReader` takes the first octets of a connection as they come. `receive` returns None while more is needed,
and then, for good, a `ProxyHeader` or a `NotProxyProtocol`; `rest` is what came behind the header. Bounds: a version 1
header has at most 107 octets, a version 2 header at most 16 + 4096. There is no guessing: a listener that expects a
header refuses what has none, because a header that is optional can be forged.

Type-length-values of version 2 are skipped, but for the CRC32C, which is verified where it is present. Address
families other than TCP over IPv4 and IPv6 leave the addresses out, as version 1's UNKNOWN does."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.http.semantics import decimal
from proxy.net.address import unmapped

V1_BYTES_MAX: Final = 107
V2_BYTES_MAX: Final = 16 + 4096

_V1_START: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and command
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21  # family and transport
_ADDRESS_BYTES: Final = {0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_CRC32C: Final = 0x03

Address: TypeAlias = tuple[str, int]
"""An IP address in its canonical form, IPv4-mapped ones as IPv4, and a port."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """The connection as the sender saw it. Addresses are None where they are unknown.

    `local`: the sender's own connection (a health check), to be treated as if there were no header.
    """

    source: Address | None = None
    destination: Address | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class NotProxyProtocol:
    """The octets are no valid header; `details` says why."""

    details: str


Result: TypeAlias = ProxyHeader | NotProxyProtocol


class _Fault(Exception):
    """Why octets are no header. It stays inside this module."""


class ProxyProtocolReader:
    """Reads one header. `rest` is what came behind it; take it once there is a result."""

    __slots__ = ("_held", "_result", "rest")

    def __init__(self) -> None:
        self._held = b""
        self._result: Result | None = None
        self.rest = b""

    def receive(self, data: bytes) -> Result | None:
        """Take bytes; return the result as soon as it is certain, None before."""
        if self._result is not None:
            self.rest += data
            return self._result
        self._held += data
        try:
            self._result = self._read(self._held)
        except _Fault as fault:
            self._result = NotProxyProtocol(str(fault))
        if self._result is not None:
            self._held = b""
        return self._result

    def receive_eof(self) -> Result:
        """The peer sends no more: an unfinished header is none."""
        if self._result is None:
            self._result = NotProxyProtocol(f"closed {'within' if self._held else 'without'} a PROXY header")
        return self._result

    def _read(self, data: bytes) -> ProxyHeader | None:
        if _SIGNATURE.startswith(data[:12]):
            return self._read_v2(data)
        if _V1_START.startswith(data[:6]):
            return self._read_v1(data)
        raise _Fault(f"no PROXY header: {data[:16]!r}")

    def _read_v1(self, data: bytes) -> ProxyHeader | None:
        head = data[:V1_BYTES_MAX]
        end = head.find(b"\r\n")
        line = head if end < 0 else head[:end]
        if b"\n" in line or b"\r" in line[:-1] or (end >= 0 and b"\r" in line):
            raise _Fault("bare CR or LF in a PROXY line")
        if end < 0:
            if len(data) >= V1_BYTES_MAX:
                raise _Fault(f"PROXY line longer than {V1_BYTES_MAX} bytes")
            return None
        header = _parse_v1(line)
        self.rest = data[end + 2 :]
        return header

    def _read_v2(self, data: bytes) -> ProxyHeader | None:
        if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
            raise _Fault(f"PROXY version and command 0x{data[12]:02x}")
        if len(data) < 16:
            return None
        end = 16 + int.from_bytes(data[14:16], "big")
        if end > V2_BYTES_MAX:
            raise _Fault(f"PROXY header of {end} bytes")
        if len(data) < end:
            return None
        header = _parse_v2(data[:end])
        self.rest = data[end:]
        return header


def _parse_v1(line: bytes) -> ProxyHeader:
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return ProxyHeader()
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise _Fault(f"invalid PROXY line {line!r}")
    _, family, source, destination, source_port, destination_port = words
    return ProxyHeader((_ip(family, source), _port(source_port)), (_ip(family, destination), _port(destination_port)))


def _ip(family: bytes, word: bytes) -> str:
    try:
        text = word.decode("ascii")
        if family == b"TCP4":
            return str(ipaddress.IPv4Address(text))
        if "%" in text:
            raise ValueError
        return unmapped(str(ipaddress.IPv6Address(text)))
    except ValueError:
        raise _Fault(f"invalid {family.decode()} address {word!r}") from None


def _port(word: bytes) -> int:
    port = decimal(word, 5)
    if port is None or port > 65535 or (len(word) > 1 and word[0] == 0x30):
        raise _Fault(f"invalid port {word!r}")
    return port


def _parse_v2(header: bytes) -> ProxyHeader:
    command, family = header[12], header[13]
    size = _ADDRESS_BYTES.get(family, 0)
    addresses = header[16 : 16 + size]
    if command == _LOCAL:
        # What follows is to be skipped whatever it is; without a known family it can't be told from type-length-values.
        return ProxyHeader(local=True)
    if len(addresses) < size:
        raise _Fault("PROXY header shorter than its addresses")
    if size or family == _UNSPEC:
        _check_values(header, 16 + size)
    if family == _TCP4:
        source, destination, source_port, destination_port = struct.unpack("!4s4sHH", addresses)
        version = socket.AF_INET
    elif family == _TCP6:
        source, destination, source_port, destination_port = struct.unpack("!16s16sHH", addresses)
        version = socket.AF_INET6
    else:
        return ProxyHeader()
    return ProxyHeader(
        (_text(version, source), source_port),
        (_text(version, destination), destination_port),
    )


def _text(version: int, packed: bytes) -> str:
    if version == socket.AF_INET:
        return str(ipaddress.IPv4Address(packed))
    return unmapped(str(ipaddress.IPv6Address(packed)))


def _check_values(header: bytes, at: int) -> None:
    """Walk the type-length-values from `at`; verify a CRC32C (section 2.2.3)."""
    while at < len(header):
        if at + 3 > len(header):
            raise _Fault("cut PROXY value")
        kind = header[at]
        size = int.from_bytes(header[at + 1 : at + 3], "big")
        start, at = at + 3, at + 3 + size
        if at > len(header):
            raise _Fault("PROXY value reaches past the header")
        if kind == _CRC32C:
            if size != 4:
                raise _Fault("PROXY checksum of a wrong size")
            zeroed = header[:start] + b"\0\0\0\0" + header[at:]
            if crc32c(zeroed) != int.from_bytes(header[start:at], "big"):
                raise _Fault("PROXY checksum does not match")


# Writing.


def write_v1(header: ProxyHeader) -> bytes:
    """A version 1 header; UNKNOWN where the addresses are (a local connection has no other form here)."""
    if header.local or header.source is None or header.destination is None:
        return b"PROXY UNKNOWN\r\n"
    source, destination = _same_family(header.source[0], header.destination[0])
    line = f"PROXY TCP{source.version} {source} {destination} {header.source[1]} {header.destination[1]}\r\n"
    return line.encode("ascii")


def write_v2(header: ProxyHeader, *, checksum: bool = False) -> bytes:
    """A version 2 header: LOCAL, or PROXY with TCP over IPv4 or IPv6, or with no family where addresses are unknown."""
    command, family, addresses = _PROXY, _UNSPEC, b""
    if header.local:
        command = _LOCAL
    elif header.source is not None and header.destination is not None:
        source, destination = _same_family(header.source[0], header.destination[0])
        family = _TCP4 if source.version == 4 else _TCP6
        addresses = source.packed + destination.packed + struct.pack("!HH", header.source[1], header.destination[1])
    size = len(addresses) + (7 if checksum else 0)
    start = _SIGNATURE + struct.pack("!BBH", command, family, size) + addresses
    if not checksum:
        return start
    start += struct.pack("!BH", _CRC32C, 4)
    return start + struct.pack("!I", crc32c(start + b"\0\0\0\0"))


_IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def _same_family(source: str, destination: str) -> tuple[_IP, _IP]:
    """Both addresses in one family: IPv4 is mapped into IPv6 where the other one is IPv6. A scope (`%eth0`) is left
    out.
    """
    one, other = (ipaddress.ip_address(address.partition("%")[0]) for address in (source, destination))
    if one.version != other.version:
        one, other = _mapped(one), _mapped(other)
    return one, other


def _mapped(address: _IP) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)


def _crc_table() -> tuple[int, ...]:
    table = []
    for octet in range(256):
        for _ in range(8):
            octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)  # noqa: PLW2901
        table.append(octet)
    return tuple(table)


_CRC_TABLE: Final = _crc_table()


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of RFC 3720 appendix B.4."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF
