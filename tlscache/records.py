"""The records of one TLS connection: OpenSSL between two memory BIOs, once the handshake is complete.

This is the hot path. A small record costs four calls in and two out; what makes it more is rare and goes another way:
- several records in one `receive`, a record in pieces, tickets, KeyUpdates, alerts: `_read_on`;
- more than a BIO should hold: piece by piece, because a BIO grows to the largest content it ever had (copying as it
  grows) and never shrinks. One that has grown is replaced when it is empty, because idle connections are many.

Post-handshake messages (tickets, KeyUpdates, attempts to renegotiate) are counted between two pieces of application
data: past `CONTROL_MESSAGES_MAX` the connection fails, because each of them costs us more than it costs the peer.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from .fault import FaultKind, TLSFault
from .openssl import BUFFER_BYTES, RECORD_BYTES_MAX, buffer, buffer_view, ffi, lib, pointer_out, reasons
from .session import Session

CONTROL_MESSAGES_MAX: Final = 64
TICKETS_MAX: Final = 16  # kept for an owner that does not take them; the newest ones stay
FEED_BYTES: Final = 2 * RECORD_BYTES_MAX  # what goes into a BIO at once
BIO_KEPT_BYTES: Final = 4096  # a BIO that held more is replaced
RECORD_OVERHEAD_MAX: Final = 256  # header, nonce, tag, padding: RFC 8446 section 5.2

# The calls of the hot path, looked up once.
_BIO_write, _BIO_read, _BIO_get_mem_data = lib.BIO_write, lib.BIO_read, lib.BIO_get_mem_data
_SSL_read, _SSL_write = lib.SSL_read, lib.SSL_write


class State(Enum):
    """Where a connection is; the rules are on top of `engine`."""

    HANDSHAKING = "handshaking"
    OPEN = "open"
    CLOSED = "closed"
    FAILED = "failed"


_events: list[tuple[Any, Any]] = []
"""What OpenSSL reported of post-handshake messages: the `SSL *`, and a session, None or `_RENEGOTIATION`."""
_RENEGOTIATION: Final = object()
_NO_RENEGOTIATION: Final = 100  # the alert, RFC 5246 section 7.2


@ffi.callback("void(SSL *, int, int)")  # type: ignore[untyped-decorator]
def on_post_handshake(ssl: Any, where: int, value: int) -> None:
    """OpenSSL's info callback for connections that are open: it costs nothing per record of application data."""
    if where == lib.SSL_CB_CONNECT_EXIT:
        # At once: of two tickets in one read the second replaces the first.
        _events.append((ssl, ffi.gc(lib.SSL_get1_session(ssl), lib.SSL_SESSION_free)))
    elif where == lib.SSL_CB_ACCEPT_EXIT:
        _events.append((ssl, None))
    elif where == lib.SSL_CB_WRITE_ALERT and value & 0xFF == _NO_RENEGOTIATION:
        _events.append((ssl, _RENEGOTIATION))


