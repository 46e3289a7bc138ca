"""Heads and header lists: what one role writes the other reads, and nothing malformed gets through."""

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http import semantics
from proxy.http.h2 import heads as h2_heads
from proxy.http.message import RequestHead, ResponseHead

START = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.example"), (b":path", b"/")]

octets = st.sampled_from([b"\t", b" ", b"\n", b"\r", b"\0", b"\x7f", b"\xff", b"a", b"b c", b";"])
odd_values = st.lists(octets, max_size=4).map(b"".join)
odd_names = st.one_of(
    st.sampled_from(
        [b"x-a", b"X-A", b"", b"te", b"upgrade", b"cookie", b"host", b"content-length", b":path", b"x_y", b"a b"]
    ),
    st.sampled_from(sorted(semantics.HOP_BY_HOP)),
    st.binary(max_size=3),
)
names = st.from_regex(rb"x-[a-z0-9_.!#$%&'*+^`|~-]{1,10}", fullmatch=True)
values = st.from_regex(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?", fullmatch=True)
fields = st.lists(st.tuples(names, values), max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.just(b"x"), odd_values), max_size=4))
def test_values_together_are_judged_like_each_alone(each):
    fine = all(semantics.is_field_value(value) for _, value in each)
    assert (h2_heads._bad_value(each) is None) is fine


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(odd_names, odd_values), max_size=4))
def test_what_is_let_through_can_stand_in_an_http_1_head(each):
    head = h2_heads.parse_request([*START, *each])
    if not isinstance(head, RequestHead):
        return
    for name, value in head.fields:
        assert semantics.is_token(name)
        assert name == name.lower()
        assert name not in semantics.HOP_BY_HOP | {b"host", b"content-length"}
        assert not set(value) & {0, 10, 13}
        assert value == value.strip()


@given(
    st.sampled_from([b"GET", b"POST", b"PURGE", b"x-y"]),
    st.sampled_from([b"/", b"/a?b=c&d", b"/%20/;x"]),
    st.sampled_from([b"a", b"a.example:80", b"[::1]:443", b"127.0.0.1"]),
    fields,
    st.sampled_from([None, 0, 5, 2**40]),
    st.booleans(),
    st.booleans(),
)
def test_request_round_trip(method, target, authority, each, length, te_trailers, expect):
    head = RequestHead(
        method,
        target,
        authority,
        each,
        {},
        scheme=b"https",
        content_length=length,
        te_trailers=te_trailers,
        expect_continue=expect,
    )
    read = h2_heads.parse_request(h2_heads.request_fields(head, end=False))
    assert isinstance(read, RequestHead)
    for name in ("method", "target", "authority", "scheme", "te_trailers", "expect_continue", "upgrade"):
        assert getattr(read, name) == getattr(head, name)
    assert read.fields == each
    assert read.content_length == length or (length == 0 and read.content_length is None)


@given(st.integers(200, 599), fields, st.sampled_from([None, 0, 5, 2**40]))
def test_response_round_trip(status, each, length):
    read = h2_heads.parse_response(h2_heads.response_fields(ResponseHead(status, each, {}, content_length=length)))
    assert isinstance(read, ResponseHead)
    assert (read.status, read.fields) == (status, each)
    assert read.content_length == (length if status != 204 else None)


def test_websocket_round_trip():
    head = RequestHead(b"GET", b"/", b"a", [(b"sec-websocket-key", b"x")], {}, upgrade=b"websocket", content_length=0)
    parsed = h2_heads.parse_request(h2_heads.request_fields(head, end=False))
    assert isinstance(parsed, RequestHead)
    read = h2_heads.copy_request(parsed)
    assert (read.method, read.upgrade, read.target) == (b"GET", b"websocket", b"/")
    assert [name for name, _ in read.fields] == [b"sec-websocket-key"]


def test_forbidden_trailers_are_dropped():
    assert h2_heads.parse_trailers([(b"x", b"y"), (b"content-length", b"1"), (b"host", b"z")]) == [(b"x", b"y")]
