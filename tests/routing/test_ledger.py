"""What is booked to whom: one endpoint's trouble and its region's."""

import random

import pytest

from routing.balancer import DrainState, EndpointState, Outcome
from routing.model import Drain
from routing.outlier import OutlierState

from .world import World, region

HEALTHY, SUSPECT, DRAINED, PROBING, RAMPING = DrainState


def probe(world: World, seconds: float, dead: list[EndpointState]) -> None:
    """Let time pass; what asks for a probe gets one, and it fails where the endpoint is dead."""
    end = world.now + seconds
    while world.now < end:
        world.wait(0.1)
        for endpoint in world.balancer.probes_wanted(world.now):
            world.balancer.observe_probe(endpoint, world.now, endpoint not in dead, endpoint.floor.value)


def refuse(world: World, endpoint: EndpointState) -> None:
    """A dial of the pool's fails."""
    endpoint.ready = 0
    world.balancer.observe_connect(endpoint, world.now, False, 0.0, "tcp")


@pytest.mark.parametrize("endpoints", [2, 3, 5])
def test_a_dead_endpoint_does_not_keep_its_region_drained(endpoints: int) -> None:
    world = World(region("us", endpoints), region("eu"))
    dead = [world.endpoint("us", index) for index in range(1, endpoints)]
    world.balancer.drain("us", world.now, None)
    probe(world, 30.0, dead)
    world.balancer.undrain("us", world.now)
    probe(world, 5.0, dead)
    assert world.region("us").state is RAMPING
    probe(world, 31.0, dead)
    assert world.region("us").state is HEALTHY
    assert world.serve(100)["us"] == 100


def test_a_region_that_was_drained_by_a_fault_returns_without_its_dead_endpoint() -> None:
    world = World(region("us", 2), region("eu"))
    both = [world.endpoint("us", 0), world.endpoint("us", 1)]
    for _ in range(8):
        for endpoint in both:
            world.now += 0.03
            world.end(endpoint, Outcome.RESET)
    probe(world, 15.0, both)
    assert world.region("us").state in {DRAINED, PROBING}
    probe(world, 25.0, both[1:])
    assert world.region("us").state is RAMPING


def test_it_stays_out_while_all_of_its_endpoints_are_dead_or_on_hold() -> None:
    world = World(region("us", 2), region("eu"))
    both = [world.endpoint("us", 0), world.endpoint("us", 1)]
    world.balancer.drain("us", world.now, None)
    world.balancer.undrain("us", world.now)
    probe(world, 60.0, both)
    assert world.region("us").state in {DRAINED, PROBING}
    seen = set()
    for _ in range(600):
        probe(world, 0.1, [])
        seen.add((world.region("us").state, world.region("us").stranded))
    assert (RAMPING, True) not in seen, "nobody could take the ramp's requests"
    assert (HEALTHY, False) in seen


def test_a_minority_that_answers_probes_does_not_bring_a_region_back() -> None:
    world = World(region("us", 5), region("eu"))
    world.balancer.drain("us", world.now, None)
    world.balancer.undrain("us", world.now)
    for step in range(100):
        world.wait(0.3)
        for endpoint in world.region("us").endpoints:  # every second probe of most fails: they are never ejected
            world.balancer.observe_probe(endpoint, world.now, endpoint.index == 0 or step % 2 == 0, 0.06)
    assert world.region("us").state is PROBING


@pytest.mark.parametrize("seed", range(40))
def test_one_of_two_endpoints_down_at_an_idle_start_drains_nothing(seed: int) -> None:
    draw = random.Random(seed)
    world = World(region("us", 2), region("eu"), rtts={}, seed=seed)
    up, down = world.endpoint("us", seed % 2), world.endpoint("us", 1 - seed % 2)
    up.ready = down.ready = 0
    connected = draw.uniform(0.0, 1.5)
    redial = draw.uniform(0.0, 0.2)
    began = world.now
    while world.now < began + 60.0:
        if world.now - began >= redial:
            refuse(world, down)
            redial = world.now - began + draw.uniform(0.1, 1.0)
        if world.now - began >= connected:
            up.ready = 2
        probe(world, draw.uniform(0.05, 0.2), [down])
        assert world.region("us").state is HEALTHY
    assert down.outlier.state is OutlierState.EJECTED
    assert world.balancer.pick(world.now) is up


def test_dials_that_fail_everywhere_in_a_region_speak_against_it() -> None:
    world = World(region("us", 2), region("eu"))
    both = [world.endpoint("us", 0), world.endpoint("us", 1)]
    for _ in range(8):
        for endpoint in both:
            world.wait(0.1)
            refuse(world, endpoint)
        probe(world, 0.1, both)
    assert world.region("us").state in {DRAINED, PROBING}


@pytest.mark.parametrize("outcome", [Outcome.RESET, Outcome.TIMEOUT, Outcome.HEDGE_LOST, Outcome.CONNECT_FAILED])
def test_an_ejected_endpoint_says_nothing_about_its_region(outcome: Outcome) -> None:
    world = World(region("us", 2), region("eu"))
    world.serve(200)
    sick = world.endpoint("us", 1)
    sick.outlier.eject(world.now, "test", 0.5)
    sick.outlier.probes_failed = 2
    for _ in range(20):
        world.wait(0.1)
        world.end(sick, outcome, 3.0)
        world.balancer.observe_probe(sick, world.now, False, 1.0)
        world.balancer.observe_unanswered(sick, world.now, 5.0)
        refuse(world, sick)
    us = world.region("us")
    assert (us.state, us.health.streak, us.excess, us.tail) == (HEALTHY, 0, 0.0, 0.0)


