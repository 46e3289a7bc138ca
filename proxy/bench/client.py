"""One client connection, and HTTP/1.1 on it: callbacks from the event loop, no task and no future per request.

A connection's life: connecting (by its pool) → handshaking (with TLS) → ready → closed. Its pool hands it requests
while it is ready, and is told what became of each one, exactly once: `answered`, or `failed`. A request's instants are
taken when the loop hands over the bytes, before they are parsed, so that parsing is not counted as the server's time.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from enum import Enum
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from proxy.errors import Kind, ProxyError

from .request import Carrier

if TYPE_CHECKING:
    from .request import Request
    from .tls import ClientTls


class ConnectionOwner(Protocol):
    """Who is told what happens on a connection: its pool."""

    def opened(self, connection: Connection) -> None:
        """The connection is ready for requests."""

    def answered(self, connection: Connection, request: Request, now: float) -> None:
        """A complete answer arrived at `now`; `request.status` holds its status. The connection may be given more."""

    def failed(self, connection: Connection, request: Request, error: ProxyError, now: float) -> None:
        """The request will get no answer."""

    def freed(self, connection: Connection, now: float) -> None:
        """The connection gave up a request, and may be given another."""

    def closed(self, connection: Connection, error: ProxyError | None) -> None:
        """The connection is gone (and its requests have failed before). `error`: why, where it never became ready."""

    def received_bytes(self, size: int) -> None:
        """So many bytes of HTTP arrived."""


class Phase(Enum):
    """Of a connection; see the module."""

    HANDSHAKING = "handshaking"
    READY = "ready"
    CLOSED = "closed"


class Connection(Carrier, asyncio.Protocol):
    """What every version shares: the transport, TLS, the phases. A subclass speaks HTTP."""

    alpn = ""

    def __init__(self, owner: ConnectionOwner, tls: ClientTls | None) -> None:
        self.owner = owner
        self.tls = tls
        self.phase = Phase.HANDSHAKING
        self.transport: asyncio.Transport | None = None
        self.connected_at = 0.0
        self.ready_at = 0.0
        self.served = 0
        self.draining = False
        self.idle = False  # kept by the owner: it stands in its list of idle ones

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.phase.value}, {self.served} served, {self.active} active>"

    # What a subclass provides.

    @property
    def active(self) -> int:
        """Requests under way."""
        raise NotImplementedError

    def start(self) -> None:
        """The connection has just become ready: send what opens the protocol."""

    def send(self, request: Request, now: float) -> None:
        """Send a request; the caller has seen that there is room for it."""
        raise NotImplementedError

    def has_room(self, streams: int) -> bool:
        """Another request may be sent now. `streams`: how many the plan allows."""
        raise NotImplementedError

    def received(self, data: bytes, now: float) -> None:
        """Plaintext arrived."""
        raise NotImplementedError

    def received_eof(self, now: float) -> None:
        """No more plaintext will arrive. Requests still active afterwards fail."""

    def fail_all(self, error: ProxyError, now: float) -> None:
        """Fail every active request."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, or be ready."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses of it
        if self.tls is None:
            self._become_ready(time.monotonic())
            return
        self.transport.write(self.tls.start())

    def data_received(self, data: bytes) -> None:
        """Bytes from the socket."""
        now = time.monotonic()
        tls = self.tls
        if tls is not None:
            try:
                data, reply = tls.receive(data)
            except ssl.SSLError as error:
                self._tls_failed(tls, error, now)
                return
            if reply and self.transport is not None:
                self.transport.write(reply)
            if tls.established and self.phase is Phase.HANDSHAKING:
                self._handshaken(tls, now)
        if data and self.phase is Phase.READY:
            self.owner.received_bytes(len(data))
            self.received(data, now)
        if tls is not None and tls.closed and self.phase is Phase.READY:
            self.eof_received()

    def eof_received(self) -> bool:
        """The peer closed."""
        now = time.monotonic()
        if self.phase is Phase.READY:
            self.received_eof(now)
        self.close(self._lost(None), now)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.close(self._lost(exc), time.monotonic())

    # For the owner and the subclass.

    def write(self, data: bytes) -> None:
        """Plaintext for the peer."""
        if self.transport is None or self.phase is Phase.CLOSED:
            return
        self.transport.write(data if self.tls is None else self.tls.encrypt(data))

    def close(self, error: ProxyError | None = None, now: float = 0.0) -> None:
        """Close; fail what is active with `error`. Idempotent."""
        if self.phase is Phase.CLOSED:
            return
        was_ready = self.phase is Phase.READY
        self.phase = Phase.CLOSED
        if self.transport is not None:
            self.transport.abort() if error is not None else self.transport.close()
        if error is not None:
            self.fail_all(error, now)
        self.owner.closed(self, None if was_ready else error)

    def _handshaken(self, tls: ClientTls, now: float) -> None:
        if tls.alpn != self.alpn and self.alpn == "h2":
            chosen = f"it chose {tls.alpn}" if tls.alpn else "it chose nothing"
            self.close(ProxyError(Kind.BAD_RESPONSE, f"h2 was offered by ALPN and {chosen}: use --h1"), now)
            return
        self._become_ready(now)

    def _become_ready(self, now: float) -> None:
        self.phase = Phase.READY
        self.ready_at = now
        self.start()
        self.owner.opened(self)

    def _tls_failed(self, tls: ClientTls, error: ssl.SSLError, now: float) -> None:
        if self.transport is not None:
            self.transport.write(tls.pending())
        if isinstance(error, ssl.SSLCertVerificationError):
            fault = ProxyError(Kind.CERTIFICATE, f"its certificate was refused: {error.verify_message}")
        else:
            fault = ProxyError(Kind.TLS, f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}")
        self.close(fault, now)

    def _lost(self, exc: Exception | None) -> ProxyError:
        if self.phase is Phase.HANDSHAKING:
            return ProxyError(Kind.TLS, "the connection was closed during the TLS handshake")
        reason = f": {exc.strerror or exc}" if isinstance(exc, OSError) else ""
        return ProxyError(Kind.TERMINATED, f"the connection was closed before the answer was complete{reason}")


