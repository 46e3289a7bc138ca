"""The contract between a downstream connection and who answers its requests.

    Downstream ── new_exchange ──> RequestHandler: an exchange, or the admin address's own

It owns what both sides must know, and neither does for the other: no sockets here, and no routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from .carrier import ConnectionStream
    from .message import Field
    from .stream import RequestHandler


class Hop:
    """What one downstream connection adds to each request: built once when it is accepted.

    `via_name` is what all of this kind are called, `loop_name` this one alone (with its workers and successors).
    """

    __slots__ = ("loop_name", "peer", "proto", "standing", "trusted", "via_name")

    def __init__(
        self, peer: bytes, proto: bytes, via_name: bytes, trusted: bool, loop_name: bytes = b"onetrip"
    ) -> None:
        self.peer = peer
        self.proto = proto
        self.via_name = via_name
        self.trusted = trusted
        self.loop_name = loop_name
        self.standing: list[Field] = [
            (b"x-forwarded-for", peer),
            (b"x-forwarded-proto", proto),
            (b"via", b"1.1 " + via_name),
            (b"cdn-loop", loop_name),
        ]


class Downstream(Connection):
    """A client's connection, as its requests' handlers see it."""

    __slots__ = ("client", "hop", "log_start")

    hop: Hop
    client: str  # its address, or "unix"
    log_start: bytes  # listener and client as they stand in each line of the access log

    def unconfirmed(self, handler: RequestHandler) -> bool:
        """Whether the client's handshake is still under way; `handler.on_confirmed` is called when it is done."""
        raise NotImplementedError


class RequestService:
    """Who answers the requests of a listener."""

    __slots__ = ()

    def new_exchange(self, connection: Downstream, stream: ConnectionStream) -> RequestHandler:
        """The handler of a request whose head has just come; it answers on `stream`."""
        raise NotImplementedError


class CallableService(RequestService):
    """One whose handlers a function makes."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[Downstream, ConnectionStream], RequestHandler]) -> None:
        self._make = make

    def new_exchange(self, connection: Downstream, stream: ConnectionStream) -> RequestHandler:
        """The handler of a request whose head has just come; it answers on `stream`."""
        return self._make(connection, stream)
