"""Bodies, trailers, what has none, interim responses and expectations, end to end (RFC 9112 sections 6, 7)."""

from __future__ import annotations

import asyncio

import pytest

from .harness import OK, Client, Message, Origin, OriginPeer, Proxy, echo, raw, request

pytestmark = pytest.mark.asyncio(loop_scope="module")


# Bodies.


@pytest.mark.parametrize("size", [0, 1, 2, 1000, 4096, 65535, 65536, 65537, 262145, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_both_ways(proxy: Proxy, origin: Origin, client: Client, size: int, chunked: bool) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        body = await peer.body(got)
        if chunked:
            await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks(body))
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    origin.answer = answer
    body = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    body = body[:size]
    if chunked:
        sent = request(b"POST", extra=b"transfer-encoding: chunked\r\n", body=chunks(body))
    else:
        sent = request(b"POST", extra=b"content-length: %d\r\n" % size, body=body)
    sending = asyncio.ensure_future(client.send(sent))
    answer_ = await client.response()
    await sending
    assert answer_.body == body
    got = await origin.request()
    assert got.body == body
    assert (got.one(b"transfer-encoding") is not None) == chunked
    assert (answer_.one(b"transfer-encoding") is not None) == chunked
    assert (await client.get()).status == 200


def chunks(body: bytes, size: int = 7000) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"3;a=b\r\nabc\r\n0\r\n\r\n",
        b'3;a="b;\\"c"\r\nabc\r\n0;x\r\n\r\n',
        b"0003\r\nabc\r\n000\r\n\r\n",
        b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        b"3;a;b=c;d\r\nabc\r\n0\r\n\r\n",
    ],
)
async def test_chunk_forms(proxy: Proxy, origin: Origin, client: Client, body: bytes) -> None:
    origin.answer = echo
    assert (await client.ask(request(b"POST", extra=b"Transfer-Encoding: Chunked\r\n", body=body))).body == b"abc"
    origin.answer = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n" + body)
    assert (await client.get()).body == b"abc"


async def test_trailers_pass_both_ways(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.body(got)
        await peer.send(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: \xff 1\r\n"
            b"x-sum: 2\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nset-cookie: a=b\r\nhost: x\r\n\r\n"
        )

    origin.answer = answer
    trailers = (
        b"x-a: 1\r\nhost: evil\r\ncontent-length: 9\r\nauthorization: x\r\nX-B: 2\r\nx-forwarded-for: 1.1.1.1\r\n"
    )
    answer_ = await client.ask(
        request(
            b"POST",
            extra=b"transfer-encoding: chunked\r\nte: trailers\r\n",
            body=b"1\r\nx\r\n0\r\n" + trailers + b"\r\n",
        )
    )
    assert answer_.trailers == [(b"x-sum", b"\xff 1"), (b"x-sum", b"2")]
    assert (await origin.request()).trailers == [(b"x-a", b"1"), (b"x-b", b"2")]


async def test_a_body_on_get_passes(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = echo
    assert (await client.ask(request(extra=b"content-length: 3\r\n", body=b"abc"))).body == b"abc"


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH"])
async def test_no_body_says_so(proxy: Proxy, origin: Origin, client: Client, method: bytes) -> None:
    await client.ask(request(method))
    got = await origin.request()
    assert got.one(b"content-length") == b"0"


async def test_get_without_body_announces_none(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.get()
    got = await origin.request()
    assert got.one(b"content-length") is None
    assert got.one(b"transfer-encoding") is None


# Responses without a body.


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\n",
    ],
)
async def test_head(proxy: Proxy, origin: Origin, client: Client, head: bytes) -> None:
    origin.answer = raw(head)
    answer = await client.ask(request(b"HEAD"), method=b"HEAD")
    assert (answer.one(b"content-length") is not None) == (b"content-length" in head)
    origin.answer = raw(OK)
    assert (await client.get()).body == b"ok"


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", None),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", None),
        (b"HTTP/1.1 304 Not Modified\r\netag: x\r\ncontent-length: 99\r\n\r\n", b"99"),
        (b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", None),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", None),
    ],
)
async def test_bodyless_statuses(
    proxy: Proxy, origin: Origin, client: Client, head: bytes, length: bytes | None
) -> None:
    origin.answer = raw(head)
    answer = await client.get()
    assert answer.one(b"content-length") == length
    assert answer.one(b"transfer-encoding") is None
    origin.answer = raw(OK)
    assert (await client.get()).body == b"ok"


