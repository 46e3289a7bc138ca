"""Rows of what an upstream has, and of what a route overrides of it."""

from __future__ import annotations

import asyncio

from .keys import Row, answered, ask, from_origin, is_cut, mark, marked, raw, share, spilled, tried, within
from .program import until
from .streams import Socket
from .town import Edit, Town, set_at

APP = "upstreams.app."
ROUTE = "listeners.2.routes.0."


def app(key: str, value: object) -> Edit:
    """A change of the upstream that the traffic goes to."""
    return set_at(APP + key, value)


async def _version_2(town: Town) -> bool:
    name = mark()
    await ask(town, x_day=name)
    return any(one.version == "2" for one in marked(town, name))


async def _one_for_a_user(town: Town) -> bool:
    return len({(await ask(town, x_user="ada")).headers.get("x-origin") for _ in range(12)}) == 1


async def _warm(town: Town) -> bool:
    return len(town.far.connections) >= 6 * town.config["workers"]


async def _few_at_once(town: Town) -> bool:
    """Whether long requests queue for connections (each worker has its own)."""
    spare = town.named("spare")
    before = len(spare.seen)
    many = 8 * town.config["workers"]
    calls = [asyncio.ensure_future(ask(town, "/slow/0.4", "POST", listener="spare")) for _ in range(many)]
    await asyncio.sleep(0.25)
    at_once = len(spare.seen) - before
    await asyncio.gather(*calls)
    return at_once <= 2 * town.config["workers"]


async def _renewed(town: Town) -> bool:
    before = {one.serial for one in town.far.connections}
    await asyncio.sleep(1.5)
    return bool(before) and not before <= {one.serial for one in town.far.connections}


async def _pinged(town: Town) -> bool:
    before = town.far.pings
    await asyncio.sleep(1.5)
    return town.far.pings > before


async def _checked(town: Town, path: str, body: bytes = b"", least: int = 1) -> bool:
    before = len(town.far.seen)
    await asyncio.sleep(0.6)
    found = [one for one in town.far.seen[before:] if one.path == path and body in one.body]
    return len(found) >= least


async def _on_health_b(town: Town) -> bool:
    return await _checked(town, "/health-b")


async def _on_service_b(town: Town) -> bool:
    return await _checked(town, "/grpc.health.v1.Health/Check", b"bbb")


async def _checks_often(town: Town) -> bool:
    return await _checked(town, "/health", least=3)


async def _far_is_bad(town: Town) -> bool:
    far = await town.program.region("far")
    return far["state"] != "healthy" or any(one["state"] != "ok" for one in far["endpoints"])


async def _spread_told(town: Town) -> bool:
    """What the program says: on loopback a region without traffic has no known latency, so that shares would tell
    nothing. (That the spread moves shares is tested in `tests/routing/test_choice.py`.)"""
    return "spread: 100%" in await town.program.get("/config")


def _hedged_soon(listener: str) -> object:
    async def seen(town: Town) -> bool:
        name = mark()
        await ask(town, "/slow/0.2", listener=listener, x_day=name)
        times = sorted(one.at for one in marked(town, name))
        return len(times) > 1 and times[1] - times[0] < 0.1

    return seen


async def _state(town: Town, upstream: str, name: str = "one") -> str:
    return str((await town.program.region(name, upstream))["state"])


async def _let_back(town: Town, upstream: str) -> None:
    """Both regions take requests again."""
    for name in ("one", "two"):
        await town.program.post("/undrain", region=name, upstream=upstream)

        async def back(name: str = name) -> bool:
            return await _state(town, upstream, name) in ("healthy", "ramping")

        await until(back, f"{upstream}: region {name} is back")


async def _cuts(town: Town, upstream: str, count: int) -> None:
    """Requests that the origin answers with a reset, apart enough to be an event each."""
    for _ in range(count * town.config["workers"]):
        await ask(town, "/cut", "POST", listener=upstream)
        await asyncio.sleep(0.04)


async def _drained_at_once(town: Town) -> bool:
    town.named("after-2").cuts = False
    await _let_back(town, "after")
    await _cuts(town, "after", 4)
    return await _state(town, "after") == "drained"


