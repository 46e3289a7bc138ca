"""A client's side of TLS without I/O: bytes from the socket in, plaintext and bytes for the socket out.

The handshake's end is seen when it happens, so that its phase can be timed apart from connecting and from the first
byte; the session is handed out for the next connection to resume.
"""

from __future__ import annotations

import ssl
from typing import Final

_READ_BYTES: Final = 262_144


def client_context(*, insecure: bool, ca: str, alpn: str) -> ssl.SSLContext:
    """Settings for connections to one target. `ca`: a PEM file, or "" for the system's. OSError, ssl.SSLError: it can't
    be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([alpn])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        context.load_verify_locations(ca)
    else:
        context.load_default_certs()
    return context


class ClientTls:
    """One connection. `receive` raises ssl.SSLError where the handshake or a record fails; `closed`: the peer said it
    is done.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "closed", "established")

    def __init__(self, context: ssl.SSLContext, server_name: str, session: ssl.SSLSession | None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name, session=session)
        self.established = False
        self.closed = False

    @property
    def resumed(self) -> bool:
        """The handshake continued an earlier session: no certificate was sent."""
        return bool(self._tls.session_reused)

    @property
    def session(self) -> ssl.SSLSession | None:
        """The newest session that may be resumed. In TLS 1.3 it comes after the handshake, with the first data."""
        session = self._tls.session
        return session if session is not None and session.has_ticket else None

    @property
    def alpn(self) -> str:
        """The protocol that was agreed on, "" for none."""
        return self._tls.selected_alpn_protocol() or ""

    @property
    def version(self) -> str:
        """The TLS version, such as TLSv1.3."""
        return self._tls.version() or ""

    def start(self) -> bytes:
        """The first bytes for the peer."""
        self._handshake()
        return self._outgoing.read()

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes from the peer; return plaintext and bytes for the peer."""
        self._incoming.write(data)
        if not self.established:
            self._handshake()
            if not self.established:
                return b"", self._outgoing.read()
        plain = b""
        try:
            while True:
                piece = self._tls.read(_READ_BYTES)
                if not piece:
                    self.closed = True
                    break
                plain = plain + piece if plain else piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        return plain, self._outgoing.read() if self._outgoing.pending else b""

    def pending(self) -> bytes:
        """What is left for the peer after a failure: its alert."""
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        """Plaintext as records for the peer."""
        self._tls.write(data)
        return self._outgoing.read()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.established = True
