"""Request lines, Host, HTTP/1.0, persistence and pipelining, through the whole proxy (RFC 9112 sections 2, 3, 9)."""

from __future__ import annotations

import pytest

from .harness import Client, H, Message, Origin, OriginPeer, Proxy, echo, raw, request

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
        (b"A" * 10000 + b" / HTTP/1.1", 501),
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
