"""Warm connections to one endpoint, and the attempts that wait for one.

It owns who gets which connection: `stock` keeps them, `waiters` the queue, `dialling` opens more, `sizing` says how
many. It never looks into a codec or a socket (`contract.UpstreamConnection`).

Rules:
- `warm` connections stand ready from the start, beside those in use; one that is lent out, dies or grows old is
  replaced before it is missed. While the number in use rises, the pool dials for where it will be when the dial is
  done (`target_size`).
- The youngest idle connection is used first (LIFO), so that the surplus of a burst grows old and goes.
- An attempt that finds none waits for whichever comes first: a connection given back, or the new one.
- Multiplexed connections are shared: a request goes to the one with the fewest open, and another one is dialled before
  the last is full (`SHARED_FULL`) or when one takes no more (GOAWAY, age). Those that wait are served as requests end,
  or as the peer allows more.
- An upgrade that a multiplexed endpoint doesn't take gets a connection of its own, which speaks another version.
- Bounds: `max_connections` open or being dialled; `WAITERS_MAX` attempts waiting, beyond that POOL_FULL at once.
- A failed dial fails one waiter (all, where nothing else could ever serve them). Refilling backs off; waiting
  requests dial at once (`dialling`).
- Connections follow their endpoint's name: those to an address that it no longer has serve on until the replacements
  are ready, and go.
- A reload keeps the pool (`adopt`) where its connections would be made in the same way; else another takes its place
  and its waiters (`hand_over`), and this one ends with the requests that it carries.
"""

from __future__ import annotations

import random
from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError

from .contract import Waiter, replaced
from .dialling import Dialling
from .stock import SHARED_FULL

if TYPE_CHECKING:
    from proxy.observe.metrics import Snapshot

    from .contract import UpstreamConnection
    from .reach import Reach
    from .settings import PoolSettings

SWEEP_S: Final = 1.0
PING_EVERY_MAX_S: Final = 600.0


