"""The region's state machine as scripts of events: what happened, and where the region stands after it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.drain import (
    FORGET,
    HOLD_MAX_S,
    LATE,
    PATIENCE_S,
    PROBES,
    RAMP_START,
    SAME_S,
    SHARE_MIN,
    SUSPECT_ADMISSION,
    SUSPECT_S,
    UNANSWERED_DRAIN_S,
    UNANSWERED_SUSPECT_S,
    Change,
    DrainState,
    RegionHealth,
)
from routing.model import Drain

HEALTHY, SUSPECT, DRAINED, PROBING, RAMPING = DrainState
SETTINGS = Drain(after=3, hold=10.0, ramp=30.0)


class Script:
    """A region, and a clock that ticks it ten times a second."""

    def __init__(self, may_drain: bool = True, jitter: float = 0.0) -> None:
        self.now = 100.0
        self.health = RegionHealth("us", SETTINGS, self.now)
        self.may_drain = may_drain
        self.jitter = jitter
        self.row = 0
        self.changes: list[Change] = []

    def judge(self) -> None:
        change = self.health.tick(self.now, self.may_drain, self.jitter)
        if change is not None:
            self.changes.append(change)

    def bad(self, count: int = 1, every: float = 0.03, cause: str = "reset") -> None:
        for _ in range(count):
            self.now += every
            self.health.bad(self.now, cause)
            self.judge()

    def good(self, count: int = 1, every: float = 0.03) -> None:
        for _ in range(count):
            self.now += every
            self.health.good(self.now)
            self.judge()

    def probe(self, ok: bool) -> None:
        self.row = self.row + 1 if ok else 0
        self.health.probe(self.row)

    def wait(self, seconds: float, *, probes: bool | None = None) -> None:
        end = self.now + seconds
        last_probe = self.now
        while self.now < end - 1e-9:
            self.now = min(self.now + 0.1, end)
            if probes is not None and self.now - last_probe >= 1.0:
                last_probe = self.now
                self.probe(probes)
            self.judge()

    def drained(self) -> None:
        self.bad(6)
        assert self.health.state is DRAINED

    def ramping(self) -> None:
        self.drained()
        self.wait(15.0, probes=True)
        assert self.health.state is RAMPING

    @property
    def states(self) -> list[DrainState]:
        return [change.after for change in self.changes]


def test_a_whole_life() -> None:
    script = Script()
    script.bad(6)
    script.wait(10.0 + PROBES + 31.0, probes=True)
    assert script.states == [SUSPECT, DRAINED, PROBING, RAMPING, HEALTHY]
    assert [change.before for change in script.changes] == [HEALTHY, SUSPECT, DRAINED, PROBING, RAMPING]
    assert all(change.evidence and change.cause and change.region == "us" for change in script.changes)


def test_fewer_than_after_are_no_suspicion() -> None:
    script = Script()
    for _ in range(20):
        script.bad(2)
        script.good(12)
    assert script.states == []


def test_an_answer_between_starts_the_row_anew() -> None:
    script = Script()
    script.bad(3)
    script.good(1)
    script.bad(2)
    assert script.health.state is SUSPECT
    script.good(3)
    assert script.health.state is HEALTHY


def test_three_in_ten_faults_are_suspect_although_most_answers_are_good() -> None:
    script = Script()
    for _ in range(10):
        script.bad(1)
        script.good(2)
    assert script.states[0] is SUSPECT


def test_three_in_ten_late_answers_are_no_fault() -> None:
    script = Script()
    for _ in range(10):
        script.bad(1, cause=LATE)
        script.good(2)
    assert script.states == []


def test_what_fails_in_one_instant_is_one_event() -> None:
    script = Script()
    script.good(200)
    script.bad(50, every=SAME_S / 100)
    assert script.health.state is HEALTHY
    script.bad(2, every=SAME_S * 1.01)
    assert script.health.state is SUSPECT


def test_half_of_the_attempts_failing_is_suspect_and_then_drained() -> None:
    script = Script()
    for _ in range(SHARE_MIN):
        script.bad()
        script.good()
    assert script.health.state is SUSPECT
    for _ in range(40):
        script.bad(1, every=0.05)
        script.good(1, every=0.05)
    assert DRAINED in script.states
    assert "attempts failed" in next(change.evidence for change in script.changes if change.after is DRAINED)


def test_a_tenth_failing_is_neither() -> None:
    script = Script()
    for _ in range(200):
        script.bad()
        script.good(9)
    assert script.states == []


def test_silence_after_suspicion_drains() -> None:
    script = Script()
    script.bad(4)
    script.wait(SUSPECT_S - 0.2)
    assert script.health.state is SUSPECT
    script.wait(0.4)
    assert script.health.state is DRAINED
    assert "no answer for" in script.changes[-1].evidence


def test_a_suspicion_without_further_trouble_passes() -> None:
    script = Script()
    script.bad(3)
    script.health.good(script.now)
    script.wait(SUSPECT_S + 0.2)
    assert script.health.state is HEALTHY


def test_a_blackhole_is_seen_without_any_timeout() -> None:
    script = Script()
    script.good(10)
    began = script.now
    while script.health.state is not DRAINED:
        script.now += 0.1
        script.health.unanswered(script.now, script.now - began, 0.06)
        script.judge()
        assert script.now - began < 2.0
    assert script.now - began <= UNANSWERED_DRAIN_S + 0.21
    assert script.states == [SUSPECT, DRAINED]
    assert script.changes[-1].cause == "blackhole"


def test_unacknowledged_bytes_mean_nothing_while_others_are_answered_or_for_a_few_round_trips() -> None:
    script = Script()
    script.good(1)
    script.now += 2.0
    script.health.good(script.now)
    script.health.unanswered(script.now, 1.5, 0.06)
    script.now += 1.0
    script.health.unanswered(script.now, UNANSWERED_SUSPECT_S + 0.1, 0.5)
    script.judge()
    assert script.states == []


def test_the_cap_keeps_it_suspect_and_its_lifting_drains_it() -> None:
    script = Script(may_drain=False)
    script.bad(20)
    assert script.health.state is SUSPECT
    assert script.health.admission(script.now) == SUSPECT_ADMISSION
    script.may_drain = True
    script.bad(1)
    assert script.health.state is DRAINED


def test_no_endpoints_drains_when_it_may() -> None:
    script = Script()
    assert script.health.no_endpoints(script.now, False, 0.0) is None
    change = script.health.no_endpoints(script.now, True, 0.0)
    assert change is not None
    assert (change.after, change.cause) == (DRAINED, "health_checks")
    assert script.health.no_endpoints(script.now, True, 0.0) is None


def test_it_stays_out_while_probes_fail() -> None:
    script = Script()
    script.drained()
    script.wait(120.0, probes=False)
    assert script.health.state is PROBING
    script.wait(1.2 * PROBES, probes=True)
    assert script.health.state is RAMPING


def test_good_probes_during_the_hold_count() -> None:
    script = Script()
    script.drained()
    script.wait(10.1 + 0.2, probes=True)
    assert script.health.state is RAMPING


def test_where_nobody_probes_requests_must_after_a_while() -> None:
    script = Script()
    script.drained()
    script.wait(10.0 + PATIENCE_S - 1.0)
    assert script.health.state is PROBING
    script.wait(2.0)
    assert script.health.state is RAMPING


def test_the_ramp_is_linear() -> None:
    script = Script()
    script.ramping()
    start = script.health.since
    assert script.health.admission(start) == RAMP_START
    assert script.health.admission(start + 15.0) == pytest.approx(0.5 + RAMP_START)
    assert script.health.admission(start + 30.0) == 1.0


def test_a_flap_doubles_the_hold() -> None:
    script = Script()
    holds = []
    for _ in range(7):
        script.bad(6)
        assert script.health.state is DRAINED
        since = script.now
        while script.health.state is DRAINED:
            script.wait(0.1, probes=True)
        holds.append(script.now - since)
        while script.health.state is PROBING:
            script.wait(0.1, probes=True)
        script.good(1)
    assert holds[:4] == pytest.approx([10.0, 20.0, 40.0, 80.0], abs=0.3)
    assert max(holds) <= HOLD_MAX_S + 0.3


def test_health_forgets_flaps() -> None:
    script = Script()
    script.ramping()
    script.bad(3)
    assert (script.health.state, script.health.flaps) == (DRAINED, 1)
    script.wait(20.0 + PROBES + 31.0, probes=True)
    assert script.health.state is HEALTHY
    script.wait(FORGET * 20.0 + 1.0)
    assert script.health.flaps == 0


def test_holds_end_at_different_times() -> None:
    ends = []
    for jitter in (0.0, 0.5, 0.999):
        script = Script(jitter=jitter)
        script.drained()
        since = script.now
        while script.health.state is DRAINED:
            script.wait(0.1)
        ends.append(script.now - since)
    assert ends[0] < ends[1] < ends[2] <= 12.1


def test_an_operators_drain_lasts_until_its_time() -> None:
    script = Script(may_drain=False)
    change = script.health.drain(script.now, script.now + 60.0)
    assert (change.after, change.cause) == (DRAINED, "operator")
    script.wait(59.0, probes=True)
    assert script.health.state is DRAINED
    script.wait(2.0, probes=True)
    assert script.health.state is RAMPING


def test_undrain_brings_it_back_through_probes_and_the_ramp() -> None:
    script = Script()
    script.health.drain(script.now, None)
    script.wait(1000.0)
    assert script.health.state is DRAINED
    assert script.health.undrain(script.now).after is PROBING
    script.wait(1.2 * PROBES, probes=True)
    assert script.health.state is RAMPING


def test_undraining_what_is_not_drained_changes_nothing() -> None:
    script = Script()
    change = script.health.undrain(script.now)
    assert change.before is change.after is HEALTHY


EVENTS = st.lists(
    st.sampled_from(("good", "bad", "probe_good", "probe_bad", "unanswered", "tick", "wait")), max_size=150
)


@given(EVENTS, st.booleans(), st.floats(0.0, 0.999))
def test_only_the_drawn_transitions_happen_and_admissions_are_shares(
    events: list[str], may_drain: bool, jitter: float
) -> None:
    allowed = {
        (HEALTHY, SUSPECT), (SUSPECT, HEALTHY), (SUSPECT, DRAINED), (DRAINED, PROBING), (PROBING, RAMPING),
        (RAMPING, HEALTHY), (RAMPING, DRAINED),
    }  # fmt: skip
    script = Script(may_drain, jitter)
    for event in events:
        script.now += 0.05
        match event:
            case "good":
                script.health.good(script.now)
            case "bad":
                script.health.bad(script.now, "reset")
            case "probe_good" | "probe_bad":
                script.probe(event == "probe_good")
            case "unanswered":
                script.health.unanswered(script.now, 1.2, 0.06)
            case "wait":
                script.now += 4.0
        script.judge()
        assert 0.0 <= script.health.admission(script.now) <= 1.0
        assert 0.0 <= script.health.badness <= 1.0
    assert {(change.before, change.after) for change in script.changes} <= allowed
    if not may_drain:
        assert DRAINED not in script.states
