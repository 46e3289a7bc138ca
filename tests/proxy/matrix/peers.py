"""Clients and origins that speak HTTP/1.1 or HTTP/2, over plain TCP or TLS, behind one set of calls.

An origin hands every request to its `handler`; a client starts calls. Both ends of a message look the same:

    call = await client.start("POST", "/x", end=False)      async def handler(got):
    await call.send(b"...")                                      body = await got.body()
    await call.end([("x-sum", "1")])                             await got.respond(200, [("a", "b")])
    status = await call.status()                                 await got.end()
    body = await call.body()

HTTP/2 is the `h2` library's; HTTP/1.1 is written out here. Waits have deadlines (`WAIT_S`), never durations.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

WAIT_S = 8.0
WEBSOCKET_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
WEBSOCKET_ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

Fields = list[tuple[str, str]]


class Gone(Exception):
    """The other side ended the message before its time. `how`: a stream error's code, or "closed"."""

    def __init__(self, how: int | str) -> None:
        super().__init__(str(how))
        self.how = how


class Message:
    """One direction of an exchange as it arrives; both roles' calls extend it."""

    def __init__(self) -> None:
        self.pseudo: dict[str, str] = {}
        self.fields: Fields | None = None
        self.interims: list[tuple[int, Fields]] = []
        self.data = bytearray()
        self.received = 0
        self.trailers: Fields | None = None
        self.ended = False
        self.gone: int | str | None = None
        self.pulse = asyncio.Event()
        self.reading = True

    def changed(self) -> None:
        self.pulse.set()

    async def until(self, condition: Callable[[], Any], *, even_gone: bool = False) -> None:
        """Wait for it; Gone where the other side ends first."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                if self.gone is not None and not even_gone:
                    raise Gone(self.gone)
                self.pulse.clear()
                await self.pulse.wait()

    async def status(self) -> int:
        """The final response's status."""
        await self.until(lambda: self.fields is not None)
        return int(self.pseudo[":status"])

    async def body(self) -> bytes:
        """All of it, to the message's end."""
        await self.until(lambda: self.ended)
        return bytes(self.data)

    async def some(self, size: int) -> bytes:
        """The next bytes of the body, taken out."""
        await self.until(lambda: len(self.data) >= size)
        data = bytes(self.data[:size])
        del self.data[:size]
        return data

    async def end_of_it(self) -> int | str:
        """How it was ended before its time."""
        await self.until(lambda: self.gone is not None, even_gone=True)
        assert self.gone is not None
        return self.gone

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields or [] if field == name]

    def one(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None


# HTTP/2.


class H2Message(Message):
    """A stream."""

    def __init__(self, peer: H2Peer, stream_id: int) -> None:
        super().__init__()
        self.peer = peer
        self.id = stream_id
        self.unread = 0

    @property
    def method(self) -> str:
        return self.pseudo[":method"]

    @property
    def path(self) -> str:
        return self.pseudo[":path"]

    @property
    def authority(self) -> str:
        return self.pseudo[":authority"]

    @property
    def is_websocket(self) -> bool:
        return self.pseudo.get(":protocol") == "websocket"

    async def respond(self, status: int, fields: Fields = [], end: bool = False) -> None:  # noqa: B006
        self.peer.conn.send_headers(self.id, [(":status", str(status)), *fields], end_stream=end)
        await self.peer.flush()

    async def accept_websocket(self) -> None:
        await self.respond(200)

    async def send(self, data: bytes) -> None:
        conn = self.peer.conn
        while data:
            await self.until(
                lambda: min(conn.local_flow_control_window(self.id), conn.outbound_flow_control_window) > 0
            )
            size = min(conn.local_flow_control_window(self.id), conn.max_outbound_frame_size, len(data))
            conn.send_data(self.id, data[:size])
            data = data[size:]
            await self.peer.flush()

    async def end(self, trailers: Fields | None = None) -> None:
        if trailers:
            self.peer.conn.send_headers(self.id, trailers, end_stream=True)
        else:
            self.peer.conn.end_stream(self.id)
        await self.peer.flush()

    async def reset(self, code: int = 8) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.peer.conn.reset_stream(self.id, code)
        await self.peer.flush()

    def stop_reading(self) -> None:
        self.reading = False

    async def read_on(self) -> None:
        self.reading = True
        size, self.unread = self.unread, 0
        if size:
            self.peer.conn.acknowledge_received_data(size, self.id)
        await self.peer.flush()


class H2Peer:
    """A connection of either role."""

    version = "h2"

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bool) -> None:
        self.reader = reader
        self.writer = writer
        config = h2.config.H2Configuration(
            client_side=client,
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.conn = h2.connection.H2Connection(config)
        self.streams: dict[int, H2Message] = {}
        self.handler: Callable[[Any], Awaitable[None]] | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.goaway: int | None = None
        self.closed = False
        self.pulse = asyncio.Event()
        self.tail = b""
        self.opened = False
        self.goaways: list[tuple[int, int]] = []  # (last stream id, code)

    async def open(self, **settings: int) -> None:
        """The preface. `settings`: by h2's names."""
        values = {getattr(h2.settings.SettingCodes, name.upper()): value for name, value in settings.items()}
        if not self.conn.config.client_side:
            values.setdefault(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL, 1)
        self.conn.local_settings = h2.settings.Settings(
            client=bool(self.conn.config.client_side), initial_values={**dict(self.conn.local_settings), **values}
        )
        self.conn.initiate_connection()
        self.conn.increment_flow_control_window((16 << 20) - 65535)  # one stream must not stand for all
        await self.flush()
        self.spawn(self._pump())

    def spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def flush(self) -> None:
        data = self.conn.data_to_send()
        if data:
            with contextlib.suppress(OSError):
                self.writer.write(data)
                await self.writer.drain()

    async def _pump(self) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError, ssl.SSLError):
            while data := await self.reader.read(65536):
                try:
                    events = self.conn.receive_data(self._without_goaway(data))
                except h2.exceptions.ProtocolError:
                    await self.flush()
                    break
                for event in events:
                    self._on_event(event)
                await self.flush()
        self.closed = True
        for message in self.streams.values():
            if message.gone is None and not message.ended:
                message.gone = "closed"
            message.changed()
        self.pulse.set()
        self.writer.close()

    def _without_goaway(self, data: bytes) -> bytes:
        """`h2` takes a GOAWAY for the end of everything, also of what is open: it doesn't get to see any."""
        self.tail += data
        kept = b""
        if not self.conn.config.client_side and not self.opened:
            if len(self.tail) < 24:
                return b""
            self.opened = True
            kept, self.tail = self.tail[:24], self.tail[24:]
        while len(self.tail) >= 9 and len(self.tail) >= (size := 9 + int.from_bytes(self.tail[:3], "big")):
            frame, self.tail = self.tail[:size], self.tail[size:]
            if frame[3] == 7:
                self.goaways.append((int.from_bytes(frame[9:13], "big"), int.from_bytes(frame[13:17], "big")))
                self.goaway = self.goaways[-1][1]
                self.pulse.set()
            else:
                kept += frame
        return kept

    def _on_event(self, event: Any) -> None:
        if isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            for message in self.streams.values():
                message.changed()
        stream_id = getattr(event, "stream_id", None)
        if not stream_id:
            return
        if isinstance(event, h2.events.RequestReceived):
            message = self.streams[stream_id] = H2Message(self, stream_id)
            self._head(message, event.headers)
            assert self.handler is not None
            self.spawn(self._handle(message))
        message = self.streams.get(stream_id)  # type: ignore[assignment]
        if message is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            self._head(message, event.headers)
        elif isinstance(event, h2.events.InformationalResponseReceived):
            fields = [tuple(field) for field in event.headers]
            message.interims.append((int(dict(fields)[":status"]), [f for f in fields if f[0][0] != ":"]))
        elif isinstance(event, h2.events.DataReceived):
            message.data += event.data
            message.received += len(event.data)
            if message.reading:
                if event.flow_controlled_length:
                    self.conn.acknowledge_received_data(event.flow_controlled_length, stream_id)
            else:
                message.unread += event.flow_controlled_length
        elif isinstance(event, h2.events.TrailersReceived):
            message.trailers = [tuple(field) for field in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            message.ended = True
        elif isinstance(event, h2.events.StreamReset):
            message.gone = int(event.error_code)
        message.changed()

    @staticmethod
    def _head(message: H2Message, headers: Any) -> None:
        fields = [tuple(field) for field in headers]
        message.pseudo = {name: value for name, value in fields if name.startswith(":")}
        message.fields = [field for field in fields if not field[0].startswith(":")]

    async def _handle(self, message: H2Message) -> None:
        assert self.handler is not None
        with contextlib.suppress(Gone, OSError, h2.exceptions.ProtocolError, TimeoutError):
            await self.handler(message)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.pulse.clear()
                await self.pulse.wait()

    async def start(
        self,
        method: str = "GET",
        path: str = "/",
        fields: Fields = [],  # noqa: B006
        *,
        end: bool = True,
        authority: str = "a.test",
        pseudo: Fields = [],  # noqa: B006
    ) -> H2Message:
        """A request's head."""
        stream_id = self.conn.get_next_available_stream_id()
        message = self.streams[stream_id] = H2Message(self, stream_id)
        head = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path), *pseudo]
        self.conn.send_headers(stream_id, [*head, *fields], end_stream=end)
        await self.flush()
        return message

    async def websocket(self, path: str = "/ws") -> H2Message:
        """An extended CONNECT."""
        fields = [("sec-websocket-version", "13")]
        return await self.start("CONNECT", path, fields, end=False, pseudo=[(":protocol", "websocket")])

    async def close(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.writer.close()


# HTTP/1.1.


class H1Message(Message):
    """A request and its response on a connection of their own turn."""

    def __init__(self, peer: H1Peer) -> None:
        super().__init__()
        self.peer = peer
        self.method = self.path = ""
        self.chunked = False
        self.upgraded = False
        self.out_chunked = False
        self.out_left: int | None = None
        self.resume = asyncio.Event()
        self.resume.set()

    @property
    def authority(self) -> str:
        return self.one("host") or ""

    @property
    def is_websocket(self) -> bool:
        return (self.one("upgrade") or "").lower() == "websocket"

    async def _write(self, data: bytes) -> None:
        try:
            self.peer.writer.write(data)
            await self.peer.writer.drain()
        except OSError:
            raise Gone(self.gone or "closed") from None

    async def respond(self, status: int, fields: Fields = [], end: bool = False) -> None:  # noqa: B006
        lines = [f"HTTP/1.1 {status} Something", *(f"{name}: {value}" for name, value in fields)]
        lengths = [value for name, value in fields if name == "content-length"]
        if status >= 200 and status not in (204, 304):
            if not lengths and end:
                lines.append("content-length: 0")
            elif not lengths and self.method != "HEAD":
                lines.append("transfer-encoding: chunked")
                self.out_chunked = True
        await self._write("\r\n".join([*lines, "\r\n"]).encode("latin-1"))

    async def accept_websocket(self) -> None:
        accept = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", WEBSOCKET_ACCEPT)]
        self.upgraded = True
        self.data.clear()
        lines = ["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in accept)]
        await self._write("\r\n".join([*lines, "\r\n"]).encode())

    async def send(self, data: bytes) -> None:
        if self.out_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        await self._write(data)

    async def end(self, trailers: Fields | None = None) -> None:
        if self.upgraded:
            self.peer.writer.write_eof()
        elif self.out_chunked:
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailers or [])
            await self._write(f"0\r\n{lines}\r\n".encode())

    async def reset(self, code: int = 8) -> None:
        """HTTP/1.1 has only the connection's end for this."""
        sock = self.peer.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.writer.transport.abort()

    def stop_reading(self) -> None:
        self.reading = False
        self.resume.clear()

    async def read_on(self) -> None:
        self.reading = True
        self.resume.set()


class H1Peer:
    """A connection of either role."""

    version = "h1"

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bool) -> None:
        self.reader = reader
        self.writer = writer
        self.client = client
        self.handler: Callable[[Any], Awaitable[None]] | None = None
        self.current: H1Message | None = None
        self.queue: asyncio.Queue[H1Message] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None
        self.closed = False
        self.pulse = asyncio.Event()

    async def open(self, **_: int) -> None:
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        message: H1Message | None = None
        try:
            while True:
                if self.client:
                    message = await self._next()
                else:
                    message = H1Message(self)
                self.current = message
                await self._head(message)
                handling = None
                if not self.client:
                    assert self.handler is not None
                    handling = asyncio.get_running_loop().create_task(self._handle(message))
                await self._body(message)
                message.ended = True
                message.changed()
                if handling is not None:
                    watch = asyncio.get_running_loop().create_task(self.reader.read(1))
                    await asyncio.wait({handling, watch}, return_when=asyncio.FIRST_COMPLETED)
                    if watch.done():
                        raise asyncio.IncompleteReadError(b"", None)
                    watch.cancel()
                    await asyncio.gather(watch, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError, ValueError):
            pass
        finally:
            self.closed = True
            self.pulse.set()
            if message is not None:
                if message.gone is None and (not message.ended or not self.client):
                    message.gone = "closed"
                message.changed()
            self.writer.close()

    async def _next(self) -> H1Message:
        """The next call of this client, unless the server closes first."""
        loop = asyncio.get_running_loop()
        call, watch = loop.create_task(self.queue.get()), loop.create_task(self.reader.read(1))
        try:
            await asyncio.wait({call, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise asyncio.IncompleteReadError(b"", None)
            return call.result()
        finally:
            call.cancel()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _handle(self, message: H1Message) -> None:
        assert self.handler is not None
        with contextlib.suppress(Gone, OSError, TimeoutError):
            await self.handler(message)

    async def _lines(self) -> list[str]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        return raw[:-4].decode("latin-1").split("\r\n")

    async def _head(self, message: H1Message) -> None:
        while True:
            lines = await self._lines()
            fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:]]
            named: Fields = [(name.lower(), value) for name, value in fields]  # type: ignore[misc]
            if not self.client:
                message.method, message.path, _ = lines[0].split(" ")
                message.fields = named
                break
            status = int(lines[0].split(" ")[1])
            if status >= 200 or status == 101:
                message.pseudo[":status"] = str(status)
                message.upgraded = status == 101
                message.fields = named
                break
            message.interims.append((status, named))
            message.changed()
        message.chunked = "chunked" in message.all("transfer-encoding")
        message.changed()

    async def _body(self, message: H1Message) -> None:
        status = message.pseudo.get(":status", "")
        length = message.one("content-length")
        if message.upgraded or (not self.client and message.is_websocket):
            await self._until_eof(message)
        elif self.client and (message.method == "HEAD" or status in ("204", "304")):
            pass
        elif message.chunked:
            await self._chunks(message)
        elif length is not None:
            left = int(length)
            while left:
                data = await self._read(message, min(left, 65536))
                left -= len(data)
        elif self.client:
            await self._until_eof(message)

    async def _read(self, message: H1Message, size: int) -> bytes:
        await message.resume.wait()
        data = await self.reader.read(size)
        if not data:
            raise asyncio.IncompleteReadError(b"", None)
        message.data += data
        message.received += len(data)
        message.changed()
        return data

    async def _chunks(self, message: H1Message) -> None:
        while True:
            line = await self.reader.readuntil(b"\r\n")
            left = int(line, 16)
            if not left:
                break
            while left:
                left -= len(await self._read(message, min(left, 65536)))
            await self.reader.readexactly(2)
        trailers: Fields = []
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            trailers.append((name.lower(), value.strip()))
        message.trailers = trailers or None

    async def _until_eof(self, message: H1Message) -> None:
        while True:
            await message.resume.wait()
            data = await self.reader.read(65536)
            if not data:
                return
            message.data += data
            message.received += len(data)
            message.changed()

    async def start(
        self,
        method: str = "GET",
        path: str = "/",
        fields: Fields = [],  # noqa: B006
        *,
        end: bool = True,
        authority: str = "a.test",
    ) -> H1Message:
        """A request's head."""
        message = H1Message(self)
        message.method = method
        self.queue.put_nowait(message)
        lines = [f"{method} {path} HTTP/1.1", f"host: {authority}", *(f"{name}: {value}" for name, value in fields)]
        names = {name for name, _ in fields}
        if not end and "content-length" not in names and "upgrade" not in names:
            lines.append("transfer-encoding: chunked")
            message.out_chunked = True
        if "te" in names:
            lines.append("connection: te")
        await message._write("\r\n".join([*lines, "\r\n"]).encode("latin-1"))
        return message

    async def websocket(self, path: str = "/ws") -> H1Message:
        fields = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", "13")]
        message = await self.start("GET", path, [*fields, ("sec-websocket-key", WEBSOCKET_KEY)], end=False)
        message.upgraded = True
        return message

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.pulse.clear()
                await self.pulse.wait()

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.writer.close()


