"""Ticket keys that several processes share: contexts made before a fork.

OpenSSL draws a server context's ticket keys when the context is made, and `cryptography` binds nothing that would read
or set them. What passes them on is a fork. So a program makes blank contexts once, and every process that descends from
it takes the same one for the same purpose: workers, the replacements of dead ones, and successors
(`proxy.process.forkserver`).

The register against replays comes along: where a ticket is good in two processes, a first flight must be known to both.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from .openssl import ffi, lib
from .replay import ReplayRegister

CONTEXTS: Final = 64  # 29 KB and a tenth of a millisecond each


class Owner(Protocol):
    """Whoever has the certificates for connections that begin with a base."""

    def select_certificate(self, ssl: Any) -> None:
        """Switch a connection whose ClientHello has come to the context of the certificate for its server name."""


class Base:
    """The context (`handle`, an `SSL_CTX *`) that connections begin with: it holds ticket keys, and no certificate.

    `owner` answers for it: that of the last connection made with it. `is_set_up` is for its owners to note.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.owner: Owner | None = None
        self.is_set_up = False
        self._on_server_name = ffi.callback(
            "int(SSL *, int *, void *)", self._select_certificate, error=lib.SSL_TLSEXT_ERR_ALERT_FATAL
        )
        lib.SSL_CTX_set_tlsext_servername_callback(handle, self._on_server_name)

    def _select_certificate(self, ssl: Any, _alert: Any, _argument: Any) -> int:
        # Called for every ClientHello, also one without a server name.
        assert self.owner is not None
        self.owner.select_certificate(ssl)
        return int(lib.SSL_TLSEXT_ERR_OK)


def new_base() -> Base:
    """A base with ticket keys of its own."""
    return Base(_new_handle())


def _new_handle() -> Any:
    return ffi.gc(lib.SSL_CTX_new(lib.TLS_server_method()), lib.SSL_CTX_free)


class TicketKeys:
    """`contexts` sets of ticket keys, and a register against replays, for this process and all that it forks."""

    def __init__(self, contexts: int = CONTEXTS) -> None:
        self.replays = ReplayRegister()
        self._blank = [_new_handle() for _ in range(contexts)]
        self._taken: dict[int, tuple[bytes, Base]] = {}

    def base(self, purpose: bytes) -> Base:
        """The base for what is served with these settings: `purpose` is a digest of them.

        The same in each process, unless two purposes fall on one place (then the order decides). With all places taken
        by others it has keys that only processes forked from now on share.
        """
        places = len(self._blank)
        wanted = int.from_bytes(purpose[:8], "big")
        for place in ((wanted + step) % places for step in range(places)):
            held = self._taken.get(place)
            if held is None:
                held = self._taken[place] = purpose, Base(self._blank[place])
            if held[0] == purpose:
                return held[1]
        return new_base()