class Records:
    """What `TLSEngine` is made of below the handshake. `_ssl` is an `SSL *` that this object frees."""

    __slots__ = (
        "_control_messages",
        "_out",
        "_rbio",
        "_readable",
        "_sendable",
        "_session",
        "_shrink",
        "_ssl",
        "_unsent",
        "_verified_at",
        "_wbio",
        "eof_received",
        "error",
        "state",
        "tickets",
        "truncated",
    )

    def __init__(self, ssl: Any) -> None:
        self.state = State.HANDSHAKING
        self.error: TLSFault | None = None
        self.tickets: list[Session] = []
        self.eof_received = False
        self.truncated = False
        self._control_messages = 0
        self._out: list[bytes] = []
        self._readable = False  # OPEN, and the peer's direction goes on
        self._sendable = False  # OPEN, and ours does
        self._session: Any = ffi.NULL  # the last one seen, to tell a ticket from other messages
        self._shrink = False  # the outgoing BIO has grown
        self._unsent = False
        self._verified_at = 0.0
        self._ssl = ssl
        self._rbio = lib.BIO_new(lib.BIO_s_mem())
        self._wbio = lib.BIO_new(lib.BIO_s_mem())
        lib.SSL_set_bio(ssl, self._rbio, self._wbio)  # takes both over

    def __del__(self) -> None:
        ssl = getattr(self, "_ssl", None)
        if ssl is not None:
            # Freed without this, the session becomes non-resumable and leaves the server's cache.
            lib.SSL_set_shutdown(ssl, lib.SSL_SENT_SHUTDOWN | lib.SSL_RECEIVED_SHUTDOWN)
            lib.SSL_free(ssl)

    # ---- receiving

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take ciphertext from the peer; return the plaintext in it, b"" where there is none.

        Afterwards `state`, `eof_received`, `tickets` and `data_to_send` may have changed.
        """
        source: Any = data if type(data) is bytes else ffi.from_buffer(data)
        size = len(source)
        if not self._readable or size > FEED_BYTES:
            return self._receive_pieces(source, size)
        _BIO_write(self._rbio, source, size)
        read = _SSL_read(self._ssl, buffer, BUFFER_BYTES)
        if read > 0 and not _events and not _BIO_get_mem_data(self._rbio, pointer_out):
            self._control_messages = 0
            plaintext: bytes = buffer_view[:read]
        else:
            plaintext = self._read_on(read)
        if size > BIO_KEPT_BYTES:
            self._replace_rbio()
        return plaintext

    def _receive_pieces(self, source: Any, size: int) -> bytes:
        # Not yet readable, no longer, or more than a BIO should hold.
        pieces = []
        start: Any = ffi.from_buffer(source) if type(source) is bytes else source
        for offset in range(0, size, FEED_BYTES):
            if self.state is not State.HANDSHAKING and not self._readable:
                break
            _BIO_write(self._rbio, start + offset, min(FEED_BYTES, size - offset))
            if self.state is State.HANDSHAKING:
                pieces.append(self._drive())
            if self._readable:
                pieces.append(self._read_on(_SSL_read(self._ssl, buffer, BUFFER_BYTES)))
        if size > BIO_KEPT_BYTES:
            self._replace_rbio()
        return b"".join(pieces)

    def _drive(self) -> bytes:
        raise NotImplementedError

    def _read_on(self, read: int) -> bytes:
        # `read` is what SSL_read has just returned; more may follow it.
        full = []
        filled = 0
        while True:
            if _events:
                self._take_events()
            if read <= 0:
                self._stopped(read)
                break
            self._control_messages = 0
            filled += read
            if not self._readable or not _BIO_get_mem_data(self._rbio, pointer_out):
                break
            if filled > BUFFER_BYTES - RECORD_BYTES_MAX:
                full.append(buffer_view[:filled])
                filled = 0
            read = _SSL_read(self._ssl, buffer + filled, BUFFER_BYTES - filled)
        rest: bytes = buffer_view[:filled]
        return b"".join((*full, rest)) if full else rest

    def _take_events(self) -> None:
        events = _events[:]
        _events.clear()
        self._unsent = True  # an answer to a KeyUpdate, perhaps
        for ssl, event in events:
            if ssl != self._ssl:  # left over from a call that expected none: another connection's ticket is not ours
                continue
            self._control_messages += 1
            if event is _RENEGOTIATION:
                self._fail(TLSFault(FaultKind.PROTOCOL, "peer asked to renegotiate, which is refused"))
            elif event is not None and event != self._session:
                self._session = event
                self._keep_ticket(event)
        if self._control_messages > CONTROL_MESSAGES_MAX:
            text = f"peer sent more than {CONTROL_MESSAGES_MAX} control messages with no data between them"
            self._fail(TLSFault(FaultKind.FLOOD, text))

    def _keep_ticket(self, handle: Any) -> None:
        size = lib.i2d_SSL_SESSION(handle, ffi.NULL)
        place = ffi.new("unsigned char[]", size)
        lib.i2d_SSL_SESSION(handle, ffi.new("unsigned char **", place))
        self.tickets.append(Session(ffi.buffer(place)[:], self._verified_at))
        if len(self.tickets) > TICKETS_MAX:
            del self.tickets[0]

    def receive_eof(self) -> None:
        """The peer's TCP stream ended. Without a close_notify before it, `truncated` becomes true."""
        if self.state is State.OPEN and not self.eof_received:
            self.truncated = True
            self._end_receiving()

    def _end_receiving(self) -> None:
        self._readable = False
        if not self._sendable:
            self.state = State.CLOSED

    # ---- sending

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt `data` for the peer. Before the handshake is complete it is queued (the owner bounds how much).

        Does nothing on a failed connection. RuntimeError after `close`.
        """
        source: Any = data if type(data) is bytes else ffi.from_buffer(data)
        size = len(source)
        if self._sendable and 0 < size <= BIO_KEPT_BYTES and _SSL_write(self._ssl, source, size) > 0:
            self._unsent = True
        elif size and self.state is not State.FAILED:
            self._send_pieces(ffi.from_buffer(source) if type(source) is bytes else source, size)

    def _send_pieces(self, start: Any, size: int) -> None:
        # Record by record, each taken out of the BIO at once.
        if self._unsent:
            self._out.append(self._drain())
        filled = 0
        for offset in range(0, size, RECORD_BYTES_MAX):
            written = self._write_record(start + offset, min(RECORD_BYTES_MAX, size - offset))
            if written <= 0:
                self._stopped(written)
                break
            if filled > BUFFER_BYTES - RECORD_BYTES_MAX - RECORD_OVERHEAD_MAX:
                self._out.append(buffer_view[:filled])
                filled = 0
            filled += max(0, _BIO_read(self._wbio, buffer + filled, BUFFER_BYTES - filled))
        self._out.append(buffer_view[:filled])
        self._unsent = self._shrink = True

    def _write_record(self, start: Any, size: int) -> int:
        return _SSL_write(self._ssl, start, size)  # type: ignore[no-any-return]

    def data_to_send(self) -> bytes:
        """The ciphertext for the peer since the last call, b"" where there is none."""
        if not self._unsent:
            return b""
        if self._out:
            self._out.append(self._drain())
            joined = b"".join(self._out)
            self._out.clear()
            return joined
        return self._drain()

    def _drain(self) -> bytes:
        self._unsent = False
        read = _BIO_read(self._wbio, buffer, BUFFER_BYTES)
        if read <= BIO_KEPT_BYTES and not self._shrink:
            return buffer_view[:read] if read > 0 else b""
        pieces = []
        while read > 0:
            pieces.append(buffer_view[:read])
            read = _BIO_read(self._wbio, buffer, BUFFER_BYTES)
        self._shrink = False
        self._wbio = lib.BIO_new(lib.BIO_s_mem())
        lib.SSL_set_bio(self._ssl, self._rbio, self._wbio)  # frees the old one; `_rbio` is the same and stays
        return b"".join(pieces)

    def _replace_rbio(self) -> None:
        if self._readable:  # then everything in it has been read
            self._rbio = lib.BIO_new(lib.BIO_s_mem())
            lib.SSL_set_bio(self._ssl, self._rbio, self._wbio)

    def close(self) -> None:
        """End our direction with a close_notify. The peer's goes on until it does the same. Idempotent."""
        if not self._sendable:
            return
        self._sendable = False
        lib.SSL_shutdown(self._ssl)
        lib.ERR_clear_error()
        self._unsent = True
        if not self._readable:
            self.state = State.CLOSED

    # ---- ends and faults

    def _stopped(self, result: int) -> None:
        # An OpenSSL call did not succeed: more bytes are needed, the peer said close_notify, or the connection failed.
        reason = lib.SSL_get_error(self._ssl, result)
        if reason == lib.SSL_ERROR_WANT_READ:
            return
        if reason == lib.SSL_ERROR_ZERO_RETURN:
            self.eof_received = True
            self._end_receiving()
            return
        found = reasons()
        # With the queue now empty: what another user of OpenSSL left in it must not be read as this connection's error.
        if not found or lib.SSL_get_error(self._ssl, result) != lib.SSL_ERROR_WANT_READ:
            self._fail(self._fault(found))

    def _fault(self, found: list[tuple[int, str]]) -> TLSFault:
        raise NotImplementedError

    def _fail(self, fault: TLSFault) -> None:
        if self.state is not State.FAILED:
            self.state = State.FAILED
            self.error = fault
        self._readable = self._sendable = False
        self._unsent = True  # the alert
