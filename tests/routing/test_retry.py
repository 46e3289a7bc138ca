"""Who may be sent twice."""

from itertools import product

import pytest

from routing.model import Retry
from routing.retry import Next, after_failure, hedgeable, parse_retry_after, replayable

KEYED = Retry(idempotency_key=True)


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
        (b"CONNECT", False, Retry(), False),
        (b"get", False, Retry(), False),
    ],
)
def test_replayable(method: bytes, key: bool, retry: Retry | None, expected: bool) -> None:
    assert replayable(method, key, retry) is expected


def test_upgrades_and_expectations_are_never_hedged() -> None:
    assert hedgeable(b"GET", False, None, upgrade=False, expect=False)
    assert not hedgeable(b"GET", False, None, upgrade=True, expect=False)
    assert not hedgeable(b"GET", False, None, upgrade=False, expect=True)
    assert not hedgeable(b"CONNECT", True, Retry(), upgrade=False, expect=False)


def verdict(retry: Retry | None = Retry(), **changes: bool | int) -> Next:  # noqa: B008 (frozen)
    settings = {"retries_made": 0, "unprocessed": False, "may_replay": True, "body_kept": True, "others_open": False}
    return after_failure(retry, **(settings | changes))  # type: ignore[arg-type]


def test_a_safe_request_is_retried_until_its_attempts_are_used() -> None:
    assert verdict() is Next.RETRY
    assert verdict(retries_made=1) is Next.RETRY
    assert verdict(retries_made=2) is Next.GIVE_UP


def test_an_unsafe_one_only_when_nothing_was_processed() -> None:
    assert verdict(may_replay=False) is Next.GIVE_UP
    assert verdict(may_replay=False, unprocessed=True) is Next.RETRY


def test_the_other_attempt_is_waited_for() -> None:
    assert verdict(others_open=True) is Next.WAIT
    assert verdict(None, others_open=True) is Next.WAIT


def test_nothing_is_retried_without_its_body_or_without_retries() -> None:
    assert verdict(body_kept=False, unprocessed=True) is Next.GIVE_UP
    assert verdict(None, unprocessed=True) is Next.GIVE_UP


def test_no_combination_retries_a_processed_unsafe_request() -> None:
    for made, kept, others in product((0, 1, 5), (False, True), (False, True)):
        found = verdict(retries_made=made, body_kept=kept, others_open=others, may_replay=False)
        assert found is not Next.RETRY


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"3", 3.0),
        (b" 120 ", 120.0),
        (b"-1", None),
        (b"1.5", None),
        (b"Fri, 31 Dec 1999 23:59:59 GMT", None),
        (b"9" * 12, None),
    ],
)
def test_retry_after(value: bytes, expected: float | None) -> None:
    assert parse_retry_after(value) == expected
