"""A real worker between scripted raw origins and raw clients, all on one event loop.

Nothing here understands more HTTP than it has to, and what it reads it reads strictly: an origin that gets anything
but one unambiguous request says so in `violations`. Waits have deadlines (`WAIT_S`), never durations.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from proxy.config import parse_config
from proxy.process import inheritance as listening
from proxy.process.worker import Worker
from tlscache.ticket_keys import TicketKeys

WAIT_S = 5.0
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/1\.1\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t \x21-\x7e\x80-\xff]*)\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*\Z")


class Ended(Exception):
    """The peer closed. `how`: "eof" or "reset"."""

    def __init__(self, how: str, held: bytes = b"") -> None:
        super().__init__(f"{how} after {held[:200]!r}")
        self.how = how
        self.held = held


class Message:
    """A request as an origin got it, or a response as a client got it."""

    def __init__(self, lines: list[bytes], raw: bytes) -> None:
        self.raw = raw
        self.start = lines[0]
        self.fields: list[tuple[bytes, bytes]] = []
        for line in lines[1:]:
            match = _FIELD.match(line)
            if match is None:
                raise AssertionError(f"bad field line {line!r}")
            self.fields.append((match[1].lower(), match[2]))
        self.method = self.target = b""
        self.status = 0
        self.reason = b""
        self.body = b""
        self.trailers: list[tuple[bytes, bytes]] = []
        self.interims: list[Message] = []

    def __repr__(self) -> str:
        return f"<{self.start!r} {self.fields} {self.body[:80]!r}>"

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a field."""
        return [value for field, value in self.fields if field == name]

    def one(self, name: bytes) -> bytes | None:
        """The value of a field that stands at most once."""
        values = self.all(name)
        assert len(values) < 2, f"{name!r} stands {len(values)} times in {self!r}"
        return values[0] if values else None