def test_where_every_endpoint_is_ejected_their_failures_are_the_regions() -> None:
    world = World(region("us", 2), region("eu"), drain=Drain(max_drained=0.0))
    for endpoint in world.region("us").endpoints:
        endpoint.outlier.eject(world.now, "test", 0.5)
    world.wait(0.1)
    for _ in range(3):
        world.now += 0.03
        world.end(world.endpoint("us"), Outcome.RESET)
    assert world.region("us").state is SUSPECT


@pytest.mark.parametrize("phases", [["tcp"], ["tcp", "tls"]])
def test_a_failed_dial_long_ago_is_forgotten_by_the_next_good_one(phases: list[str]) -> None:
    world = World(region("us", 2), region("eu"))
    once, down = world.endpoint("us", 0), world.endpoint("us", 1)
    world.balancer.observe_connect(once, world.now, False, 0.0, phases[-1])
    for phase in phases:
        world.balancer.observe_connect(once, world.now, True, 0.06, phase)
    for _ in range(20):
        world.wait(0.5)
        refuse(world, down)
        assert world.region("us").health.streak == 0


def test_tcp_alone_does_not_make_up_for_failing_tls() -> None:
    world = World(region("us", 2), region("eu"))
    for _ in range(3):
        world.wait(0.5)
        world.balancer.observe_connect(world.endpoint("us"), world.now, True, 0.06, "tcp")
        world.balancer.observe_connect(world.endpoint("us"), world.now, False, 0.0, "tls")
    world.wait(0.1)
    assert world.endpoint("us").outlier.state is OutlierState.EJECTED


def lose(world: World, name: str, count: int, elapsed: float) -> None:
    for _ in range(count):
        world.wait(0.1)
        world.end(world.endpoint(name), Outcome.HEDGE_LOST, elapsed)


def test_hedges_lost_before_a_region_showed_what_it_is_are_no_evidence_and_buy_it_time() -> None:
    world = World(region("us"), region("eu"), rtts={"us": 0.0005, "eu": 0.0005})
    before = world.balancer.hedge_delay(world.now, world.endpoint("us"))
    assert before is not None
    lose(world, "us", 3, before + 0.001)
    after = world.balancer.hedge_delay(world.now, world.endpoint("us"))
    assert after is not None
    assert after > 2 * before
    lose(world, "us", 20, 0.9)
    us = world.region("us")
    assert (us.state, us.health.streak, us.excess, us.endpoints[0].outlier.losses) == (HEALTHY, 0, 0.0, 0)


def test_a_region_that_never_answers_is_drained_all_the_same() -> None:
    world = World(region("us"), region("eu"))
    lose(world, "us", 6, 1.1)
    assert world.region("us").state is DRAINED


def test_its_own_answers_say_what_is_usual_and_hedges_lost_past_them_count() -> None:
    world = World(region("us"), region("eu"))
    for _ in range(20):
        world.wait(0.5)
        world.end(world.endpoint("us"), elapsed=0.160)
    lose(world, "us", 10, 0.150)
    assert world.region("us").state is HEALTHY
    lose(world, "us", 6, 0.400)
    assert world.region("us").state is DRAINED


def test_one_slow_answer_of_few_is_not_usual() -> None:
    world = World(region("us"), region("eu"))
    for step in range(8):
        world.wait(1.0)
        world.end(world.endpoint("us"), elapsed=2.0 if step == 4 else 0.061)
    delay = world.balancer.hedge_delay(world.now, world.endpoint("us"))
    assert delay is not None
    assert delay < 0.1


def test_what_is_left_failing_ends_the_hold_of_a_region_whose_probes_are_good() -> None:
    world = World(region("us"), region("eu"))
    world.serve(100)
    world.lose("us", 8)
    world.wait(0.5)
    for _ in range(30):
        world.now += 0.03
        world.end(world.endpoint("eu"), Outcome.RESET)
    assert (world.region("us").state, world.region("eu").state) == (DRAINED, SUSPECT)
    probe(world, 5.0, [world.endpoint("eu")])
    assert world.region("us").state is RAMPING
    assert world.serve(50)["us"] == 50


@pytest.mark.parametrize("why", ["an operator's", "somebody is well", "its probes fail"])
def test_a_hold_lasts_otherwise(why: str) -> None:
    world = World(region("us"), region("eu"), *([region("ap")] if why == "somebody is well" else []))
    world.serve(100)
    if why == "an operator's":
        world.balancer.drain("us", world.now, None)
    else:
        world.lose("us", 8)
    for _ in range(30):
        world.now += 0.03
        world.end(world.endpoint("eu"), Outcome.RESET)
    probe(world, 5.0, [world.endpoint("eu"), *([world.endpoint("us")] if why == "its probes fail" else [])])
    assert world.region("us").state is DRAINED


def test_one_long_answer_in_ten_says_nothing_about_the_others() -> None:
    world = World(rtts={"us": 0.0005, "eu": 0.030, "ap": 0.080})
    us = world.endpoint("us")
    for step in range(600):
        world.now += 0.01
        world.tick_if_due()
        world.balancer.begin(us, world.now)  # it waits for ever
        if step % 10:
            world.balancer.finish(us, world.now, Outcome.OK, 10.0 if step % 10 == 1 else 0.0015)
        assert world.region("us").limit == world.region("us").max_in_flight
    world.wait(3.0)
    assert not world.region("us").quiet(world.now), "nobody asked since the last answer"
    found = world.balancer.pick(world.now)
    assert found is us
