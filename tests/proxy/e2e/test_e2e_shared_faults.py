"""An HTTP/2 connection that breaks by its origin's fault takes requests with it that have nothing to do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.http.h2 import frames as wire

from ..matrix import peers
from .harness import Client, Proxy, request, wait_for
from .regions import regions

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]
INNOCENT = 6
ROUNDS = 8


async def test_innocent_requests_survive(start: Start) -> None:
    """Each round one request makes the origin break the connection that it shares with others, again and again."""
    go = asyncio.Event()

    async def handler(got: Any) -> None:
        if got.path == "/bad":
            head = wire.frame(wire.HEADERS, wire.END_HEADERS, got.id, b"\xff" * 8)  # COMPRESSION_ERROR
            got.peer.writer.write(head)
            return
        await go.wait()
        await got.respond(200, [("content-length", "2")])
        await got.send(b"ok")
        await got.end()

    origins = [peers.Origin("h2", None) for _ in range(2)]
    for origin in origins:
        origin.handler = handler
        await origin.start()
    proxy = await start(regions(origins[0].port, origins[1].port, protocol="h2", retry="{attempts: 2}"))
    for _ in range(ROUNDS):
        go.clear()
        clients: list[Client] = []
        before = sum(len(origin.requests) for origin in origins)
        for _ in range(INNOCENT):
            clients.append(await proxy.connect())
            await clients[-1].send(request())
        await wait_for(lambda before=before: sum(len(one.requests) for one in origins) >= before + INNOCENT)
        bad = await proxy.connect()
        assert (await bad.get(b"/bad")).status == 502
        go.set()
        assert [(await client.response()).status for client in clients] == [200] * INNOCENT
    for origin in origins:
        await origin.close()
