"""Shares between regions and rendezvous hashing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.choice import closeness, fill, name_key, score, session_key, without_slivers


def shares(*tiers: list[tuple[str, float, float]]) -> dict[str, float]:
    return dict(fill(tiers))


def test_equal_regions_share_and_a_far_one_gets_next_to_nothing() -> None:
    weights = closeness([0.060, 0.060, 0.080], 0.05)
    assert weights[0] == weights[1] == 1.0
    assert weights[2] < 0.002


def test_noise_moves_nothing_between_regions_a_millisecond_away() -> None:
    near = closeness([0.0010, 0.0012], 0.05)
    assert near[1] > 0.6


def test_closeness_survives_any_distance() -> None:
    assert closeness([0.001, 1000.0], 0.05)[1] >= 0.0


def test_a_limited_region_passes_the_rest_on_by_weight() -> None:
    found = shares([("us", 1.0, 0.05), ("eu", 0.001, 1.0), ("ap", 1e-9, 1.0)])
    assert found["us"] == pytest.approx(0.05, abs=0.001)
    assert found["eu"] == pytest.approx(0.95, abs=0.001)


def test_two_limited_regions_pass_on_in_turn() -> None:
    found = shares([("us", 1.0, 0.0), ("eu", 1e-3, 0.6), ("ap", 1e-9, 1.0)])
    assert "us" not in found
    assert found["eu"] == pytest.approx(0.6, abs=0.001)
    assert found["ap"] == pytest.approx(0.4, abs=0.001)


def test_equal_limited_regions_stay_equal() -> None:
    found = shares([("a", 1.0, 0.5), ("b", 1.0, 0.5)])
    assert found == pytest.approx({"a": 0.5, "b": 0.5})


def test_standby_regions_take_what_the_others_refuse() -> None:
    assert shares([("us", 1.0, 1.0)], [("standby", 1.0, 1.0)]) == {"us": 1.0}
    found = shares([("us", 1.0, 0.25)], [("standby", 1.0, 1.0)])
    assert found == pytest.approx({"us": 0.25, "standby": 0.75})


def test_nobody_is_turned_away_while_somebody_takes_anything() -> None:
    assert shares([("us", 1.0, 0.1), ("eu", 1.0, 0.0)]) == pytest.approx({"us": 1.0})
    assert shares([("us", 1.0, 0.0)], [("standby", 1.0, 0.0)]) == {}


members = st.lists(st.tuples(st.floats(1e-12, 1.0), st.sampled_from((0.0, 0.05, 0.5, 0.9, 1.0))), max_size=10)


@given(members, members)
def test_shares_sum_to_one(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> None:
    tiers = [
        [(f"{tier} {index}", weight, admission) for index, (weight, admission) in enumerate(found)]
        for tier, found in enumerate((first, second))
    ]
    found = fill(tiers)
    if any(admission > 0.0 for _, admission in first + second):
        assert sum(share for _, share in found) == pytest.approx(1.0)
        assert all(share >= 0.0 for _, share in found)
    else:
        assert found == []


@given(members.filter(lambda found: any(admission == 1.0 for _, admission in found)))
def test_a_limited_region_never_takes_more_than_its_admission(found: list[tuple[float, float]]) -> None:
    """Some region is fully open, so nothing is scaled up: the others stay within what they admit."""
    tier = [(index, weight, admission) for index, (weight, admission) in enumerate(found)]
    for index, share in fill([tier]):
        assert share <= found[index][1] + 1e-9


def winners(regions: dict[str, float], keys: int = 3000) -> list[str]:
    names = {name: name_key(name) for name in regions}
    return [
        max(regions, key=lambda name: score(hashed, names[name], regions[name]))
        for hashed in (session_key(b"user-%d" % number) for number in range(keys))
    ]


def test_sessions_follow_the_weights() -> None:
    counts = Counter(winners({"us": 0.6, "eu": 0.3, "ap": 0.1}))
    assert counts["us"] / 3000 == pytest.approx(0.6, abs=0.03)
    assert counts["ap"] / 3000 == pytest.approx(0.1, abs=0.03)


def test_a_loss_moves_only_the_sessions_of_what_was_lost() -> None:
    before = winners({"us": 1.0, "eu": 1.0, "ap": 1.0})
    after = winners({"eu": 1.0, "ap": 1.0})
    assert all(then == now for then, now in zip(before, after, strict=True) if then != "us")


def test_growth_moves_sessions_only_to_what_grew() -> None:
    before = winners({"us": 0.1, "eu": 1.0})
    after = winners({"us": 0.5, "eu": 1.0})
    moved = {(then, now) for then, now in zip(before, after, strict=True) if then != now}
    assert moved == {("eu", "us")}


def test_hashes_are_the_same_in_every_process() -> None:
    assert session_key(b"user-1") == 0x88E1EA21865AAC9A
    assert name_key("us-east") == session_key(b"us-east")


def test_a_share_too_small_to_matter_goes_to_the_nearest() -> None:
    assert without_slivers([("us", 0.9987), ("eu", 0.0013)]) == [("us", 1.0)]
    kept = without_slivers([("us", 0.6), ("eu", 0.39), ("ap", 0.001)])
    assert [name for name, _ in kept] == ["us", "eu"]
    assert sum(share for _, share in kept) == pytest.approx(1.0)
    many = [(number, 0.001) for number in range(1000)]
    assert len(without_slivers(many)) == len(many), "small beside the largest, not in itself"


def test_a_wider_spread_shares_with_regions_that_are_farther() -> None:
    """40 and 60 ms: at 5 % the farther one gets next to nothing, at 100 % more than a third."""
    shares = {}
    for spread in (0.05, 1.0):
        near, far = closeness([0.04, 0.06], spread)
        shares[spread] = far / (near + far)
    assert shares[0.05] < 0.001
    assert 0.35 < shares[1.0] < 0.5
