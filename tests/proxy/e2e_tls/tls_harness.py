"""A TLS origin and a TLS client made of our own engine, both of which show what travelled as 0-RTT."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from loadtests.lab.certificates import Issued, issue, make_ca
from tlscache.context import CertificatePair, ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.replay import ReplayRegister
from tlscache.session import Session

WAIT_S = 5.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
TOO_EARLY = b"HTTP/1.1 425 Too Early\r\ncontent-length: 5\r\n\r\nearly"


@dataclass(eq=False)
class Files:
    """A CA, and a certificate of it for localhost."""

    ca: Issued
    server: Issued
    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Files:
        ca = make_ca(directory)
        return cls(ca, issue(ca, names=["localhost", "127.0.0.1"], key="ecdsa", file_name="server"), directory)


@dataclass(eq=False)
class Request:
    """A request's head as it came, and whether it came as 0-RTT."""

    head: bytes
    early: bool
    connection: int

    def value(self, name: bytes) -> bytes | None:
        """A field's value."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip()
        return None


def answer_ok(request: Request) -> bytes:
    """200."""
    return OK


@dataclass(eq=False)
class Connection(asyncio.Protocol):
    """One connection to the origin."""

    origin: TlsOrigin
    number: int = 0
    received: bytes = b""
    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.engine = TLSEngine(self.origin.context)
        self.origin.connections.append(self)
        self.number = len(self.origin.connections)

    def data_received(self, data: bytes) -> None:
        if self.origin.refusals:
            assert self.transport is not None
            self.transport.write(self.origin.refusals.pop(0))
            self.transport.close()
            return
        engine = self.engine
        early = self.engine.early != "accepted" or engine.state is State.HANDSHAKING
        self.received += engine.receive(data)
        self.flush()
        early = early and engine.in_early_data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            request = Request(head, early, self.number)
            self.origin.requests.append(request)
            self.origin.arrived.set()
            self.send(self.origin.answer(request))

    def send(self, data: bytes) -> None:
        """Send plaintext."""
        if data:
            self.engine.send(data)
            self.flush()

    def flush(self) -> None:
        """Send what the engine has."""
        assert self.transport is not None
        if (data := self.engine.data_to_send()) and not self.transport.is_closing():
            self.transport.write(data)


@dataclass(eq=False)
class TlsOrigin:
    """An HTTP/1.1 origin. `renew` makes it forget its ticket keys; each of `refusals` answers a first flight."""

    files: Files
    early_data: bool = True
    answer: Callable[[Request], bytes] = answer_ok
    requests: list[Request] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    refusals: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> TlsOrigin:
        """Listen."""
        self.renew()
        self.server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def renew(self) -> None:
        """New ticket keys: sessions of before are not resumed."""
        pair = CertificatePair(str(self.files.server.certificate), str(self.files.server.key))
        settings = ServerSettings((pair,), alpn=(b"http/1.1",), early_data=self.early_data)
        self.context = ServerContext(settings, replay_register=ReplayRegister() if self.early_data else None)

    def close(self) -> None:
        """Stop, and cut everything."""
        self.server.close()
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()


class TlsClient:
    """A client of a TLS listener, on a blocking engine and a non-blocking socket."""

    def __init__(
        self, files: Files, port: int, *, alpn: tuple[bytes, ...] = (b"http/1.1",), session: Session | None = None
    ) -> None:
        context = ClientContext(ClientSettings(ca=str(files.ca.certificate), alpn=alpn))
        self.engine = TLSEngine(context, server_name="localhost", session=session)
        self.port = port
        self.received = b""
        self.flight = b""
        self.sock = socket.socket()
        self.sock.setblocking(False)

    async def connect(self, early: bytes = b"") -> TlsClient:
        """Connect, and send the first flight with `early` in it."""
        if early:
            assert self.engine.write_early(early)
        self.engine.start()
        self.flight = self.engine.data_to_send()
        await asyncio.get_running_loop().sock_connect(self.sock, ("127.0.0.1", self.port))
        await asyncio.get_running_loop().sock_sendall(self.sock, self.flight)
        return self

    async def read(self, *, finish: bool = True) -> bool:
        """Take what the server sends. `finish` False: keep our own answers (the Finished) back. False at the end."""
        async with asyncio.timeout(WAIT_S):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        if not data:
            return False
        self.received += self.engine.receive(data)
        if finish:
            await self.flush()
        return True

    async def flush(self) -> None:
        """Send what the engine has."""
        if data := self.engine.data_to_send():
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send(self, data: bytes) -> None:
        """Send plaintext."""
        self.engine.send(data)
        await self.flush()

    async def until(self, found: bytes, *, finish: bool = True) -> bytes:
        """Read until `found` has come."""
        while found not in self.received:
            assert await self.read(finish=finish), f"closed after {self.received!r}"
        return self.received

    async def ticket(self) -> Session:
        """Read until there is a session ticket."""
        while not self.engine.tickets:
            assert await self.read(), "closed without a ticket"
        return self.engine.tickets.pop()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def wall() -> float:
    """Seconds since 1970."""
    return datetime.now(UTC).timestamp()
