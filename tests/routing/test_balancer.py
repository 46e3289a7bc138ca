"""The balancer as its callers use it: choices, hedges, drains, and what it says of itself."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import report
from routing.balancer import Balancer, DrainState, Outcome
from routing.model import Drain, Hedge, Policy, Retry, Upstream
from routing.outlier import OutlierState

from .world import RTTS, World, region


def test_the_nearest_region_gets_nearly_everything() -> None:
    assert World().serve(1000)["us"] > 985


def test_equal_regions_share() -> None:
    seen = World(rtts={"us": 0.060, "eu": 0.060, "ap": 0.150}).serve(2000)
    assert seen["ap"] == 0
    assert 0.4 < seen["us"] / 2000 < 0.6


def test_regions_that_were_never_measured_are_used_in_their_order() -> None:
    assert World(rtts={}).serve(1)["us"] == 1


def test_ordered_takes_the_first_healthy_one_however_far() -> None:
    world = World(region("ap"), region("us"), policy=Policy.ORDERED)
    assert world.serve(200)["ap"] == 200
    world.balancer.drain("ap", world.now, None)
    assert world.serve(200)["us"] == 200


def test_weighted_follows_the_weights() -> None:
    world = World(region("us", weight=1.0), region("ap", weight=3.0), policy=Policy.WEIGHTED)
    assert world.serve(2000)["ap"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_standby_waits_until_the_others_are_out() -> None:
    world = World(region("ap"), region("us", standby=True))
    assert world.serve(200)["ap"] == 200
    world.balancer.drain("ap", world.now, None)
    assert world.serve(200)["us"] == 200


def test_a_full_region_spills_to_the_next_and_full_ones_to_none() -> None:
    world = World(
        region("us", max_in_flight=2), region("eu", max_in_flight=2), region("ap", max_in_flight=1, standby=True)
    )
    picked = []
    for _ in range(5):
        endpoint = world.balancer.pick(world.now)
        assert endpoint is not None
        world.balancer.begin(endpoint, world.now)
        picked.append(endpoint.region.name)
    assert picked == ["us", "us", "eu", "eu", "ap"]
    assert world.balancer.pick(world.now) is None
    assert world.balancer.retry_after(world.now) >= 1.0
    world.balancer.finish(world.endpoint("eu"), world.now, Outcome.OK, 0.081)
    assert world.balancer.pick(world.now) is world.endpoint("eu")


def test_a_burst_on_an_idle_upstream_stays_in_the_nearest_region() -> None:
    world = World()
    world.serve(100)
    for _ in range(50):
        endpoint = world.balancer.pick(world.now)
        assert endpoint is not None
        assert endpoint.region.name == "us"
        world.balancer.begin(endpoint, world.now)


def test_a_region_that_slows_down_under_its_load_passes_the_rest_on() -> None:
    world = World()
    world.serve(500)
    busy = [world.balancer.pick(world.now) for _ in range(60)]
    for endpoint in busy:
        assert endpoint is not None
        world.balancer.begin(endpoint, world.now)
    world.wait(0.5)
    found = world.balancer.pick(world.now)
    assert found is not None
    assert found.region.name == "eu"


def test_two_choices_prefer_the_less_loaded_endpoint() -> None:
    world = World(region("us", 2))
    busy, idle = world.endpoint("us", 0), world.endpoint("us", 1)
    for _ in range(5):
        world.balancer.begin(busy, world.now)
    assert all(world.balancer.pick(world.now) is idle for _ in range(20))


def test_a_slow_endpoint_is_avoided_and_tried_again_later() -> None:
    world = World(region("us", 2))
    slow = world.endpoint("us", 0)
    world.end(slow, elapsed=1.0)
    assert world.balancer.pick(world.now) is world.endpoint("us", 1)
    for _ in range(100):
        world.wait(1.0)
        if world.balancer.pick(world.now) is slow:
            return
        world.end(world.endpoint("us", 1), elapsed=0.075)
    pytest.fail("it was never tried again")


def test_an_endpoint_without_a_warm_connection_is_avoided() -> None:
    world = World(region("us", 2))
    world.endpoint("us", 0).ready = 0
    assert all(world.balancer.pick(world.now) is world.endpoint("us", 1) for _ in range(20))


def test_a_session_stays_and_moves_only_when_its_region_goes() -> None:
    world = World(region("us", 3), region("eu", 3), rtts={"us": 0.060, "eu": 0.060})
    keys = [b"user-%d" % number for number in range(300)]
    before = {key: world.balancer.pick(world.now, key) for key in keys}
    assert before == {key: world.balancer.pick(world.now, key) for key in keys}
    world.balancer.drain("us", world.now, None)
    for key in keys:
        found, was = world.balancer.pick(world.now, key), before[key]
        assert found is not None
        assert was is not None
        assert found.region.name == "eu"
        if was.region.name == "eu":
            assert found is was


def test_failures_never_make_a_region_look_near() -> None:
    world = World(region("us"), region("ap"), rtts={"us": 0.060, "ap": 0.150}, drain=Drain(max_drained=0.0))
    world.serve(300)
    for _ in range(200):
        world.now += 0.01
        world.end(world.endpoint("ap"), Outcome.RESET, 0.0001)
    world.wait(0.3)
    assert world.serve(300)["us"] > 290


def test_six_lost_hedges_drain_a_region_at_once() -> None:
    world = World()
    world.serve(500)
    world.lose("us", 6)
    assert world.serve(50)["us"] == 0
    changes = world.balancer.tick(world.now) or []
    states = [(change.region, change.after) for change in changes]
    assert states == [] or states[-1][0] == "us"
    assert world.endpoint("us").region.state is DrainState.DRAINED


def test_what_lost_to_a_slower_winner_or_was_not_due_is_no_evidence() -> None:
    world = World()
    world.serve(500)
    endpoint = world.endpoint("us")
    for _ in range(20):
        world.now += 0.03
        world.end(endpoint, Outcome.HEDGE_LOST, 0.01)
        world.balancer.begin(endpoint, world.now)
        world.balancer.finish(endpoint, world.now, Outcome.HEDGE_LOST, 0.9, winner=1.0)
    assert endpoint.region.state is DrainState.HEALTHY
    assert endpoint.region.health.streak == 0


def test_clients_that_leave_are_no_evidence() -> None:
    world = World()
    world.serve(500)
    for _ in range(50):
        world.now += 0.03
        world.end(world.endpoint("us"), Outcome.CANCELLED, 30.0)
    assert world.endpoint("us").region.state is DrainState.HEALTHY


_NO_BELIEFS = ("region", "endpoints", "usable", "health", "counts", "survivors", "busy_since", "asked", "asked_since")


def _evidence(world: World) -> list[object]:
    """Everything that is believed of the endpoints and regions, but for where the objects are."""

    def values(state: object, *but: str) -> dict[str, object]:
        found = {name: getattr(state, name) for name in dir(type(state)) if name[:2] != "__" and name not in but}
        return {name: value for name, value in found.items() if not callable(value)}

    return [
        [
            values(endpoint, "region", "outlier", "floor", "service", "endpoint", "pool"),
            values(endpoint.outlier),
            values(endpoint.service),
            values(endpoint.floor),
            values(endpoint.region, *_NO_BELIEFS),
            values(endpoint.region.health),
            list(endpoint.region.counts.shares()),
        ]
        for endpoint in world.balancer.endpoints
    ]


@pytest.mark.parametrize("elapsed", [0.0, 0.061, 5.0])
@pytest.mark.parametrize("trouble", ["none", "a streak", "a trial"])
def test_what_the_client_or_the_proxy_caused_changes_no_belief(elapsed: float, trouble: str) -> None:
    world = World(region("us", 2), region("eu"))
    world.serve(200)
    suspect = world.endpoint("us", 1)
    if trouble == "a streak":
        world.end(suspect, Outcome.RESET)
    elif trouble == "a trial":
        suspect.outlier.eject(world.now, "test", 0.5)
        world.wait(10.0)
        assert suspect.outlier.state is OutlierState.HALF_OPEN
    before = _evidence(world)
    for _ in range(50):
        world.now += 0.03
        for endpoint in world.balancer.endpoints:
            world.end(endpoint, Outcome.NEUTRAL, elapsed, 503)
    assert _evidence(world) == before
    assert {region.state for region in world.balancer.regions} == {DrainState.HEALTHY}


def test_the_applications_own_errors_drain_no_region() -> None:
    world = World()
    for _ in range(100):
        world.now += 0.03
        world.end(world.endpoint("us"), Outcome.ERROR_STATUS, 0.061, 500)
    world.wait(0.2)
    assert world.endpoint("us").region.state is DrainState.HEALTHY


def test_a_region_that_answers_503_now_and_then_gets_less_not_nothing() -> None:
    world = World()
    world.serve(300)
    for _ in range(60):
        world.now += 0.03
        world.end(world.endpoint("us"), Outcome.ERROR_STATUS, 0.061, 503)
        world.end(world.endpoint("us"))
        world.end(world.endpoint("us"))
    world.wait(0.2)
    seen = world.serve(200)
    assert world.endpoint("us").region.state is DrainState.HEALTHY
    assert 20 < seen["us"] < 180


def test_a_bad_tail_moves_requests_to_a_region_without_one() -> None:
    """2 % of us's answers late: the mean of its slowest 3 % is beyond eu's, although its median is not."""
    world = World()
    world.serve(500)
    for _ in range(10):
        world.serve(49)
        world.end(world.endpoint("us"), Outcome.HEDGE_LOST, 0.125)
    seen = world.serve(100)
    assert seen["eu"] > 50
    assert world.endpoint("us").region.state is DrainState.HEALTHY


def test_hedges_of_isolated_slow_answers_stay_near_and_leave_what_looks_dead() -> None:
    world = World()
    world.serve(500)
    us, eu = world.endpoint("us"), world.endpoint("eu")
    assert world.balancer.pick_alternate(world.now, [us], True) is us, "another connection of the nearest region"
    world.lose("us", 1)
    assert world.balancer.pick_alternate(world.now, [us], True) is eu
    world.end(us)
    assert world.balancer.pick_alternate(world.now, [us, us], True) is eu, "two tries in one region are enough"


def test_hedges_leave_a_region_whose_answers_stopped() -> None:
    world = World()
    world.serve(500)
    us = world.endpoint("us")
    for _ in range(6):
        world.balancer.begin(us, world.now)
    world.now += 0.09
    assert world.balancer.pick_alternate(world.now, [us], True) is us
    world.now += 0.03
    assert world.balancer.pick_alternate(world.now, [us], True) is world.endpoint("eu")


def test_hedges_go_to_warm_connections_only() -> None:
    world = World()
    world.lose("us", 1)
    world.endpoint("eu").ready = 0
    assert world.balancer.pick_alternate(world.now, [world.endpoint("us")], True) is not world.endpoint("eu")
    for endpoint in world.balancer.endpoints:
        endpoint.ready = 0
    assert world.balancer.pick_alternate(world.now, [world.endpoint("us")], True) is None
    assert world.balancer.pick_alternate(world.now, [world.endpoint("us")], False) is not None


def test_another_endpoint_of_the_region_is_preferred_to_the_same_one() -> None:
    world = World(region("us", 2), region("eu"))
    first, second = world.endpoint("us", 0), world.endpoint("us", 1)
    assert world.balancer.pick_alternate(world.now, [first], True) is second
    assert world.balancer.pick_alternate(world.now, [first], False) is second


def test_retry_after_is_honoured_for_second_attempts() -> None:
    world = World(region("us"))
    us = world.endpoint("us")
    world.balancer.begin(us, world.now)
    world.balancer.finish(us, world.now, Outcome.ERROR_STATUS, 0.061, 503, retry_after=7.0)
    assert world.balancer.pick_alternate(world.now, [us], False) is None
    assert world.balancer.retry_after(world.now) == 7.0
    world.wait(7.1)
    assert world.balancer.pick_alternate(world.now, [us], False) is us


def test_the_hedge_delay_is_the_healthy_p95_past_the_primarys_floor() -> None:
    world = World()
    world.serve(1000, service=0.002)
    us, ap = world.endpoint("us"), world.endpoint("ap")
    delay = world.balancer.hedge_delay(world.now, us)
    assert delay is not None
    assert 0.0625 < delay < 0.067
    far = world.balancer.hedge_delay(world.now, ap)
    assert far is not None
    assert 0.152 < far < 0.165, "the same service time, past a longer path"


def test_the_second_hedge_is_due_only_where_the_first_stayed_in_the_region() -> None:
    world = World()
    world.serve(500)
    us, eu = world.endpoint("us"), world.endpoint("eu")
    first = world.balancer.hedge_delay(world.now, us)
    again = world.balancer.hedge_delay(world.now, us, us)
    assert first is not None
    assert again == pytest.approx(2 * first)
    assert world.balancer.hedge_delay(world.now, us, eu) is None


def test_a_sick_region_does_not_raise_its_own_hedge_delay() -> None:
    world = World()
    world.serve(500)
    before = world.balancer.hedge_delay(world.now, world.endpoint("us"))
    for _ in range(600):
        world.now += 0.01
        world.end(world.endpoint("us"), elapsed=0.5)
        world.tick_if_due()
    assert world.endpoint("us").region.p95 > 0.4
    late = world.endpoint("us").region.late_after
    assert before is not None
    assert late < before * 1.1


def test_hedging_can_be_off_for_the_upstream_and_bounded_by_a_route() -> None:
    off = World(hedge=None)
    assert off.balancer.hedge_delay(off.now, off.endpoint("us")) is None
    assert not off.balancer.take_hedge(off.now)
    world = World()
    bounded = world.balancer.hedge_delay(world.now, world.endpoint("us"), settings=Hedge(max_delay=0.02))
    assert bounded == 0.02


def test_budgets_of_routes_are_kept_by_their_settings() -> None:
    world = World()
    tight = world.balancer.budget(Hedge(budget=0.01), Retry(), world.now)
    assert world.balancer.budget(Hedge(budget=0.01), Retry(), world.now) is tight
    assert world.balancer.budget(Hedge(), Retry(), world.now) is not tight
    while world.balancer.take_hedge(world.now, tight):
        pass
    assert world.balancer.take_hedge(world.now)


def test_max_drained_keeps_half_of_the_regions_in() -> None:
    world = World(region("us"), region("eu"))
    world.show("us", "eu")
    world.lose("us", 10)
    world.lose("eu", 30)
    states = {found.name: found.state for found in world.balancer.regions}
    assert states == {"us": DrainState.DRAINED, "eu": DrainState.SUSPECT}
    assert world.serve(10)["eu"] == 10


def test_a_single_region_is_never_drained_by_evidence() -> None:
    world = World(region("us"))
    world.show("us")
    world.lose("us", 50)
    world.wait(2.0)
    assert world.endpoint("us").region.state is DrainState.SUSPECT
    assert world.serve(10)["us"] == 10


def test_when_all_are_out_the_least_bad_takes_it() -> None:
    world = World(drain=Drain(max_drained=1.0))
    world.show(*RTTS)
    for name in RTTS:
        world.lose(name, 8)
    assert {found.state for found in world.balancer.regions} == {DrainState.DRAINED}
    assert world.balancer.pick(world.now) is not None


def test_an_operators_drain_is_not_overruled_by_failing_open() -> None:
    world = World(region("us"), region("eu"), drain=Drain(max_drained=1.0))
    world.balancer.drain("us", world.now, None)
    world.lose("eu", 8)
    assert world.serve(20)["eu"] == 20
    world.balancer.drain("eu", world.now, None)
    assert world.balancer.pick(world.now) is not None, "there is nothing else"


def test_drains_of_unknown_regions_are_refused() -> None:
    world = World()
    with pytest.raises(KeyError):
        world.balancer.drain("mars", world.now, None)
    with pytest.raises(KeyError):
        world.balancer.undrain("mars", world.now)


def test_probes_are_wanted_where_something_is_wrong_and_once_a_second() -> None:
    world = World()
    world.serve(100)
    assert world.balancer.probes_wanted(world.now) == []
    world.lose("us", 1)
    us = world.endpoint("us")
    assert world.balancer.probes_wanted(world.now) == [us]
    assert world.balancer.probes_wanted(world.now + 0.1) == []
    assert world.balancer.probes_wanted(world.now + 1.3) == [us]


def test_failed_probes_confirm_a_suspicion_without_requests() -> None:
    world = World()
    world.serve(100)
    world.lose("us", 1)
    for _ in range(6):
        world.wait(0.5)
        world.balancer.observe_probe(world.endpoint("us"), world.now, False, 1.0)
    assert world.endpoint("us").region.state is DrainState.DRAINED


def test_a_region_whose_endpoints_fail_their_checks_is_drained_and_comes_back() -> None:
    world = World(region("us", 2), region("eu"))
    for _ in range(3):
        world.wait(0.5)
        for index in range(2):
            world.balancer.observe_probe(world.endpoint("us", index), world.now, False, 1.0)
    world.wait(0.2)
    assert world.endpoint("us").region.state is DrainState.DRAINED
    assert world.serve(50)["eu"] == 50
    for _ in range(60):
        world.wait(0.5)
        for index in range(2):
            world.balancer.observe_probe(world.endpoint("us", index), world.now, True, 0.06)
    assert world.endpoint("us").region.state in {DrainState.RAMPING, DrainState.HEALTHY}
    assert world.endpoint("us", 1) in world.endpoint("us").region.usable


def test_a_dead_endpoint_is_ejected_while_its_region_serves() -> None:
    world = World(region("us", 4), region("eu"))
    dead = world.endpoint("us", 0)
    for _ in range(8):
        world.now += 0.05
        world.end(dead, Outcome.CONNECT_FAILED, 0.06)
        for index in (1, 2, 3):
            world.end(world.endpoint("us", index))
    world.wait(0.1)
    assert dead.ejected_until > world.now
    assert dead not in world.endpoint("us").region.usable
    assert world.endpoint("us").region.state is DrainState.HEALTHY


def test_a_blackholed_endpoint_is_ejected_while_others_answer() -> None:
    world = World(region("us", 2), region("eu"))
    silent, answering = world.endpoint("us", 0), world.endpoint("us", 1)
    for _ in range(25):
        world.wait(0.1)
        world.end(answering)
        world.balancer.observe_unanswered(silent, world.now, world.now - 100.0)
    assert silent not in silent.region.usable
    assert silent.region.state is DrainState.HEALTHY


def test_open_connections_count_but_are_no_sign_of_trouble() -> None:
    world = World()
    us = world.endpoint("us")
    for _ in range(100):
        world.now += 0.05
        world.balancer.count_request(world.now)
        world.balancer.begin(us, world.now)
        world.balancer.established(us, world.now, 0.061)
    world.wait(30.0)
    assert (us.in_flight, us.region.in_flight) == (100, 100)
    found = world.balancer.pick(world.now)
    assert found is us
    for _ in range(100):
        world.balancer.closed(us)
    assert (us.in_flight, us.held, us.region.in_flight, us.region.held) == (0, 0, 0, 0)


def test_waiting_is_counted_from_the_first_request_that_waits_beside_open_connections() -> None:
    world = World()
    world.serve(500)
    us = world.endpoint("us")
    world.balancer.begin(us, world.now)
    world.balancer.established(us, world.now, 0.061)
    world.wait(60.0)
    for _ in range(20):
        world.balancer.begin(us, world.now)
    assert not us.region.quiet(world.now + 0.05)
    world.wait(0.1)
    assert us.region.limit == us.region.max_in_flight


def test_a_reload_keeps_what_was_learnt_and_what_is_in_flight() -> None:
    world = World(region("us", 2), region("eu"), drain=Drain(hold=10.0))
    world.serve(500)
    world.lose("us", 7)
    old = world.balancer
    kept = world.endpoint("us", 0)
    old.begin(kept, world.now)
    regions = (region("us", 3), region("ap"))
    world.balancer = Balancer(Upstream("api", regions, drain=Drain(hold=20.0)), random.Random(2), world.now)
    world.balancer.carry_over(old, world.now)
    assert world.endpoint("us", 0) is kept
    assert (kept.region.in_flight, kept.region.state) == (1, DrainState.DRAINED)
    assert kept.region.health.settings.hold == 20.0
    assert kept.region.p95 > 0
    old.finish(kept, world.now, Outcome.OK, 0.061)
    assert (kept.in_flight, kept.region.in_flight) == (0, 0)
    assert world.endpoint("us", 2).floor.value == 0.0


def test_what_a_reload_took_away_says_nothing_of_its_region() -> None:
    """It is being shut down: its last requests break, and the endpoints that stay are well."""
    world = World(region("us", 2), region("eu"))
    world.serve(200)
    old, gone = world.balancer, world.endpoint("us", 1)
    for _ in range(20):
        old.begin(gone, world.now)
    world.balancer = Balancer(Upstream("api", (region("us", 1), region("eu"))), random.Random(2), world.now)
    world.balancer.carry_over(old, world.now)
    for _ in range(20):
        world.wait(0.1)
        world.balancer.finish(gone, world.now, Outcome.RESET, 0.1)
        world.balancer.observe_connect(gone, world.now, False, 0.0, "tcp")
        world.balancer.observe_probe(gone, world.now, False, 0.1)
    assert world.region("us").state is DrainState.HEALTHY
    assert gone.in_flight == 0
    assert world.region("us").in_flight == 0


def test_it_explains_itself_in_plain_values() -> None:
    world = World(region("us"), region("eu"), region("ap", standby=True))
    world.serve(300)
    world.balancer.drain("us", world.now, world.now + 60.0)
    rows = report.explain(world.balancer, world.now, b"user")
    assert [row["region"] for row in rows] == ["eu", "us", "ap"]
    assert rows[0]["session"] is True
    assert "operator for another 60 s" in rows[1]["why"]
    assert "standby" in rows[2]["why"]
    snapshot = report.snapshot(world.balancer, world.now)
    json.dumps([rows, snapshot])
    assert [row["state"] for row in snapshot["regions"]] == ["drained", "healthy", "healthy"]
    assert snapshot["regions"][0]["rtt_ms"] == pytest.approx(60.0, abs=0.1)


def test_reprs_are_worth_reading() -> None:
    world = World()
    assert repr(world.balancer) == "<Balancer api: us healthy 1.00, eu healthy 0.00, ap healthy 0.00>"
    assert "us-0:443 in us: 0 in flight, 8 ready, rtt 60.0 ms, ok" in repr(world.endpoint("us"))
    assert "us healthy: weight 1.00" in repr(world.endpoint("us").region)


OUTCOMES = [*Outcome]
steps = st.lists(
    st.tuples(st.sampled_from(("pick", "alternate", "end", "tick", "probe", "unanswered", "drain", "undrain")),
              st.integers(0, 5), st.sampled_from(OUTCOMES)), max_size=120,
)  # fmt: skip


@given(steps, st.integers(0, 2**16), st.sampled_from((0.0, 0.5, 1.0)))
@settings(max_examples=60)
def test_whatever_happens_counts_stay_right_and_somebody_takes_requests(
    script: list[tuple[str, int, Outcome]], seed: int, max_drained: float
) -> None:
    world = World(
        region("us", 2), region("eu"), region("ap", standby=True), seed=seed, drain=Drain(max_drained=max_drained)
    )
    balancer, flying = world.balancer, []
    for what, number, outcome in script:
        world.now += 0.03
        endpoint = balancer.endpoints[number % len(balancer.endpoints)]
        match what:
            case "pick":
                found = balancer.pick(world.now, b"key" if number == 0 else None)
                assert found is not None
                balancer.begin(found, world.now)
                flying.append((found, world.now))
            case "alternate" if flying:
                again = balancer.pick_alternate(world.now, [flying[-1][0]], number % 2 == 0)
                if again is not None:
                    balancer.begin(again, world.now)
                    flying.append((again, world.now))
            case "end" if flying:
                ended, since = flying.pop(number % len(flying))
                balancer.finish(ended, world.now, outcome, world.now - since, 503, retry_after=float(number))
            case "tick":
                world.wait(0.1 * (1 + 10 * number))
            case "probe":
                balancer.observe_probe(endpoint, world.now, number % 2 == 0, 0.06)
            case "unanswered":
                balancer.observe_unanswered(endpoint, world.now, float(number))
            case "drain":
                balancer.drain(endpoint.region.name, world.now, world.now + number)
            case "undrain":
                balancer.undrain(endpoint.region.name, world.now)
    world.wait(0.1)
    assert sum(found.weight for found in balancer.regions) == pytest.approx(1.0)
    assert sum(e.in_flight for e in balancer.endpoints) == len(flying)
    assert [found.in_flight for found in balancer.regions] == [
        sum(e.in_flight for e in found.endpoints) for found in balancer.regions
    ]
    json.dumps(report.snapshot(balancer, world.now))
