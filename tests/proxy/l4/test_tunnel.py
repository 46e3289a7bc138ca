"""L4 connections from accept to end: preludes, dialling and racing, warm links, limits, time-outs, draining."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loadtests.lab.certificates import Issued, issue, make_ca
from proxy.config import parse_config
from proxy.downstream.proxy_protocol import ProxyHeader, ProxyProtocolReader, write_v1, write_v2
from proxy.l4 import tunnel as tunnelling
from proxy.observe.metrics import Snapshot

from ..e2e.harness import Ended, Peer, wait_for
from ..edge import Edge, config, echo, edge, hear, origin

REFUSED = "127.0.0.1:1"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return make_ca(tmp_path_factory.mktemp("tunnel"))


@pytest.fixture(scope="module")
def leaf(ca: Issued) -> Issued:
    return issue(ca, names=["localhost", "127.0.0.1"])


class TLSPeer:
    """TLS by the standard library over a raw peer, either role."""

    def __init__(self, peer: Peer, context: ssl.SSLContext, server_name: str | None = None) -> None:
        self.peer = peer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_name is None, server_name)

    async def _do(self, what: Callable[[], Any]) -> Any:
        while True:
            try:
                result = what()
            except ssl.SSLWantReadError:
                await self._flush()
                if not self.peer.held:
                    await self.peer.fill()
                data, self.peer.held = self.peer.held, b""
                self._in.write(data)
                continue
            await self._flush()
            return result

    async def _flush(self) -> None:
        if data := self._out.read():
            await self.peer.send(data)

    async def handshake(self) -> None:
        await self._do(self.tls.do_handshake)

    async def send(self, data: bytes) -> None:
        await self._do(lambda: self.tls.write(data))

    async def exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += await self._do(lambda: self.tls.read(65536))
        assert len(found) == size
        return found


def client_context(ca: Issued) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca.certificate))


def server_context(leaf: Issued) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.certificate, leaf.key)
    return context


def tls_listener(leaf: Issued, more: str = "upstream: app") -> str:
    return f'tls: {{certificates: [{{certificate: "{leaf.certificate}", key: "{leaf.key}"}}]}}, {more}'


def events(it: Edge, name: str) -> list[dict[str, Any]]:
    return [fields for _, event, fields in it.log.entries if event == name]


def counted(it: Edge) -> dict[str, float]:
    snapshot = Snapshot()
    it.listener.export(snapshot)
    return {
        name + "".join(f" {value}" for key, value in labels if key in ("direction", "result")): value
        for name, series in snapshot.values.items()
        for labels, value in series.items()
    }


# Plain.


@pytest.mark.parametrize("warm", [0, 2])
async def test_bytes_go_both_ways_and_are_counted(warm: int) -> None:
    async with origin() as app, edge(config(app.port, warm=warm)) as it:
        client = await it.connect()
        await client.send(b"hello")
        assert await client.exactly(5) == b"hello"
        assert counted(it)["tunnel_bytes up"] == 5
        client.half_close()
        assert await client.rest() == b""
        assert client.ended == "eof"
        await it.quiet()
        found = counted(it)
        assert found["tunnel_bytes up"] == found["tunnel_bytes down"] == 5
        assert found["tunnel_connections ok"] == 1
        assert found["tunnel_connections failed"] == 0
        assert found["connections_accepted"] == 1


async def test_a_server_that_speaks_first_is_heard_first() -> None:
    async def greet(peer: Peer) -> None:
        await peer.send(b"220 ready\r\n")
        await echo(peer)

    async with origin(greet) as app, edge(config(app.port, warm=2)) as it:
        await wait_for(lambda: len(it.pool.idle) == 2)
        for _ in range(4):
            client = await it.connect()
            assert await client.exactly(11) == b"220 ready\r\n"
            await client.send(b"QUIT")
            assert await client.exactly(4) == b"QUIT"


async def test_a_client_that_sends_and_ends_at_once_is_served() -> None:
    async with origin() as app, edge(config(app.port)) as it:
        client = await it.connect()
        await client.send(b"one shot")
        client.half_close()
        assert await client.rest() == b"one shot"
        assert client.ended == "eof"


async def test_a_unix_socket_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    text = config(f"unix:{path}", warm=1).replace("127.0.0.1:0", f"unix:{tmp_path / 'edge.sock'}", 1)
    async with origin(sock=server), edge(text) as it:
        client = await it.connect()
        await client.send(data := os.urandom(300_000))
        assert await client.exactly(300_000) == data
        assert next(iter(it.listener.connections)).client == "unix"


async def test_status_names_the_listener() -> None:
    async with origin() as app, edge(config(app.port)) as it:
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        assert it.listener.status() == {
            "name": "edge",
            "protocol": "tcp",
            "connections": 1,
            "accepted": 1,
            "failed": 0,
            "draining": False,
        }
        assert "1 connections" in repr(it.listener)
        assert "relaying" in repr(next(iter(it.listener.connections)))


# Dialling.


async def test_the_next_region_is_dialled_when_one_refuses() -> None:
    async with origin() as app, edge(config(REFUSED, app.port)) as it:
        client = await it.connect()
        await client.send(b"hello")
        assert await client.exactly(5) == b"hello"
        (tunnel,) = it.listener.connections
        assert tunnel.target is not None
        assert tunnel.target.region.name == "r2"
        assert len(tunnel.tried) == 2


async def test_when_all_refuse_the_client_is_closed() -> None:
    async with edge(config(REFUSED, "127.0.0.1:2")) as it:
        client = await it.connect()
        await client.send(b"hello")
        await client.rest()
        await it.quiet()
        assert counted(it)["tunnel_connections failed"] == 1
        assert {entry["error"] for entry in events(it, "dial_failed")} == {"refused"}


async def test_without_retries_one_dial_decides() -> None:
    async with origin() as app, edge(config(REFUSED, app.port, retry="off")) as it:
        client = await it.connect()
        await client.rest()
        assert app.peers == []


async def test_a_dial_that_fails_at_once_does_not_hide_one_that_fails_later(tmp_path: Path) -> None:
    """connect(2) itself fails for a Unix socket that is not there."""
    for endpoints in ((f"unix:{tmp_path}/no.sock", REFUSED), (f"unix:{tmp_path}/no.sock", f"unix:{tmp_path}/nor.sock")):
        async with edge(config(*endpoints, connect="30s")) as it:
            client = await it.connect()
            await client.rest()
            await it.quiet()


async def test_a_dial_that_fails_at_once_goes_on_to_the_next_region(tmp_path: Path) -> None:
    async with origin() as app, edge(config(f"unix:{tmp_path}/no.sock", app.port)) as it:
        client = await it.connect()
        await client.send(b"hello")
        assert await client.exactly(5) == b"hello"


class Blackhole:
    """A port whose dials hang: its accept queue is full."""

    def __init__(self) -> None:
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(0)
        self.port = self.sock.getsockname()[1]
        self.clients = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", self.port))
            self.clients.append(client)

    def __enter__(self) -> Blackhole:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.sock, *self.clients):
            sock.close()


async def test_a_slow_dial_is_raced_by_another_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelling, "RACE_AFTER_S", 0.02)
    with Blackhole() as slow, Blackhole() as slower:
        async with origin() as app, edge(config(slow.port, slower.port, app.port, connect="30s")) as it:
            client = await it.connect()
            await client.send(b"hello")
            assert await client.exactly(5) == b"hello"
            (tunnel,) = it.listener.connections
            assert [target.region.name for target in tunnel.tried] == ["r1", "r2", "r3"]
            for region in it.upstream.balancer.regions[:2]:
                assert region.in_flight == 0, "the losers are settled"


async def test_when_nothing_can_be_reached_in_time_the_client_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelling, "RACE_AFTER_S", 0.02)
    with Blackhole() as slow:
        async with edge(config(slow.port, connect="50ms")) as it:
            client = await it.connect()
            await client.rest()
            await it.quiet()


async def test_a_client_that_resets_while_its_dial_hangs_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelling, "RACE_AFTER_S", 0.02)
    with Blackhole() as slow:
        async with edge(config(slow.port, connect="30s")) as it:
            client = await it.connect()
            await wait_for(lambda: it.listener.connections)
            client.reset()
            await wait_for(lambda: not it.listener.connections)


async def test_names_with_several_addresses_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with origin() as app:

        async def look_up(self: Any, host: str, port: int, **_: Any) -> list[Any]:
            assert host == "app.test"
            return [(socket.AF_INET, (ip, port)) for ip in ("127.0.0.7", "127.0.0.1")]

        monkeypatch.setattr("proxy.net.resolver.Resolver._look_up", look_up)
        async with edge(config(f"app.test:{app.port}", warm=1)) as it:
            client = await it.connect()
            await client.send(b"hello")
            assert await client.exactly(5) == b"hello"


async def test_a_name_that_does_not_resolve_does_not_stop_the_start() -> None:
    async with edge(config("no-such-name.invalid:443", warm=1)) as it:
        client = await it.connect()
        await client.rest()
        assert {entry["error"] for entry in events(it, "dial_failed")} == {"dns"}


async def test_a_full_region_passes_clients_on() -> None:
    async with origin() as near, origin() as far:
        regions = (
            f'r1: {{endpoints: ["127.0.0.1:{near.port}"], max_in_flight: 1}}, '
            f'r2: {{endpoints: ["127.0.0.1:{far.port}"], max_in_flight: 1}}'
        )
        async with edge(config(regions=regions)) as it:
            for _ in range(2):
                client = await it.connect()
                await client.send(b"x")
                await client.exactly(1)
            assert (len(near.peers), len(far.peers)) == (1, 1)
            client = await it.connect()
            await client.rest()
            assert counted(it)["tunnel_connections failed"] == 1


async def test_clients_of_one_address_stay_together() -> None:
    async with origin() as one, origin() as two, origin() as three:
        ports = ", ".join(f'"127.0.0.1:{app.port}"' for app in (one, two, three))
        text = config(regions=f"r1: {{endpoints: [{ports}]}}", upstream="session_key: source")
        async with edge(text) as it:
            chosen = set()
            for number in range(12):
                seen = set()
                for _ in range(3):
                    client = await it.connect(source=f"127.0.0.{number + 1}")
                    await client.send(b"x")
                    await client.exactly(1)
                    tunnel = next(t for t in it.listener.connections if t.peer == client.sock.getsockname())
                    seen.add(str(tunnel.target.endpoint if tunnel.target else ""))
                assert len(seen) == 1
                chosen |= seen
            assert len(chosen) > 1, "different addresses are spread"


# TLS.


async def test_tls_from_the_client(ca: Issued, leaf: Issued) -> None:
    async with origin() as app, edge(config(app.port, listener=tls_listener(leaf))) as it:
        client = TLSPeer(await it.connect(), client_context(ca), "localhost")
        await client.handshake()
        await client.send(data := os.urandom(200_000))
        assert await client.exactly(200_000) == data
        assert next(iter(it.listener.connections)).server_name == "localhost"


async def tls_echo(peer: Peer, context: ssl.SSLContext) -> None:
    server = TLSPeer(peer, context)
    await server.handshake()
    while data := await server._do(lambda: server.tls.read(65536)):
        await server.send(data)
    server.tls.unwrap()
    await server._flush()


@pytest.mark.parametrize("warm", [0, 2])
async def test_tls_to_the_server(ca: Issued, leaf: Issued, warm: int) -> None:
    context = server_context(leaf)
    async with origin(lambda peer: tls_echo(peer, context)) as app:
        text = config(app.port, warm=warm, upstream=f'tls: {{ca: "{ca.certificate}"}}')
        async with edge(text) as it:
            client = await it.connect()
            await client.send(data := os.urandom(200_000))
            assert await client.exactly(200_000) == data
            client.half_close()
            assert await client.rest() == b""


async def test_a_server_that_is_somebody_else_is_not_talked_to(ca: Issued, tmp_path: Path) -> None:
    stranger = issue(make_ca(tmp_path), names=["127.0.0.1"])
    context = server_context(stranger)
    async with (
        origin(lambda peer: tls_echo(peer, context)) as app,
        edge(config(app.port, retry="off", upstream=f'tls: {{ca: "{ca.certificate}"}}')) as it,
    ):
        client = await it.connect()
        await client.send(b"secret")
        assert await client.rest() == b""
        assert {entry["error"] for entry in events(it, "dial_failed")} == {"certificate"}


async def test_a_client_that_speaks_no_tls_is_counted(leaf: Issued) -> None:
    async with origin() as app, edge(config(app.port, listener=tls_listener(leaf))) as it:
        client = await it.connect()
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        await client.rest()
        await it.quiet()
        assert counted(it)["tls_handshake_failures"] == 1
        assert app.peers == []


async def test_a_client_without_a_certificate_is_told_so(ca: Issued, leaf: Issued) -> None:
    """In TLS 1.3 it has sent its first bytes by then: they must not turn the alert into a reset."""
    pair = f'{{certificate: "{leaf.certificate}", key: "{leaf.key}"}}'
    listener = f'tls: {{certificates: [{pair}], client_ca: "{ca.certificate}"}}, upstream: app'
    async with origin() as app, edge(config(app.port, listener=listener)) as it:
        peer = await it.connect()
        client = TLSPeer(peer, client_context(ca), "localhost")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        await client._flush()
        while True:
            await peer.fill()
            client._in.write(peer.held)
            peer.held = b""
            with suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
                break
        await client._flush()
        await wait_for(lambda: counted(it)["tls_handshake_failures"] == 1)
        for _ in range(5):  # a second write to a closed socket would fail
            client.tls.write(b"secret")
            await client._flush()
            await asyncio.sleep(0.001)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            await client.exactly(1)
        peer.half_close()
        await it.quiet()
        assert app.peers == []


async def test_a_client_that_lingers_after_its_refusal_is_closed(leaf: Issued, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnelling, "LINGER_S", 0.02)
    async with origin() as app, edge(config(app.port, listener=tls_listener(leaf))) as it:
        client = await it.connect()
        await client.send(b"no TLS at all")
        await client.rest()
        await wait_for(lambda: not it.listener.connections)


async def test_a_slow_client_does_not_use_up_the_time_to_connect(
    ca: Issued, leaf: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for connecting begins when the handshake with the client is over."""
    monkeypatch.setattr(tunnelling, "RACE_AFTER_S", 0.02)
    with Blackhole() as slow:
        async with origin() as app, edge(config(slow.port, app.port, listener=tls_listener(leaf), connect="1s")) as it:
            client = TLSPeer(await it.connect(), client_context(ca), "localhost")
            await wait_for(lambda: it.listener.connections)
            next(iter(it.listener.connections)).started -= 60
            await client.handshake()
            await client.send(b"hello")
            assert await client.exactly(5) == b"hello"


