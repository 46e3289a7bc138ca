"""Bytes both ways between two sockets, either of them perhaps through TLS, with half-close and bounded memory.

Each direction is a `Flow`: read from one end, write to the other. A flow holds at most one read's worth of bytes;
while it holds any, it does not read. Between two plain sockets a flow that carries much moves to splice(2): bytes
then go from socket to socket through a pipe without passing this process.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tlscache.engine import State as TLSState

from .reactor import BROKEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tlscache.engine import TLSEngine

    from .reactor import Reactor

BUFFER_BYTES: Final = 256 * 1024
SPLICE_FROM_BYTES: Final = 512 * 1024
PIPE_BYTES: Final = 1024 * 1024
PIPES_KEPT: Final = 64
ROUNDS_MAX: Final = 4
"""Reads of one flow before the other connections have their turn."""
_F_SETPIPE_SZ: Final = 1031
_SPLICE_FLAGS: Final = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK

_buffer = bytearray(BUFFER_BYTES)
_view = memoryview(_buffer)
_pipes: list[tuple[int, int]] = []


def _take_pipe() -> tuple[int, int] | None:
    if _pipes:
        return _pipes.pop()
    try:
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    import fcntl  # noqa: PLC0415

    with suppress(OSError):  # beyond the user's share of pipe memory, the default size has to do
        fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, PIPE_BYTES)
    return pipe


def _give_pipe(pipe: tuple[int, int], empty: bool) -> None:
    if empty and len(_pipes) < PIPES_KEPT:
        _pipes.append(pipe)
    else:
        os.close(pipe[0])
        os.close(pipe[1])


class End:
    """One side of a relay."""

    __slots__ = ("engine", "events", "fd", "read_eof", "sock", "write_eof")

    def __init__(self, sock: socket.socket, engine: TLSEngine | None) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.engine = engine
        self.events = -1
        self.read_eof = False  # the peer will send no more
        self.write_eof = False  # we have shut down our side


class Flow:
    """One direction. `held` are bytes for `target` that it did not take yet (ciphertext, where it has TLS)."""

    __slots__ = ("bytes", "held", "pipe", "piped", "source", "target")

    def __init__(self, source: End, target: End) -> None:
        self.source = source
        self.target = target
        self.held: bytes | memoryview = b""
        self.bytes = 0
        self.pipe: tuple[int, int] | None = None
        self.piped = 0

    @property
    def waiting(self) -> bool:
        """Something is left for the target."""
        return bool(self.held) or self.piped > 0


class Relay:
    """Two ends, two flows. `on_closed(error)` is called once; the sockets are closed by then."""

    __slots__ = ("_closed", "_on_closed", "_reactor", "active", "client", "down", "server", "up")

    def __init__(self, reactor: Reactor, client: End, server: End, on_closed: Callable[[str], None]) -> None:
        self._reactor = reactor
        self.client = client
        self.server = server
        self.up = Flow(client, server)
        self.down = Flow(server, client)
        self._on_closed = on_closed
        self._closed = False
        self.active = True  # something moved since the owner last looked

    def start(self, to_server: bytes, to_client: bytes) -> None:
        """Begin with bytes that were read before the two ends were joined."""
        if to_server:
            self._put(self.up, to_server)
        if to_client and not self._closed:
            self._put(self.down, to_client)
        for end, flow in ((self.client, self.up), (self.server, self.down)):
            if end.engine is not None and end.engine.eof_received and not self._closed:
                end.read_eof = True
                self._pass_eof(flow)
        self._adjust()

    # -- events ------------------------------------------------------------------------------------

    def on_event(self, fd: int, events: int) -> None:
        """One of the two sockets is ready for something."""
        end = self.client if fd == self.client.fd else self.server
        incoming, outgoing = (self.up, self.down) if end is self.client else (self.down, self.up)
        self.active = True
        try:
            if events & (select.EPOLLOUT | BROKEN) and outgoing.waiting:
                self._drain(outgoing)
            if not self._closed and events & (select.EPOLLIN | select.EPOLLRDHUP | BROKEN) and not incoming.waiting:
                if not end.read_eof:
                    self._pump(incoming)
                elif events & select.EPOLLERR or (events & BROKEN and end.write_eof):
                    self._fail("connection reset")
        except OSError as error:
            self._fail(error.strerror or str(error))
        if not self._closed:
            self._adjust()

    def _pump(self, flow: Flow) -> None:
        source, target = flow.source, flow.target
        if source.engine is not None or target.engine is not None:
            self._pump_tls(flow)
            return
        if flow.pipe is not None:
            self._splice(flow)
            return
        for _ in range(ROUNDS_MAX):
            try:
                size = source.sock.recv_into(_buffer)
            except BlockingIOError:
                return
            if not size:
                source.read_eof = True
                self._pass_eof(flow)
                return
            flow.bytes += size
            try:
                sent = target.sock.send(_view[:size])
            except BlockingIOError:
                sent = 0
            if sent < size:
                flow.held = bytes(_view[sent:size])
                return
            if size < BUFFER_BYTES // 4:
                break
        if flow.bytes > SPLICE_FROM_BYTES:
            flow.pipe = _take_pipe()

    def _splice(self, flow: Flow) -> None:
        assert flow.pipe is not None
        read_end, write_end = flow.pipe
        for _ in range(ROUNDS_MAX):
            try:
                size = os.splice(flow.source.fd, write_end, PIPE_BYTES, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                return
            if not size:
                flow.source.read_eof = True
                self._pass_eof(flow)
                return
            flow.bytes += size
            flow.piped += size
            while flow.piped:
                try:
                    flow.piped -= os.splice(read_end, flow.target.fd, flow.piped, flags=_SPLICE_FLAGS)
                except BlockingIOError:
                    return

    def _pump_tls(self, flow: Flow) -> None:
        source = flow.source
        try:
            size = source.sock.recv_into(_buffer)
        except BlockingIOError:
            return
        engine = source.engine
        if not size:
            source.read_eof = True
            if engine is not None:
                engine.receive_eof()
                if engine.truncated:
                    self._fail("the connection ended without TLS close_notify")
                    return
            self._pass_eof(flow)
            return
        if engine is None:
            self._put(flow, bytes(_view[:size]))
            return
        data = engine.receive(_view[:size])
        reply = engine.data_to_send()  # alerts, key updates
        if reply:
            back = self.down if flow is self.up else self.up
            self._write(back, reply)
        if data:
            self._put(flow, data)
        if engine.state is TLSState.FAILED:
            self._fail(str(engine.error))
        elif engine.eof_received and not source.read_eof and not self._closed:
            source.read_eof = True
            self._pass_eof(flow)

    def _put(self, flow: Flow, data: bytes) -> None:
        """Plaintext for the flow's target."""
        flow.bytes += len(data)
        engine = flow.target.engine
        if engine is not None:
            if engine.state is not TLSState.OPEN:
                return
            engine.send(data)
            data = engine.data_to_send()
        self._write(flow, data)

    def _write(self, flow: Flow, data: bytes) -> None:
        if flow.held:
            flow.held = bytes(flow.held) + data
            return
        if not data:
            return
        try:
            sent = flow.target.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            flow.held = memoryview(data)[sent:]

    def _drain(self, flow: Flow) -> None:
        """The target takes more of what is held for it."""
        try:
            if flow.piped and flow.pipe is not None:
                flow.piped -= os.splice(flow.pipe[0], flow.target.fd, flow.piped, flags=_SPLICE_FLAGS)
            if flow.held:
                sent = flow.target.sock.send(flow.held)
                flow.held = memoryview(flow.held)[sent:] if sent < len(flow.held) else b""
        except BlockingIOError:
            return
        if not flow.waiting and flow.source.read_eof:
            self._pass_eof(flow)

    # -- ends --------------------------------------------------------------------------------------

    def _pass_eof(self, flow: Flow) -> None:
        """The source has ended: once all of it is written, so does our side of the target."""
        target = flow.target
        if flow.held or flow.piped or target.write_eof:
            return
        if target.engine is not None and target.engine.state is TLSState.OPEN:
            target.engine.close()
            self._write(flow, target.engine.data_to_send())
        if flow.held:
            return  # close_notify waits; `_drain` comes back here
        target.write_eof = True
        with suppress(OSError):
            target.sock.shutdown(socket.SHUT_WR)
        if self.client.write_eof and self.server.write_eof:
            self.close("")

    def _adjust(self) -> None:
        """Watch each socket for what can happen next."""
        if self._closed:
            return
        for end, incoming, outgoing in ((self.client, self.up, self.down), (self.server, self.down, self.up)):
            events = 0
            if not end.read_eof and not incoming.waiting:
                events |= select.EPOLLIN
            if outgoing.waiting:
                events |= select.EPOLLOUT
            if events != end.events:
                end.events = events
                self._reactor.watch(end.fd, events, self)

    def _fail(self, reason: str) -> None:
        """One side broke: the other one gets a reset, so that it does not take the end for an orderly one."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close(reason)

    def close(self, reason: str) -> None:
        """Close both. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for end in (self.client, self.server):
            self._reactor.forget(end.fd)
            end.sock.close()
        for flow in (self.up, self.down):
            if flow.pipe is not None:
                _give_pipe(flow.pipe, not flow.piped)
                flow.pipe = None
        self._on_closed(reason)

    def abort(self, reason: str) -> None:
        """Cut both, visibly."""
        if not self._closed:
            self._fail(reason)
