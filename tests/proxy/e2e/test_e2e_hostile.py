"""Origins that lie, cut, stall and babble: the client gets a clear error or a clean cut, and the next request is
unharmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from loadtests.lab.certificates import Issued, issue, make_ca

from .harness import OK, Answer, Client, Message, Origin, OriginPeer, Proxy, config, raw, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]
H = b"host: a.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + H + b"\r\n"
POST = b"POST / HTTP/1.1\r\n" + H + b"content-length: 3\r\n\r\nabc"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_proxy(shared_origin: Origin) -> AsyncIterator[Proxy]:
    """Impatient: what never answers is given up after 300 ms."""
    text = config(shared_origin.port, response="300ms", idle="300ms", total="3s", limits="header_timeout: 300ms")
    text = text.replace("connect: 2s", "connect: 250ms")
    proxy = await Proxy(text).start()
    yield proxy
    await proxy.stop()


async def never(peer: OriginPeer, got: Message) -> None:
    await peer.gone()


async def endless_interims(peer: OriginPeer, got: Message) -> None:
    while True:
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 10)


async def endless_fields(peer: OriginPeer, got: Message) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await peer.send(b"x-a: b\r\n" * 1000)


async def endless_line(peer: OriginPeer, got: Message) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        await peer.send(b"x" * 65536)


async def endless_status(peer: OriginPeer, got: Message) -> None:
    await peer.send(b"HTTP/1.1 200 ")
    while True:
        await peer.send(b"x" * 65536)


# What an origin does before any of a response was passed on, and the statuses that may tell of it.
NO_ANSWER: dict[str, tuple[Answer, set[int]]] = {
    "closes": (raw(then="close"), {502}),
    "resets": (raw(then="reset"), {502}),
    "half-closes": (raw(then="half"), {502}),
    "closes in the status line": (raw(b"HTTP/1.1 2", then="close"), {502}),
    "resets in the status line": (raw(b"HTTP/1.1 2", then="reset"), {502}),
    "closes in a field": (raw(b"HTTP/1.1 200 OK\r\ncontent-le", then="close"), {502}),
    "closes before the empty line": (raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", then="close"), {502}),
    "resets before the empty line": (raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", then="reset"), {502}),
    "closes after an interim": (raw(b"HTTP/1.1 103 Early Hints\r\n\r\n", then="close"), {502}),
    "garbage": (raw(b"\x00\xff\x13garbage\r\n\r\n"), {502}),
    "garbage without an end": (raw(b"garbage"), {502}),
    "tls records": (raw(b"\x15\x03\x01\x00\x02\x02\x46"), {502}),
    "http/0.9": (raw(b"<html>hello</html>", then="close"), {502}),
    "http/2": (raw(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"), {502}),
    "smtp": (raw(b"220 mail.test ESMTP\r\n"), {502}),
    "empty lines": (raw(b"\r\n\r\n\r\n\r\n"), {502}),
    "never": (never, {504}),
    "half a status line": (raw(b"HTTP/1.1 20"), {504, 502}),
    "half a head": (raw(b"HTTP/1.1 200 OK\r\ncontent-le"), {504, 502}),
    "only interims": (raw(b"HTTP/1.1 102 Processing\r\n\r\n" * 3), {504}),
    "endless interims": (endless_interims, {502}),
    "endless fields": (endless_fields, {502}),
    "endless line": (endless_line, {502}),
    "endless status line": (endless_status, {502}),
    "huge head": (raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400_000 + b"\r\n\r\n"), {502}),
    "too many fields": (raw(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 3000 + b"\r\n"), {502}),
    "101 unasked": (raw(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhi"), {502}),
    "bad length": (raw(b"HTTP/1.1 200 OK\r\ncontent-length: abc\r\n\r\n"), {502}),
    "both lengths": (
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        {502},
    ),
    "a request": (raw(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), {502}),
}


@pytest.mark.parametrize("wire", [GET, POST], ids=["get", "post"])
@pytest.mark.parametrize(("answer", "statuses"), NO_ANSWER.values(), ids=NO_ANSWER.keys())
async def test_no_answer(
    proxy: Proxy, origin: Origin, client: Client, answer: Answer, statuses: set[int], wire: bytes
) -> None:
    origin.answer = answer
    answered = await client.ask(wire)
    assert answered.status in statuses
    assert (answered.one(b"proxy-status") or b"").startswith(b"onetrip; error=")
    assert b"127.0.0.1:%d" % origin.port in answered.body
    assert len(origin.requests) == 1, "sent again although it may have been processed, and retries are off"
    origin.answer = raw(OK)
    assert (await client.get()).body == b"ok"
    assert (await (await proxy.connect()).get()).body == b"ok"


async def stall(peer: OriginPeer, got: Message) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
    await peer.gone()


CUT: dict[str, Answer] = {
    "closes mid-body": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", then="close"),
    "resets mid-body": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", then="reset"),
    "closes after the head": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", then="close"),
    "closes mid-chunk": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", then="close"),
    "closes between chunks": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", then="close"),
    "resets between chunks": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", then="reset"),
    "closes in the last chunk": raw(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", then="close"
    ),
    "closes in a trailer": raw(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y", then="close"
    ),
    "closes in a size": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3", then="close"),
    "bad chunk": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n"),
    "stalls": stall,
}


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("answer", CUT.values(), ids=CUT.keys())
async def test_cut_response(proxy: Proxy, origin: Origin, client: Client, answer: Answer, version: bytes) -> None:
    origin.answer = answer
    await client.send(b"GET / HTTP/%b\r\n%b\r\n" % (version, H))
    data = await client.closed()
    if data.startswith(b"HTTP/1.1 200"):
        head, _, body = data.partition(b"\r\n\r\n")
        assert not body.endswith(b"0\r\n\r\n"), "made to look complete"
        if b"content-length" not in head and b"chunked" not in head:
            assert client.ended == "reset", "a body that ends with the connection was made to look complete"
    else:
        assert data.startswith(b"HTTP/1.1 502"), data
    origin.answer = raw(OK)
    assert (await (await proxy.connect()).get()).body == b"ok"


async def test_reset_of_a_body_without_length_is_no_end(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 200 OK\r\n\r\nabc", then="reset")
    await client.send(GET)
    data = await client.closed()
    assert not data.endswith(b"0\r\n\r\n")


async def test_slow_drip_arrives(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        for octet in b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok":
            await peer.send(bytes([octet]), b"")

    origin.answer = answer
    assert (await client.get()).body == b"ok"


async def test_endless_drip_of_a_head_ends(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            await peer.send(b"y")
            await asyncio.sleep(0.02)

    origin.answer = answer
    assert (await client.get()).status == 504


# Early answers.


@pytest.mark.parametrize("then", ["close", "reset", "keep", "reads on"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_early_answer(proxy: Proxy, origin: Origin, client: Client, then: str, chunked: bool) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        if then == "close":
            peer.close()
        elif then == "reset":
            await asyncio.sleep(0.05)
            peer.reset()
        elif then == "reads on":
            await peer.gone()
        else:
            await wait_for(lambda: proxy.listener.counters.in_flight == 0)

    origin.answer = answer
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: 2000000"
    await client.send(b"POST / HTTP/1.1\r\n" + H + framing + b"\r\n\r\n")
    await origin.request()
    body = b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 65536
    sending = asyncio.ensure_future(client.send_quietly(*[body] * 30))
    answered = await client.response()
    await sending
    assert answered.status in ((413, 502) if then == "reset" else (413,))
    assert answered.one(b"connection") == b"close"
    await client.closed()
    origin.answer = raw(OK)
    assert (await (await proxy.connect()).get()).body == b"ok"


async def test_answer_while_the_body_still_comes(proxy: Proxy, origin: Origin, client: Client) -> None:
    """An echo that answers as it reads: both directions flow at once, and the whole body arrives."""

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n")
        for _ in range(3):
            await peer.send(await peer.exactly(100_000))

    origin.answer = answer
    await client.send(b"POST / HTTP/1.1\r\n" + H + b"content-length: 300000\r\n\r\n")
    await client.send(b"a" * 100_000)
    head = await client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert await client.exactly(100_000) == b"a" * 100_000
    await client.send(b"b" * 100_000)
    assert await client.exactly(100_000) == b"b" * 100_000
    await client.send(b"c" * 100_000)
    assert await client.exactly(100_000) == b"c" * 100_000


async def test_upgrade_accepted_to_something_else(proxy: Proxy, origin: Origin, client: Client) -> None:
    origin.answer = raw(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n")
    answered = await client.get(extra=b"connection: upgrade\r\nupgrade: websocket\r\n")
    assert answered.status == 502
    origin.answer = raw(OK)
    assert (await client.get()).body == b"ok"


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_upgrade_meets_a_close(proxy: Proxy, origin: Origin, client: Client, then: str) -> None:
    origin.answer = raw(then=then)
    assert (await client.get(extra=b"connection: upgrade\r\nupgrade: websocket\r\n")).status == 502
    origin.answer = raw(OK)
    assert (await client.get()).body == b"ok"


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_tunnel_origin_goes(proxy: Proxy, origin: Origin, client: Client, then: str) -> None:
    origin.answer = raw(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi", then=then)
    await client.send(b"GET / HTTP/1.1\r\n" + H + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
    await client.closed()


async def test_idle_tunnel_ends(proxy: Proxy, origin: Origin, client: Client) -> None:
    gone: list[str] = []

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi")
        gone.append(await peer.gone())

    origin.answer = answer
    await client.send(b"GET / HTTP/1.1\r\n" + H + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
    await client.closed()
    await wait_for(lambda: gone)


# Time.


async def test_slow_head_is_told(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.send(b"GET / HTTP/1.1\r\nhost: a")
    answered = await client.response()
    assert answered.status == 408
    assert await client.closed() == b""


async def test_slow_second_head_is_told(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.get()
    await client.send(b"GET / HTTP/1.1\r\nhost: a")
    assert (await client.response()).status == 408
    assert await client.closed() == b""


async def test_slow_pipelined_head_is_told(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.send(GET + b"GET / HTTP/1.1\r\nhost: a")
    assert (await client.response()).status == 200
    assert (await client.response()).status == 408
    assert await client.closed() == b""


async def test_slow_drip_of_a_head_is_told(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def drip() -> None:
        await client.send(b"GET / HTTP/1.1\r\nx: ")
        while True:
            await client.send(b"y")
            await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(drip())
    try:
        assert (await client.response()).status == 408
    finally:
        dripping.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await dripping


async def test_slow_body_is_told(proxy: Proxy, origin: Origin, client: Client) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.gone()

    origin.answer = answer
    await client.send(b"POST / HTTP/1.1\r\n" + H + b"content-length: 10\r\n\r\nabc")
    answered = await client.response()
    assert answered.status == 408
    assert answered.one(b"connection") == b"close"
    assert await client.closed() == b""


async def test_silent_client_is_let_go(proxy: Proxy, client: Client) -> None:
    assert await client.closed() == b""


async def test_a_response_may_have_less_time_than_connecting(start: Start, own_origin: Origin) -> None:
    own_origin.answer = never
    proxy = await start(config(own_origin.port, response="200ms").replace("connect: 2s", "connect: 4s"))
    client = await proxy.connect()
    await client.send(GET)
    assert await client.silent(0.1)
    async with asyncio.timeout(2):
        assert (await client.response()).status == 504
    await proxy.end_test()


# Connections that die.


def disjoint(one: list[OriginPeer], other: list[OriginPeer]) -> bool:
    return not any(peer in other for peer in one)


RETRY = "{attempts: 2, budget: 100%}"


@pytest.mark.parametrize("wire", [GET, POST], ids=["get", "post"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "not seen yet"])
async def test_idle_connection_dies(start: Start, own_origin: Origin, how: str, wire: bytes, seen: bool) -> None:
    """A connection that died while idle costs no request, whether its end has been read already or not."""
    idle: list[OriginPeer] = []

    async def accept(peer: OriginPeer) -> None:
        while True:
            idle.append(peer)
            await own_origin.loop_readable(peer)  # no pending read: closing takes effect at once
            idle.remove(peer)
            request = await peer.head()
            if request is None:
                return
            await own_origin.answer(peer, request)

    own_origin.accept = accept
    proxy = await start(config(own_origin.port, retry=RETRY, warm=2))
    client = await proxy.connect()
    for _ in range(5):
        assert (await client.ask(wire)).body == b"ok"
        await wait_for(lambda: len(idle) >= 2)
        dying = list(idle)
        for peer in dying:
            getattr(peer, how)()
        if seen:
            await wait_for(partial(disjoint, dying, own_origin.peers))
        answered = await client.ask(wire)
        assert answered.body == b"ok", answered.body
    await proxy.end_test()


@pytest.mark.parametrize("wire", [GET, POST], ids=["get", "post"])
@pytest.mark.parametrize("how", ["close", "half"])
async def test_keep_alive_lies(start: Start, own_origin: Origin, how: str, wire: bytes) -> None:
    own_origin.answer = raw(b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", then=how)
    proxy = await start(config(own_origin.port, retry=RETRY))
    client = await proxy.connect()
    await client.send(wire * 20)
    assert [(await client.response()).body for _ in range(20)] == [b"ok"] * 20
    await proxy.end_test()


@pytest.mark.parametrize("babble", [OK, b"x", b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n", b"\r\n"])
async def test_response_before_the_request(start: Start, own_origin: Origin, babble: bytes) -> None:
    async def accept(peer: OriginPeer) -> None:
        await peer.send(babble)
        await peer.gone()

    proxy = await start(config(own_origin.port, response="300ms"))
    await wait_for(lambda: proxy.pool.stock.idle)
    for peer in own_origin.peers:
        await peer.send(babble)
    await wait_for(lambda: all(c.uses == 0 for c in proxy.pool.stock.idle))
    client = await proxy.connect()
    answered = await client.get()
    assert answered.status in (200, 502)
    own_origin.accept = accept
    for peer in own_origin.peers:
        peer.end("close")
    answered = await client.get()
    assert answered.status in (200, 408, 502)
    own_origin.clear()
    for peer in own_origin.peers:
        peer.end("close")
    await wait_for(lambda: proxy.pool.stock.idle)
    assert (await (await proxy.connect()).get()).body == b"ok"
    await proxy.end_test()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_accepts_and_ends(start: Start, own_origin: Origin, how: str) -> None:
    async def accept(peer: OriginPeer) -> None:
        getattr(peer, how)()

    own_origin.accept = accept
    proxy = await start(config(own_origin.port, response="300ms"))
    client = await proxy.connect()
    for wire in (GET, POST):
        assert (await client.ask(wire)).status in (502, 503)
    before = own_origin.accepted
    await asyncio.sleep(0.3)
    assert own_origin.accepted - before < 20, "dials in a loop"
    own_origin.clear()
    for _ in range(5):  # a connection from before may still be among the warm ones
        answered = await client.get()
        if answered.status == 200:
            break
    assert answered.body == b"ok"
    await proxy.end_test()


async def test_nobody_listens(start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = await start(config(free.getsockname()[1]))
        client = await proxy.connect()
        answered = await client.get()
        assert answered.status == 502
        assert b"connection_refused" in (answered.one(b"proxy-status") or b"")
        assert (await client.ask(POST)).status == 502
        await proxy.end_test()


async def test_nobody_accepts(start: Start) -> None:
    """A full backlog: connecting takes for ever."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        text = config(full.getsockname()[1], upstream="drain: {after: 50}").replace("connect: 2s", "connect: 200ms")
        proxy = await start(text)
        answered = await (await proxy.connect()).get()
        assert answered.status == 504
        assert b"connection_timeout" in (answered.one(b"proxy-status") or b"")
        await proxy.end_test()
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize(
    "first",
    [raw(b"HTTP/1.1 503 Down\r\ncontent-length: 4\r\n\r\ndown"), raw(then="close"), raw(then="reset"), raw(b"garbage")],
    ids=["503", "close", "reset", "garbage"],
)
async def test_a_get_is_tried_again(start: Start, own_origin: Origin, first: Answer) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await (raw(OK) if got.one(b"onetrip-attempt") else first)(peer, got)

    own_origin.answer = answer
    proxy = await start(config(own_origin.port, retry=RETRY))
    client = await proxy.connect()
    for _ in range(4):
        assert (await client.get()).body == b"ok"
    numbered = [g.one(b"onetrip-attempt") for g in own_origin.requests]
    assert sorted(numbered, key=bool) == [None] * 4 + [b"2"] * 4
    await proxy.end_test()