# SNI.


def sni_routes() -> str:
    return 'routes: [{match: {host: "localhost"}, upstream: app}, {match: {host: "*.example.com"}, upstream: app}]'


async def test_sni_goes_by_the_name_and_leaves_the_bytes_alone(ca: Issued, leaf: Issued) -> None:
    context = server_context(leaf)
    async with (
        origin(lambda peer: tls_echo(peer, context)) as app,
        edge(config(app.port, protocol="sni", listener=sni_routes(), warm=1)) as it,
    ):
        client = TLSPeer(await it.connect(), client_context(ca), "localhost")
        await client.handshake()
        await client.send(data := os.urandom(100_000))
        assert await client.exactly(100_000) == data
        assert next(iter(it.listener.connections)).server_name == "localhost"


async def test_a_client_hello_may_come_in_pieces(ca: Issued, leaf: Issued) -> None:
    context = server_context(leaf)
    async with (
        origin(lambda peer: tls_echo(peer, context)) as app,
        edge(config(app.port, protocol="sni", listener=sni_routes())) as it,
    ):
        peer = await it.connect()
        client = TLSPeer(peer, client_context(ca), "localhost")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        hello = client._out.read()
        for at in range(0, len(hello), 37):
            await peer.send(hello[at : at + 37])
            await asyncio.sleep(0)
        await client.handshake()
        await client.send(b"hello")
        assert await client.exactly(5) == b"hello"


