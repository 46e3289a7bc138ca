"""Where a second and a third try go: away from what failed, whatever the ratio of distances."""

import pytest

from routing.balancer import DrainState
from routing.model import Drain

from .world import World, region, tries

DISTANCES = [
    {"us": 0.0005, "eu": 0.005, "ap": 0.080},
    {"us": 0.0005, "eu": 0.030, "ap": 0.080},
    {"us": 0.0002, "eu": 0.300, "ap": 0.400},
    {"us": 0.060, "eu": 0.080, "ap": 0.150},
]


@pytest.mark.parametrize("rtts", DISTANCES)
@pytest.mark.parametrize("served", [0, 300])
def test_with_one_endpoint_a_region_the_second_try_leaves_the_region(rtts: dict[str, float], served: int) -> None:
    world = World(rtts=rtts)
    world.serve(served)
    assert [endpoint.region.name for endpoint in tries(world, 3)] == ["us", "eu", "ap"]


@pytest.mark.parametrize("rtts", DISTANCES)
@pytest.mark.parametrize("endpoints", [2, 3, 6])
def test_with_several_the_second_leaves_the_endpoint_and_the_third_the_region(
    rtts: dict[str, float], endpoints: int
) -> None:
    world = World(region("us", endpoints), region("eu", endpoints), rtts=rtts)
    world.serve(300)
    found = tries(world, 3)
    assert [endpoint.region.name for endpoint in found] == ["us", "us", "eu"]
    assert found[0] is not found[1]


def test_every_endpoint_is_tried_before_one_is_tried_again() -> None:
    world = World(region("us", 3), region("eu", 2), drain=Drain(max_drained=0.0))
    found = tries(world, 6)
    assert len(set(found[:5])) == 5
    assert found[5] in found[:5]


@pytest.mark.parametrize("rtts", DISTANCES)
def test_a_hedge_leaves_what_looks_dead_whatever_the_distance(rtts: dict[str, float]) -> None:
    world = World(rtts=rtts)
    world.serve(300)
    us, eu = world.endpoint("us"), world.endpoint("eu")
    assert world.balancer.pick_alternate(world.now, [us], True) is us, "an isolated slow answer stays near"
    assert world.balancer.pick_alternate(world.now, [us, us], True) is eu, "two tries in one region are enough"
    world.lose("us", 1)
    assert world.balancer.pick_alternate(world.now, [us], True) is eu


def test_a_drained_region_is_tried_before_anybody_gets_an_error() -> None:
    world = World(region("us"), region("eu"), rtts=DISTANCES[1])
    world.show("us")
    world.lose("us", 8)
    assert world.region("us").state is DrainState.DRAINED
    assert [endpoint.region.name for endpoint in tries(world, 2)] == ["eu", "us"]


def test_a_region_in_use_and_a_standby_come_before_a_drained_one() -> None:
    world = World(region("us"), region("eu"), region("ap"), region("sa", standby=True), drain=Drain(max_drained=0.25))
    world.show("us")
    world.lose("us", 8)
    assert [endpoint.region.name for endpoint in tries(world, 4)] == ["eu", "ap", "sa", "us"]


def test_an_operators_drain_is_the_very_last() -> None:
    world = World(region("us"), region("eu"), drain=Drain(max_drained=1.0))
    world.balancer.drain("us", world.now, None)
    assert [endpoint.region.name for endpoint in tries(world, 3)] == ["eu", "eu", "eu"]
    eu, us = world.endpoint("eu"), world.endpoint("us")
    eu.not_before = world.now + 100.0
    assert world.balancer.pick_alternate(world.now, [eu], False) is us, "there is nothing else"


def test_when_those_in_use_are_full_a_drained_region_takes_the_rest_but_not_an_operators() -> None:
    world = World(region("us", max_in_flight=1), region("eu"))
    world.show("eu")
    world.lose("eu", 8)
    world.balancer.begin(world.endpoint("us"), world.now)
    assert world.balancer.pick(world.now) is world.endpoint("eu")
    assert world.balancer.pick(world.now, b"a session") is world.endpoint("eu")
    world.balancer.drain("eu", world.now, None)
    assert world.balancer.pick(world.now) is None
