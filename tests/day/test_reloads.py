"""Reloads that meet each other, a drain, or a fault."""

from __future__ import annotations

import asyncio
import copy
import signal
from pathlib import Path

import pytest

from .keys import ask
from .origin import Origin
from .ports import free_port
from .program import AdminFault, until
from .town import Config, Town, region, set_at

RESPONSE = "upstreams.app.timeouts.response"


async def _reloads(town: Town) -> float:
    return await town.program.total("onetrip_config_reloads_total")


async def test_many_hang_ups_at_once(tmp_path: Path, workers: int) -> None:
    """The last file is what is served, however the signals fell."""
    async with Town(tmp_path, workers=workers) as town:
        for number in range(16, 28):
            config = town.edited(set_at(RESPONSE, f"{number}s"))
            town.program.write(config)
            town.program.signal(signal.SIGHUP)
            town.program.signal(signal.SIGHUP)
            await asyncio.sleep(0.005 * (number % 3))
        town.program.config = config

        async def settled() -> bool:
            return "response: 27s" in await town.program.get("/config")

        await until(settled, "the last file is in use")
        await town.traffic.more()
        assert not town.program.logged("config_refused")


async def test_reloads_by_signal_and_by_admin_at_once(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        for number in range(16, 22):
            config = town.edited(set_at(RESPONSE, f"{number}s"))
            town.program.write(config)
            town.program.signal(signal.SIGHUP)
            answers = await asyncio.gather(*(town.program.ask("POST", "/reload") for _ in range(3)))
            assert [status for status, _ in answers] == [200, 200, 200], answers
        town.program.config = config
        await town.traffic.more()


def _faults(town: Town) -> dict[str, Config]:
    """Files that are refused, some as late as a reload can be: a good change stands beside each fault."""
    moved = {"near": region(town.far)}
    good = town.edited(
        set_at("upstreams.app.regions", moved),
        set_at("limits.headers", 5),
        set_at("listeners.1", {"name": "extra", "address": f"127.0.0.1:{free_port()}", "upstream": "app"})
        if len(town.config["listeners"]) > 1
        else set_at("listeners", [*town.config["listeners"], _extra()]),
    )
    files = {}
    for name, path, value in (
        ("syntax of a duration", RESPONSE, "16"),
        ("an unknown key", "upstreams.app.timeouts.respnose", "16s"),
        ("a log in a directory that is gone", "access_log.path", "/nowhere/at/all.log"),
        ("a log that is a directory", "access_log.path", str(town.directory)),
        ("a certificate that is none", "upstreams.app.tls", {"ca": str(town.directory / "junk.pem")}),
        ("an address that is not ours", "listeners.1.address", "192.0.2.1:80"),
    ):
        files[name] = copy.deepcopy(good)
        set_at(path, value)(files[name])
    return files


def _extra() -> Config:
    return {"name": "extra", "address": f"127.0.0.1:{free_port()}", "upstream": "app"}


async def test_nothing_of_a_faulty_file_sticks(tmp_path: Path, workers: int) -> None:
    """Its faults are told; routes, listeners, limits and the log are as they were; the corrected file is taken."""
    async with Town(tmp_path, workers=workers) as town:
        (tmp_path / "junk.pem").write_text("no certificate")
        log = tmp_path / "access.log"
        for name, file in _faults(town).items():
            with pytest.raises(AdminFault) as refused:
                await town.program.reload(file)
            assert refused.value.status == 422, name
            assert refused.value.content["faults"], name
            assert await town.leads("near", 20), f"{name}: its regions are in use"
            names = [one["name"] for one in (await town.program.status())["listeners"]]
            assert names == ["web"], f"{name}: its listeners are open"
            wide = {f"x_field_{number}": "1" for number in range(20)}
            assert (await ask(town, **wide)).status == 200, f"{name}: its limits hold"
            mark = f"/after-{name.replace(' ', '-')}"
            await ask(town, mark)
            await until(lambda mark=mark: mark in log.read_text(), f"{name}: requests are logged")
            corrected = town.edited(set_at(RESPONSE, "17s"))
            await town.program.reload(corrected)
            await town.program.reload(town.config)


async def test_reload_while_a_region_is_drained_by_failures(tmp_path: Path, workers: int) -> None:
    """What routing had learnt of a dead region stays learnt: no request goes there to find out again."""

    def edit(config: Config) -> None:
        config["upstreams"]["app"]["health"] = {"path": "/health", "interval": "100ms"}

    async with Town(tmp_path, workers=workers, edit=edit) as town:
        town.traffic.excuse = lambda failure: failure.method in ("POST", "PUT") and failure.text.startswith("502")
        await town.near.stop()
        await town.traffic.more(100)
        town.traffic.excuse = None
        await town.change(set_at(RESPONSE, "16s"))
        await town.traffic.more(100)
        await town.near.start()


async def test_hang_up_during_the_shutdown(tmp_path: Path, workers: int) -> None:
    """SIGTERM has the last word; a held request is answered."""
    town = Town(tmp_path, workers=workers)
    await town.open()
    try:
        held = asyncio.ensure_future(ask(town, "/held"))
        await until(lambda: town.near.seen_at("/held"), "the request is at the origin")
        await town.traffic.stop()
        town.program.signal(signal.SIGTERM)
        await town.program.event("draining")
        town.program.write(town.edited(set_at(RESPONSE, "16s")))
        for _ in range(3):
            town.program.signal(signal.SIGHUP)
        await asyncio.sleep(0.2)
        town.near.release.set()
        assert (await held).status == 200
        assert await town.program.wait() == 0
        town._check_log()
        town.complain()
    finally:
        await town.close()


async def test_a_hundred_reloads_leave_nothing_behind(tmp_path: Path, workers: int) -> None:
    """A controller that rewrites the file all day: memory and descriptors stay, and so do the warm connections."""
    async with Town(tmp_path, workers=workers) as town:
        fresh = await Origin("fresh").start()
        town.add(fresh)
        ways = [{"near": region(town.near)}, {"near": region(fresh)}, town.config["upstreams"]["app"]["regions"]]
        for number in range(60):
            await town.change(set_at("upstreams.app.regions", ways[number % 3]))


async def test_what_did_not_change_keeps_its_connections(tmp_path: Path, workers: int) -> None:
    """A reload of one upstream leaves another one's pools as they are."""

    def edit(config: Config) -> None:
        config["upstreams"]["quiet"] = {**config["upstreams"]["app"]}
        config["listeners"].append({**_extra(), "upstream": "quiet"})

    async with Town(tmp_path, workers=workers, edit=edit) as town:
        before = {one.serial for one in town.far.connections}
        await town.change(set_at("upstreams.app.timeouts.response", "16s"))
        quiet = len(before) // 2
        assert len(before & {one.serial for one in town.far.connections}) >= quiet
