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
import base64
import hashlib
import itertools
import ssl
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httptools

from .ports import free_port

_PREFACE = b"PRI * HTTP/2.0"
_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SERVING = b"\0\0\0\0\2\x08\x01"  # a grpc.health.v1 answer
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


class Origin:
    """One endpoint. `delay_s` and `status` hold for every request but `/health…`; `health` is the status of those."""

    def __init__(self, name: str, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.name = name
        self.tls = tls
        self.host = host
        self.port = free_port(host)
        self.delay_s = 0.0
        self.status = 200
        self.health = 200
        self.release = asyncio.Event()
        self.seen: list[Seen] = []
        self.requests: Counter[str] = Counter()  # complete requests, by their `x-day`
        self.pings = 0
        self.opened = 0
        self.connections: set[_Connection] = set()
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
            lambda: _Connection(self), self.host, self.port, ssl=self.tls, backlog=1024, reuse_address=True
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

    async def answer(self, seen: Seen, reply: _Reply) -> None:
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
        if words[0] == "cut":
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


class _Reply:
    """An answer in either version."""

    def head(self, status: int, fields: list[tuple[str, str]], length: int | None) -> None:
        raise NotImplementedError

    def data(self, data: bytes) -> None:
        raise NotImplementedError

    def end(self, trailers: list[tuple[str, str]] | None = None) -> None:
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError


class _H1Reply(_Reply):
    def __init__(self, connection: _Connection) -> None:
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


class _H2Reply(_Reply):
    def __init__(self, connection: _Connection, stream: int) -> None:
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


class _Connection(asyncio.Protocol):
    """One connection of the proxy's."""

    transport: asyncio.Transport
    h2: h2.connection.H2Connection

    def __init__(self, origin: Origin) -> None:
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

    def _answer(self, seen: Seen, reply: _Reply) -> None:
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
