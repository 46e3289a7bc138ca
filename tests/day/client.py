"""Clients that know no more HTTP than they need, and read that strictly."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.exceptions


class ClosedWhileIdle(Exception):
    """The connection was closed, and nothing of this request was answered: it may be repeated if its method may be."""


@dataclass(slots=True)
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes


class H1Client:
    """One HTTP/1.1 connection. `used`: it has answered; `ended`: the server closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.used = False
        self.ended = False

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> H1Client:
        """A new connection."""
        name = "localhost" if tls is not None else None
        return cls(*await asyncio.open_connection(host, port, ssl=tls, server_hostname=name))

    async def request(
        self, method: str, path: str, fields: dict[str, str] | None = None, body: bytes = b"", *, last: bool = False
    ) -> Answer:
        """A request and its answer. ClosedWhileIdle: the connection ended before a byte of it came."""
        await self.send(method, path, fields, body, last=last)
        return await self.answer(method)

    async def send(
        self, method: str, path: str, fields: dict[str, str] | None = None, body: bytes = b"", *, last: bool = False
    ) -> None:
        """The request alone."""
        given = {"host": "town.test", **(fields or {})}
        if body or method in ("POST", "PUT"):
            given["content-length"] = str(len(body))
        if last:
            given["connection"] = "close"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)
        with suppress(ConnectionError):  # an answer may have come all the same
            await self.writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer."""
        while True:
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                self.ended = True
                if error.partial:
                    raise
                raise ClosedWhileIdle("closed without an answer") from None
            except ConnectionError as error:
                self.ended = True
                raise ClosedWhileIdle(repr(error)) from None
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            status = int(first.split()[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if status >= 200 or status == 101:
                break
        body = b""
        if "content-length" in headers and method != "HEAD":
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
        self.used = True
        self.ended = self.ended or "close" in headers.get("connection", "")
        return Answer(status, headers, body)

    def close(self) -> None:
        """Let go of it."""
        self.writer.close()


async def fetch(
    port: int,
    path: str = "/",
    method: str = "GET",
    fields: dict[str, str] | None = None,
    body: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request over a connection of its own."""
    client = await H1Client.connect(port, tls)
    try:
        async with asyncio.timeout(15):
            return await client.request(method, path, fields, body, last=True)
    finally:
        client.close()


class _Stream:
    def __init__(self, body: bytes) -> None:
        self.left = body
        self.headers: dict[str, str] = {}
        self.body = b""
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class H2Client:
    """One HTTP/2 connection, shared by many requests. `tls` offers h2 alone; without it, by prior knowledge."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.tls = tls
        self.used = False
        self.ended = False
        self._streams: dict[int, _Stream] = {}
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))

    async def request(self, method: str, path: str, fields: dict[str, str], body: bytes = b"") -> Answer:
        """A request and its answer. ClosedWhileIdle: the server did not take it, or its connection had ended."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
        await asyncio.shield(self._opening)
        if self.ended:
            raise ClosedWhileIdle("ended meanwhile")
        stream = _Stream(body)
        number = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", "town.test"), (":path", path), *fields.items()]
        if body or method in ("POST", "PUT"):
            head.append(("content-length", str(len(body))))
        self.h2.send_headers(number, head, end_stream=not body)
        self._streams[number] = stream
        self._pump()
        return await stream.done

    def close(self) -> None:
        """Let go of it."""
        self.ended = True
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()

    async def _open(self) -> None:
        name = "localhost" if self.tls is not None else None
        try:
            reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.tls, server_hostname=name
            )
        except OSError:
            self.ended = True
            raise
        self.h2.initiate_connection()
        self._reading = asyncio.ensure_future(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                try:
                    events = self.h2.receive_data(data)
                except h2.exceptions.ProtocolError as error:
                    self._fail(ValueError(f"HTTP/2: {error}"), 0)
                    break
                for event in events:
                    self._on(event)
                self._pump()
        self.ended = True
        self._fail(ClosedWhileIdle("the connection ended"), 0)
        if self._writer is not None:
            self._writer.close()

    def _on(self, event: h2.events.Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", 0) or 0)
        if isinstance(event, h2.events.ConnectionTerminated):
            self.ended = True
            self.h2.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN  # what was taken is still answered
            self._fail(ClosedWhileIdle("refused by GOAWAY"), event.last_stream_id or 0)
        elif stream is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            self.used = True
            stream.headers = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            stream.body += event.data
        elif isinstance(event, h2.events.StreamEnded):
            del self._streams[event.stream_id]
            if not stream.done.done():
                stream.done.set_result(Answer(int(stream.headers.pop(":status")), stream.headers, stream.body))
        elif isinstance(event, h2.events.StreamReset):
            del self._streams[event.stream_id]
            refused = event.error_code == 7 and not stream.headers
            self._end(stream, ClosedWhileIdle("refused") if refused else ValueError(f"reset: {event.error_code}"))

    def _fail(self, error: Exception, above: int) -> None:
        for number, stream in list(self._streams.items()):
            if number > above:
                del self._streams[number]
                begun = stream.headers and not isinstance(error, ValueError)
                self._end(stream, ValueError("cut within the answer") if begun else error)

    def _end(self, stream: _Stream, error: Exception) -> None:
        if not stream.done.done():
            stream.done.set_exception(error)

    def _pump(self) -> None:
        for number, stream in list(self._streams.items()):
            with suppress(h2.exceptions.ProtocolError):
                while stream.left:
                    size = min(
                        self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(stream.left)
                    )
                    if size <= 0:
                        break
                    piece, stream.left = stream.left[:size], stream.left[size:]
                    self.h2.send_data(number, piece, end_stream=not stream.left)
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(self.h2.data_to_send())
