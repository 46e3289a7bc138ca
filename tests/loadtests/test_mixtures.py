"""Unlike things side by side: a slower region is no failed one, a slow kind of request says nothing about the others."""

from typing import Any

import pytest

from loadtests.simulate.mixtures import long_polls, unequal
from loadtests.simulate.worlds import NEAR, RTTS
from routing.model import Policy

TRIOS = pytest.mark.parametrize("rtts", [RTTS, NEAR], ids=["regions", "near"])


@pytest.mark.parametrize("slow_s", [0.03, 0.06, 0.4, 2.0])
@pytest.mark.parametrize("lost", ["quick", "slow"])
@pytest.mark.parametrize("slow_first", [True, False])
def test_a_slower_region_keeps_its_weight_and_takes_over(slow_s: float, lost: str, slow_first: bool) -> None:
    found = unequal(slow_s=slow_s, lost=lost, slow_first=slow_first)
    assert found["drains"] == []
    total = sum(found["first_tries"].values())
    assert 0.45 < found["first_tries"]["slow"] / total < 0.55
    assert found["failed"] == found["failed_after_loss"] == 0


@pytest.mark.parametrize("slow_s", [0.03, 0.06, 0.4, 2.0])
def test_ordered_stays_with_a_slower_first_region(slow_s: float) -> None:
    found = unequal(policy=Policy.ORDERED, slow_s=slow_s)
    assert found["drains"] == []
    assert found["last_10_s"]["quick"] == 0
    assert found["failed"] == 0


@pytest.mark.parametrize("rate", [2.0, 10.0, 300.0])
@pytest.mark.parametrize("policy", list(Policy))
def test_at_any_rate(rate: float, policy: Policy) -> None:
    found = unequal(policy=policy, rate=rate)
    assert found["drains"] == []
    assert found["failed"] == found["failed_after_loss"] == 0
    if policy is Policy.LATENCY:
        assert found["last_10_s"]["slow"] <= 0.05 * sum(found["last_10_s"].values()), "the nearest one, but for spills"


def test_one_that_becomes_slower_for_good_gets_its_weight_back() -> None:
    found = unequal(change_at=20.0, until=110.0, end=120.0)
    assert len(found["drains"]) <= 2
    assert found["last_10_s"]["slow"] > 0.4 * sum(found["last_10_s"].values())
    assert found["failed"] == found["failed_after_loss"] == 0


def test_a_region_that_hangs_from_the_start_is_drained_nevertheless() -> None:
    found: dict[str, Any] = unequal(slow_s=100.0, until=30.0, end=31.0, lost="slow")
    assert found["drains"][0] == "slow"
    assert found["failed"] == 0
    assert found["first_tries"]["slow"] < 300


@TRIOS
@pytest.mark.parametrize(("share", "rate"), [(0.03, 20.0), (0.1, 20.0), (0.03, 100.0), (0.1, 100.0), (0.2, 100.0)])
def test_long_polls_move_nobody_else(rtts: dict[str, float], share: float, rate: float) -> None:
    found = long_polls(rtts=rtts, share=share, rate=rate)
    assert found["first_tries"]["us"] >= 0.99
    assert found["failed"] == 0
    assert found["changes"] == []


@pytest.mark.parametrize("settings", [{"pauses": True}, {"endpoints": 3}, {"long_s": 1.0}, {"long_s": 0.6}])
def test_nor_in_pauses_nor_among_endpoints_nor_when_they_are_shorter(settings: dict[str, Any]) -> None:
    found = long_polls(**settings)
    assert found["first_tries"]["us"] >= 0.99
    assert found["changes"] == []
