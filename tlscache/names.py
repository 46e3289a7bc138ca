"""Names on the wire: server names and the certificates they choose, application protocols, addresses."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .certificates import ContextError
from .fault import certificate_names
from .openssl import ffi, lib

if TYPE_CHECKING:
    from cryptography import x509


class CertificatesByName:
    """A server's certificates by the names they are for: exact ones, and `*.` for one label (RFC 9525 section 6.3).

    `keeper`, which the contexts call back into, lives as long.
    """

    def __init__(self, keeper: object = None) -> None:
        self.keeper = keeper
        self.default: Any = None
        self.exact: dict[str, Any] = {}
        self.wildcard: dict[str, Any] = {}

    def add(self, handle: Any, leaf: x509.Certificate) -> None:
        """Serve `handle` for the names in `leaf`, unless an earlier certificate has them."""
        if self.default is None:
            self.default = handle
        for name in map(str.lower, certificate_names(leaf)):
            if name.startswith("*."):
                self.wildcard.setdefault(name[2:], handle)
            else:
                self.exact.setdefault(name, handle)

    def select_certificate(self, ssl: Any) -> None:
        """See `ticket_keys.Owner`."""
        asked = lib.SSL_get_servername(ssl, lib.TLSEXT_NAMETYPE_host_name)
        name = "" if asked == ffi.NULL else ffi.string(asked).decode("latin-1")
        lib.SSL_set_SSL_CTX(ssl, self.pick(name))

    def pick(self, name: str) -> Any:
        """The `SSL_CTX *` for a server name; the default's where none fits."""
        name = name.lower().rstrip(".")
        found = self.exact.get(name)
        if found is None:
            found = self.wildcard.get(name.partition(".")[2])
        return self.default if found is None else found


def alpn_choice(offer: bytes, ours: tuple[bytes, ...]) -> int:
    """Where in a client's list (RFC 7301 section 3.1) the length byte of our most preferred protocol is, or -1."""
    places: dict[bytes, int] = {}
    place = 0
    while place < len(offer):
        end = place + 1 + offer[place]
        places.setdefault(offer[place + 1 : end], place)
        place = end
    return next((places[name] for name in ours if name in places), -1)


def alpn_bytes(names: tuple[bytes, ...]) -> bytes:
    """A protocol list in wire form. ContextError where a name is empty or longer than 255 bytes."""
    if any(not 0 < len(name) < 256 for name in names):
        raise ContextError("", f"an ALPN name has between 1 and 255 bytes: {names}")
    return b"".join(bytes((len(name),)) + name for name in names)


@lru_cache(1024)
def ip_bytes(name: str) -> bytes:
    """An IP literal as 4 or 16 bytes; b"" where `name` is none."""
    try:
        return ipaddress.ip_address(name.strip("[]").partition("%")[0]).packed
    except ValueError:
        return b""


def ascii_name(name: str) -> bytes:
    """A host name as it stands in certificates and in SNI (RFC 5890). ContextError where it is none."""
    try:
        return name.encode("ascii") if name.isascii() else name.encode("idna")
    except UnicodeError as error:
        raise ContextError("", f"server name {name!r} is no host name: {error}") from None
