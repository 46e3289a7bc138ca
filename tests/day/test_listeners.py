"""Listeners are added, removed, rebound and renamed with streams open."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from .client import H1Client
from .keys import ask
from .origin import EchoOrigin
from .ports import free_port
from .program import until
from .streams import Bytes, Chat, Socket
from .town import Config, Town, region, set_at


def _all_kinds(echo: EchoOrigin) -> object:
    def edit(config: Config) -> None:
        config["listeners"] += [
            {"name": "side", "address": f"127.0.0.1:{free_port()}", "upstream": "app"},
            {"name": "grpc", "address": f"127.0.0.1:{free_port()}", "upstream": "h2"},
            {"name": "bytes", "address": f"127.0.0.1:{free_port()}", "upstream": "echo", "protocol": "tcp"},
        ]
        config["upstreams"]["h2"] = {**config["upstreams"]["app"], "protocol": "h2"}
        config["upstreams"]["echo"] = {"protocol": "tcp", "regions": {"echo": region(echo)}}

    return edit


async def open_streams(town: Town) -> list[Socket | Chat | Bytes]:
    """One of each kind."""
    streams: list[Socket | Chat | Bytes] = [
        await Socket.open(town.program.port("side")),
        await Chat.open(town.program.port("grpc")),
        await Bytes.open(town.program.port("bytes")),
    ]
    for stream in streams:
        await stream.say("at first")
    return streams


@pytest.mark.parametrize("how", ["removed", "rebound", "renamed", "other upstream", "unrelated"])
async def test_streams_stay_open_while_their_listener_is(tmp_path: Path, workers: int, how: str) -> None:
    echo = EchoOrigin("echo")
    async with Town(tmp_path, workers=workers, edit=_all_kinds(echo)) as town:
        town.add(await echo.start())
        streams = await open_streams(town)
        config = town.edited()
        mine = config["listeners"][1:]
        if how == "removed":
            del config["listeners"][1:]
        elif how == "unrelated":
            config["limits"] = {"headers": 120}
        for listener in mine:
            if how == "rebound":
                listener["address"] = f"127.0.0.1:{free_port()}"
            elif how == "renamed":
                listener["name"] += "-2"
            elif how == "other upstream" and listener["name"] != "bytes":
                config["upstreams"]["app-2"] = config["upstreams"]["h2"]
                listener["upstream"] = "app-2"
        await town.program.reload(config)
        await town.traffic.more()
        for stream in streams:
            await stream.say("after the reload")
        await town.program.reload(town.config)
        for stream in streams:
            await stream.say("after the way back")
            await stream.close()


async def test_a_listener_is_added_and_removed(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        for _ in range(3):
            port = free_port()
            extra = {"name": "extra", "address": f"127.0.0.1:{port}", "upstream": "app"}
            await town.change(set_at("listeners", [*town.config["listeners"], extra]))
            assert (await ask(town, listener="extra")).status == 200
            await town.program.reload(town.config)

            async def refused(port: int = port) -> bool:
                try:
                    (await H1Client.connect(port)).close()
                except ConnectionRefusedError:
                    return True
                return False

            await until(refused, "nobody listens at a listener that was removed")


async def test_the_busy_listener_is_renamed(tmp_path: Path, workers: int) -> None:
    """Its socket goes on: not one connection is refused."""
    async with Town(tmp_path, workers=workers) as town:
        for name in ("front", "web"):
            await town.change(set_at("listeners.0.name", name))
            await town.traffic.more()


async def test_the_busy_listener_swaps_its_address_with_another(tmp_path: Path, workers: int) -> None:
    """Two listeners exchange addresses in one reload."""
    extra = {"name": "extra", "address": f"127.0.0.1:{free_port()}", "upstream": "app"}
    async with Town(tmp_path, workers=workers, edit=lambda config: config["listeners"].append(extra)) as town:
        one, two = (listener["address"] for listener in town.config["listeners"])
        await town.change(set_at("listeners.0.address", two), set_at("listeners.1.address", one))
        await town.traffic.more()
        assert (await ask(town, listener="web")).status == (await ask(town, listener="extra")).status == 200


async def test_a_removed_listener_keeps_its_streams_until_the_deadline(tmp_path: Path, workers: int) -> None:
    """SIGTERM after that gives a stream of it the same time as any other, and status knows of it meanwhile."""
    extra = {"name": "extra", "address": f"127.0.0.1:{free_port()}", "upstream": "app"}
    town = Town(tmp_path, workers=workers, edit=lambda config: config["listeners"].append(extra))
    await town.open()
    try:
        port = town.program.port("extra")
        client = await H1Client.connect(port)
        await client.send("GET", "/held")
        await until(lambda: town.near.seen_at("/held"), "the request is at the origin")
        await town.change(set_at("listeners", town.config["listeners"][:1]))
        status = await town.program.status()
        assert sum(one["requests_in_flight"] for one in status["listeners"]) >= 1, status["listeners"]
        await town.traffic.stop()
        town.program.signal(15)
        await town.program.event("draining")
        await asyncio.sleep(0.3)
        town.near.release.set()
        assert (await client.answer()).status == 200
        assert await town.program.wait() == 0
    finally:
        await town.close()