class H1Connection(Connection):
    """HTTP/1.1 with keep-alive, one request at a time (no pipelining)."""

    alpn = "http/1.1"

    def __init__(self, owner: ConnectionOwner, tls: ClientTls | None, request_bytes: bytes, *, head_only: bool) -> None:
        super().__init__(owner, tls)
        self._request_bytes = request_bytes
        self._head_only = head_only
        self._request: Request | None = None
        self._now = 0.0
        self._headers_complete = False
        self._fresh_parser = False
        self._head = b""
        self._parser = httptools.HttpResponseParser(self)

    @property
    def active(self) -> int:
        """One while a request is under way."""
        return 0 if self._request is None else 1

    def has_room(self, streams: int) -> bool:
        """Whether it is idle."""
        return self._request is None and self.phase is Phase.READY and not self.draining

    def send(self, request: Request, now: float) -> None:
        """Write the request in one piece."""
        self._request = request
        self._headers_complete = False
        self._head = b""
        request.connection = self
        request.sent = now
        self.write(self._request_bytes)

    def received(self, data: bytes, now: float) -> None:
        """Parse. An answer that nobody asked for closes the connection."""
        request = self._request
        if request is None:
            self.close(None, now)
            return
        if not request.first_byte:
            request.first_byte = now
        if not self._headers_complete:
            self._head = self._head + data if self._head else data
        self._now = now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close(ProxyError(Kind.BAD_RESPONSE, "the server switched protocols without being asked to"), now)
        except httptools.HttpParserError as error:
            self.close(ProxyError(Kind.BAD_RESPONSE, f"not an HTTP/1.1 response: {error}"), now)
        if self._fresh_parser:
            self._fresh_parser = False
            self._parser = httptools.HttpResponseParser(self)

    def received_eof(self, now: float) -> None:
        """A body without a length ends with the connection (RFC 9112 section 6.3); any other is incomplete."""
        if self._request is not None and self._headers_complete and self._ends_with_connection():
            self.draining = True
            self._complete(now)

    def fail_all(self, error: ProxyError, now: float) -> None:
        """Fail the request under way, if there is one."""
        request, self._request = self._request, None
        if request is not None:
            self.owner.failed(self, request, error, now)

    def abandon(self, request: Request, now: float) -> None:
        """HTTP/1.1 has no way to cancel but closing."""
        if self._request is request:
            self._request = None
            self.draining = True
            if self.transport is not None:
                self.transport.abort()
            self.close()

    # httptools' callbacks; the ones left out cost nothing.

    def on_headers_complete(self) -> None:
        """A head has ended (perhaps an interim one's)."""
        if self._parser.get_status_code() >= 200:
            self._headers_complete = True
            if (
                self._head_only
            ):  # the parser can't be told that no body follows: leave it at this, take a new one for the next
                self._fresh_parser = True
                self.draining = not self._parser.should_keep_alive() and self._has_close()
                self._complete(self._now)

    def on_message_complete(self) -> None:
        """A message has ended."""
        if self._parser.get_status_code() < 200 or self._request is None:
            return
        if not self._parser.should_keep_alive():
            self.draining = True
        self._complete(self._now)

    def _complete(self, now: float) -> None:
        request, self._request = self._request, None
        assert request is not None
        self.served += 1
        request.status = self._parser.get_status_code()
        self.owner.answered(self, request, now)

    def _ends_with_connection(self) -> bool:
        names = self._field_names()
        return b"content-length" not in names and b"transfer-encoding" not in names

    def _field_names(self) -> set[bytes]:
        lines = self._head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        return {line.partition(b":")[0].strip().lower() for line in lines}

    def _has_close(self) -> bool:
        return b"connection" in self._field_names() or self._head.startswith(b"HTTP/1.0")
