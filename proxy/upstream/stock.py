"""The connections of a pool: those that stand ready, those in use, those on their way out.

    dialled ──> idle ──> in use ──> idle      one request at a time: the youngest is used first, so that the surplus of
                                              a burst grows old and goes
    dialled ──> shared ─────────────> gone    multiplexed: the one with the fewest requests is used first
    probe's surplus ──> parting ────> gone    its session ticket is on its way

`target.ready`, which routing reads, is what is idle or shared at any moment: only this module writes it for requests.
It keeps and chooses; it never dials, and calls nobody who waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from routing.balancer import EndpointState

    from .contract import ConnectionOwner, UpstreamConnection
    from .settings import PoolSettings

PARTING_S: Final = 2.0
SHARED_FULL: Final = 0.8
"""A multiplexed connection with this share of its streams in use counts as full."""


class Stock:
    """`connections` are all that are open, but for those that part."""

    __slots__ = ("_parting", "_stale_since", "connections", "idle", "shared", "target")

    def __init__(self, target: EndpointState) -> None:
        self.target = target
        self.idle: list[UpstreamConnection] = []
        self.shared: list[UpstreamConnection] = []  # multiplexed ones, idle or in use, that take new streams
        self.connections: set[UpstreamConnection] = set()
        self._parting: list[UpstreamConnection] = []  # probes' surplus, for `PARTING_S`
        self._stale_since = 0.0  # connections to addresses that the name no longer has wait for replacements since then

    @property
    def busy(self) -> int:
        """Connections that carry a request."""
        return len(self.connections) - len(self.idle) - sum(1 for c in self.shared if not c.load)

    # -- choosing ----------------------------------------------------------------------------------

    def take_idle(self) -> UpstreamConnection | None:
        """The youngest idle one, in use from now on."""
        if not self.idle:
            return None
        connection = self.idle.pop()
        self.target.ready -= 1
        connection.lend()
        return connection

    def least_loaded(self) -> UpstreamConnection | None:
        """The shared one with the fewest requests that takes another."""
        best: UpstreamConnection | None = None
        fewest = 0
        for connection in self.shared:
            load = connection.load
            if (best is None or load < fewest) and connection.can_open:
                if not load:
                    return connection
                best, fewest = connection, load
        return best

    def least_loaded_for_upgrade(self) -> UpstreamConnection | None:
        """The same, of those whose peer takes upgrades."""
        best: UpstreamConnection | None = None
        for connection in self.shared:
            if connection.upgrades and connection.can_open and (best is None or connection.load < best.load):
                best = connection
        return best

    def may_take_upgrades(self) -> bool:
        """Whether a shared connection's peer takes upgrades, or has not said."""
        return any(connection.upgrades is not False for connection in self.shared)

    def all_full(self) -> bool:
        """Whether every shared connection is near its limit, or takes no more."""
        return all(c.load >= c.stream_limit * SHARED_FULL or not c.can_open for c in self.shared)

    def without_requests(self) -> list[UpstreamConnection]:
        """Those that stand ready and carry nothing."""
        return [one for one in (*self.idle, *self.shared) if not one.load]

    def freshest(self) -> UpstreamConnection | None:
        """The one whose measurements are the newest."""
        return self.idle[-1] if self.idle else next(iter(self.connections), None)

    # -- keeping -----------------------------------------------------------------------------------

    def rest(self, connection: UpstreamConnection, now: float) -> None:
        """It stands ready without being shared."""
        connection.rest(now)
        self.idle.append(connection)
        self.target.ready += 1

    def share(self, connection: UpstreamConnection, now: float) -> None:
        """It stands ready for many requests."""
        if connection not in self.shared:
            self.shared.append(connection)
            self.target.ready += 1
        if not connection.load:
            connection.rest(now)

    def unready(self, connection: UpstreamConnection) -> bool:
        """It takes nothing new. True: it stood ready."""
        found = False
        for ready in (self.shared, self.idle):
            if connection in ready:
                ready.remove(connection)
                self.target.ready -= 1
                found = True
        return found

    def part(self, connection: UpstreamConnection) -> None:
        """It is one too many, and goes soon."""
        self._parting.append(connection)

    # -- letting go --------------------------------------------------------------------------------

    def sweep(self, owner: ConnectionOwner, now: float, settings: PoolSettings) -> None:
        """Let go of what is old or surplus."""
        for connection in [c for c in self._parting if now - c.idle_since > PARTING_S]:
            self._parting.remove(connection)
            connection.retire_after_flush()
        for connection in [c for c in self.idle if now > c.expires]:
            connection.retire_after_flush()
        surplus = len(self.idle) - settings.warm
        for connection in self.idle[: max(0, surplus)]:  # the oldest stand first
            if now - connection.idle_since > settings.idle_s:
                connection.retire_after_flush()
        for connection in [c for c in self.shared if now > c.expires]:
            _leave(owner, connection)
        surplus = len(self.shared) - max(1, settings.warm)
        for connection in [c for c in self.shared if not c.load and now - c.idle_since > settings.idle_s]:
            if surplus > 0:
                surplus -= 1
                connection.retire_after_flush()

    def stale_ready(self) -> int:
        """How many of those that stand ready lead to an address that the name no longer has."""
        if not self._stale_since:
            return 0
        return sum(1 for one in (*self.idle, *self.shared) if one.stale)

    def name_moved(self, hosts: set[str], now: float) -> None:
        """The endpoint's name leads to these hosts now."""
        for connection in self.connections:
            stale = bool(connection.peer) and connection.peer not in hosts
            connection.mark_stale(stale)
            if stale and not self._stale_since:
                self._stale_since = now

    def replace_stale(self, owner: ConnectionOwner, now: float, settings: PoolSettings) -> None:
        """Connections to addresses that the name no longer has go, once their replacements are ready."""
        if not self._stale_since:
            return
        stale = [one for one in (*self.idle, *self.shared) if one.stale]
        ready = len(self.idle) + len(self.shared) - len(stale)
        if ready < max(1, settings.warm) and now - self._stale_since < settings.connect_s:
            return
        for connection in stale:
            _leave(owner, connection)
        for connection in self.connections:
            if connection.stale:
                connection.age(0.0)  # it goes when its request is done
        self._stale_since = 0.0

    def close(self, owner: ConnectionOwner) -> None:
        """What is idle goes now; what is in use goes when its last request has ended."""
        for connection in (*self.idle, *self._parting):
            connection.retire_after_flush()
        self._parting.clear()
        for connection in list(self.shared):
            _leave(owner, connection)


def _leave(owner: ConnectionOwner, connection: UpstreamConnection) -> None:
    owner.withdraw(connection)
    if not connection.load:
        connection.retire_after_flush()
