"""Sessions and 0-RTT towards origins."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic

import pytest

from tests.proxy.e2e.harness import Origin, wait_for

from .tls_harness import TOO_EARLY, Connection, Request, TlsOrigin

CONFIG = """
listeners:
  - {{name: web, address: "127.0.0.1:0", upstream: app}}
upstreams:
  app:
    protocol: {protocol}
    tls: {{server_name: localhost, ca: {ca}, early_data: {early}}}
    regions: {{here: {{endpoints: ["127.0.0.1:{port}"]}}}}
    hedge: off
    pool: {{warm: {warm}}}{upstream}
admin: {{address: "127.0.0.1:0"}}
access_log: off
"""


def config(origin, ca, *, early=True, warm=0, protocol="h1", upstream=""):
    upstream = "\n    " + upstream if upstream else ""
    return CONFIG.format(
        port=origin.port, ca=ca, early=str(early).lower(), warm=warm, protocol=protocol, upstream=upstream
    )


def events(proxy):
    return {name: count for name, count in proxy.worker.sessions.events.items() if count}


async def cold(proxy, origin):
    """The origin cuts every connection; the proxy knows."""
    for connection in origin.connections:
        connection.transport.abort()
    await wait_for(lambda: not proxy.pool.stock.connections)


async def warmed_up(start, origin, ca, **settings):
    """A proxy without connections that holds a ticket."""
    proxy = await start(config(origin, ca, **settings))
    client = await proxy.connect()
    assert (await client.get()).status == 200
    await wait_for(lambda: proxy.upstream.reach.sessions_of(proxy.pool.target.endpoint).held)
    await cold(proxy, origin)
    origin.requests.clear()
    return proxy, client


async def test_warm_connections_keep_every_ticket_and_the_next_ones_resume(start, origin, ca):
    for _ in range(12):  # a dial that comes late may already resume: then it was another story than this one
        proxy = await start(config(origin, ca, early=False, warm=3))
        opened = proxy.pool.counters.opened
        await wait_for(lambda opened=opened: opened["full"] + opened["resumed"] == 3)
        if opened["full"] == 3:
            break
    await wait_for(lambda: events(proxy).get("stored") == 6)
    assert (await proxy.worker.status())["upstreams"]["app"]["regions"][0]["endpoints"][0]["tls_sessions"] == 6
    for connection in origin.connections:
        connection.transport.abort()
    await wait_for(lambda: opened["resumed"] == 3)
    assert opened["full"] == 3
    assert events(proxy)["resumed"] == 3


async def test_a_request_that_needs_a_connection_rides_in_its_first_flight(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca)
    assert (await client.get(b"/early")).body == b"ok"
    [request] = origin.requests
    assert request.early
    assert request.value(b"early-data") == b"1"
    assert proxy.pool.counters.opened["early"] == 1
    assert events(proxy)["early_accepted"] == 1
    await client.get(b"/again")
    assert origin.requests[1].value(b"early-data") is None
    assert origin.requests[1].connection == request.connection
    await proxy.quiet()


async def test_without_early_data_in_the_config_nothing_travels_early(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca, early=False)
    assert (await client.get()).status == 200
    assert [one.early for one in origin.requests] == [False]
    assert proxy.pool.counters.opened["resumed"] == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 0\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nhost: a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a.test\r\nx: " + b"x" * 5000 + b"\r\n\r\n",
    ],
    ids=["post", "delete", "upgrade", "large"],
)
async def test_what_is_not_safe_or_too_large_waits_for_the_handshake(start, origin, ca, request_bytes):
    proxy, client = await warmed_up(start, origin, ca)
    assert (await client.ask(request_bytes)).status == 200
    assert [(one.early, one.value(b"early-data")) for one in origin.requests] == [(False, None)]
    assert proxy.pool.counters.opened["resumed"] == 1


async def test_a_rejected_request_is_sent_once_more_on_the_same_connection(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca)
    origin.renew()
    assert (await client.get(b"/once")).body == b"ok"
    [request] = origin.requests
    assert not request.early
    assert request.value(b"early-data") is None
    assert request.value(b"onetrip-attempt") is None
    assert proxy.pool.counters.opened["full"] == 2
    assert events(proxy) | {"stored": 0} == {"rejected": 1, "early_rejected": 1, "stored": 0}
    await client.get(b"/twice")
    assert origin.requests[1].connection == request.connection
    await proxy.quiet()


async def test_425_is_answered_by_one_request_without_early_data(start, origin, ca):
    def answer(request: Request) -> bytes:
        return TOO_EARLY if request.value(b"early-data") else b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

    proxy, client = await warmed_up(start, origin, ca)
    origin.answer = answer
    assert (await client.get()).status == 200
    first, second = origin.requests
    assert (first.early, second.early) == (True, False)
    assert second.value(b"early-data") is None
    assert second.value(b"onetrip-attempt") == b"2"
    await proxy.quiet()


async def test_425_to_a_request_that_was_not_early_is_the_clients(start, origin, ca):
    origin.answer = lambda request: TOO_EARLY
    proxy = await start(config(origin, ca, early=False))
    client = await proxy.connect()
    assert (await client.get()).status == 425
    assert len(origin.requests) == 1


async def test_425_to_a_client_that_said_early_data_is_the_clients(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca)
    origin.answer = lambda request: TOO_EARLY
    assert (await client.get(extra=b"early-data: 1\r\n")).status == 425
    assert len(origin.requests) == 1
    await proxy.quiet()


async def test_425_to_the_second_request_is_passed_on(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca)
    origin.answer = lambda request: TOO_EARLY
    assert (await client.get()).status == 425
    assert len(origin.requests) == 2
    await proxy.quiet()


async def test_a_client_that_leaves_during_an_early_dial_leaves_nothing_behind(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca)
    origin.answer = lambda request: b""
    await client.send(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
    await wait_for(lambda: origin.requests)
    client.reset()
    await wait_for(lambda: not proxy.pool.stock.connections and not proxy.pool.dials.under_way)
    await proxy.quiet()


async def test_an_endpoint_that_hangs_up_on_early_data_gets_the_request_after_a_handshake(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca)
    hung_up = []

    def answer(request: Request) -> bytes:
        if request.early:
            hung_up.append(request)
            origin.connections[-1].transport.abort()
            return b""
        return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

    origin.answer = answer
    assert (await client.get()).status == 200
    assert [one.early for one in origin.requests] == [True, False]
    await proxy.quiet()


@pytest.mark.parametrize("refusal", [b"", b"\x15\x03\x03\x00\x02\x02\x0a", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_first_flight_whose_handshake_fails_is_followed_by_one_without_early_data(start, origin, ca, refusal):
    """RFC 8446 appendix D.3: a server that knows 0-RTT no more takes it for nonsense."""
    proxy, client = await warmed_up(start, origin, ca)
    origin.refusals.append(refusal)
    assert (await client.get()).status == 200
    assert [(one.early, one.value(b"early-data")) for one in origin.requests] == [(False, None)]
    await proxy.quiet()


async def test_an_endpoint_that_refuses_every_handshake_is_not_dialled_for_ever(start, origin, ca):
    proxy, client = await warmed_up(start, origin, ca)
    origin.refusals += [b"\x15\x03\x03\x00\x02\x02\x0a"] * 10
    assert (await client.get()).status == 502
    assert len(origin.refusals) == 8
    await proxy.quiet()


async def test_a_burst_sends_each_request_exactly_once(start, origin, ca):
    proxy = await start(config(origin, ca, warm=4))
    await wait_for(lambda: events(proxy).get("stored") == 8)
    await cold_pool(proxy, origin)
    clients = [await proxy.connect() for _ in range(12)]
    answers = await asyncio.gather(*(client.get(b"/%d" % number) for number, client in enumerate(clients)))
    assert [one.status for one in answers] == [200] * 12
    assert sorted(one.head.split()[1] for one in origin.requests) == sorted(b"/%d" % n for n in range(12))
    await proxy.quiet()


async def cold_pool(proxy, origin):
    """No connection is left, and none is being dialled by the pool's own accord."""
    for connection in origin.connections:
        connection.transport.abort()
    origin.requests.clear()


