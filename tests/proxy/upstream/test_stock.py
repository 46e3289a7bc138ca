"""What a pool keeps, chooses and lets go of: scripts over connections whose transports lead nowhere, and dials that are
only noted.
"""

from __future__ import annotations

from collections.abc import Coroutine
from time import monotonic
from typing import Any

import pytest

from proxy.config import parse_config
from proxy.errors import Kind, ProxyError
from proxy.http.message import Fields, RequestHead, ResponseHead
from proxy.http.stream import StreamHandler
from proxy.process.rehearsal import Nowhere
from proxy.process.worker import Worker
from proxy.upstream import dials as dials_module
from proxy.upstream.connection import ClientConnection
from proxy.upstream.dials import BACKOFF_MAX_S
from proxy.upstream.sizing import REFILLS_AT_ONCE
from proxy.upstream.stock import PARTING_S
from tlscache.ticket_keys import TicketKeys

from ..matrix.conftest import Log

CONFIG = """
listeners: [{{name: web, address: "127.0.0.1:0", upstream: app}}]
upstreams:
  app:
    protocol: {protocol}
    regions: {{here: {{endpoints: ["127.0.0.1:9"]}}}}
    pool: {{warm: {warm}, max_connections: {most}}}
access_log: off
"""


class Noted:
    """Tasks that are not run."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        coroutine.close()
        self.names.append(name)


class Request(StreamHandler):
    """One that is open."""

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """Nothing comes."""

    def on_data(self, data: bytes, end: bool) -> None:
        """Nothing comes."""

    def on_trailers(self, fields: Fields) -> None:
        """Nothing comes."""

    def on_writable(self) -> None:
        """Nothing comes."""

    def on_reset(self, error: ProxyError) -> None:
        """It ends."""


class Rig:
    def __init__(self, protocol: str = "h1", warm: int = 0, most: int = 8) -> None:
        parsed = parse_config(CONFIG.format(protocol=protocol, warm=warm, most=most))
        self.worker = Worker(parsed, Log(), TicketKeys(contexts=1))
        self.upstream = self.worker._new_upstream(parsed, "app")
        (self.pool,) = self.upstream.pools
        self.dialled = Noted()
        self.pool.context.background = self.dialled  # type: ignore[assignment]
        self.stock = self.pool.stock

    def connected(self) -> ClientConnection:
        """A dial has brought another one."""
        turn = self.worker.turn
        turn.begin()
        try:
            connection = ClientConnection(turn, self.pool, None)
            connection.connection_made(Nowhere())  # type: ignore[arg-type]
            connection.age(float("inf"))
            self.stock.connections.add(connection)
            self.pool.release(connection)
        finally:
            turn.end()
        return connection

    @property
    def ready(self) -> int:
        return self.pool.target.ready


async def test_the_youngest_is_taken_first_and_what_is_taken_is_not_ready() -> None:
    rig = Rig()
    assert rig.pool.take(False) is None
    old, young = rig.connected(), rig.connected()
    assert rig.ready == 2
    assert rig.pool.take(False) is young
    assert (rig.ready, rig.stock.busy) == (1, 1)
    assert rig.pool.take(False) is old
    assert rig.pool.take(False) is None
    rig.pool.release(old)
    assert (rig.ready, rig.stock.busy) == (1, 1)
    assert rig.dialled.names == []


async def test_only_a_connection_that_carried_something_counts_as_reused() -> None:
    rig = Rig()
    connection = rig.connected()
    rig.pool.take(False)
    assert rig.pool.counters.reused == 0
    connection.uses = 1
    rig.pool.release(connection)
    rig.pool.take(False)
    assert rig.pool.counters.reused == 1


async def test_what_is_taken_of_the_reserve_is_dialled_anew() -> None:
    rig = Rig(warm=2)
    rig.connected(), rig.connected()
    before = len(rig.dialled.names)
    rig.pool.take(False)
    assert len(rig.dialled.names) == before + 1
    assert rig.pool.dials.under_way == before + 1


async def test_requests_share_the_connection_with_the_fewest() -> None:
    rig = Rig("h2")
    one, other = rig.connected(), rig.connected()
    one.open(Request())
    assert rig.pool.take(False) is other
    other.open(Request())
    other.open(Request())
    assert rig.pool.take(False) is one
    assert (rig.ready, rig.stock.busy) == (2, 2), "shared ones stay ready"
    rig.pool.withdraw(one)
    assert rig.pool.take(False) is other
    assert rig.ready == 1


async def test_an_upgrade_waits_while_no_peer_has_said_that_it_takes_one() -> None:
    rig = Rig("h2")
    rig.connected()
    assert rig.pool.take(True) is None
    assert rig.stock.may_take_upgrades()


async def test_one_that_is_too_old_is_not_kept() -> None:
    rig = Rig()
    connection = rig.connected()
    rig.pool.take(False)
    connection.age(0.0)
    rig.pool.release(connection)
    assert connection.closed
    assert rig.stock.connections == set()


async def test_surplus_goes_once_it_has_been_idle_for_long_the_oldest_first() -> None:
    rig = Rig(warm=1)
    old, young, youngest = (rig.connected() for _ in range(3))
    now = monotonic()
    for connection in (old, young, youngest):
        connection.rest(now - rig.pool.settings.idle_s - 1.0)
    rig.stock.sweep(rig.pool, now, rig.pool.settings)
    assert [old.closed, young.closed, youngest.closed] == [True, True, False]
    assert rig.ready == 1


async def test_what_parts_goes_when_its_ticket_has_had_time_to_come() -> None:
    rig = Rig("h2")
    connection = rig.connected()
    rig.pool.lost(connection)
    now = monotonic()
    connection.rest(now)
    rig.stock.part(connection)
    rig.stock.sweep(rig.pool, now + PARTING_S / 2, rig.pool.settings)
    assert not connection.closed
    rig.stock.sweep(rig.pool, now + PARTING_S + 0.1, rig.pool.settings)
    assert connection.closed


@pytest.mark.parametrize("protocol", ["h1", "h2"])
async def test_connections_follow_a_name_when_their_replacements_are_ready(protocol: str) -> None:
    rig = Rig(protocol, warm=1)
    stale = rig.connected()
    now = monotonic()
    rig.stock.name_moved({"127.0.0.2"}, now)
    assert stale.stale
    assert rig.stock.stale_ready() == 1
    rig.stock.replace_stale(rig.pool, now, rig.pool.settings)
    assert not stale.closed, "nothing stands in for it yet"
    fresh = rig.connected()
    fresh.mark_stale(False)
    rig.stock.replace_stale(rig.pool, now, rig.pool.settings)
    assert stale.closed
    assert not fresh.closed
    assert rig.stock.stale_ready() == 0


async def test_an_address_that_is_gone_is_left_after_a_while_in_any_case() -> None:
    rig = Rig(warm=1)
    stale = rig.connected()
    now = monotonic()
    rig.stock.name_moved({"127.0.0.2"}, now)
    rig.stock.replace_stale(rig.pool, now + rig.pool.settings.connect_s + 0.1, rig.pool.settings)
    assert stale.closed


async def test_closing_keeps_what_is_in_use_until_it_ends() -> None:
    rig = Rig("h2")
    idle, busy = rig.connected(), rig.connected()
    stream = busy.open(Request())
    rig.pool.close()
    assert idle.closed
    assert not busy.closed
    assert rig.pool.take(False) is None
    assert not rig.pool.over
    stream.reset(None)
    assert busy.closed
    assert rig.pool.over


async def test_refills_are_a_few_at_once_and_the_rest_when_still_missing() -> None:
    rig = Rig(warm=6)
    rig.pool.refill()
    assert len(rig.dialled.names) == REFILLS_AT_ONCE
    rig.pool.refill()
    assert len(rig.dialled.names) == REFILLS_AT_ONCE
    rig.pool.tick(monotonic())  # it is missed for the first time
    rig.pool.tick(monotonic())
    assert len(rig.dialled.names) == 6


async def test_back_off_doubles_to_its_bound_and_ends_with_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dials_module, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(dials_module.random, "uniform", lambda low, high: high)
    rig = Rig(warm=1)
    dials = rig.pool.dials
    error = ProxyError(Kind.REFUSED, "refused", unprocessed=True)
    waits = []
    for _ in range(8):
        dials.failed(error)
        waits.append(round(dials.again_at - 1000.0, 1))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, BACKOFF_MAX_S, BACKOFF_MAX_S]
    assert (dials.last_error, rig.pool.counters.dial_failures) == (error, 8)
    dials.opened("full")
    assert (dials.failures, dials.again_at, dials.last_error) == (0, 0.0, None)
    assert rig.pool.counters.opened["full"] == 1


async def test_a_name_that_answers_the_same_has_not_moved() -> None:
    dials = Rig().pool.dials
    here, same, there = [(2, ("10.0.0.1", 80))], [(2, ("10.0.0.1", 80))], [(2, ("10.0.0.2", 80))]
    assert dials.hosts_if_moved(None) is None
    assert dials.hosts_if_moved(here) is None, "the first answer is where the connections lead"
    assert dials.hosts_if_moved(same) is None
    assert dials.hosts_if_moved(there) == {"10.0.0.2"}
    assert dials.hosts_if_moved(there) is None
