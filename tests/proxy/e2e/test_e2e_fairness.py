"""One client's greed or slowness is its own: what it sends ahead is served in turns, and what never becomes a request
ends in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from loadtests.lab.certificates import issue, make_ca

from .harness import Client, Ended, H, Origin, Proxy, config, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

AHEAD = b"OPTIONS / HTTP/1.1\r\n" + H + b"max-forwards: 0\r\n\r\n"
"""A request that the proxy answers itself, at once."""
COUNT = 3000

PRI = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# :method OPTIONS, :path /, :scheme http, :authority a, max-forwards 0
BLOCK = b"\x02\x07OPTIONS\x84\x86\x01\x01a\x0f\x20\x010"


def h2_requests(count: int) -> bytes:
    heads = [len(BLOCK).to_bytes(3, "big") + b"\x01\x05" + (2 * i + 1).to_bytes(4, "big") + BLOCK for i in range(count)]
    return PRI + b"\0\0\0\4\0\0\0\0\0" + b"".join(heads)


@pytest.mark.parametrize("version", ["h1", "h2"])
async def test_what_is_sent_ahead_is_served_in_turns(proxy: Proxy, origin: Origin, version: str) -> None:
    """Counted between two callbacks of others: all of it in one would be the others' stall."""
    client = await proxy.connect()
    wire = AHEAD * COUNT if version == "h1" else h2_requests(COUNT)
    codes = proxy.listener.counters.codes

    async def read() -> None:
        while True:
            await client.loop.sock_recv(client.sock, 1 << 18)

    reading = asyncio.get_running_loop().create_task(read())
    sending = asyncio.get_running_loop().create_task(client.loop.sock_sendall(client.sock, wire))
    before = seen = sum(codes.values())
    most = 0
    async with asyncio.timeout(20):
        while seen - before < COUNT:
            await asyncio.sleep(0)
            most, seen = max(most, sum(codes.values()) - seen), sum(codes.values())
    await sending
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert most <= COUNT / 5
    assert seen - before == COUNT


async def test_requests_ahead_and_then_the_end(proxy: Proxy, origin: Origin) -> None:
    """A client that shuts down its side behind pipelined requests gets all of their answers, in order."""
    client = await proxy.connect()
    wire = b"".join(b"GET /%d HTTP/1.1\r\n%b\r\n" % (i, H) + AHEAD for i in range(20))
    await client.send(wire)
    client.half_close()
    for _ in range(20):
        assert (await client.response()).status == 200
        assert (await client.response()).status in (200, 204)
    assert await client.closed() == b""
    assert [got.target for got in origin.requests] == [b"/%d" % i for i in range(20)]


async def trickle(client: Client, data: bytes) -> bool:
    """Send byte by byte; whether the proxy ended the connection before all of it had gone."""
    try:
        for octet in data:
            await client.loop.sock_sendall(client.sock, bytes((octet,)))
            await asyncio.sleep(0.02)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("first", ["nothing", "PROXY", "TLS", "TLS record", "preface", "head", "PROXY, then head"])
async def test_what_comes_before_a_request_has_to_come_in_time(
    start: Callable[[str], Awaitable[Proxy]], own_origin: Origin, tmp_path: Path, first: str
) -> None:
    """`header_timeout` counts from the beginning: bytes in a trickle do not renew it."""
    listener = ""
    if "TLS" in first:
        ca = make_ca(tmp_path)
        leaf = issue(ca, names=["localhost"])
        listener = f"tls: {{certificates: [{{certificate: {leaf.certificate}, key: {leaf.key}}}]}}"
    elif "PROXY" in first:
        listener = "proxy_protocol: true"
    proxy = await start(config(own_origin.port, limits="header_timeout: 0.3s", listener=listener))
    client = await proxy.connect()
    line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n"
    data = {
        "nothing": b"",
        "PROXY": b"PROXY TCP4 192.0.2.1 " + b"1" * 80,
        "TLS": b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(400),
        "TLS record": b"\x16",
        "preface": PRI[:20],
        "head": b"GET / HTTP/1.1\r\nhost: a.test\r\nx: " + b"y" * 400,
        "PROXY, then head": line + b"GET / HTTP/1.1\r\nhost: a.test\r\nx: " + b"y" * 400,
    }[first]
    ended = await trickle(client, data)
    if not ended:
        try:
            await client.closed()
        except (OSError, Ended):
            pass
    await wait_for(lambda: not proxy.listener.connections)
    assert not own_origin.requests
