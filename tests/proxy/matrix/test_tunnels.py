"""No byte of a tunnel is lost, whenever it comes: with the request's head, right behind it, or after the answer; whether
or not there is a connection to the origin yet; whatever the versions on both sides.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .conftest import Start, wait_for
from .peers import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = bytes(range(256)) * 1024
"""More than an exchange keeps (64 KiB) before there is an answer."""


async def echo(got: Any) -> None:
    """A WebSocket's origin that answers at its leisure, and sends back what it gets."""
    await asyncio.sleep(0.05)  # what comes right behind the head is there before the answer is
    await got.accept_websocket()
    sent = 0
    while True:
        await got.until(lambda sent=sent: len(got.data) > sent or got.ended)
        data = bytes(got.data[sent:])
        if not data:
            await got.end()
            return
        sent += len(data)
        await got.send(data)


@pytest.mark.parametrize("pool", ["warm", "cold"])
@pytest.mark.parametrize("when", ["with the head", "right behind it", "after the answer", "all the time"])
@pytest.mark.parametrize("up", ["h1", "h2"])
@pytest.mark.parametrize("down", ["h1", "h2"])
async def test_every_byte_arrives_once_and_in_order(start: Start, down: str, up: str, when: str, pool: str) -> None:
    origin, proxy = await start(up, warm=1 if pool == "warm" else 0)
    origin.handler = echo
    client = await connect(down, proxy.port, None)
    expected = b""
    try:
        call = await client.websocket()
        if when in ("with the head", "all the time"):  # one segment, or nearly so
            await call.send(b"first")
            expected += b"first"
        if when in ("right behind it", "all the time"):
            await wait_for(lambda: proxy.listener.counters.in_flight)
            await asyncio.gather(call.send(LARGE), call.status())
            expected += LARGE
        assert await call.status() == (101 if down == "h1" else 200)
        if when in ("after the answer", "all the time"):
            await call.send(b"last")
            expected += b"last"
        await call.until(lambda: len(call.data) >= len(expected))
        assert bytes(call.data) == expected
    finally:
        await client.close()
    await proxy.quiet()


@pytest.mark.parametrize("up", ["h1", "h2"])
async def test_a_client_that_has_said_all_before_the_answer(start: Start, up: str) -> None:
    """HTTP/2: bytes and the end of them in front of the answer."""
    origin, proxy = await start(up, warm=0)
    origin.handler = echo
    client = await connect("h2", proxy.port, None)
    try:
        call = await client.websocket()
        await call.send(b"all")
        await call.end()
        await call.until(lambda: call.ended)
        assert bytes(call.data) == b"all"
    finally:
        await client.close()
    await proxy.quiet()
