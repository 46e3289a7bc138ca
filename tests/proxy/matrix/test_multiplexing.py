"""What only HTTP/2 has: connections shared by requests, their limits and ends, and requests that read differently."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.http.compression.hpack import Encoder
from proxy.http.h2 import frames as wire

from .conftest import Lab, Start, start_proxy, wait_for
from .peers import Gone, H2Message, Origin, connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

REFUSED_STREAM, CANCEL = 7, 8


async def answer_path(got: Any) -> None:
    await got.body()
    await got.respond(200, [("content-length", str(len(got.path)))])
    await got.send(got.path.encode())
    await got.end()


def answer_path_once(go_on: asyncio.Event) -> Callable[[Any], Awaitable[None]]:
    """`answer_path`, held back until the event."""

    async def handler(got: Any) -> None:
        await go_on.wait()
        await answer_path(got)

    return handler


# The end of a connection to the origin.


async def test_goaway_fails_no_request(start: Start) -> None:
    """What the origin still answers is answered, what it left out goes over a fresh connection: POSTs, too."""
    origin, proxy = await start("h2")
    go_on = asyncio.Event()

    origin.handler = answer_path_once(go_on)
    client = await connect("h2", proxy.port, None)
    calls = [await client.start("POST", f"/{number}", [("content-length", "0")]) for number in range(10)]
    await wait_for(lambda: len(origin.requests) == 10)
    peer = origin.requests[0].peer
    kept = sorted(got.id for got in origin.requests)[4]
    peer.writer.write(wire.goaway(kept, wire.NO_ERROR))
    await wait_for(lambda: len(origin.requests) == 15)  # five came again
    later = await client.start("GET", "/later")
    await wait_for(lambda: len(origin.requests) == 16)
    assert {got.peer for got in origin.requests[10:]} != {peer}
    assert all(got.peer is not peer for got in origin.requests[10:])
    go_on.set()
    assert [await call.body() for call in calls] == [b"/%d" % number for number in range(10)]
    assert await later.body() == b"/later"
    await wait_for(lambda: peer.closed)
    await client.close()
    await proxy.quiet()


async def test_origins_that_come_and_go_under_load(start: Start) -> None:
    """Every connection ends by GOAWAY after a few requests, for ever; no request notices."""
    origin, proxy = await start("h2", warm=2)

    async def handler(got: Any) -> None:
        peer = got.peer
        peer.served = getattr(peer, "served", 0) + 1
        if peer.served == 7:
            peer.writer.write(wire.goaway(max(peer.streams), wire.NO_ERROR))
        await answer_path(got)

    origin.handler = handler
    client = await connect("h2", proxy.port, None)

    async def run(worker: int) -> None:
        for number in range(40):
            call = await client.start("POST", f"/{worker}/{number}", [("content-length", "0")])
            assert await call.status() == 200
            assert await call.body() == f"/{worker}/{number}".encode()

    await asyncio.gather(*(run(worker) for worker in range(8)))
    assert len(origin.peers) > 30
    await client.close()
    await proxy.quiet()


async def test_refused_streams_are_tried_again(start: Start) -> None:
    origin, proxy = await start("h2")

    async def handler(got: Any) -> None:
        if not got.one("onetrip-attempt"):
            await got.reset(REFUSED_STREAM)
        else:
            await answer_path(got)

    origin.handler = handler
    client = await connect("h1", proxy.port, None)
    for _ in range(3):
        call = await client.start("POST", "/x", [("content-length", "4")], end=False)
        await call.send(b"body")
        assert await call.status() == 200
        assert await call.body() == b"/x"
    assert [len(got.data) for got in origin.requests if got.one("onetrip-attempt")] == [4] * 3
    await client.close()
    await proxy.quiet()


async def test_a_stream_that_is_reset_twice_over_goes_to_the_client_as_502(start: Start) -> None:
    origin, proxy = await start("h2")

    async def handler(got: Any) -> None:
        await got.reset(REFUSED_STREAM)

    origin.handler = handler
    client = await connect("h2", proxy.port, None)
    call = await client.start("POST", "/x", [("content-length", "0")])
    assert await call.status() == 503
    assert len(origin.requests) == 3  # retry: {attempts: 2}
    await call.body()
    await client.close()
    await proxy.quiet()


async def test_a_connection_that_dies_takes_nothing_new_with_it(start: Start) -> None:
    """GETs that were open on it go again over another one, not over the dead one."""
    origin, proxy = await start("h2", warm=2)

    async def handler(got: Any) -> None:
        if got.one("onetrip-attempt"):
            await answer_path(got)
        elif len(origin.requests) == 6:
            for peer in origin.peers:
                peer.writer.transport.abort()

    origin.handler = handler
    client = await connect("h2", proxy.port, None)
    calls = [await client.start("GET", f"/{number}") for number in range(6)]
    assert [await call.status() for call in calls] == [200] * 6
    for call in calls:
        await call.body()
    await client.close()
    await proxy.quiet()


async def test_a_path_that_dies_is_found_by_its_pings(lab: Lab) -> None:
    """An origin that acknowledges (its kernel does) and answers nothing: requests that wait there are moved."""
    silent = await Origin("h2", None).start()
    proxy = await start_proxy(lab, silent.port, down_tls=False, up="h2", up_tls=False, keepalive="400ms", warm=1)
    client = await connect("h2", proxy.port, None)
    first = await client.start("GET", "/first")
    assert await first.body() == b"ok"
    (pool,) = proxy.upstream.pools
    (dead,) = pool.stock.shared
    silent.peers[0].writer.transport.pause_reading()
    call = await client.start("GET", "/moved")
    await wait_for(lambda: dead not in pool.stock.shared)
    assert await call.status() == 200
    assert await call.body() == b"ok"
    assert silent.requests[-1].one("onetrip-attempt") == "2"
    await client.close()
    await proxy.quiet()
    await proxy.worker.close()
    await silent.close()


# Limits.


async def test_requests_beyond_the_limit_share_connections_and_wait(start: Start) -> None:
    origin, proxy = await start("h2", warm=1, max_connections=3, settings={"max_concurrent_streams": 4})
    go_on = asyncio.Event()

    origin.handler = answer_path_once(go_on)
    client = await connect("h2", proxy.port, None)
    calls = [await client.start("GET", f"/{number}") for number in range(30)]
    (pool,) = proxy.upstream.pools
    await wait_for(lambda: len(origin.requests) == 12)  # three connections of four
    await wait_for(lambda: sum(1 for attempt in pool.waiters if attempt.waiting) == 18)
    assert len(origin.peers) == 3
    go_on.set()
    assert [await call.body() for call in calls] == [b"/%d" % number for number in range(30)]
    assert len(origin.peers) == 3
    await client.close()
    await proxy.quiet()


async def test_a_burst_is_spread_over_the_warm_connections(start: Start) -> None:
    origin, proxy = await start("h2", warm=5)
    go_on = asyncio.Event()

    origin.handler = answer_path_once(go_on)
    client = await connect("h2", proxy.port, None)
    calls = [await client.start("GET", "/") for _ in range(100)]
    await wait_for(lambda: len(origin.requests) == 100)
    shares = [len(peer.streams) for peer in origin.peers]
    assert shares == [20] * 5
    go_on.set()
    for call in calls:
        await call.body()
    await client.close()
    await proxy.quiet()


async def test_1000_streams_and_one_stalled_reader(start: Start) -> None:
    """One client stops reading a large answer: everybody else, on the same connections, goes on."""
    origin, proxy = await start("h2", warm=1, settings={"max_concurrent_streams": 2000})

    async def handler(got: Any) -> None:
        size = (8 << 20) if got.path == "/stalled" else 5000
        await got.respond(200, [("content-length", str(size))])
        await got.send(bytes(size))
        await got.end()

    origin.handler = handler
    client = await connect("h2", proxy.port, None)
    stalled = await client.start("GET", "/stalled")
    stalled.stop_reading()
    await stalled.until(lambda: stalled.received > 50_000)
    calls = [await client.start("GET", "/") for _ in range(999)]
    for call in calls:
        await call.until(lambda call=call: call.ended)
    assert {call.received for call in calls} == {5000}
    assert stalled.received < 1 << 20
    (connection,) = proxy.listener.connections
    assert connection.codec.held_bytes < 2 << 20
    stalled.data.clear()
    await stalled.read_on()
    await stalled.until(lambda: stalled.ended)
    assert stalled.received == 8 << 20
    await client.close()
    await proxy.quiet()


async def test_held_streams_are_not_woken_by_the_socket(start: Start) -> None:
    """A stream whose window is shut stays blocked while the socket fills and empties with other streams' bytes."""
    origin, proxy = await start("h2", warm=1)

    async def handler(got: Any) -> None:
        await got.respond(200)
        await got.send(bytes(24 << 20))
        await got.end()

    origin.handler = handler
    client = await connect("h2", proxy.port, None, initial_window_size=100_000)
    stalled = await client.start("GET", "/stalled")
    stalled.stop_reading()
    await stalled.until(lambda: stalled.received > 50_000)
    (connection,) = proxy.listener.connections
    for _ in range(20):
        connection.pause_writing()
        connection.resume_writing()
        busy = await client.start("GET", "/busy")
        await busy.until(lambda busy=busy: busy.received > 1 << 20)
        await busy.reset(CANCEL)
    assert connection.codec.held_bytes < 1 << 20
    await client.close()
    await proxy.quiet()


