"""What happens to a proxy, and what is measured of it. `catalogue` has the list.

Every scenario starts the proxy anew and is a function of a `Run`; its figures are named in `Column`s, which also say
how several rounds become one figure. `Pace` holds all durations: a quick pace shows that everything works, its figures
are not for publication.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Literal

from . import evaluate
from .evaluate import Figures
from .load import Client, OpenLoop, Rate, Sample, burst
from .site import NEAREST, REGIONS, SECOND, Proxy, Site

LATE_SHARE: Final = 0.02
LATE_MS: Final = 1000.0
LOSS: Final = 0.02
SLOW_PATH_MS: Final = 400.0
CONNECTIONS: Final = 64
LEAD_S: Final = REGIONS[NEAREST] / 1e3 + 0.02
"""Requests due so long before a fault were still under way when it struck."""
_LOSERS_S: Final = 0.3  # until the last hedge has reached its origin
SETTLED: Final = 1.1
"""A fail-over is complete when the median is within so many round trips of the second region."""

Unit = Literal["rtt", "s", "count", "share"]
How = Literal["median", "mean"]


@dataclass(frozen=True, slots=True)
class Column:
    """A figure: its key in the results, its title, its unit, and what several rounds make of it."""

    key: str
    title: str
    unit: Unit = "rtt"
    how: How = "median"


@dataclass(frozen=True, slots=True)
class Pace:
    """Durations in seconds, rates a second, repetitions."""

    starts: int = 3
    warm_up: float = 10.0  # a proxy in use knows its regions and has earned its budgets
    trickle: float = 2.0
    steady: float = 15.0
    tail: float = 30.0
    idle: float = 8.0
    long_idle: float = 60.0
    fault: float = 6.0
    loss: float = 20.0
    after: float = 3.0
    back: float = 50.0
    rate: float = 100.0
    steady_rate: float = 200.0
    post_rate: float = 10.0
    burst: int = 50


QUICK: Final = Pace(
    starts=1,
    warm_up=2.0,
    trickle=0.8,
    steady=3.0,
    tail=5.0,
    idle=1.5,
    long_idle=3.0,
    fault=3.0,
    loss=4.0,
    after=1.0,
    back=10.0,
)


@dataclass(slots=True)
class Run:
    """One proxy in one scenario. `samples` are for plots: a fault began at `zero` and took `fault_s`.

    `windows`: when something was measured (time.monotonic).
    """

    site: Site
    proxy: Proxy
    pace: Pace
    samples: list[Sample] = field(default_factory=list)
    zero: float = 0.0
    fault_s: float = 0.0
    windows: list[tuple[float, float]] = field(default_factory=list)
    figures: Figures = field(default_factory=dict)

    async def started(self, connections: int = CONNECTIONS) -> Client:
        """Start the proxy; a client with open connections to it."""
        await self.proxy.start()
        client = self.proxy.client()
        await client.open(connections)
        return client


@dataclass(frozen=True, slots=True)
class Scenario:
    """`against`: the region whose round trip is the unit. `only`: the proxy knows this region alone."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    run: Callable[[Run], Awaitable[None]]
    against: str = NEAREST
    only: str = ""

    @property
    def rtt_ms(self) -> float:
        """What one round trip is here."""
        return REGIONS[self.against]


# First requests


async def _first(run: Run, client: Client) -> Figures:
    """The next request. A failed one has no latency."""
    began = monotonic()
    sample = await client.get()
    run.windows.append((began, monotonic()))
    return {"first_ms": float("nan") if sample.failed else sample.latency_ms, **evaluate.failures([sample])}


def _merged(parts: list[Figures]) -> Figures:
    """Medians of latencies, sums of failures."""
    keys = parts[0].keys()
    return {
        key: sum(part[key] for part in parts) if key.startswith("failed") else evaluate.median(p[key] for p in parts)
        for key in keys
    }


