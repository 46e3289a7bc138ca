"""Who sends too much, reads too little or never ends: memory stays bounded, others are served, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from proxy.exchange.attempt import Attempt
from proxy.exchange.exchange import Exchange
from proxy.http.connection import ConnectionStream

from .harness import OK, Client, Ended, Message, Origin, OriginPeer, Proxy, config, raw, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]
H = b"host: a.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + H + b"\r\n"
MIB = 1 << 20


def buffered(proxy: Proxy) -> int:
    """Bytes that wait to be written, on either side."""
    connections = [*proxy.listener.connections, *(c for pool in proxy.upstream.pools for c in pool.stock.connections)]
    return sum(c.transport.get_write_buffer_size() for c in connections if c.transport is not None)


async def pour(client: Client, data: bytes, limit: int) -> int:
    """Send without ever reading, until it blocks for a moment, or `limit` bytes have gone. Returns how many went."""
    sent = 0
    while sent < limit:
        try:
            async with asyncio.timeout(0.4):
                await client.loop.sock_sendall(client.sock, data)
        except TimeoutError:
            break
        except OSError:
            break
        sent += len(data)
        await asyncio.sleep(0)
    return sent


# Readers that do not read.


@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
async def test_never_reading_client_stops_the_origin(proxy: Proxy, origin: Origin, framing: str) -> None:
    sent = 0
    block = b"x" * 65536
    head = {
        "length": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (3200 * 65536),
        "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "until close": b"HTTP/1.1 200 OK\r\n\r\n",
    }[framing]
    wire = b"10000\r\n" + block + b"\r\n" if framing == "chunked" else block

    async def answer(peer: OriginPeer, got: Message) -> None:
        nonlocal sent
        await peer.send(head)
        for _ in range(3200):
            async with asyncio.timeout(3600):
                await peer.loop.sock_sendall(peer.sock, wire)
            sent += len(wire)

    origin.answer = answer
    client = await proxy.connect(rcvbuf=65536)
    await client.send(GET)
    await wait_for(lambda: sent > 0)
    tracemalloc.start()
    try:
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent < 32 * MIB, "the origin was not stopped"
    assert grown < 4 * MIB
    assert buffered(proxy) < MIB
    client.reset()


async def test_slow_reader_gets_everything(proxy: Proxy, origin: Origin) -> None:
    size = 24 * MIB

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for i in range(size // 65536):
            await peer.send(bytes([i % 256]) * 65536)

    origin.answer = answer
    client = await proxy.connect(rcvbuf=32768)
    await client.send(GET)
    await client.until(b"\r\n\r\n")
    for i in range(size // 65536):
        assert await client.exactly(65536) == bytes([i % 256]) * 65536
        if i % 64 == 0:
            await asyncio.sleep(0.005)
    origin.answer = raw(OK)
    assert (await client.get()).body == b"ok"


@pytest.mark.parametrize("chunked", [False, True])
async def test_upload_to_an_origin_that_does_not_read(proxy: Proxy, origin: Origin, chunked: bool) -> None:
    go = asyncio.Event()

    async def answer(peer: OriginPeer, got: Message) -> None:
        await go.wait()
        await peer.gone()

    origin.answer = answer
    client = await proxy.connect()
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: 1000000000"
    await client.send(b"POST / HTTP/1.1\r\n" + H + framing + b"\r\n\r\n")
    await origin.request()
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 65536
    sent = await pour(client, block, 100 * MIB)
    assert sent < 32 * MIB, "the client was not stopped"
    assert buffered(proxy) < MIB
    client.reset()
    go.set()
    await wait_for(lambda: proxy.listener.counters.in_flight == 0)


async def test_upload_before_there_is_a_connection(start: Start, own_origin: Origin) -> None:
    """No connection yet: the body waits at the client, not here."""
    import socket

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        proxy = await start(config(full.getsockname()[1]).replace("connect: 2s", "connect: 1s"))
        client = await proxy.connect()
        await client.send(b"POST / HTTP/1.1\r\n" + H + b"content-length: 1000000000\r\n\r\n")
        sent = await pour(client, b"x" * 65536, 100 * MIB)
        assert sent < 32 * MIB
        assert (await client.response()).status in (502, 503, 504)
        client.close()
        await proxy.end_test()
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("wire", [GET, b"OPTIONS / HTTP/1.1\r\n" + H + b"max-forwards: 0\r\n\r\n",
                                  b"GET / HTTP/1.1\r\n" + H + b"via: 1.1 onetrip\r\n\r\n",
                                  b"TRACE / HTTP/1.1\r\n" + H + b"max-forwards: 0\r\nx: " + b"y" * 8000 + b"\r\n\r\n"],
                         ids=["get", "options", "loop", "trace"])  # fmt: skip
async def test_pipelining_without_reading(proxy: Proxy, origin: Origin, wire: bytes) -> None:
    origin.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n" + b"x" * 20000)
    client = await proxy.connect(rcvbuf=16384)
    await pour(client, wire * 200, 4 * MIB)
    assert buffered(proxy) < 2 * MIB, f"{buffered(proxy)} bytes wait for a client that does not read"
    served = -1
    async with asyncio.timeout(10):  # what was sent is read in turns: until it comes to rest
        while served != (served := len(origin.requests) + sum(proxy.listener.counters.codes.values())):
            await asyncio.sleep(0.1)
    assert buffered(proxy) < 2 * MIB, f"{buffered(proxy)} bytes wait for a client that does not read"
    client.reset()


async def test_pipelining_then_reading(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000)
    sending = asyncio.ensure_future(client.send(GET * 1500))
    await asyncio.sleep(0.2)
    for _ in range(1500):
        assert len((await client.response()).body) == 2000
    await sending


# Floods.


async def test_header_floods(proxy: Proxy, origin: Origin) -> None:
    for extra in (b"x: y\r\n" * 200, b"x: y\r\n" * 20_000, b"x: " + b"y" * 70_000 + b"\r\n", b"x" * 70_000 + b": y\r\n",
                  b"cookie: a=b\r\n" * 200):  # fmt: skip
        client = await proxy.connect()
        sending = asyncio.ensure_future(client.send_quietly(b"GET / HTTP/1.1\r\n" + H + extra + b"\r\n"))
        answered = await client.response()
        assert answered.status == 431
        await sending
        await client.closed()
    assert not origin.requests
    assert (await (await proxy.connect()).get(extra=b"x: y\r\n" * 120)).status == 200


async def test_endless_head(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.send(b"GET / HTTP/1.1\r\n")
    sent = await pour(client, b"x: y\r\n" * 10_000, 64 * MIB)
    assert sent < 16 * MIB
    with contextlib.suppress(Ended):
        assert (await client.response()).status == 431


async def test_many_tiny_chunks(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.body(got)
        await peer.send(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\ny\r\n" * 40_000 + b"0\r\n\r\n"
        )

    origin.answer = answer
    wire = b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n"
    sending = asyncio.ensure_future(client.send(wire))
    answered = await client.response()
    await sending
    assert answered.body == b"y" * 40_000
    assert origin.requests[0].body == b"x" * 40_000


async def test_chunk_extension_flood(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.send(b"POST / HTTP/1.1\r\n" + H + b"transfer-encoding: chunked\r\n\r\n")
    await pour(client, (b"1;" + b"e" * 500 + b"\r\nx\r\n") * 100, 4 * MIB)
    assert (await client.response()).status == 400


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_limit(start: Start, own_origin: Origin, chunked: bool) -> None:
    own_origin.answer = raw(OK)
    proxy = await start(config(own_origin.port, limits="body_bytes: 100KiB"))
    client = await proxy.connect()
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: 200000"
    await client.send(b"POST / HTTP/1.1\r\n" + H + framing + b"\r\n\r\n")
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 65536
    await client.send_quietly(block, block, block)
    answered = await client.response()
    assert answered.status == 413
    assert answered.one(b"connection") == b"close"
    await client.closed()
    fits = b"POST / HTTP/1.1\r\n" + H + b"content-length: 102400\r\n\r\n" + b"x" * 102400
    assert (await (await proxy.connect()).ask(fits)).status == 200
    await proxy.end_test()


async def test_connection_limit(start: Start, own_origin: Origin) -> None:
    proxy = await start(config(own_origin.port, limits="connections: 10"))
    inside = [await proxy.connect() for _ in range(10)]
    for client in inside:
        assert (await client.get()).status == 200
    for _ in range(50):
        client = await proxy.connect()
        await client.send_quietly(GET)
        answered = await client.response()
        assert answered.status == 503
        assert answered.one(b"retry-after")
        await client.closed()
    assert (await inside[0].get()).status == 200
    inside[1].close()
    await wait_for(lambda: proxy.listener.counters.connections == 9)
    assert (await (await proxy.connect()).get()).status == 200
    await proxy.end_test()


async def test_many_half_open_requests(start: Start, own_origin: Origin) -> None:
    proxy = await start(config(own_origin.port, limits="header_timeout: 500ms"))
    slow = [await proxy.connect() for _ in range(300)]
    for client in slow:
        await client.send(b"GET / HTTP/1.1\r\nhost: a.test\r\nx: ")
    good = await proxy.connect()
    for _ in range(3):
        assert (await good.get()).status == 200
    for client in slow:
        assert (await client.response()).status == 408
        await client.closed()
    assert (await good.get()).status == 200
    await proxy.end_test()


async def test_more_requests_than_connections(start: Start, own_origin: Origin) -> None:
    proxy = await start(config(own_origin.port, max_connections=3))
    open_now = most = 0

    async def answer(peer: OriginPeer, got: Message) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.002)
        open_now -= 1
        await peer.send(OK)

    own_origin.answer = answer
    clients = [await proxy.connect() for _ in range(60)]
    answers = await asyncio.gather(*(client.get() for client in clients))
    assert [answered.status for answered in answers] == [200] * 60
    assert most <= 3
    assert own_origin.accepted <= 3
    await proxy.end_test()


# What is left behind.


def alive(kind: type) -> int:
    return sum(1 for one in gc.get_objects() if type(one) is kind)


@pytest.mark.parametrize("case", ["answers", "errors", "aborts", "uploads", "retries"])
async def test_nothing_is_left_of_requests(start: Start, own_origin: Origin, case: str) -> None:
    """Requests make no reference cycles: with the collector off, none of their objects stays."""

    async def answer(peer: OriginPeer, got: Message) -> None:
        if case == "aborts":
            await peer.gone()
        elif case == "errors":
            await raw(b"garbage", then="close")(peer, got)
        elif case == "retries" and not got.one(b"onetrip-attempt"):
            await raw(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n")(peer, got)
        else:
            await raw(OK)(peer, got)

    own_origin.answer = answer
    proxy = await start(config(own_origin.port, retry="{attempts: 1, budget: 100%}" if case == "retries" else "off"))
    gc.collect()
    before = {kind: alive(kind) for kind in (Exchange, Attempt, ConnectionStream)}
    gc.disable()
    try:
        for _ in range(30):
            client = await proxy.connect()
            if case == "uploads":
                body = b"POST / HTTP/1.1\r\n" + H + b"content-length: 300000\r\n\r\n" + b"x" * 300_000
                assert (await client.ask(body)).status == 200
            elif case == "aborts":
                count = len(own_origin.requests)
                await client.send(GET)
                await own_origin.request(count + 1)
                client.reset()
            else:
                assert (await client.get()).status == (502 if case == "errors" else 200)
            client.close()
        await wait_for(lambda: not proxy.listener.connections and proxy.listener.counters.in_flight == 0)
        await proxy.quiet()
        left = {kind.__name__: alive(kind) - before[kind] for kind in before}
    finally:
        gc.enable()
    assert all(count <= 2 for count in left.values()), left
    await proxy.end_test()


async def test_idle_upstream_connections_are_closed(start: Start, own_origin: Origin) -> None:
    """What the pool lets go of is closed, not only forgotten."""

    async def answer(peer: OriginPeer, got: Message) -> None:
        await wait_for(lambda: len(own_origin.requests) >= 10)
        await peer.send(OK)

    own_origin.answer = answer
    proxy = await start(config(own_origin.port, idle="200ms", warm=1))
    clients = [await proxy.connect() for _ in range(10)]
    await asyncio.gather(*(client.get() for client in clients))
    assert len(own_origin.peers) >= 10
    await wait_for(lambda: len(proxy.pool.stock.connections) <= 1)
    await wait_for(lambda: len(own_origin.peers) <= 1, 2)


def open_files() -> int:
    """Descriptors, without those of the memory of first flights, which is the program's and lives as long."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum("onetrip-replay" not in link for link in links)


async def test_stopping_closes_every_socket(own_origin: Origin) -> None:
    gc.collect()
    before = open_files()
    proxy = await Proxy(config(own_origin.port, warm=3)).start()
    clients = [await proxy.connect() for _ in range(5)]
    for client in clients:
        await client.get()
    await proxy.stop()
    await wait_for(lambda: not own_origin.peers, 2)
    gc.collect()
    await wait_for(lambda: open_files() <= before, 2)