@pytest.mark.parametrize("protocol", ["h1", "h2", "auto"])
async def test_between_two_proxies(start, files, ca, protocol):
    """Through another onetrip, which takes 0-RTT: both roles, over either version."""
    plain = Origin()
    edge = await start(EDGE.format(port=plain.port, certificate=files.server.certificate, key=files.server.key))
    # Both are in this process, which has one name for itself.
    edge.listener.adopt(replace(edge.listener.settings, via_name=b"edge"))
    target = TlsOrigin(files)
    target.port = edge.ports["edge"]
    proxy = await start(config(target, ca, protocol=protocol))
    client = await proxy.connect()
    assert (await client.get(b"/first")).status == 200
    await wait_for(lambda: events(proxy).get("stored"))
    edge.listener.abort()
    await wait_for(lambda: not proxy.pool.stock.connections)
    assert (await client.get(b"/second")).status == 200
    assert proxy.pool.counters.opened["early"] == 1
    assert (await client.get(b"/third")).status == 200
    told = {one.target: one.one(b"early-data") for one in plain.requests}
    assert (told[b"/first"], told[b"/second"], told[b"/third"]) == (None, b"1", None)
    await wait_for(lambda: not any(region.in_flight for region in proxy.upstream.balancer.regions))
    await plain.close()


EDGE = """
listeners:
  - name: edge
    address: "127.0.0.1:0"
    upstream: app
    tls: {{early_data: true, certificates: [{{certificate: {certificate}, key: {key}}}]}}
upstreams:
  app:
    protocol: h1
    regions: {{here: {{endpoints: ["127.0.0.1:{port}"]}}}}
    hedge: off
    pool: {{warm: 1}}
admin: {{address: "127.0.0.1:0"}}
access_log: off
"""


async def test_an_early_request_into_a_black_hole_waits_for_one_dial(start, origin, ca, files, monkeypatch):
    """Its time for a connection began with the handshake that never ends: then it goes elsewhere."""
    far = await TlsOrigin(files).start()
    text = config(origin, ca, upstream="timeouts: {connect: 300ms}\n    routing: {policy: ordered}")
    text = text.replace("]}}", f"]}}, far: {{endpoints: ['127.0.0.1:{far.port}']}}}}")
    proxy = await start(text)
    client = await proxy.connect()
    assert (await client.get()).status == 200
    await wait_for(lambda: proxy.upstream.reach.sessions_of(proxy.pool.target.endpoint).held)
    await cold(proxy, origin)
    proxy.pool.target.not_before = monotonic() + 60  # where second tries go is another matter
    receive, before = Connection.data_received, len(origin.connections)

    def swallow(self, data):
        if self.origin is not origin:
            receive(self, data)

    monkeypatch.setattr(Connection, "data_received", swallow)
    assert (await client.get(b"/early")).status == 200
    assert [one.head.split()[1] for one in far.requests] == [b"/early"]
    assert 1 <= len(origin.connections) - before <= 2
    await wait_for(lambda: not proxy.pool.dials.under_way)
    far.close()
