"""A listening socket for HTTP.

It owns the socket, and has its connections' upkeep done; what becomes of a client is `connection`'s, what becomes of a
request `service`'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from .connection import ServerConnection
from .prelude import HttpListener, State

if TYPE_CHECKING:
    import socket

    from proxy.http.serving import RequestService
    from proxy.loop.timers import Timers
    from proxy.loop.turn import Turn
    from proxy.observe.metrics import ListenerCounters, Snapshot

    from .base import ListenerSettings

BACKLOG: Final = 4096


class Listener(HttpListener):
    """One HTTP listener of one worker: its connections, and what it counts."""

    def __init__(
        self,
        name: str,
        settings: ListenerSettings,
        *,
        turn: Turn,
        timers: Timers,
        log: Any,
        service: RequestService,
        counters: ListenerCounters,
    ) -> None:
        super().__init__(name, settings, turn=turn, timers=timers, log=log, counters=counters)
        self.service = service
        self._servers: list[asyncio.Server] = []

    async def open(self, sock: socket.socket) -> None:
        """Begin to accept. OSError where the socket can't."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(self.accept, sock=sock, backlog=BACKLOG))

    def accept(self) -> Any:
        """The protocol factory. (Any: a compiled class can't inherit from asyncio.Protocol; it has its methods.)"""
        return ServerConnection(self)

    def stop_accepting(self) -> None:
        """Close the listening socket. Idempotent."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    def tick(self) -> None:
        """Once a second: what codecs count over time."""
        for connection in list(self.connections):
            try:
                if connection.state is State.OPEN and connection.codec.multiplexed:
                    connection.codec.tick()
                    if connection.codec.pending:
                        connection.touch()
            except Exception as error:
                self.turn.failed(connection, error)

    def export(self, snapshot: Snapshot) -> None:
        """This listener's samples."""
        counters = self.counters
        for code, count in counters.codes.items():
            snapshot.add("requests", count, listener=self.name, code=str(code))
        snapshot.add_histogram("request_duration_seconds", counters.duration, listener=self.name)
        snapshot.add("requests_in_flight", counters.in_flight, listener=self.name)
        super().export(snapshot)

    def status(self) -> dict[str, Any]:
        """For `/status`."""
        counters = self.counters
        return {
            **super().status(),
            "requests_in_flight": counters.in_flight,
            "requests": sum(counters.codes.values()),
        }
