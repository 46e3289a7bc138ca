"""Early data: what may travel in a first flight, and what a 425 does."""

from __future__ import annotations

import itertools

import pytest

from proxy.exchange import zero_rtt
from proxy.exchange.zero_rtt import AWAITED, OPEN, REFUSED, EarlyData
from proxy.http.message import RequestHead

MARK = (b"early-data", b"1")


def head(*fields: tuple[bytes, bytes], method: bytes = b"GET", early: bool = False) -> RequestHead:
    made = RequestHead(method, b"/", b"a.test", list(fields), dict(fields))
    made.early = early
    return made


@pytest.mark.parametrize("state", EarlyData)
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"DELETE"])
def test_only_safe_requests_without_a_body_travel_early_and_only_once(state: EarlyData, method: bytes) -> None:
    for enabled, has_body, upgrade in itertools.product((True, False), repeat=3):
        may = zero_rtt.may_travel(head(method=method), state, enabled=enabled, has_body=has_body, upgrade=upgrade)
        plain = enabled and not has_body and not upgrade
        assert may == (state is OPEN and method in (b"GET", b"HEAD") and plain)


def test_a_425_counts_once_and_only_where_something_was_early() -> None:
    assert zero_rtt.goes_again(head(), OPEN, True)
    assert zero_rtt.goes_again(head(early=True), OPEN, False)
    assert not zero_rtt.goes_again(head(), OPEN, False), "it is an answer like any other"
    assert not zero_rtt.goes_again(head(MARK), OPEN, True), "the client said so itself: its own business"
    for state in (AWAITED, REFUSED):
        assert not zero_rtt.goes_again(head(), state, True)


def test_a_request_is_marked_once_and_unmarked_for_its_late_try() -> None:
    one = head(early=True)
    zero_rtt.mark(one)
    zero_rtt.mark(one)
    assert one.fields == [MARK]
    zero_rtt.unmark(one)
    assert (one.fields, one.early) == ([], False)
    zero_rtt.unmark(one)  # a second late try finds nothing to take away
    said = head(MARK)
    zero_rtt.unmark(said)
    assert said.fields == [MARK], "what the client itself said stays"


def test_heads_of_further_attempts_say_which_they_are_and_leave_the_first_alone() -> None:
    one = head((b"a", b"b"))
    assert zero_rtt.early_head(one, 1).fields == [(b"a", b"b"), MARK]
    assert zero_rtt.early_head(one, 2).fields == [(b"a", b"b"), MARK, (b"onetrip-attempt", b"2")]
    assert zero_rtt.numbered(one, 3).fields == [(b"a", b"b"), (b"onetrip-attempt", b"3")]
    assert zero_rtt.early_head(head(early=True), 1).fields == [], "it is marked already"
    assert one.fields == [(b"a", b"b")]
