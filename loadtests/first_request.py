"""What the first request over a brand-new upstream connection costs, in round trips: full, resumed, 0-RTT, Fast Open.

nginx stands behind an 80 ms path (network namespaces, real TCP). Before each request it is started anew, with the same
ticket key or with another one, and the proxy keeps no warm connections: so every request dials.

    sudo .venv/bin/python -m loadtests.first_request
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from .lab import Lab
from .lab.certificates import issue
from .lab.serving import PROXY, SERVER_NAME, answering, serving, to
from .peers.nginx import Nginx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RTT_MS: Final = 80.0
PORT: Final = 8443
ADMIN: Final = ("127.0.0.1", 9900)
REQUESTS: Final = 9
PAUSE_S: Final = 0.3  # for nginx's tickets, and the end of its connections
TICKET_KEY_BYTES: Final = 80

NGINX: Final = """\
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log warn;
events {{}}
http {{
  access_log {directory}/access.log;
  server {{
    listen 0.0.0.0:{port} ssl fastopen=256;
    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
    ssl_early_data on; ssl_session_ticket_key {directory}/ticket.key;
    location / {{ return 200 "early:$ssl_early_data resumed:$ssl_session_reused\\n"; }}
  }}
}}
"""
CONFIG: Final = """\
listeners: [{{address: "{listen}", upstream: origin}}]
upstreams:
  origin:
    protocol: h1
    fast_open: {fast_open}
    tls: {{server_name: {server_name}, ca: {ca}, early_data: {early_data}, groups: [X25519]}}
    regions: {{far: {{endpoints: ["{endpoint}"]}}}}
    hedge: off
    pool: {{warm: 0}}
    health: {{interval: 1h}}
admin: {{address: "127.0.0.1:9900"}}
access_log: off
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A way to dial; `renewed`: the origin has another ticket key for each request, so handshakes are full."""

    name: str
    early_data: bool
    fast_open: bool
    renewed: bool = False


CASES: Final = (
    Case("full handshake", early_data=False, fast_open=False, renewed=True),
    Case("resumed", early_data=False, fast_open=False),
    Case("resumed, Fast Open", early_data=False, fast_open=True),
    Case("0-RTT", early_data=True, fast_open=False),
    Case("0-RTT, Fast Open", early_data=True, fast_open=True),
    Case("0-RTT rejected", early_data=True, fast_open=False, renewed=True),
)


class Origin:
    """nginx in the lab's far region."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        certified = issue(lab.ca, names=[SERVER_NAME], key="ecdsa", file_name="nginx")
        text = NGINX.format(directory=directory, port=PORT, certificate=certified.certificate, key=certified.key)
        self._directory = directory
        self._file = directory / "nginx.conf"
        self._file.write_text(text)
        self._lab = lab
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, renewed: bool = True) -> None:
        """Begin anew: all connections are gone. `renewed`: with another ticket key."""
        await self.stop()
        if renewed:
            (self._directory / "ticket.key").write_bytes(os.urandom(TICKET_KEY_BYTES))
        command = [*self._lab.command_prefix("far"), *Nginx().find(), "-c", str(self._file)]
        self._process = await asyncio.create_subprocess_exec(*command)
        await answering(lambda: self._lab.dial("far", tls=self._lab.client_context()))  # the process's first handshake

    async def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def proxy(lab: Lab, directory: Path, case: Case) -> AsyncIterator[None]:
    """`onetrip serve` at home."""
    host, port = lab.address("far")
    config = directory / "onetrip.yaml"
    config.write_text(
        CONFIG.format(
            listen="{}:{}".format(*PROXY),
            endpoint=f"{host}:{port}",
            server_name=SERVER_NAME,
            ca=lab.ca.certificate,
            early_data=str(case.early_data).lower(),
            fast_open=str(case.fast_open).lower(),
        )
    )
    async with serving(lab, config):
        yield


async def first_request_ms(lab: Lab) -> tuple[float, str]:
    """One request over a new upstream connection: milliseconds to its answer, and what nginx said."""
    reader, writer = await to(lab, PROXY)
    begin = monotonic()
    writer.write(b"GET / HTTP/1.1\r\nhost: origin.lab.test\r\nconnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    elapsed_ms = (monotonic() - begin) * 1e3
    body = await reader.read()
    writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the proxy answered {head + body!r}")
    return elapsed_ms, body.decode().strip()


async def connections(lab: Lab) -> int:
    """How many the proxy has, or dials."""
    reader, writer = await to(lab, ADMIN)
    writer.write(b"GET /status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    pool = json.loads(body)["upstreams"]["origin"]["regions"][0]["endpoints"][0]["pool"]
    return int(pool["idle"] + pool["busy"] + pool["dialling"])


async def measure(lab: Lab, origin: Origin, case: Case, requests: int = REQUESTS) -> tuple[list[float], list[str]]:
    """A case's requests: their times in round trips, and what nginx said of each."""
    trips, said = [], []
    async with proxy(lab, lab.directory, case):
        await first_request_ms(lab)  # a full handshake: it brings the ticket, and Fast Open's cookie
        for _ in range(requests):
            await asyncio.sleep(PAUSE_S)
            await origin.start(case.renewed)
            while await connections(lab):
                await asyncio.sleep(PAUSE_S)
                await origin.start(case.renewed)
            elapsed_ms, word = await first_request_ms(lab)
            trips.append(elapsed_ms / RTT_MS)
            said.append(word)
    return trips, said


@asynccontextmanager
async def site() -> AsyncIterator[tuple[Lab, Origin]]:
    """The lab with nginx in it."""
    async with Lab.open(mode="netns", regions={"far": RTT_MS}) as lab:
        await lab.publish("far", PORT)
        origin = Origin(lab, lab.directory)
        await origin.start()
        try:
            yield lab, origin
        finally:
            await origin.stop()


async def main() -> None:
    """Print the table."""
    async with site() as (lab, origin):
        print(f"{'first request over a new connection':36} {'least':>7} {'median':>7}   round trips of {RTT_MS:g} ms")
        for case in CASES:
            trips, said = await measure(lab, origin, case)
            print(f"{case.name:36} {min(trips):7.2f} {statistics.median(trips):7.2f}   {said[-1]}")


if __name__ == "__main__":
    asyncio.run(main())