class Peer:
    """One raw socket, either side."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.held = b""
        self.ended = ""
        self.received = 0

    async def send(self, *parts: bytes) -> None:
        """Send all; each part in a segment of its own, as far as the kernel allows."""
        async with asyncio.timeout(WAIT_S):
            for part in parts:
                await self.loop.sock_sendall(self.sock, part)
                if len(parts) > 1:
                    await asyncio.sleep(0.0005)

    async def send_quietly(self, *parts: bytes) -> None:
        """Send; a peer that has closed is no fault."""
        with contextlib.suppress(OSError):
            await self.send(*parts)

    async def fill(self, wait: float = WAIT_S) -> None:
        """Read something into `held`, or raise Ended."""
        if self.ended:
            raise Ended(self.ended, self.held)
        try:
            async with asyncio.timeout(wait):
                data = await self.loop.sock_recv(self.sock, 65536)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            self.ended = "reset"
            raise Ended("reset", self.held) from None
        if not data:
            self.ended = "eof"
            raise Ended("eof", self.held)
        self.received += len(data)
        self.held += data

    async def until(self, mark: bytes) -> bytes:
        """What comes before `mark`, which is dropped."""
        while mark not in self.held:
            await self.fill()
        data, _, self.held = self.held.partition(mark)
        return data

    async def exactly(self, size: int) -> bytes:
        """That many bytes."""
        if size > 1 << 20:
            return await self._large(size)
        while len(self.held) < size:
            await self.fill()
        data, self.held = self.held[:size], self.held[size:]
        return data

    async def _large(self, size: int) -> bytes:
        parts = [self.held]
        left = size - len(self.held)
        self.held = b""
        while left > 0:
            await self.fill()
            parts.append(self.held)
            left -= len(self.held)
            self.held = b""
        data = b"".join(parts)
        self.held = data[size:]
        return data[:size]

    async def rest(self) -> bytes:
        """Everything until the peer ends, which `ended` then says how."""
        with contextlib.suppress(Ended):
            while True:
                await self.fill()
        data, self.held = self.held, b""
        return data

    async def silent(self, wait: float = 0.15) -> bool:
        """Whether nothing comes for a moment (the one place where a negative has to be waited for)."""
        if self.held:
            return False
        try:
            await self.fill(wait)
        except TimeoutError:
            return True
        return False

    async def chunks(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """A chunked body, strictly as RFC 9112 section 7.1 has it, and its trailers."""
        body = []
        while True:
            line = await self.until(b"\r\n")
            assert re.fullmatch(rb"[0-9a-fA-F]{1,16}", line), f"bad chunk size {line!r}"
            size = int(line, 16)
            if not size:
                break
            body.append(await self.exactly(size))
            assert await self.exactly(2) == b"\r\n", "chunk not ended by CRLF"
        trailers = []
        while line := await self.until(b"\r\n"):
            match = _FIELD.match(line)
            assert match is not None, f"bad trailer {line!r}"
            trailers.append((match[1].lower(), match[2]))
        return b"".join(body), trailers

    def half_close(self) -> None:
        """Send no more."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close in order (a reset, where bytes were left unread)."""
        self.ended = self.ended or "closed"
        self.sock.close()

    def reset(self) -> None:
        """Close by a reset."""
        self.ended = self.ended or "closed"
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Client(Peer):
    """A client of the proxy."""

    async def response(self, method: bytes = b"GET") -> Message:
        """The next final response, its interim ones in `interims`."""
        interims: list[Message] = []
        while True:
            raw = await self.until(b"\r\n\r\n")
            lines = raw.split(b"\r\n")
            message = Message(lines, raw)
            match = _STATUS_LINE.match(lines[0])
            assert match is not None, f"bad status line {lines[0]!r}"
            message.status, message.reason = int(match[1]), match[2]
            if message.status >= 200 or message.status == 101:
                break
            interims.append(message)
        message.interims = interims
        length, coding = message.one(b"content-length"), message.one(b"transfer-encoding")
        assert length is None or coding is None, "both lengths"
        if method == b"HEAD" or message.status in (101, 204, 304) or (method == b"CONNECT" and message.status < 300):
            return message
        if coding is not None:
            assert coding == b"chunked"
            message.body, message.trailers = await self.chunks()
        elif length is not None:
            message.body = await self.exactly(int(length))
        else:
            message.body = await self.rest()
            assert self.ended == "eof", "a body that ends with the connection ended by a reset"
        return message

    async def ask(self, *parts: bytes, method: bytes = b"GET") -> Message:
        """Send a request, get its response."""
        await self.send(*parts)
        return await self.response(method)

    async def get(self, target: bytes = b"/", extra: bytes = b"") -> Message:
        """GET it."""
        return await self.ask(b"GET %b HTTP/1.1\r\nhost: a.test\r\n%b\r\n" % (target, extra))

    async def closed(self) -> bytes:
        """Wait until the proxy closes; what came before."""
        data = await self.rest()
        assert self.ended, "still open"
        return data


class OriginPeer(Peer):
    """The origin's end of a connection."""

    def __init__(self, sock: socket.socket, origin: Origin) -> None:
        super().__init__(sock)
        self.origin = origin
        self.count = 0
        self.task: asyncio.Task[None] | None = None
        self.ending = "close"

    def end(self, how: str) -> None:
        """Close or reset from outside the script, which is given up (a pending read would keep the socket open)."""
        self.ending = how
        assert self.task is not None
        self.task.cancel()

    async def head(self) -> Message | None:
        """A request's head; None at the end. Anything that is not exactly one strict head is a violation."""
        try:
            raw = await self.until(b"\r\n\r\n")
        except Ended as end:
            if end.held:
                self.origin.cut.append(end.held)
            return None
        try:
            lines = raw.split(b"\r\n")
            message = Message(lines, raw)
            match = _REQUEST_LINE.match(lines[0])
            assert match is not None, f"bad request line {lines[0]!r}"
            message.method, message.target = match[1], match[2]
            length, coding = message.one(b"content-length"), message.one(b"transfer-encoding")
            assert length is None or re.fullmatch(rb"[0-9]+", length), "bad length"
            assert coding in (None, b"chunked"), "bad coding"
            assert length is None or coding is None, "both lengths"
            assert len(message.all(b"host")) == 1, "not one host"
        except AssertionError as error:
            self.origin.violations.append(f"{error} in {raw!r}")
            raise
        self.count += 1
        self.origin.requests.append(message)
        self.origin.arrived.set()
        return message

    async def body(self, request: Message) -> bytes:
        """The request's body."""
        try:
            if request.one(b"transfer-encoding") is not None:
                request.body, request.trailers = await self.chunks()
            else:
                request.body = await self.exactly(int(request.one(b"content-length") or 0))
        except AssertionError as error:
            self.origin.violations.append(f"{error} in the body of {request.raw!r}")
            raise
        return request.body

    async def gone(self) -> str:
        """Wait until the proxy ends this connection: "eof" or "reset"."""
        await self.rest()
        return self.ended


