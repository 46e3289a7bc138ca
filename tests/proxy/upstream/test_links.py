"""Warm links: dialled before they are needed, replaced when they die, never dialled in a loop."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from loadtests.lab.certificates import Issued, issue, make_ca
from proxy.errors import Kind
from proxy.observe.metrics import Snapshot
from proxy.upstream import dials
from proxy.upstream import link as linking
from proxy.upstream import links as sockpool
from proxy.upstream.link import State

from ..e2e.harness import Peer, wait_for
from ..edge import Edge, config, edge, hear, origin
from ..l4.test_tunnel import Blackhole, client_context, server_context, tls_echo


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return make_ca(tmp_path_factory.mktemp("sockpool"))


@pytest.fixture(scope="module")
def leaf(ca: Issued) -> Issued:
    return issue(ca, names=["localhost", "127.0.0.1"])


class Clock:
    """Time as the pools see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = sockpool.monotonic
        for module in (sockpool, linking, dials):
            monkeypatch.setattr(module, "monotonic", lambda: real() + self.ahead)
        self._real = real

    def __call__(self) -> float:
        return self._real() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def counted(it: Edge) -> dict[str, float]:
    snapshot = Snapshot()
    it.upstream.export(snapshot, monotonic())
    return {
        " ".join((name, *(value for key, value in labels if key in ("handshake", "side")))): value
        for name, series in snapshot.values.items()
        for labels, value in series.items()
    }


async def warm(it: Edge, count: int) -> None:
    await wait_for(lambda: len(it.pool.idle) == count and not it.pool.dials.under_way)


async def test_links_are_ready_before_anybody_asks() -> None:
    async with origin() as app, edge(config(app.port, warm=3)) as it:
        assert it.worker.ready.is_set()
        assert len(it.pool.idle) == 3, "readiness has waited for them"
        assert it.pool.target.ready == 3
        await wait_for(lambda: len(app.peers) == 3)
        assert "3 idle, 0 open, 0 dialling" in repr(it.pool)


async def test_a_client_takes_one_and_it_is_replaced() -> None:
    async with origin() as app, edge(config(app.port, warm=2)) as it:
        taken = it.pool.idle[-1]
        client = await it.connect()
        await client.send(b"x")
        assert await client.exactly(1) == b"x"
        assert taken not in it.pool.idle
        await warm(it, 2)
        await wait_for(lambda: len(app.peers) == 3)
        assert it.pool.open == 1
        found = counted(it)
        assert found["upstream_connections_reused"] == 1
        assert found["upstream_connections_opened plain"] == 3
        assert found["upstream_pool_idle"] == 2
        assert found["connections_open upstream"] == 3


async def test_a_burst_beyond_the_warm_ones_is_dialled() -> None:
    async with origin() as app, edge(config(app.port, warm=1)) as it:
        clients = [await it.connect() for _ in range(10)]
        for client in clients:
            await client.send(b"x")
        for client in clients:
            assert await client.exactly(1) == b"x"
        await warm(it, 1)


async def test_no_more_are_kept_warm_than_connections_are_allowed() -> None:
    async with origin() as app, edge(config(app.port, warm=2, max_connections=3)) as it:
        for _ in range(3):
            client = await it.connect()
            await client.send(b"x")
            await client.exactly(1)
        await warm(it, 0)
        assert it.pool.open == 3
        client.half_close()
        await client.rest()
        await warm(it, 1)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_idle_link_that_dies_is_replaced(how: str, clock: Clock) -> None:
    async with origin(hear) as app, edge(config(app.port, warm=2)) as it:
        peers = [await app.peer(number) for number in (1, 2)]
        clock.ahead = 60.0
        for peer in peers:
            await app.drop(peer, reset=how == "reset")
        await wait_for(lambda: len(app.peers) == 4)
        await warm(it, 2)
        assert it.pool.target.ready == 2
        assert all(link.alive for link in it.pool.idle)


async def test_a_client_never_gets_a_link_whose_end_is_known_to_the_kernel(clock: Clock) -> None:
    """The end has arrived, and the loop has not told us yet."""
    async with origin(hear) as app, edge(config(app.port, warm=1)) as it:
        clock.ahead = 60.0
        dead = it.pool.idle[0]
        (await app.peer()).half_close()
        async with asyncio.timeout(5):
            while dead.alive:
                pass  # the loop must not run in between
        assert it.pool.take() is None
        it.pool.refill()
        assert dead.state is State.CLOSED
        assert it.pool.target.ready == 0


