"""The scene: three regions in the lab with their origins, and one proxy at a time inside home.

Nothing of one proxy is left for the next: paths and origins are as at the start, the kernel keeps no metrics of earlier
connections (but Fast Open's cookies, as on any machine).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Final

from loadtests.lab import SERVER_NAME, Lab, Origin
from loadtests.lab.behaviour import Behaviour
from loadtests.lab.lab import Mode
from loadtests.lab.path import PathSettings
from loadtests.lab.scheduling import MEASURING, hurry
from loadtests.peers.process import Program, free_port
from loadtests.peers.wiring import Unavailable

from . import evaluate
from .load import Client, OpenLoop, Rate
from .place import Contender, Place

REGIONS: Final = {"us": 60.0, "eu": 80.0, "ap": 150.0}
"""Round trips from home in milliseconds, the nearest first."""
NEAREST: Final = "us"
SECOND: Final = "eu"
UNTOUCHED: Final = "ap"
_WITNESS_RATE: Final = 50.0
PORT: Final = 8080
ADMIN_PORT: Final = 9901
READY_WITHIN_S: Final = 20.0
_POLL_S: Final = 0.01
_GRACE_S: Final = 3.0
_FETCH_WITHIN_S: Final = 1.0
_SYSCTLS: Final = {"net.ipv4.tcp_no_metrics_save": "1"}


class _Running(Program):
    """A program that runs in home."""

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def hurry(self) -> None:
        """Give all its threads the real-time priority of the origins and the load.

        Not before it is ready: a start that takes most of a second of CPU would meet the kernel's limit for such
        threads (95 % of each second), and its first request the pause that follows.
        """
        for pid in self.pids():
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):  # it has ended, or the user may not: ordinary priority then
                    os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(MEASURING))

    def end(self, number: signal.Signals) -> None:
        """Let it finish what it has; stop it where that takes too long."""
        if not self.ended:
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self.stop()


class Proxy:
    """A contender in its place."""

    def __init__(self, site: Site, contender: Contender, place: Place) -> None:
        self._site = site
        self.contender = contender
        self.place = place
        self.program: _Running | None = None
        self.started_in_s = 0.0

    def __repr__(self) -> str:
        return f"<Proxy {self.contender.name} {self.program!r}>"

    async def start(self) -> float:
        """Start it; the seconds until it said that it was ready. Raises Unavailable where it does not come up."""
        place, contender = self.place, self.contender
        config = place.directory / contender.config_name
        config.write_text(contender.config(place))
        command = [*self._site.lab.command_prefix(), *_favoured(), *contender.peer.command(config)]
        stdout = place.access_log if contender.name.startswith("haproxy") else place.directory / "stdout.log"
        began = monotonic()
        self.program = await asyncio.to_thread(
            _Running, contender.name, command, place.directory, self._site.core, stdout
        )
        while not await self._ready():
            if self.program.ended:
                raise Unavailable(f"did not start: {self.program.complaint()}")
            if monotonic() - began > READY_WITHIN_S:
                raise Unavailable(f"was not ready within {READY_WITHIN_S:g} s: {self.program.complaint()}")
            await asyncio.sleep(_POLL_S)
        self.started_in_s = monotonic() - began
        self.program.hurry()
        return self.started_in_s

    async def _ready(self) -> bool:
        contender = self.contender
        if not contender.ready_path:
            try:
                (await self._site.dial(self.place.port)).close()
            except OSError:
                return False
            return True
        status, _ = await self._site.fetch(self.place.admin_port, contender.ready_path)
        return status == 200

    async def stop(self) -> None:
        """Let requests under way finish, then end it."""
        program, self.program = self.program, None
        if program is not None:
            await self._keep_stats()
            await asyncio.to_thread(program.end, self.contender.stop_signal)

    async def _keep_stats(self) -> None:
        path = self.contender.stats_path
        if path:
            _, text = await self._site.fetch(self.place.admin_port, path)
            await asyncio.to_thread((self.place.directory / "stats.txt").write_bytes, text)

    def client(self) -> Client:
        """A client in home that sends to it."""
        return self._site.client(self.place.port)


class Witness:
    """Requests past every proxy to a region that no scenario touches: what slows them down is the machine's doing.

    Something that floods loopback, say, holds up the packets of all namespaces, and neither the carrier nor the load's
    timers notice.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._load = OpenLoop(client, [Rate(_WITNESS_RATE)], "/healthz")

    def late_ms(self, begin: float, end: float, share: float = 1.0) -> float:
        """How much longer than the path's round trip those took that were out between the two instants.

        Of `share` of them: 0.99 is the 99th percentile.
        """
        trip_s = REGIONS[UNTOUCHED] / 1e3
        meanwhile = evaluate.between(self._load.samples, begin - trip_s, end)
        return max(0.0, evaluate.quantile((s.latency_ms for s in meanwhile), share) - REGIONS[UNTOUCHED])

    async def close(self) -> None:
        """Stop."""
        await self._load.stop()
        self._client.close()


