"""The Locust scenarios as values."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.lab.behaviour import Behaviour
from loadtests.lab.commands import parse_settings
from loadtests.lab.path import PathSettings
from loadtests.scenarios.plan import REGIONS, SCENARIOS, steps

NAMES = list(SCENARIOS)


def test_the_promised_ones_are_there() -> None:
    assert NAMES == ["steady", "ramp", "burst", "region-loss", "brownout", "soak"]


@pytest.mark.parametrize("name", NAMES)
@given(share=st.floats(0.0, 0.999), peak=st.integers(1, 5000), length_s=st.floats(1.0, 10_000.0))
def test_there_are_users_until_the_end_and_never_more_than_the_peak(
    name: str, share: float, peak: int, length_s: float
) -> None:
    users = SCENARIOS[name].users_at(share * length_s, length_s, peak)
    assert users is not None
    assert 1 <= users <= peak
    assert SCENARIOS[name].users_at(length_s, length_s, peak) is None


def test_shapes() -> None:
    ramp, burst = SCENARIOS["ramp"], SCENARIOS["burst"]
    assert [ramp.users_at(second, 100, 100) for second in (0, 40, 80, 99)] == [10, 55, 100, 100]
    heights = [burst.users_at(second / 10, 100, 100) for second in range(1000)]
    assert set(heights) == {20, 100}
    assert sum(1 for low, high in pairwise(heights) if low == 20 and high == 100) == 5


@pytest.mark.parametrize("name", NAMES)
def test_every_fault_ends_within_its_scenario_and_after_it_began(name: str) -> None:
    found = steps(SCENARIOS[name], 100.0)
    assert [step.at_s for step in found] == sorted(step.at_s for step in found)
    open_ = set()
    for step in found:
        assert 0 < step.at_s < 100
        (open_.add if step.begins else open_.remove)(step.fault.label)
    assert not open_


@pytest.mark.parametrize("name", NAMES)
def test_the_words_are_the_labs(name: str) -> None:
    for step in steps(SCENARIOS[name], 100.0):
        for line in step.words:
            word, where, *rest = line.split()
            assert where in REGIONS
            if word == "set":
                PathSettings().changed(**parse_settings(rest))
            elif rest != ["drop"]:
                assert word == "origin"
                Behaviour().changed(**parse_settings(rest))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_fault_changes_its_end_restores(name: str) -> None:
    def settings(lines: tuple[str, ...]) -> set[tuple[str, str, str]]:
        words = [line.split() for line in lines if line.split()[-1] != "drop"]
        found = {(word[0], word[1], setting.partition("=")[0]) for word in words for setting in word[2:]}
        return {one for one in found if not one[2].endswith(("_ms", "_share")) or one[2] in ("rtt_ms", "service_ms")}

    for fault in SCENARIOS[name].faults:
        late = {one for one in settings(fault.start) if one[2] != "late_ms"}
        assert late <= settings(fault.stop) | {("origin", "eu", "late_share")}
