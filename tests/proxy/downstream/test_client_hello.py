"""The ClientHello reader, against the hellos of a real TLS client and forged ones."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.downstream.client_hello import CLIENT_HELLO_BYTES_MAX, ClientHello, ClientHelloReader, NotTls


def real_hello(server_name="example.com", alpn=(), version=None):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=server_name).do_handshake()
    return outgoing.read()


def vector(prefix, data):
    return len(data).to_bytes(prefix, "big") + data


def sni(*names, kind=0):
    return b"\0\0" + vector(2, vector(2, b"".join(bytes((kind,)) + vector(2, name) for name in names)))


def alpn(*names):
    return b"\0\x10" + vector(2, vector(2, b"".join(vector(1, name) for name in names)))


def body(extensions=b"", tail=b""):
    fixed = b"\3\3" + bytes(32) + vector(1, b"") + vector(2, b"\x13\1") + vector(1, b"\0")
    return fixed + (vector(2, extensions) if extensions else b"") + tail


def records(message, size=16384, kind=22):
    pieces = [message[i : i + size] for i in range(0, len(message), size)]
    return b"".join(bytes((kind, 3, 1)) + vector(2, piece) for piece in pieces)


def hello(extensions=b"", **how):
    return records(b"\1" + vector(3, body(extensions)), **how)


def read(*pieces):
    reader = ClientHelloReader()
    for piece in pieces:
        reader.receive(piece)
    result = reader.receive(b"")
    assert reader.data == b"".join(pieces)
    return result


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_real_clients(version):
    data = real_hello("Example.com", ("h2", "http/1.1"), version)
    assert read(data) == ClientHello("example.com", (b"h2", b"http/1.1"))


def test_real_client_without_names():
    assert read(real_hello(None)) == ClientHello("", ())


def test_no_extensions():
    assert read(hello()) == ClientHello("", ())


def test_octets_behind_the_hello_are_kept():
    assert read(hello(sni(b"a.b.")) + b"early data", b"and more") == ClientHello("a.b", ())


@given(data=st.data(), size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_fragments(data, size):
    octets = hello(sni(b"example.com") + alpn(b"h2"), size=size)
    cut = data.draw(st.lists(st.integers(0, len(octets)), max_size=5).map(sorted))
    pieces = [octets[a:b] for a, b in zip([0, *cut], [*cut, len(octets)], strict=True)]
    assert read(*pieces) == ClientHello("example.com", (b"h2",))


def test_the_result_comes_with_the_last_octet():
    octets = hello(sni(b"a"), size=7)
    reader = ClientHelloReader()
    results = [reader.receive(octets[i : i + 1]) for i in range(len(octets))]
    assert results[:-1] == [None] * (len(octets) - 1)
    assert results[-1] == ClientHello("a", ())


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"G", "first octet is 0x47"),
        (b"\x80\x2e\1\3", "first octet is 0x80"),
        (records(b"\2\1", kind=21), "first octet is 0x15"),
        (b"\x16\2", "record version 2"),
        (b"\x16\3\1\0\0", "record of 0 bytes"),
        (b"\x16\3\1\xff\xff", "record of 65535 bytes"),
        (records(b"\2" + vector(3, body())), "handshake message 2"),
        (b"\x16\3\1\0\x20\2", "handshake message 2"),
        (records(b"\1\xff\xff\xff"), "larger than"),
        (b"\x16\3\1\x40\0" + b"\1\0\x30\0", "larger than"),
        (records(b"\1\0\x40\0" + bytes(16300), size=1000), "larger than"),
        (hello(sni()), "malformed server_name"),
        (hello(sni(b"a", b"b")), "two server names"),
        (hello(sni(b"a", kind=1)), "malformed server_name"),
        (hello(sni(b"")), "invalid server name"),
        (hello(sni(b".")), "invalid server name"),
        (hello(sni(b"a\0b")), "invalid server name"),
        (hello(sni(b"a b")), "invalid server name"),
        (hello(sni(b"\xe9")), "invalid server name"),
        (hello(sni(b"a" * 256)), "invalid server name"),
        (hello(sni(b"a") * 2), "extension 0 twice"),
        (hello(b"\0\0" + vector(2, vector(2, b"\0\0\1a") + b"x")), "malformed server_name"),
        (hello(alpn()), "malformed application_layer"),
        (hello(alpn(b"")), "malformed application_layer"),
        (hello(b"\0\x10" + vector(2, vector(2, b"\5h2"))), "reaches past"),
        (hello(b"\0\0\xff\xff"), "reaches past"),
        (hello(b"\0"), "reaches past"),
        (records(b"\1" + vector(3, body(sni(b"a"), tail=b"x"))), "behind the extensions"),
        (records(b"\1" + vector(3, b"\3\3")), "reaches past"),
    ],
)
def test_refused(octets, why):
    result = read(octets)
    assert isinstance(result, NotTls)
    assert why in result.details
    assert read(*(octets[i : i + 1] for i in range(len(octets)))) == result


def test_closed_early():
    octets = hello(sni(b"a"))
    reader = ClientHelloReader()
    assert reader.receive(octets[:-1]) is None
    assert reader.receive_eof() == NotTls("closed within the ClientHello")
    assert ClientHelloReader().receive_eof() == NotTls("closed before the ClientHello")


@given(st.lists(st.binary(max_size=40), max_size=5), st.booleans())
def test_any_octets_have_a_result(pieces, like_tls):
    reader = ClientHelloReader()
    if like_tls:
        reader.receive(b"\x16\3\1\0\x30\1\0\0\x2c")
    for piece in pieces:
        reader.receive(piece)
    assert isinstance(reader.receive_eof(), ClientHello | NotTls)


@given(st.data())
def test_damaged_hellos_have_a_result(data):
    octets = bytearray(hello(sni(b"example.com") + alpn(b"h2", b"http/1.1")))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    reader = ClientHelloReader()
    reader.receive(bytes(octets))
    assert isinstance(reader.receive_eof(), ClientHello | NotTls)


def test_what_is_kept_is_bounded():
    reader = ClientHelloReader()
    result = None
    while result is None:
        result = reader.receive(b"\x16\3\1\0\1\1" if not reader.data else b"\x16\3\1\0\1\0")
    assert len(reader.data) <= CLIENT_HELLO_BYTES_MAX + 6
