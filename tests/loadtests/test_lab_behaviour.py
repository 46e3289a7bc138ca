from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from loadtests.lab.behaviour import Behaviour, Outcome

DRAWS = 4000


def draws(**settings: Any) -> list[tuple[Outcome, float, int]]:
    behaviour = Behaviour(**settings)
    randomness = random.Random(7)
    return [behaviour.decide(randomness, health=False) for _ in range(DRAWS)]


def test_it_is_instant_unless_told_otherwise() -> None:
    assert Behaviour().instant
    assert Behaviour(refuse=True, close_idle_s=8).instant
    for settings in ({"service_ms": 1}, {"late_share": 0.1}, {"status": 503}, {"hang": True}, {"reset": True}):
        assert not Behaviour(**settings).instant


def test_service_times_follow_their_distribution() -> None:
    assert {delay for _, delay, _ in draws(service_ms=2)} == {0.002}
    uniform = [delay for _, delay, _ in draws(service="uniform", service_ms=10, service_spread=0.5)]
    assert 0.005 <= min(uniform) < 0.0055
    assert 0.0145 < max(uniform) <= 0.015
    lognormal = [delay for _, delay, _ in draws(service="lognormal", service_ms=10, service_spread=1)]
    assert statistics.median(lognormal) == pytest.approx(0.010, rel=0.1)
    assert statistics.mean(lognormal) == pytest.approx(0.0165, rel=0.15)


def test_the_late_share_is_late() -> None:
    late = [delay for _, delay, _ in draws(service_ms=1, late_share=0.02, late_ms=1000) if delay > 0.5]
    assert len(late) == pytest.approx(0.02 * DRAWS, rel=0.3)
    assert set(late) == {1.001}


def test_faults_strike_their_share_and_reset_comes_before_hang() -> None:
    outcomes = [outcome for outcome, _, _ in draws(reset=True, reset_share=0.5, hang=True, hang_share=0.5)]
    assert outcomes.count(Outcome.RESET) == pytest.approx(DRAWS * 0.5, rel=0.1)
    assert outcomes.count(Outcome.HANG) == pytest.approx(DRAWS * 0.25, rel=0.1)
    statuses = [status for _, _, status in draws(status=503, status_share=0.3)]
    assert statuses.count(503) == pytest.approx(DRAWS * 0.3, rel=0.1)
    assert statuses.count(0) == DRAWS - statuses.count(503)


def test_health_can_differ_from_the_rest() -> None:
    behaviour = Behaviour(health_status=500)
    assert behaviour.decide(random.Random(1), health=True) == (Outcome.ANSWER, 0.0, 500)
    assert behaviour.decide(random.Random(1), health=False) == (Outcome.ANSWER, 0.0, 0)


@pytest.mark.parametrize("values", [{"service": "fast"}, {"hang_share": 2}, {"status": 42}, {"latency": 1}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"one of|share|between|no such"):
        Behaviour().changed(**values)
