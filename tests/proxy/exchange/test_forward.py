"""What a forwarded request says of its way."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Kind, ProxyError
from proxy.exchange.forward import identifiers, is_last_hop, new_traceparent, rewrite
from proxy.http.message import RequestHead
from proxy.http.serving import Hop

TRUSTED = Hop(b"10.0.0.7", b"https", b"onetrip", True)
STRANGER = Hop(b"203.0.113.9", b"http", b"onetrip", False)
TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def head(*fields: tuple[bytes, bytes], method: bytes = b"GET", version: bytes = b"1.1") -> RequestHead:
    known: dict[bytes, bytes] = {}
    for name, value in fields:
        known[name] = known[name] + b", " + value if name in known else value
    return RequestHead(method, b"/path", b"shop.example", list(fields), known, version=version)


def forwarded(request: RequestHead, hop: Hop) -> dict[bytes, bytes]:
    result = rewrite(request, hop)
    assert not isinstance(result, ProxyError), result
    names = [name for name, _ in request.fields]
    assert len(names) == len(set(names)), f"a field stands twice: {names}"
    found = dict(request.fields)
    assert (found[b"x-request-id"], found[b"traceparent"]) == result
    return found


def test_a_plain_request_gets_all_of_it() -> None:
    found = forwarded(head((b"accept", b"*/*")), STRANGER)
    assert found[b"accept"] == b"*/*"
    assert found[b"x-forwarded-for"] == b"203.0.113.9"
    assert found[b"x-forwarded-proto"] == b"http"
    assert found[b"x-forwarded-host"] == b"shop.example"
    assert found[b"via"] == b"1.1 onetrip"
    assert re.fullmatch(rb"[0-9a-f]{32}", found[b"x-request-id"])
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", found[b"traceparent"])


CLAIMS = (
    (b"x-forwarded-for", b"1.2.3.4"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"evil.example"),
    (b"onetrip-attempt", b"9"),
    (b"onetrip-debug", b"1"),
    (b"early-data", b"1"),
)


def test_a_strangers_claims_are_replaced() -> None:
    found = forwarded(head(*CLAIMS), STRANGER)
    assert found[b"x-forwarded-for"] == b"203.0.113.9"
    assert found[b"x-forwarded-proto"] == b"http"
    assert found[b"x-forwarded-host"] == b"shop.example"
    assert not {b"onetrip-attempt", b"onetrip-debug", b"early-data"} & set(found)


def test_a_trusted_peers_are_kept_and_added_to() -> None:
    found = forwarded(head(*CLAIMS), TRUSTED)
    assert found[b"x-forwarded-for"] == b"1.2.3.4, 10.0.0.7"
    assert found[b"x-forwarded-proto"] == b"https"
    assert found[b"x-forwarded-host"] == b"evil.example"
    assert found[b"early-data"] == b"1"
    assert not {b"onetrip-attempt", b"onetrip-debug"} & set(found)


def test_a_strangers_early_data_changes_nothing() -> None:
    """Else a 425, which only its field keeps from being retried (RFC 8470 section 5.2), would go to the client."""
    request = head((b"early-data", b"1"))
    assert b"early-data" not in forwarded(request, STRANGER)
    assert b"early-data" not in request.known


@pytest.mark.parametrize(("parent", "kept"), [(TRACEPARENT, True), (b"nonsense", False)])
def test_a_replaced_traceparent_takes_its_state_along(parent: bytes, kept: bool) -> None:
    found = forwarded(head((b"traceparent", parent), (b"tracestate", b"a=b")), STRANGER)
    assert (b"tracestate" in found) == kept


@pytest.mark.parametrize("hop", [TRUSTED, STRANGER])
def test_ids_are_kept_whoever_sends_them(hop: Hop) -> None:
    found = forwarded(head((b"x-request-id", b"mine-42"), (b"traceparent", TRACEPARENT)), hop)
    assert found[b"x-request-id"] == b"mine-42"
    assert found[b"traceparent"] == TRACEPARENT


@pytest.mark.parametrize("bad", [b"", b"with space", b"x" * 201, b"tab\there", b"\xff"])
def test_an_id_that_is_none_is_replaced(bad: bytes) -> None:
    assert forwarded(head((b"x-request-id", bad)), STRANGER)[b"x-request-id"] != bad


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"nonsense",
        b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",  # version ff is invalid
        b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        TRACEPARENT + b"\n",
        TRACEPARENT + b", " + TRACEPARENT,
        TRACEPARENT + b"-",
        b"01" + TRACEPARENT[2:] + b"x",
        b"01" + TRACEPARENT[2:] + b'-"',
        b"01" + TRACEPARENT[2:] + b"-\\",
        b"01" + TRACEPARENT[2:] + b"-\xff",
        b"01" + TRACEPARENT[2:] + b"-a b",
        b"01" + TRACEPARENT[2:] + b"-a, " + TRACEPARENT,
        b"01" + TRACEPARENT[2:] + b"-" + b"a" * 129,
    ],
)
def test_a_traceparent_that_is_none_is_replaced(bad: bytes) -> None:
    assert forwarded(head((b"traceparent", bad)), STRANGER)[b"traceparent"] != bad


@pytest.mark.parametrize("rest", [b"", b"-", b"-00", b"-what-is_to.Come"])
def test_a_traceparent_of_a_later_version_is_kept(rest: bytes) -> None:
    value = b"01" + TRACEPARENT[2:] + rest
    assert forwarded(head((b"traceparent", value)), STRANGER)[b"traceparent"] == value


def test_via_grows_and_names_the_version_that_was_received() -> None:
    assert forwarded(head((b"via", b"1.0 fred")), STRANGER)[b"via"] == b"1.0 fred, 1.1 onetrip"
    assert forwarded(head(version=b"1.0"), STRANGER)[b"via"] == b"1.0 onetrip"
    assert forwarded(head(version=b"2"), STRANGER)[b"via"] == b"2 onetrip"


@pytest.mark.parametrize(
    "loop", [b"onetrip", b"fred, onetrip", b"onetrip;a=b, x", b'x,onetrip ; c="d"', b"a.test:80 ,\tonetrip"]
)
def test_a_loop_is_refused(loop: bytes) -> None:
    result: Any = rewrite(head((b"cdn-loop", loop)), STRANGER)
    assert isinstance(result, ProxyError)
    assert result.kind is Kind.LOOP
    assert result.status == 508


@pytest.mark.parametrize("loop", [b"onetrip-2", b"fred;onetrip", b"notonetrip", b"Onetrip", b"a b", b",,"])
def test_what_only_looks_like_a_loop_is_none_and_stays(loop: bytes) -> None:
    assert forwarded(head((b"cdn-loop", loop)), STRANGER)[b"cdn-loop"] == loop + b", onetrip"


def test_two_of_a_kind_are_no_loop() -> None:
    one, two = (
        Hop(b"10.0.0.7", b"http", b"onetrip", False, b"onetrip-1"),
        Hop(b"10.0.0.8", b"http", b"onetrip", False, b"onetrip-2"),
    )
    first = head()
    forwarded(first, one)
    second = forwarded(head(*first.fields), two)
    assert second[b"via"] == b"1.1 onetrip, 1.1 onetrip"
    assert second[b"cdn-loop"] == b"onetrip-1, onetrip-2"
    assert isinstance(rewrite(head(*second.items()), one), ProxyError)
    assert isinstance(rewrite(head(*second.items()), two), ProxyError)


@pytest.mark.parametrize(
    ("method", "before", "after"),
    [(b"OPTIONS", b"5", b"4"), (b"TRACE", b"1", b"0"), (b"GET", b"5", b"5"), (b"OPTIONS", b"five", b"five")],
)
def test_max_forwards_counts_down_where_it_means_something(method: bytes, before: bytes, after: bytes) -> None:
    request = head((b"max-forwards", before), method=method)
    assert not is_last_hop(request)
    assert forwarded(request, STRANGER)[b"max-forwards"] == after


def test_max_forwards_zero_ends_here() -> None:
    assert is_last_hop(head((b"max-forwards", b"0"), method=b"OPTIONS"))
    assert not is_last_hop(head(method=b"OPTIONS"))


def test_max_forwards_of_thousands_of_digits_is_a_number_like_any_other() -> None:
    request = head((b"max-forwards", b"9" * 5000), method=b"OPTIONS")
    assert not is_last_hop(request)
    forwarded(request, STRANGER)


def test_ids_differ_also_after_a_fork() -> None:
    seen = {identifiers.take() for _ in range(2000)} | {new_traceparent() for _ in range(2000)}
    assert len(seen) == 4000
    before = identifiers.take()
    identifiers.reseed()
    assert identifiers.take() != before


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"via",
                    b"cdn-loop",
                    b"x-forwarded-for",
                    b"x-request-id",
                    b"traceparent",
                    b"max-forwards",
                    b"early-data",
                    b"accept",
                ]
            ),
            st.binary(max_size=40).map(lambda value: bytes(octet for octet in value if octet > 31)),
        ),
        unique_by=lambda field: field[0],
    ),
    st.booleans(),
)
def test_whatever_was_claimed_the_origin_gets_each_field_once(fields: list[tuple[bytes, bytes]], trusted: bool) -> None:
    request = head(*fields)
    result = rewrite(request, TRUSTED if trusted else STRANGER)
    if isinstance(result, ProxyError):
        assert result.kind is Kind.LOOP
        return
    names = [name for name, _ in request.fields]
    for name in (b"x-forwarded-for", b"x-forwarded-proto", b"via", b"x-forwarded-host", b"x-request-id"):
        assert names.count(name) == 1
    for value in result:
        assert not re.search(rb"[\x00-\x20\x7f]", value)