@pytest.mark.parametrize("what", ["another name", "no tls", "nothing at all"])
async def test_what_has_no_route_is_closed(ca: Issued, what: str) -> None:
    async with origin() as app, edge(config(app.port, protocol="sni", listener=sni_routes())) as it:
        peer = await it.connect()
        if what == "another name":
            with pytest.raises(Ended):
                await TLSPeer(peer, client_context(ca), "elsewhere.test").handshake()
        elif what == "no tls":
            await peer.send(b"SSH-2.0-OpenSSH_9.6\r\n")
            await peer.rest()
        else:
            peer.half_close()
            await peer.rest()
        await it.quiet()
        assert app.peers == []
        assert counted(it)["tunnel_connections failed"] == 1


async def test_a_client_that_says_nothing_is_closed_in_time(leaf: Issued) -> None:
    async with origin() as app:
        for text in (
            config(app.port, protocol="sni", listener=sni_routes(), limits="header_timeout: 50ms"),
            config(app.port, listener=tls_listener(leaf), limits="header_timeout: 50ms"),
            config(app.port, listener="proxy_protocol: true, upstream: app", limits="header_timeout: 50ms"),
        ):
            async with edge(text) as it:
                client = await it.connect()
                await client.rest()
                await it.quiet()


# PROXY headers.

