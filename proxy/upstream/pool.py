"""Warm connections to one endpoint, and the attempts that wait for one.

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
  requests dial at once.
- Connections follow their endpoint's name: those to an address that it no longer has serve on until the replacements
  are ready, and go.
- A reload keeps the pool (`adopt`) where its connections would be made in the same way; else another takes its place
  and its waiters (`hand_over`), and this one ends with the requests that it carries.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from proxy.errors import Kind, ProxyError
from proxy.net.dial import is_deferred
from proxy.net.kernel import socket_of
from proxy.observe.metrics import PoolCounters

from .connection import ClientConnection, State
from .contract import ConnectionOwner, Waiter, replaced

if TYPE_CHECKING:
    from proxy.http.stream import Codec
    from proxy.net.resolver import SockAddress
    from proxy.observe.metrics import Snapshot
    from routing.balancer import EndpointState
    from tlscache.engine import TLSEngine

    from .contract import PoolContext, UpstreamConnection
    from .reach import Reach

WAITERS_MAX: Final = 4096
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
SWEEP_S: Final = 1.0
PARTING_S: Final = 2.0
HANG_UPS_MAX: Final = 3
"""Fresh connections in a row that the endpoint closes before their first request, until waiting requests are told."""
SHARED_FULL: Final = 0.8
"""A multiplexed connection with this share of its streams in use counts as full."""
PING_EVERY_MAX_S: Final = 600.0
REFILLS_AT_ONCE: Final = 2
RESERVE_AFTER_S: Final = 0.005
"""A dial that nobody waits for lets requests go first: over the same path it would need the processor for its handshake
just when their answers arrive.
"""
_RISE_SMOOTHING: Final = 0.3


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How many connections, and how long they live. Seconds; `max_age_s` gets 10 % of jitter, so that no two pools
    redial together.
    """

    warm: int = 2
    max_connections: int = 128
    max_age_s: float = 1800.0
    idle_s: float = 60.0
    keepalive_s: float = 15.0
    connect_s: float = 2.0
    streams: int = 1
    """How many requests a connection takes at once, as far as that is known before there is one."""


def target_size(busy: int, rise_per_s: float, dial_s: float, settings: PoolSettings) -> int:
    """How many connections there should be, busy ones included.

    What is in use, plus what will be in use once a dial started now is done (`rise_per_s` × `dial_s`), plus the warm
    reserve.
    """
    ahead = math.ceil(max(0.0, rise_per_s) * dial_s)
    return min(settings.max_connections, busy + ahead + settings.warm)


