"""The rules that every HTTP version shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http import semantics


@pytest.mark.parametrize(
    ("value", "authority"),
    [
        (b"example.com", b"example.com"),
        (b"Example.COM:8080", b"Example.COM:8080"),
        (b"a:", b"a"),
        (b"a_b-c~.d", b"a_b-c~.d"),
        (b"127.0.0.1:1", b"127.0.0.1:1"),
        (b"[::1]", b"[::1]"),
        (b"[::1]:", b"[::1]"),
        (b"[::ffff:1.2.3.4]:65535", b"[::ffff:1.2.3.4]:65535"),
        (b"a:65536", None),
        (b"[::1]]", None),
        (b"[1::2::3]", None),
        (b"a\n", None),
        (b"a:80\n", None),
        (b"", None),
    ],
)
def test_authority(value, authority):
    assert semantics.authority(value) == authority


@given(st.binary(max_size=20))
def test_an_authority_is_stable(value):
    authority = semantics.authority(value)
    if authority is not None:
        assert semantics.authority(authority) == authority


@pytest.mark.parametrize(
    ("value", "length"),
    [(b"0", 0), (b"007", 7), (b"9223372036854775807", 2**63 - 1), (b"9223372036854775808", None), (b"", None)],
)
def test_content_length(value, length):
    assert semantics.content_length(value) == length


@given(st.binary(max_size=6))
def test_content_length_is_digits_only(value):
    assert (semantics.content_length(value) is not None) == (bool(value) and set(value) <= set(b"0123456789"))


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"http://a", (b"a", b"")),
        (b"http://a:80/b?c?d", (b"a:80", b"/b?c?d")),
        (b"HTTPS://a?b", (b"a", b"/?b")),
        (b"http://a?", (b"a", b"/?")),
        (b"http://a/b//c", (b"a", b"/b//c")),
        (b"http://a@b/", None),
        (b"ws://a/", None),
        (b"http:a", None),
    ],
)
def test_split_absolute(target, parts):
    assert semantics.split_absolute(target) == parts


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"websocket", b"websocket"),
        (b"WebSocket", b"websocket"),
        (b"h2c, websocket", b"websocket"),
        (b"h2c", b""),
        (b"HTTP/2.0, TLS/1.2, foo/2, bar", b"foo/2, bar"),
        (b"a b, c\r\nd, e", b"e"),
        (b"", b""),
    ],
)
def test_upgrade_protocols(value, kept):
    assert semantics.upgrade_protocols(value) == kept


@pytest.mark.parametrize(
    ("value", "allowed", "kept"),
    [
        (b"websocket", (b"websocket",), b"websocket"),
        (b"foo/1, websocket", (b"websocket",), b"websocket"),
        (b"foo/1, websocket", (b"websocket", b"foo/1"), b"foo/1"),
        (b"foo/1", (b"websocket", b"foo"), b""),
        (b"websocket", (), b""),
        (b"", (b"websocket",), b""),
    ],
)
def test_the_first_allowed_upgrade_goes_on_alone(value, allowed, kept):
    assert semantics.first_allowed(value, allowed) == kept


def test_list_members():
    assert semantics.list_members(b" Close,\t,TE ,,x") == [b"close", b"te", b"x"]


def test_allowed_trailers():
    kept = [(b"grpc-status", b"0"), (b"x-sum", b"1"), (b"server-timing", b"x"), (b"date", b"now"), (b"etag", b"x")]
    forbidden = [b"content-length", b"transfer-encoding", b"host", b"te", b"set-cookie", b"authorization", b"if-match"]
    assert semantics.allowed_trailers(kept + [(name, b"x") for name in forbidden]) == kept


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ((b"a", b"b c\t\xff"), None),
        ((b"A", b"b"), "invalid field name 'A'"),
        ((b"", b"b"), "invalid field name ''"),
        ((b"a:", b"b"), "invalid field name 'a:'"),
        ((b"a", b"b\r\n"), "invalid value of 'a': 'b\\r\\n'"),
        ((b"a", b" b"), "invalid value of 'a': ' b'"),
        ((b"a", b"\x00"), "invalid value of 'a': '\\x00'"),
    ],
)
def test_validate_fields(field, fault):
    assert semantics.validate_fields([(b"x", b"y"), field]) == fault


@given(st.binary(max_size=200))
def test_quoted_is_short_and_printable(value):
    quoted = semantics.quoted(value)
    assert quoted.isprintable()
    assert len(quoted) <= 4 * 64 + 3
