"""HTTP/2 for Locust on this project's own codec: connections that many users share, each request a greenlet that waits.

Sockets, TLS and locks are the standard library's; Locust has patched them (gevent), so that waiting lets others run.
A connection has one reader greenlet, which turns bytes into events and wakes who waits for them.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock

from proxy.errors import ProxyError
from proxy.http.h2 import H2ClientCodec, H2Limits
from proxy.http.message import (
    ConnectionFailed,
    DataReceived,
    Event,
    Field,
    GoAway,
    HeadersReceived,
    RequestHead,
    ResponseHead,
    StreamReset,
    TrailersReceived,
)

CONNECT_WITHIN_S: Final = 5.0
_READ_BYTES: Final = 65536


class RequestFailed(Exception):
    """There was no complete answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    status: int
    fields: list[Field]
    body: bytes


class _Waiting:
    """A request under way, and what has come of its answer."""

    __slots__ = ("body", "head", "result")

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        self.body = bytearray()
        self.result: AsyncResult[Answer] = AsyncResult()


class H2Connection:
    """One connection to `url`'s host: https with ALPN, http with prior knowledge. Raises OSError, RequestFailed."""

    def __init__(self, url: str, *, insecure: bool = False) -> None:
        parts = urlsplit(url)
        self._authority = parts.netloc.encode()
        self._scheme = parts.scheme.encode()
        host = parts.hostname or ""
        address = (host, parts.port or (443 if parts.scheme == "https" else 80))
        self._socket: socket.socket = socket.create_connection(address, timeout=CONNECT_WITHIN_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if parts.scheme == "https":
            self._socket = _handshaken(self._socket, host, insecure)
        self._socket.settimeout(None)
        self._codec = H2ClientCodec(H2Limits())
        self._sending = RLock()
        self._waiting: dict[int, _Waiting] = {}
        self._failure = ""
        self._reader = gevent.spawn(self._read)
        self._flush()

    def __repr__(self) -> str:
        return f"<H2Connection {self._authority.decode()} {self._codec!r} {self._failure}>"

    @property
    def usable(self) -> bool:
        """Another request can start."""
        return not self._failure and self._codec.can_open

    def request(
        self, method: str, target: str, fields: list[Field], body: bytes = b"", *, timeout_s: float = 10.0
    ) -> Answer:
        """One request and its whole answer. Raises RequestFailed."""
        if not self.usable:
            raise RequestFailed(self._failure or "the connection takes no more requests")
        head = RequestHead(
            method.encode(),
            target.encode(),
            self._authority,
            fields,
            {},
            scheme=self._scheme,
            content_length=len(body),
            version=b"2",
        )
        stream_id = self._codec.open_stream()
        waiting = self._waiting[stream_id] = _Waiting()
        self._codec.send_headers(stream_id, head, not body)
        if body:
            self._codec.send_data(stream_id, body, True)
        try:
            self._flush()
            answer: Answer = waiting.result.get(timeout=timeout_s)
            return answer
        except gevent.Timeout:
            self._codec.reset(stream_id, None)
            self._flush()
            raise RequestFailed(f"no complete answer within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(stream_id, None)

    def close(self) -> None:
        """Close at once; what is under way fails."""
        self._fail("closed")
        self._reader.kill(block=False)

    def _read(self) -> None:
        codec = self._codec
        try:
            while not codec.closing:
                data = self._socket.recv(_READ_BYTES)
                for event in codec.receive(data) if data else codec.receive_eof():
                    self._take(event)
                self._flush()
                if not data:
                    break
            self._fail("the server closed the connection")
        except OSError as error:
            self._fail(f"connection lost: {error.strerror or error}")

    def _take(self, event: Event) -> None:
        if isinstance(event, ConnectionFailed):
            self._fail(str(event.error))
            return
        waiting = self._waiting.get(getattr(event, "stream_id", 0))
        if isinstance(event, DataReceived):
            self._codec.consumed(event.stream_id, event.size)
        if waiting is None or isinstance(event, GoAway):
            return
        if isinstance(event, HeadersReceived) and isinstance(event.head, ResponseHead):
            if event.head.status >= 200:
                waiting.head = event.head
            if event.end:
                self._complete(waiting)
        elif isinstance(event, DataReceived):
            waiting.body += event.data
            if event.end:
                self._complete(waiting)
        elif isinstance(event, TrailersReceived):
            self._complete(waiting)
        elif isinstance(event, StreamReset):
            waiting.result.set_exception(RequestFailed(_reason(event.error)))

    def _complete(self, waiting: _Waiting) -> None:
        head = waiting.head
        if head is None:
            waiting.result.set_exception(RequestFailed("an end without a head"))
        else:
            waiting.result.set(Answer(head.status, head.fields, bytes(waiting.body)))

    def _flush(self) -> None:
        with self._sending:  # what one greenlet writes is not to stand in the middle of another's
            data = self._codec.data_to_send()
            if data:
                try:
                    self._socket.sendall(data)
                except OSError as error:
                    self._fail(f"connection lost: {error.strerror or error}")

    def _fail(self, reason: str) -> None:
        if self._failure:
            return
        self._failure = reason
        for waiting in list(self._waiting.values()):
            if not waiting.result.ready():
                waiting.result.set_exception(RequestFailed(reason))
        self._socket.close()


class H2Pool:
    """Connections to one host that users share: a request takes the first usable one, or opens one."""

    def __init__(self, url: str, *, connections: int, insecure: bool = False) -> None:
        self._url = url
        self._insecure = insecure
        self._slots: list[H2Connection | None] = [None] * connections
        self._opening = [RLock() for _ in range(connections)]
        self._next = 0

    def __repr__(self) -> str:
        return f"<H2Pool {self._url}: {sum(one is not None for one in self._slots)} connections>"

    def connection(self) -> H2Connection:
        """The next usable connection in turn. Raises OSError, RequestFailed."""
        self._next = (self._next + 1) % len(self._slots)
        number = self._next
        with self._opening[number]:  # several users must not open the same one
            connection = self._slots[number]
            if connection is None or not connection.usable:
                connection = self._slots[number] = H2Connection(self._url, insecure=self._insecure)
            return connection

    def close(self) -> None:
        """Close all."""
        for connection in self._slots:
            if connection is not None:
                connection.close()


def _handshaken(plain: socket.socket, host: str, insecure: bool) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    secured = context.wrap_socket(plain, server_hostname=host)
    if secured.selected_alpn_protocol() != "h2":
        secured.close()
        raise RequestFailed("the server does not speak HTTP/2")
    return secured


def _reason(error: ProxyError) -> str:
    return f"{error.kind.label}: {error.details}"
