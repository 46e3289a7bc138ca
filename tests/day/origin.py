"""Origins that a scenario can slow, break, kill and bring back: HTTP/1.1 and HTTP/2 on one port, with or without TLS.

An origin answers with what it was sent (`hello PATH` where that was nothing), and with its name in `x-origin`. Paths
ask for more:

    /slow/S      the head after S seconds           /status/C    that status
    /pause/S     S seconds of silence in the body   /drip/N/S    N pieces, one every S seconds
    /held        the head once `release` is set     /bytes/N     N bytes
    /cut         a reset instead of an answer

`upgrade: websocket` becomes an echo of bytes; a gRPC call an echo of messages. What came is kept in `seen`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from typing import Any

from .ports import free_port
from .serving import Connection, Owner, Reply, Seen

_SERVING = b"\0\0\0\0\2\x08\x01"  # a grpc.health.v1 answer


class Origin(Owner):
    """One endpoint. `delay_s` and `status` hold for every request but `/health…`; `health` is the status of those."""

    def __init__(self, name: str, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.name = name
        self.tls = tls
        self.host = host
        self.port = free_port(host)
        self.delay_s = 0.0
        self.status = 200
        self.health = 200
        self.cuts = True
        self.release = asyncio.Event()
        self.seen: list[Seen] = []
        self.requests: Counter[str] = Counter()  # complete requests, by their `x-day`
        self.pings = 0
        self.opened = 0
        self.connections: set[Connection] = set()
        self.names: list[str | None] = []  # that TLS clients asked for
        self.tls_seen: list[dict[str, Any]] = []
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<Origin {self.name} {self.endpoint} connections={len(self.connections)} seen={len(self.seen)}>"

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self) -> Origin:
        """Listen, at the same port each time."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), self.host, self.port, ssl=self.tls, backlog=1024, reuse_address=True
        )
        return self

    async def stop(self, *, reset: bool = True) -> None:
        """Refuse from now on; what is open is reset (a killed process) or left to finish."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if reset:
            for connection in list(self.connections):
                connection.transport.abort()
        await asyncio.sleep(0)

    def seen_at(self, path: str) -> list[Seen]:
        """What was asked of a path."""
        return [one for one in self.seen if one.path.partition("?")[0] == path]

    def marked(self, mark: str) -> list[Seen]:
        """The tries of a request that carries `x-day: mark`."""
        return [one for one in self.seen if one.headers.get("x-day") == mark]

    async def answer(self, seen: Seen, reply: Reply) -> None:
        """Answer one request, as its path asks for."""
        mark = seen.headers.get("x-day")
        if mark is not None:
            self.requests[mark] += 1
        words = seen.path.partition("?")[0].strip("/").split("/")
        status, delay_s, body = self.status, self.delay_s, seen.body or f"hello {seen.path}".encode()
        if words[0].startswith("health"):
            status, delay_s = self.health, 0.4 if words[0] == "health-slow" else 0.0
        elif words[0] == "status":
            status = int(words[1])
        elif words[0] == "bytes":
            body = b"x" * int(words[1])
        if words[0] == "slow":
            delay_s += float(words[1])
        if delay_s:
            await asyncio.sleep(delay_s)
        if words[0] == "held":
            await self.release.wait()
        if words[0] == "cut" and self.cuts:
            reply.cut()
            return
        fields = [("x-origin", self.name), ("x-connection", str(seen.connection))]
        fields += [
            (f"x-got-{name}", seen.headers[name]) for name in ("x-day", "onetrip-attempt") if name in seen.headers
        ]
        if seen.headers.get("content-type", "").startswith("application/grpc"):
            if seen.path == "/grpc.health.v1.Health/Check":
                body = _SERVING
            reply.head(200, [("content-type", "application/grpc"), *fields], None)
            reply.data(body)
            reply.end([("grpc-status", "0")])
        elif words[0] == "pause":
            reply.head(status, fields, 10)
            reply.data(b"12345")
            await asyncio.sleep(float(words[1]))
            reply.data(b"67890")
            reply.end()
        elif words[0] == "drip":
            reply.head(status, fields, int(words[1]))
            for _ in range(int(words[1])):
                reply.data(b".")
                await asyncio.sleep(float(words[2]))
            reply.end()
        else:
            reply.head(status, fields, len(body))
            if seen.method != "HEAD":
                reply.data(body)
            reply.end()
        seen.answered = True


class EchoOrigin:
    """A TCP endpoint that sends everything back; a PROXY header (version 1) is taken off and kept in `proxied`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.host = "127.0.0.1"
        self.port = free_port()
        self.proxied: list[str] = []
        self.connections: set[asyncio.StreamWriter] = set()
        self.opened = 0
        self.requests: Counter[str] = Counter()
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self) -> EchoOrigin:
        """Listen, at the same port each time."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        return self

    async def stop(self, *, reset: bool = True) -> None:
        """Refuse from now on; what is open is reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if reset:
            for writer in list(self.connections):
                writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        self.opened += 1
        first = True
        try:
            while data := await reader.read(65536):
                if first and data.startswith(b"PROXY "):
                    line, _, data = data.partition(b"\r\n")
                    self.proxied.append(line.decode())
                first = False
                if data == b"who?\n":
                    data = self.name.encode()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.connections.discard(writer)
            writer.close()
