"""0-RTT from clients: what is served at once, what waits, what is refused."""

from __future__ import annotations

import asyncio

import pytest_asyncio

from tests.proxy.e2e.harness import Origin, raw, wait_for

from .tls_harness import TlsClient

CONFIG = """
listeners:
  - name: edge
    address: "127.0.0.1:0"
    upstream: app
    tls: {{early_data: {early}, certificates: [{{certificate: {certificate}, key: {key}}}]}}
upstreams:
  app:
    protocol: h1
    regions: {{here: {{endpoints: ["127.0.0.1:{port}"]}}}}
    hedge: off
    pool: {{warm: 1}}
access_log: off
limits: {{header_timeout: {header_timeout}}}
"""
GET = b"GET /%b HTTP/1.1\r\nhost: a.test\r\n\r\n"
POST = b"POST /%b HTTP/1.1\r\nhost: a.test\r\ncontent-length: 4\r\n\r\nbody"


@pytest_asyncio.fixture
async def plain():
    origin = Origin()
    yield origin
    await origin.close()


def config(plain, files, *, early="true", header_timeout="5s"):
    return CONFIG.format(
        port=plain.port,
        certificate=files.server.certificate,
        key=files.server.key,
        early=early,
        header_timeout=header_timeout,
    )


async def primed(start, dial, plain, files, *, tickets=1, **settings):
    """A proxy, and clients' tickets for it."""
    proxy = await start(config(plain, files, **settings))
    found = []
    while len(found) < tickets:
        client = await dial(proxy.ports["edge"])
        found.append(await client.ticket())
        client.close()
    return proxy, *found


async def replayed(port: int, flight: bytes) -> bytes:
    """Send a recorded first flight again; what the server says before it waits for more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(flight)
    try:
        async with asyncio.timeout(5):
            return await reader.read(65536)
    finally:
        writer.close()


async def test_a_safe_request_is_answered_before_the_handshake_is_complete(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files)
    client: TlsClient = await dial(proxy.ports["edge"], GET % b"early", session=session)
    await client.until(b"ok", finish=False)
    assert plain.requests[0].one(b"early-data") == b"1"
    await client.flush()
    await client.send(GET % b"late")
    await plain.request(2)
    assert plain.requests[1].one(b"early-data") is None
    assert client.engine.early == "accepted"


async def test_tickets_come_with_the_end_of_an_early_handshake(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files)
    client = await dial(proxy.ports["edge"], GET % b"early", session=session)
    await client.until(b"ok")
    assert (await client.ticket()).facts.max_early_data


async def test_an_unsafe_request_waits_for_the_handshake(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files)
    client = await dial(proxy.ports["edge"], POST % b"unsafe", session=session)
    assert await client.read(finish=False)
    connection = next(iter(proxy.listener.connections))
    await wait_for(lambda: connection.early)
    assert plain.requests == []
    await client.flush()
    await client.until(b"ok")
    request = await plain.request()
    assert request.body == b"body"
    assert request.one(b"early-data") is None
    assert connection.early is None


async def test_a_body_that_goes_on_after_the_handshake_is_whole(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files)
    head = b"POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 30000\r\n\r\n"
    client = await dial(proxy.ports["edge"], head + b"a" * 10000, session=session)
    assert await client.read()
    await client.send(b"b" * 20000)
    await client.until(b"ok")
    assert (await plain.request()).body == b"a" * 10000 + b"b" * 20000


async def test_a_replayed_first_flight_never_reaches_an_origin(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files, header_timeout="300ms")
    client = await dial(proxy.ports["edge"], GET % b"once", session=session)
    await client.until(b"ok")
    answer = await replayed(proxy.ports["edge"], client.flight)
    assert answer  # the server's part of the handshake, which only the client can finish
    await wait_for(lambda: not [one for one in proxy.listener.connections if one.state.value == "prelude"])
    assert [one.target for one in plain.requests] == [b"/once"]


async def test_a_handshake_that_never_ends_is_cut(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files, header_timeout="300ms")
    client = await dial(proxy.ports["edge"], GET % b"early", session=session)
    await client.until(b"ok", finish=False)
    await wait_for(lambda: not proxy.listener.connections)


async def test_without_early_data_in_the_config_tickets_allow_none(start, dial, plain, files):
    _, session = await primed(start, dial, plain, files, early="false")
    assert session.facts.max_early_data == 0


async def test_425_of_an_origin_is_retried_when_the_handshake_is_complete(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files)
    too_early = raw(b"HTTP/1.1 425 Too Early\r\ncontent-length: 0\r\n\r\n")
    good = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")

    async def answer(peer, request):
        await (too_early if request.one(b"early-data") else good)(peer, request)

    plain.answer = answer
    client = await dial(proxy.ports["edge"], GET % b"early", session=session)
    assert await client.read(finish=False)
    await plain.request()
    connection = next(iter(proxy.listener.connections))
    await wait_for(lambda: connection.early)  # the exchange waits
    assert len(plain.requests) == 1
    await client.flush()
    await client.until(b"fine")
    assert plain.requests[1].one(b"early-data") is None
    await wait_for(lambda: not proxy.listener.counters.in_flight)


async def test_425_goes_to_a_client_that_said_early_data_itself(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files)
    plain.answer = raw(b"HTTP/1.1 425 Too Early\r\ncontent-length: 0\r\n\r\n")
    request = b"GET / HTTP/1.1\r\nhost: a.test\r\nearly-data: 1\r\n\r\n"
    client = await dial(proxy.ports["edge"], request, session=session)
    await client.until(b"HTTP/1.1 425", finish=False)
    assert len(plain.requests) == 1


async def test_connection_close_is_kept_until_the_handshake_is_complete(start, dial, plain, files):
    proxy, session = await primed(start, dial, plain, files)
    request = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n"
    client = await dial(proxy.ports["edge"], request, session=session)
    await client.until(b"ok", finish=False)
    assert not client.engine.eof_received
    await client.flush()
    while not client.engine.eof_received:
        assert await client.read()


async def test_more_waiting_requests_than_are_held_are_refused(start, dial, plain, files):
    """Over HTTP/2, where a record holds many."""
    from proxy.downstream.early import HELD_MAX
    from proxy.http.h2 import H2ClientCodec, H2Limits
    from proxy.http.message import HeadersReceived, RequestHead

    proxy, session = await primed(start, dial, plain, files)
    codec = H2ClientCodec(H2Limits())
    client = TlsClient(files, proxy.ports["edge"], alpn=(b"h2",))
    await client.connect()
    session = await client.ticket()
    client.close()
    count = HELD_MAX + 3
    for _ in range(count):
        codec.send_headers(codec.open_stream(), RequestHead(b"DELETE", b"/", b"a.test", [], {}), True)
    client = await dial(proxy.ports["edge"], codec.data_to_send(), session=session, alpn=(b"h2",))
    statuses = []
    while len(statuses) < 3:
        assert await client.read(finish=False)
        received, client.received = client.received, b""
        statuses += [e.head.status for e in codec.receive(received) if isinstance(e, HeadersReceived)]
    assert statuses == [425, 425, 425]
    assert plain.requests == []
    await client.flush()
    while len(statuses) < count:
        assert await client.read()
        received, client.received = client.received, b""
        statuses += [e.head.status for e in codec.receive(received) if isinstance(e, HeadersReceived)]
        await client.send(codec.data_to_send())
    assert statuses[3:] == [200] * HELD_MAX
    assert len(plain.requests) == HELD_MAX
