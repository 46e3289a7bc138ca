"""The pool's rules, over loopback connections whose dials a test holds up or lets fail."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from proxy.config import parse_config
from proxy.errors import Kind, ProxyError
from proxy.http.h2 import frames as wire
from proxy.process import inheritance as listening
from proxy.process.worker import Worker
from proxy.upstream.health import ping_times
from proxy.upstream.pool import PING_EVERY_MAX_S
from proxy.upstream.settings import PoolSettings
from proxy.upstream.sizing import REFILLS_AT_ONCE, target_size
from tlscache.ticket_keys import TicketKeys

from ..matrix.conftest import Log, wait_for
from ..matrix.peers import Origin, connect

CONFIG = """
listeners:
  - {{name: web, address: "127.0.0.1:0", upstream: app}}
upstreams:
  app:
    protocol: {protocol}
    regions: {{here: {{endpoints: ["gated.test:{port}"]}}}}
    timeouts: {{connect: 5s, response: 5s}}
    hedge: off
    retry: off
    pool: {{warm: {warm}, max_connections: {max_connections}}}
access_log: off
"""


class Gate:
    """A resolver. Every dial asks it first: `shut` holds dials up, `failure` makes them fail."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.failure: ProxyError | None = None
        self.asked = 0

    def shut(self) -> None:
        self.open.clear()

    def known(self, *_: Any) -> None:
        """It forgets: every dial asks."""

    async def resolve(self, host: str, port: int, *_: Any) -> list[Any]:
        self.asked += 1
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return [(socket.AF_INET, ("127.0.0.1", port))]


class Rig:
    """An origin that answers when `go_on` is set, a worker, its one pool and their clients."""

    def __init__(self, origin: Origin, worker: Worker, gate: Gate, port: int) -> None:
        self.origin = origin
        self.worker = worker
        self.gate = gate
        self.port = port
        self.go_on = asyncio.Event()
        self.clients: list[Any] = []
        origin.handler = self._answer
        (self.upstream,) = worker.upstreams.values()
        (self.pool,) = self.upstream.pools

    async def _answer(self, got: Any) -> None:
        await got.body()
        await self.go_on.wait()
        await got.respond(200, [("content-length", "2")])
        await got.send(b"ok")
        await got.end()

    async def ask(self, count: int = 1) -> list[Any]:
        """That many requests, each from a client of its own, on their way."""
        calls = []
        for _ in range(count):
            client = await connect("h1", self.port, None)
            self.clients.append(client)
            calls.append(await client.start("GET", "/"))
        return calls

    async def at_origin(self, count: int) -> None:
        await wait_for(lambda: len(self.origin.requests) >= count)

    def waiting(self) -> int:
        return sum(1 for attempt in self.pool.waiters if attempt.waiting)


