"""TCP Fast Open between network namespaces: the kernels' own counters say whether data came with the SYN."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtests.lab import Lab
from loadtests.lab.lab import HOME, SERVER_NAME

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[3]
REQUEST = b"GET / HTTP/1.1\r\nhost: origin.lab.test\r\nconnection: close\r\n\r\n"
HOME_ADDRESS = ("10.66.0.1", 8080)
_TCP_FASTOPEN_CONNECT = 30
CONFIG = """\
listeners: [{{address: "{host}:{port}", protocol: {protocol}, upstream: app, fast_open: {listening}}}]
upstreams:
  app:
    protocol: {upstream}
    fast_open: {dialling}
    {tls}
    regions: {{us: {{endpoints: ["{endpoint}"]}}}}
    hedge: off
    pool: {{warm: 0}}
    health: {{interval: 1h}}
admin: {{address: "127.0.0.1:9900"}}
access_log: off
"""


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab.open(mode="netns", regions={"us": 4}) as opened:
        yield opened


@asynccontextmanager
async def onetrip(
    lab: Lab, protocol: str, *, listening: bool = False, dialling: bool = False, tls: bool = False
) -> AsyncIterator[None]:
    """`onetrip serve` at home, in front of the lab's origin, once it is ready."""
    host, port = HOME_ADDRESS
    file = lab.directory / "onetrip.yaml"
    file.write_text(
        CONFIG.format(
            host=host,
            port=port,
            protocol=protocol,
            upstream="tcp" if protocol == "tcp" else "h1",
            listening=str(listening).lower(),
            dialling=str(dialling).lower(),
            tls=f"tls: {{server_name: {SERVER_NAME}, ca: {lab.ca.certificate}}}" if tls else "",
            endpoint="{}:{}".format(*lab.address("us")),
        )
    )
    command = [*lab.command_prefix(), sys.executable, "-m", "proxy.cli", "serve", str(file)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stderr is not None
        said = b""
        while b'"ready"' not in said:
            said = await process.stderr.readline()
            assert said, "it ended"
        yield
    finally:
        process.kill()
        await process.communicate()


async def ask(lab: Lab, region: str, *, fast_open: bool = False) -> bytes:
    """What the proxy answers a new connection that comes from a region."""
    loop = asyncio.get_running_loop()
    with lab.socket(region) as made:
        if fast_open:
            made.setsockopt(6, _TCP_FASTOPEN_CONNECT, 1)
        await loop.sock_connect(made, HOME_ADDRESS)
        await loop.sock_sendall(made, REQUEST)
        answer = b""
        while piece := await loop.sock_recv(made, 65536):
            answer += piece
        return answer


async def counter(lab: Lab, region: str, name: str) -> int:
    """One of TCP's extended counters in a region's namespace."""
    command = [*lab.command_prefix(region), "cat", "/proc/net/netstat"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    names, values = (line.split() for line in output.decode().splitlines() if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))[name])


@pytest.mark.parametrize("fast_open", [True, False])
async def test_l4_sends_its_client_hello_with_the_syn(lab: Lab, fast_open: bool) -> None:
    await lab.origin("us", tls=True, fast_open=True)
    async with onetrip(lab, "tcp", dialling=fast_open, tls=True):
        for connections in range(3):  # the first fetches the kernel's cookie
            assert (await ask(lab, HOME)).startswith(b"HTTP/1.1 200")
            wanted = connections if fast_open else 0
            assert await counter(lab, HOME, "TCPFastOpenActive") == wanted
            assert await counter(lab, "us", "TCPFastOpenPassive") == wanted


@pytest.mark.parametrize("fast_open", [True, False])
@pytest.mark.parametrize("protocol", ["http", "tcp"])
async def test_a_listener_takes_what_comes_with_the_syn(lab: Lab, protocol: str, fast_open: bool) -> None:
    await lab.origin("us")
    async with onetrip(lab, protocol, listening=fast_open):
        for connections in range(3):
            assert (await ask(lab, "us", fast_open=True)).startswith(b"HTTP/1.1 200")
            wanted = connections if fast_open else 0
            assert await counter(lab, HOME, "TCPFastOpenPassive") == wanted
            assert await counter(lab, "us", "TCPFastOpenActive") == wanted
