"""RFC 9110 and RFC 9112 through the whole proxy: what reaches the origin, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from .harness import OK, Client, Ended, Message, Origin, OriginPeer, Proxy, config, raw, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

H = b"host: a.test\r\n"


def request(method: bytes = b"GET", target: bytes = b"/", extra: bytes = b"", body: bytes = b"") -> bytes:
    return b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (method, target, H, extra, body)


async def echo(peer: OriginPeer, got: Message) -> None:
    body = await peer.body(got)
    head = b"" if got.method == b"HEAD" else body
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-method: %b\r\n\r\n%b" % (len(body), got.method, head))


# Request lines.

METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"PROPFIND", b"MKCOL", b"get",
           b"M-SEARCH", b"QUERY", b"X!#$%&'*+.^_`|~9", b"PURGE", b"A" * 60]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.decode()[:12])
async def test_any_method_passes(proxy: Proxy, origin: Origin, client: Client, method: bytes) -> None:
    answer = await client.ask(request(method), method=method)
    assert answer.status == 200
    got = await origin.request()
    assert got.method == method
    again = await client.get()
    assert again.body == b"ok"


TARGETS = [
    (b"/", b"/"),
    (b"/a/b?x=1&y=%20", b"/a/b?x=1&y=%20"),
    (b"/a//b/../c/./", b"/a//b/../c/./"),
    (b"/%2e%2e/%2F", b"/%2e%2e/%2F"),
    (b"/?", b"/?"),
    (b"//x", b"//x"),
    (b"/;p=1,2", b"/;p=1,2"),
    (b'/a|b{c}"<>\\^`[]', b'/a|b{c}"<>\\^`[]'),
    (b"http://a.test/x?y", b"/x?y"),
    (b"http://a.test", b"/"),
    (b"HTTP://a.test/", b"/"),
    (b"http://a.test?q", b"/?q"),
    (b"http://a.test:81/", b"/"),
]


@pytest.mark.parametrize(("sent", "seen"), TARGETS)
async def test_targets(proxy: Proxy, origin: Origin, client: Client, sent: bytes, seen: bytes) -> None:
    answer = await client.get(sent)
    assert answer.status == 200
    assert (await origin.request()).target == seen


async def test_absolute_form_overrides_host(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.get(b"http://other.test:8000/")
    assert (await origin.request()).one(b"host") == b"other.test:8000"


@pytest.mark.parametrize("target", [b"*", b"http://a.test"])
async def test_options_star(proxy: Proxy, origin: Origin, client: Client, target: bytes) -> None:
    assert (await client.ask(request(b"OPTIONS", target))).status == 200
    assert (await origin.request()).target == b"*"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET * HTTP/1.1", 400),
        (b"GET a HTTP/1.1", 400),
        (b"GET a.test:80 HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /\tHTTP/1.1", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET /#f HTTP/1.1", 400),
        (b"GET /\x80 HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"G@T / HTTP/1.1", 400),
        (b"G\xc3T / HTTP/1.1", 400),
        (b"GET /", 400),
        (b"GET", 400),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/3.1", 505),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1.1x", 400),
        (b"GET / HTTP/11", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / ICY/1.1", 400),
        (b"GET http://u@a.test/ HTTP/1.1", 400),
        (b"GET http:/// HTTP/1.1", 400),
        (b"GET http://a.test:99999/ HTTP/1.1", 400),
        (b"GET http://[::1/ HTTP/1.1", 400),
        (b"GET ftp://a.test/ HTTP/1.1", 400),
        (b"CONNECT a.test HTTP/1.1", 400),
        (b"CONNECT /x HTTP/1.1", 400),
        (b"CONNECT http://a.test:80/ HTTP/1.1", 400),
        (b"GET /" + b"a" * 40000 + b" HTTP/1.1", 414),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1", 414),
    ],
)
async def test_bad_request_line(proxy: Proxy, origin: Origin, client: Client, line: bytes, status: int) -> None:
    await client.send_quietly(line + b"\r\n" + H + b"\r\n")
    answer = await client.response()
    assert answer.status == status
    assert answer.one(b"connection") == b"close"
    assert answer.one(b"date")
    assert (answer.one(b"proxy-status") or b"").startswith(b"onetrip; error=http_request_error")
    assert await client.closed() == b""
    assert not origin.requests


@pytest.mark.parametrize("lines", [b"\r\n", b"\r\n\r\n"])
async def test_empty_lines_before_a_request_are_skipped(proxy: Proxy, client: Client, lines: bytes) -> None:
    assert (await client.ask(lines + request())).status == 200
    assert (await client.ask(lines + request())).status == 200


# Host.


@pytest.mark.parametrize(
    "host",
    [
        b"a.test",
        b"A.Test",
        b"a.test:80",
        b"127.0.0.1:8080",
        b"[::1]",
        b"[2001:db8::1]:443",
        b"xn--bcher-kva.test",
        b"a_b",
    ],
)
async def test_host_passes(proxy: Proxy, origin: Origin, client: Client, host: bytes) -> None:
    answer = await client.ask(b"GET / HTTP/1.1\r\nHost:  %b \r\n\r\n" % host)
    assert answer.status == 200
    got = await origin.request()
    assert got.one(b"host") == host
    assert got.one(b"x-forwarded-host") == host


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"host:\r\n",
        b"host: a.test\r\nhost: a.test\r\n",
        b"host: a.test\r\nhost: b.test\r\n",
        b"host: a.test, b.test\r\n",
        b"host: a.test b\r\n",
        b"host: a.test/x\r\n",
        b"host: u@a.test\r\n",
        b"host: http://a.test\r\n",
        b"host: a.test:x\r\n",
        b"host: a.test:99999\r\n",
        b"host: [::1\r\n",
        b"host: [zz]\r\n",
        b"host: a.test:80:80\r\n",
        b"host: a\x80.test\r\n",
        b"host: a.test#\r\n",
        b"host: a.test?\r\n",
        b"host: a\\b\r\n",
        b"host : a.test\r\n",
        b" host: a.test\r\n",
    ],
)
async def test_bad_host(proxy: Proxy, origin: Origin, client: Client, fields: bytes) -> None:
    answer = await client.ask(b"GET / HTTP/1.1\r\n" + fields + b"\r\n")
    assert answer.status == 400
    assert await client.closed() == b""
    assert not origin.requests


async def test_bad_host_with_absolute_form(proxy: Proxy, origin: Origin, client: Client) -> None:
    answer = await client.ask(b"GET http://a.test/ HTTP/1.1\r\n\r\n")
    assert answer.status == 400  # a request without Host is refused, whatever its target (RFC 9112 section 3.2)


# HTTP/1.0.


async def test_http10_client_closes(proxy: Proxy, origin: Origin, client: Client) -> None:
    answer = await client.ask(b"GET / HTTP/1.0\r\n\r\n")
    assert answer.status == 200
    assert answer.body == b"ok"
    assert await client.closed() == b""
    got = await origin.request()
    assert got.one(b"host") == b""
    assert (got.one(b"connection") or b"").lower() != b"close"


async def test_http10_keep_alive(proxy: Proxy, client: Client) -> None:
    ask = b"GET / HTTP/1.0\r\nhost: a.test\r\nconnection: keep-alive\r\n\r\n"
    answer = await client.ask(ask)
    assert (answer.one(b"connection") or b"").lower() == b"keep-alive"
    assert (await client.ask(ask)).body == b"ok"


async def test_http10_client_gets_no_chunks_and_no_interim_heads(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n"
    )
    answer = await client.ask(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    assert not answer.interims
    assert answer.body == b"abc"
    assert answer.one(b"transfer-encoding") is None
    assert client.ended == "eof"


async def test_http10_expectation_is_ignored(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = echo
    answer = await client.ask(b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc")
    assert answer.body == b"abc"
    assert not answer.interims
    assert (await origin.request()).one(b"expect") is None


async def test_http10_with_transfer_encoding_is_refused(proxy: Proxy, origin: Origin, client: Client) -> None:
    answer = await client.ask(b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
    assert answer.status == 400
    assert not origin.requests


async def test_http10_origin(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.0 200 OK\r\n\r\nuntil the end", then="close")
    for _ in range(3):
        answer = await client.get()
        assert answer.body == b"until the end"
        assert answer.start.startswith(b"HTTP/1.1 200")


async def test_http10_origin_with_length(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok")
    assert (await client.get()).body == b"ok"
    assert (await client.get()).body == b"ok"
    assert len(origin.requests) == 2


# Persistence.


@pytest.mark.parametrize("token", [b"close", b"Close", b"keep-alive, close", b"x, close"])
async def test_client_asks_to_close(proxy: Proxy, client: Client, token: bytes) -> None:
    answer = await client.get(extra=b"connection: " + token + b"\r\n")
    assert answer.one(b"connection") == b"close"
    assert await client.closed() == b""


async def test_a_request_behind_connection_close_is_ignored(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.send(request(extra=b"connection: close\r\n") + request(target=b"/2"))
    assert (await client.response()).status == 200
    assert await client.closed() == b""
    assert len(origin.requests) == 1


async def test_origin_closes_client_stays(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", then="close")
    for _ in range(3):
        answer = await client.get()
        assert answer.one(b"connection") is None
        assert answer.body == b"ok"


async def test_upstream_connections_are_reused(proxy: Proxy, origin: Origin) -> None:
    before = origin.accepted
    for _ in range(5):
        client = await proxy.connect()
        await client.get()
    assert origin.accepted - before <= 2


# Pipelining.


@pytest.mark.parametrize("together", [True, False])
async def test_pipelined_answers_in_order(proxy: Proxy, origin: Origin, client: Client, together: bool) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(got.target), got.target))

    origin.answer = answer
    targets = [b"/%d" % i for i in range(30)]
    all_of_them = [request(target=target) for target in targets]
    await client.send(*([b"".join(all_of_them)] if together else all_of_them))
    assert [(await client.response()).body for _ in targets] == targets


async def test_pipelined_mixture(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = echo
    await client.send(
        request(b"POST", extra=b"content-length: 5\r\n", body=b"hello")
        + request(b"HEAD")
        + request(b"POST", extra=b"transfer-encoding: chunked\r\n", body=b"3\r\nabc\r\n0\r\n\r\n")
        + request(b"DELETE")
        + request(b"PUT", extra=b"content-length: 0\r\n")
        + request(b"POST", extra=b"transfer-encoding: chunked\r\n", body=b"1\r\nz\r\n0\r\nx-t: v\r\n\r\n")
        + request(b"OPTIONS", target=b"/", extra=b"max-forwards: 0\r\n")
        + request(b"GET", target=b"/last")
    )
    assert (await client.response()).body == b"hello"
    assert (await client.response(b"HEAD")).status == 200
    assert (await client.response()).body == b"abc"
    assert (await client.response()).one(b"x-method") == b"DELETE"
    assert (await client.response()).one(b"x-method") == b"PUT"
    assert (await client.response()).body == b"z"
    assert (await client.response()).status == 204
    assert (await client.response()).one(b"x-method") == b"GET"


async def test_pipelined_bad_one_ends_it_after_the_good_ones(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.send(request() + request() + b"BAD\r\n\r\n" + request(target=b"/after"))
    assert (await client.response()).status == 200
    assert (await client.response()).status == 200
    assert (await client.response()).status == 400
    assert await client.closed() == b""
    assert len(origin.requests) == 2


async def test_pipelined_byte_by_byte(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = echo
    data = request(b"POST", extra=b"transfer-encoding: chunked\r\n", body=b"3\r\nabc\r\n0\r\nx: y\r\n\r\n") + request()
    for i in range(len(data)):
        await client.send(data[i : i + 1])
    assert (await client.response()).body == b"abc"
    assert (await client.response()).status == 200


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


async def test_expectation_without_a_body(proxy: Proxy, origin: Origin, client: Client) -> None:
    assert (await client.get(extra=b"expect: 100-continue\r\n")).status == 200


@pytest.mark.parametrize("value", [b"200-ok", b"100-continue, x", b"100-continue;q=1", b"x=y"])
async def test_unknown_expectation(proxy: Proxy, origin: Origin, client: Client, value: bytes) -> None:
    answer = await client.ask(request(b"POST", extra=b"content-length: 0\r\nexpect: %b\r\n" % value))
    assert answer.status == 417
    assert not origin.requests


# Upgrade, CONNECT.

UPGRADE = b"connection: Upgrade\r\nupgrade: chat/2\r\n"


async def test_upgrade(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        assert got.one(b"upgrade") == b"chat/2"
        assert b"upgrade" in (got.one(b"connection") or b"").lower()
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat/2\r\nx: y\r\n\r\nhi")
        while True:
            await peer.fill()
            data, peer.held = peer.held, b""
            await peer.send(data.upper())

    origin.answer = answer
    answer_ = await client.ask(request(extra=UPGRADE) + b"early")
    assert answer_.status == 101
    assert answer_.one(b"upgrade") == b"chat/2"
    assert (answer_.one(b"connection") or b"").lower() == b"upgrade"
    assert answer_.one(b"x") == b"y"
    assert await client.exactly(7) == b"hiEARLY"
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert await client.exactly(18) == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("who", ["client", "origin"])
async def test_tunnel_half_close(proxy: Proxy, origin: Origin, client: Client, who: str) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat/2\r\n\r\n")
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


async def test_connect(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        assert got.target == b"a.test:443"
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\ntransfer-encoding: chunked\r\n\r\nhi")
        await peer.send(b"<" + await peer.exactly(4) + b">")

    # RFC 9110 section 9.3.6: framing in a 2xx answer to CONNECT is ignored, so it may be refused, but never honoured
    origin.answer = answer
    head = b"CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n"
    answer_ = await client.ask(head + b"ping", method=b"CONNECT")
    if answer_.status == 200:
        assert answer_.one(b"content-length") is None
        assert await client.closed() == b"hi<ping>"
    else:
        assert answer_.status == 502


async def test_connect_refused(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 405 No\r\ncontent-length: 2\r\n\r\nno")
    answer = await client.ask(b"CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n" + request())
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


# Fields.


async def test_hop_by_hop_fields_never_pass(proxy: Proxy, origin: Origin, client: Client) -> None:
    answer_head = (
        b"HTTP/1.1 200 OK\r\nconnection: x-named, keep-alive\r\nx-named: 1\r\nkeep-alive: timeout=5\r\n"
        b"proxy-connection: keep-alive\r\nte: x\r\nupgrade: h2c\r\nx-kept: 1\r\ncontent-length: 2\r\n\r\nok"
    )
    origin.answer = raw(answer_head)
    answer = await client.get(
        extra=b"Connection: close-not, X-Secret ,  x-other,keep-alive\r\nX-Secret: 1\r\nx-other: 2\r\nkeep-alive: 5\r\n"
        b"proxy-connection: close\r\nte: gzip\r\nupgrade: foo\r\nx-kept: 1\r\n"
    )
    got = await origin.request()
    for name in (b"connection", b"x-secret", b"x-other", b"keep-alive", b"proxy-connection", b"te", b"upgrade"):
        assert got.one(name) is None, name
    assert got.one(b"x-kept") == b"1"
    for name in (b"connection", b"x-named", b"keep-alive", b"proxy-connection", b"te", b"upgrade"):
        assert answer.one(name) is None, name
    assert answer.one(b"x-kept") == b"1"


@pytest.mark.parametrize("name", [b"content-length", b"host", b"transfer-encoding"])
async def test_connection_can_not_name_framing(proxy: Proxy, origin: Origin, client: Client, name: bytes) -> None:
    assert (await client.get(extra=b"connection: %b\r\n" % name)).status == 400


@pytest.mark.parametrize("name", [b"authorization", b"cookie", b"x-forwarded-for", b"via"])
async def test_connection_can_not_strip_what_origins_rely_on(
    proxy: Proxy, origin: Origin, client: Client, name: bytes
) -> None:
    value = b"1.1 else" if name == b"via" else b"10.0.0.1"
    assert (await client.get(extra=b"connection: %b\r\n%b: %b\r\n" % (name, name, value))).status == 200
    assert value in b"".join((await origin.request()).all(name))


async def test_te_trailers_is_kept_for_the_next_hop(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.get(extra=b"te: trailers, deflate;q=0.5\r\nconnection: te\r\n")
    got = await origin.request()
    assert got.one(b"te") in (None, b"trailers")
    if got.one(b"te"):
        assert got.one(b"connection") == b"te"


async def test_values_and_order_are_kept(proxy: Proxy, origin: Origin, client: Client) -> None:
    lines = [
        (b"x-a", b"1"),
        (b"cookie", b"a=b; c=d"),
        (b"x-a", b"2"),
        (b"x-obs", b"\x80\xff caf\xc3\xa9"),
        (b"x-inner", b'a  b\tc,"d;e" ; f'),
        (b"x-empty", b""),
        (b"accept", b"text/html"),
        (b"accept", b"*/*;q=0.1"),
        (b"x-a", b"3"),
        (b"cookie", b"e=f"),
        (b"x-long", b"v" * 8000),
        (b"!#$%&'*+.^_`|~z", b":"),
    ]
    wire = b"".join(b"%b: \t %b \t\r\n" % (n.title() if n != b"!#$%&'*+.^_`|~z" else n, v) for n, v in lines)
    origin.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + wire + b"\r\nok")
    answer = await client.get(extra=wire)
    got = await origin.request()
    names = {name for name, _ in lines}
    assert [field for field in got.fields if field[0] in names] == lines
    assert [field for field in answer.fields if field[0] in names] == lines


async def test_set_cookie_is_repeated_in_order(proxy: Proxy, origin: Origin, client: Client) -> None:
    cookies = [b"a=1; Expires=Wed, 21 Oct 2030 07:28:00 GMT", b"b=2, x", b"a=1"]
    wire = b"".join(b"Set-Cookie: %b\r\n" % c for c in cookies)
    origin.answer = raw(b"HTTP/1.1 200 OK\r\n" + wire + b"content-length: 0\r\n\r\n")
    assert (await client.get()).all(b"set-cookie") == cookies


async def test_forwarded_fields(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.get()
    got = await origin.request()
    assert got.one(b"x-forwarded-for") == b"127.0.0.1"
    assert got.one(b"x-forwarded-proto") == b"http"
    assert got.one(b"x-forwarded-host") == b"a.test"
    assert got.one(b"via") == b"1.1 onetrip"
    assert re.fullmatch(rb"[0-9a-f-]{16,}", got.one(b"x-request-id") or b"")
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", got.one(b"traceparent") or b"")
    assert got.one(b"onetrip-attempt") is None


async def test_ids_are_unique(proxy: Proxy, origin: Origin, client: Client) -> None:
    for _ in range(5):
        await client.get()
    assert len({got.one(b"x-request-id") for got in origin.requests}) == 5
    assert len({got.one(b"traceparent") for got in origin.requests}) == 5


async def test_a_trusted_peer_is_believed(proxy: Proxy, origin: Origin, client: Client) -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await client.get(
        extra=b"x-forwarded-for: 9.9.9.9\r\nx-forwarded-for: 8.8.8.8\r\nx-forwarded-proto: https\r\nx-request-id: id-1\r\n"
        b"x-forwarded-host: real.test\r\nvia: 1.0 fred, 1.1 p.example\r\ntraceparent: %b\r\ntracestate: a=b\r\n" % trace
    )
    got = await origin.request()
    assert got.one(b"x-forwarded-for") == b"9.9.9.9, 8.8.8.8, 127.0.0.1"
    assert got.one(b"x-forwarded-proto") == b"https"
    assert got.one(b"x-forwarded-host") == b"real.test"
    assert got.one(b"x-request-id") == b"id-1"
    assert got.one(b"via") == b"1.0 fred, 1.1 p.example, 1.1 onetrip"
    assert got.one(b"traceparent") == trace
    assert got.one(b"tracestate") == b"a=b"


@pytest.mark.parametrize(
    "value",
    [b"x", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
     b"00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"],
)  # fmt: skip
async def test_a_bad_traceparent_is_replaced(proxy: Proxy, origin: Origin, client: Client, value: bytes) -> None:
    await client.get(extra=b"traceparent: %b\r\n" % value)
    got = (await origin.request()).one(b"traceparent") or b""
    assert got != value
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", got)


@pytest.mark.parametrize(
    "via", [b"1.1 onetrip", b"1.0 a, 1.1 onetrip (x), 1.1 b", b"HTTP/1.1 onetrip", b"1.1\tonetrip"]
)
async def test_a_loop_is_refused(proxy: Proxy, origin: Origin, client: Client, via: bytes) -> None:
    answer = await client.get(extra=b"via: %b\r\n" % via)
    assert answer.status == 508
    assert b"proxy_loop_detected" in (answer.one(b"proxy-status") or b"")
    assert not origin.requests
    assert (await client.get()).status == 200


@pytest.mark.parametrize("via", [b"1.1 onetrip2", b"1.1 notonetrip", b"1.1 x (onetrip)", b"1.1 a, 1.1 b"])
async def test_another_proxy_is_no_loop(proxy: Proxy, origin: Origin, client: Client, via: bytes) -> None:
    assert (await client.get(extra=b"via: %b\r\n" % via)).status == 200


async def test_http10_is_told_by_via(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.ask(b"GET / HTTP/1.0\r\nhost: a.test\r\n\r\n")
    assert (await origin.request()).one(b"via") == b"1.0 onetrip"


async def test_date_is_added_when_missing(proxy: Proxy, origin: Origin, client: Client) -> None:
    answer = await client.get()
    assert re.fullmatch(rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", answer.one(b"date") or b"")
    origin.answer = raw(b"HTTP/1.1 200 OK\r\ndate: Tue, 15 Nov 1994 08:12:31 GMT\r\ncontent-length: 0\r\n\r\n")
    assert (await client.get()).one(b"date") == b"Tue, 15 Nov 1994 08:12:31 GMT"


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE"])
@pytest.mark.parametrize("value", [b"0", b"00"])
async def test_max_forwards_zero(proxy: Proxy, origin: Origin, client: Client, method: bytes, value: bytes) -> None:
    answer = await client.ask(request(method, b"/x", b"max-forwards: %b\r\ncookie: s=1\r\nx-a: 1\r\n" % value))
    assert answer.status in (200, 204)
    assert not origin.requests
    if method == b"TRACE":
        assert answer.body.startswith(b"TRACE /x HTTP/1.1\r\n")
        assert b"x-a: 1" in answer.body
        assert b"s=1" not in answer.body
    assert (await client.get()).status == 200


@pytest.mark.parametrize(("method", "sent", "seen"), [(b"OPTIONS", b"5", b"4"), (b"TRACE", b"1", b"0"), (b"GET", b"0", b"0"),
                                                      (b"GET", b"7", b"7")])  # fmt: skip
async def test_max_forwards(
    proxy: Proxy, origin: Origin, client: Client, method: bytes, sent: bytes, seen: bytes
) -> None:
    await client.ask(request(method, extra=b"max-forwards: %b\r\n" % sent))
    assert (await origin.request()).one(b"max-forwards") == seen


@pytest.mark.parametrize("name", [b"onetrip-attempt", b"early-data", b"onetrip-debug"])
async def test_own_fields_can_not_be_forged(proxy: Proxy, origin: Origin, client: Client, name: bytes) -> None:
    await client.get(extra=b"%b: 7\r\n" % name)
    assert (await origin.request()).one(name) is None


async def test_debug_fields(proxy: Proxy, origin: Origin, client: Client) -> None:
    answer = await client.get(extra=b"onetrip-debug: 1\r\n")
    assert re.fullmatch(rb"onetrip;dur=[0-9.]+, upstream;dur=[0-9.]+", answer.one(b"server-timing") or b"")
    assert answer.one(b"onetrip-region") == b"here"
    assert answer.one(b"onetrip-attempts") == b"1"
    answer = await client.get()
    assert answer.one(b"server-timing") is None


async def test_an_origin_date_and_server_timing_stay(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 200 OK\r\nserver-timing: db;dur=5\r\nserver: x\r\ncontent-length: 0\r\n\r\n")
    answer = await client.get(extra=b"onetrip-debug: 1\r\n")
    assert b"db;dur=5" in b", ".join(answer.all(b"server-timing"))
    assert answer.one(b"server") == b"x"


# Errors of the proxy.


async def test_an_error_explains_itself(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"garbage\r\n\r\n", then="close")
    answer = await client.get()
    assert answer.status == 502
    assert (answer.one(b"proxy-status") or b"").startswith(b'onetrip; error=http_protocol_error; details="')
    assert answer.one(b"content-type") == b"text/plain; charset=utf-8"
    assert b"here/127.0.0.1" in answer.body
    assert answer.one(b"date")
    answer = await client.get(extra=b"accept: application/json\r\n")
    assert answer.one(b"content-type") == b"application/json"
    origin.answer = raw(OK)
    assert (await client.get()).status == 200


async def test_an_error_answers_head_without_a_body(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"garbage\r\n\r\n", then="close")
    answer = await client.ask(request(b"HEAD"), method=b"HEAD")
    assert answer.status == 502
    origin.answer = raw(OK)
    assert (await client.get()).status == 200


async def test_an_error_while_the_request_still_comes(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"garbage\r\n\r\n", then="close", read_body=False)
    await client.send(request(b"POST", extra=b"content-length: 1000\r\n", body=b"x"))
    answer = await client.response()
    assert answer.status == 502
    assert answer.one(b"connection") == b"close"
    assert await client.closed() == b""


async def test_unread(proxy: Proxy, origin: Origin, client: Client) -> None:
    with pytest.raises(Ended):
        await client.ask(request(extra=b"connection: close\r\n"))
        await client.response()
