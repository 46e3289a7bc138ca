"""The WAN lab: regions, the paths between them, and programmable origins in them.

One API for both kinds of WAN (see `wan`).

async with Lab.open(regions={"us": 60, "eu": 80, "ap": 150}) as lab:      # round trips from home, in milliseconds
    origin = await lab.origin("us", endpoints=2, tls=True, service_ms=0.2)
    host, port = lab.address("us", 0)                                     # what home dials
    command = [*lab.command_prefix("home"), "curl", f"https://{host}:{port}/"]
    await lab.path("us").set(blackhole=True)
    await origin.set(late_share=0.02, late_ms=1000)
    (await origin.counters())["requests"]
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from .behaviour import Behaviour
from .control import LabError
from .handles import Origin, Path
from .wan import NamespaceWan, RelayWan, Wan

if TYPE_CHECKING:
    from .certificates import Issued, KeyKind

Mode: TypeAlias = Literal["auto", "netns", "loopback"]
HOME: Final = "home"
SERVER_NAME: Final = "origin.lab.test"
_REGIONS_MAX: Final = 200


class Lab:
    """A running lab.

    `mode` is netns or loopback, and `reason` says why not the other one; `banner` is what a user should know of it;
    `pid` is the process that carries; `directory` holds the lab's files until it closes.
    """

    def __init__(self, wan: Wan, regions: Mapping[str, float], directory: FilePath, reason: str) -> None:
        self._wan = wan
        self._numbers = {HOME: 0, **{name: number for number, name in enumerate(regions, 1)}}
        self._endpoints = dict.fromkeys(regions, 0)
        self._addresses: dict[tuple[str, int], tuple[str, int]] = {}
        self._bound: dict[tuple[str, int], tuple[str, int]] = {}
        self._origins: list[Origin] = []
        self._ca: Issued | None = None
        self.mode = wan.mode
        self.pid = wan.pid
        self.banner = wan.banner
        self.reason = reason
        self.regions = dict(regions)
        self.directory = directory

    def __repr__(self) -> str:
        return f"<Lab {self.mode}: {', '.join(f'{name} {rtt_ms:g} ms' for name, rtt_ms in self.regions.items())}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        regions: Mapping[str, float],
        mode: Mode = "auto",
        between: Mapping[tuple[str, str], float] | None = None,
        congestion: str = "cubic",
        sysctls: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Lab]:
        """Open a lab and remove everything of it at the end.

        `regions`: round trips from home in milliseconds. `between`: round trips between regions, by default the longer
        of the two from home. `mode`: auto takes namespaces where this user may make them. `congestion`: TCP's
        congestion control on the lab's routes, whatever the host's is. `sysctls`: set in every namespace. Raises
        LabError where the mode asked for is not to be had.
        """
        if HOME in regions or not 0 < len(regions) <= _REGIONS_MAX:
            raise LabError(f"from one to {_REGIONS_MAX} regions, none of them called {HOME}")
        if min(regions.values()) < 0:
            raise LabError("a round trip can't be negative")
        delays_ms = _delays_ms(regions, between or {})
        async with AsyncExitStack() as stack:
            directory = FilePath(stack.enter_context(tempfile.TemporaryDirectory(prefix="onetrip-lab-")))
            wan: Wan | None = None
            reason = "asked for"
            if mode != "loopback":
                try:
                    wan = await NamespaceWan.start(delays_ms, congestion, dict(sysctls or {}))
                except LabError as error:
                    if mode == "netns":
                        raise
                    reason = str(error)
            if wan is None:
                wan = await RelayWan.start(delays_ms)
            stack.push_async_callback(wan.close)
            lab = cls(wan, regions, directory, reason)
            stack.push_async_callback(lab._close_origins)
            yield lab

    # Where things are

    def address(self, region: str, index: int = 0) -> tuple[str, int]:
        """(host, port) that reaches endpoint `index` of a region from home."""
        return self._addresses[region, index]

    def bound(self, region: str, index: int = 0) -> tuple[str, int]:
        """(host, port) on which endpoint `index` really listens: what a program in that region dials."""
        return self._bound[region, index]

    def addresses(self, region: str) -> list[tuple[str, int]]:
        """All endpoints of a region."""
        return [address for (name, _), address in sorted(self._addresses.items()) if name == region]

    def command_prefix(self, region: str = HOME) -> list[str]:
        """Put this before a command to run it in a region: empty in loopback mode."""
        return self._wan.command_prefix(self._number(region))

    def socket(self, region: str = HOME, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A new non-blocking IPv4 socket that lives in a region, for use in this process."""
        return self._wan.socket(self._number(region), kind)

    async def dial(
        self, region: str, index: int = 0, *, tls: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from home to an endpoint. Raises OSError as a dial does."""
        made = self.socket()
        try:
            await asyncio.get_running_loop().sock_connect(made, self.address(region, index))
            return await asyncio.open_connection(sock=made, ssl=tls, server_hostname=SERVER_NAME if tls else None)
        except BaseException:
            made.close()
            raise

    async def publish(self, region: str, port: int) -> tuple[str, int]:
        """Add an endpoint that the lab does not run: a server in that region, on all its addresses and `port`.

        Returns where home dials it. In loopback mode the server listens on 127.0.0.1.
        """
        index = self._take(region, 1)
        host, _ = self._wan.bind_address(self._number(region), index, port)
        address = await self._wan.publish(self._number(region), index, (host, port))
        await self._wan.listening(self._number(region), index, True)
        self._addresses[region, index] = address
        self._bound[region, index] = (host, port)
        return address

    async def clear(self, region: str) -> None:
        """End a region's origins and forget its endpoints: the next one is number 0 again. Paths stay as they are."""
        ending = [origin for origin in self._origins if origin.region == region]
        self._origins = [origin for origin in self._origins if origin.region != region]
        await asyncio.gather(*(origin.close() for origin in ending))
        for name, index in [key for key in self._addresses if key[0] == region]:
            await self._wan.listening(self._number(region), index, False)
            del self._addresses[name, index], self._bound[name, index]
        self._endpoints[region] = 0

    # TLS

    @property
    def ca(self) -> Issued:
        """The lab's CA, made when it is first asked for."""
        if self._ca is None:
            from .certificates import make_ca  # noqa: PLC0415 - takes 50 ms, which every child process would pay

            self._ca = make_ca(self.directory)
        return self._ca

    def client_context(self) -> ssl.SSLContext:
        """A client's TLS settings that trust the lab's CA; the server's name is SERVER_NAME."""
        return ssl.create_default_context(cafile=str(self.ca.certificate))

    # What can be changed

    def path(self, region: str, other: str = HOME, *, direction: Literal["both", "to", "from"] = "both") -> Path:
        """The path between a region and home (or another region).

        `to`: only towards `region`; `from`: only away from it.
        """
        here, there = self._number(other), self._number(region)
        pairs = {"both": [(here, there), (there, here)], "to": [(here, there)], "from": [(there, here)]}
        return Path(self._wan, pairs[direction])

    async def origin(
        self,
        region: str,
        *,
        endpoints: int = 1,
        tls: bool = False,
        h2: bool = False,
        key: KeyKind = "ecdsa",
        names: Iterable[str] = (),
        tls_version: Literal["", "1.2", "1.3"] = "",
        client_ca: FilePath | None = None,
        fast_open: bool = False,
        port: int = 0,
        **behaviour: Any,
    ) -> Origin:
        """Start programmable origins in a region: a process for each endpoint. Further arguments are `Behaviour`'s.

        `h2`: speak HTTP/2 too (by ALPN, or by prior knowledge without TLS). `names`: further names for the certificate,
        which has SERVER_NAME, REGION.lab.test, localhost and the addresses anyway. `port`: in netns mode; by default
        8443 with TLS, else 8080.
        """
        number = self._number(region)
        common: dict[str, Any] = {
            "region": region,
            "tls": tls,
            "h2": h2,
            "tls_version": tls_version,
            "client_ca": str(client_ca) if client_ca else "",
            "fast_open": fast_open,
        }
        first = self._take(region, endpoints)
        configs = []
        for index in range(first, first + endpoints):
            host, bound_port = self._wan.bind_address(number, index, port or (8443 if tls else 8080))
            config = {**common, "endpoint": index, "host": host, "port": bound_port}
            if tls:
                certified = self._issue(
                    region, index, [SERVER_NAME, f"{region}.lab.test", "localhost", *names, host], key
                )
                config |= {"certificate": str(certified.certificate), "key": str(certified.key)}
            configs.append(config)
        origin = Origin(self._wan, number, configs, Behaviour().changed(**behaviour))
        self._origins.append(origin)
        for index, address in enumerate(await origin.start(), first):
            self._addresses[region, index] = address
            self._bound[region, index] = origin.bound[index - first]
        return origin

    async def counters(self) -> dict[str, Any]:
        """What has happened on each path ("us>home": packets, bytes, lost, overflowed, swallowed), and to `carrier`.

        The latter are the carrying process's own figures: its CPU seconds and, in netns mode, how late it delivers.
        """
        counters = await self._wan.counters()
        names = list(self._numbers)
        paths = {
            f"{names[source]}>{names[target]}": figures
            for source, row in enumerate(counters["paths"])
            for target, figures in enumerate(row)
            if source != target
        }
        return {"paths": paths, "carrier": counters["carrier"]}

    def _issue(self, region: str, index: int, names: list[str], key: KeyKind) -> Issued:
        from .certificates import issue  # noqa: PLC0415 - as above

        # In loopback mode what a client dials is the relay's address.
        relayed = [f"127.66.{self._number(region)}.{index + 1}", "127.0.0.1"]
        unique = list(dict.fromkeys([*names, *relayed]))
        return issue(self.ca, names=unique, key=key, file_name=f"{region}-{index}")

    def _take(self, region: str, count: int) -> int:
        """The first of `count` new endpoint numbers."""
        self._endpoints[region] += count
        return self._endpoints[region] - count

    def _number(self, region: str) -> int:
        try:
            return self._numbers[region]
        except KeyError:
            raise LabError(f"no region {region!r}: there are {', '.join(self._numbers)}") from None

    async def _close_origins(self) -> None:
        await asyncio.gather(*(origin.close() for origin in self._origins))


def _delays_ms(regions: Mapping[str, float], between: Mapping[tuple[str, str], float]) -> list[list[float]]:
    """One-way delays by source and target number."""
    names = [HOME, *regions]
    given = {frozenset(pair): rtt_ms for pair, rtt_ms in between.items()}

    def rtt_ms(one: str, other: str) -> float:
        if one == other:
            return 0.0
        far = max(regions.get(one, 0.0), regions.get(other, 0.0))
        return given.get(frozenset((one, other)), far)

    return [[rtt_ms(one, other) / 2 for other in names] for one in names]
