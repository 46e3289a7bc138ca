"""What clients do and what runs out here is no evidence against a region, and is not tried again elsewhere in vain."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import pytest

from proxy.errors import Kind, ProxyError
from proxy.net import dial

from ..matrix import peers
from .harness import OK, Ended, Message, Origin, OriginPeer, Proxy, raw, request, wait_for
from .regions import blamed, region, regions

pytestmark = pytest.mark.asyncio(loop_scope="module")
Start = Callable[[str], Awaitable[Proxy]]
WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA\r\n"
CALL = b"te: trailers\r\nconnection: te\r\ncontent-type: application/grpc\r\ncontent-length: 5\r\n"
PAUSE_S = 0.1
"""A client's pace: far above what an origin on this machine takes."""


# What an HTTP/2 origin does not take.


@pytest.mark.parametrize(
    ("extra", "status"), [(b"cookie: a=" + b"x" * 10_000 + b"\r\n", 431), (WEBSOCKET, 502)], ids=["head", "websocket"]
)
async def test_what_an_http2_origin_does_not_take(start: Start, extra: bytes, status: int) -> None:
    origins = [peers.Origin("h2", None) for _ in range(2)]
    for origin in origins:
        origin.settings = {"max_header_list_size": 8192, "enable_connect_protocol": 0}
        await origin.start()
    proxy = await start(regions(origins[0].port, origins[1].port, protocol="h2"))
    for _ in range(8):
        client = await proxy.connect()
        got = await client.get(extra=extra)
        assert got.status == status
        assert got.body.count(b"tried") == 1
    assert blamed(proxy) == blamed(proxy, "far") == 0
    assert region(proxy, "near").state.name == "HEALTHY"
    for origin in origins:
        await origin.close()


async def test_an_answer_above_our_limits(start: Start, origin: Origin, own_origin: Origin) -> None:
    """One user's many cookies: the same answer anywhere, and no fault of a region."""
    origin.answer = own_origin.answer = raw(
        b"HTTP/1.1 200 OK\r\nset-cookie: %b\r\n\r\n" % (b"x" * 1_000_000), then="close"
    )
    proxy = await start(regions(origin.port, own_origin.port))
    client = await proxy.connect()
    for _ in range(8):
        assert (await client.get()).status == 502
    assert blamed(proxy) == 0
    assert len(origin.requests) == 8
    assert own_origin.requests == []


# Limits and pace of the client.


async def silent(peer: OriginPeer, got: Message) -> None:
    """Never an answer."""
    await peer.gone()


async def test_a_calls_own_deadline(start: Start, origin: Origin, own_origin: Origin) -> None:
    origin.answer = silent
    proxy = await start(regions(origin.port, own_origin.port))
    client = await proxy.connect()
    for _ in range(8):
        got = await client.ask(request(b"POST", b"/s/m", CALL + b"grpc-timeout: 5m\r\n", b"\0" * 5))
        assert got.one(b"grpc-status") == b"4"
    assert blamed(proxy) == 0
    assert own_origin.requests == []