Start = Callable[..., Awaitable[Rig]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    rigs: list[Rig] = []

    async def make(version: str, *, warm: int = 2, max_connections: int = 8, limit: int = 0, dead: bool = False) -> Rig:
        origin = Origin(version, None)
        if limit:
            origin.settings = {"max_concurrent_streams": limit}
        await origin.start()
        text = CONFIG.format(protocol=version, port=origin.port, warm=warm, max_connections=max_connections)
        parsed = parse_config(text)
        sockets = listening.open_sockets(parsed)
        sockets.pop(listening.ADMIN).close()
        worker = Worker(parsed, Log(), TicketKeys(contexts=1))
        gate = Gate()
        worker.resolver = gate  # type: ignore[assignment]
        if dead:
            gate.failure = ProxyError(Kind.DNS, "gated.test does not resolve", unprocessed=True)
        port = sockets["web"].getsockname()[1]
        await worker.start(sockets)
        await worker.ready.wait()
        rig = Rig(origin, worker, gate, port)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        for client in rig.clients:
            await client.close()
        rig.gate.open.set()
        await rig.worker.close()
        await rig.origin.close()


@pytest.mark.parametrize(
    ("busy", "rise_per_s", "dial_s", "expected"),
    [
        (0, 0.0, 0.3, 2),
        (5, 0.0, 0.3, 7),
        (5, 100.0, 0.3, 37),
        (5, -100.0, 0.3, 7),
        (127, 0.0, 0.3, 128),
        (0, 1.0, 0.1, 3),
    ],
)
def test_target_size(busy: int, rise_per_s: float, dial_s: float, expected: int) -> None:
    assert target_size(busy, rise_per_s, dial_s, PoolSettings(warm=2, max_connections=128)) == expected


# One request at a time.


async def test_warm_connections_stand_before_the_first_request(start: Start) -> None:
    rig = await start("h1", warm=3)
    assert len(rig.pool.stock.idle) == 3
    assert rig.pool.target.ready == 3


async def test_one_that_is_lent_out_is_replaced(start: Start) -> None:
    rig = await start("h1", warm=2)
    calls = await rig.ask(2)
    await rig.at_origin(2)
    await wait_for(lambda: len(rig.pool.stock.idle) == 2)
    assert rig.pool.stock.busy == 2
    rig.go_on.set()
    assert [await call.body() for call in calls] == [b"ok"] * 2


async def test_the_youngest_is_used_first(start: Start) -> None:
    rig = await start("h1", warm=2)
    rig.go_on.set()
    for _ in range(5):
        await wait_for(lambda: not rig.pool.dials.under_way and not rig.pool.stock.busy)
        standing = list(rig.pool.stock.idle)
        uses = [connection.uses for connection in standing]
        (call,) = await rig.ask()
        await call.body()
        assert [connection.uses for connection in standing] == [*uses[:-1], uses[-1] + 1]


async def test_who_waits_takes_what_is_given_back_first(start: Start) -> None:
    rig = await start("h1", warm=1)
    rig.gate.shut()
    calls = await rig.ask(2)
    await rig.at_origin(1)
    await wait_for(lambda: rig.waiting() == 1)
    assert rig.pool.dials.under_way >= 1
    rig.go_on.set()
    assert [await call.body() for call in calls] == [b"ok"] * 2
    assert len(rig.pool.stock.connections) == 1, "the dial is still held up"


async def test_who_waits_takes_the_new_one_first(start: Start) -> None:
    rig = await start("h1", warm=1)
    rig.gate.shut()
    await rig.ask(2)
    await wait_for(lambda: rig.waiting() == 1)
    rig.gate.open.set()
    await rig.at_origin(2)


async def test_no_more_connections_than_allowed(start: Start) -> None:
    rig = await start("h1", warm=1, max_connections=2)
    calls = await rig.ask(5)
    await rig.at_origin(2)
    await wait_for(lambda: rig.waiting() == 3)
    assert len(rig.pool.stock.connections) + rig.pool.dials.under_way == 2
    rig.go_on.set()
    assert [await call.body() for call in calls] == [b"ok"] * 5
    assert len(rig.origin.peers) == 2


async def test_a_failed_dial_fails_one_that_waits(start: Start) -> None:
    rig = await start("h1", warm=1)
    rig.gate.shut()
    calls = await rig.ask(2)
    await rig.at_origin(1)
    await wait_for(lambda: rig.waiting() == 1)
    rig.gate.failure = ProxyError(Kind.REFUSED, "refused", unprocessed=True)
    rig.gate.open.set()
    statuses = asyncio.gather(*(call.status() for call in calls))
    await wait_for(lambda: rig.waiting() == 0)
    rig.go_on.set()
    assert sorted(await statuses) == [200, 502]


async def test_where_nothing_could_serve_them_all_fail_at_once(start: Start) -> None:
    rig = await start("h1", warm=1, dead=True)
    calls = await rig.ask(4)
    assert [await call.status() for call in calls] == [502] * 4


async def test_refilling_backs_off(start: Start) -> None:
    rig = await start("h1", warm=1, dead=True)
    for _ in range(8):
        rig.pool.dials.back_off()  # as often as it takes for a machine of any speed
    await wait_for(lambda: not rig.pool.dials.under_way)
    for _ in range(50):
        rig.pool.refill()
    assert not rig.pool.dials.under_way


async def test_an_old_connection_is_replaced(start: Start) -> None:
    rig = await start("h1", warm=1)
    (old,) = rig.pool.stock.idle
    old.expires = 0.0
    rig.pool.stock.sweep(rig.pool, rig.worker.turn.now, rig.pool.settings)
    assert old not in rig.pool.stock.connections
    await wait_for(lambda: len(rig.pool.stock.idle) == 1)
    await wait_for(lambda: rig.origin.peers[0].closed)


async def test_surplus_goes_when_it_was_idle_for_long(start: Start) -> None:
    rig = await start("h1", warm=1)
    calls = await rig.ask(4)
    await rig.at_origin(4)
    rig.go_on.set()
    for call in calls:
        await call.body()
    await wait_for(lambda: len(rig.pool.stock.idle) >= 4)
    for connection in rig.pool.stock.idle[:3]:
        connection.idle_since = float("-inf")
    left = len(rig.pool.stock.idle) - 3
    rig.pool.stock.sweep(rig.pool, rig.worker.turn.now, rig.pool.settings)
    assert len(rig.pool.stock.idle) == left


async def test_closing_tells_those_that_wait(start: Start) -> None:
    rig = await start("h1", warm=1, max_connections=1)
    calls = await rig.ask(2)
    await wait_for(lambda: rig.waiting() == 1)
    rig.upstream.close()
    rig.go_on.set()
    assert sorted([await call.status() for call in calls]) == [200, 503]


async def test_an_origin_that_hangs_up_on_idle_connections_is_not_dialled_in_a_loop(start: Start) -> None:
    rig = await start("h1", warm=1)
    asked = rig.gate.asked
    for peer in rig.origin.peers:
        peer.writer.transport.abort()
    await wait_for(lambda: not rig.pool.stock.idle)
    for _ in range(20):
        rig.pool.refill()
    await asyncio.sleep(0)
    assert rig.gate.asked == asked


# Many requests at a time.


async def test_shared_connections_are_shared(start: Start) -> None:
    rig = await start("h2", warm=2)
    await rig.ask(10)
    await rig.at_origin(10)
    assert sorted(len(connection.streams) for connection in rig.pool.stock.shared) == [5, 5]
    assert len(rig.origin.peers) == 2


async def test_the_next_one_is_dialled_ahead_of_the_limit(start: Start) -> None:
    rig = await start("h2", warm=1, limit=10)
    await wait_for(lambda: rig.pool.stock.shared[0].codec.stream_limit == 10)
    await rig.ask(8)
    await rig.at_origin(8)
    assert len(rig.pool.stock.shared) == 1
    await rig.ask(1)
    await wait_for(lambda: len(rig.pool.stock.shared) == 2)
    assert not rig.waiting()


async def test_who_waits_is_served_when_a_stream_ends(start: Start) -> None:
    rig = await start("h2", warm=1, max_connections=1, limit=3)
    await wait_for(lambda: rig.pool.stock.shared[0].codec.stream_limit == 3)
    calls = await rig.ask(10)
    await wait_for(lambda: rig.waiting() == 7)
    rig.go_on.set()
    assert [await call.body() for call in calls] == [b"ok"] * 10
    assert len(rig.origin.peers) == 1


async def test_who_waits_is_served_when_the_peer_allows_more(start: Start) -> None:
    rig = await start("h2", warm=1, max_connections=1, limit=3)
    await wait_for(lambda: rig.pool.stock.shared[0].codec.stream_limit == 3)
    await rig.ask(10)
    await wait_for(lambda: rig.waiting() == 7)
    peer = rig.origin.peers[0]
    peer.conn.update_settings({wire.MAX_CONCURRENT_STREAMS: 20})
    await peer.flush()
    await rig.at_origin(10)


async def test_a_cold_burst_dials_by_connections_not_by_requests(start: Start) -> None:
    rig = await start("h2", warm=0, max_connections=100)
    rig.gate.shut()
    await rig.ask(60)
    await wait_for(lambda: rig.waiting() == 60)
    assert rig.pool.dials.under_way == 1
    rig.gate.open.set()
    await rig.at_origin(60)
    assert len(rig.origin.peers) == 1


async def test_goaway_moves_new_requests(start: Start) -> None:
    rig = await start("h2", warm=1)
    calls = await rig.ask(2)
    await rig.at_origin(2)
    (first,) = rig.pool.stock.shared
    rig.origin.peers[0].writer.write(wire.goaway(2**31 - 1, wire.NO_ERROR))
    await wait_for(lambda: first not in rig.pool.stock.shared and len(rig.pool.stock.shared) == 1)
    assert first in rig.pool.stock.connections
    calls += await rig.ask(1)
    await rig.at_origin(3)
    assert rig.origin.requests[2].peer is not rig.origin.peers[0]
    rig.go_on.set()
    assert [await call.body() for call in calls] == [b"ok"] * 3
    await wait_for(lambda: first not in rig.pool.stock.connections)
    await wait_for(lambda: rig.origin.peers[0].closed)


async def test_used_up_stream_ids(start: Start) -> None:
    """The last request on a connection is answered; the next one goes over another."""
    rig = await start("h2", warm=1)
    (first,) = rig.pool.stock.shared
    first.codec._last_id = wire.STREAM_ID_MAX - 4
    await rig.ask(2)
    await rig.at_origin(2)
    assert [got.id for got in rig.origin.requests] == [wire.STREAM_ID_MAX - 2, wire.STREAM_ID_MAX]
    assert first not in rig.pool.stock.shared
    await rig.ask(1)
    await rig.at_origin(3)
    assert rig.origin.requests[2].id == 1
    rig.go_on.set()
    await wait_for(lambda: first not in rig.pool.stock.connections)


async def test_an_old_shared_connection_ends_with_its_last_request(start: Start) -> None:
    rig = await start("h2", warm=1)
    (call,) = await rig.ask()
    await rig.at_origin(1)
    (old,) = rig.pool.stock.shared
    old.expires = 0.0
    rig.pool.stock.sweep(rig.pool, rig.worker.turn.now, rig.pool.settings)
    assert old not in rig.pool.stock.shared
    await wait_for(lambda: len(rig.pool.stock.shared) == 1)
    rig.go_on.set()
    assert await call.body() == b"ok"
    await wait_for(lambda: rig.origin.peers[0].closed)
    assert rig.origin.peers[0].goaway == wire.NO_ERROR


async def test_shared_surplus_goes(start: Start) -> None:
    rig = await start("h2", warm=1, limit=2)
    await wait_for(lambda: rig.pool.stock.shared[0].codec.stream_limit == 2)
    calls = await rig.ask(6)
    await rig.at_origin(6)
    rig.go_on.set()
    for call in calls:
        await call.body()
    await wait_for(lambda: len(rig.pool.stock.shared) >= 3 and not rig.pool.dials.under_way)
    for connection in rig.pool.stock.shared:
        connection.idle_since = float("-inf")
    rig.pool.stock.sweep(rig.pool, rig.worker.turn.now, rig.pool.settings)
    assert len(rig.pool.stock.shared) == 1
    assert rig.pool.target.ready == 1


async def test_probes_do_not_pile_up_connections(start: Start) -> None:
    rig = await start("h2", warm=1)
    for _ in range(3):
        assert await rig.pool.probe()
    assert len(rig.pool.stock.shared) == 1
    rig = await start("h1", warm=1)
    for _ in range(3):
        assert await rig.pool.probe()
    assert len(rig.pool.stock.connections) == 1


async def test_probes_keep_to_the_bound(start: Start) -> None:
    """An idle connection makes room for the probe's; where all are busy there is none, and their answers say more."""
    rig = await start("h1", warm=1, max_connections=1)
    (idle,) = rig.pool.stock.idle
    assert await rig.pool.probe()
    assert idle not in rig.pool.stock.connections
    assert len(rig.pool.stock.connections) == 1
    await rig.ask(1)
    await rig.at_origin(1)
    assert await rig.pool.probe() is None
    assert len(rig.pool.stock.connections) + rig.pool.dials.under_way == 1


async def test_an_origin_that_finds_us_too_busy_gets_fewer_pings(start: Start) -> None:
    rig = await start("h2", warm=1)
    before = rig.pool.ping_every_s
    for times in range(1, 10):
        (connection,) = rig.pool.stock.shared
        rig.origin.peers[-1].writer.write(wire.goaway(0, wire.ENHANCE_YOUR_CALM, "too_many_pings"))
        await wait_for(lambda connection=connection: connection not in rig.pool.stock.shared and rig.pool.stock.shared)
        assert rig.pool.ping_every_s == min(before * 2**times, PING_EVERY_MAX_S)


@pytest.mark.parametrize(("keepalive", "rtt"), [(15.0, 0.08), (1.0, 0.08), (0.4, 0.001), (600.0, 0.3)])
def test_a_dead_path_is_found_within_keepalive(keepalive: float, rtt: float) -> None:
    every, patience = ping_times(keepalive, 1.0 + 5 * rtt, rtt)
    assert every + patience <= keepalive * 1.001
    assert patience > 2 * rtt
    assert every >= keepalive / 2


async def test_a_health_check_keeps_its_connection_to_itself(start: Start) -> None:
    for version in ("h1", "h2"):
        rig = await start(version, warm=1)
        rig.go_on.set()
        for _ in range(3):
            assert await rig.upstream.health._ask(rig.pool.target, b"/healthz") == 200
        assert len(rig.pool.stock.idle) + len(rig.pool.stock.shared) == 1
        assert len(rig.origin.peers) == 2
        await wait_for(lambda rig=rig: len(rig.origin.requests) == 3)


async def test_a_burst_is_not_answered_by_as_many_dials(start: Start) -> None:
    """Handshakes at the moment when the answers arrive would delay them; what stays missing is dialled."""
    rig = await start("h1", warm=20, max_connections=100)
    calls = await rig.ask(20)
    await rig.at_origin(20)
    assert rig.pool.dials.under_way + len(rig.pool.stock.idle) <= REFILLS_AT_ONCE
    await wait_for(lambda: len(rig.pool.stock.idle) >= 20)
    assert rig.pool.stock.busy == 20
    rig.go_on.set()
    assert [await call.body() for call in calls] == [b"ok"] * 20
