"""Who may be sent twice, and when."""

from itertools import product
from typing import Any

import pytest

from routing.model import Retry
from routing.retry import (
    GIVE_UP,
    OPEN_MAX,
    RESEND,
    RETRY,
    SAFE_METHODS,
    WAIT,
    Next,
    after_drain,
    after_failure,
    answer_loses,
    hedgeable,
    may_hedge_now,
    must_pay,
    replayable,
)

KEYED = Retry(idempotency_key=True)
BOTH = (False, True)


@pytest.mark.parametrize(
    ("method", "key", "retry", "expected"),
    [
        (b"GET", False, None, True),
        (b"HEAD", False, Retry(), True),
        (b"OPTIONS", False, Retry(), True),
        (b"POST", False, KEYED, False),
        (b"POST", True, Retry(), False),
        (b"POST", True, KEYED, True),
        (b"POST", True, None, False),
        (b"PUT", False, Retry(), False),
        (b"DELETE", False, Retry(), False),
        (b"TRACE", False, Retry(), False),
        (b"CONNECT", False, Retry(), False),
        (b"get", False, Retry(), False),
    ],
)
def test_replayable(method: bytes, key: bool, retry: Retry | None, expected: bool) -> None:
    assert replayable(method, key, retry) is expected


def test_safe_methods_are_named_one_by_one() -> None:
    assert {b"GET", b"HEAD", b"OPTIONS"} == SAFE_METHODS


def test_upgrades_and_expectations_are_never_hedged() -> None:
    allowed = [
        case for case in product(BOTH, BOTH, BOTH) if hedgeable(may_replay=case[0], switching=case[1], expect=case[2])
    ]
    assert allowed == [(True, False, False)]


@pytest.mark.parametrize(("tries_open", "expected"), [(0, False), (1, True), (2, True), (OPEN_MAX, False)])
def test_a_hedge_stands_beside_a_try_or_two(tries_open: int, expected: bool) -> None:
    assert may_hedge_now(complete=True, body_kept=True, tries_open=tries_open) is expected


def test_a_hedge_needs_the_whole_request() -> None:
    assert not may_hedge_now(complete=False, body_kept=True, tries_open=1)
    assert not may_hedge_now(complete=True, body_kept=False, tries_open=1)


@pytest.mark.parametrize(
    ("status", "call", "expected"),
    [
        (200, 0, False),
        (500, 0, False),
        (501, 0, False),
        (502, 0, True),
        (503, 0, True),
        (504, 0, True),
        (425, 0, False),
        (429, 0, False),
        (200, 503, True),
        (200, 504, False),
    ],
)
def test_which_answers_lose(status: int, call: int, expected: bool) -> None:
    assert answer_loses(status, call) is expected


def verdict(retry: Retry | None = Retry(), **changes: Any) -> Next:  # noqa: B008 (frozen)
    settings: dict[str, Any] = {
        "tries": 1,
        "others_open": False,
        "wanted": True,
        "body_kept": True,
        "may_replay": True,
        "processed": True,
    }
    return after_failure(retry, **(settings | changes))


def test_a_safe_request_is_retried_until_its_tries_are_used() -> None:
    assert verdict() is RETRY
    assert verdict(tries=2) is RETRY
    assert verdict(tries=3) is GIVE_UP


def test_an_unsafe_one_only_when_nothing_was_processed() -> None:
    assert verdict(may_replay=False) is GIVE_UP
    assert verdict(may_replay=False, processed=False) is RESEND


def test_the_other_try_is_waited_for() -> None:
    assert verdict(others_open=True) is WAIT
    assert verdict(None, others_open=True) is WAIT
    assert verdict(others_open=True, wanted=False) is WAIT


def test_nothing_is_sent_again_without_its_body_or_anybody_who_waits() -> None:
    assert verdict(body_kept=False, processed=False) is GIVE_UP
    assert verdict(wanted=False, processed=False) is GIVE_UP


def test_with_retries_off_a_dead_connection_is_mended_once() -> None:
    assert verdict(None, processed=False) is GIVE_UP
    assert verdict(None, processed=False, stale=True) is RESEND
    assert verdict(None, tries=2, processed=False, stale=True) is GIVE_UP
    assert verdict(Retry(attempts=0), processed=False, stale=True) is GIVE_UP


def test_what_another_request_broke_asks_no_budget() -> None:
    assert verdict(shared=True) is RESEND
    assert verdict(shared=True, may_replay=False) is GIVE_UP


def test_no_combination_sends_a_processed_unsafe_request_again() -> None:
    for tries, kept, others, stale, shared in product((1, 2, 6), BOTH, BOTH, BOTH, BOTH):
        found = verdict(tries=tries, body_kept=kept, others_open=others, stale=stale, shared=shared, may_replay=False)
        assert found in (WAIT, GIVE_UP)


def drained(retry: Retry | None = Retry(), **changes: bool) -> Next:  # noqa: B008 (frozen)
    settings = {"elsewhere": False, "sent": True, "complete": True, "body_kept": True, "hedgeable": True}
    return after_drain(retry, **(settings | changes))


def test_what_was_not_sent_leaves_a_drained_region_whatever_it_is() -> None:
    for complete, hedged in product(BOTH, BOTH):
        assert drained(sent=False, complete=complete, hedgeable=hedged) is RESEND


def test_what_was_sent_gets_a_second_try_beside_where_it_could_be_hedged() -> None:
    assert drained() is RETRY
    assert drained(hedgeable=False) is WAIT
    assert drained(complete=False) is WAIT


def test_what_cannot_leave_a_drained_region_stays() -> None:
    for sent in BOTH:
        assert drained(None, sent=sent) is WAIT
        assert drained(elsewhere=True, sent=sent) is WAIT
        assert drained(body_kept=False, sent=sent) is WAIT


def test_who_pays() -> None:
    assert must_pay(RETRY, 0.4, 1.0)
    assert not must_pay(RETRY, 0.0, 1.0), "the last resort"
    assert must_pay(RETRY, 0.0, 0.9), "it was full a moment ago"
    assert not must_pay(RESEND, 0.4, 0.9)
