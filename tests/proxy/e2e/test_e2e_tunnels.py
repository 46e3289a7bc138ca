"""Upgrade, CONNECT, half-closed connections and clients that leave, through the whole proxy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from .harness import OK, Client, Ended, Message, Origin, OriginPeer, Proxy, config, echo, raw, request, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]

# Upgrade, CONNECT.

UPGRADE = b"connection: Upgrade\r\nupgrade: websocket\r\n"


async def test_upgrade(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        assert got.one(b"upgrade") == b"websocket"
        assert b"upgrade" in (got.one(b"connection") or b"").lower()
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx: y\r\n\r\nhi"
        )
        while True:
            await peer.fill()
            data, peer.held = peer.held, b""
            await peer.send(data.upper())

    origin.answer = answer
    answer_ = await client.ask(request(extra=UPGRADE) + b"early")
    assert answer_.status == 101
    assert answer_.one(b"upgrade") == b"websocket"
    assert (answer_.one(b"connection") or b"").lower() == b"upgrade"
    assert answer_.one(b"x") == b"y"
    assert await client.exactly(7) == b"hiEARLY"
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert await client.exactly(18) == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("who", ["client", "origin"])
async def test_tunnel_half_close(proxy: Proxy, origin: Origin, client: Client, who: str) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        if who == "client":
            data = await peer.rest()
            await peer.send(data.upper())
        else:
            await peer.send(b"bye")
            peer.half_close()
            assert await peer.exactly(4) == b"late"
            origin.cut.append(await peer.rest())

    origin.answer = answer
    assert (await client.ask(request(extra=UPGRADE))).status == 101
    if who == "client":
        await client.send(b"abc")
        client.half_close()
        assert await client.closed() == b"ABC"
    else:
        assert await client.rest() == b"bye"
        await client.send(b"late")
        client.half_close()
        await wait_for(lambda: origin.cut == [b""])


@pytest.mark.parametrize("status", [200, 400, 426, 204])
async def test_upgrade_refused(proxy: Proxy, origin: Origin, client: Client, status: int) -> None:
    origin.answer = raw(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
    answer = await client.ask(request(extra=UPGRADE) + request(target=b"/next"))
    assert answer.status == status
    assert (await client.response()).status == status
    assert [got.target for got in origin.requests] == [b"/", b"/next"]
    assert (await client.get()).status == status


@pytest.mark.parametrize("protocol", [b"h2c", b"HTTP/2.0", b"TLS/1.0", b"h2c, TLS/1.2", b"h2"])
async def test_upgrades_to_what_nobody_reads_are_ignored(
    proxy: Proxy, origin: Origin, client: Client, protocol: bytes
) -> None:
    extra = (
        b"connection: upgrade, http2-settings\r\nupgrade: %b\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" % protocol
    )
    assert (await client.get(extra=extra)).status == 200
    got = await origin.request()
    assert got.one(b"upgrade") is None
    assert got.one(b"http2-settings") is None
    assert got.one(b"connection") is None


async def test_websocket(proxy: Proxy, start: object) -> None:
    async def handler(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with serve(handler, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        through = await Proxy(config(port)).start()
        try:
            url = f"ws://127.0.0.1:{through.ports['web']}/x"
            async with connect(url, max_size=None, proxy=None) as socket:
                for message in ("hello", b"\0\1", "x" * 300_000):
                    await socket.send(message)
                    assert await socket.recv() == message
        finally:
            await through.stop()
            server.close(close_connections=True)
    assert not through.complaints


@pytest.mark.parametrize(
    ("route", "asked", "passed"),
    [
        ("", b"websocket", b"websocket"),
        ("", b"websocket, h2c", b"websocket"),
        ("", b"h2c, foo/1, WebSocket, bar", b"websocket"),
        ("", b"foo/1", None),
        ("", b"foo/1, bar", None),
        ("", b"websocket/13", None),
        ("", b"websockets", None),
        ("", b"web socket", None),
        ("upgrade: []", b"websocket", None),
        ("upgrade: [foo/1, Bar]", b"websocket, bar, foo/1", b"bar"),
        ("upgrade: [foo/1]", b"foo", None),
    ],
)
async def test_only_upgrades_that_the_route_names_pass(
    start: Start, own_origin: Origin, route: str, asked: bytes, passed: bytes | None
) -> None:
    proxy = await start(config(own_origin.port, route=route))
    client = await proxy.connect()
    answer = await client.ask(
        request(extra=b"connection: upgrade\r\nupgrade: %b\r\n" % asked) + request(target=b"/next")
    )
    assert answer.status == 200
    got = await own_origin.request()
    assert got.one(b"upgrade") == passed
    assert (got.one(b"connection") or b"").lower() == (b"upgrade" if passed else b"")
    assert (await client.response()).status == 200  # the connection goes on
    assert [got.target for got in own_origin.requests] == [b"/", b"/next"]


async def test_an_upgrade_that_is_ignored_is_an_ordinary_request(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: foo/1\r\n\r\nhi")
    answer = await client.ask(request(extra=b"connection: upgrade\r\nupgrade: foo/1\r\n") + b"GET /evil HTTP/1.1\r\n")
    assert answer.status == 502
    assert [got.target for got in origin.requests] == [b"/"]


CONNECT = b"CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n"


async def test_connect_is_refused_unless_a_route_takes_it(proxy: Proxy, origin: Origin, client: Client) -> None:
    answer = await client.ask(CONNECT + request(target=b"/evil"), method=b"CONNECT")
    assert answer.status == 501
    assert b"`connect: true` on the route" in (answer.one(b"proxy-status") or b"")
    assert await client.closed() == b""
    assert not origin.requests


async def test_connect(start: Start, own_origin: Origin) -> None:
    origin = own_origin
    proxy = await start(config(origin.port, route="connect: true"))
    client = await proxy.connect()

    async def answer(peer: OriginPeer, got: Message) -> None:
        assert got.target == b"a.test:443"
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\ntransfer-encoding: chunked\r\n\r\nhi")
        await peer.send(b"<" + await peer.exactly(4) + b">")

    # RFC 9110 section 9.3.6: framing in a 2xx answer to CONNECT is ignored, so it may be refused, but never honoured
    origin.answer = answer
    answer_ = await client.ask(CONNECT + b"ping", method=b"CONNECT")
    if answer_.status == 200:
        assert answer_.one(b"content-length") is None
        assert await client.closed() == b"hi<ping>"
    else:
        assert answer_.status == 502


async def test_connect_refused(start: Start, own_origin: Origin) -> None:
    origin = own_origin
    proxy = await start(config(origin.port, route="connect: true"))
    client = await proxy.connect()
    origin.answer = raw(b"HTTP/1.1 405 No\r\ncontent-length: 2\r\n\r\nno")
    answer = await client.ask(CONNECT + request())
    assert answer.status == 405
    assert answer.body == b"no"
    assert await client.closed() == b""
    assert len(origin.requests) == 1


# Half-close and aborts.


async def test_half_closed_client_is_answered(proxy: Proxy, origin: Origin, client: Client) -> None:
    go = asyncio.Event()

    async def answer(peer: OriginPeer, got: Message) -> None:
        await go.wait()
        await peer.send(OK)

    origin.answer = answer
    await client.send(request() + request(target=b"/2"))
    client.half_close()
    await origin.request()
    go.set()
    assert (await client.response()).body == b"ok"
    assert (await client.response()).body == b"ok"
    assert await client.closed() == b""


async def test_half_closed_client_with_an_unfinished_request_behind(
    proxy: Proxy, origin: Origin, client: Client
) -> None:
    await client.send(request() + b"GET /unfinished HTT")
    client.half_close()
    assert (await client.response()).body == b"ok"
    await client.closed()
    assert len(origin.requests) == 1


async def test_half_closed_after_a_post(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = echo
    await client.send(request(b"POST", extra=b"content-length: 3\r\n", body=b"abc"))
    client.half_close()
    assert (await client.response()).body == b"abc"
    assert await client.closed() == b""


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("when", ["waiting", "streaming", "uploading", "uploading blocked"])
async def test_client_abort_cancels_upstream(proxy: Proxy, origin: Origin, client: Client, when: str, how: str) -> None:
    ended: list[str] = []

    async def answer(peer: OriginPeer, got: Message) -> None:
        if when == "streaming":
            await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            with contextlib.suppress(OSError, Ended):
                while await peer.silent(0.02):
                    await peer.send(b"1\r\nx\r\n")
        if when == "uploading blocked":
            await wait_for(lambda: ended == ["client"])
        ended.append(await peer.gone())

    origin.answer = answer
    if when.startswith("uploading"):
        await client.send(request(b"POST", extra=b"content-length: 50000000\r\n", body=b"x" * 1000))
    else:
        await client.send(request())
    await origin.request()
    if when == "streaming":
        await client.until(b"abc")
    if when == "uploading blocked":
        try:
            async with asyncio.timeout(0.3):
                await client.loop.sock_sendall(client.sock, b"x" * 40_000_000)
        except TimeoutError:
            pass
        ended.append("client")
    getattr(client, how)()
    await wait_for(lambda: ended and ended[-1] in ("eof", "reset"), 3)
    await wait_for(lambda: proxy.listener.counters.in_flight == 0)
    origin.answer = raw(OK)
    assert (await (await proxy.connect()).get()).status == 200