# Upgrades that HTTP/2 does not take.


async def test_websocket_to_an_origin_without_extended_connect(lab: Lab) -> None:
    """Over TLS such an origin also speaks HTTP/1.1, and gets the upgrade there; other requests stay on HTTP/2."""
    h1 = await Origin("h1", lab.server("http/1.1")).start()
    h2 = await Origin("h2", lab.server("h2")).start()
    h2.settings = {"enable_connect_protocol": 0}

    async def by_alpn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        await (h2 if chosen == "h2" else h1)._accept(reader, writer)

    async def websocket(got: Any) -> None:
        await got.accept_websocket()
        await got.send(await got.some(4))
        await got.until(lambda: False)

    h1.handler = websocket
    server = await asyncio.start_server(by_alpn, "127.0.0.1", 0, ssl=lab.server("h2", "http/1.1"))
    port = server.sockets[0].getsockname()[1]
    proxy = await start_proxy(lab, port, down_tls=False, up="auto", up_tls=True)
    client = await connect("h2", proxy.port, None)
    assert await (await client.start("GET", "/")).body() == b"ok"
    for _ in range(2):
        call = await client.websocket()
        assert await call.status() == 200
        await call.send(b"ping")
        assert await call.some(4) == b"ping"
        await call.reset(CANCEL)
    assert len(h2.requests) == 1
    assert len(h1.requests) == 2
    await client.close()
    await proxy.quiet()
    await proxy.worker.close()
    server.close()
    await h1.close()
    await h2.close()


