"""Bytes both ways between two sockets, either of them perhaps through TLS, with half-close and bounded memory.

    OPEN ──────── both ends have ended, and everything is written ────────> CLOSED
      └── an end broke, or the owner aborts ──> BREAKING ── both reset ───────┘

Each direction is a `Flow`: read from one end, write to the other. Rules:
- A flow holds at most one read's worth of bytes, and while it holds any, it does not read: that is the backpressure.
- The end of a source is passed on once everything before it is written: FIN for FIN, close_notify for close_notify.
  The other direction goes on (half-close). A TLS source that ends without close_notify broke.
- An end that breaks (a reset, an error, TLS that fails) resets the other one, so that it does not take the end for an
  orderly one. What the broken end had sent before it broke is passed on first, as far as the other one takes it at
  once: a server that answers and closes without reading all of the request resets, and its answer is in our buffer.
- Between two plain sockets a flow that carries much moves to splice(2): bytes then go from socket to socket through a
  pipe, and are never copied. A pipe belongs to a flow only while bytes are in it.
- A flow that moves half a gigabit a second rests for a millisecond after each splice, and then moves what has gathered
  meanwhile: many small wake-ups would cost more than the bytes. Slower flows are served at once.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.loop.reactor import READ, UNWATCHED, WRITE
from tlscache.engine import State as TLSState

from . import pipe as pipes
from .flow import End, Flow

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.loop.reactor import Reactor
    from tlscache.engine import TLSEngine

BUFFER_BYTES: Final = 256 * 1024
SPLICE_FROM_BYTES: Final = 64 * 1024
"""A read between plain sockets is at most this long; after one that fills it, the flow splices."""
SPLICE_BELOW_BYTES: Final = 16 * 1024
SMALL_SPLICES_MAX: Final = 8
"""So many splices in a row that moved less: reads are copied again (one call fewer). One alone is the end of a
download, and the next one may follow.
"""
HELD_BYTES_MAX: Final = 1024 * 1024
"""Beyond what one read leaves, only TLS's own messages are added to what is held. Past this the relay breaks."""
REST_FROM_BYTES: Final = 64 * 1024
"""After a splice of at least this much the flow rests."""
LAST_READS_MAX: Final = 16
_SPLICE_FLAGS: Final = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_ERROR: Final[int] = select.EPOLLERR
_HUNG_UP: Final[int] = select.EPOLLHUP
_READABLE: Final = READ | _HUNG_UP
_WRITABLE: Final = WRITE | _HUNG_UP
_RESET_ON_CLOSE: Final = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds

_buffer: Final = bytearray(BUFFER_BYTES)
_view: Final = memoryview(_buffer)
_short_view: Final = _view[:SPLICE_FROM_BYTES]


class State(Enum):
    """Where a relay stands."""

    OPEN = "open"
    BREAKING = "breaking"
    CLOSED = "closed"


_OPEN: Final = State.OPEN  # a global is one load in compiled code, an enum's member a dictionary's


