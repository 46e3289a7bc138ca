"""What the config says of requests: routes, trust, retries, time-outs, and tunnels under load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from .harness import OK, Client, Ended, Message, Origin, OriginPeer, Proxy, config, raw, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]
H = b"host: a.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + H + b"\r\n"
RETRY = "{attempts: 2, budget: 100%, idempotency_key: true}"
MIB = 1 << 20


# Trust.


async def test_an_untrusted_peer_is_not_believed(start: Start, own_origin: Origin) -> None:
    proxy = await start(config(own_origin.port, listener="trusted: []"))
    client = await proxy.connect()
    answered = await client.get(
        extra=b"x-forwarded-for: 9.9.9.9\r\nx-forwarded-proto: https\r\nx-forwarded-host: evil\r\nearly-data: 1\r\n"
        b"onetrip-debug: 1\r\nonetrip-attempt: 9\r\nx_forwarded_for: 9.9.9.9\r\n"
    )
    got = await own_origin.request()
    assert got.one(b"x-forwarded-for") == b"127.0.0.1"
    assert got.one(b"x-forwarded-proto") == b"http"
    assert got.one(b"x-forwarded-host") == b"a.test"
    for name in (b"early-data", b"onetrip-debug", b"onetrip-attempt", b"x_forwarded_for"):
        assert got.one(name) is None
    for name in (b"server-timing", b"onetrip-region", b"onetrip-attempts"):
        assert answered.one(name) is None
    own_origin.answer = raw(b"junk")
    answered = await client.get(extra=b"onetrip-debug: 1\r\n")
    assert answered.status == 502
    assert answered.one(b"server-timing") is None
    await proxy.end_test()


async def test_a_trusted_peer_sees_timings_of_errors(start: Start, own_origin: Origin) -> None:
    own_origin.answer = raw(b"junk")
    proxy = await start(config(own_origin.port))
    answered = await (await proxy.connect()).get(extra=b"onetrip-debug: 1\r\n")
    assert answered.one(b"server-timing")
    assert answered.one(b"onetrip-attempts") == b"1"
    await proxy.end_test()


# Routes.

ROUTES = """
listeners:
  - name: web
    address: "127.0.0.1:0"
    routes:
      - {{match: {{host: "*.a.test", path: /api/, methods: [GET, POST]}}, upstream: one}}
      - {{match: {{headers: {{x-tier: gold}}}}, upstream: one}}
      - {{match: {{host: b.test, path: "=/exact"}}, upstream: two, timeout: 300ms}}
      - {{match: {{host: c.test}}, upstream: two}}
upstreams:
  one: {{regions: {{here: {{endpoints: ["127.0.0.1:{one}"]}}}}, hedge: off}}
  two: {{regions: {{here: {{endpoints: ["127.0.0.1:{two}"]}}}}, hedge: off}}
