"""An attempt as a script: >> what pool and stream tell it … << what its owner and routing hear."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.errors import Kind, ProxyError
from proxy.exchange import attempt as attempts
from proxy.exchange import zero_rtt
from proxy.exchange.attempt import MOVES_MAX, Attempt, State
from proxy.exchange.body import Body
from proxy.http.message import RequestHead, ResponseHead
from routing.balancer import Outcome

from ...programs import interpreted


@pytest.fixture(autouse=True)
def interpreted_only() -> None:
    interpreted(attempts)


GONE = ProxyError(Kind.TERMINATED, "gone")


class Fake:
    """Writes down who called it with what; `answers` gives what a call returns."""

    def __init__(self, name: str, heard: list[Any], **answers: Any) -> None:
        self._name, self._heard, self._answers = name, heard, answers

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **more: Any) -> Any:
            self._heard.append(f"{self._name}.{name}")
            return self._answers.get(name)

        return call


class Script:
    """An attempt among fakes. `heard`: the calls since the last look."""

    def __init__(self, method: bytes = b"GET", *, body: bool = False, moves: bool = True, takes: bool = True) -> None:
        self.calls: list[Any] = []
        self.finished: list[Outcome] = []
        balancer = SimpleNamespace(
            finish=lambda target, now, outcome, *rest, **more: self.finished.append(outcome),
            established=lambda *rest: self.calls.append("routing.established"),
            closed=lambda target: self.calls.append("routing.closed"),
        )
        pool: Any = Fake("pool", self.calls)
        pool.log_target, pool.carried_in_vain = b"", 0
        self.stream: Any = Fake("stream", self.calls, send_data=takes)
        owner: Any = Fake("owner", self.calls, may_move=moves, origin_had_s=0.1)
        owner.head = RequestHead(method, b"/", b"a.test", [], {})
        owner.body = Body(self.stream, False) if body else None
        owner.early_data = zero_rtt.OPEN
        owner.route = SimpleNamespace(early_data=True)
        owner.switching = False
        owner.turn = SimpleNamespace(now=5.0)
        target: Any = Fake("target", self.calls)
        target.endpoint, target.region = "10.0.0.1:80", SimpleNamespace(name="r")
        owner.upstream = SimpleNamespace(balancer=balancer, pool_at={target: pool})
        self.owner = owner
        self.attempt = Attempt(owner, target, 1, False, 1.0)
        self.connection: Any = Fake("connection", self.calls, open=self.stream)

    def heard(self) -> list[str]:
        calls = list(self.calls)
        self.calls.clear()
        return calls


def answer(status: int) -> ResponseHead:
    return ResponseHead(status, [], {})


def test_an_answer_that_goes_on_is_held_and_closed_once() -> None:
    script = Script()
    attempt = script.attempt
    attempt.on_connection(script.connection)
    assert (attempt.state, attempt.waiting) == (State.SENT, False)
    assert script.heard() == ["connection.open", "stream.send_headers", "owner.on_sent"]
    attempt.on_headers(answer(103), False)
    attempt.on_headers(answer(200), False)
    assert script.heard() == ["owner.on_interim", "owner.on_response"]
    attempt.win()
    attempt.hold(5.0, 0.1)
    attempt.hold(5.0, 0.1)
    attempt.on_data(b"x", False)
    assert script.heard() == ["routing.established", "owner.on_response_data"]
    attempt.succeed(6.0, 200, 0.1, None)
    attempt.succeed(6.0, 200, 0.1, None)
    attempt.end(Outcome.CANCELLED, 6.0)
    assert (script.heard(), script.finished) == (["routing.closed"], [])


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, Outcome.OK), (404, Outcome.OK), (501, Outcome.OK), (500, Outcome.ERROR_STATUS), (503, Outcome.ERROR_STATUS)],
)
def test_an_answer_is_settled_by_its_status(status: int, outcome: Outcome) -> None:
    script = Script()
    script.attempt.on_connection(script.connection)
    script.attempt.win()
    script.attempt.succeed(5.0, status, 0.1, None)
    assert script.finished == [outcome]


def test_who_still_waits_is_forgotten_by_the_pool() -> None:
    script = Script()
    script.attempt.end(Outcome.CANCELLED, 2.0)
    assert (script.attempt.waiting, script.attempt.state) == (False, State.ENDED)
    assert "pool.forget" in script.heard()
    script.attempt.on_no_connection(GONE)
    assert script.finished == [Outcome.CANCELLED], "settled once, whatever comes later"


def test_a_first_flight_in_vain_waits_once_more_and_never_travels_early_again() -> None:
    script = Script()
    attempt = script.attempt
    assert attempt.may_travel_early()
    attempt.on_early(script.connection, script.stream)
    assert (attempt.state, attempt.touched) == (State.EARLY, True)
    script.heard()
    attempt.on_reset(GONE)
    assert (attempt.state, attempt.waiting, attempt.touched) == (State.WAITING, True, False)
    assert script.heard() == ["owner.on_moved", "pool.acquire"]
    assert not attempt.may_travel_early()
    attempt.on_connection(script.connection)
    attempt.on_reset(GONE)
    assert script.heard()[-1] == "owner.on_failed"


def test_an_accepted_first_flight_is_simply_under_way() -> None:
    script = Script()
    script.attempt.on_early(script.connection, script.stream)
    script.attempt.on_early_accepted()
    assert script.attempt.state is State.SENT
    script.attempt.win()
    script.attempt.on_early_accepted()
    assert script.attempt.state is State.WON, "an answer may be faster than the handshake's end"


def test_an_orderly_end_moves_it_a_bounded_number_of_times() -> None:
    script = Script()
    left_out = ProxyError(Kind.TERMINATED, "GOAWAY", unprocessed=True, going_away=True)
    for _ in range(MOVES_MAX):
        script.attempt.on_connection(script.connection)
        script.heard()
        script.attempt.on_reset(left_out)
        assert script.heard()[-2:] == ["owner.on_moved", "pool.acquire"]
    script.attempt.on_connection(script.connection)
    script.attempt.on_reset(left_out)
    assert script.heard()[-1] == "owner.on_failed"


def test_the_kept_body_is_sent_and_its_reader_waits_while_the_origin_does_not_take_it() -> None:
    script = Script(b"PUT", body=True, takes=False)
    body = script.owner.body
    body.keep(b"abc")
    script.attempt.on_connection(script.connection)
    assert (script.attempt.blocked, body.paused) == (True, True)
    script.attempt.on_writable()
    assert (script.attempt.blocked, body.paused) == (False, False)
