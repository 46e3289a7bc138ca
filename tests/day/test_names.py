"""The name server's day: names change, it is slow, it is gone. It is a real one, which a mount namespace of the program's
own points to; that needs root.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from .origin import Origin
from .program import until
from .town import Config, Town, set_at

pytestmark = pytest.mark.needs("mount namespaces")
ADDRESS = "127.0.53.53"
NAME = "near.town.test"
_IN_OWN_MOUNTS = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


class NameServer(asyncio.DatagramProtocol):
    """Answers A queries from `names`, and nothing at all while `gone`."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, address: Any) -> None:
        labels, place = [], 12
        while length := data[place]:
            labels.append(data[place + 1 : place + 1 + length].decode().lower())
            place += 1 + length
        name, kind = ".".join(labels), struct.unpack(">H", data[place + 1 : place + 3])[0]
        question = data[12 : place + 5]
        if kind == 1:
            self.asked[name] += 1
        if self.gone:
            return
        known = self.names.get(name)
        found = known if known and kind == 1 else []
        flags = 0x8180 if known else 0x8183
        answer = data[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + question
        for one in found:
            answer += struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4) + bytes(map(int, one.split(".")))
        self.transport.sendto(answer, address)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, found = await loop.create_datagram_endpoint(NameServer, local_addr=(ADDRESS, 53))
    (tmp_path / "resolv.conf").write_text(f"nameserver {ADDRESS}\noptions timeout:1 attempts:1\n")
    yield found
    transport.close()


class NamedTown(Town):
    """The near endpoint has a name."""

    def __init__(self, directory: Path, workers: int, server: NameServer, refresh: str) -> None:
        super().__init__(directory, workers=workers)
        server.names[NAME] = ["127.0.0.1"]
        self._name(self.config, refresh)
        self.program.config = self.edited(lambda config: self._name(config, refresh))

    def _name(self, config: Config, refresh: str) -> None:
        config["upstreams"]["app"]["regions"]["near"]["endpoints"] = [f"{NAME}:{self.near.port}"]
        config["upstreams"]["app"]["dns"] = {"refresh": refresh}

    async def open(self) -> None:
        start, path = self.program.start, str(self.directory / "resolv.conf")

        async def apart() -> object:
            return await start(prefix=("unshare", "-m", "sh", "-c", _IN_OWN_MOUNTS, path))

        self.program.start = apart  # type: ignore[method-assign,assignment]
        await super().open()


async def _asks_often(server: NameServer) -> bool:
    before = server.asked[NAME]
    await asyncio.sleep(3.0)
    return server.asked[NAME] >= before + 2


async def test_dns_refresh_takes_effect(tmp_path: Path, workers: int, server: NameServer) -> None:
    """The row of the key matrix for `upstreams.*.dns.refresh`."""
    async with NamedTown(tmp_path, workers, server, "30s") as town:
        assert not await _asks_often(server)
        await town.change(set_at("upstreams.app.dns.refresh", "200ms"))
        await town.traffic.more(20)
        await until(lambda: _asks_often(server), "the name is looked up often")
        await town.program.reload(town.config)

        async def seldom() -> bool:
            return not await _asks_often(server)

        await until(seldom, "the name is looked up every 30 s")


async def test_a_name_moves(tmp_path: Path, workers: int, server: NameServer) -> None:
    """Traffic follows the name, though the connections to the old address are busy and well."""
    async with NamedTown(tmp_path, workers, server, "200ms") as town:
        moved = Origin("moved", host="127.0.0.2")
        moved.port = town.near.port
        town.add(await moved.start())
        server.names[NAME] = ["127.0.0.2"]

        async def followed() -> bool:
            return (await town.traffic.sample(20))["moved"] > 10

        await until(followed, "traffic is at the name's new address")
        await until(lambda: not town.near.connections, "connections to the address of before are closed")
        assert not (await town.traffic.sample())["near"]
        server.names[NAME] = ["127.0.0.1"]

        async def back() -> bool:
            return await town.leads("near", 20)

        await until(back, "all traffic is back")


async def test_the_name_server_is_gone(tmp_path: Path, workers: int, server: NameServer) -> None:
    """What was known goes on being used, over reloads as well."""
    async with NamedTown(tmp_path, workers, server, "200ms") as town:
        server.gone = True
        await town.traffic.more(100)
        await town.change(set_at("upstreams.app.timeouts.response", "16s"))

        async def near_alone() -> bool:
            return await town.leads("near", 20)

        await until(near_alone, "the near region is reached by the address that was known")
        await town.program.reload()
        await town.traffic.more()
        server.gone = False