async def test_websocket_to_plain_h2_without_extended_connect(start: Start) -> None:
    _, proxy = await start("h2", settings={"enable_connect_protocol": 0})
    client = await connect("h1", proxy.port, None)
    call = await client.websocket()
    call.upgraded = False
    assert await call.status() == 502
    assert "http_upgrade_failed" in call.one("proxy-status")
    await client.close()
    await proxy.quiet()


# Tunnels that the route does not take.


async def test_extended_connect_only_where_the_route_takes_the_upgrade(start: Start) -> None:
    """It can't be ignored as HTTP/1.1's `upgrade` can: a 2xx would mean that there is a tunnel."""
    origin, proxy = await start("h2", to="routes: [{upstream: app, upgrade: []}]")
    client = await connect("h2", proxy.port, None)
    call = await client.websocket()
    assert await call.status() == 501
    assert "`upgrade` on the route" in call.one("proxy-status")
    assert await (await client.start("GET", "/")).body() == b"ok"
    assert [got.path for got in origin.requests] == ["/"]
    await client.close()
    await proxy.quiet()


@pytest.mark.parametrize("allowed", [False, True])
async def test_connect_only_where_the_route_takes_it(start: Start, allowed: bool) -> None:
    origin, proxy = await start("h1", to=f"routes: [{{upstream: app, connect: {str(allowed).lower()}}}]")
    client = await connect("h2", proxy.port, None)
    stream_id = client.conn.get_next_available_stream_id()
    call = client.streams[stream_id] = H2Message(client, stream_id)
    client.conn.send_headers(stream_id, [(":method", "CONNECT"), (":authority", "a.test:443")])
    await client.flush()
    assert await call.status() == (200 if allowed else 501)
    assert len(origin.requests) == allowed
    await call.reset(CANCEL)
    await client.close()
    await proxy.quiet()


