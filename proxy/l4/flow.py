"""What a relay consists of: two ends, and a flow from each to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.loop.reactor import UNWATCHED

if TYPE_CHECKING:
    import socket

    from tlscache.engine import TLSEngine

    from .pipe import Pipe


class End:
    """One side of a relay. `events`: what the reactor watches it for; the relay takes that over."""

    __slots__ = ("engine", "events", "fd", "hung_up", "read_eof", "sock", "write_eof")

    def __init__(self, sock: socket.socket, engine: TLSEngine | None, events: int = UNWATCHED) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.engine = engine
        self.events = events
        self.hung_up = False  # the kernel reports it whatever is asked for
        self.read_eof = False  # the peer will send no more
        self.write_eof = False  # we have ended our side


class Flow:
    """One direction. `waiting`: bytes are left for the target, in `held` (ciphertext, where it has TLS) or, `piped` of
    them, in `pipe`.
    """

    __slots__ = ("bulk", "bytes", "held", "pipe", "piped", "resting", "small_splices", "source", "target", "waiting")

    def __init__(self, source: End, target: End) -> None:
        self.source = source
        self.target = target
        self.bytes = 0
        self.waiting = False
        self.held: bytes | memoryview = b""
        self.bulk = False
        self.small_splices = 0  # in a row
        self.resting = False  # the source is not watched: more gathers there for a moment
        self.pipe: Pipe | None = None
        self.piped = 0
