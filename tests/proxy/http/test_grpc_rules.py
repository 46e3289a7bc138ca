"""What the proxy knows of gRPC."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Kind, ProxyError
from proxy.http import grpc
from proxy.http.message import RequestHead


def call(*fields: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead(b"POST", b"/s/M", b"a.test", list(fields), {})


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;x=y", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/json", False),
    ],
)
def test_calls_are_known_by_their_content_type(content_type: bytes, expected: bool) -> None:
    assert grpc.is_call(call((b"x", b"y"), (b"content-type", content_type))) is expected


def test_without_a_content_type_it_is_no_call() -> None:
    assert not grpc.is_call(call())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"5u", 5e-6),
        (b"7n", 7e-9),
        (b"99999999S", 99999999.0),
        (b"0S", 0.0),
        (b"100000000S", None),
        (b"S", None),
        (b"", None),
        (b"5", None),
        (b"-1S", None),
        (b"1.5S", None),
        (b"1s", None),
        (b"+1S", None),
    ],
)
def test_timeout(value: bytes, seconds: float | None) -> None:
    assert grpc.timeout_s(call((b"grpc-timeout", value))) == pytest.approx(seconds)


def test_no_timeout() -> None:
    assert grpc.timeout_s(call()) is None


@pytest.mark.parametrize(
    ("status", "seen"), [(b"0", 0), (b"14", 503), (b"4", 504), (b"13", 500), (b"5", 0), (None, 0), (b"x", 0)]
)
def test_what_routing_makes_of_a_result(status: bytes | None, seen: int) -> None:
    assert grpc.call_status(status) == seen


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Kind.REFUSED, grpc.UNAVAILABLE),
        (Kind.TERMINATED, grpc.UNAVAILABLE),
        (Kind.CONNECT_TIMEOUT, grpc.UNAVAILABLE),
        (Kind.UNAVAILABLE, grpc.UNAVAILABLE),
        (Kind.POOL_FULL, grpc.UNAVAILABLE),
        (Kind.RESPONSE_TIMEOUT, grpc.DEADLINE_EXCEEDED),
        (Kind.READ_TIMEOUT, grpc.DEADLINE_EXCEEDED),
        (Kind.NO_ROUTE, grpc.UNIMPLEMENTED),
        (Kind.TOO_MANY, grpc.RESOURCE_EXHAUSTED),
        (Kind.BODY_TOO_LARGE, grpc.RESOURCE_EXHAUSTED),
        (Kind.INTERNAL, grpc.INTERNAL),
        (Kind.BAD_REQUEST, grpc.INTERNAL),
    ],
)
def test_errors_as_results(kind: Kind, status: int) -> None:
    head = grpc.error_head(ProxyError(kind, "50 % – gone"), [(b"proxy-status", b"onetrip")])
    fields = dict(head.fields)
    assert head.status == 200
    assert head.content_length is None
    assert fields[b"grpc-status"] == b"%d" % status
    assert fields[b"grpc-message"] == b"50 %25 %E2%80%93 gone"
    assert fields[b"content-type"] == b"application/grpc"
    assert fields[b"proxy-status"] == b"onetrip"


@given(st.text(max_size=300))
def test_messages_are_printable(text: str) -> None:
    encoded = grpc.encode_message(text)
    assert all(0x20 <= octet < 0x7F for octet in encoded)


@given(st.text("abcdefghijklmnopqrstuvwxyz.", max_size=200))
def test_health_requests(service: str) -> None:
    body = grpc.health_request(service)
    assert body[0] == 0
    assert int.from_bytes(body[1:5], "big") == len(body) - 5
    assert body[5:].endswith(service.encode())
    assert (len(body) == 5) is (not service)


@pytest.mark.parametrize(
    ("message", "serving"),
    [
        (b"\x08\x01", True),
        (b"\x08\x02", False),
        (b"\x08\x00", False),
        (b"", False),
        (b"\x08\x81\x00", True),  # one, in two octets
        (b"\x12\x03abc\x08\x01", True),  # behind a field of later versions
        (b"\x08\x02\x08\x01", True),  # the last one counts
        (b"\x08", False),
        (b"\x08\x81", False),
        (b"\x08\x01\x12\x05ab", False),
        (b"\x09\x01", False),
    ],
)
def test_health_answers(message: bytes, serving: bool) -> None:
    assert grpc.is_serving(b"\0" + len(message).to_bytes(4, "big") + message) is serving


@given(st.binary(max_size=40))
def test_health_answers_of_any_kind(body: bytes) -> None:
    assert grpc.is_serving(body) in (True, False)


@pytest.mark.parametrize(
    "body", [b"", b"\0\0\0\0", b"\1\0\0\0\2\x08\x01", b"\0\0\0\0\3\x08\x01", b"\0\0\0\0\1\x08\x01"]
)
def test_health_answers_in_bad_frames(body: bytes) -> None:
    assert not grpc.is_serving(body)