async def _drain(town: Town, upstream: str) -> None:
    """Have region one drained: its origin cuts what the other region's answers."""
    town.named(f"{upstream}-2").cuts = False

    async def drained() -> bool:
        await _cuts(town, upstream, 1)
        return await _state(town, upstream) == "drained"

    await until(drained, f"{upstream}: region one is drained", 30)


async def _rests_briefly(town: Town) -> bool:
    await _let_back(town, "hold")
    await _drain(town, "hold")
    await asyncio.sleep(1.0)
    return await _state(town, "hold") != "drained"


async def _ramps_briefly(town: Town) -> bool:
    await town.program.post("/drain", region="one", upstream="ramp")
    await town.program.post("/undrain", region="one", upstream="ramp")
    for _ in range(20):
        await ask(town, listener="ramp")
        if await _state(town, "ramp") == "healthy":
            return True
        await asyncio.sleep(0.1)
    return False


async def _both_drained(town: Town) -> bool:
    await _let_back(town, "most")
    await _cuts(town, "most", 12)
    return [await _state(town, "most", name) for name in ("one", "two")] == ["drained", "drained"]


async def _upgrades_nothing(town: Town) -> bool:
    try:
        stream = await Socket.open(town.program.port("routes"))
    except (AssertionError, OSError, EOFError):
        return True
    await stream.close()
    return False


async def _connects(town: Town) -> bool:
    name = mark()
    head = f"CONNECT town.test:80 HTTP/1.1\r\nhost: town.test:80\r\nx-day: {name}\r\n\r\n".encode()
    await raw(town, "routes", head, 0.5)
    return any(one.method == "CONNECT" for one in marked(town, name))


WEIGHTED = app("routing.policy", "weighted")
CHECKS = {"path": "/health", "interval": "100ms", "timeout": "2s"}
SLOW = {**CHECKS, "path": "/health-slow"}
BRIEF = app("drain", {"hold": "100ms", "ramp": "100ms"})
UNHEDGED = (app("hedge", "off"),)  # tries of either kind are paid from the larger budget
VOID: tuple[Edit, ...] = (set_at("listeners.1.upstream", "void"),)

UPSTREAM = [
    Row("upstreams.*.protocol", "h2", _version_2),
    Row("upstreams.*.protocol", "h3", name="h3", refused="not available"),
    Row("upstreams.*.regions.*.endpoints", ["{spare}"], from_origin("spare")),
    Row("upstreams.*.regions.*.weight", 50, share("near", 45), first=(WEIGHTED,)),
    Row("upstreams.*.regions.*.standby", True, from_origin("mid")),
    Row("upstreams.*.regions.*.max_in_flight", 1, spilled),
    Row("upstreams.*.routing.policy", "weighted", share("far", 8)),
    Row("upstreams.*.routing.spread", "100%", _spread_told, stage="latency"),
    Row("upstreams.*.hedge.budget", "0%", tried(1, path="/slow/0.3")),
    Row("upstreams.*.hedge.min_delay", "900ms", tried(1, path="/slow/0.3")),
    Row("upstreams.*.hedge.max_delay", "20ms", _hedged_soon("web"), stage="latency"),
    Row("upstreams.*.retry.attempts", 0, tried(1, path="/status/503")),
    Row("upstreams.*.retry.budget", "0%", tried(1, path="/status/503"), first=UNHEDGED),
    Row("upstreams.*.retry.idempotency_key", True, tried(3, path="/status/503", method="POST", idempotency_key="k")),
    Row(
        "upstreams.*.timeouts.connect",
        "200ms",
        within(1.5, method="POST", listener="side"),
        path="upstreams.void.timeouts.connect",
        first=VOID,
    ),
    Row("upstreams.*.timeouts.response", "600ms", answered(504, path="/slow/1", method="POST")),
    Row("upstreams.*.timeouts.idle", "600ms", is_cut("/pause/1")),
    Row("upstreams.*.timeouts.total", "700ms", is_cut("/drip/10/0.1")),
    Row("upstreams.*.pool.warm", 6, _warm, first=(app("timeouts.idle", "1s"),)),
    Row("upstreams.*.pool.max_connections", 2, _few_at_once, path="upstreams.spare.pool.max_connections"),
    Row("upstreams.*.pool.max_age", "1s", _renewed),
    Row("upstreams.*.pool.keepalive", "1s", _pinged, first=(app("protocol", "h2"),)),
    Row("upstreams.*.health.path", "/health-b", _on_health_b, first=(app("health", CHECKS),)),
    Row(
        "upstreams.*.health.grpc",
        "bbb",
        _on_service_b,
        first=(app("protocol", "h2"), app("health", {"grpc": "aaa", "interval": "100ms"})),
    ),
    Row("upstreams.*.health.interval", "50ms", _checks_often, first=(app("health", {**CHECKS, "interval": "1m"}),)),
    Row("upstreams.*.health.timeout", "100ms", _far_is_bad, first=(BRIEF, app("health", SLOW)), stage="sick"),
    Row("upstreams.*.health.expect", "204", _far_is_bad, first=(BRIEF, app("health", CHECKS)), stage="sick"),
    Row("upstreams.*.drain.after", 1, _drained_at_once, path="upstreams.after.drain.after", stage="drains"),
    Row("upstreams.*.drain.hold", "100ms", _rests_briefly, path="upstreams.hold.drain.hold", stage="drains"),
    Row("upstreams.*.drain.ramp", "200ms", _ramps_briefly, path="upstreams.ramp.drain.ramp", stage="drains"),
    Row(
        "upstreams.*.drain.max_drained", "100%", _both_drained, path="upstreams.most.drain.max_drained", stage="drains"
    ),
    Row("upstreams.*.session_key", "header:x-user", _one_for_a_user, first=(WEIGHTED,)),
]