access_log: off
"""


async def test_routes(start: Start, origin: Origin, own_origin: Origin) -> None:
    origin.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none")
    own_origin.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo")
    proxy = await start(ROUTES.format(one=origin.port, two=own_origin.port))
    client = await proxy.connect()

    async def ask(method: bytes, host: bytes, target: bytes, extra: bytes = b"") -> Message:
        return await client.ask(b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (method, target, host, extra), method=method)

    assert (await ask(b"GET", b"x.a.test", b"/api/1")).body == b"one"
    assert (await ask(b"POST", b"X.A.Test:80", b"/api/1")).body == b"one"
    assert (await ask(b"GET", b"x.a.test", b"http://y.a.test/api/")).body == b"one"
    assert (await ask(b"GET", b"b.test", b"/exact?q")).body == b"two"
    assert (await ask(b"GET", b"nowhere", b"/", b"x-tier: gold\r\n")).body == b"one"
    assert (await ask(b"OPTIONS", b"c.test", b"*")).body == b"two"
    for method, host, target in [(b"DELETE", b"x.a.test", b"/api/1"), (b"GET", b"a.test", b"/api/1"),
                                 (b"GET", b"x.a.test", b"/"), (b"GET", b"b.test", b"/exact/"),
                                 (b"GET", b"x.a.test.evil", b"/api/")]:  # fmt: skip
        answered = await ask(method, host, target)
        assert answered.status == 404, (method, host, target)
        assert b"destination_not_found" in (answered.one(b"proxy-status") or b"")
    assert (await ask(b"HEAD", b"x.a.test", b"/")).status == 404
    answered = await ask(b"GET", b"none.test", b"/", b"accept: text/html, application/json;q=0.5\r\n")
    assert json.loads(answered.body)["status"] == 404
    answered = await client.ask(b"POST / HTTP/1.1\r\nhost: none.test\r\ncontent-length: 3\r\n\r\nabc")
    assert answered.status == 404
    await proxy.end_test()


async def test_a_route_has_its_own_timeout(start: Start, origin: Origin, own_origin: Origin) -> None:
    async def never(peer: OriginPeer, got: Message) -> None:
        await peer.gone()

    own_origin.answer = never
    proxy = await start(ROUTES.format(one=origin.port, two=own_origin.port))
    client = await proxy.connect()
    async with asyncio.timeout(2):
        answered = await client.ask(b"GET /exact HTTP/1.1\r\nhost: b.test\r\n\r\n")
    assert answered.status == 504
    await proxy.end_test()


async def test_nothing_is_asked_of_an_origin_before_a_client_asks(
    start: Start, own_origin: Origin, origin: Origin
) -> None:
    proxy = await start(config(own_origin.port, origin.port))
    assert (await (await proxy.connect()).get(b"/first")).status == 200
    assert [got.target for got in own_origin.requests + origin.requests] == [b"/first"]
    await proxy.end_test()


# Retries.


def fail_first(how: str) -> Callable[[OriginPeer, Message], Awaitable[None]]:
    answers = {
        "503": raw(b"HTTP/1.1 503 X\r\ncontent-length: 1\r\n\r\nx"),
        "close": raw(then="close"),
        "interim": raw(b"HTTP/1.1 103 E\r\nlink: </x>\r\n\r\n", then="close"),
        "unread": raw(then="close", read_body=False),
    }

    async def answer(peer: OriginPeer, got: Message) -> None:
        if got.one(b"onetrip-attempt"):
            body = await peer.body(got)
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        else:
            await answers[how](peer, got)

    return answer


@pytest.mark.parametrize("how", ["503", "close", "interim"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_replayed(start: Start, own_origin: Origin, how: str, chunked: bool) -> None:
    own_origin.answer = fail_first(how)
    proxy = await start(config(own_origin.port, retry=RETRY))
    client = await proxy.connect()
    body = b"0123456789" * 3000
    head = b"POST / HTTP/1.1\r\n" + H + b"idempotency-key: k\r\n"
    if chunked:
        await client.send(head + b"transfer-encoding: chunked\r\n\r\n")
        await client.send(*[b"2710\r\n" + body[i : i + 10_000] + b"\r\n" for i in range(0, 30_000, 10_000)])
        answered = await client.ask(b"0\r\nx-t: v\r\n\r\n")
        assert own_origin.requests[-1].trailers == [(b"x-t", b"v")]
    else:
        answered = await client.ask(head + b"content-length: 30000\r\n\r\n" + body)
    assert answered.status == 200
    assert answered.body == body
    assert [got.one(b"onetrip-attempt") for got in own_origin.requests] == [None, b"2"]
    assert len({got.one(b"x-request-id") for got in own_origin.requests}) == 1
    await proxy.end_test()


async def test_a_large_body_is_not_replayed(start: Start, own_origin: Origin) -> None:
    own_origin.answer = fail_first("close")
    proxy = await start(config(own_origin.port, retry=RETRY))
    client = await proxy.connect()
    wire = b"PUT / HTTP/1.1\r\n" + H + b"idempotency-key: k\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
    assert (await client.ask(wire)).status == 502
    assert len(own_origin.requests) == 1
    await proxy.end_test()


async def test_the_last_gateway_error_is_passed_on(start: Start, own_origin: Origin) -> None:
    own_origin.answer = raw(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\nretry-after: 7\r\nx-a: b\r\n\r\nbusy")
    proxy = await start(config(own_origin.port, retry=RETRY))
    answered = await (await proxy.connect()).get()
    assert (answered.status, answered.reason, answered.body) == (503, b"Busy", b"busy")
    assert answered.one(b"retry-after") == b"7"
    assert answered.one(b"proxy-status") is None
    await proxy.end_test()


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"PUT", b"PATCH", b"X"])
async def test_what_is_not_safe_is_sent_once(start: Start, own_origin: Origin, method: bytes) -> None:
    own_origin.answer = fail_first("503")
    proxy = await start(config(own_origin.port, retry=RETRY))
    answered = await (await proxy.connect()).ask(method + b" / HTTP/1.1\r\n" + H + b"\r\n")
    assert answered.status == 503
    assert len(own_origin.requests) == 1
    await proxy.end_test()


async def test_nothing_is_retried_after_the_head(start: Start, own_origin: Origin) -> None:
    own_origin.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", then="close")
    proxy = await start(config(own_origin.port, retry=RETRY))
    client = await proxy.connect()
    await client.send(GET)
    assert (await client.closed()).endswith(b"abc")
    assert len(own_origin.requests) == 1
    await proxy.end_test()


# Aborts that are hard to see.


async def test_abort_of_an_upload_that_is_stuck(start: Start, own_origin: Origin) -> None:
    """The origin reads nothing at all, so the proxy reads nothing either, and still has to see that the client left."""

    async def answer(peer: OriginPeer, got: Message) -> None:
        await asyncio.sleep(3600)

    own_origin.answer = answer
    proxy = await start(config(own_origin.port, idle="60s"))
    client = await proxy.connect()
    await client.send(b"POST / HTTP/1.1\r\n" + H + b"content-length: 1000000000\r\n\r\n")
    await own_origin.request()
    for _ in range(1000):
        try:
            async with asyncio.timeout(0.4):
                await client.loop.sock_sendall(client.sock, b"x" * 65536)
        except TimeoutError:
            break
        await asyncio.sleep(0)
    client.reset()
    await wait_for(lambda: proxy.listener.counters.in_flight == 0, 3)
    await proxy.end_test()


async def test_abort_of_pipelined_requests(start: Start, own_origin: Origin) -> None:
    """So many wait that reading has stopped."""

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.gone()

    own_origin.answer = answer
    proxy = await start(config(own_origin.port, response="60s"))
    client = await proxy.connect()
    await client.send(GET * 10_000)
    await own_origin.request()
    await asyncio.sleep(0.05)
    client.reset()
    await wait_for(lambda: proxy.listener.counters.in_flight == 0, 3)
    await proxy.end_test()


async def test_half_closed_client_that_waits_long(start: Start, own_origin: Origin) -> None:
    """Whatever the proxy does to see whether it is still there, the final answer arrives whole."""

    async def answer(peer: OriginPeer, got: Message) -> None:
        await asyncio.sleep(0.8)
        await peer.send(OK)

    own_origin.answer = answer
    proxy = await start(config(own_origin.port))
    client = await proxy.connect()
    await client.send(GET)
    client.half_close()
    answered = await client.response()
    assert answered.body == b"ok"
    assert {one.status for one in answered.interims} <= {100, 102}
    assert await client.closed() == b""
    await proxy.end_test()


# Tunnels.

UPGRADE = b"GET / HTTP/1.1\r\n" + H + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("side", ["client", "origin"])
async def test_a_tunnel_holds_back_who_sends_too_much(proxy: Proxy, origin: Origin, client: Client, side: str) -> None:
    sent = {"client": 0, "origin": 0}
    done = asyncio.Event()

    async def flood(peer: Client | OriginPeer, name: str) -> None:
        while sent[name] < 100 * MIB:
            try:
                async with asyncio.timeout(0.4):
                    await peer.loop.sock_sendall(peer.sock, b"x" * 65536)
            except TimeoutError:
                break
            sent[name] += 65536
            await asyncio.sleep(0)
        done.set()

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(SWITCH)
        if side == "origin":
            await flood(peer, "origin")
        await done.wait()
        await peer.gone()

    origin.answer = answer
    await client.send(UPGRADE)
    await client.until(b"\r\n\r\n")
    if side == "client":
        await flood(client, "client")
    await done.wait()
    assert sent[side] < 60 * MIB
    connections = [*proxy.listener.connections, *proxy.pool.stock.connections]
    assert sum(c.transport.get_write_buffer_size() for c in connections if c.transport) < MIB
    client.reset()


async def test_a_tunnel_carries_both_ways_at_once(proxy: Proxy, origin: Origin, client: Client) -> None:
    size = 8 * MIB

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(SWITCH)
        sending = asyncio.ensure_future(peer.loop.sock_sendall(peer.sock, b"o" * size))
        assert await peer.exactly(size) == b"c" * size
        await sending
        peer.half_close()
        await peer.gone()

    origin.answer = answer
    await client.send(UPGRADE)
    await client.until(b"\r\n\r\n")
    sending = asyncio.ensure_future(client.loop.sock_sendall(client.sock, b"c" * size))
    assert await client.exactly(size) == b"o" * size
    await sending
    client.half_close()
    assert await client.closed() == b""


@pytest.mark.parametrize("who", ["client", "origin"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_the_end_of_a_tunnel_is_seen_at_the_other_end(
    proxy: Proxy, origin: Origin, client: Client, who: str, how: str
) -> None:
    ended: list[str] = []

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(SWITCH)
        if who == "origin":
            getattr(peer, how)()
        else:
            ended.append(await peer.gone())

    origin.answer = answer
    await client.send(UPGRADE)
    await client.until(b"\r\n\r\n")
    if who == "origin":
        with pytest.raises(Ended):
            await client.fill()
    else:
        getattr(client, how)()
        await wait_for(lambda: ended)


# Unix sockets.


async def test_unix_sockets(start: Start, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)

    server = await asyncio.start_unix_server(serve, tmp_path / "origin")
    text = config(1).replace('"127.0.0.1:1"', f'"unix:{tmp_path}/origin"')
    proxy = await start(text)
    assert (await (await proxy.connect()).get()).body == b"ok"
    await proxy.end_test()
    server.close()