class Site:
    """The lab with an origin in each region."""

    def __init__(self, lab: Lab, origins: dict[str, Origin], directory: Path, core: int) -> None:
        self.lab = lab
        self.origins = origins
        self.directory = directory
        self.core = core

    def __repr__(self) -> str:
        return f"<Site {self.lab!r}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, *, mode: Mode = "netns", core: int = 1) -> AsyncIterator[Site]:
        """Open the lab and start the origins. Raises LabError."""
        async with AsyncExitStack() as stack:
            lab = await stack.enter_async_context(Lab.open(mode=mode, regions=REGIONS, sysctls=_SYSCTLS))
            lab.ca  # noqa: B018 - made before the origins ask for it, all at once
            origins = await asyncio.gather(
                *(lab.origin(name, tls=True, h2=True, tls_version="1.3", fast_open=True) for name in REGIONS)
            )
            for origin in origins:
                for pid in origin.pids:
                    hurry(MEASURING, pid)
            await lab.origin(UNTOUCHED)  # without TLS, for the witness: no proxy knows it
            _prepare(directory, lab.ca.certificate)
            yield cls(lab, dict(zip(REGIONS, origins, strict=True)), directory, core)

    @asynccontextmanager
    async def proxy(self, contender: Contender, scenario: str, only: str = "") -> AsyncIterator[Proxy]:
        """A proxy that is not started yet, with a directory of its own; stopped at the end. `only`: one region."""
        directory = self.directory / f"{scenario}-{contender.name}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        regions = {name: self.lab.address(name) for name in REGIONS if only in ("", name)}
        place = Place(*self._ports(), directory, self.directory / "ca.pem", SERVER_NAME, regions)
        proxy = Proxy(self, contender, place)
        try:
            yield proxy
        finally:
            await proxy.stop()
            await self.restore()

    def _ports(self) -> tuple[int, int]:
        """Listener and admin: in home nobody else is; on this machine's loopback somebody might be."""
        return (PORT, ADMIN_PORT) if self.lab.mode == "netns" else (free_port(), free_port())

    async def restore(self) -> None:
        """Paths and origins as they were at the start."""
        settings = {name: getattr(PathSettings(), name) for name in ("loss", "blackhole", "jitter_ms")}
        for name, rtt_ms in REGIONS.items():
            await self.lab.path(name).set(rtt_ms=rtt_ms, **settings)
            await self.origins[name].set(**Behaviour().values())

    async def requests(self) -> dict[str, float]:
        """Requests that have reached each region's origin so far, health checks left out."""
        counters = {name: await origin.counters() for name, origin in self.origins.items()}
        return {name: figures["requests"] - figures.get("health_checks", 0.0) for name, figures in counters.items()}

    async def dial(self, port: int) -> socket.socket:
        """A socket in home that is connected to a port of its loopback. Raises OSError."""
        return await self._dialled(("127.0.0.1", port))

    async def _dialled(self, address: tuple[str, int]) -> socket.socket:
        made = self.lab.socket()
        try:
            await asyncio.get_running_loop().sock_connect(made, address)
        except BaseException:
            made.close()
            raise
        return made

    async def witness(self) -> Witness:
        """Begin to watch the machine."""

        async def dial() -> socket.socket:
            return await self._dialled(self.lab.address(UNTOUCHED, 1))

        client = Client(dial, SERVER_NAME)
        await client.open(16)
        return Witness(client)

    def client(self, port: int) -> Client:
        """A client in home."""
        return Client(lambda: self.dial(port), SERVER_NAME)

    async def fetch(self, port: int, path: str) -> tuple[int, bytes]:
        """A GET on an address in home: status and everything after the head; (0, b"") where nobody answers in time."""
        try:
            async with asyncio.timeout(_FETCH_WITHIN_S):
                reader, writer = await asyncio.open_connection(sock=await self.dial(port))
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return 0, b""
        head, _, body = answer.partition(b"\r\n\r\n")
        words = head.split(None, 2)
        return (int(words[1]), body) if len(words) > 1 and words[1].isdigit() else (0, b"")


def _favoured() -> list[str]:
    """What starts a program before everything ordinary on its core, where the user may: a start is measured too."""
    nice = shutil.which("nice")
    return [nice, "-n", "-15"] if nice is not None and not os.geteuid() else []


def _prepare(directory: Path, ca: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # started by root, nginx's workers are nobody
    shutil.copyfile(ca, directory / "ca.pem")