Answer = Callable[[OriginPeer, Message], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def raw(*parts: bytes, then: str = "keep", read_body: bool = True) -> Answer:
    """An answer of these bytes, part by part; then "keep", "close", "reset" or "half" (close)."""

    async def answer(peer: OriginPeer, request: Message) -> None:
        if read_body:
            await peer.body(request)
        await peer.send_quietly(*parts)
        if then == "close":
            peer.close()
        elif then == "reset":
            peer.reset()
        elif then == "half":
            peer.half_close()

    return answer


H = b"host: a.test\r\n"


def request(method: bytes = b"GET", target: bytes = b"/", extra: bytes = b"", body: bytes = b"") -> bytes:
    """A request for a.test."""
    return b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (method, target, H, extra, body)


async def echo(peer: OriginPeer, got: Message) -> None:
    """An answer with the request's body, and its method in `x-method`."""
    body = await peer.body(got)
    head = b"" if got.method == b"HEAD" else body
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-method: %b\r\n\r\n%b" % (len(body), got.method, head))


class Origin:
    """A listening socket whose connections follow `answer` (per request) or `accept` (the whole connection)."""

    def __init__(self, rcvbuf: int = 0) -> None:
        self.sock = socket.socket()
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(512)
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]
        self.answer: Answer = raw(OK)
        self.accept: Callable[[OriginPeer], Awaitable[None]] = self.serve
        self.peers: list[OriginPeer] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.accepted = 0
        self.clear()
        self._acceptor = asyncio.get_running_loop().create_task(self._accept())

    def clear(self) -> None:
        """Forget what arrived, and answer OK again."""
        self.requests: list[Message] = []
        self.violations: list[str] = []
        self.cut: list[bytes] = []
        self.arrived = asyncio.Event()
        self.answer = raw(OK)
        self.accept = self.serve

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.sock)
            self.accepted += 1
            peer = OriginPeer(sock, self)
            self.peers.append(peer)
            task = peer.task = loop.create_task(self._run(peer))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _run(self, peer: OriginPeer) -> None:
        try:
            await self.accept(peer)
        except (Ended, OSError, TimeoutError, AssertionError):
            pass
        finally:
            getattr(peer, peer.ending)()
            self.peers.remove(peer)

    async def serve(self, peer: OriginPeer) -> None:
        """Request after request, each by `answer` as it is when the request arrives."""
        while True:
            with contextlib.suppress(TimeoutError):
                while not peer.held:
                    await peer.fill(3600)
            request = await peer.head()
            if request is None:
                return
            await self.answer(peer, request)
            if peer.ended == "closed":
                return

    async def loop_readable(self, peer: OriginPeer) -> None:
        """Until the peer's socket has something to read, or was closed by the test; without a read under way."""
        while not peer.ended:
            if select.select([peer.sock], [], [], 0)[0]:
                return
            await asyncio.sleep(0.002)

    async def request(self, count: int = 1) -> Message:
        """Wait for the n-th request since `clear`."""
        await wait_for(lambda: len(self.requests) >= count)
        return self.requests[count - 1]

    async def close(self) -> None:
        """Stop."""
        self._acceptor.cancel()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(self._acceptor, *self.tasks, return_exceptions=True)
        self.sock.close()


