"""One set of behaviours over all pairs: HTTP/1.1 and HTTP/2 in, HTTP/1.1 and HTTP/2 out, in plaintext and over TLS."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ...programs import does_not_apply
from .conftest import Pair, wait_for
from .peers import WEBSOCKET_ACCEPT, Gone

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = bytes(range(256)) * 4096 * 3  # 3 MiB
CANCEL, INTERNAL_ERROR, NO_ERROR = 8, 2, 0


async def echo(got: Any) -> None:
    body = await got.body()
    await got.respond(200, [("content-length", str(len(body)))])
    await got.send(body)
    await got.end()


async def test_get(pair: Pair) -> None:
    client = await pair.client()
    call = await client.start("GET", "/a?b=c", [("x-mine", "1"), ("accept", "*/*")])
    assert await call.status() == 200
    assert await call.body() == b"ok"
    assert call.one("content-length") == "2"
    assert call.one("date")
    got = pair.origin.requests[0]
    assert (got.method, got.path, got.authority) == ("GET", "/a?b=c", "a.test")
    assert got.one("x-mine") == "1"
    assert got.one("x-forwarded-host") == "a.test"
    assert got.one("via") == ("1.1 onetrip" if pair.down == "h1" else "2 onetrip")
    assert not got.all("content-length")
    assert not got.all("connection")


async def test_one_connection_after_the_other(pair: Pair) -> None:
    client = await pair.client()
    for number in range(5):
        call = await client.start("GET", f"/{number}")
        assert await call.body() == b"ok"
    assert [got.path for got in pair.origin.requests] == [f"/{number}" for number in range(5)]


async def test_bodies_of_known_length(pair: Pair) -> None:
    pair.origin.handler = echo
    client = await pair.client()
    call = await client.start("POST", "/", [("content-length", str(len(LARGE)))], end=False)

    async def upload() -> None:
        await call.send(LARGE)
        await call.end()

    sending = asyncio.ensure_future(upload())
    assert await call.body() == LARGE
    await sending
    assert pair.origin.requests[0].one("content-length") == str(len(LARGE))
    assert call.one("content-length") == str(len(LARGE))


async def test_bodies_of_unknown_length_and_trailers(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        body = await got.body()
        await got.respond(200, [("trailer", "x-sum")])
        await got.send(body[:10])
        await got.send(body[10:])
        await got.end([("x-sum", "2"), ("content-length", "7")])

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("POST", "/", [("te", "trailers")], end=False)
    await call.send(b"first, ")
    await call.send(b"second")
    await call.end([("x-request-sum", "1")])
    assert await call.body() == b"first, second"
    assert call.trailers == [("x-sum", "2")]
    got = pair.origin.requests[0]
    assert not got.all("content-length")
    assert got.trailers == [("x-request-sum", "1")]
    assert got.one("te") == "trailers"


async def test_only_te_trailers_passes(pair: Pair) -> None:
    if pair.down == "h2":
        does_not_apply("HTTP/2 refuses other values")
    client = await pair.client()
    call = await client.start("GET", "/", [("te", "gzip;q=0.5")])
    assert await call.status() == 200
    await call.body()
    assert not pair.origin.requests[0].all("te")


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body(pair: Pair, status: int) -> None:
    async def handler(got: Any) -> None:
        await got.respond(status, [("etag", '"x"')], end=True)

    pair.origin.handler = handler
    client = await pair.client()
    for _ in range(2):  # framing that is one off would show at the second
        call = await client.start("GET", "/")
        assert await call.status() == status
        assert await call.body() == b""
        assert call.one("etag") == '"x"'
        assert not call.all("transfer-encoding")


async def test_head(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.respond(200, [("content-length", "12345")], end=True)

    pair.origin.handler = handler
    client = await pair.client()
    for _ in range(2):
        call = await client.start("HEAD", "/")
        assert await call.status() == 200
        assert await call.body() == b""
        assert call.one("content-length") == "12345"


async def test_empty_post(pair: Pair) -> None:
    pair.origin.handler = echo
    client = await pair.client()
    call = await client.start("POST", "/", [("content-length", "0")])
    assert await call.status() == 200
    assert await call.body() == b""
    assert pair.origin.requests[0].all("content-length") == ["0"]


async def test_interim_heads(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.respond(103, [("link", "</a.css>; rel=preload")])
        await got.respond(200, [("content-length", "2")])
        await got.send(b"ok")
        await got.end()

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("GET", "/")
    assert await call.body() == b"ok"
    assert [(status, dict(fields)["link"]) for status, fields in call.interims] == [(103, "</a.css>; rel=preload")]


async def test_expect_continue(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        assert got.one("expect") == "100-continue"
        await got.respond(100)
        await echo(got)

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("POST", "/", [("expect", "100-continue"), ("content-length", "4")], end=False)
    await call.until(lambda: call.interims)
    assert call.interims[0][0] == 100
    await call.send(b"body")
    await call.end()
    assert await call.body() == b"body"


async def test_origin_resets_before_it_answers(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.body()
        await got.reset(INTERNAL_ERROR)

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("POST", "/", [("content-length", "1")], end=False)
    await call.send(b"x")
    await call.end()
    assert await call.status() == 502
    assert "connection_terminated" in call.one("proxy-status")
    await call.body()
    assert len(pair.origin.requests) == 1  # a POST that may have been processed goes nowhere else


async def test_origin_resets_within_its_answer(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.respond(200, [("content-length", "100000")])
        await got.send(b"x" * 1000)
        await asyncio.sleep(0.05)  # the head should be on its way
        await got.reset(INTERNAL_ERROR)

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("GET", "/")
    assert await call.status() == 200
    assert await call.end_of_it() == (INTERNAL_ERROR if pair.down == "h2" else "closed")


@pytest.mark.parametrize("begun", [False, True])
async def test_client_that_leaves_cancels_upstream(pair: Pair, begun: bool) -> None:
    async def handler(got: Any) -> None:
        if begun:
            await got.respond(200, [("content-length", "100")])
            await got.send(b"x")
        await got.until(lambda: False)

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("GET", "/")
    await wait_for(lambda: pair.origin.requests)
    if begun:
        await call.some(1)
    await call.reset(CANCEL)
    got = pair.origin.requests[0]
    assert await got.end_of_it() == (CANCEL if pair.up == "h2" else "closed")


async def test_answer_before_the_request_is_complete(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.respond(413, [("content-length", "3")])
        await got.send(b"big")
        await got.end()

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("POST", "/", end=False)
    await call.send(b"the beginning")
    assert await call.status() == 413
    assert await call.body() == b"big"
    if pair.down == "h2":
        assert await call.end_of_it() == NO_ERROR  # stop sending; the answer stands (RFC 9113 section 8.1)
    else:
        await client.until(lambda: client.closed)


async def test_websocket(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        assert got.is_websocket
        assert got.one("sec-websocket-version") == "13"
        await got.accept_websocket()
        for _ in range(3):
            await got.send(b"<" + await got.some(4) + b">")
        if pair.tls:  # asyncio's TLS can't end one direction alone
            await got.until(lambda: False)
        await got.end()

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.websocket()
    assert await call.status() == (101 if pair.down == "h1" else 200)
    if pair.down == "h1":
        assert call.one("sec-websocket-accept") == WEBSOCKET_ACCEPT
        assert call.one("upgrade") == "websocket"
    for word in (b"ping", b"pong", b"\0\xff\0\xff"):
        await call.send(word)
        assert await call.some(6) == b"<" + word + b">"
    if not pair.tls:
        await call.until(lambda: call.ended)
        await call.end()
    else:
        await call.reset(CANCEL)
    assert pair.origin.requests[0].authority == "a.test"


async def test_websocket_that_is_refused(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        close = [("connection", "close")] if pair.up == "h1" else []
        await got.respond(403, [("content-length", "2"), *close])
        await got.send(b"no")
        if pair.up == "h2":
            await got.end()

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.websocket()
    call.upgraded = False
    assert await call.status() == 403
    await call.until(lambda: len(call.data) == 2)


async def test_websocket_that_ends_abruptly(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.accept_websocket()
        await got.send(b"x")
        await got.until(lambda: False)

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.websocket()
    await call.some(1)
    await call.reset(CANCEL)
    assert await pair.origin.requests[0].end_of_it() == (CANCEL if pair.up == "h2" else "closed")


async def test_cookie_crumbs(pair: Pair) -> None:
    client = await pair.client()
    fields = (
        [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")] if pair.down == "h2" else [("cookie", "a=1; b=2")]
    )
    call = await client.start("GET", "/", fields)
    await call.body()
    expected = "a=1; b=2; c=3" if pair.down == "h2" else "a=1; b=2"
    assert pair.origin.requests[0].all("cookie") == [expected]


async def test_repeated_fields_stay_apart(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.respond(200, [("set-cookie", "a=1"), ("set-cookie", "b=2")], end=True)

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("GET", "/", [("x-list", "1"), ("x-list", "2")])
    assert await call.status() == 200
    await call.body()
    assert call.all("set-cookie") == ["a=1", "b=2"]
    assert pair.origin.requests[0].all("x-list") == ["1", "2"]


async def test_client_that_stops_reading_stops_the_origin(pair: Pair) -> None:
    sent = 0

    async def handler(got: Any) -> None:
        nonlocal sent
        await got.respond(200)
        for _ in range(40):
            await got.send(bytes(1 << 20))
            sent += 1
        await got.end()

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("GET", "/")
    call.stop_reading()
    await call.status()
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.15)
    assert sent < 32, "nothing held the origin back"
    call.data.clear()
    await call.read_on()
    await call.until(lambda: call.ended)
    assert call.received == 40 << 20


async def test_origin_that_stops_reading_stops_the_client(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        got.stop_reading()
        await got.until(lambda: go_on.is_set())
        await got.read_on()
        await got.until(lambda: got.ended)
        await got.respond(200, [("x-received", str(got.received))], end=True)

    go_on = asyncio.Event()
    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("POST", "/", end=False)
    sent = 0

    async def upload() -> None:
        nonlocal sent
        for _ in range(40):
            await call.send(bytes(1 << 20))
            sent += 1
        await call.end()

    sending = asyncio.ensure_future(upload())
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.15)
    assert sent < 32, "nothing held the client back"
    go_on.set()
    pair.origin.requests[0].changed()
    assert await call.status() == 200
    await sending
    assert call.one("x-received") == str(40 << 20)
    await call.body()


async def test_drain(lab: Any, pair: Pair) -> None:
    """What is open is answered; the client is told to go; its connection ends."""
    go_on = asyncio.Event()

    async def handler(got: Any) -> None:
        await go_on.wait()
        await got.respond(200, [("content-length", "2")])
        await got.send(b"ok")
        await got.end()

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("GET", "/")
    await wait_for(lambda: pair.origin.requests)
    for connection in list(pair.proxy.listener.connections):
        connection.drain()
    if pair.down == "h2":
        await client.until(lambda: client.goaway is not None)
        assert client.goaway == NO_ERROR
    go_on.set()
    assert await call.body() == b"ok"
    if pair.down == "h1":
        assert call.one("connection") == "close"
    await client.until(lambda: client.closed)


async def test_many_at_once(pair: Pair) -> None:
    async def handler(got: Any) -> None:
        await got.respond(200, [("content-length", str(len(got.path)))])
        await got.send(got.path.encode())
        await got.end()

    pair.origin.handler = handler
    clients = [await pair.client()] * 60 if pair.down == "h2" else [await pair.client() for _ in range(60)]
    calls = [await client.start("GET", f"/{number}") for number, client in enumerate(clients)]
    assert [await call.body() for call in calls] == [b"/%d" % number for number in range(60)]


async def test_an_upgrade_to_h2c_is_refused(pair: Pair) -> None:
    if pair.down == "h2":
        does_not_apply("HTTP/1.1 only")
    client = await pair.client()
    fields = [
        ("upgrade", "h2c"),
        ("connection", "upgrade, http2-settings"),
        ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
    ]
    call = await client.start("GET", "/", fields)
    assert await call.status() == 200
    assert await call.body() == b"ok"
    got = pair.origin.requests[0]
    assert not got.all("upgrade")
    assert not got.all("http2-settings")


async def test_malformed_answers_are_no_answers(pair: Pair) -> None:
    """What may not stand in a response of this version makes a 502, never a response that reads differently."""

    async def handler(got: Any) -> None:
        if pair.up == "h2":
            await got.respond(200, [("connection", "close"), ("transfer-encoding", "chunked")], end=True)
        else:
            await got._write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n")

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.start("POST", "/", [("content-length", "0")])
    assert await call.status() == 502
    await call.body()


async def test_a_request_that_ends_while_it_is_reset(pair: Pair) -> None:
    """An abort in the middle of an upload reaches the origin as one."""
    client = await pair.client()

    async def handler(got: Any) -> None:
        await got.body()

    pair.origin.handler = handler
    call = await client.start("POST", "/", [("content-length", "1000")], end=False)
    await call.send(b"x" * 10)
    await wait_for(lambda: pair.origin.requests and pair.origin.requests[0].received == 10)
    await call.reset(CANCEL)
    with pytest.raises(Gone):
        await pair.origin.requests[0].body()