class Relay:
    """Two ends, two flows. `on_closed(reason)` is called once, the sockets closed by then; `reason` is "" for an
    orderly end.
    """

    __slots__ = ("_on_closed", "_reactor", "_rests", "active", "client", "down", "server", "state", "up")

    def __init__(self, reactor: Reactor, client: End, server: End, on_closed: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._on_closed: Callable[[str], None] | None = on_closed
        self.client = client
        self.server = server
        self.up = Flow(client, server)
        self.down = Flow(server, client)
        self.state = _OPEN
        self._rests = False  # the reactor will call `on_rested`
        self.active = True  # something moved since the owner last looked

    def __repr__(self) -> str:
        return f"<Relay {self.state.value} {self.up.bytes} up, {self.down.bytes} down>"

    def start(self, preface: bytes, to_server: bytes, to_client: bytes) -> None:
        """Begin with bytes that were read before the two ends were joined; `preface` goes to the server before them, as
        it is (a PROXY header).
        """
        for end in (self.client, self.server):
            if end.events != UNWATCHED:
                self._reactor.hand_over(end.fd, self)
        if preface:
            self._write(self.up, preface)
        if to_server and self.state is _OPEN:
            self._put(self.up, to_server)
        if to_client and self.state is _OPEN:
            self._put(self.down, to_client)
        for end, flow in ((self.client, self.up), (self.server, self.down)):
            if end.engine is not None and self.state is _OPEN:
                self._after_tls(flow, end.engine)
        if self.state is _OPEN:
            self._adjust(self.client, self.up, self.down)
            self._adjust(self.server, self.down, self.up)

    # -- events ------------------------------------------------------------------------------------

    def on_event(self, fd: int, events: int) -> None:
        """One of the two sockets is ready for something."""
        if fd == self.client.fd:
            end, incoming, outgoing = self.client, self.up, self.down
        else:
            end, incoming, outgoing = self.server, self.down, self.up
        self.active = True
        if events & _ERROR:
            self._broken(end, _socket_error(end.sock))
            return
        if events & _WRITABLE and outgoing.waiting:
            self._drain(outgoing)
        if events & _READABLE and not incoming.waiting and not end.read_eof and self.state is _OPEN:
            self._pump(incoming)
        if self.state is _OPEN:
            end.hung_up = bool(events & _HUNG_UP)
            self._adjust(self.client, self.up, self.down)
            self._adjust(self.server, self.down, self.up)

    def _adjust(self, end: End, incoming: Flow, outgoing: Flow) -> None:
        """Watch a socket for what can happen next."""
        events = 0
        if not end.read_eof and not incoming.waiting and not incoming.resting:
            events = READ
        if outgoing.waiting:
            events |= WRITE
        if events == end.events:
            if not end.hung_up or events:
                return
        elif events or not end.hung_up:
            end.events = events
            self._reactor.watch(end.fd, events, self)
            return
        # Both sides of this socket have ended, and the other socket is not ready yet: the kernel would tell us again
        # and again.
        end.events = UNWATCHED
        self._reactor.forget(end.fd)

    # -- reading -----------------------------------------------------------------------------------

    def _pump(self, flow: Flow) -> None:
        source = flow.source
        try:
            if source.engine is not None or flow.target.engine is not None:
                self._pump_tls(flow)
                return
            flow.resting = False
            if flow.bulk and self._splice(flow):
                return
            size = source.sock.recv_into(_short_view)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(source, error)
            return
        if not size:
            source.read_eof = True
            self._pass_eof(flow)
            return
        flow.bytes += size
        flow.bulk = size == SPLICE_FROM_BYTES
        self._write(flow, _short_view[:size])

    def _splice(self, flow: Flow) -> bool:
        """Move bytes through a pipe. False: there is no pipe to be had, or the kernel can't do it here."""
        pipe = pipes.take()
        if pipe is None:
            flow.bulk = False
            return False
        source = flow.source
        try:
            size = os.splice(source.fd, pipe[1], pipes.PIPE_BYTES, None, None, _SPLICE_FLAGS)
        except OSError as error:
            pipes.give(pipe)
            if error.errno in (errno.EINVAL, errno.ENOSYS):
                flow.bulk = False
                return False
            raise
        if not size:
            pipes.give(pipe)
            source.read_eof = True
            self._pass_eof(flow)
            return True
        flow.bytes += size
        flow.small_splices = 0 if size >= SPLICE_BELOW_BYTES else flow.small_splices + 1
        flow.bulk = flow.small_splices < SMALL_SPLICES_MAX
        flow.pipe = pipe
        flow.piped = size
        self._empty_pipe(flow)
        if size >= REST_FROM_BYTES and not flow.waiting and self.state is _OPEN:
            flow.resting = True
            if not self._rests:
                self._rests = True
                self._reactor.rest(self)
        return True

    def on_rested(self) -> None:
        """What gathered at the source of a flow that rested."""
        self._rests = False
        self.active = True
        for flow in (self.up, self.down):
            if flow.resting and self.state is _OPEN:
                self._pump(flow)
        if self.state is _OPEN:
            self._adjust(self.client, self.up, self.down)
            self._adjust(self.server, self.down, self.up)

    def _empty_pipe(self, flow: Flow) -> None:
        pipe = flow.pipe
        assert pipe is not None
        try:
            while flow.piped:
                flow.piped -= os.splice(pipe[0], flow.target.fd, flow.piped, None, None, _SPLICE_FLAGS)
        except BlockingIOError:
            flow.waiting = True
            return
        except OSError as error:
            self._broken(flow.target, error)
            return
        flow.pipe = None
        flow.waiting = False
        pipes.give(pipe)

    def _pump_tls(self, flow: Flow) -> None:
        source = flow.source
        size = source.sock.recv_into(_buffer)
        engine = source.engine
        if not size:
            if engine is not None:
                engine.receive_eof()
            source.read_eof = True
            if engine is not None and engine.truncated:
                self._break("the connection ended without TLS close_notify")
            else:
                self._pass_eof(flow)
            return
        if engine is None:
            self._put(flow, _view[:size])
            return
        data = engine.receive(_view[:size])
        if data:
            self._put(flow, data)
        if self.state is _OPEN:
            self._after_tls(flow, engine)

    def _after_tls(self, flow: Flow, engine: TLSEngine) -> None:
        """The source's engine has received something: pass on what that meant beside data."""
        reply = engine.data_to_send()  # alerts, key updates
        if reply:
            self._write(self.down if flow is self.up else self.up, reply)
        if self.state is not _OPEN:
            return
        if engine.state is TLSState.FAILED:
            self._break(str(engine.error))
        elif engine.eof_received and not flow.source.read_eof:
            flow.source.read_eof = True
            self._pass_eof(flow)

    # -- writing -----------------------------------------------------------------------------------

    def _put(self, flow: Flow, data: bytes | memoryview) -> None:
        """Plaintext for the flow's target. A memoryview is of the shared buffer, and good for this call only."""
        flow.bytes += len(data)
        engine = flow.target.engine
        if engine is not None:
            engine.send(data)
            data = engine.data_to_send()
            if engine.state is TLSState.FAILED:
                self._break(str(engine.error))
                return
        self._write(flow, data)

    def _write(self, flow: Flow, data: bytes | memoryview) -> bool:
        """Bytes for the target's socket. False: some are left, or it broke."""
        if flow.waiting:  # what TLS says by itself, behind the data
            flow.held = bytes(flow.held) + data
            if len(flow.held) > HELD_BYTES_MAX:
                self._break("the peer asks for more and more and reads nothing")
            return False
        try:
            sent = flow.target.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._broken(flow.target, error)
            return False
        if sent < len(data):
            flow.held = bytes(data[sent:])
            flow.waiting = True
        return not flow.waiting

    def _drain(self, flow: Flow) -> None:
        """The target takes more of what is left for it."""
        if flow.pipe is not None:
            self._empty_pipe(flow)
        else:
            try:
                sent = flow.target.sock.send(flow.held)
            except BlockingIOError:
                return
            except OSError as error:
                self._broken(flow.target, error)
                return
            flow.waiting = sent < len(flow.held)
            flow.held = memoryview(flow.held)[sent:] if flow.waiting else b""
        if not flow.waiting and flow.source.read_eof:
            self._pass_eof(flow)

    # -- ends --------------------------------------------------------------------------------------

    def _pass_eof(self, flow: Flow) -> None:
        """The source has ended: once all of it is written, so does our side of the target."""
        target = flow.target
        if flow.waiting or target.write_eof or self.state is not _OPEN:
            return
        if target.engine is not None and target.engine.state is TLSState.OPEN:
            target.engine.close()
            if not self._write(flow, target.engine.data_to_send()):
                return  # close_notify waits: `_drain` comes back here
        target.write_eof = True
        if flow.source.write_eof:
            self._close("")  # close(2) sends the FIN
            return
        with suppress(OSError):  # a reset that nobody has told us of yet
            target.sock.shutdown(socket.SHUT_WR)

    def _broken(self, end: End, error: OSError) -> None:
        """A socket broke: its last words, then the other one's reset."""
        if self.state is not _OPEN:
            return
        self.state = State.BREAKING
        flow = self.up if end is self.client else self.down
        for _ in range(LAST_READS_MAX):
            before = flow.bytes
            if not flow.waiting and not end.read_eof:
                self._pump(flow)
            if flow.bytes == before:
                break
        self._reset(error.strerror or str(error))

    def _break(self, reason: str) -> None:
        """End now, and visibly."""
        if self.state is _OPEN:
            self.state = State.BREAKING
            self._reset(reason)

    def _reset(self, reason: str) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._close(reason)

    def _close(self, reason: str) -> None:
        self.state = State.CLOSED
        for end in (self.client, self.server):
            self._reactor.closing(end.fd)
            end.sock.close()
        for flow in (self.up, self.down):
            if flow.pipe is not None:
                pipes.close(flow.pipe)
                flow.pipe = None
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(reason)

    def abort(self, reason: str) -> None:
        """Cut both, visibly. Idempotent."""
        self._break(reason)


def _socket_error(sock: socket.socket) -> OSError:
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(code, os.strerror(code)) if code else ConnectionResetError(errno.ECONNRESET, "connection reset")
