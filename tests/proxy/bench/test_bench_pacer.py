from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from proxy.bench import pacer
from proxy.bench.pacer import Pacer


class FakeTimer:
    """A timerfd whose arming is noted."""

    def __init__(self) -> None:
        self.descriptor = -1
        self.armed: list[float] = []
        self.closed = False

    def arm(self, instant: float) -> None:
        self.armed.append(instant)

    def close(self) -> None:
        self.closed = True


class FakeHandle:
    def cancel(self) -> None:
        pass


class FakeLoop:
    """Keeps what it is asked to call."""

    def __init__(self) -> None:
        self.reader: Callable[[], None] | None = None
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.soon: list[Callable[[], None]] = []

    def add_reader(self, descriptor: int, callback: Callable[[], None]) -> None:
        self.reader = callback

    def remove_reader(self, descriptor: int) -> None:
        self.reader = None

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeHandle:
        self.later.append((delay, callback))
        return FakeHandle()

    def call_soon(self, callback: Callable[[], None]) -> FakeHandle:
        self.soon.append(callback)
        return FakeHandle()


class Script:
    """A pacer with a clock that the test moves."""

    def __init__(self, offsets: list[float]) -> None:
        self.now = 100.0
        self.loop = FakeLoop()
        self.fired: list[float] = []
        self.ended = 0
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.pacer = Pacer(loop, self._slots(offsets), self._fire, self._end, lambda: self.now)

    def _slots(self, offsets: list[float]) -> Iterator[tuple[float, int]]:
        yield from ((offset, 0) for offset in offsets)

    def _fire(self, instant: float, index: int) -> None:
        self.fired.append(instant)

    def _end(self) -> None:
        self.ended += 1


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[FakeTimer]:
    made: list[FakeTimer] = []

    def make() -> FakeTimer:
        made.append(FakeTimer())
        return made[-1]

    monkeypatch.setattr(pacer, "TimerFd", make)
    return made


def wake(script: Script) -> None:
    assert script.loop.reader is not None
    script.loop.reader()


def test_it_sleeps_exactly_until_the_next_slot(timers: list[FakeTimer]) -> None:
    script = Script([0.0, 0.25, 0.5])
    script.pacer.start(100.0)
    assert timers[0].armed == [100.0]
    wake(script)
    assert script.fired == [100.0]
    assert timers[0].armed == [100.0, 100.25]
    wake(script)  # woken early: nothing is due
    assert script.fired == [100.0]
    script.now = 100.26
    wake(script)
    assert script.fired == [100.0, 100.25]
    script.now = 100.5
    wake(script)
    assert script.fired == [100.0, 100.25, 100.5]
    assert script.ended == 1
    assert timers[0].closed
    assert script.loop.reader is None


def test_after_a_stall_it_catches_up_with_the_instants_of_the_schedule(timers: list[FakeTimer]) -> None:
    script = Script([i / 10 for i in range(10)])
    script.pacer.start(100.0)
    script.now = 100.75
    wake(script)
    assert script.fired == pytest.approx([100 + i / 10 for i in range(8)])
    assert timers[0].armed[-1] == pytest.approx(100.8)


def test_a_long_backlog_lets_the_loop_read_in_between(timers: list[FakeTimer]) -> None:
    script = Script([i / 1000 for i in range(100)])
    script.pacer.start(100.0)
    script.now = 200.0
    wake(script)
    assert 0 < len(script.fired) < 100
    assert timers[0].armed[-1] < script.now  # readable again at once
    while script.loop.reader is not None:
        wake(script)
    assert len(script.fired) == 100
    assert script.ended == 1


def test_stopping_fires_no_more(timers: list[FakeTimer]) -> None:
    script = Script([0.0, 0.1])
    script.pacer.start(100.0)
    script.pacer.stop()
    script.pacer.stop()
    assert timers[0].closed
    assert script.fired == []
    assert script.ended == 0


def test_an_empty_schedule_ends(timers: list[FakeTimer]) -> None:
    script = Script([])
    script.pacer.start(100.0)
    assert script.ended == 1
    assert timers[0].closed


def test_without_a_timerfd_it_sleeps_coarsely_and_then_turns_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise OSError("none here")

    monkeypatch.setattr(pacer, "TimerFd", refuse)
    script = Script([0.5])
    script.pacer.start(100.0)
    ((delay, callback),) = script.loop.later
    assert 0.4 < delay < 0.5
    script.now = 100.4995
    callback()
    while not script.fired:
        assert script.loop.soon, "neither fired nor waiting"
        script.loop.soon.pop()()
        script.now += 0.0001
    assert script.fired == [100.5]
    assert script.ended == 1


async def test_a_real_timer_fires_every_slot_in_order_and_never_early() -> None:
    import time

    loop = asyncio.get_running_loop()
    done = loop.create_future()
    fired: list[tuple[float, float]] = []
    slots = iter([(i * 0.0007, i) for i in range(50)])
    paced = Pacer(loop, slots, lambda at, i: fired.append((at, time.monotonic())), lambda: done.set_result(None))
    start = time.monotonic() + 0.001
    paced.start(start)
    await done
    assert [at for at, _ in fired] == pytest.approx([start + i * 0.0007 for i in range(50)])
    assert all(now >= at for at, now in fired)