ROUTES = [
    Row("listeners[].routes[].upgrade", [], _upgrades_nothing),
    Row("listeners[].routes[].connect", True, _connects),
    Row("listeners[].routes[].match.host", "other.test", from_origin("spare", listener="routes")),
    Row("listeners[].routes[].match.path", "/only", from_origin("spare", listener="routes")),
    Row("listeners[].routes[].match.methods", ["POST"], from_origin("spare", listener="routes")),
    Row("listeners[].routes[].match.headers", {"x-tier": "gold"}, from_origin("spare", listener="routes")),
    Row("listeners[].routes[].upstream", "spare", from_origin("spare", listener="routes")),
    Row("listeners[].routes[].timeout", "200ms", answered(504, path="/slow/1", method="POST", listener="routes")),
    Row(
        "listeners[].routes[].timeouts.connect",
        "200ms",
        within(1.5, method="POST", listener="routes"),
        first=(set_at(ROUTE + "upstream", "void"),),
    ),
    Row(
        "listeners[].routes[].timeouts.response",
        "200ms",
        answered(504, path="/slow/1", method="POST", listener="routes"),
    ),
    Row("listeners[].routes[].timeouts.idle", "200ms", is_cut("/pause/1", "routes")),
    Row("listeners[].routes[].timeouts.total", "300ms", is_cut("/drip/10/0.1", "routes")),
    Row("listeners[].routes[].retry.attempts", 0, tried(1, path="/status/503", listener="routes")),
    Row("listeners[].routes[].retry.budget", "0%", tried(1, path="/status/503", listener="routes"), first=UNHEDGED),
    Row(
        "listeners[].routes[].retry.idempotency_key",
        True,
        tried(3, path="/status/503", method="POST", listener="routes", idempotency_key="k"),
    ),
    Row("listeners[].routes[].hedge.budget", "0%", tried(1, path="/slow/0.3", listener="routes")),
    Row("listeners[].routes[].hedge.min_delay", "900ms", tried(1, path="/slow/0.3", listener="routes")),
    Row("listeners[].routes[].hedge.max_delay", "20ms", _hedged_soon("routes"), stage="latency"),
]
ROUTES = [Row(**{**vars(one), "path": one.path or one.key.replace("listeners[]", "listeners.2")}) for one in ROUTES]
