"""An endpoint that swallows connections: its queue is full, so that the kernel drops every SYN."""

from __future__ import annotations

import socket
from collections import Counter

from .ports import free_port


class Hole:
    """Never answers a connect."""

    name = "hole"

    def __init__(self) -> None:
        self.port = free_port()
        self.connections: set[object] = set()
        self.requests: Counter[str] = Counter()
        self._listening = socket.socket()
        self._waiting: list[socket.socket] = []

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> Hole:
        """Listen, and fill the queue."""
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind(("127.0.0.1", self.port))
        self._listening.listen(0)
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", self.port))
            self._waiting.append(client)
        return self

    async def stop(self, *, reset: bool = True) -> None:
        """Let go of everything."""
        for one in (self._listening, *self._waiting):
            one.close()