# Requests that would read differently as HTTP/1.1.

GOOD = [(":method", "POST"), (":scheme", "http"), (":authority", "a.test"), (":path", "/")]
SMUGGLED = "GET /smuggled HTTP/1.1"
ATTACKS: dict[str, list[tuple[str, str]]] = {
    "transfer-encoding": [*GOOD, ("transfer-encoding", "chunked")],
    "connection": [*GOOD, ("connection", "close")],
    "keep-alive": [*GOOD, ("keep-alive", "1")],
    "upgrade": [*GOOD, ("upgrade", "websocket")],
    "proxy-connection": [*GOOD, ("proxy-connection", "keep-alive")],
    "crlf in a value": [*GOOD, ("x", f"a\r\n\r\n{SMUGGLED}\r\nhost: a")],
    "lf in a value": [*GOOD, ("x", "a\ntransfer-encoding: chunked")],
    "cr in a value": [*GOOD, ("x", "a\rb")],
    "nul in a value": [*GOOD, ("x", "a\0b")],
    "crlf in a name": [*GOOD, ("x: y\r\nz", "1")],
    "colon in a name": [*GOOD, ("transfer-encoding:chunked", "")],
    "space in a name": [*GOOD, ("transfer-encoding ", "chunked")],
    "upper case": [*GOOD, ("Transfer-Encoding", "chunked")],
    "empty name": [*GOOD, ("", "x")],
    "space in the path": [*GOOD[:3], (":path", "/ HTTP/1.1\r\nx: ")],
    "blank in the path": [*GOOD[:3], (":path", "/a b")],
    "no slash": [*GOOD[:3], (":path", "a.test/")],
    "empty path": [*GOOD[:3], (":path", "")],
    "fragment": [*GOOD[:3], (":path", "/a#b")],
    "absolute path": [*GOOD[:3], (":path", "http://b.test/")],
    "method with a line": [(":method", f"{SMUGGLED}\r\nx:"), *GOOD[1:]],
    "method with a space": [(":method", "GET /x"), *GOOD[1:]],
    "empty method": [(":method", ""), *GOOD[1:]],
    "authority with a path": [*GOOD[:2], (":authority", "a.test/x"), GOOD[3]],
    "authority with userinfo": [*GOOD[:2], (":authority", "u@a.test"), GOOD[3]],
    "authority with a line": [*GOOD[:2], (":authority", "a.test\r\nx: y"), GOOD[3]],
    "two hosts": [*GOOD, ("host", "b.test")],
    "two authorities": [*GOOD[:3], (":authority", "b.test"), GOOD[3]],
    "two paths": [*GOOD, (":path", "/x")],
    "late pseudo-field": [*GOOD[:3], ("x", "y"), GOOD[3]],
    "unknown pseudo-field": [*GOOD, (":x", "y")],
    "status in a request": [*GOOD, (":status", "200")],
    "two lengths": [*GOOD, ("content-length", "3"), ("content-length", "3")],
    "a list of lengths": [*GOOD, ("content-length", "3, 3")],
    "signed length": [*GOOD, ("content-length", "+3")],
    "hexadecimal length": [*GOOD, ("content-length", "0x3")],
    "length too short": [*GOOD, ("content-length", "2")],
    "length too long": [*GOOD, ("content-length", "4")],
    "te": [*GOOD, ("te", "chunked")],
    "unknown scheme": [GOOD[0], (":scheme", "gopher"), *GOOD[2:]],
    "scheme with a path": [GOOD[0], (":scheme", "http://b.test/x?"), *GOOD[2:]],
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("up", ["h1", "h2"])
async def test_downgrade_attack(start: Start, up: str, attack: str) -> None:
    """The client is refused, the origin sees nothing that could be told apart, and the connection lives on."""
    origin, proxy = await start(up)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    encoder = Encoder()
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in ATTACKS[attack]]
    writer.write(wire.PREFACE + wire.settings([]) + wire.head_frames(1, encoder.encode(fields), False))
    writer.write(wire.frame(wire.DATA, wire.END_STREAM, 1, b"abc"))
    good = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"), (b":path", b"/good")]
    writer.write(wire.head_frames(3, encoder.encode(good), True))
    seen: dict[int, list[int]] = {}
    async with asyncio.timeout(5):
        while 3 not in seen or not seen[3][-1] & 0x100:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            stream_id = int.from_bytes(head[5:9], "big")
            seen.setdefault(stream_id, []).append(head[3] | (head[4] & 1) << 8)
    assert wire.RST_STREAM in [kind & 0xFF for kind in seen.get(1, [])], "the attack was answered or ignored"
    complete = [got for got in origin.requests if got.ended]
    assert [got.path for got in complete] == ["/good"]
    writer.close()
    await proxy.quiet()


