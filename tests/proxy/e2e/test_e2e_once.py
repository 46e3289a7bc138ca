"""A request that is not idempotent is in one place at a time: no origin sees it twice, whatever happens to its tries."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import pytest

from proxy.errors import Kind, ProxyError

from .harness import OK, Client, Ended, Message, Origin, OriginPeer, Proxy, request, wait_for
from .regions import blamed, region, regions

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]


class Held:
    """An answer that waits until `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, peer: OriginPeer, got: Message) -> None:
        await peer.body(got)
        await self.go.wait()
        await peer.send(OK)


def drain(proxy: Proxy, name: str) -> None:
    """As when routing has drained the region by itself."""
    proxy.upstream.balancer.drain(name, monotonic(), None)
    proxy.worker.turn.begin()
    proxy.upstream._rescue(name, monotonic())
    proxy.worker.turn.end()


async def waits_for_a_connection(
    start: Start, origin: Origin, own_origin: Origin, asked: bytes
) -> tuple[Proxy, Client, Held]:
    """`near` has one connection, which is busy; another request waits for it."""
    held = Held()
    origin.answer = held
    proxy = await start(regions(origin.port, own_origin.port, max_connections=1))
    busy = await proxy.connect()
    await busy.send(request(b"POST", b"/busy", b"content-length: 0\r\n"))
    await origin.request()
    client = await proxy.connect()
    await client.send(asked)
    pool = proxy.upstream.pool_at[region(proxy, "near").endpoints[0]]
    await wait_for(lambda: any(attempt.waiting for attempt in pool.waiters))
    return proxy, client, held


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(b"POST", b"/post", b"content-length: 3\r\n", b"abc"),
        request(b"POST", b"/part", b"content-length: 3\r\n", b"a"),
        request(b"GET", b"/ws", b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"),
    ],
    ids=["GET", "POST", "half a POST", "upgrade"],
)
async def test_what_waits_for_a_drained_region_moves(
    start: Start, origin: Origin, own_origin: Origin, asked: bytes
) -> None:
    proxy, client, held = await waits_for_a_connection(start, origin, own_origin, asked)
    own_origin.answer = far = Held()
    drain(proxy, "near")
    if b"/part" in asked:
        await client.send(b"bc")
    moved = await own_origin.request()
    assert moved.one(b"onetrip-attempt") == b"2"
    held.go.set()  # now the first connection is free
    await wait_for(lambda: region(proxy, "near").endpoints[0].ready)
    far.go.set()
    assert (await client.response()).status == 200
    await proxy.quiet()
    assert [got.target for got in origin.requests] == [b"/busy"]
    assert len(own_origin.requests) == 1
    assert blamed(proxy, "far") == 0


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_what_was_sent_to_a_drained_region(
    start: Start, origin: Origin, own_origin: Origin, method: bytes
) -> None:
    held = Held()
    origin.answer = held
    proxy = await start(regions(origin.port, own_origin.port))
    client = await proxy.connect()
    await client.send(request(method, extra=b"content-length: 1\r\n", body=b"x"))
    await origin.request()
    drain(proxy, "near")
    if method == b"GET":
        await own_origin.request()
    held.go.set()
    assert (await client.response()).status == 200
    await proxy.quiet()
    assert len(own_origin.requests) == (method == b"GET")


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_a_reload_that_closes_the_pool_where_it_waits(
    start: Start, origin: Origin, own_origin: Origin, method: bytes
) -> None:
    """It is picked anew, and no try of it counts: not even with retries off."""
    held = Held()
    origin.answer = held
    proxy = await start(regions(origin.port, own_origin.port, max_connections=1, retry="off"))
    busy = await proxy.connect()
    await busy.send(request(b"POST", b"/busy", b"content-length: 0\r\n"))
    await origin.request()
    client = await proxy.connect()
    await client.send(request(method, extra=b"content-length: 1\r\n", body=b"x"))
    pool = proxy.upstream.pool_at[region(proxy, "near").endpoints[0]]
    await wait_for(lambda: any(attempt.waiting for attempt in pool.waiters))
    proxy.upstream.balancer.drain("near", monotonic(), None)
    waiting = next(attempt for attempt in pool.waiters if attempt.waiting)
    proxy.worker.turn.begin()
    waiting.on_no_connection(ProxyError(Kind.REPLACED, "the pool was replaced", unprocessed=True))
    proxy.worker.turn.end()
    assert (await client.response()).status == 200
    assert (await own_origin.request()).one(b"onetrip-attempt") is None
    assert blamed(proxy) == 0
    held.go.set()
    await proxy.quiet()


async def test_a_pool_that_is_replaced_for_ever(start: Start, origin: Origin) -> None:
    """Where the pick leads to such a pool again and again, the request ends."""

    class Replaced:
        """A pool that is closed, whoever asks."""

        asked = 0

        def __init__(self, pool: Any) -> None:
            self.pool = pool

        def __getattr__(self, name: str) -> Any:
            return getattr(self.pool, name)

        def acquire(self, attempt: Any) -> None:
            Replaced.asked += 1
            attempt.on_no_connection(ProxyError(Kind.REPLACED, "the pool was replaced", unprocessed=True))

        def forget(self, attempt: Any) -> None:
            """Nobody waits."""

    proxy = await start(regions(origin.port, origin.port))
    pools = proxy.upstream.pool_at.copy()
    for target, pool in pools.items():
        proxy.upstream.pool_at[target] = Replaced(pool)
    client = await proxy.connect()
    assert (await client.get()).status == 503
    assert 1 < Replaced.asked < 32
    proxy.upstream.pool_at.update(pools)
    assert (await client.get()).status == 200


@pytest.mark.parametrize("seed", range(3))
async def test_no_origin_sees_a_post_twice(start: Start, origin: Origin, own_origin: Origin, seed: int) -> None:
    """Origins that are slow, reset, close and refuse; regions that are drained and come back."""
    dice = random.Random(seed)
    seen: Counter[bytes] = Counter()

    async def answer(peer: OriginPeer, got: Message) -> None:
        seen[got.target] += 1
        await peer.body(got)
        what = dice.random()
        if what < 0.1:
            peer.reset()
        elif what < 0.2:
            peer.close()
        else:
            await asyncio.sleep(dice.random() * 0.01)
            await peer.send_quietly(OK if what < 0.9 else b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
            if what > 0.8:
                peer.close()  # idle, while the next one may be on its way

    origin.answer = own_origin.answer = answer
    proxy = await start(regions(origin.port, own_origin.port, max_connections=3, retry="{attempts: 5, budget: 100%}"))
    answered: Counter[int] = Counter()

    async def post(number: int) -> None:
        for again in range(15):
            client = await proxy.connect()
            target = b"/%d-%d" % (number, again)
            try:
                got = await client.ask(request(b"POST", target, b"content-length: 5\r\n", b"hello"))
                answered[got.status] += 1
            except Ended:
                answered[0] += 1
            client.close()

    async def unrest() -> None:
        while True:
            await asyncio.sleep(dice.random() * 0.02)
            name = dice.choice(("near", "far"))
            drain(proxy, name)
            await asyncio.sleep(dice.random() * 0.01)
            proxy.upstream.balancer.undrain(name, monotonic())

    troublemaker = asyncio.ensure_future(unrest())
    await asyncio.gather(*(post(number) for number in range(12)))
    troublemaker.cancel()
    assert answered[200] > 60
    assert [target for target, count in seen.items() if count > 1] == []
