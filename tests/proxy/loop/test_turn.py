"""One flush per turn."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.loop import turn as turns
from proxy.loop.turn import Turn


class Loop:
    """Keeps what `call_soon` was given."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

        self.reports: list[Exception] = []

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.reports.append(context["exception"])

    def run(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Connection:
    def __init__(self, log: list[str], name: str, then: Any = None) -> None:
        self.log, self.name, self.then = log, name, then
        self.broken: list[Exception] = []

    def break_down(self, error: Exception) -> None:
        self.broken.append(error)

    def take_turn(self) -> None:
        self.flush()

    def flush(self) -> None:
        self.log.append(self.name)
        if self.then is not None:
            self.then()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def turn(loop: Loop) -> Turn:
    return Turn(loop)  # type: ignore[arg-type]


def test_what_an_entry_point_wrote_leaves_when_it_ends(loop: Loop, turn: Turn) -> None:
    log: list[str] = []
    turn.begin()
    turn.add(Connection(log, "a"))
    turn.add(Connection(log, "b"))
    assert log == []
    turn.end()
    assert log == ["a", "b"]
    assert loop.soon == []


def test_only_the_outermost_entry_point_flushes(turn: Turn) -> None:
    log: list[str] = []
    turn.begin()
    turn.begin()
    turn.add(Connection(log, "a"))
    turn.end()
    assert log == []
    turn.end()
    assert log == ["a"]


def test_a_write_from_elsewhere_is_flushed_soon_and_once(loop: Loop, turn: Turn) -> None:
    log: list[str] = []
    turn.add(Connection(log, "a"))
    turn.add(Connection(log, "b"))
    assert log == []
    assert len(loop.soon) == 1
    loop.run()
    assert log == ["a", "b"]
    turn.add(Connection(log, "c"))
    loop.run()
    assert log == ["a", "b", "c"]


def test_an_entry_point_takes_along_what_was_due_soon(loop: Loop, turn: Turn) -> None:
    log: list[str] = []
    turn.add(Connection(log, "a"))
    turn.begin()
    turn.end()
    assert log == ["a"]
    loop.run()
    assert log == ["a"]


def test_what_a_flush_makes_dirty_is_flushed_too(turn: Turn) -> None:
    log: list[str] = []
    turn.begin()
    turn.add(Connection(log, "a", lambda: turn.add(Connection(log, "b", lambda: turn.add(Connection(log, "c"))))))
    turn.end()
    assert log == ["a", "b", "c"]
    assert turn.dirty == []


# -- what raises ------------------------------------------------------------------------------------


def fail() -> None:
    raise AssertionError("a bug")


def test_a_flush_that_raises_costs_nobody_else_theirs(loop: Loop, turn: Turn) -> None:
    log: list[str] = []
    bad = Connection(log, "bad", fail)
    turn.begin()
    for one in (Connection(log, "a"), bad, Connection(log, "b")):
        turn.add(one)
    turn.end()
    assert log == ["a", "bad", "b"]
    assert turn.depth == 0
    assert [str(error) for error in bad.broken] == ["a bug"]
    assert [str(error) for error in loop.reports] == ["a bug"]
    turn.begin()
    turn.add(Connection(log, "c"))
    turn.end()
    assert log[-1] == "c"


@pytest.mark.parametrize("how", ["soon", "later"])
def test_nor_does_one_that_is_flushed_by_the_loop(loop: Loop, turn: Turn, how: str) -> None:
    log: list[str] = []
    add = turn.add if how == "soon" else turn.add_later
    for one in (Connection(log, "bad", fail), Connection(log, "a")):
        add(one)
    loop.run()
    assert log == ["bad", "a"]
    add(Connection(log, "b"))
    loop.run()
    assert log == ["bad", "a", "b"]


def test_one_that_can_not_even_be_ended_is_reported(loop: Loop, turn: Turn) -> None:
    log: list[str] = []
    bad = Connection(log, "bad", fail)
    bad.break_down = lambda error: fail()  # type: ignore[method-assign, assignment]
    turn.add(bad)
    turn.add(Connection(log, "a"))
    loop.run()
    assert log == ["bad", "a"]
    assert len(loop.reports) == 2


# -- turns ------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that each look at the clock adds."""
    step = [0.0]
    now = [0.0]

    def monotonic() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(turns, "monotonic", monotonic)
    return step


def test_who_waits_is_served_in_order_and_again_only_behind_the_others(
    loop: Loop, turn: Turn, clock: list[float]
) -> None:
    log: list[str] = []
    greedy = Connection(log, "greedy")
    greedy.then = lambda: turn.wait(greedy) if len(log) < 6 else None
    turn.wait(greedy)
    turn.wait(Connection(log, "a"))
    turn.wait(Connection(log, "b"))
    assert log == []
    loop.run()
    assert log == ["greedy", "a", "b", "greedy", "greedy", "greedy"]
    assert loop.soon == []
    assert turn.depth == 0


def test_a_pass_has_an_end_and_the_next_goes_on_where_it_stopped(loop: Loop, turn: Turn, clock: list[float]) -> None:
    clock[0] = turns.PASS_S * 0.6  # two turns fill a pass
    log: list[str] = []
    for name in "abcde":
        turn.wait(Connection(log, name))
    for expected in ("ab", "abcd", "abcde"):
        loop.run()
        assert log == list(expected)
    assert loop.soon == []


def test_a_turn_that_raises_costs_nobody_else_theirs(loop: Loop, turn: Turn) -> None:
    log: list[str] = []
    bad = Connection(log, "bad", fail)
    turn.wait(bad)
    turn.wait(Connection(log, "a"))
    loop.run()
    assert log == ["bad", "a"]
    assert len(bad.broken) == len(loop.reports) == 1
    assert turn.depth == 0


def test_what_a_turn_makes_dirty_is_flushed_before_the_next_one(loop: Loop, turn: Turn) -> None:
    log: list[str] = []
    turn.wait(Connection(log, "a", lambda: turn.add(Connection(log, "a's"))))
    turn.wait(Connection(log, "b"))
    loop.run()
    assert log == ["a", "a's", "b"]
