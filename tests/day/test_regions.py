"""Regions and endpoints come and go: added, removed, renamed, replaced, killed, drained, all under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .client import H1Client
from .keys import ask
from .origin import Origin
from .program import until
from .town import Config, Town, region, set_at

REGIONS = "upstreams.app.regions"


async def test_regions_come_and_go(tmp_path: Path, workers: int) -> None:
    """Added, then the only one, then renamed, then all back."""
    async with Town(tmp_path, workers=workers) as town:
        fresh = await Origin("fresh").start()
        town.add(fresh)
        first = {"fresh": region(fresh), **town.config["upstreams"]["app"]["regions"]}
        await town.change(set_at(REGIONS, first))
        assert await town.leads("fresh")
        await town.change(set_at(REGIONS, {"fresh": region(fresh)}))
        await town.traffic.more()
        await town.change(set_at(REGIONS, {"renamed": region(fresh)}))
        assert await town.leads("fresh")
        assert (await town.program.region("renamed"))["state"] == "healthy"
        await town.change(set_at(REGIONS, town.config["upstreams"]["app"]["regions"]))
        assert await town.leads("near")
        await until(lambda: not fresh.connections, "connections to a region that is gone are closed")


async def test_an_endpoint_is_replaced(tmp_path: Path, workers: int) -> None:
    """As a deployment does it: the new one beside the old one, then alone; a long request on the old one finishes."""
    async with Town(tmp_path, workers=workers) as town:
        fresh = await Origin("fresh").start()
        town.add(fresh)
        held = asyncio.ensure_future(ask(town, "/held"))
        await until(lambda: town.near.seen_at("/held"), "the long request is at the old endpoint")
        await town.change(set_at(f"{REGIONS}.near.endpoints", [town.near.endpoint, fresh.endpoint]))
        assert await town.leads("fresh")  # the old one is busy with the long request
        await town.change(set_at(f"{REGIONS}.near.endpoints", [fresh.endpoint]))
        assert await town.leads("fresh")
        town.near.release.set()
        assert (await held).headers["x-origin"] == "near"
        await until(lambda: not town.near.connections, "connections to the old endpoint are closed")


async def test_an_endpoint_moves_to_another_region(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        moved = {"near": region(town.mid), "mid": region(town.near), "far": region(town.far)}
        await town.change(set_at(REGIONS, moved))
        assert await town.leads("mid")


async def test_a_region_is_drained_and_let_back(tmp_path: Path, workers: int) -> None:
    """By the operator; and a reload of something else forgets nothing of it."""
    async with Town(tmp_path, workers=workers, edit=set_at("upstreams.app.drain", {"ramp": "200ms"})) as town:
        await town.program.post("/drain", region="near")
        assert (await town.traffic.sample())["near"] == 0
        await town.change(set_at("upstreams.app.timeouts.response", "16s"))
        assert (await town.traffic.sample())["near"] == 0, "a reload forgot the operator's drain"
        await town.change(set_at("limits.headers", 100))
        assert (await town.traffic.sample())["near"] == 0, "a reload forgot the operator's drain"
        await town.program.post("/undrain", region="near")
        await until(lambda: _all_near(town), "traffic is back")


async def _all_near(town: Town) -> bool:
    return await town.leads("near", 20)


async def test_an_origin_dies_and_comes_back(tmp_path: Path, workers: int) -> None:
    """What was at the dead origin and may not be repeated is lost; nothing else is."""

    def edit(config: Config) -> None:
        config["upstreams"]["app"]["drain"] = {"hold": "200ms", "ramp": "200ms"}
        config["upstreams"]["app"]["health"] = {"path": "/health", "interval": "100ms"}

    async with Town(tmp_path, workers=workers, edit=edit) as town:
        town.traffic.excuse = lambda failure: failure.method in ("POST", "PUT") and failure.text.startswith("502")
        for _ in range(2):
            await town.near.stop()
            await town.traffic.more(120)
            assert (await town.traffic.sample())["near"] == 0
            await town.near.start()
            await until(lambda: _all_near(town), "traffic is back")
        assert len(town.traffic.excused) <= 8, [str(one) for one in town.traffic.excused]


async def test_one_of_two_endpoints_dies(tmp_path: Path, workers: int) -> None:
    """The region stays, and after an operator's drain it comes back, though one endpoint of it is gone."""
    async with Town(tmp_path, workers=workers, edit=set_at("upstreams.app.drain", {"ramp": "200ms"})) as town:
        twin = await Origin("twin").start()
        town.add(twin)
        await town.change(set_at(f"{REGIONS}.near.endpoints", [town.near.endpoint, twin.endpoint]))
        await town.traffic.more()
        town.traffic.excuse = lambda failure: failure.method in ("POST", "PUT") and failure.text.startswith("502")
        await twin.stop()
        await town.traffic.more(100)
        town.traffic.excuse = None
        await until(lambda: _all_near(town), "the region serves with the endpoint that it has")
        await town.program.post("/drain", region="near")
        assert (await town.traffic.sample())["near"] == 0
        await town.program.post("/undrain", region="near")
        await until(lambda: _all_near(town), "the region is back with the endpoint that it has")
        await twin.start()


async def test_upstreams_are_added_and_removed(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        fresh = await Origin("fresh").start()
        town.add(fresh)
        section = {"regions": {"fresh": region(fresh)}}
        await town.change(set_at("upstreams.fresh", section), set_at("listeners.0.upstream", "fresh"))
        assert await town.leads("fresh")
        await town.change(set_at("upstreams.app", None))
        await until(lambda: not town.near.connections, "connections of the upstream that is gone are closed")
        assert await town.leads("fresh")
        await town.program.reload(town.config)
        assert await town.leads("near")


async def test_waiting_requests_survive_a_reload(tmp_path: Path, workers: int) -> None:
    """More requests than connections: those that wait in the pool that a reload replaces are answered, too."""
    edit = set_at("upstreams.app.pool", {"max_connections": 2, "warm": 1})
    async with Town(tmp_path, workers=workers, edit=edit, rate=40) as town:
        for origin in (town.near, town.mid, town.far):
            origin.delay_s = 0.05
        calls = [asyncio.ensure_future(ask(town, "/slow/0.2", "POST")) for _ in range(6 * workers)]
        await until(lambda: town.near.seen_at("/slow/0.2"), "some are at an origin")
        await town.change(set_at("upstreams.app.timeouts.response", "16s"))
        answers = await asyncio.gather(*calls)
        assert [one.status for one in answers] == [200] * len(calls), [
            one.body for one in answers if one.status != 200
        ][:2]
        for origin in (town.near, town.mid, town.far):
            origin.delay_s = 0.0


async def test_a_kept_client_sees_every_change(tmp_path: Path, workers: int) -> None:
    """One connection that stays open all day is routed by the config of the day."""
    async with Town(tmp_path, workers=workers) as town:
        client = await H1Client.connect(town.program.port())
        for name, order in (("mid", ("mid", "near")), ("far", ("far", "near")), ("near", ("near", "mid"))):
            await town.change(set_at(REGIONS, {one: region(town.named(one)) for one in order}))
            answer = await client.request("GET", "/look")
            assert answer.headers["x-origin"] == name
        client.close()