# Shutting down.


async def test_a_client_that_ignores_goaway_is_refused(start: Start) -> None:
    """After the last GOAWAY further requests are refused, and may go elsewhere."""
    origin, proxy = await start("h1")
    go_on = asyncio.Event()

    origin.handler = answer_path_once(go_on)
    client = await connect("h2", proxy.port, None)
    open_call = await client.start("GET", "/open")
    await wait_for(lambda: origin.requests)
    proxy.listener.drain()
    await client.until(lambda: len(client.goaways) == 2)
    assert [last for last, _ in client.goaways] == [2**31 - 1, 1]
    late = await client.start("GET", "/late")
    with pytest.raises(Gone) as refused:
        await late.status()
    assert refused.value.how == REFUSED_STREAM
    go_on.set()
    assert await open_call.body() == b"/open"
    await client.until(lambda: client.closed)
    await proxy.quiet()


@pytest.mark.parametrize("spoke", [False, True], ids=["said nothing yet", "is idle"])
async def test_a_request_that_crosses_a_goaway_is_served(start: Start, spoke: bool) -> None:
    """A listener is drained; what the client sends before it has answered the first GOAWAY's PING was sent in time."""
    origin, proxy = await start("h1")
    origin.handler = answer_path
    encoder = Encoder()
    hello = wire.PREFACE + wire.settings([])
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"), (b":path", b"/first")]
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await wait_for(lambda: proxy.listener.connections)
    if spoke:
        writer.write(hello)
        await reader.readexactly(9)  # its SETTINGS: it is open
    proxy.listener.drain()
    update = wire.frame(wire.WINDOW_UPDATE, 0, 0, b"\0\0\1\0")
    if spoke:
        writer.write(update)
        await asyncio.sleep(0)
    writer.write((b"" if spoke else hello) + update + wire.head_frames(1, encoder.encode(fields), True))
    text = b""
    async with asyncio.timeout(5):
        while b"/first" not in text:
            text += await reader.readexactly(1)
    writer.close()
    await proxy.quiet()


async def test_closing_the_pool_says_goodbye(start: Start) -> None:
    origin, proxy = await start("h2", warm=2)
    await wait_for(lambda: len(origin.peers) == 2)
    proxy.upstream.close()
    for peer in origin.peers:
        await peer.until(lambda peer=peer: peer.closed)
        assert peer.goaway == 0