@pytest.mark.parametrize("status", [200, 201, 202, 203, 205, 206, 226, 299, 300, 301, 302, 307, 308, 400, 401, 403, 404,
                                    405, 408, 409, 410, 412, 416, 417, 418, 421, 425, 429, 451, 499, 500, 501, 502, 503,
                                    504, 505, 511, 599])  # fmt: skip
async def test_statuses_pass(proxy: Proxy, origin: Origin, client: Client, status: int) -> None:
    origin.answer = raw(b"HTTP/1.1 %d Some Reason\r\ncontent-length: 4\r\nx-a: b\r\n\r\nbody" % status)
    answer = await client.get()
    assert (answer.status, answer.reason, answer.body) == (status, b"Some Reason", b"body")
    assert answer.one(b"proxy-status") is None


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.1 200 \xe9t\xe9"])
async def test_reasons(proxy: Proxy, origin: Origin, client: Client, line: bytes) -> None:
    origin.answer = raw(line + b"\r\ncontent-length: 0\r\n\r\n")
    assert (await client.get()).status == 200


# Interim responses.


async def test_interim_responses_pass(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    )
    answer = await client.get()
    assert [one.status for one in answer.interims] == [102, 103, 100]
    assert answer.interims[1].all(b"link") == [b"</a>", b"</b>"]
    assert all(one.one(b"content-length") is None for one in answer.interims)
    assert answer.body == b"ok"


async def test_interim_response_is_not_held_back(proxy: Proxy, origin: Origin, client: Client) -> None:
    go = asyncio.Event()

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        await go.wait()
        await peer.send(OK)

    origin.answer = answer
    await client.send(request())
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 103")
    go.set()
    assert (await client.response()).body == b"ok"


# Expect.


async def test_continue(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        assert got.one(b"expect") == b"100-continue"
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await echo(peer, got)

    origin.answer = answer
    await client.send(request(b"POST", extra=b"Expect: 100-Continue\r\ncontent-length: 3\r\n"))
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
    assert (await client.ask(b"abc")).body == b"abc"
    origin.answer = raw(OK)
    assert (await client.get()).status == 200


@pytest.mark.parametrize("extra", [b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n"])
async def test_expectation_refused_by_origin(proxy: Proxy, origin: Origin, client: Client, extra: bytes) -> None:
    origin.answer = raw(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", read_body=False)
    answer = await client.ask(request(b"POST", extra=b"expect: 100-continue\r\n" + extra))
    assert answer.status == 403
    assert answer.one(b"connection") == b"close"
    assert await client.closed() == b""


async def test_client_does_not_wait_for_continue(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.body(got)
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    origin.answer = answer
    answer_ = await client.ask(request(b"POST", extra=b"expect: 100-continue\r\ncontent-length: 3\r\n", body=b"abc"))
    assert answer_.body == b"ok"
    assert (await client.get()).status == 200


async def test_origin_that_knows_no_expectations(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = echo  # which reads the body first, and says nothing before that
    await client.send(request(b"POST", extra=b"expect: 100-continue\r\ncontent-length: 3\r\n"))
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
    assert (await client.ask(b"abc")).body == b"abc"
    assert (await client.get()).status == 200


async def test_expectation_without_a_body(proxy: Proxy, origin: Origin, client: Client) -> None:
    assert (await client.get(extra=b"expect: 100-continue\r\n")).status == 200


@pytest.mark.parametrize("value", [b"200-ok", b"100-continue, x", b"100-continue;q=1", b"x=y"])
async def test_unknown_expectation(proxy: Proxy, origin: Origin, client: Client, value: bytes) -> None:
    answer = await client.ask(request(b"POST", extra=b"content-length: 0\r\nexpect: %b\r\n" % value))
    assert answer.status == 417
    assert not origin.requests