Peer = H1Peer | H2Peer


class Origin:
    """A server of one version. `handler` gets every request; `settings` are those of new HTTP/2 connections."""

    def __init__(self, version: str, tls: ssl.SSLContext | None) -> None:
        self.version = version
        self.tls = tls
        self.peers: list[Any] = []
        self.settings: dict[str, int] = {}
        self.handler: Callable[[Any], Awaitable[None]] = answer_ok
        self.requests: list[Any] = []
        self.port = 0

    async def start(self) -> Origin:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls, limit=1 << 18)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: Any = H2Peer(reader, writer, False) if self.version == "h2" else H1Peer(reader, writer, False)
        peer.handler = self._handle
        self.peers.append(peer)
        await peer.open(**self.settings)

    async def _handle(self, got: Any) -> None:
        if got.authority == "rehearsal":  # the proxy's own
            await answer_ok(got)
            return
        self.requests.append(got)
        await self.handler(got)

    def reset(self) -> None:
        self.handler = answer_ok
        self.requests = []
        self.settings = {}

    async def close(self) -> None:
        self.server.close()
        for peer in self.peers:
            await peer.close()


async def answer_ok(got: Any) -> None:
    """200, `ok`."""
    await got.body()
    await got.respond(200, [("content-length", "2")])
    await got.send(b"ok")
    await got.end()


async def connect(version: str, port: int, tls: ssl.SSLContext | None, **settings: int) -> Any:
    """A client's connection to the proxy."""
    name = "localhost" if tls is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name, limit=1 << 18)
    peer: Any = H2Peer(reader, writer, True) if version == "h2" else H1Peer(reader, writer, True)
    await peer.open(**settings)
    return peer
