"""An origin that takes 0-RTT: the TLS tests' own, at a port that is known before it starts."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.proxy.e2e_tls.tls_harness import Connection, Files, TlsOrigin

from .ports import free_port


class EarlyOrigin:
    """`inner.requests` says of each request whether it came early."""

    name = "early"

    def __init__(self, files: Files) -> None:
        self.inner = TlsOrigin(files)
        self.port = free_port()
        self.connections: set[object] = set()
        self.requests: Counter[str] = Counter()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> EarlyOrigin:
        """Listen."""
        self.inner.renew()
        loop = asyncio.get_running_loop()
        self.inner.server = await loop.create_server(lambda: Connection(self.inner), "127.0.0.1", self.port)
        return self

    async def stop(self, *, reset: bool = True) -> None:
        """Stop, and cut everything."""
        self.inner.server.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection, so that the next request needs a new one."""
        for connection in self.inner.connections:
            if connection.transport is not None:
                connection.transport.close()
