"""Coarse deadlines, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.loop import timers as timing
from proxy.loop.timers import FAR_S, NEAR_S, Timed, Timers
from proxy.loop.turn import Turn

SLACK_S = 1e-6


class Handle:
    def __init__(self, when: float, callback: Any) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop and a clock: `advance` runs what falls due on the way."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.handles: list[Handle] = []
        self.complaints: list[dict[str, Any]] = []

    def monotonic(self) -> float:
        return self.now

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(context)

    def call_later(self, delay: float, callback: Any) -> Handle:
        self.handles.append(Handle(self.now + delay, callback))
        return self.handles[-1]

    def call_soon(self, callback: Any) -> None:
        callback()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.handles = [handle for handle in self.handles if not handle.cancelled]
            due = min(self.handles, key=lambda handle: handle.when, default=None)
            if due is None or due.when > end:
                break
            self.handles.remove(due)
            self.now = max(self.now, due.when)
            due.callback()
        self.now = end


class Target:
    def __init__(self, clock: Clock, do: Any = None) -> None:
        self.timer_bucket: set[Timed] | None = None
        self.fired: list[float] = []
        self.clock, self.do = clock, do

    def on_timer(self, now: float) -> None:
        assert now == self.clock.now
        assert self.timer_bucket is None, "it is no longer set"
        self.fired.append(now)
        if self.do is not None:
            self.do()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def timers(clock: Clock) -> Timers:
    return Timers(clock, Turn(clock))  # type: ignore[arg-type]


def test_near_deadlines_fire_within_two_milliseconds(clock: Clock, timers: Timers) -> None:
    targets = {}
    for milliseconds in (0, 1, 3, 10, 250, 999):
        target = targets[milliseconds] = Target(clock)
        timers.set(target, clock.now + milliseconds / 1e3, clock.now)
    start = clock.now
    clock.advance(2.0)
    for milliseconds, target in targets.items():
        (fired,) = target.fired
        assert milliseconds / 1e3 - SLACK_S <= fired - start <= milliseconds / 1e3 + NEAR_S + SLACK_S


def test_far_deadlines_fire_within_a_tenth_and_share_buckets(clock: Clock, timers: Timers) -> None:
    start = clock.now
    targets = [(10 + number / 1000, Target(clock)) for number in range(500)]
    for after, target in targets:
        timers.set(target, start + after, start)
    assert len(timers._buckets) <= 7
    assert len(clock.handles) <= 2
    clock.advance(20.0)
    for after, target in targets:
        (fired,) = target.fired
        assert after - SLACK_S <= fired - start <= after + FAR_S + NEAR_S + SLACK_S


def test_a_second_deadline_replaces_the_first(clock: Clock, timers: Timers) -> None:
    target = Target(clock)
    timers.set(target, clock.now + 0.1, clock.now)
    timers.set(target, clock.now + 0.5, clock.now)
    start = clock.now
    clock.advance(5.0)
    (fired,) = target.fired
    assert fired - start >= 0.5 - SLACK_S


def test_a_sooner_deadline_is_not_held_up_by_a_later_one(clock: Clock, timers: Timers) -> None:
    late, soon = Target(clock), Target(clock)
    start = clock.now
    timers.set(late, start + 50, start)
    timers.set(soon, start + 0.01, start)
    clock.advance(0.05)
    assert len(soon.fired) == 1
    assert late.fired == []
    clock.advance(60)
    assert len(late.fired) == 1


def test_a_cancelled_deadline_never_fires(clock: Clock, timers: Timers) -> None:
    target = Target(clock)
    timers.set(target, clock.now + 0.1, clock.now)
    timers.cancel(target)
    timers.cancel(target)
    assert target.timer_bucket is None
    clock.advance(5.0)
    assert target.fired == []


def test_one_deadline_cancels_another_of_the_same_moment(clock: Clock, timers: Timers) -> None:
    targets: list[Target] = []

    def cancel_all() -> None:
        for other in targets:
            timers.cancel(other)

    targets += [Target(clock, cancel_all) for _ in range(5)]
    for target in targets:
        timers.set(target, clock.now + 0.1, clock.now)
    clock.advance(1.0)
    assert sum(len(target.fired) for target in targets) == 1


def test_a_target_sets_its_next_deadline_itself(clock: Clock, timers: Timers) -> None:
    target = Target(clock)
    target.do = lambda: timers.set(target, clock.now + 0.1, clock.now)
    timers.set(target, clock.now + 0.1, clock.now)
    start = clock.now
    clock.advance(1.0)
    assert 9 <= len(target.fired) <= 10
    assert target.fired[0] - start >= 0.1 - SLACK_S


def test_a_deadline_that_has_passed_fires_at_once_but_not_inside_set(clock: Clock, timers: Timers) -> None:
    target = Target(clock)
    timers.set(target, clock.now - 5.0, clock.now)
    assert target.fired == []
    clock.advance(NEAR_S)
    assert len(target.fired) == 1


def test_a_loop_that_wakes_early_waits_on(clock: Clock, timers: Timers) -> None:
    target = Target(clock)
    timers.set(target, clock.now + 0.5, clock.now)
    clock.handles[0].when -= 0.3  # libuv rounds to milliseconds of its cached clock
    start = clock.now
    clock.advance(1.0)
    (fired,) = target.fired
    assert fired - start >= 0.5 - SLACK_S


def test_a_loop_that_was_held_up_catches_up_in_order(clock: Clock, timers: Timers) -> None:
    order: list[int] = []
    for number in (3, 1, 2):
        target = Target(clock, lambda number=number: order.append(number))
        timers.set(target, clock.now + number * 0.1, clock.now)
    clock.now += 10.0
    clock.advance(0.0)
    assert order == [1, 2, 3]


def test_nothing_is_left_when_everything_has_fired(clock: Clock, timers: Timers) -> None:
    for number in range(100):
        timers.set(Target(clock), clock.now + number / 37, clock.now)
    clock.advance(10.0)
    assert repr(timers) == "<Timers 0 in 0 buckets>"
    assert [handle for handle in clock.handles if not handle.cancelled] == []


def test_a_target_that_raises_does_not_cost_the_others_their_deadline(clock: Clock, timers: Timers) -> None:
    def fail() -> None:
        raise RuntimeError("ours")

    failing, others = Target(clock, fail), [Target(clock) for _ in range(20)]
    for target in (failing, *others):
        timers.set(target, clock.now + 0.1, clock.now)
    for _ in range(3):
        try:
            clock.advance(1.0)
        except RuntimeError:
            continue
    assert all(len(target.fired) == 1 for target in others)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "cancel", "advance"]), st.integers(0, 4), st.floats(0.0, 3.0)), max_size=40
    )
)
def test_a_deadline_fires_once_never_early_and_never_late(script: list[tuple[str, int, float]]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "monotonic", clock.monotonic)
        timers = Timers(clock, Turn(clock))  # type: ignore[arg-type]
        targets = [Target(clock) for _ in range(5)]
        wanted: dict[int, float] = {}
        for what, number, seconds in script:
            target = targets[number]
            if what == "set":
                timers.set(target, clock.now + seconds, clock.now)
                wanted[number] = clock.now + seconds
            elif what == "cancel":
                timers.cancel(target)
                wanted.pop(number, None)
            else:
                clock.advance(seconds)
                for which, due in list(wanted.items()):
                    fired = targets[which].fired
                    if fired:
                        assert len(fired) == 1
                        assert due - SLACK_S <= fired[0] <= due + FAR_S + NEAR_S + SLACK_S
                        del wanted[which]
                        fired.clear()
                    else:
                        assert clock.now <= due + FAR_S + NEAR_S + SLACK_S
                assert not any(target.fired for target in targets)
