"""Two ways to have a WAN on one machine, behind one contract: namespaces (real), and a loopback relay (an imitation).

Regions are numbered; 0 is home. Paths between regions are pairs of those numbers, one for each direction.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
from typing import Any, Final, Protocol

from .control import Child, LabError, Message

ADDRESSES: Final = 16  # of each region


class Wan(Protocol):
    """What `Lab` needs of a WAN."""

    mode: str
    banner: str  # what a user should know of it
    pid: int  # of the process that carries

    def set_path(self, source: int, target: int, values: dict[str, Any]) -> asyncio.Future[Message]:
        """Change one direction. Raises ValueError for what this WAN can't imitate."""

    def command_prefix(self, region: int) -> list[str]:
        """What to put before a command to run it in a region."""

    def bind_address(self, region: int, index: int, port: int) -> tuple[str, int]:
        """What endpoint `index` of a region is to listen on (port 0: any)."""

    async def publish(self, region: int, index: int, bound: tuple[str, int]) -> tuple[str, int]:
        """Endpoint `index` of a region listens on `bound`: where home dials it. A second time, it has moved."""

    async def listening(self, region: int, index: int, open_: bool) -> None:
        """Endpoint `index` has opened or closed its listening socket."""

    def socket(self, region: int, kind: int) -> socket.socket:
        """A new IPv4 socket of a region, for use in this process."""

    async def counters(self) -> Message:
        """`paths[source][target]` and the carrying process's own figures."""

    async def close(self) -> None:
        """Remove all of it."""


class NamespaceWan:
    """Real TCP and UDP between network namespaces; the packets go through `carrier`."""

    mode = "netns"

    def __init__(self, carrier: Child, sockets: socket.socket) -> None:
        self._carrier = carrier
        self.pid = carrier.pid
        self._sockets = sockets
        hello = carrier.hello
        self._namespaces: list[int] = hello["namespaces"]
        # nsenter needs --user only where the namespaces belong to a user namespace of ours.
        self._enter = ["nsenter"]
        if hello["rootless"]:
            self._enter += [f"--user=/proc/{hello['pid']}/ns/user", "--preserve-credentials"]
        self.banner = (
            f"real TCP and UDP between {len(self._namespaces)} network namespaces; "
            f"the packet carrier (pid {hello['pid']}) runs with {hello['scheduling']} priority"
        )
        if hello["refused"]:
            self.banner += f"; this machine did not let it set {', '.join(hello['refused'])}"

    @classmethod
    async def start(cls, delays_ms: list[list[float]], congestion: str, sysctls: dict[str, str]) -> NamespaceWan:
        """Make the namespaces. Raises LabError where the kernel or the user's rights do not allow it."""
        if shutil.which("nsenter") is None:
            raise LabError("nsenter, which runs programs in namespaces, is not installed (it is part of util-linux)")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {
            "delays_ms": delays_ms,
            "sockets": theirs.fileno(),
            "addresses": ADDRESSES,
            "congestion": congestion,
            "sysctls": sysctls,
        }
        try:
            with theirs:
                carrier = await Child.start("carrier", config, descriptors=(theirs.fileno(),))
        except LabError:
            ours.close()
            raise
        return cls(carrier, ours)

    def set_path(self, source: int, target: int, values: dict[str, Any]) -> asyncio.Future[Message]:
        """See `Wan`."""
        return self._carrier.request("set", source=source, target=target, values=values)

    def command_prefix(self, region: int) -> list[str]:
        """See `Wan`."""
        return [*self._enter, f"--net=/proc/{self._carrier.hello['pid']}/fd/{self._namespaces[region]}", "--"]

    def bind_address(self, region: int, index: int, port: int) -> tuple[str, int]:
        """See `Wan`."""
        if index >= ADDRESSES:
            raise LabError(f"a region has {ADDRESSES} addresses; this would be number {index + 1}")
        return f"10.66.{region}.{index + 1}", port

    async def publish(self, region: int, index: int, bound: tuple[str, int]) -> tuple[str, int]:
        """See `Wan`."""
        return bound

    async def listening(self, region: int, index: int, open_: bool) -> None:
        """See `Wan`: the kernel refuses by itself."""

    def socket(self, region: int, kind: int) -> socket.socket:
        """See `Wan`."""
        self._sockets.sendall(struct.pack("iii", region, socket.AF_INET, kind))
        _, descriptors, _, _ = socket.recv_fds(self._sockets, 1, 1)
        if not descriptors:
            raise LabError("the carrier has ended")
        made = socket.socket(fileno=descriptors[0])
        made.setblocking(False)
        return made

    async def counters(self) -> Message:
        """See `Wan`."""
        return await self._carrier.request("counters")

    async def close(self) -> None:
        """See `Wan`: with the carrier go its namespaces, once the last process in them has ended."""
        self._sockets.close()
        await self._carrier.close()


class RelayWan:
    """An imitation on loopback for users without rights; see `relay` for what it can't imitate."""

    mode = "loopback"
    _CANNOT: Final = ("loss", "reorder")

    def __init__(self, relay: Child) -> None:
        self._relay = relay
        self.pid = relay.pid
        self.banner = relay.hello["banner"]

    @classmethod
    async def start(cls, delays_ms: list[list[float]]) -> RelayWan:
        """Start the relay."""
        return cls(await Child.start("relay", {"delays_ms": delays_ms}))

    def set_path(self, source: int, target: int, values: dict[str, Any]) -> asyncio.Future[Message]:
        """See `Wan`."""
        for name in self._CANNOT:
            if values.get(name):
                raise ValueError(f"the loopback relay carries TCP streams and can't imitate {name}: use namespaces")
        if source and target:
            raise ValueError("the loopback relay only carries between home and the regions")
        return self._relay.request("set", source=source, target=target, values=values)

    def command_prefix(self, region: int) -> list[str]:
        """See `Wan`: all regions are this machine."""
        return []

    def bind_address(self, region: int, index: int, port: int) -> tuple[str, int]:
        """See `Wan`: any port, behind the relay."""
        return "127.0.0.1", 0

    async def publish(self, region: int, index: int, bound: tuple[str, int]) -> tuple[str, int]:
        """See `Wan`."""
        answer = await self._relay.request("publish", region=region, index=index, target=bound)
        return answer["host"], answer["port"]

    async def listening(self, region: int, index: int, open_: bool) -> None:
        """See `Wan`.

        The relay closes its listener too, so that a dial is refused as it would be by the origin's kernel.
        """
        await self._relay.request("listening", region=region, index=index, open=open_)

    def socket(self, region: int, kind: int) -> socket.socket:
        """See `Wan`."""
        made = socket.socket(socket.AF_INET, kind)
        made.setblocking(False)
        return made

    async def counters(self) -> Message:
        """See `Wan`."""
        return await self._relay.request("counters")

    async def close(self) -> None:
        """See `Wan`."""
        await self._relay.close()
