"""A balancer with a clock of its own, for the tests of routing: requests that are answered at once, probes, time."""

import random
from collections import Counter

from routing.balancer import Balancer, EndpointState, Outcome
from routing.model import Endpoint, Region, Upstream
from routing.state import RegionState

TICK_S = 0.1
RTTS = {"us": 0.060, "eu": 0.080, "ap": 0.150}


def region(name: str, endpoints: int = 1, **settings: object) -> Region:
    return Region(name, tuple(Endpoint(f"{name}-{index}", 443) for index in range(endpoints)), **settings)  # type: ignore[arg-type]


class World:
    """A balancer, its clock, and requests that are answered at once."""

    def __init__(self, *regions: Region, rtts: dict[str, float] = RTTS, seed: int = 1, **settings: object) -> None:
        regions = regions or tuple(region(name) for name in RTTS)
        self.now = self.ticked = 100.0
        self.rng = random.Random(seed)
        self.balancer = Balancer(Upstream("api", regions, **settings), self.rng, self.now)  # type: ignore[arg-type]
        for endpoint in self.balancer.endpoints:
            endpoint.ready = 8
            if endpoint.region.name in rtts:
                self.balancer.observe_rtt(endpoint, self.now, rtts[endpoint.region.name])
        self.wait(0.1)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + TICK_S, end)
            self.tick()

    def tick_if_due(self) -> None:
        if self.now >= self.ticked + TICK_S:
            self.tick()

    def tick(self) -> None:
        self.ticked = self.now
        self.balancer.tick(self.now)

    def region(self, name: str) -> RegionState:
        return next(found for found in self.balancer.regions if found.name == name)

    def endpoint(self, name: str, index: int = 0) -> EndpointState:
        return next(e for e in self.balancer.endpoints if e.region.name == name and e.index == index)

    def end(
        self, endpoint: EndpointState, outcome: Outcome = Outcome.OK, elapsed: float = 0.0, status: int = 0
    ) -> None:
        self.balancer.begin(endpoint, self.now)
        self.balancer.finish(endpoint, self.now, outcome, elapsed or endpoint.floor.value + 0.001, status)

    def serve(self, count: int, every: float = 0.01, service: float = 0.001) -> Counter[str]:
        """Requests that are answered before the next one comes: where they went."""
        seen: Counter[str] = Counter()
        for _ in range(count):
            self.now += every
            self.tick_if_due()
            self.balancer.count_request(self.now)
            endpoint = self.balancer.pick(self.now)
            assert endpoint is not None
            seen[endpoint.region.name] += 1
            self.end(endpoint, elapsed=endpoint.floor.value + service * self.rng.uniform(0.5, 1.5))
        return seen

    def show(self, *names: str) -> None:
        """Regions answer some requests, as they usually do."""
        for name in names:
            for _ in range(20):
                self.now += 0.01
                self.end(self.endpoint(name))
        self.wait(1.1)

    def lose(self, name: str, count: int) -> None:
        for _ in range(count):
            self.now += 0.03
            self.end(self.endpoint(name), Outcome.HEDGE_LOST, 0.2)


def tries(world: World, count: int, warm_only: bool = False) -> list[EndpointState]:
    """The endpoints of one request whose every try is reset."""
    found = world.balancer.pick(world.now)
    tried: list[EndpointState] = []
    while found is not None and len(tried) < count:
        tried.append(found)
        world.now += 0.03
        world.end(found, Outcome.RESET)
        found = world.balancer.pick_alternate(world.now, tried, warm_only)
    return tried
