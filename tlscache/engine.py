"""One TLS connection without I/O: ciphertext in, plaintext out, for either role.

States
    HANDSHAKING ──► OPEN ──► CLOSED
         └───────────┴────► FAILED
Rules
- HANDSHAKING: `receive` drives the handshake. `send` queues; what it queued goes out when the handshake completes. (A
  server that has accepted 0-RTT may answer it before that: see `in_early_data`.)
- OPEN: the handshake is complete and the peer verified. Each direction ends by itself: `close` ends ours (close_notify
  is sent), the peer's close_notify sets `eof_received`; the other direction goes on (RFC 8446 section 6.1), which is
  TCP's half-close.
- CLOSED: both directions have ended, or `close` was called during the handshake.
- FAILED: `error` says why. The alert for the peer, if there is one to send, is in `data_to_send`; nothing else happens
  any more.
- The peer's TCP EOF without close_notify sets `truncated`: what was received may be cut short, and the owner decides
  what that means.
- What a peer sends never raises. `send` after `close`, or `start` twice, is our bug and does.

A TLS 1.3 server refuses a client's certificate only after the client has sent its Finished, so a client's engine may be
OPEN and then FAILED with the first bytes received (RFC 8446 section 4.4.2.4: `certificate_required`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from .context import ClientContext, ServerContext
from .fault import (
    ALERT_REASON_OFFSET,
    FaultKind,
    TLSFault,
    alert_fault,
    certificate_fault,
    plaintext_fault,
    reason_fault,
    spiffe_id_of,
)
from .openssl import (
    BUFFER_BYTES,
    CLIENT_RANDOM_BYTES,
    EARLY_DATA_FINISH,
    EARLY_DATA_SUCCESS,
    buffer,
    buffer_view,
    ffi,
    lib,
    x509_to_der,
)
from .records import Records, State, on_post_handshake
from .session import Session, certificate_not_after
from .verify import verify_failure

__all__ = ["Session", "State", "TLSEngine"]

_early_accepted: list[Any] = []
"""The `SSL *` of a client whose 0-RTT the server accepted during the call under way."""


@ffi.callback("void(SSL *, int, int)")  # type: ignore[untyped-decorator]
def _on_early_handshake(ssl: Any, where: int, _value: int) -> None:
    # SSL_get_early_data_status is not bound; EndOfEarlyData is sent exactly where the server accepted (RFC 8446 section
    # 4.5).
    if where & lib.SSL_CB_LOOP and b"end of early data" in ffi.string(lib.SSL_state_string_long(ssl)):
        _early_accepted.append(ssl)


class TLSEngine(Records):
    """A TLS connection; the kind of context makes it a client's or a server's.

    `server_name`: the host that a client's connection goes to (its context's setting overrides that); ContextError
    where verification needs one and there is none. `session`: one that `tickets` of a connection of the same scope
    gave: it is offered for resumption.

    When OPEN: `alpn` (b"" for none), `version` ("TLSv1.3"), `resumed`, and for a server `server_name`, the one that the
    client asked for ("" for none). `early` is what became of 0-RTT: "none", "sent" (a client's, undecided), "accepted"
    or "rejected" (a client then sends its data again). `tickets` are sessions for connections to come: take them away.
    """

    __slots__ = (
        "_base",
        "_certificate_asked",
        "_early_written",
        "_fed",
        "_held",
        "_offered",
        "_pending",
        "_reading_early",
        "_started",
        "alpn",
        "context",
        "early",
        "resumed",
        "server_name",
        "version",
    )

    def __init__(
        self,
        context: ClientContext | ServerContext,
        *,
        server_name: str | None = None,
        session: Session | None = None,
    ) -> None:
        self.context = context
        self.alpn = b""
        self.version = ""
        self.resumed = False
        self.early = "none"
        self._certificate_asked = False
        self._early_written = 0
        self._fed = False
        self._held: list[bytes] | None = None  # 0-RTT that may be a replay, kept until the handshake is complete
        self._offered: Session | None = None
        self._pending: list[bytes] = []
        self._started = False
        if isinstance(context, ServerContext):
            self.server_name = ""
            self._reading_early = context.settings.early_data
            self._base = context.base  # OpenSSL calls back into it, also where the context has another one by then
            super().__init__(context.new_ssl())
        else:
            self.server_name = context.host_name(server_name)
            self._reading_early = False
            super().__init__(context.new_ssl(self.server_name))
            if session is not None:
                self._offer(session)

    def __repr__(self) -> str:
        role = "server" if self.context.is_server else "client"
        found = (role, self.server_name, self.state.value, self.version, self.alpn.decode("latin-1"))
        return f"<TLSEngine {' '.join(filter(None, found))}{f': {self.error}' if self.error else ''}>"

    # ---- the handshake

    def _offer(self, session: Session) -> None:
        # A session knows this much of whom it was verified for; its scope, which the owner compared, says the rest.
        if session.facts.server_name not in ("", self.server_name):
            return
        der = ffi.from_buffer(session.der)
        place = ffi.new("unsigned char **", ffi.cast("unsigned char *", der))
        handle = lib.d2i_SSL_SESSION(ffi.NULL, place, len(session.der))
        if handle == ffi.NULL:
            lib.ERR_clear_error()  # of another OpenSSL version, perhaps: a full handshake does as well
            return
        if lib.SSL_set_session(self._ssl, handle) == 1:
            self._offered = session
        lib.SSL_SESSION_free(handle)

    def write_early(self, data: bytes) -> bool:
        """Client role, before `start`: put `data` into the first flight as 0-RTT. False: not possible, send it later.

        The peer may refuse it (`early` is then "rejected" once OPEN, and the data has to be sent again), and anyone on
        the path can play it to the peer a second time: see `early_data.may_travel_early`.
        """
        context, session = self.context, self._offered
        if self._started or session is None or not data or not isinstance(context, ClientContext):
            return False
        if self._early_written + len(data) > session.facts.max_early_data:
            return False
        if session.facts.alpn not in (b"", *context.settings.alpn):  # OpenSSL would fail the connection
            return False
        lib.SSL_set_info_callback(self._ssl, _on_early_handshake)
        if lib.SSL_write_early_data(self._ssl, data, len(data), ffi.new("size_t *")) != 1:
            lib.ERR_clear_error()
            return False
        self._early_written += len(data)
        self.early = "sent"
        return True

    def start(self) -> None:
        """Client role: make the ClientHello. Data given to `write_early` is in the same flight."""
        if self._started or self.context.is_server:
            raise RuntimeError("start is for clients, and once")
        self._started = True
        self._drive()

    def _receive_pieces(self, source: Any, size: int) -> bytes:
        if self.state is State.HANDSHAKING and size and not self._fed:
            self._fed = True
            first = source[:16] if type(source) is bytes else ffi.buffer(source)[:16]
            fault = plaintext_fault(first, server=self.context.is_server)
            if fault is not None:
                self._fail(fault)
        return super()._receive_pieces(source, size)

    def _drive(self) -> bytes:
        # One step of the handshake with what has been received. Returns 0-RTT plaintext (server role).
        context = self.context
        verify_failure.clear()
        lib.ERR_clear_error()
        early = b""
        self._unsent = True
        if self._reading_early:
            early = self._read_early()
            if self._reading_early:
                return early
        if isinstance(context, ClientContext):
            context.certificate_asked = False
            _early_accepted.clear()
            result = lib.SSL_do_handshake(self._ssl)
            self._certificate_asked = self._certificate_asked or context.certificate_asked
            if self._ssl in _early_accepted:
                self.early = "accepted"
        else:
            result = lib.SSL_do_handshake(self._ssl)
        if result != 1:
            self._stopped(result)
            return early
        self._complete()
        if self._held is not None:
            early = b"".join((*self._held, early))
            self._held = None
        return early

    def _read_early(self) -> bytes:
        chunks = []
        size = ffi.new("size_t *")
        while (result := lib.SSL_read_early_data(self._ssl, buffer, BUFFER_BYTES, size)) == EARLY_DATA_SUCCESS:
            chunks.append(buffer_view[: size[0]])
            if self.early == "none":
                self.early = "accepted"
                if not self._is_fresh():
                    self._held = []
        if result == EARLY_DATA_FINISH:
            self._reading_early = False
        else:
            self._stopped(result)
        if self._held is not None:
            self._held += chunks
            return b""
        return b"".join(chunks)

    def _is_fresh(self) -> bool:
        register = self.context.replay_register if isinstance(self.context, ServerContext) else None
        if self._client_has_expired():
            return False
        if register is None:
            return True  # OpenSSL's own anti-replay has let it pass
        lib.SSL_get_client_random(self._ssl, buffer, CLIENT_RANDOM_BYTES)
        return register.first_seen(buffer_view[:CLIENT_RANDOM_BYTES])

    def _complete(self) -> None:
        ssl, context = self._ssl, self.context
        self.version = ffi.string(lib.SSL_get_version(ssl)).decode()
        self.resumed = lib.SSL_session_reused(ssl) == 1
        name, size = ffi.new("unsigned char **"), ffi.new("unsigned int *")
        lib.SSL_get0_alpn_selected(ssl, name, size)
        self.alpn = ffi.buffer(name[0], size[0])[:] if size[0] else b""
        if isinstance(context, ClientContext):
            if not self._complete_client(context):
                return
        else:
            asked = lib.SSL_get_servername(ssl, lib.TLSEXT_NAMETYPE_host_name)
            self.server_name = "" if asked == ffi.NULL else ffi.string(asked).decode("latin-1")
            if self.resumed and self._client_has_expired():
                self._fail(TLSFault(FaultKind.CERTIFICATE, "client certificate has expired since its session began"))
                return
        lib.SSL_set_info_callback(ssl, on_post_handshake)
        self.state = State.OPEN
        self._readable = self._sendable = True
        self._shrink = True
        pending, self._pending = self._pending, []
        for data in pending:
            self.send(data)

    def _complete_client(self, context: ClientContext) -> bool:
        spiffe_id = context.settings.spiffe_id
        if spiffe_id is not None and self.peer_spiffe_id != spiffe_id:  # a resumed handshake has shown no certificate
            text = f"SPIFFE id {spiffe_id} wanted, the resumed session has another"
            self._fail(TLSFault(FaultKind.CERTIFICATE, text))
            return False
        if self.early == "sent":
            self.early = "rejected"
        offered = self._offered if self.resumed else None
        self._verified_at = datetime.now(UTC).timestamp() if offered is None else offered.verified_at
        self._offered = None
        self._session = lib.SSL_get_session(self._ssl)
        if self.version == "TLSv1.2" and not self.resumed:
            self._keep_ticket(self._session)
        return True

    def _client_has_expired(self) -> bool:
        # Resumption verifies nothing again, and a ticket may outlive the certificate behind it.
        if not isinstance(self.context, ServerContext) or self.context.settings.client_ca is None:
            return False
        der = self.peer_certificate_der
        return der is None or certificate_not_after(der) < datetime.now(UTC).timestamp()

    # ---- sending

    def _send_pieces(self, start: Any, size: int) -> None:
        if self._sendable or self.in_early_data:
            super()._send_pieces(start, size)
        elif self.state is State.HANDSHAKING:
            self._pending.append(ffi.buffer(start)[:])
        else:
            raise RuntimeError("send after close")

    def _write_record(self, start: Any, size: int) -> int:
        if self.state is State.HANDSHAKING:
            return lib.SSL_write_early_data(self._ssl, start, size, ffi.new("size_t *"))  # type: ignore[no-any-return]
        return super()._write_record(start, size)

    # ---- ends and faults

    def close(self) -> None:  # noqa: D102  # described by the base
        if self.state is State.HANDSHAKING:
            self.state = State.CLOSED
            self._pending.clear()
        else:
            super().close()

    def receive_eof(self) -> None:  # noqa: D102  # described by the base
        if self.state is not State.HANDSHAKING:
            super().receive_eof()
            return
        context = self.context
        missing = self._certificate_asked and isinstance(context, ClientContext) and not context.has_certificate
        hint = " (it had asked for a client certificate)" if missing else ""
        self._fail(TLSFault(FaultKind.PROTOCOL, f"peer closed the connection during the handshake{hint}"))
        self.truncated = True

    def _fault(self, found: list[tuple[int, str]]) -> TLSFault:
        context, failure = self.context, verify_failure
        client = context if isinstance(context, ClientContext) else None
        if failure.code and self.state is State.HANDSHAKING:
            return certificate_fault(
                failure.code,
                failure.words,
                failure.depth,
                failure.der,
                wanted=self.server_name,
                spiffe_id=(client and client.settings.spiffe_id) or "",
                server=context.is_server,
            )
        for number, _text in found:
            if ALERT_REASON_OFFSET <= number < ALERT_REASON_OFFSET + 256:
                given = client is not None and client.has_certificate
                alert = number - ALERT_REASON_OFFSET
                return alert_fault(alert, certificate_asked=self._certificate_asked, certificate_given=given)
        if not found:
            return TLSFault(FaultKind.INTERNAL, "OpenSSL failed and gave no reason")
        return reason_fault(found[0][1])

    # ---- what the handshake found

    @property
    def in_early_data(self) -> bool:
        """Server role: what `receive` returns is 0-RTT, which may be a replay, until the handshake is complete.

        `send` answers at once.
        """
        accepted = self.early == "accepted" and self._held is None and self.context.is_server
        return accepted and self.state is State.HANDSHAKING

    @property
    def peer_certificate_der(self) -> bytes | None:
        """The peer's certificate (a resumed session's, where none was shown), or None."""
        certificate = lib.SSL_get_peer_certificate(self._ssl)
        if certificate == ffi.NULL:
            return None
        der = x509_to_der(certificate)
        lib.X509_free(certificate)
        return der

    @property
    def peer_spiffe_id(self) -> str:
        """The SPIFFE id in the peer's certificate, or ""."""
        der = self.peer_certificate_der
        return "" if der is None else spiffe_id_of(der)