async def cold(run: Run) -> None:
    """The first request of a process, sent the moment it says that it is ready."""
    parts: list[Figures] = []
    for _ in range(run.pace.starts):
        client = await run.started(1)
        first = await _first(run, client)
        client.close()
        await run.proxy.stop()
        parts.append({**first, "ready_s": run.proxy.started_in_s})
    run.figures = _merged(parts)


async def restart(run: Run) -> None:
    """The first request after a restart; then what a restart under load costs those who come meanwhile."""
    client = await run.started(1)
    await client.get()
    client.close()
    await run.proxy.stop()
    client = await run.started(1)
    first = await _first(run, client)
    load = OpenLoop(client, [Rate(run.pace.rate / 2)])
    await asyncio.sleep(run.pace.trickle)
    await run.proxy.stop()
    await run.proxy.start()
    await asyncio.sleep(run.pace.after)
    samples = await load.stop()
    client.close()
    run.samples = samples
    refused = evaluate.failures(samples)["failed_get"]
    run.figures = {**first, "refused": refused, "ready_s": run.proxy.started_in_s}


async def _idle(run: Run, idle_s: float, origin_keeps_s: float) -> None:
    for origin in run.site.origins.values():
        await origin.set(close_idle_s=origin_keeps_s)
    client = await run.started(1)
    load = OpenLoop(client, [Rate(10)])
    await asyncio.sleep(run.pace.trickle)
    await load.stop()
    await asyncio.sleep(idle_s)
    run.figures = await _first(run, client)
    client.close()


async def idle(run: Run) -> None:
    """A request half a second after the origins closed idle connections."""
    await _idle(run, run.pace.idle + 0.5, run.pace.idle)


async def long_idle(run: Run) -> None:
    """A request after a minute of silence, on connections that the origins keep a quarter longer."""
    await _idle(run, run.pace.long_idle, run.pace.long_idle * 1.25)


async def bursts(run: Run) -> None:
    """Many requests at one instant, through a proxy that has only seen a few."""
    parts: list[Figures] = []
    for _ in range(run.pace.starts):
        client = await run.started(run.pace.burst)
        load = OpenLoop(client, [Rate(5)])
        await asyncio.sleep(run.pace.trickle)
        await load.stop()
        await asyncio.sleep(0.5)
        began = monotonic()
        run.samples = await burst(client, run.pace.burst)
        run.windows.append((began, monotonic()))
        client.close()
        await run.proxy.stop()
        parts.append({**evaluate.latencies(run.samples), **evaluate.failures(run.samples)})
    run.figures = _merged(parts)


async def single(run: Run) -> None:
    """One region: the first request, a burst, and a request after the origin closed idle connections."""
    pace = run.pace
    await _idle(run, pace.idle + 0.5, pace.idle)
    after_idle = run.figures
    await run.proxy.stop()
    client = await run.started(pace.burst)
    first = await _first(run, client)
    await asyncio.sleep(1.0)
    samples = await burst(client, pace.burst)
    client.close()
    run.figures = {**first, "idle_ms": after_idle["first_ms"], **evaluate.latencies(samples)}
    run.figures |= evaluate.failures(samples)
    run.figures["failed_get"] += after_idle["failed_get"] + first["failed_get"]


# Under load


async def _window(run: Run, rate: float, seconds: float, begin: Callable[[], Awaitable[object]]) -> None:
    """Figures of a while after `begin`, and the requests that reached the origins in it."""
    client = await run.started(CONNECTIONS)
    before = await run.site.requests()
    load = OpenLoop(client, [Rate(rate)])
    await asyncio.sleep(run.pace.warm_up)
    await begin()
    since = monotonic()
    await asyncio.sleep(seconds)
    everything = await load.stop()
    await asyncio.sleep(_LOSERS_S)
    reached = sum((await run.site.requests()).values()) - sum(before.values())
    client.close()
    run.samples = samples = evaluate.between(everything, since, since + seconds)
    run.windows.append((since, since + seconds))
    run.figures = {**evaluate.latencies(samples), **evaluate.failures(samples)}
    # Counted over the whole load, so that no request crosses an edge; all that is extra belongs to the window.
    run.figures["extra"] = (reached - len(everything)) / max(1, len(samples))
    run.figures["nearest"] = evaluate.regions(samples).get(NEAREST, 0) / max(1, len(samples))