async def test_a_stream_that_is_quiet_after_its_head(start: Start, origin: Origin, own_origin: Origin) -> None:
    async def quiet(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        await peer.gone()

    origin.answer = quiet
    proxy = await start(regions(origin.port, own_origin.port, idle="100ms", response="150ms"))
    for _ in range(2):
        client = await proxy.connect()
        with pytest.raises(Ended):
            await client.get()
    await proxy.quiet()
    assert blamed(proxy) == 0
    assert region(proxy, "near").counts.current.answered == 2  # by their heads


@pytest.mark.parametrize("ending", ["complete", "leaves"])
async def test_a_slow_upload(start: Start, origin: Origin, own_origin: Origin, ending: str) -> None:
    proxy = await start(
        regions(
            origin.port,
            own_origin.port,
            hedge="{min_delay: 5ms, max_delay: 20ms}",
            retry="{attempts: 2, budget: 100%, idempotency_key: true}",
        )
    )
    for _ in range(3):
        client = await proxy.connect()
        await client.send(request(b"POST", extra=b"content-length: 4\r\nidempotency-key: k\r\n", body=b"ab"))
        await origin.request()
        await asyncio.sleep(PAUSE_S)  # the client's pace, not a wait
        if ending == "leaves":
            client.close()
            continue
        assert (await client.ask(b"cd")).status == 200
    await proxy.quiet()
    assert blamed(proxy) == 0
    near = region(proxy, "near")
    assert near.endpoints[0].service.read(monotonic()) < PAUSE_S / 2
    assert own_origin.requests == []  # no hedge either: its delay counts from the end of the body
    if ending == "complete":
        latency = proxy.upstream.counters.latency["near"]
        assert latency.total < 3 * PAUSE_S / 2


async def test_an_early_answer_to_a_slow_upload(start: Start, origin: Origin, own_origin: Origin) -> None:
    async def after_a_part(peer: OriginPeer, got: Message) -> None:
        await peer.exactly(4)
        await peer.send(OK)
        await peer.gone()

    origin.answer = after_a_part
    proxy = await start(regions(origin.port, own_origin.port))
    client = await proxy.connect()
    await client.send(request(b"POST", extra=b"content-length: 9\r\n", body=b"ab"))
    await origin.request()
    await asyncio.sleep(PAUSE_S)  # the client's pace
    assert (await client.ask(b"cd")).status == 200
    await proxy.quiet()
    near = region(proxy, "near")
    assert near.counts.current.answered == 1
    assert near.endpoints[0].service.read(monotonic()) < PAUSE_S / 2


# What runs out here.


class FakePool:
    """A pool that has no connection, for this reason."""

    def __init__(self, pool: Any, error: ProxyError) -> None:
        self.pool = pool
        self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    def acquire(self, attempt: Any) -> None:
        attempt.on_no_connection(self.error)

    def forget(self, attempt: Any) -> None:
        """Nobody waits."""


async def test_a_full_pool(start: Start, origin: Origin, own_origin: Origin) -> None:
    """Elsewhere there may be room: POSTs go there too, for nothing was sent."""
    proxy = await start(regions(origin.port, own_origin.port))
    target = region(proxy, "near").endpoints[0]
    pool = proxy.upstream.pool_at[target]
    full = ProxyError(Kind.POOL_FULL, "4096 requests wait", unprocessed=True)
    proxy.upstream.pool_at[target] = FakePool(pool, full)
    client = await proxy.connect()
    for _ in range(8):
        assert (await client.ask(request(b"POST", extra=b"content-length: 0\r\n"))).status == 200
    proxy.upstream.pool_at[target] = pool
    assert blamed(proxy) == 0
    assert len(own_origin.requests) == 8
    assert origin.requests == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM])
async def test_no_socket(
    start: Start, origin: Origin, own_origin: Origin, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: Any) -> socket.socket:
        raise OSError(code, os.strerror(code))

    proxy = await start(regions(origin.port, own_origin.port, warm=0))
    monkeypatch.setattr(dial, "new_socket", fail)
    client = await proxy.connect()
    for _ in range(4):
        got = await client.get()
        assert got.status == 503
        assert os.strerror(code).encode() in got.body
        assert dial._EXHAUSTED[code].encode() in got.body
        assert got.body.count(b"tried") == 2  # each endpoint once
    assert blamed(proxy) == blamed(proxy, "far") == 0


async def test_no_socket_for_one_more_connection(
    start: Start, origin: Origin, own_origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait get a connection that is given back."""
    go = asyncio.Event()

    async def held(peer: OriginPeer, got: Message) -> None:
        await go.wait()
        await peer.send(OK)

    origin.answer = held
    proxy = await start(regions(origin.port, own_origin.port, max_connections=2))
    pool = proxy.upstream.pool_at[region(proxy, "near").endpoints[0]]

    def fail(*_: Any) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(dial, "new_socket", fail)
    clients = [await proxy.connect() for _ in range(2)]
    for client in clients:
        await client.send(request())
    await wait_for(lambda: pool.counters.dial_failures >= 1 and len(origin.requests) == 1)
    go.set()
    for client in clients:
        assert (await client.response()).status == 200
    assert len(origin.requests) == 2
    assert blamed(proxy) == 0


# The last resort.


async def test_drained_regions_are_tried_before_an_error(start: Start, origin: Origin, own_origin: Origin) -> None:
    """Where the regions that are left fail, each request is tried in the drained one, whatever the budget."""
    origin.answer = raw(b"HTTP/1.1 503 No\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n")
    proxy = await start(regions(origin.port, own_origin.port, retry="{attempts: 2, budget: 1%}"))
    proxy.upstream.balancer.drain("far", monotonic(), None)
    client = await proxy.connect()
    for _ in range(40):
        assert (await client.get()).status == 200