async def wait_for(condition: Callable[[], Any], wait: float = WAIT_S) -> None:
    """Until the condition holds; AssertionError at the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    while not condition():
        assert loop.time() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.001)


class Log:
    """An event log that remembers."""

    dropped = suppressed = 0

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        def write(event: str, **fields: Any) -> None:
            self.entries.append((level, event, fields))

        return write


CONFIG = """
listeners:
  - {{name: web, address: "127.0.0.1:0", {to}{listener}}}
upstreams:
  app:
    protocol: h1
    regions: {{here: {{endpoints: [{endpoints}]}}}}
    retry: {retry}
    hedge: off
    timeouts: {{connect: 2s, response: {response}, idle: {idle}, total: {total}}}
    pool: {{warm: {warm}, max_connections: {max_connections}}}{upstream}
access_log: off
limits: {{{limits}}}
"""


def config(
    *ports: int,
    retry: str = "off",
    response: str = "5s",
    idle: str = "5s",
    total: str = "30s",
    warm: int = 1,
    max_connections: int = 64,
    limits: str = "header_timeout: 5s",
    listener: str = "",
    upstream: str = "",
    route: str = "",
) -> str:
    """A config for one listener and one upstream. `route`: what its one route has beside the upstream."""
    to = f"routes: [{{upstream: app, {route}}}]" if route else "upstream: app"
    endpoints = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    if upstream:
        upstream = "\n    " + upstream
    return CONFIG.format(**{**locals(), "listener": ", " + listener if listener else ""})


class Proxy:
    """A running worker, and what its event loop complained about."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.log = Log()
        self.complaints: list[dict[str, Any]] = []
        self.clients: list[Client] = []

    async def start(self) -> Proxy:
        """Serve. Returns once the pools are warm."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        parsed = parse_config(self.text)
        sockets = listening.open_sockets(parsed)
        sockets.pop(listening.ADMIN).close()
        self.worker = Worker(parsed, self.log, TicketKeys(contexts=4))
        self.ports = {name: sock.getsockname()[1] for name, sock in sockets.items()}
        await self.worker.start(sockets)
        async with asyncio.timeout(12):
            await self.worker.ready.wait()
        self.listener: Any = next(iter(self.worker.listeners.values()))
        self.upstream = next(iter(self.worker.upstreams.values()))
        return self

    @property
    def pool(self) -> Any:
        """The first endpoint's pool."""
        return self.upstream.pools[0]

    async def connect(self, rcvbuf: int = 0) -> Client:
        """A client connection."""
        sock = socket.socket()
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", next(iter(self.ports.values()))))
        client = Client(sock)
        self.clients.append(client)
        return client

    async def quiet(self) -> None:
        """Until no request is in progress anywhere, then assert that nothing of one is left."""
        listener, pool = self.listener, self.pool
        await wait_for(lambda: listener.counters.in_flight == 0, 3)
        await wait_for(lambda: all(not c.streams for p in self.upstream.pools for c in p.stock.connections))
        for region in self.upstream.balancer.regions:
            assert region.in_flight == 0, f"{region.name}: {region.in_flight} in flight"
        assert not any(a.waiting for a in pool.waiters)
        assert pool.stock.busy == 0
        assert pool.target.ready == len(pool.stock.idle), f"ready {pool.target.ready}, idle {len(pool.stock.idle)}"
        assert self.worker.turn.depth == 0

    def timed(self) -> list[Any]:
        """Everything that has a deadline now."""
        return [one for bucket in self.worker.timers._buckets.values() for one in bucket]

    async def end_test(self) -> None:
        """Close this test's clients; nothing may be left over or have been complained about."""
        for client in self.clients:
            client.close()
        self.clients.clear()
        try:
            await wait_for(lambda: not self.listener.connections, 3)
            await self.quiet()
            await wait_for(lambda: not self.timed(), 3)
        finally:
            self.listener.abort()  # what one test leaves must not fail the next
        complaints, self.complaints = self.complaints, []
        assert not complaints, complaints
        errors = [entry for entry in self.log.entries if entry[0] in ("error", "exception", "critical")]
        assert not errors, errors
        self.log.entries.clear()

    async def stop(self) -> None:
        """Stop serving."""
        for client in self.clients:
            client.close()
        await self.worker.close()
        await wait_for(lambda: not self.listener.connections)