async def test_an_endpoint_that_hangs_up_at_once_is_not_dialled_in_a_loop() -> None:
    async def hang_up(peer: Peer) -> None:
        return

    async with origin(hang_up) as app, edge(config(app.port, warm=2)) as it:
        await wait_for(lambda: not it.pool.idle)
        before = len(app.peers)
        for _ in range(50):
            await asyncio.sleep(0)
            it.pool.refill()
        assert len(app.peers) - before <= 2
        assert it.pool.dials.again_at > sockpool.monotonic()


async def test_failed_dials_are_tried_again_less_and_less_often(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with edge(config(closed.getsockname()[1], warm=1)) as it:
            it.worker._tick_handle.cancel()  # type: ignore[union-attr]
            waits = []
            for _ in range(8):
                await wait_for(lambda: not it.pool.dials.under_way)
                waits.append(round(it.pool.dials.again_at - clock(), 1))
                clock.ahead += waits[-1] - 0.05
                it.pool.tick(clock())
                assert not it.pool.dials.under_way, "not yet"
                clock.ahead += 0.1
                it.pool.tick(clock())
                assert it.pool.dials.under_way == 1
            await wait_for(lambda: not it.pool.dials.under_way)
            assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
            assert it.pool.dials.last_error.kind is Kind.REFUSED
            assert counted(it)["upstream_dial_failures"] == 9
            closed.listen()
            clock.ahead += 10
            it.pool.tick(clock())
            await warm(it, 1)
            assert it.pool.dials.last_error is None
            assert it.pool.dials.again_at == 0.0


async def test_old_links_are_replaced_and_not_all_at_once(clock: Clock) -> None:
    async with origin() as app, edge(config(app.port, warm=8, pool=", max_age: 100s")) as it:
        it.worker._tick_handle.cancel()  # type: ignore[union-attr]
        first = set(it.pool.idle)
        assert len({round(link.expires, 3) for link in first}) > 1
        assert all(89 < link.expires - clock() < 101 for link in first)
        clock.ahead = 80.0
        it.pool.tick(clock())
        assert set(it.pool.idle) == first
        clock.ahead = 101.0
        it.pool.tick(clock())
        await warm(it, 8)
        assert not first & set(it.pool.idle)
        assert all(link.state is State.CLOSED for link in first)


async def test_a_dial_that_hangs_ends_in_time() -> None:
    with Blackhole() as slow:
        async with edge(config(slow.port, warm=1, connect="50ms")) as it:
            await wait_for(lambda: it.pool.dials.last_error is not None)
            assert it.pool.dials.last_error.kind is Kind.CONNECT_TIMEOUT
            assert "no connection within 0.05 s" in it.pool.dials.last_error.details


async def test_a_name_server_that_hangs_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr("proxy.net.resolver.Resolver._look_up", hang)
    async with edge(config("app.test:1", warm=1, connect="50ms")) as it:
        await wait_for(lambda: it.pool.dials.last_error is not None)
        assert it.pool.dials.last_error.kind is Kind.CONNECT_TIMEOUT


async def test_a_unix_socket_whose_backlog_is_full_is_a_failure(tmp_path: Path) -> None:
    """connect(2) says EAGAIN, and no event ever follows."""
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as waiting:
        server.bind(path)
        server.listen(0)
        waiting.connect(path)
        async with edge(config(f"unix:{path}", warm=1)) as it:
            await wait_for(lambda: it.pool.dials.last_error is not None)
            assert "temporarily unavailable" in it.pool.dials.last_error.details


async def test_a_dial_that_fails_takes_no_ticket(ca: Issued, leaf: Issued) -> None:
    context = server_context(leaf)
    async with (
        origin(lambda peer: tls_echo(peer, context)) as app,
        edge(config(app.port, warm=2, upstream=f'tls: {{ca: "{ca.certificate}"}}')) as it,
    ):
        sessions = it.upstream.reach.sessions_of(it.pool.target.endpoint)
        assert sessions is not None
        await wait_for(lambda: sessions.held == 4)
        failures = it.pool.counters.dial_failures
        await app.close()
        for peer in app.peers:
            peer.sock.close()
        await wait_for(lambda: it.pool.counters.dial_failures > failures)
        assert sessions.held == 4


async def test_links_to_tls_servers_are_handshaken(ca: Issued, leaf: Issued) -> None:
    context = server_context(leaf)
    async with (
        origin(lambda peer: tls_echo(peer, context)) as app,
        edge(config(app.port, warm=2, upstream=f'tls: {{ca: "{ca.certificate}"}}')) as it,
    ):
        assert len(it.pool.idle) == 2
        found = counted(it)
        assert found["upstream_connections_opened full"] + found["upstream_connections_opened resumed"] == 2
        snapshot = Snapshot()
        it.upstream.export(snapshot, monotonic())
        histograms = snapshot.histograms["upstream_handshake_seconds"]
        counts = {dict(labels)["phase"]: sum(counts) for labels, (counts, _) in histograms.items()}
        assert counts == {"dns": 0, "tcp": 2, "tls": 2}


@pytest.mark.parametrize("what", ["closes", "garbage", "another name"])
async def test_a_handshake_that_fails_says_why(ca: Issued, tmp_path: Path, what: str) -> None:
    wrong = issue(ca, names=["elsewhere.test"], directory=tmp_path)
    context = server_context(wrong)

    async def script(peer: Peer) -> None:
        await peer.fill()
        if what == "garbage":
            await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        elif what == "another name":
            await tls_echo(peer, context)

    async with (
        origin(script) as app,
        edge(config(app.port, warm=1, upstream=f'tls: {{ca: "{ca.certificate}"}}')) as it,
    ):
        await wait_for(lambda: it.pool.dials.last_error is not None)
        error = it.pool.dials.last_error
        assert error.kind is (Kind.CERTIFICATE if what == "another name" else Kind.TLS)
        assert error.details.startswith(f"127.0.0.1:{app.port}: ")
        assert {"closes": "closed", "garbage": "HTTP", "another name": "127.0.0.1"}[what] in error.details


async def test_a_server_that_speaks_first_stays_warm_and_quiet() -> None:
    async def greet(peer: Peer) -> None:
        await peer.send(b"220 ready\r\n")
        await hear(peer)

    async with origin(greet) as app, edge(config(app.port, warm=1)) as it:
        link = it.pool.idle[0]
        await wait_for(lambda: link.events == linking._GREETING_SEEN)
        polls = 0
        tell = link.on_event

        class Counting:
            def on_event(self, fd: int, events: int) -> None:
                nonlocal polls
                polls += 1
                tell(fd, events)

        it.worker.reactor.hand_over(link.sock.fileno(), Counting())
        for _ in range(50):
            await asyncio.sleep(0)
        assert polls == 0, "its greeting is not reported again and again"
        it.worker.reactor.hand_over(link.sock.fileno(), link)
        await app.drop(await app.peer())
        await wait_for(lambda: link not in it.pool.idle)


async def test_closing_the_pool_closes_what_is_idle_and_what_comes() -> None:
    async with origin(hear) as app, edge(config(app.port, warm=2)) as it:
        peers = [await app.peer(number) for number in (1, 2)]
        it.pool.warm = 4
        it.pool.refill()
        assert it.pool.dials.under_way == 2
        it.pool.close()
        assert it.pool.target.ready == 0
        for peer in peers:
            await wait_for(lambda peer=peer: peer.ended)
        await wait_for(lambda: not it.pool.dials.under_way)
        assert it.pool.idle == []
        it.pool.refill()
        assert it.pool.dials.under_way == 0


async def test_giving_up_a_dial_tells_nobody() -> None:
    told: list[Any] = []
    with Blackhole() as slow:
        async with edge(config(slow.port)) as it:
            pool = next(iter(it.upstream.open_socket_pools(passthrough=False).values()))
            link = pool.dial(told.append)
            assert link.state is State.CONNECTING
            link.close()
            link.close()
            assert link.state is State.CLOSED
            assert "closed" in repr(link)
            assert link.timer_bucket is None
            await asyncio.sleep(0)
            assert told == []


async def test_what_dialling_took_is_told_to_routing(ca: Issued, leaf: Issued) -> None:
    context = server_context(leaf)
    async with (
        origin(lambda peer: tls_echo(peer, context)) as app,
        edge(config(app.port, upstream=f'tls: {{ca: "{ca.certificate}"}}')) as it,
    ):
        target = it.upstream.balancer.regions[0].endpoints[0]
        assert not target.floor.value
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        assert 0.0 < target.floor.value < 1.0


def test_the_context_that_these_tests_use_verifies(ca: Issued) -> None:
    assert client_context(ca).check_hostname
