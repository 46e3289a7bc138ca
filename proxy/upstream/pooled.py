"""A connection as its pool and its requests see it: what it carries, how old it is, how its path does, how it leaves.

    CONNECTING ── handshake done ──> READY <──> BUSY ──> CLOSED
                                      APART ───────────────┘

From CLOSED on nothing new starts on it: it has told its pool, and its socket goes once what is buffered has gone.
This is the half that TCP and Unix sockets have in common with what is lent in any other way (`contract`); `connection`
makes it and moves its bytes.
"""

from __future__ import annotations

from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.http.connection import Connection, ConnectionStream
from proxy.net.kernel import socket_of, tcp_info, unacknowledged_s

from .contract import UpstreamConnection

if TYPE_CHECKING:
    from proxy.errors import ProxyError as Error
    from proxy.http.message import HeadersReceived, HeadRefused
    from proxy.http.stream import StreamHandler
    from proxy.loop.turn import Turn

    from .contract import ConnectionOwner

_PING: Final = b"onetrip!"


class State(Enum):
    """Where a connection to an endpoint stands. APART: its owner uses it alone (health checks), no pool sees it."""

    CONNECTING = "connecting"
    READY = "ready"
    BUSY = "busy"
    APART = "apart"
    CLOSED = "closed"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_CONNECTING: Final = State.CONNECTING
_READY: Final = State.READY
_BUSY: Final = State.BUSY
_CLOSED: Final = State.CLOSED


