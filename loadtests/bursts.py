"""Many requests at one instant through an idle proxy: how many round trips until they are answered.

nginx stands behind an 80 ms path (network namespaces, real TCP); the proxy's pool has been idle for a while. Beside
each burst the same number of requests goes to nginx directly, each over a TCP connection of its own that is open
already: what that takes beyond the path is the lab's, and the machine's.

    sudo .venv/bin/python -m loadtests.bursts
"""

from __future__ import annotations

import asyncio
import gc
import statistics
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .lab import Lab
from .lab.certificates import issue
from .lab.scheduling import MEASURING, hurry
from .lab.serving import PROXY, SERVER_NAME, answering, serving, to
from .peers.nginx import Nginx
from .wan.load import Client, burst

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

RTT_MS: Final = 80.0
TLS_PORT: Final = 8443
PLAIN_PORT: Final = 8081
BURSTS: Final = 9
IDLE_S: Final = 1.5

NGINX: Final = """\
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; keepalive_timeout 1h;
  server {{
    listen 0.0.0.0:8443 ssl http2; listen 0.0.0.0:8081;
    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
    location / {{ return 200 "hello there\\n"; }}
  }}
}}
"""
CONFIG: Final = """\
listeners: [{{address: "{listen}", upstream: origin}}]
upstreams:
  origin:
    protocol: {protocol}
    tls: {{server_name: {server_name}, ca: {ca}}}
    regions: {{far: {{endpoints: ["{host}:8443"]}}}}
    pool: {{warm: {warm}, max_connections: 200}}
admin: {{address: "127.0.0.1:9900"}}
access_log: {{path: "{directory}/access.log"}}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """So many requests, through a pool of so many warm connections."""

    protocol: str
    warm: int
    requests: int

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.requests} at once, {self.protocol}, warm: {self.warm}"


CASES: Final = (Case("h1", 50, 50), Case("h2", 10, 100), Case("h2", 2, 100), Case("h2", 1, 10))


@dataclass(frozen=True, slots=True)
class Trips:
    """One burst, in round trips: the median request, the slowest, and the slowest of the direct ones."""

    median: float
    slowest: float
    direct: float


@asynccontextmanager
async def site() -> AsyncIterator[Lab]:
    """The lab with nginx in it."""
    async with Lab.open(mode="netns", regions={"far": RTT_MS}) as lab:
        for port in (TLS_PORT, PLAIN_PORT):
            await lab.publish("far", port)
        certified = issue(lab.ca, names=[SERVER_NAME], key="ecdsa", file_name="nginx")
        text = NGINX.format(directory=lab.directory, certificate=certified.certificate, key=certified.key)
        (lab.directory / "nginx.conf").write_text(text)
        process = await asyncio.create_subprocess_exec(
            *lab.command_prefix("far"), *Nginx().find(), "-c", str(lab.directory / "nginx.conf")
        )
        hurry(MEASURING, process.pid)
        try:
            await answering(lambda: to(lab, direct_address(lab)))
            yield lab
        finally:
            process.kill()
            await process.wait()


def direct_address(lab: Lab) -> tuple[str, int]:
    """Where nginx answers without TLS."""
    return lab.address("far")[0], PLAIN_PORT


def write_config(file: Path, lab: Lab, case: Case) -> None:
    """onetrip.yaml."""
    file.write_text(
        CONFIG.format(
            listen="{}:{}".format(*PROXY),
            host=lab.address("far")[0],
            protocol=case.protocol,
            warm=case.warm,
            server_name=SERVER_NAME,
            ca=lab.ca.certificate,
            directory=lab.directory,
        )
    )


@asynccontextmanager
async def proxy(lab: Lab, case: Case) -> AsyncIterator[None]:
    """`onetrip serve` at home, its warm connections open."""
    config = lab.directory / "onetrip.yaml"
    write_config(config, lab, case)
    async with serving(lab, config) as pid:
        hurry(MEASURING, pid)
        yield


def dialling(lab: Lab, address: tuple[str, int]) -> Callable[[], Coroutine[None, None, socket.socket]]:
    """What a client dials by."""

    async def dial() -> socket.socket:
        made = lab.socket()
        await asyncio.get_running_loop().sock_connect(made, address)
        return made

    return dial


async def measure(lab: Lab, case: Case, bursts: int = BURSTS) -> list[Trips]:
    """Some bursts. Raises RuntimeError where a request fails."""
    found = []
    async with proxy(lab, case):
        client = Client(dialling(lab, PROXY), SERVER_NAME)
        direct = Client(dialling(lab, direct_address(lab)), SERVER_NAME)
        for one in (client, direct):
            await one.open(case.requests)
        await asyncio.sleep(IDLE_S)
        gc.collect()
        gc.disable()
        try:
            for _ in range(bursts):
                through = await _burst(client, case.requests)
                past = await _burst(direct, case.requests)
                found.append(Trips(statistics.median(through), max(through), max(past)))
        finally:
            gc.enable()
            client.close()
            direct.close()
    return found


async def _burst(client: Client, requests: int) -> list[float]:
    await asyncio.sleep(IDLE_S)
    samples = await burst(client, requests)
    if failed := [sample.error or str(sample.status) for sample in samples if sample.failed]:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
    return [sample.latency_ms / RTT_MS for sample in samples]


async def main() -> None:
    """Print the table."""
    print(f"{'medians, in round trips of 80 ms':36} {'median':>7} {'slowest':>8} {'least':>6} {'directly':>9}")
    async with site() as lab:
        for case in CASES:
            trips = await measure(lab, case)
            median, slowest, direct = (
                statistics.median(getattr(one, name) for one in trips) for name in ("median", "slowest", "direct")
            )
            least = min(one.slowest for one in trips)
            print(f"{case.name:36} {median:7.2f} {slowest:8.2f} {least:6.2f} {direct:9.2f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
