"""Which fields are claims, and that the page of them is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProxyError
from proxy.exchange.forward import rewrite
from proxy.http import claims, semantics
from proxy.http.h1 import H1Limits
from proxy.http.h1.request import parse_request as parse_h1
from proxy.http.h2.heads import copy_request
from proxy.http.h2.heads import parse_request as parse_h2
from proxy.http.message import KNOWN_REQUEST_FIELDS, RequestHead
from proxy.http.serving import Hop

NAMES = sorted(claims.CLAIM_NAMES | {prefix + b"some" for prefix in claims.CLAIM_PREFIXES})
WRITTEN = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-request-id",
    b"early-data",
    b"max-forwards",
)
PAGE = Path(__file__).parents[3] / "docs" / "forwarding.md"


def received(name: bytes, version: str) -> RequestHead:
    if version == "h1":
        head, _ = parse_h1(b"GET / HTTP/1.1\r\nhost: a.test\r\n" + name + b": 192.0.2.66", H1Limits())
        return head
    lines = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"), (b":path", b"/")]
    parsed = parse_h2([*lines, (name.lower(), b"192.0.2.66")])
    assert isinstance(parsed, RequestHead)
    return copy_request(parsed)


def forwarded(name: bytes, version: str, trusted: bool) -> list[bytes]:
    """The values that the origin gets under this name, or one that a CGI origin can't tell from it."""
    head = received(name, version)
    assert not isinstance(rewrite(head, Hop(b"203.0.113.9", b"http", b"onetrip", trusted)), ProxyError)
    like = name.lower().replace(b"_", b"-")
    return [value for other, value in head.fields if other.replace(b"_", b"-") == like]


@pytest.mark.parametrize("version", ["h1", "h2"])
@pytest.mark.parametrize("name", NAMES)
def test_a_strangers_claim_goes_and_a_trusted_clients_stays(name: bytes, version: str) -> None:
    assert forwarded(name, version, trusted=False) == []
    assert forwarded(name, version, trusted=True) == [b"192.0.2.66"]


@pytest.mark.parametrize("version", ["h1", "h2"])
@pytest.mark.parametrize("trusted", [False, True])
@given(name=st.sampled_from([*NAMES, *WRITTEN]), data=st.data())
def test_no_twin_ever_passes(version: str, trusted: bool, name: bytes, data: st.DataObject) -> None:
    dashes = [at for at, octet in enumerate(name) if octet == 0x2D]
    if not dashes:
        return
    changed = data.draw(st.sets(st.sampled_from(dashes), min_size=1))
    twin = bytes(0x5F if at in changed else octet for at, octet in enumerate(name))
    if version == "h1":
        twin = data.draw(st.sampled_from([twin, twin.upper(), twin.title()]))
    assert b"192.0.2.66" not in forwarded(twin, version, trusted)


@pytest.mark.parametrize("version", ["h1", "h2"])
def test_httpoxy_ends_here(version: str) -> None:
    assert forwarded(b"proxy", version, trusted=True) == []


@pytest.mark.parametrize(
    "name", [b"x-custom", b"x-forwarded", b"x_custom", b"x-request-id", b"accept", b"x-original-name"]
)
def test_other_fields_are_no_claims(name: bytes) -> None:
    assert claims.is_claim(name) == (name == b"x-forwarded")
    assert not claims.is_twin(name)


def test_connection_names_no_claim_away() -> None:
    lines = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: x-real-ip, x-envoy-internal, x-mine\r\nx-mine: 1\r\n"
    head, _ = parse_h1(lines + b"x-real-ip: 192.0.2.66\r\nx-envoy-internal: true", H1Limits())
    assert [name for name, _ in head.fields] == [b"x-real-ip", b"x-envoy-internal"]


NOT_IN_TRAILERS = b"""host content-length transfer-encoding te connection upgrade trailer authorization
    proxy-authorization cookie set-cookie content-type content-encoding content-range content-security-policy
    cache-control expect max-forwards if-match range early-data traceparent x-request-id cdn-loop grpc-timeout
    sec-websocket-key proxy-status access-control-allow-origin strict-transport-security alt-svc location retry-after
    proxy""".split()


@pytest.mark.parametrize("name", [*NOT_IN_TRAILERS, *NAMES])
def test_no_trailer_frames_routes_or_vouches(name: bytes) -> None:
    assert semantics.allowed_trailers([(name, b"x"), (name.replace(b"-", b"_"), b"x")]) == []


@pytest.mark.parametrize(
    "name",
    [b"grpc-status", b"grpc-message", b"x-checksum", b"server-timing", b"etag", b"content-digest", b"my_metadata"],
)
def test_other_trailers_pass(name: bytes) -> None:
    assert semantics.allowed_trailers([(name, b"x")]) == [(name, b"x")]


def test_the_page_names_every_one() -> None:
    page = PAGE.read_text()
    written = set(re.findall(r"`([a-z0-9-]+\*?)`", page))
    ours = {name.decode() for name in claims.CLAIM_NAMES} | {prefix.decode() + "*" for prefix in claims.CLAIM_PREFIXES}
    assert ours <= written, f"not on the page: {sorted(ours - written)}"


def test_what_codecs_know_is_no_field_name() -> None:
    assert claims.CLAIMED not in KNOWN_REQUEST_FIELDS
    assert not semantics.is_token(claims.CLAIMED)
