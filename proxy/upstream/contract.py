"""What the parts of an upstream ask of each other, so that none of them knows another's insides.

    Waiter ── waits at ──> a pool (ConnectionOwner) ── lends ──> UpstreamConnection ── carries ──> the waiter's request

- A `Waiter` is one try of a request. Pools know no more of it than stands here.
- An `UpstreamConnection` is what a pool lends, whatever the transport and the HTTP version. Pools ask it what it can
  take and how its path does; they never look into a codec or a socket.
- A `PoolContext` is what all pools of an upstream share; the upstream alone changes it.

Contracts only: no state machine is here, nothing dials or sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.errors import Kind, ProxyError
from proxy.http.stream import StreamHandler
from proxy.loop.native import trait

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import RequestHead
    from proxy.http.stream import Codec
    from proxy.loop.background import Background
    from proxy.loop.reactor import Reactor
    from proxy.loop.timers import Timers
    from proxy.loop.turn import Turn
    from routing.balancer import Balancer, EndpointState
    from routing.model import Endpoint
    from tlscache.engine import TLSEngine


def replaced(endpoint: Endpoint) -> ProxyError:
    """Why a request can't have a connection to an endpoint that a reload took away: it may go anywhere else."""
    return ProxyError(Kind.REPLACED, f"{endpoint} is not in the configuration any more", unprocessed=True)


class PoolContext:
    """What the pools of one upstream share. `balancer` is another one after a reload. `on_dial_failed` is told the
    endpoint and why; `on_warm_progress`, that one of the first dials is over.
    """

    __slots__ = (
        "background",
        "balancer",
        "on_dial_failed",
        "on_warm_progress",
        "reactor",
        "timers",
        "turn",
        "upstream",
    )

    def __init__(
        self,
        upstream: str,
        balancer: Balancer,
        *,
        turn: Turn,
        timers: Timers,
        reactor: Reactor,
        background: Background,
        on_dial_failed: Callable[[EndpointState, ProxyError], None],
        on_warm_progress: Callable[[], None],
    ) -> None:
        self.upstream = upstream  # its name
        self.balancer = balancer
        self.turn = turn
        self.timers = timers
        self.reactor = reactor
        self.background = background
        self.on_dial_failed = on_dial_failed
        self.on_warm_progress = on_warm_progress


@trait
class UpstreamConnection:
    """What a pool lends. The attributes are for reading: what changes them are methods, of the connection's own kind.

    `uses` counts requests; `handshake` says how its TLS began ("plain", "full", "resumed", "early"); `seconds` are what
    its dial took: (dns, tcp, tls); `peer` is the address that it leads to ("": none); `stale`: the endpoint's name no
    longer has it; `lent`: a request was given it before its dial was done.
    """

    __slots__ = ()

    uses: int
    handshake: str
    seconds: tuple[float, float, float]
    peer: str
    stale: bool
    lent: bool
    idle_since: float
    expires: float

    def open(self, handler: StreamHandler) -> ConnectionStream:
        """Start a request; `can_open` must be true."""
        raise NotImplementedError

    # -- what it can take --------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """It takes nothing any more, and has left its pool."""
        raise NotImplementedError

    @property
    def load(self) -> int:
        """How many requests are open on it."""
        raise NotImplementedError

    @property
    def can_open(self) -> bool:
        """Another request may start now."""
        raise NotImplementedError

    @property
    def multiplexed(self) -> bool:
        """Several requests may be open at once."""
        raise NotImplementedError

    @property
    def stream_limit(self) -> int:
        """How many requests the peer takes at once."""
        raise NotImplementedError

    @property
    def upgrades(self) -> bool | None:
        """Whether the peer can be asked for an upgrade; None while that is not known."""
        raise NotImplementedError

    def handlers(self) -> list[StreamHandler]:
        """Who waits for answers on it."""
        raise NotImplementedError

    # -- what its pool does with it ----------------------------------------------------------------

    def lend(self) -> None:
        """It is for one request alone from now on."""
        raise NotImplementedError

    def rest(self, now: float) -> None:
        """It stands ready, without a request since now."""
        raise NotImplementedError

    def age(self, expires: float) -> None:
        """Its time ends then: it takes nothing after that, and goes once it is without requests."""
        raise NotImplementedError

    def mark_stale(self, stale: bool) -> None:
        """Whether the endpoint's name still leads there."""
        raise NotImplementedError

    def retire_after_flush(self) -> None:
        """Leave the pool now; the socket closes once what is buffered has gone."""
        raise NotImplementedError

    def give_up(self, error: ProxyError) -> None:
        """The path is dead: end its requests now, and the connection with them."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once."""
        raise NotImplementedError

    # -- how its path does -------------------------------------------------------------------------

    def rtt_s(self) -> float:
        """The smoothed round-trip time as the transport measures it; 0.0 where it does not."""
        raise NotImplementedError

    def unacknowledged_s(self, now: float, at_least_s: float) -> float:
        """For how long an open request's bytes have not been acknowledged, if for `at_least_s`; else 0.0."""
        raise NotImplementedError

    def probe_path(self, now: float, every_s: float, dead_after_s: float) -> bool:
        """A PING now and then. False: the last one was not answered in time, the path is dead."""
        raise NotImplementedError

    def tick(self) -> None:
        """A second has passed: allowances against floods are renewed."""
        raise NotImplementedError