class PooledConnection(Connection, UpstreamConnection):
    """The client's role, from the first request to the last. `seconds` are what its dial took: (dns, tcp, tls)."""

    __slots__ = (
        "bytes_sent",
        "expires",
        "handshake",
        "idle_since",
        "lent",
        "peer",
        "ping_since",
        "pinged_at",
        "pool",
        "request_offset",
        "seconds",
        "stale",
        "state",
        "unanswered_since",
        "uses",
    )

    def __init__(self, turn: Turn, pool: ConnectionOwner) -> None:
        super().__init__(turn)
        self.pool = pool
        self.lent = False  # the pool has lent it before its dial was done
        self.state = _CONNECTING
        self.handshake = "plain"
        self.seconds = (0.0, 0.0, 0.0)
        self.uses = 0
        self.peer = ""  # the address that it leads to; "": none (a Unix socket)
        self.stale = False  # the endpoint's name no longer has that address
        self.idle_since = 0.0
        self.expires = 0.0
        self.unanswered_since = 0.0  # all that the peer has not acknowledged was written after that; 0.0: nothing
        self.ping_since = 0.0  # a PING is out since then; 0.0: none
        self.pinged_at = monotonic()
        self.bytes_sent = 0
        self.request_offset = 0

    def __repr__(self) -> str:
        where = self.pool.target.endpoint
        return f"<ClientConnection to {where} {self.state.value} uses={self.uses} streams={len(self.streams)}>"

    # -- its path ----------------------------------------------------------------------------------

    def probe_path(self, now: float, every_s: float, dead_after_s: float) -> bool:
        """A PING now and then. False: the last one was not answered in time, the path is dead."""
        if self.ping_since:
            return now - self.ping_since < dead_after_s
        if now - self.pinged_at >= every_s:
            self.pinged_at = self.ping_since = now
            self.codec.ping(_PING)
            self.touch()
        return True

    def on_ping(self, payload: bytes) -> None:
        """The origin answered a PING: its round trip."""
        if payload == _PING and self.ping_since:
            rtt_s, self.ping_since = monotonic() - self.ping_since, 0.0
            self.pool.on_round_trip(rtt_s)

    def rtt_s(self) -> float:
        """The kernel's smoothed round-trip time, in seconds; 0.0 where it has none."""
        return tcp_info(socket_of(self.transport))[0] if self.transport is not None else 0.0

    def unacknowledged_s(self, now: float, at_least_s: float) -> float:
        """For how long the peer's kernel has not acknowledged bytes of an open request, if for `at_least_s`."""
        since = self.unanswered_since
        if not self.streams or not since or now - since < at_least_s or self.transport is None:
            return 0.0
        waiting = unacknowledged_s(socket_of(self.transport))
        if not waiting:
            self.unanswered_since = 0.0  # read, if not answered yet
            return 0.0
        return min(waiting, now - since)

    def tick(self) -> None:
        """A second has passed: what the codec counts over time."""
        self.codec.tick()
        if self.codec.pending:
            self.touch()

    # -- as its pool sees it -----------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """It takes nothing any more."""
        return self.state is _CLOSED

    @property
    def load(self) -> int:
        """How many requests are open."""
        return len(self.streams)

    @property
    def can_open(self) -> bool:
        """Another request may start now."""
        return self.codec.can_open

    @property
    def multiplexed(self) -> bool:
        """Several requests may be open at once."""
        return self.codec.multiplexed

    @property
    def stream_limit(self) -> int:
        """How many requests the peer takes at once."""
        return self.codec.stream_limit

    @property
    def upgrades(self) -> bool | None:
        """Whether the peer can be asked for an upgrade; None while that is not known."""
        return self.codec.upgrades

    def handlers(self) -> list[StreamHandler]:
        """Who waits for answers on it."""
        return [stream.handler for stream in self.streams.values() if stream.handler is not None]

    def lend(self) -> None:
        """It is for one request alone from now on."""
        self.state = _BUSY

    def rest(self, now: float) -> None:
        """It stands ready, without a request since now."""
        self.state = _READY
        self.idle_since = now

    def age(self, expires: float) -> None:
        """Its time ends then."""
        self.expires = expires

    def mark_stale(self, stale: bool) -> None:
        """Whether the endpoint's name still leads there."""
        self.stale = stale

    # -- requests ----------------------------------------------------------------------------------

    def open(self, handler: StreamHandler) -> ConnectionStream:
        """Start a request."""
        stream_id = self.codec.open_stream()
        stream = ConnectionStream(self, stream_id, handler)
        if not self.streams:
            self.unanswered_since = 0.0  # what was sent between requests (acknowledgements) is answered by nobody
        self.streams[stream_id] = stream
        self.uses += 1
        self.request_offset = self.bytes_sent
        return stream

    def stream_done(self, stream: ConnectionStream) -> None:
        """A request ended: back to the pool, or away."""
        if self.state is _BUSY or self.state is _READY:
            codec = self.codec
            if codec.closing:
                self.retire_after_flush()
            elif codec.can_open:
                self.pool.release(self)
            elif codec.multiplexed and not self.streams:
                self.retire_after_flush()  # it takes no more (GOAWAY), and its last request has ended

    def on_request(self, event: HeadersReceived | HeadRefused) -> None:
        """A response on a stream that we gave up: nobody waits for it."""

    def on_goaway(self, calm: bool) -> None:
        """The origin drains this connection: finish what is open, take nothing new."""
        if calm:
            self.pool.calm_down()
        self.pool.withdraw(self)
        if not self.streams:
            self.retire_after_flush()

    def on_limits(self) -> None:
        """The origin said how many requests it takes at once, and whether upgrades are among them."""
        if self.state is _READY or self.state is _BUSY:
            self.pool.on_limits(self)

    def on_failed(self, error: Error) -> None:
        """The codec can't go on."""
        self.fail_streams(error)
        self.retire_after_flush()

    def touch(self) -> None:
        """There is something to send. A connection that several requests share waits for the others of this moment."""
        if not self.dirty:
            self.dirty = True
            if len(self.streams) > 1:
                self.turn.add_later(self)
            else:
                self.turn.add(self)

    # -- the end -----------------------------------------------------------------------------------

    def retire_after_flush(self) -> None:
        """Leave the pool now; the socket closes once what is buffered has gone."""
        self.leave()
        self.codec.drain()
        self.touch()

    def retire(self) -> None:
        """Leave the pool and close. Bytes that the origin does not take are of no use to anybody any more."""
        self.leave()
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.abort()
        else:
            self.close()

    def give_up(self, error: Error) -> None:
        """The path is dead: end its requests now, and the socket with it."""
        self.turn.begin()
        try:
            self.fail_streams(error)
            self.abort()
        finally:
            self.turn.end()

    def fail_streams(self, error: Error) -> None:
        """Reset every open stream towards its handler; none of them may find its next try on this connection."""
        if self.state is not _CONNECTING:
            self.leave()
        super().fail_streams(error)

    def leave(self) -> None:
        """Take nothing new: the pool forgets it."""
        if self.state is not _CLOSED:
            self.state = _CLOSED
            self.pool.lost(self)
