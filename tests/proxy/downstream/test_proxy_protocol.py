"""The PROXY protocol, both versions, both ways."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.downstream.proxy_protocol import (
    V2_BYTES_MAX,
    NotProxyProtocol,
    ProxyHeader,
    ProxyProtocolReader,
    crc32c,
    write_v1,
    write_v2,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FOUR = ProxyHeader(("192.0.2.1", 40000), ("198.51.100.7", 443))
SIX = ProxyHeader(("2001:db8::1", 1), ("::1", 65535))


def v2(command, family, content, size=None):
    return SIGNATURE + bytes((command, family)) + (len(content) if size is None else size).to_bytes(2, "big") + content


def value(kind, content):
    return bytes((kind,)) + len(content).to_bytes(2, "big") + content


ADDRESSES_4 = bytes((192, 0, 2, 1, 198, 51, 100, 7)) + (40000).to_bytes(2, "big") + (443).to_bytes(2, "big")


def read(*pieces):
    reader = ProxyProtocolReader()
    for piece in pieces:
        reader.receive(piece)
    return reader.receive(b""), reader.rest


@pytest.mark.parametrize(
    ("octets", "header"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443\r\n", FOUR),
        (b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", SIX),
        (b"PROXY TCP6 2001:0DB8:0000::1 0:0:0:0:0:0:0:1 1 65535\r\n", SIX),
        (b"PROXY UNKNOWN\r\n", ProxyHeader()),
        (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", ProxyHeader()),
        (v2(0x21, 0x11, ADDRESSES_4), FOUR),
        (v2(0x21, 0x11, ADDRESSES_4 + value(4, b"padding") + value(1, b"h2")), FOUR),
        (v2(0x21, 0x21, bytes.fromhex("20010db8" + "0" * 23 + "1" + "0" * 31 + "1" + "0001ffff")), SIX),
        (v2(0x20, 0x00, b""), ProxyHeader(local=True)),
        (v2(0x20, 0x11, b"whatever"), ProxyHeader(local=True)),
        (v2(0x21, 0x00, value(4, b"x")), ProxyHeader()),
        (v2(0x21, 0x12, ADDRESSES_4), ProxyHeader()),
        (v2(0x21, 0x31, bytes(216)), ProxyHeader()),
        (v2(0x21, 0x77, b"??"), ProxyHeader()),
    ],
)
def test_read(octets, header):
    assert read(octets + b"\x16rest") == (header, b"\x16rest")
    assert read(*(octets[i : i + 1] for i in range(len(octets)))) == (header, b"")


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY\r\n",
        b"proxy TCP4 192.0.2.1 198.51.100.7 40000 443\r\n",
        b"PROXY  TCP4 192.0.2.1 198.51.100.7 40000 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 40000\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443 \r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443 x\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.7 40000 443\r\n",
        b"PROXY TCP4 192.0.2 198.51.100.7 40000 443\r\n",
        b"PROXY TCP4 ::1 198.51.100.7 40000 443\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.7 40000 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 40000 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 040000 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7 +1 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.7  443\r\n",
        b"PROXY TCP4 \xe9 198.51.100.7 1 443\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.7 40000 443\r\n",
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWN\r\r\n",
        b"PROXY UNKNOWN \rx\r\n",
        b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
        SIGNATURE[:-1] + b"x",
        v2(0x11, 0x11, ADDRESSES_4),
        v2(0x22, 0x11, ADDRESSES_4),
        v2(0x21, 0x11, ADDRESSES_4[:-1]),
        v2(0x21, 0x11, ADDRESSES_4 + b"\4"),
        v2(0x21, 0x11, ADDRESSES_4 + b"\4\0\5x"),
        v2(0x21, 0x11, ADDRESSES_4 + value(3, b"\0\0\0\0")),
        v2(0x21, 0x11, ADDRESSES_4 + value(3, b"\0")),
        v2(0x21, 0x11, b"", size=V2_BYTES_MAX - 15),
    ],
)
def test_refused(octets):
    result, rest = read(octets)
    assert isinstance(result, NotProxyProtocol)
    assert rest == b""
    assert isinstance(read(*(octets[i : i + 1] for i in range(len(octets))))[0], NotProxyProtocol)


def test_what_is_not_a_header_is_known_by_its_first_octets():
    assert isinstance(read(b"\x16")[0], NotProxyProtocol)
    assert isinstance(read(b"PROXO")[0], NotProxyProtocol)


def test_closed_early():
    reader = ProxyProtocolReader()
    assert reader.receive(b"PROXY TCP4 ") is None
    assert reader.receive_eof() == NotProxyProtocol("closed within a PROXY header")


def test_write():
    assert write_v1(FOUR) == b"PROXY TCP4 192.0.2.1 198.51.100.7 40000 443\r\n"
    mapped = ipaddress.ip_address("::ffff:192.0.2.1")  # mixed families are brought into one
    assert write_v1(ProxyHeader(("192.0.2.1", 1), ("fe80::1%lo", 2))) == f"PROXY TCP6 {mapped} fe80::1 1 2\r\n".encode()
    assert write_v1(ProxyHeader(local=True)) == b"PROXY UNKNOWN\r\n"
    assert write_v2(FOUR) == v2(0x21, 0x11, ADDRESSES_4)
    assert write_v2(ProxyHeader(local=True)) == v2(0x20, 0, b"")
    assert write_v2(ProxyHeader()) == v2(0x21, 0, b"")


def test_crc32c_of_rfc_3720():
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"123456789") == 0xE3069283


def test_a_checksum_is_verified():
    octets = write_v2(FOUR, checksum=True)
    assert read(octets)[0] == FOUR
    for at in [*range(16, 28), *range(29, len(octets))]:  # at 28 stands the type, without which there is no checksum
        damaged = bytearray(octets)
        damaged[at] ^= 1
        assert read(bytes(damaged))[0] != FOUR


PORTS = st.integers(0, 65535)


def addresses(version):
    """Of one version; IPv4 in IPv6's clothes is read as IPv4, and is no round trip."""
    found = st.ip_addresses(v=version)
    return found.filter(lambda one: getattr(one, "ipv4_mapped", None) is None).map(str)


HEADERS = st.one_of(
    *(
        st.builds(
            ProxyHeader,
            st.tuples(addresses(version), PORTS),
            st.tuples(addresses(version), PORTS),
        )
        for version in (4, 6)
    )
)


@given(header=HEADERS, cut=st.integers(0, 120), rest=st.binary(max_size=5))
def test_round_trips(header, cut, rest):
    for octets in (write_v1(header), write_v2(header), write_v2(header, checksum=True)):
        data = octets + rest
        assert read(data[:cut], data[cut:]) == (header, rest)
        assert ipaddress.ip_address(header.source[0])


@given(
    st.lists(st.binary(max_size=30), max_size=5), st.sampled_from([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"])
)
def test_any_octets_have_a_result(pieces, start):
    reader = ProxyProtocolReader()
    for piece in [start, *pieces]:
        reader.receive(piece)
    assert isinstance(reader.receive_eof(), ProxyHeader | NotProxyProtocol)
