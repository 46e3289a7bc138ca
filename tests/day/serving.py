"""An origin's connections: HTTP/1.1 and HTTP/2 told apart by the first bytes, requests collected, answers written."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httptools

_PREFACE = b"PRI * HTTP/2.0"
_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_serials = itertools.count(1)


@dataclass(slots=True)
class Seen:
    """A request as an origin got it; `body` once it is complete. `version`: "1.1" or "2"."""

    method: str
    path: str
    headers: dict[str, str]
    version: str
    connection: int
    at: float
    body: bytes = b""
    answered: bool = False


class Reply:
    """An answer in either version of HTTP."""

    def head(self, status: int, fields: list[tuple[str, str]], length: int | None) -> None:
        raise NotImplementedError

    def data(self, data: bytes) -> None:
        raise NotImplementedError

    def end(self, trailers: list[tuple[str, str]] | None = None) -> None:
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError


class _H1Reply(Reply):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def head(self, status: int, fields: list[tuple[str, str]], length: int | None) -> None:
        lines = [
            f"HTTP/1.1 {status} Said",
            f"content-length: {length}",
            *(f"{name}: {value}" for name, value in fields),
        ]
        self._write("\r\n".join((*lines, "", "")).encode())

    def data(self, data: bytes) -> None:
        self._write(data)

    def end(self, trailers: list[tuple[str, str]] | None = None) -> None:
        self._connection.next_request()

    def cut(self) -> None:
        self._connection.transport.abort()

    def _write(self, data: bytes) -> None:
        if not self._connection.transport.is_closing():
            self._connection.transport.write(data)


class _H2Reply(Reply):
    def __init__(self, connection: Connection, stream: int) -> None:
        self._connection = connection
        self._stream = stream

    def head(self, status: int, fields: list[tuple[str, str]], length: int | None) -> None:
        more = [("content-length", str(length))] if length is not None else []
        with suppress(h2.exceptions.ProtocolError):  # the proxy gave the stream up
            self._connection.h2.send_headers(self._stream, [(":status", str(status)), *more, *fields])
        self._connection.flush()

    def data(self, data: bytes) -> None:
        self._connection.queue(self._stream, data)

    def end(self, trailers: list[tuple[str, str]] | None = None) -> None:
        self._connection.queue(self._stream, b"", end=True, trailers=trailers)

    def cut(self) -> None:
        self._connection.transport.abort()


@dataclass(slots=True)
class _Outgoing:
    data: bytearray = field(default_factory=bytearray)
    ending: bool = False
    trailers: list[tuple[str, str]] | None = None


class Owner:
    """What connections ask of the origin that accepted them, and leave with it."""

    name: str
    connections: set[Connection]
    seen: list[Seen]
    tls_seen: list[dict[str, Any]]
    opened: int
    pings: int

    async def answer(self, seen: Seen, reply: Reply) -> None:
        """Answer one request."""
        raise NotImplementedError


class Connection(asyncio.Protocol):
    """One connection of the proxy's."""

    transport: asyncio.Transport
    h2: h2.connection.H2Connection

    def __init__(self, origin: Owner) -> None:
        self.origin = origin
        self.serial = next(_serials)
        self._first = b""
        self._version = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[int, Seen] = {}
        self._outgoing: dict[int, _Outgoing] = {}
        self._waiting: list[Seen] = []
        self._answering = False
        self._upgraded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.origin.connections.add(self)
        self.origin.opened += 1
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.origin.tls_seen.append(
                {
                    "alpn": ssl_object.selected_alpn_protocol(),
                    "peer": transport.get_extra_info("peercert"),
                    "resumed": ssl_object.session_reused,
                }
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self.origin.connections.discard(self)
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        if not self._version:
            data = self._first = self._first + data
            if _PREFACE.startswith(data[: len(_PREFACE)]) and len(data) < len(_PREFACE):
                return
            self._version = "2" if data.startswith(_PREFACE) else "1.1"
            self._begin()
        if self._version == "2":
            self._receive_h2(data)
        elif self._upgraded:
            self.transport.write(data)
        else:
            self._receive_h1(data)

    def _begin(self) -> None:
        if self._version == "2":
            settings = h2.config.H2Configuration(
                client_side=False, header_encoding="utf-8", validate_inbound_headers=False
            )
            self.h2 = h2.connection.H2Connection(settings)
            self.h2.initiate_connection()
            self.flush()
        else:
            self._parser = httptools.HttpRequestParser(self)

    def _new(self, method: str, path: str, headers: dict[str, str]) -> Seen:
        seen = Seen(method, path, headers, self._version, self.serial, monotonic())
        self.origin.seen.append(seen)
        return seen

    def _answer(self, seen: Seen, reply: Reply) -> None:
        task = asyncio.ensure_future(self.origin.answer(seen, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- HTTP/1.1 ----------------------------------------------------------------------------------

    def _receive_h1(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as end:
            self._upgrade(data[end.args[0] :])
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._current = self._new(self._parser.get_method().decode(), self._url.decode(), self._headers)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._headers.get("upgrade", "").lower() == "websocket":
            return
        self._current.body = self._body
        self._waiting.append(self._current)
        if not self._answering:
            self.next_request()

    def next_request(self) -> None:
        """Answer what was pipelined."""
        self._answering = bool(self._waiting)
        if self._waiting:
            self._answer(self._waiting.pop(0), _H1Reply(self))

    def _upgrade(self, rest: bytes) -> None:
        self._upgraded = True
        accept = base64.b64encode(
            hashlib.sha1(self._headers.get("sec-websocket-key", "").encode() + _WEBSOCKET).digest()
        ).decode()
        self.transport.write(
            f"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n"
            f"x-origin: {self.origin.name}\r\n\r\n".encode()
            + rest
        )

    # -- HTTP/2 ------------------------------------------------------------------------------------

    def _receive_h2(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.flush()
            self.transport.close()
            return
        for event in events:
            self._on_h2(event)
        for stream in list(self._outgoing):
            self._pump(stream)
        self.flush()

    def _on_h2(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            fields = dict(event.headers)
            seen = self._new(fields.pop(":method"), fields.pop(":path", "*"), fields)
            self._streams[event.stream_id] = seen
            if seen.headers.get("content-type", "").startswith("application/grpc") and seen.path.endswith("/Chat"):
                _H2Reply(self, event.stream_id).head(
                    200, [("content-type", "application/grpc"), ("x-origin", self.origin.name)], None
                )
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            seen = self._streams[event.stream_id]
            if seen.path.endswith("/Chat"):
                self.queue(event.stream_id, event.data)
            else:
                seen.body += event.data
        elif isinstance(event, h2.events.StreamEnded):
            seen = self._streams[event.stream_id]
            if seen.path.endswith("/Chat"):
                self.queue(event.stream_id, b"", end=True, trailers=[("grpc-status", "0")])
            else:
                self._answer(seen, _H2Reply(self, event.stream_id))
        elif isinstance(event, h2.events.StreamReset):
            self._outgoing.pop(event.stream_id, None)
        elif isinstance(event, h2.events.PingReceived):
            self.origin.pings += 1

    def queue(
        self, stream: int, data: bytes, *, end: bool = False, trailers: list[tuple[str, str]] | None = None
    ) -> None:
        """Send on a stream as its window allows."""
        outgoing = self._outgoing.setdefault(stream, _Outgoing())
        outgoing.data += data
        outgoing.ending |= end
        outgoing.trailers = trailers or outgoing.trailers
        self._pump(stream)
        self.flush()

    def _pump(self, stream: int) -> None:
        outgoing = self._outgoing[stream]
        try:
            while outgoing.data:
                size = min(
                    self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(outgoing.data)
                )
                if size <= 0:
                    return
                self.h2.send_data(stream, bytes(outgoing.data[:size]))
                del outgoing.data[:size]
            if outgoing.ending:
                del self._outgoing[stream]
                if outgoing.trailers:
                    self.h2.send_headers(stream, outgoing.trailers, end_stream=True)
                else:
                    self.h2.end_stream(stream)
        except h2.exceptions.ProtocolError:  # the proxy gave the stream up
            self._outgoing.pop(stream, None)

    def flush(self) -> None:
        """Write what the codec has."""
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())