@pytest.mark.parametrize(
    ("how", "used"),
    [
        ("close", False),
        ("close", True),
        ("half", False),
        ("half", True),
        ("reset", False),
        ("reset", True),
    ],
)
async def test_a_post_is_not_sent_twice(start: Start, own_origin: Origin, how: str, used: bool) -> None:
    """The origin read it and then hung up: it may have acted on it, whether or not its kernel acknowledged it."""
    proxy = await start(config(own_origin.port, retry=RETRY))
    client = await proxy.connect()
    if used:
        assert (await client.get()).status == 200
    own_origin.answer = raw(then=how)
    count = len(own_origin.requests)
    assert (await client.ask(POST)).status == 502
    assert len(own_origin.requests) == count + 1
    await proxy.end_test()


# TLS.


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return make_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def tls_server(ca: Issued) -> Iterator[Callable[[Issued], Awaitable[int]]]:
    servers: list[asyncio.Server] = []

    async def make(leaf: Issued) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf.certificate, leaf.key)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(OK)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield make
    for server in servers:
        server.close()


def tls_config(port: int, ca_file: Path, name: str = "origin.test") -> str:
    return config(port, upstream=f"tls: {{server_name: {name}, ca: {ca_file}}}")


@pytest.mark.parametrize("what", ["good", "expired", "wrong name", "other ca", "self-signed", "not yet"])
async def test_tls_origin(
    start: Start, ca: Issued, tls_server: Callable[[Issued], Awaitable[int]], tmp_path: Path, what: str
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    match what:
        case "expired":
            leaf = issue(ca, names=["origin.test"], directory=tmp_path, not_after=now - day)
        case "not yet":
            leaf = issue(ca, names=["origin.test"], directory=tmp_path, not_before=now + day)
        case "wrong name":
            leaf = issue(ca, names=["other.test"], directory=tmp_path)
        case "other ca":
            leaf = issue(make_ca(tmp_path, "other"), names=["origin.test"])
        case "self-signed":
            leaf = make_ca(tmp_path, "self")
        case _:
            leaf = issue(ca, names=["origin.test"], directory=tmp_path)
    proxy = await start(tls_config(await tls_server(leaf), ca.certificate))
    client = await proxy.connect()
    for _ in range(2):
        answered = await client.get()
        if what == "good":
            assert answered.body == b"ok"
        else:
            assert answered.status == 502
            assert b"tls_certificate_error" in (answered.one(b"proxy-status") or b"")
    await proxy.end_test()


async def test_tls_to_a_plaintext_port(start: Start, own_origin: Origin, ca: Issued) -> None:
    async def accept(peer: OriginPeer) -> None:
        await peer.fill()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        peer.close()

    own_origin.accept = accept
    proxy = await start(tls_config(own_origin.port, ca.certificate))
    answered = await (await proxy.connect()).get()
    assert answered.status == 502
    assert b"tls_protocol_error" in (answered.one(b"proxy-status") or b"")
    await proxy.end_test()


@pytest.mark.parametrize("how", ["close", "reset", "never"])
async def test_tls_handshake_cut(start: Start, own_origin: Origin, ca: Issued, how: str) -> None:
    async def accept(peer: OriginPeer) -> None:
        await peer.fill()
        if how == "never":
            await peer.gone()
        else:
            getattr(peer, how)()

    own_origin.accept = accept
    proxy = await start(tls_config(own_origin.port, ca.certificate).replace("connect: 2s", "connect: 200ms"))
    client = await proxy.connect()
    answered = await client.get()
    assert answered.status == (504 if how == "never" else 502)
    await proxy.end_test()