HEADER = ProxyHeader(("203.0.113.7", 4711), ("198.51.100.1", 443))


@pytest.mark.parametrize("write", [write_v1, write_v2])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("warm", [0, 1])
async def test_a_proxy_header_passes_through(write: Callable[[ProxyHeader], bytes], version: str, warm: int) -> None:
    async with origin(hear) as app:
        text = config(
            app.port, listener="proxy_protocol: true, upstream: app", upstream=f"proxy_protocol: {version}", warm=warm
        )
        async with edge(text) as it:
            client = await it.connect()
            sent = write(HEADER) + b"hello"
            for at in range(0, len(sent), 5):
                await client.send(sent[at : at + 5])
                await asyncio.sleep(0)
            wanted = (write_v1 if version == "v1" else write_v2)(HEADER)
            await wait_for(lambda: any(len(peer.held) >= len(wanted) + 5 for peer in app.peers))
            assert {peer.held for peer in app.peers} <= {wanted + b"hello", b""}
            (tunnel,) = it.listener.connections
            assert tunnel.relay is not None
            assert tunnel.client == "203.0.113.7"
            assert tunnel.relay.up.bytes == 5


async def test_a_proxy_header_names_the_client(tmp_path: Path) -> None:
    async with origin(hear) as app, edge(config(app.port, upstream="proxy_protocol: v2")) as it:
        client = await it.connect(source="127.0.0.5")
        peer = await app.peer()
        await wait_for(lambda: len(peer.held) == 28)
        found = ProxyProtocolReader().receive(peer.held)
        assert isinstance(found, ProxyHeader)
        assert found.source == client.sock.getsockname()
        assert found.destination == client.sock.getpeername()