class Pool(ConnectionOwner):
    """The connections to one endpoint, in one worker."""

    def __init__(
        self,
        context: PoolContext,
        target: EndpointState,
        settings: PoolSettings,
        reach: Reach,
        counters: PoolCounters,
    ) -> None:
        self.context = context
        self.target = target
        self.settings = settings
        self.reach = reach
        names = {"upstream": context.upstream, "region": target.region.name, "endpoint": str(target.endpoint)}
        self.log_target = msgspec.json.encode(names)[1:-1]  # as it stands in every line of the access log
        self.counters = counters
        self.idle: list[UpstreamConnection] = []
        self.shared: list[UpstreamConnection] = []  # multiplexed ones, idle or in use, that take new streams
        self.connections: set[UpstreamConnection] = set()  # every ready one
        self.dialling = 0
        self._aside = 0  # of these: they have not begun
        self.waiters: deque[Waiter] = deque()
        self.upgrades: deque[Waiter] = deque()  # wait until a shared connection's peer has said whether it takes them
        self.ping_every_s = settings.keepalive_s
        self._addresses: list[SockAddress] | None = None  # of the endpoint's name, as connections follow it
        self._stale_since = 0.0  # connections to addresses that the name no longer has wait for replacements since then
        self._parting: list[UpstreamConnection] = []  # probes' surplus, for `PARTING_S`
        self.closed = False
        self.last_error: ProxyError | None = None
        self.first_round = 0  # initial dials still under way; readiness waits for zero
        self.dial_s = 0.3
        self._failures = 0
        self.carried_in_vain = 0  # first flights that carried a request, and whose handshake failed
        self._streams_each = settings.streams
        self._refill_at = 0.0
        self._refills_left = REFILLS_AT_ONCE
        self._missed = 0  # at the last tick
        self._rise_per_s = 0.0
        self._busy_before = 0
        self._ticked = monotonic()
        self._swept = self._ticked

    def __repr__(self) -> str:
        return (
            f"<Pool {self.target.endpoint}: {len(self.idle)} idle, {self.busy} busy, {self.dialling} dialling, "
            f"{len(self.waiters)} waiting>"
        )

    @property
    def busy(self) -> int:
        """Connections that carry a request."""
        return len(self.connections) - len(self.idle) - sum(1 for c in self.shared if not c.load)

    @property
    def _dials_begun(self) -> int:
        """What one who waits for a connection can count on."""
        return self.dialling - self._aside

    # -- lending -----------------------------------------------------------------------------------

    def acquire(self, attempt: Waiter) -> None:
        """Give the attempt a connection: at once where one is free, else when the next one is."""
        idle = self.idle
        if idle:
            connection = idle.pop()
            self.target.ready -= 1
            connection.lend()
            if len(idle) < self.settings.warm:
                self.refill()
            self._lend(attempt, connection)
            return
        if self.shared and attempt.upgrade:
            self._acquire_upgrade(attempt)
            return
        if self.shared and (shared := self._least_loaded()) is not None:
            if shared.load >= shared.stream_limit * SHARED_FULL:
                self.refill()  # the next connection, ahead of the limit
            self._lend(attempt, shared)
            return
        if self.closed:
            attempt.on_no_connection(replaced(self.target.endpoint))
            return
        if len(self.waiters) >= WAITERS_MAX:
            attempt.on_no_connection(
                ProxyError(
                    Kind.POOL_FULL,
                    f"{self.target.endpoint}: {len(self.waiters)} requests wait for a connection",
                    unprocessed=True,
                )
            )
            return
        self.waiters.append(attempt)
        if (
            self._dials_begun * self._streams_each < len(self.waiters)
            and len(self.connections) + self.dialling < self.settings.max_connections
        ):
            self._dial()

    def _lend(self, waiter: Waiter, connection: UpstreamConnection) -> None:
        if connection.uses:
            self.counters.reused += 1
        waiter.on_connection(connection)

    def early_waiter(self) -> Waiter | None:
        """The first waiting attempt whose request may ride in the first flight of a connection made now."""
        for attempt in self.waiters:
            if attempt.waiting and attempt.may_travel_early():
                return attempt
        return None

    def _least_loaded(self) -> UpstreamConnection | None:
        best: UpstreamConnection | None = None
        fewest = 0
        for connection in self.shared:
            streams = connection.load
            if (best is None or streams < fewest) and connection.can_open:
                if not streams:
                    return connection
                best, fewest = connection, streams
        return best

    def _acquire_upgrade(self, attempt: Waiter) -> None:
        """An upgrade, where connections are shared: over the least loaded one whose peer takes it. While none has said
        so, or they are full, it waits; where none does, it gets a connection that speaks another version.
        """
        best: UpstreamConnection | None = None
        hope = False
        for connection in self.shared:
            if connection.upgrades is False:
                continue
            hope = True
            if connection.upgrades and connection.can_open and (best is None or connection.load < best.load):
                best = connection
        if best is not None:
            self._lend(attempt, best)
        elif hope and len(self.upgrades) < WAITERS_MAX:
            self.upgrades.append(attempt)
        elif not self.reach.dials_apart:
            text = f"{self.target.endpoint} takes no upgrades over the version that its connections speak"
            attempt.on_no_connection(ProxyError(Kind.UPGRADE_FAILED, text, unprocessed=True))
        elif len(self.connections) + self.dialling >= self.settings.max_connections:
            text = f"{self.target.endpoint}: no room for one more connection"
            attempt.on_no_connection(ProxyError(Kind.POOL_FULL, text, unprocessed=True))
        else:
            self.dialling += 1
            self.context.background.start(self._run_dial_apart(attempt), f"dial {self.target.endpoint}")

    def release(self, connection: UpstreamConnection) -> None:
        """A request ended, and its connection can carry another one."""
        now = self.context.turn.now
        if self.closed or now > connection.expires:
            if not connection.load:
                connection.retire_after_flush()
            return
        if connection.multiplexed:
            if connection not in self.shared:
                self.shared.append(connection)
                self.target.ready += 1
            if not connection.load:
                connection.rest(now)
            if self.waiters or self.upgrades:
                self.on_limits(connection)
            return
        waiters = self.waiters
        while waiters:
            attempt = waiters.popleft()
            if attempt.waiting:
                connection.lend()
                self._lend(attempt, connection)
                return
        connection.rest(now)
        self.idle.append(connection)
        self.target.ready += 1

    def on_limits(self, connection: UpstreamConnection) -> None:
        """A shared connection can take more, or has said what it takes: serve those that wait."""
        if connection not in self.shared:
            return
        self._streams_each = max(1, connection.stream_limit)
        upgrades, self.upgrades = self.upgrades, deque()
        for attempt in upgrades:
            if attempt.waiting:
                self._acquire_upgrade(attempt)
        waiters = self.waiters
        while waiters and connection.can_open:
            attempt = waiters.popleft()
            if attempt.waiting:
                if attempt.upgrade:
                    self._acquire_upgrade(attempt)
                else:
                    self._lend(attempt, connection)

    def withdraw(self, connection: UpstreamConnection) -> None:
        """Take nothing new on this connection; what is open goes on."""
        for ready in (self.shared, self.idle):
            if connection in ready:
                ready.remove(connection)
                self.target.ready -= 1
                self.refill()

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone (or going)."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
            self.target.ready -= 1
            if connection.uses == 0 and monotonic() - connection.idle_since < 1.0:
                self._back_off()  # an origin that hangs up on idle connections must not be dialled in a loop
        if connection in self.shared:
            self.shared.remove(connection)
            self.target.ready -= 1
        if not self.closed:
            self.refill()
            if self.waiters and self._dials_begun < len(self.waiters):
                self._dial_for_waiters()

    def forget(self, attempt: Waiter) -> None:
        """The attempt no longer waits (its `waiting` is False already)."""
        waiters = self.waiters
        while waiters and not waiters[0].waiting:
            waiters.popleft()
        if len(waiters) > 64 and sum(1 for a in waiters if not a.waiting) * 2 > len(waiters):
            self.waiters = deque(a for a in waiters if a.waiting)

    # -- dialling ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Dial the warm connections; `first_round` falls to zero when each has succeeded or failed."""
        for _ in range(min(self.settings.warm, self.settings.max_connections)):
            self.first_round += 1
            self._dial(first=True)

    def refill(self) -> None:
        """Dial what the target size asks for and is not under way yet: a few at once, the rest when it has been missed
        for a tick. A burst takes all idle connections and has brought most of them back by then, and as many handshakes
        would be in the way of its answers.
        """
        if self.closed or monotonic() < self._refill_at:
            return
        missing = min(self._missing(), self._refills_left)
        for _ in range(missing):
            self._refills_left -= 1
            self._dial(after_s=RESERVE_AFTER_S)

    def _missing(self) -> int:
        if self.shared:
            return self._missing_shared()
        wanted = target_size(self.busy, self._rise_per_s, self.dial_s, self.settings)
        room = self.settings.max_connections - len(self.connections) - self.dialling
        return min(wanted - len(self.connections) + self._stale_idle() - self.dialling, room)

    def _missing_shared(self) -> int:
        """Multiplexed connections: the warm ones, and one more while all are near their limit of streams."""
        full = all(c.load >= c.stream_limit * SHARED_FULL or not c.can_open for c in self.shared)
        wanted = max(1, self.settings.warm, len(self.shared) + 1 if full else 0)
        room = self.settings.max_connections - len(self.connections) - self.dialling
        return min(wanted - len(self.shared) + self._stale_idle() - self.dialling, room)

    def _stale_idle(self) -> int:
        """How many of those that stand ready lead to an address that the name no longer has."""
        if not self._stale_since:
            return 0
        return sum(1 for one in (*self.idle, *self.shared) if one.stale)

    def calm_down(self) -> None:
        """The endpoint ends connections because we ask too much of it: what we ask without need are PINGs."""
        self.ping_every_s = min(2 * self.ping_every_s, max(PING_EVERY_MAX_S, self.settings.keepalive_s))

    def on_round_trip(self, seconds: float) -> None:
        """A PING was answered."""
        self.context.balancer.observe_rtt(self.target, monotonic(), seconds)

    def _dial_for_waiters(self) -> None:
        waiting = sum(1 for attempt in self.waiters if attempt.waiting)
        room = self.settings.max_connections - len(self.connections) - self.dialling
        wanted = math.ceil(waiting / self._streams_each)
        for _ in range(min(room, wanted - self._dials_begun)):
            self._dial()

    def _dial(self, first: bool = False, resume: bool = True, after_s: float = 0.0) -> None:
        self.dialling += 1
        if after_s:
            self._aside += 1
        self.context.background.start(self._run_dial(first, resume, after_s), f"dial {self.target.endpoint}")

    async def _run_dial(self, first: bool, resume: bool, after_s: float) -> None:
        connection: UpstreamConnection | None = None
        try:
            if after_s:
                await self._stand_aside(after_s)
            async with asyncio.timeout(self.settings.connect_s):
                connection = await self.connect(resume=resume, carry=True)
                if connection.lent:
                    return
                if connection.closed:
                    connection = None
                    text = f"{self.target.endpoint} closed the connection at once"
                    raise ProxyError(Kind.TERMINATED, text, unprocessed=True)
        except ProxyError as error:
            self._dial_failed(error)
        except TimeoutError:
            text = f"{self.target.endpoint}: no connection within {self.settings.connect_s:g} s"
            self._dial_failed(ProxyError(Kind.CONNECT_TIMEOUT, text, unprocessed=True))
        finally:
            self.dialling -= 1
            if first:
                self.first_round -= 1
                self.context.on_warm_progress()
        turn = self.context.turn
        turn.begin()
        try:
            if connection is not None:
                self._dialled(connection)
            elif not self.closed:
                self._fail_waiters()
        finally:
            turn.end()

    async def _stand_aside(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            self._aside -= 1

    async def _run_dial_apart(self, attempt: Waiter) -> None:
        """Dial for one attempt alone, in the version that takes upgrades."""
        endpoint = self.target.endpoint
        connection: UpstreamConnection | None = None
        error = ProxyError(Kind.TERMINATED, f"{endpoint} closed the connection at once", unprocessed=True)
        try:
            async with asyncio.timeout(self.settings.connect_s):
                connection = await self.connect(apart=True)
        except ProxyError as fault:
            error = fault
        except TimeoutError:
            text = f"{endpoint}: no connection within {self.settings.connect_s:g} s"
            error = ProxyError(Kind.CONNECT_TIMEOUT, text, unprocessed=True)
        finally:
            self.dialling -= 1
        turn = self.context.turn
        turn.begin()
        try:
            if connection is None or not self._admit(connection):
                if attempt.waiting:
                    attempt.on_no_connection(error)
            elif attempt.waiting and not connection.multiplexed:
                connection.lend()
                self._lend(attempt, connection)
            else:
                if attempt.waiting:
                    text = f"{endpoint} takes no upgrades"
                    attempt.on_no_connection(ProxyError(Kind.UPGRADE_FAILED, text, unprocessed=True))
                self.release(connection)
        finally:
            turn.end()

    async def connect(self, *, resume: bool = True, apart: bool = False, carry: bool = False) -> ClientConnection:
        """A new connection, handshaken, not part of the pool. `apart`: in the version that takes upgrades; `carry`: its
        first flight may carry a request that waits (it is the pool's and `lent` then). Raises ProxyError; the caller
        bounds the time.
        """
        context = self.context
        started = monotonic()
        reach = self.reach
        sock, dns_s, tcp_s = await reach.open_socket(self.target.endpoint, reach.tls_socket_options)
        deferred = reach.tls_socket_options.fast_open and is_deferred(sock)
        if not deferred:
            context.balancer.observe_connect(self.target, monotonic(), True, tcp_s, "tcp")
        sessions = reach.sessions_of(self.target.endpoint, apart=apart)
        offered = sessions.take() if sessions is not None and resume else None
        connection = ClientConnection(context.turn, self, sessions, offered)
        connection.may_carry = carry
        connection.seconds = (dns_s, tcp_s, 0.0)
        try:
            await asyncio.get_running_loop().create_connection(lambda: cast(Any, connection), sock=sock)
            await connection.ready
        except asyncio.CancelledError:
            connection.state = State.CLOSED
            connection.abort()
            raise
        if deferred and connection.transport is not None:  # the SYN went with the ClientHello: the kernel has timed it
            connection.peer = socket_of(connection.transport).getpeername()[0]
            rtt_s = connection.rtt_s()
            connection.seconds = (dns_s, rtt_s, connection.seconds[2])
            context.balancer.observe_connect(self.target, monotonic(), True, rtt_s, "tcp")
        if sessions is not None:
            context.balancer.observe_connect(self.target, monotonic(), True, connection.seconds[2], "tls")
        self.dial_s += 0.2 * (monotonic() - started - self.dial_s)
        return connection

    async def probe(self) -> float | None:
        """Dial once; what it opens stays warm. Returns one round trip of it, in seconds; None where `max_connections`
        leaves no room (all of them carry requests, which tell more than a probe). Raises ProxyError.
        """
        spare = None
        if len(self.connections) + self.dialling >= self.settings.max_connections:
            spare = next((one for one in (*self.idle, *self.shared) if not one.load), None)
            if spare is None:
                return None
        self.dialling += 1
        self._aside += 1  # nobody who waits counts on it
        try:
            if spare is not None:
                spare.retire_after_flush()
            connection = await self.connect()
        finally:
            self.dialling -= 1
            self._aside -= 1
        self._adopt_probe(connection)
        return max(connection.seconds[1], 1e-6)

    def _adopt_probe(self, connection: UpstreamConnection) -> None:
        """A probe's connection is as good as any, and one too many where the warm ones are shared."""
        self.context.turn.begin()
        try:
            if connection.multiplexed and len(self.shared) >= max(1, self.settings.warm):
                self._parting.append(connection)  # it has taken a session ticket: the one it gives back is on its way
            else:
                self._dialled(connection)
                if len(self.idle) > max(1, self.settings.warm) and connection in self.idle:
                    self.idle[0].retire_after_flush()  # the oldest: probes replace, they do not pile up
        finally:
            self.context.turn.end()

    def opened_early(self, connection: UpstreamConnection) -> None:
        """A dial whose first flight carried a request is done: the connection is in use already."""
        self._count_dial(connection)
        self.connections.add(connection)
        if connection.multiplexed:
            self.release(connection)

    def _dialled(self, connection: UpstreamConnection) -> None:
        if self._admit(connection):
            self.release(connection)

    def _admit(self, connection: UpstreamConnection) -> bool:
        """Make a dialled connection one of the pool's. False: it is gone already, or not wanted any more."""
        self._count_dial(connection)
        if connection.closed or self.closed:
            connection.abort()
            return False
        self.connections.add(connection)
        return True

    def _count_dial(self, connection: UpstreamConnection) -> None:
        self._failures = 0
        self._refill_at = 0.0
        self.last_error = None
        self.counters.opened[connection.handshake] += 1
        self.counters.observe_phases(connection.seconds)
        connection.age(monotonic() + self.settings.max_age_s * random.uniform(0.9, 1.0))
        if self._addresses is None:
            self._addresses = self.reach.addresses(self.target.endpoint)

    def _dial_failed(self, error: ProxyError) -> None:
        self.last_error = error
        self.counters.dial_failures += 1
        if error.blames_endpoint:
            phase = "tls" if error.kind in (Kind.TLS, Kind.CERTIFICATE) else "tcp"
            self.context.balancer.observe_connect(self.target, monotonic(), False, 0.0, phase)
        self.context.on_dial_failed(self.target, error)
        self._back_off()

    def _back_off(self) -> None:
        self._failures += 1
        delay = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(self._failures - 1, 10))
        self._refill_at = monotonic() + delay * random.uniform(0.5, 1.0)

    def _fail_waiters(self) -> None:
        error = self.last_error
        assert error is not None
        if self.carried_in_vain:  # its request waits again: without early data the handshake may well succeed
            self.carried_in_vain -= 1
            self._dial_for_waiters()
            return
        if error.kind is Kind.TERMINATED and self._failures < HANG_UPS_MAX:
            self._dial_for_waiters()  # it was there, and went: perhaps a restart
            return
        alone = not self.connections and not self.dialling
        if not alone and not error.blames_endpoint:
            return  # no more connections for now: those that wait get one that is given back
        while self.waiters:
            attempt = self.waiters.popleft()
            if attempt.waiting:
                attempt.on_no_connection(error)
                if not alone:
                    return

    # -- upkeep ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Every 100 ms or so: follow demand, refill, and once a second let go of what is old or surplus."""
        busy = self.busy
        elapsed = now - self._ticked
        if elapsed > 0:
            rise = (busy - self._busy_before) / elapsed
            self._rise_per_s += _RISE_SMOOTHING * (rise - self._rise_per_s)
        self._busy_before = busy
        self._ticked = now
        if now - self._swept >= SWEEP_S:
            self._swept = now
            self._follow_name(now)
            self._sweep(now)
            self._top_up_tickets(now)
        missing = self._missing()
        self._refills_left = min(missing, self._missed) if missing > 0 else REFILLS_AT_ONCE
        self._missed = missing
        self.refill()

    def _sweep(self, now: float) -> None:
        for connection in [c for c in self._parting if now - c.idle_since > PARTING_S]:
            self._parting.remove(connection)
            connection.retire_after_flush()
        for connection in [c for c in self.idle if now > c.expires]:
            connection.retire_after_flush()
        surplus = len(self.idle) - self.settings.warm
        for connection in self.idle[: max(0, surplus)]:  # the oldest stand first
            if now - connection.idle_since > self.settings.idle_s:
                connection.retire_after_flush()
        for connection in [c for c in self.shared if now > c.expires]:
            self.withdraw(connection)
            if not connection.load:
                connection.retire_after_flush()
        surplus = len(self.shared) - max(1, self.settings.warm)
        for connection in [c for c in self.shared if not c.load and now - c.idle_since > self.settings.idle_s]:
            if surplus > 0:
                surplus -= 1
                connection.retire_after_flush()

    def _follow_name(self, now: float) -> None:
        """Connections to addresses that the endpoint's name no longer has are replaced, then let go."""
        addresses = self.reach.addresses(self.target.endpoint)
        if addresses is not None and addresses is not self._addresses:
            known, self._addresses = self._addresses, addresses
            if known is not None and known != addresses:
                hosts = {address[0] for _, address in addresses}
                for connection in self.connections:
                    connection.mark_stale(bool(connection.peer) and connection.peer not in hosts)
                    if connection.stale and not self._stale_since:
                        self._stale_since = now
        if not self._stale_since:
            return
        stale = [one for one in (*self.idle, *self.shared) if one.stale]
        ready = len(self.idle) + len(self.shared) - len(stale)
        if ready < max(1, self.settings.warm) and now - self._stale_since < self.settings.connect_s:
            return
        for connection in stale:
            self.withdraw(connection)
            if not connection.load:
                connection.retire_after_flush()
        for connection in self.connections:
            if connection.stale:
                connection.age(0.0)  # it goes when its request is done
        self._stale_since = 0.0

    def _top_up_tickets(self, now: float) -> None:
        """Where a restart would lack tickets, one more dial brings some; what it opens is warm surplus."""
        warm = self.settings.warm
        if self.closed or self.dialling or len(self.idle) + len(self.shared) < max(1, warm):
            return
        if len(self.connections) >= self.settings.max_connections:
            return
        sessions = self.reach.sessions_of(self.target.endpoint)
        if sessions is not None and sessions.lacks_tickets(warm, now):
            self._dial(resume=False, after_s=RESERVE_AFTER_S)

    def measure_rtt(self, now: float) -> None:
        """Tell routing the kernel's smoothed round-trip time of the freshest connection."""
        connection = self.idle[-1] if self.idle else next(iter(self.connections), None)
        if connection is not None and not self.target.endpoint.path:
            rtt_s = connection.rtt_s()
            if rtt_s:
                self.context.balancer.observe_rtt(self.target, now, rtt_s)

    def export(self, snapshot: Snapshot, upstream: str, now: float) -> None:
        """This pool's samples."""
        region = self.target.region.name
        endpoint = str(self.target.endpoint)
        snapshot.add(
            "upstream_pool_idle", len(self.idle) + len(self.shared), upstream=upstream, region=region, endpoint=endpoint
        )
        snapshot.add("connections_open", len(self.connections), side="upstream", upstream=upstream)
        ejected = now < self.target.ejected_until
        snapshot.add("endpoint_ejected", float(ejected), upstream=upstream, region=region, endpoint=endpoint)

    def attempts(self) -> list[Waiter]:
        """Waiters that wait for a connection, or for an answer on one."""
        found = [attempt for attempt in self.waiters if attempt.waiting]
        for connection in self.connections:
            found += [handler for handler in connection.handlers() if isinstance(handler, Waiter)]
        return found

    def drain(self) -> None:
        """An operator moves traffic away: idle connections stay warm for the return, busy ones end."""
        for connection in self.connections:
            if connection.load:
                connection.age(0.0)

    def adopt(self, settings: PoolSettings, reach: Reach) -> None:
        """A reload changed how many connections there are, or how long they live: those that exist stay."""
        older = self.settings.max_age_s - settings.max_age_s
        now = monotonic()
        for connection in self.connections if older else ():
            expires = connection.expires - older
            # What has become too old goes over the next seconds, not all of it at once.
            connection.age(expires if expires > now else now + random.random() * settings.connect_s)
        self.settings = settings
        self.reach = reach
        self.ping_every_s = settings.keepalive_s
        self._refill_at = 0.0
        surplus = len(self.connections) - settings.max_connections
        for connection in [one for one in (*self.idle, *self.shared) if not one.load][: max(0, surplus)]:
            connection.retire_after_flush()

    def close(self) -> None:
        """No more requests: idle connections close now, busy ones when their request is done."""
        self.closed = True
        for connection in (*self.idle, *self._parting):
            connection.retire_after_flush()
        self._parting.clear()
        for connection in list(self.shared):
            self.withdraw(connection)
            if not connection.load:
                connection.retire_after_flush()

    def hand_over(self, successor: Pool | None, error: ProxyError) -> None:
        """This pool is closed: who waits here waits there, or is told `error`."""
        waiting = [attempt for queue in (self.waiters, self.upgrades) for attempt in queue if attempt.waiting]
        self.waiters.clear()
        self.upgrades.clear()
        for attempt in waiting:
            if successor is not None:
                successor.acquire(attempt)
            else:
                attempt.on_no_connection(error)

    @property
    def over(self) -> bool:
        """Closed, and nothing is under way any more."""
        return self.closed and not self.connections and not self.dialling

    def new_codec(self, alpn: bytes) -> Codec:
        """The codec for a connection of this pool."""
        return self.reach.new_codec(alpn, self._streams_each)

    def tls_error(self, engine: TLSEngine) -> ProxyError:
        """Why a handshake failed."""
        return self.reach.tls_error(self.target.endpoint, engine)


__all__ = ["Pool", "PoolSettings", "target_size"]
