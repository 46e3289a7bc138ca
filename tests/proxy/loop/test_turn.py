"""One flush per turn."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.loop.turn import Turn


class Loop:
    """Keeps what `call_soon` was given."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)

    def run(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Connection:
    def __init__(self, log: list[str], name: str, then: Any = None) -> None:
        self.log, self.name, self.then = log, name, then

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