async def steady(run: Run) -> None:
    """An even load, nothing wrong."""

    async def nothing() -> None:
        pass

    await _window(run, run.pace.steady_rate, run.pace.steady, nothing)


async def tail(run: Run) -> None:
    """Some of the nearest region's answers come late."""
    late = run.site.origins[NEAREST]
    await _window(run, run.pace.steady_rate, run.pace.tail, lambda: late.set(late_share=LATE_SHARE, late_ms=LATE_MS))


async def loss(run: Run) -> None:
    """The nearest region's path loses packets, both ways."""
    path = run.site.lab.path(NEAREST)
    await _window(run, run.pace.rate, run.pace.loss, lambda: path.set(loss=LOSS))


Change = Callable[[Site], Awaitable[object]]


async def _fault(run: Run, begin: Change, end: Change, *, after_s: float | None = None) -> None:
    client = await run.started(CONNECTIONS)
    load = OpenLoop(client, [Rate(run.pace.rate), Rate(run.pace.post_rate, "POST")])
    await asyncio.sleep(run.pace.warm_up)
    began = monotonic()
    await begin(run.site)
    await asyncio.sleep(began + run.pace.fault - monotonic())
    ended = monotonic()
    await end(run.site)
    await asyncio.sleep(run.pace.after if after_s is None else after_s)
    samples = await load.stop()
    client.close()
    run.samples, run.zero, run.fault_s = samples, began, ended - began
    run.windows.append((began, ended))
    run.figures = evaluate.fault(samples, began, ended, lead_s=LEAD_S, settled_ms=SETTLED * REGIONS[SECOND])
    run.figures |= {f"return_{key}": value for key, value in evaluate.returned(samples, ended, NEAREST).items()}


def _path(**values: float | bool) -> Change:
    return lambda site: site.lab.path(NEAREST).set(**values)


def _origin(**values: Any) -> Change:
    return lambda site: site.origins[NEAREST].set(**values)


async def blackhole(run: Run) -> None:
    """Nothing arrives on the nearest region's path, and nothing says so."""
    await _fault(run, _path(blackhole=True), _path(blackhole=False))


async def hang(run: Run) -> None:
    """The nearest region reads requests and answers none."""
    await _fault(run, _origin(hang=True), _origin(hang=False))


async def errors(run: Run) -> None:
    """The nearest region answers 30 % with a 503, then all, health checks too."""

    async def begin(site: Site) -> None:
        await site.origins[NEAREST].set(status=503, status_share=0.3)
        await asyncio.sleep(run.pace.fault / 2)
        await site.origins[NEAREST].set(status_share=1.0)

    await _fault(run, begin, _origin(status=0))


async def drops(run: Run) -> None:
    """The nearest region drops all connections with a RST, again and again, and takes new ones."""

    async def begin(site: Site) -> None:
        for _ in range(3):
            await site.origins[NEAREST].drop_connections()
            await asyncio.sleep(run.pace.fault / 4)

    await _fault(run, begin, _origin(reset=False))


async def resets(run: Run) -> None:
    """The nearest region answers every request with a RST."""
    await _fault(run, _origin(reset=True), _origin(reset=False))


async def refuse(run: Run) -> None:
    """The nearest region's process is gone: connections are dropped and new ones refused."""

    async def begin(site: Site) -> None:
        await site.origins[NEAREST].set(refuse=True)
        await site.origins[NEAREST].drop_connections()

    await _fault(run, begin, _origin(refuse=False))


async def slow_path(run: Run) -> None:
    """The nearest region's round trip becomes the farthest by far."""
    await _fault(run, _path(rtt_ms=SLOW_PATH_MS), _path(rtt_ms=REGIONS[NEAREST]))


async def back(run: Run) -> None:
    """A blackhole that ends: when does the traffic return, and does it cost anybody anything?"""
    await _fault(run, _path(blackhole=True), _path(blackhole=False), after_s=run.pace.back)
