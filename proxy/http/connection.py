"""A connection over TCP or a Unix socket: transport ↔ TLS ↔ codec, for both roles, whatever the HTTP version.

    data_received ── engine.receive ── codec.receive ── events ── streams' handlers
    flush         ── codec.data_to_send ── engine.send ── transport.write

Rules:
- Writes gather in the codec and leave once per turn (`turn`).
- What a peer has sent ahead (`Codec.pending`) is read in turns with the other connections, a bounded piece each time;
  so is what it sends faster than `BULK_TURN_BYTES` a pass of the event loop.
- An exception out of our own code ends this connection, and no other one (`break_down`).
- After `connection_lost` every open stream has had its `on_reset`, and nothing calls back any more.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.net.kernel import reset_on_close, socket_of

from .carrier import Carrier, ConnectionStream

if TYPE_CHECKING:
    import asyncio

    from proxy.loop.turn import Turn
    from tlscache.engine import TLSEngine

WRITE_HIGH_WATER: Final = 64 * 1024
UNREAD_MAX: Final = 1024 * 1024
"""HTTP/2 answers to requests (heads, resets, acknowledgements) have no flow control: past this, we stop asking for
more.
"""
BULK_BYTES: Final = 128 * 1024
BULK_TURN_BYTES: Final = 1024 * 1024
"""The event loop reads again at once while a read fills its buffer: after so many bytes of such reads, others have
their turn.
"""


class Connection(Carrier):
    """What both roles share: an asyncio protocol. `ServerConnection` (listener) and `ClientConnection` (pool) subclass
    it.
    """

    __slots__ = (
        "bulk_left",
        "engine",
        "eof_sent",
        "read_paused",
        "transport",
        "waiting",
    )

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn)
        self.transport: asyncio.Transport | None = None
        self.engine: TLSEngine | None = None
        self.waiting = False  # for its turn
        self.bulk_left = BULK_TURN_BYTES
        self.read_paused = False
        self.eof_sent = False

    # -- socket to codec ---------------------------------------------------------------------------

    def after_receive(self) -> None:
        """Adjust reading to the codec's bound, flush acknowledgements and replies."""
        codec = self.codec
        if self.may_read() is self.read_paused:
            self.adjust_reading()
        if not self.dirty and (codec.multiplexed or codec.closing or codec.pending):
            self.touch()

    def after_bulk(self, size: int) -> None:
        """A read of at least `BULK_BYTES`: more of its kind may follow in this pass of the loop."""
        self.bulk_left -= size
        if self.bulk_left <= 0 and not self.waiting:
            self.waiting = True
            self.turn.wait(self)
            if not self.read_paused:
                self.adjust_reading()

    def take_turn(self) -> None:
        """Go on with what the peer has sent ahead, or sends in bulk."""
        self.waiting = False
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.bulk_left <= 0:
            self.bulk_left = BULK_TURN_BYTES
            if self.read_paused:
                self.adjust_reading()
        self.read_ahead()

    def read_ahead(self) -> None:
        """A bounded piece of what is `pending`."""
        codec = self.codec
        if codec.pending and self.may_go_on():
            self.deliver(codec.receive(b""))
            self.after_pending()
            if codec.multiplexed or codec.pending:
                self.touch()

    def may_go_on(self) -> bool:
        """Whether more of what is pending may be read: a client that does not read its answers gets no further ones."""
        return self.writable

    def may_read(self) -> bool:
        """Whether the codec's bound, our turn, and what the peer leaves unread of what we sent, allow more input."""
        if not self.codec.reading or self.bulk_left <= 0:
            return False
        if self.writable:
            return True
        if not self.codec.multiplexed:
            return bool(self.streams)
        transport = self.transport
        return transport is None or transport.get_write_buffer_size() < UNREAD_MAX

    def adjust_reading(self) -> None:
        """Follow `codec.reading`."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.may_read():
            if self.read_paused:
                self.read_paused = False
                transport.resume_reading()
        elif not self.read_paused:
            self.read_paused = True
            transport.pause_reading()

    # -- codec to socket ---------------------------------------------------------------------------

    def touch(self) -> None:
        """There is something to send: flush when the turn ends."""
        if not self.dirty:
            self.dirty = True
            self.turn.add(self)

    def flush(self) -> None:
        """Send what is buffered, then do what the codec's state asks for."""
        self.dirty = False
        transport = self.transport
        if transport is None:
            return
        codec = self.codec
        data = codec.data_to_send()
        engine = self.engine
        if engine is not None:
            if data:
                engine.send(data)
            data = engine.data_to_send()
        if data:
            transport.write(data)
        if codec.closing:
            self.close_gracefully()
            return
        if codec.send_eof:
            self.shut_down_writing()
        if self.may_read() is self.read_paused:
            self.adjust_reading()
        if codec.pending and self.writable and not self.waiting:
            self.waiting = True
            self.turn.wait(self)

    def after_pending(self) -> None:
        """Held bytes were read; whatever they left behind."""
        if self.codec.closing:
            self.touch()

    def shut_down_writing(self) -> None:
        """End our direction; the peer's goes on."""
        transport = self.transport
        if transport is None or self.eof_sent or transport.is_closing():
            return
        self.eof_sent = True
        if self.engine is not None:
            self.engine.close()
            data = self.engine.data_to_send()
            if data:
                transport.write(data)
        try:
            transport.write_eof()
        except OSError:  # asyncio's own transport tells so of a peer that is gone; `connection_lost` follows
            transport.abort()

    def pause_writing(self) -> None:
        """The transport is above its high-water mark."""
        self.writable = False

    def resume_writing(self) -> None:
        """The transport is below its low-water mark: writers go on."""
        self.writable = True
        self.turn.begin()
        try:
            if self.read_paused:
                self.adjust_reading()
            if self.codec.pending:
                self.touch()
            for stream in list(self.streams.values()):
                if stream.blocked and not stream.held and stream.handler is not None:
                    stream.blocked = False
                    stream.handler.on_writable()
        except Exception as error:
            self.turn.failed(self, error)
        finally:
            self.turn.end()

    # -- the end -----------------------------------------------------------------------------------

    def close_gracefully(self) -> None:
        """`codec.closing` is true and everything is flushed: close the socket the way this role does."""
        self.close()

    def close(self) -> None:
        """Close after what is buffered has been written; with TLS, close_notify first."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.engine is not None and not self.eof_sent:
            self.engine.close()
            data = self.engine.data_to_send()
            if data:
                transport.write(data)
        transport.close()

    def break_off(self) -> None:
        """Close with a reset, which can't be taken for an orderly end; what was sent before it stands."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self.flush()
            with suppress(OSError):
                reset_on_close(socket_of(transport))
            transport.abort()

    def abort(self) -> None:
        """Close at once; what is buffered is lost."""
        if self.transport is not None:
            self.transport.abort()

    def break_down(self, error: Exception) -> None:
        """Our code for this connection raised: it ends at once, and every stream's handler hears of it."""
        transport = self.transport
        if transport is not None:
            transport.abort()  # first: nothing below may keep the socket open
        self.fail_streams(ProxyError(Kind.TERMINATED, f"failed within the proxy: {error!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.turn.begin()
        try:
            unprocessed = self.request_unsent() if self.streams else False
            transport, self.transport = self.transport, None
            if exc is not None and self.streams and transport is not None:
                self.read_last_words(transport)
            text = f"connection lost: {exc}" if exc else "connection closed"
            self.fail_streams(ProxyError(Kind.TERMINATED, text, unprocessed=unprocessed))
        except Exception as error:
            self.transport = None
            self.turn.failed(self, error)
        try:
            self.on_lost(exc)
        except Exception as error:
            self.turn.failed(self, error)
        finally:
            self.turn.end()

    def read_last_words(self, transport: asyncio.Transport) -> None:
        """Client role: a write failed; take what the peer had said before (its socket is not closed yet)."""

    def request_unsent(self) -> bool:
        """Whether no byte of what is open has left this host (client role)."""
        return False

    def on_lost(self, exc: Exception | None) -> None:
        """After the last stream was reset."""


__all__ = ["BULK_BYTES", "WRITE_HIGH_WATER", "Connection", "ConnectionStream", "socket_of"]