class Pool(Dialling):
    """The connections to one endpoint, in one worker."""

    def __repr__(self) -> str:
        return (
            f"<Pool {self.target.endpoint}: {len(self.stock.idle)} idle, {self.stock.busy} busy, "
            f"{self.dials.under_way} dialling, {len(self.waiters)} waiting>"
        )

    # -- lending -----------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter) -> None:
        """Give it a connection: at once where one is free, else when the next one is."""
        connection = self.take(waiter.upgrade)
        if connection is not None:
            waiter.on_connection(connection)
        else:
            self.wait(waiter)

    def take(self, upgrade: bool) -> UpstreamConnection | None:
        """A connection that takes a request now, or None. What is taken is replaced before it is missed. `upgrade`: the
        request is one, which not every peer takes.
        """
        stock = self.stock
        connection = stock.take_idle()
        if connection is not None:
            if len(stock.idle) < self.settings.warm:
                self.refill()
        elif not stock.shared:
            return None
        elif upgrade:
            connection = stock.least_loaded_for_upgrade()
        else:
            connection = stock.least_loaded()
            if connection is not None and connection.load >= connection.stream_limit * SHARED_FULL:
                self.refill()  # the next connection, ahead of the limit
        if connection is not None and connection.uses:
            self.counters.reused += 1
        return connection

    def wait(self, waiter: Waiter) -> None:
        """It gets the next connection that is free for it (`on_connection`), or hears why there will be none."""
        if waiter.upgrade and self.stock.shared:
            self._wait_for_upgrade(waiter)
        elif self.closed:
            waiter.on_no_connection(replaced(self.target.endpoint))
        elif self.waiters.full:
            text = f"{self.target.endpoint}: {len(self.waiters)} requests wait for a connection"
            waiter.on_no_connection(ProxyError(Kind.POOL_FULL, text, unprocessed=True))
        else:
            self.waiters.queue.append(waiter)
            if self.dials_begun * self.streams_each < len(self.waiters) and self.room > 0:
                self.dial()

    def _wait_for_upgrade(self, waiter: Waiter) -> None:
        """Where connections are shared: until one has room whose peer takes upgrades, or has said that it does; where
        none does, for a connection that speaks another version.
        """
        endpoint = self.target.endpoint
        if self.stock.may_take_upgrades() and not self.waiters.upgrades_full:
            self.waiters.upgrades.append(waiter)
        elif not self.reach.dials_apart:
            text = f"{endpoint} takes no upgrades over the version that its connections speak"
            waiter.on_no_connection(ProxyError(Kind.UPGRADE_FAILED, text, unprocessed=True))
        elif self.room <= 0:
            text = f"{endpoint}: no room for one more connection"
            waiter.on_no_connection(ProxyError(Kind.POOL_FULL, text, unprocessed=True))
        else:
            self.dials.under_way += 1
            self.context.background.start(self._run_dial_apart(waiter), f"dial {endpoint}")

    def release(self, connection: UpstreamConnection) -> None:
        """A request ended, and its connection can carry another one."""
        now = self.context.turn.now
        if self.closed or now > connection.expires:
            if not connection.load:
                connection.retire_after_flush()
            return
        if connection.multiplexed:
            self.stock.share(connection, now)
            if self.waiters.queue or self.waiters.upgrades:
                self.on_limits(connection)
            return
        waiter = self.waiters.next() if self.waiters.queue else None
        if waiter is not None:
            connection.lend()
            self.lend(waiter, connection)
        else:
            self.stock.rest(connection, now)

    def on_limits(self, connection: UpstreamConnection) -> None:
        """A shared connection can take more, or has said what it takes: serve those that wait."""
        if connection not in self.stock.shared:
            return
        self.streams_each = max(1, connection.stream_limit)
        for waiter in self.waiters.take_upgrades():
            if waiter.waiting:
                self.acquire(waiter)
        while connection.can_open:
            next_one = self.waiters.next()
            if next_one is None:
                return
            if next_one.upgrade:
                self.acquire(next_one)
            else:
                self.lend(next_one, connection)

    def withdraw(self, connection: UpstreamConnection) -> None:
        """Take nothing new on this connection; what is open goes on."""
        if self.stock.unready(connection):
            self.refill()

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone (or going)."""
        stock = self.stock
        if connection not in stock.connections:
            return
        stock.connections.discard(connection)
        if connection in stock.idle and connection.uses == 0 and monotonic() - connection.idle_since < 1.0:
            self.dials.back_off()  # an origin that hangs up on idle connections must not be dialled in a loop
        stock.unready(connection)
        if not self.closed:
            self.refill()
            if self.waiters.queue and self.dials_begun < len(self.waiters):
                self.dial_for_waiters()

    # -- upkeep ------------------------------------------------------------------------------------

    def calm_down(self) -> None:
        """The endpoint ends connections because we ask too much of it: what we ask without need are PINGs."""
        self.ping_every_s = min(2 * self.ping_every_s, max(PING_EVERY_MAX_S, self.settings.keepalive_s))

    def on_round_trip(self, seconds: float) -> None:
        """A PING was answered."""
        self.context.balancer.observe_rtt(self.target, monotonic(), seconds)

    def tick(self, now: float) -> None:
        """Every 100 ms or so: follow demand, refill, and once a second let go of what is old or surplus."""
        stock, settings = self.stock, self.settings
        self.sizing.tick(now, stock)
        if now - self.swept >= SWEEP_S:
            self.swept = now
            hosts = self.dials.hosts_if_moved(self.reach.addresses(self.target.endpoint))
            if hosts is not None:
                stock.name_moved(hosts, now)
            stock.replace_stale(self, now, settings)
            stock.sweep(self, now, settings)
            self.top_up_tickets(now)
        self.sizing.renew(stock, self.dials.under_way)
        self.refill()

    def measure_rtt(self, now: float) -> None:
        """Tell routing the transport's smoothed round-trip time of the freshest connection."""
        connection = self.stock.freshest()
        if connection is not None and not self.target.endpoint.path:
            rtt_s = connection.rtt_s()
            if rtt_s:
                self.context.balancer.observe_rtt(self.target, now, rtt_s)

    def export(self, snapshot: Snapshot, upstream: str, now: float) -> None:
        """This pool's samples."""
        stock, labels = self.stock, {"upstream": upstream, "region": self.target.region.name}
        labels["endpoint"] = str(self.target.endpoint)
        snapshot.add("upstream_pool_idle", len(stock.idle) + len(stock.shared), **labels)
        snapshot.add("connections_open", len(stock.connections), side="upstream", upstream=upstream)
        snapshot.add("endpoint_ejected", float(now < self.target.ejected_until), **labels)

    def attempts(self) -> list[Waiter]:
        """Those that wait for a connection, or for an answer on one."""
        found = [waiter for waiter in self.waiters.queue if waiter.waiting]
        for connection in self.stock.connections:
            found += [handler for handler in connection.handlers() if isinstance(handler, Waiter)]
        return found

    def drain(self) -> None:
        """An operator moves traffic away: idle connections stay warm for the return, busy ones end."""
        for connection in self.stock.connections:
            if connection.load:
                connection.age(0.0)

    def adopt(self, settings: PoolSettings, reach: Reach) -> None:
        """A reload changed how many connections there are, or how long they live: those that exist stay."""
        older = self.settings.max_age_s - settings.max_age_s
        now = monotonic()
        for connection in self.stock.connections if older else ():
            expires = connection.expires - older
            # What has become too old goes over the next seconds, not all of it at once.
            connection.age(expires if expires > now else now + random.random() * settings.connect_s)
        self.settings = self.sizing.settings = settings
        self.reach = reach
        self.ping_every_s = settings.keepalive_s
        self.dials.again_at = 0.0
        surplus = len(self.stock.connections) - settings.max_connections
        for connection in self.stock.without_requests()[: max(0, surplus)]:
            connection.retire_after_flush()

    def close(self) -> None:
        """No more requests: idle connections close now, busy ones when their request is done."""
        self.closed = True
        self.stock.close(self)

    def hand_over(self, successor: Pool | None, error: ProxyError) -> None:
        """This pool is closed: who waits here waits there, or is told `error`."""
        for waiter in self.waiters.take_all():
            if not waiter.waiting:
                continue
            if successor is not None:
                successor.acquire(waiter)
            else:
                waiter.on_no_connection(error)

    @property
    def over(self) -> bool:
        """Closed, and nothing is under way any more."""
        return self.closed and not self.stock.connections and not self.dials.under_way
