"""What becomes of fields, and what the errors of the proxy say (RFC 9110 sections 5, 7.6; RFC 9209)."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable

import pytest

from .harness import OK, Client, Origin, Proxy, config, raw, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]

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


async def test_proxy_credentials_stay_between_client_and_proxy(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 200 OK\r\nproxy-authenticate: Basic\r\ncontent-length: 2\r\n\r\nok")
    answer = await client.get(extra=b"Proxy-Authorization: Basic eDp5\r\n")
    assert (await origin.request()).one(b"proxy-authorization") is None
    assert answer.one(b"proxy-authenticate") is None


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
        extra=b"x-forwarded-for: 9.9.9.9\r\nx-forwarded-for: 8.8.8.8\r\nx-forwarded-proto: https\r\n"
        b"x-request-id: id-1\r\n"
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
     b"00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
     b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"],
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


CLAIMS = (
    b"forwarded: for=9.9.9.9;proto=https\r\nx-real-ip: 9.9.9.9\r\nx-client-ip: 9.9.9.9\r\nx-forwarded-port: 1\r\n"
    b"x-forwarded-prefix: /x\r\nX-Forwarded-User: root\r\nx-forwarded-server: s\r\nx-forwarded-ssl: on\r\n"
    b"x-forwarded-scheme: https\r\nx-envoy-internal: true\r\nX-Original-URL: /admin\r\nonetrip-attempt: 4\r\n"
    b"true-client-ip: 9.9.9.9\r\nx-onetrip-x: 1\r\nonetrip-debug: 1\r\nearly-data: 1\r\nclient-cert: :AA:\r\n"
)
TWINS = b"X_Forwarded_For: 9.9.9.9\r\nx-real_ip: 9.9.9.9\r\nx_request_id: 9\r\nx_forwarded_prefix: 9\r\nproxy: 9\r\n"


async def test_a_strangers_claims_go_and_choose_no_route(start: Start, own_origin: Origin) -> None:
    text = config(own_origin.port, listener="trusted: []", route="match: {headers: {x-real-ip: 9.9.9.9}}")
    proxy = await start(text)
    assert (await (await proxy.connect()).get(extra=CLAIMS)).status == 404
    assert not own_origin.requests
    proxy = await start(config(own_origin.port, listener="trusted: []"))
    assert (await (await proxy.connect()).get(extra=b"x-mine: 1\r\n" + CLAIMS + TWINS)).status == 200
    names = {name for name, _ in (await own_origin.request()).fields}
    added = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via", b"x-request-id", b"traceparent"}
    assert names - {b"cdn-loop"} == {b"host", b"x-mine"} | added
    assert (await own_origin.request()).one(b"x-forwarded-for") == b"127.0.0.1"


async def test_a_trusted_clients_claims_stay(proxy: Proxy, origin: Origin, client: Client) -> None:
    assert (await client.get(extra=CLAIMS + TWINS)).status == 200
    got = await origin.request()
    assert got.one(b"forwarded") == b"for=9.9.9.9;proto=https"
    assert got.one(b"x-real-ip") == b"9.9.9.9"
    assert got.one(b"x-original-url") == b"/admin"
    for name in (b"onetrip-debug", b"onetrip-attempt", b"x_forwarded_for", b"x-real_ip", b"x_request_id", b"proxy"):
        assert got.one(name) is None, name


async def test_an_ipv4_client_of_a_socket_for_both_families_is_one(proxy: Proxy, origin: Origin) -> None:
    """Such sockets come from systemd; the kernel shows the client as ::ffff:127.0.0.1."""
    loop = asyncio.get_running_loop()
    sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    server = await loop.create_server(proxy.listener.accept, sock=sock)
    peer = socket.socket()
    peer.setblocking(False)
    await loop.sock_connect(peer, ("127.0.0.1", sock.getsockname()[1]))
    client = Client(peer)
    assert (await client.get(extra=b"x-forwarded-for: 9.9.9.9\r\n")).status == 200
    assert (await origin.request()).one(b"x-forwarded-for") == b"9.9.9.9, 127.0.0.1"
    assert b'"client":"127.0.0.1"' in next(iter(proxy.listener.connections)).log_start
    client.close()
    server.close()


FORBIDDEN = b"""host content-length transfer-encoding authorization cookie x-forwarded-for x-real-ip x_forwarded_for
    forwarded early-data onetrip-attempt connection te content-type max-forwards set-cookie cache-control""".split()


async def test_trailers_frame_route_and_vouch_for_nothing(proxy: Proxy, origin: Origin, client: Client) -> None:
    section = b"".join(b"%b: 1\r\n" % name for name in FORBIDDEN) + b"x-sum: 7\r\n"
    body = b"3\r\nabc\r\n0\r\n" + section + b"\r\n"
    origin.answer = raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body)
    answer = await client.ask(request(b"POST", extra=b"transfer-encoding: chunked\r\n", body=body))
    assert answer.body == b"abc"
    assert answer.trailers == [(b"x-sum", b"7")]
    got = await origin.request()
    assert got.body == b"abc"
    assert got.trailers == [(b"x-sum", b"7")]


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


@pytest.mark.parametrize(
    ("method", "sent", "seen"),
    [(b"OPTIONS", b"5", b"4"), (b"TRACE", b"1", b"0"), (b"GET", b"0", b"0"), (b"GET", b"7", b"7")],
)
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