class Waiter(StreamHandler):
    """One try of a request, as the pool sees it: first it waits for a connection, then it handles its stream.

    `waiting`: False, and pools pass it over; `upgrade`: not every connection takes it.
    """

    __slots__ = ()

    waiting: bool
    upgrade: bool

    def on_connection(self, connection: UpstreamConnection) -> None:
        """The pool lends a connection: send the request."""
        raise NotImplementedError

    def on_no_connection(self, error: ProxyError) -> None:
        """The pool has none and will have none for it."""
        raise NotImplementedError

    def on_drained(self, now: float) -> None:
        """Its region takes no more: go elsewhere, where that is still possible."""
        raise NotImplementedError

    def may_travel_early(self) -> bool:
        """Whether it may ride in the first flight of a new connection (0-RTT)."""
        raise NotImplementedError

    def early_head(self) -> RequestHead:
        """The head as it travels in a first flight."""
        raise NotImplementedError

    def on_early(self, connection: UpstreamConnection, stream: ConnectionStream) -> None:
        """The request is in the first flight of a new connection."""
        raise NotImplementedError

    def on_early_accepted(self) -> None:
        """The handshake is done, and the request simply under way."""
        raise NotImplementedError

    def on_early_rejected(self, connection: UpstreamConnection) -> None:
        """The origin did not look at it: send it again, now that the handshake is done."""
        raise NotImplementedError


class ConnectionOwner:
    """What a connection tells, and asks of, the pool that dialled it."""

    __slots__ = ()

    target: EndpointState
    closed: bool

    def new_codec(self, alpn: bytes) -> Codec:
        """The codec for what was agreed on."""
        raise NotImplementedError

    def tls_error(self, engine: TLSEngine) -> ProxyError:
        """Why a handshake failed."""
        raise NotImplementedError

    def early_waiter(self) -> Waiter | None:
        """The first who waits and whose request may ride in the first flight of a connection made now."""
        raise NotImplementedError

    def forget(self, waiter: Waiter) -> None:
        """It no longer waits (its `waiting` is False already)."""
        raise NotImplementedError

    def opened_early(self, connection: UpstreamConnection) -> None:
        """A dial whose first flight carried a request is done: the connection is in use already."""
        raise NotImplementedError

    def release(self, connection: UpstreamConnection) -> None:
        """A request ended, and its connection can carry another one."""
        raise NotImplementedError

    def withdraw(self, connection: UpstreamConnection) -> None:
        """Take nothing new on this connection; what is open goes on."""
        raise NotImplementedError

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone (or going)."""
        raise NotImplementedError

    def on_limits(self, connection: UpstreamConnection) -> None:
        """A shared connection can take more, or has said what it takes."""
        raise NotImplementedError

    def on_round_trip(self, seconds: float) -> None:
        """A PING was answered."""
        raise NotImplementedError

    def calm_down(self) -> None:
        """The endpoint ends connections because we ask too much of it."""
        raise NotImplementedError
