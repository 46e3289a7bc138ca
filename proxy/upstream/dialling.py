"""The dialling half of a pool: what it opens, for whom, and what becomes of a dial.

- Warm connections are dialled at the start, refilled before they are missed (`sizing`), and probed by health checks.
- Who waits gets a dial at once where those under way do not serve it; one that nobody waits for stands aside for
  `RESERVE_AFTER_S`.
- A failed dial fails one waiter (all, where nothing else could ever serve them). Refilling backs off (`dials`).
- What was opened is admitted into the stock and lent like any other (`ConnectionOwner.release`).

It opens connections and never chooses one for a request: `pool` does.
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from proxy.errors import Kind, ProxyError

from .connection import ClientConnection, open_connection
from .contract import ConnectionOwner
from .dials import Dials, expiry
from .sizing import Sizing
from .stock import Stock
from .waiters import Waiters

if TYPE_CHECKING:
    from proxy.http.stream import Codec
    from proxy.observe.metrics import PoolCounters
    from routing.balancer import EndpointState
    from tlscache.engine import TLSEngine

    from .contract import PoolContext, UpstreamConnection, Waiter
    from .reach import Reach
    from .settings import PoolSettings

HANG_UPS_MAX: Final = 3
"""Fresh connections in a row that the endpoint closes before their first request, until waiting requests are told."""
RESERVE_AFTER_S: Final = 0.005
"""A dial that nobody waits for lets requests go first: over the same path it would need the processor for its handshake
just when their answers arrive.
"""


class Dialling(ConnectionOwner):
    """What a pool holds, and how it gets more."""

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
        self.stock = Stock(target)
        self.dials = Dials(context, target, counters)
        self.aside = 0  # of the dials under way: they have not begun
        self.waiters = Waiters()
        self.sizing = Sizing(settings, monotonic())
        self.ping_every_s = settings.keepalive_s
        self.closed = False
        self.carried_in_vain = 0  # first flights that carried a request, and whose handshake failed
        self.streams_each = settings.streams
        self.swept = monotonic()

    @property
    def dials_begun(self) -> int:
        """What one who waits for a connection can count on."""
        return self.dials.under_way - self.aside

    @property
    def room(self) -> int:
        """How many more connections there may be."""
        return self.settings.max_connections - len(self.stock.connections) - self.dials.under_way

    def lend(self, waiter: Waiter, connection: UpstreamConnection) -> None:
        """A connection for one who waited."""
        if connection.uses:
            self.counters.reused += 1
        waiter.on_connection(connection)

    # -- dialling ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Dial the warm connections; `dials.first_round` falls to zero when each has succeeded or failed."""
        for _ in range(min(self.settings.warm, self.settings.max_connections)):
            self.dials.first_round += 1
            self.dial(first=True)

    def refill(self) -> None:
        """Dial what the target size asks for and is not under way yet (`sizing`)."""
        if self.closed or monotonic() < self.dials.again_at:
            return
        for _ in range(self.sizing.refills(self.stock, self.dials.under_way)):
            self.dial(after_s=RESERVE_AFTER_S)

    def dial_for_waiters(self) -> None:
        """As many as those who wait need, beyond what is under way."""
        wanted = math.ceil(self.waiters.count() / self.streams_each)
        for _ in range(min(self.room, wanted - self.dials_begun)):
            self.dial()

    def dial(self, first: bool = False, resume: bool = True, after_s: float = 0.0) -> None:
        """Begin one dial. `first`: of the first round; `resume`: with a session; `after_s`: so many seconds aside."""
        self.dials.under_way += 1
        if after_s:
            self.aside += 1
        self.context.background.start(self._run_dial(first, resume, after_s), f"dial {self.target.endpoint}")

    async def _run_dial(self, first: bool, resume: bool, after_s: float) -> None:
        connection: UpstreamConnection | None = None
        try:
            if after_s:
                try:
                    await asyncio.sleep(after_s)
                finally:
                    self.aside -= 1
            async with asyncio.timeout(self.settings.connect_s):
                connection = await self.connect(resume=resume, carry=True)
                if connection.lent:
                    return
                if connection.closed:
                    connection = None
                    text = f"{self.target.endpoint} closed the connection at once"
                    raise ProxyError(Kind.TERMINATED, text, unprocessed=True)
        except ProxyError as error:
            self.dials.failed(error)
        except TimeoutError:
            text = f"{self.target.endpoint}: no connection within {self.settings.connect_s:g} s"
            self.dials.failed(ProxyError(Kind.CONNECT_TIMEOUT, text, unprocessed=True))
        finally:
            self.dials.ended(first)
            if first:
                self.context.on_warm_progress()
        turn = self.context.turn
        turn.begin()
        try:
            if connection is not None:
                if self._admit(connection):
                    self.release(connection)
            elif not self.closed:
                self._fail_waiters()
        finally:
            turn.end()

    async def _run_dial_apart(self, waiter: Waiter) -> None:
        """Dial for one waiter alone, in the version that takes upgrades."""
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
            self.dials.ended(False)
        turn = self.context.turn
        turn.begin()
        try:
            if connection is None or not self._admit(connection):
                if waiter.waiting:
                    waiter.on_no_connection(error)
            elif waiter.waiting and not connection.multiplexed:
                connection.lend()
                self.lend(waiter, connection)
            else:
                if waiter.waiting:
                    text = f"{endpoint} takes no upgrades"
                    waiter.on_no_connection(ProxyError(Kind.UPGRADE_FAILED, text, unprocessed=True))
                self.release(connection)
        finally:
            turn.end()

    async def connect(self, *, resume: bool = True, apart: bool = False, carry: bool = False) -> ClientConnection:
        """A new connection, handshaken, not part of the pool. `apart`: in the version that takes upgrades; `carry`: its
        first flight may carry a request that waits (it is the pool's and `lent` then). Raises ProxyError; the caller
        bounds the time.
        """
        started = monotonic()
        connection = await open_connection(self, self.context, self.reach, resume=resume, apart=apart, carry=carry)
        self.sizing.dialled(monotonic() - started)
        return connection

    async def probe(self) -> float | None:
        """Dial once; what it opens stays warm. Returns one round trip of it, in seconds; None where `max_connections`
        leaves no room (all of them carry requests, which tell more than a probe). Raises ProxyError.
        """
        spare = None
        if self.room <= 0:
            spare = next(iter(self.stock.without_requests()), None)
            if spare is None:
                return None
        self.dials.under_way += 1
        self.aside += 1  # nobody who waits counts on it
        try:
            if spare is not None:
                spare.retire_after_flush()
            connection = await self.connect()
        finally:
            self.dials.ended(False)
            self.aside -= 1
        self._adopt_probe(connection)
        return max(connection.seconds[1], 1e-6)

    def _adopt_probe(self, connection: UpstreamConnection) -> None:
        """A probe's connection is as good as any, and one too many where the warm ones are shared."""
        stock = self.stock
        self.context.turn.begin()
        try:
            if connection.multiplexed and len(stock.shared) >= max(1, self.settings.warm):
                stock.part(connection)  # it has taken a session ticket: the one it gives back is on its way
            elif self._admit(connection):
                self.release(connection)
                if len(stock.idle) > max(1, self.settings.warm) and connection in stock.idle:
                    stock.idle[0].retire_after_flush()  # the oldest: probes replace, they do not pile up
        finally:
            self.context.turn.end()

    def opened_early(self, connection: UpstreamConnection) -> None:
        """A dial whose first flight carried a request is done: the connection is in use already."""
        self._count_dial(connection)
        self.stock.connections.add(connection)
        if connection.multiplexed:
            self.release(connection)

    def _admit(self, connection: UpstreamConnection) -> bool:
        """Make a dialled connection one of the pool's. False: it is gone already, or not wanted any more."""
        self._count_dial(connection)
        if connection.closed or self.closed:
            connection.abort()
            return False
        self.stock.connections.add(connection)
        return True

    def _count_dial(self, connection: UpstreamConnection) -> None:
        self.dials.opened(connection.handshake)
        self.counters.observe_phases(connection.seconds)
        connection.age(expiry(monotonic(), self.settings.max_age_s))
        self.dials.remember(self.reach.addresses(self.target.endpoint))

    def _fail_waiters(self) -> None:
        error = self.dials.last_error
        assert error is not None
        if self.carried_in_vain:  # its request waits again: without early data the handshake may well succeed
            self.carried_in_vain -= 1
            self.dial_for_waiters()
            return
        if error.kind is Kind.TERMINATED and self.dials.failures < HANG_UPS_MAX:
            self.dial_for_waiters()  # it was there, and went: perhaps a restart
            return
        alone = not self.stock.connections and not self.dials.under_way
        if not alone and not error.blames_endpoint:
            return  # no more connections for now: those that wait get one that is given back
        while (waiter := self.waiters.next()) is not None:
            waiter.on_no_connection(error)
            if not alone:
                return

    def top_up_tickets(self, now: float) -> None:
        """Where a restart would lack tickets, one more dial brings some; what it opens is warm surplus."""
        warm = self.settings.warm
        if self.closed or self.dials.under_way or len(self.stock.idle) + len(self.stock.shared) < max(1, warm):
            return
        if self.room <= 0:
            return
        sessions = self.reach.sessions_of(self.target.endpoint)
        if sessions is not None and sessions.lacks_tickets(warm, now):
            self.dial(resume=False, after_s=RESERVE_AFTER_S)

    # -- what a connection asks while it is made ----------------------------------------------------

    def new_codec(self, alpn: bytes) -> Codec:
        """The codec for a connection of this pool."""
        return self.reach.new_codec(alpn, self.streams_each)

    def tls_error(self, engine: TLSEngine) -> ProxyError:
        """Why a handshake failed."""
        return self.reach.tls_error(self.target.endpoint, engine)

    def early_waiter(self) -> Waiter | None:
        """The first who waits and whose request may ride in the first flight of a connection made now."""
        return self.waiters.early()

    def forget(self, waiter: Waiter) -> None:
        """It no longer waits (its `waiting` is False already)."""
        self.waiters.forget()