async def test_a_proxy_header_stands_before_the_servers_tls(ca: Issued, leaf: Issued) -> None:
    context = server_context(leaf)
    got = []

    async def strip(peer: Peer) -> None:
        got.append(await peer.until(b"\r\n"))
        await tls_echo(peer, context)

    async with origin(strip) as app:
        more = f'proxy_protocol: v1\n    tls: {{ca: "{ca.certificate}"}}'
        async with edge(config(app.port, warm=2, upstream=more)) as it:
            assert it.pool.warm == 0, "the header names the client, so there is nothing to prepare"
            client = await it.connect()
            await client.send(b"hello")
            assert await client.exactly(5) == b"hello"
            ours, theirs = client.sock.getsockname(), client.sock.getpeername()
            assert got == [f"PROXY TCP4 127.0.0.1 127.0.0.1 {ours[1]} {theirs[1]}".encode()]


@pytest.mark.parametrize("bad", [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 nonsense\r\n", b"PROXY " + b"x" * 200])
async def test_without_a_proxy_header_a_client_is_refused(bad: bytes) -> None:
    async with origin() as app, edge(config(app.port, listener="proxy_protocol: true, upstream: app")) as it:
        client = await it.connect()
        await client.send(bad)
        await client.rest()
        await it.quiet()
        assert app.peers == []


async def test_proxy_header_then_tls_then_bytes(ca: Issued, leaf: Issued) -> None:
    listener = tls_listener(leaf, "proxy_protocol: true, upstream: app")
    async with origin() as app, edge(config(app.port, listener=listener)) as it:
        peer = await it.connect()
        client = TLSPeer(peer, client_context(ca), "localhost")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        await peer.send(write_v2(HEADER) + client._out.read())
        await client.handshake()
        await client.send(b"hello")
        assert await client.exactly(5) == b"hello"
        assert next(iter(it.listener.connections)).client == "203.0.113.7"


# Limits and time.


async def test_more_clients_than_allowed_are_closed_at_once() -> None:
    async with origin() as app, edge(config(app.port, limits="connections: 2")) as it:
        clients = []
        for _ in range(2):
            clients.append(await it.connect())
            await clients[-1].send(b"x")
            await clients[-1].exactly(1)
        refused = await it.connect()
        await refused.rest()
        assert counted(it)["connections_refused"] == 1
        clients[0].close()
        await wait_for(lambda: len(it.listener.connections) == 1)
        again = await it.connect()
        await again.send(b"x")
        assert await again.exactly(1) == b"x"


async def test_a_connection_without_bytes_is_cut_after_the_idle_time() -> None:
    async with origin() as app, edge(config(app.port, idle="100ms")) as it:
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        await client.rest()
        assert client.ended == "reset"
        await it.quiet()


async def test_a_connection_with_bytes_now_and_then_is_not_idle() -> None:
    async with origin() as app, edge(config(app.port, idle="60s")) as it:
        client = await it.connect()
        (tunnel,) = it.listener.connections or [None]
        for _ in range(3 * tunnelling.IDLE_CHECKS):
            await client.send(b"x")
            await client.exactly(1)
            (tunnel,) = it.listener.connections
            tunnel.on_timer(0.0)
        assert tunnel.state is tunnelling.State.RELAYING
        for _ in range(tunnelling.IDLE_CHECKS - 1):
            tunnel.on_timer(0.0)
            assert tunnel.state is tunnelling.State.RELAYING
        tunnel.on_timer(0.0)
        assert tunnel.state is tunnelling.State.CLOSED


async def test_out_of_descriptors_accepting_pauses_and_goes_on() -> None:
    async with origin() as app, edge(config(app.port)) as it:
        sock = it.listener._sock
        assert sock is not None
        refusals = 0

        class Exhausted:
            def __getattr__(self, name: str) -> Any:
                return getattr(sock, name)

            def accept(self) -> Any:
                nonlocal refusals
                refusals += 1
                if refusals <= 2:
                    raise OSError(errno.EMFILE, "Too many open files")
                return sock.accept()

        it.listener._sock = Exhausted()  # type: ignore[assignment]
        client = await it.connect()
        await client.send(b"x")
        assert await client.exactly(1) == b"x"
        assert refusals < 10, "no busy loop"
        assert [entry["error"] for entry in events(it, "accept_failed")] == ["Too many open files"] * 2
        it.log.entries.clear()
        it.listener._sock = sock


async def test_a_client_that_leaves_the_queue_costs_nobody_else_anything() -> None:
    async with origin() as app, edge(config(app.port)) as it:
        sock = it.listener._sock
        assert sock is not None
        aborted = 0

        class Aborting:
            def __getattr__(self, name: str) -> Any:
                return getattr(sock, name)

            def accept(self) -> Any:
                nonlocal aborted
                aborted += 1
                if aborted == 1:
                    raise ConnectionAbortedError
                return sock.accept()

        it.listener._sock = Aborting()  # type: ignore[assignment]
        client = await it.connect()
        await client.send(b"x")
        assert await client.exactly(1) == b"x"
        it.listener._sock = sock


# Draining, reloading, the end.


async def test_draining_lets_what_is_open_finish_and_takes_nothing_new() -> None:
    async with origin() as app, edge(config(app.port)) as it:
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        draining = asyncio.create_task(it.worker.drain(30.0))
        await wait_for(lambda: it.listener.draining)
        with pytest.raises(ConnectionRefusedError):
            await it.connect()
        await client.send(b"still here")
        assert await client.exactly(10) == b"still here"
        assert not draining.done()
        client.half_close()
        await client.rest()
        assert await draining == 0


async def test_at_the_deadline_what_is_open_is_cut_and_counted() -> None:
    async with origin() as app, edge(config(app.port)) as it:
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        assert await it.worker.drain(0.05) == 1
        await client.rest()
        assert client.ended == "reset"


async def test_draining_lets_go_of_clients_that_said_nothing_yet(leaf: Issued) -> None:
    async with origin() as app, edge(config(app.port, listener=tls_listener(leaf))) as it:
        await it.connect()
        await wait_for(lambda: it.listener.connections)
        assert await it.worker.drain(30.0) == 0


async def test_a_reload_keeps_connections_and_sends_new_ones_the_new_way() -> None:
    async with origin() as before, origin() as after:
        text = config(before.port)
        async with edge(text) as it:
            client = await it.connect()
            await client.send(b"x")
            await client.exactly(1)
            await it.worker.reload(parse_config(text.replace(f":{before.port}", f":{after.port}")), {})
            await client.send(b"y")
            assert await client.exactly(1) == b"y"
            other = await it.connect()
            await other.send(b"z")
            assert await other.exactly(1) == b"z"
            assert (len(before.peers), len(after.peers)) == (1, 1)
            client.half_close()
            await client.rest()


async def test_nothing_is_left_for_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections come and go by the thousand: cycles would pile up until a collection stops the worker."""
    import gc
    import weakref

    async with origin() as app, edge(config(app.port, warm=1)) as it:
        gone = []
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                client = await it.connect()
                await client.send(b"x")
                await client.exactly(1)
                (tunnel,) = it.listener.connections
                relay = tunnel.relay
                assert relay is not None
                gone += [weakref.ref(relay.client.sock), weakref.ref(relay.server.sock)]
                del relay, tunnel
                client.half_close()
                await client.rest()
                await wait_for(lambda: not it.listener.connections)
            await asyncio.sleep(0)
            assert not any(reference() for reference in gone)
        finally:
            gc.enable()


async def test_many_clients_at_once_each_get_their_own_bytes() -> None:
    async with origin() as app, edge(config(app.port, warm=2)) as it:

        async def one(number: int) -> None:
            client = await it.connect()
            data = b"%d;" % number * 2000
            await client.send(data)
            client.half_close()
            assert await client.rest() == data

        await asyncio.gather(*(one(number) for number in range(150)))
        assert it.listener.counters.accepted == 150
