"""How the endpoints of an upstream are reached: names, sockets, TLS, and the HTTP version, as one value.

Everything that can be wrong with it shows when it is made (files are read then), so a reload makes the next one before
it changes anything. Connections keep what they were made with; a pool whose reach speaks another `identity` than the
next one's is replaced.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.http.h1 import H1ClientCodec, H1Limits
from proxy.http.h2 import STREAMS_BEFORE_SETTINGS, H2ClientCodec, H2Limits
from proxy.net.dial import SocketOptions, open_socket
from tlscache.context import ClientContext, ClientSettings
from tlscache.fault import FaultKind

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from proxy.config import UpstreamSection
    from proxy.http.stream import Codec
    from proxy.net.resolver import Resolver, SockAddress
    from routing.model import Endpoint
    from tlscache.cache import EndpointSessions, Sessions
    from tlscache.engine import TLSEngine

ALPN: Final[dict[str, tuple[bytes, ...]]] = {
    "auto": (b"h2", b"http/1.1"),
    "h1": (b"http/1.1",),
    "h2": (b"h2",),
    "tcp": (),
}
"""What connections to an upstream offer, by its `protocol`."""

LOCAL_NAME: Final = "localhost"
"""What a TLS connection to a Unix socket is made to: the socket has no name of its own."""

ORIGIN_LIMITS: Final = H1Limits(header_bytes=256 * 1024, headers=1024)
"""What origins send is bounded too, more generously than what clients do."""


class Reach:
    """See the module. Raises ContextError where certificates or authorities can't be used."""

    def __init__(
        self, section: UpstreamSection, resolver: Resolver, sessions: Sessions, before: Reach | None = None
    ) -> None:
        self.protocol = section.protocol
        self.resolver = resolver
        self.refresh_s = section.dns.refresh
        self.connect_s = section.timeouts.connect
        self.proxy_protocol = section.proxy_protocol
        self.identity = (section.protocol, section.tls, section.proxy_protocol)
        """What a connection that exists would have to be made anew for."""
        self.socket_options = SocketOptions(keepalive_s=section.pool.keepalive)
        # With TLS the ClientHello rides in the SYN; without it a warm connection would stay unconnected.
        self.tls_socket_options = replace(self.socket_options, fast_open=section.fast_open and section.tls is not None)
        self.server_name = section.tls.server_name if section.tls is not None else None
        self._sessions = sessions
        self.tls: ClientContext | None = None
        self._apart: ClientContext | None = None
        self._sessions_of: dict[tuple[Endpoint, bool], EndpointSessions] = {}
        if before is not None and before.identity == self.identity and before.is_current:
            self.tls, self._apart, self._sessions_of = before.tls, before._apart, before._sessions_of
        elif (settings := client_settings(section)) is not None:
            self.tls = ClientContext(settings)
        self.scheme = b"https" if self.tls is not None else b"http"

    def __repr__(self) -> str:
        return f"<Reach {self.protocol} {self.scheme.decode()}>"

    # -- names and sockets -------------------------------------------------------------------------

    async def open_socket(self, endpoint: Endpoint, options: SocketOptions) -> tuple[socket.socket, float, float]:
        """A connected socket, and the seconds that the name and the connect took. Raises ProxyError."""
        return await open_socket(endpoint, self.resolver, options, self.refresh_s, self.connect_s)

    def addresses(self, endpoint: Endpoint) -> list[SockAddress] | None:
        """What is known of an endpoint's name without waiting (a refresh starts where it is due); None: nothing yet, or
        it has none.
        """
        if endpoint.path:
            return None
        return self.resolver.known(endpoint.host, endpoint.port, self.refresh_s)

    def is_old(self, endpoint: Endpoint) -> bool:
        """Whether a dial should wait for news of the endpoint's name."""
        return self.resolver.is_old(endpoint.host, endpoint.port, self.refresh_s)

    # -- TLS ---------------------------------------------------------------------------------------

    def sessions_of(self, endpoint: Endpoint, *, apart: bool = False) -> EndpointSessions | None:
        """The TLS sessions of connections to the endpoint; None for plaintext. `apart`: of those for upgrades."""
        tls = self.tls
        if tls is None:
            return None
        found = self._sessions_of.get((endpoint, apart))
        if found is None:
            if apart:
                tls = self._apart = self._apart or ClientContext(replace(tls.settings, alpn=ALPN["h1"]))
            host, server_name = endpoint.path or endpoint.host, endpoint.host or LOCAL_NAME
            found = self._sessions.of(host, endpoint.port, server_name, tls)
            self._sessions_of[endpoint, apart] = found
        return found

    @property
    def is_current(self) -> bool:
        """Whether the files that it was made from are still the same."""
        return self.tls is None or self.tls.is_current

    def reload_certificates(self) -> str | None:
        """Look whether certificate files changed. Returns what is wrong with the new ones (the old ones stay)."""
        tls = self.tls
        if tls is None:
            return None
        before = tls.scope_material
        problem = tls.reload_if_changed()
        if tls.scope_material != before:
            self._apart = None
            self._sessions_of.clear()  # what was verified in another way proves nothing now
        return problem

    @staticmethod
    def tls_error(endpoint: Endpoint, engine: TLSEngine) -> ProxyError:
        """Why a handshake with the endpoint failed."""
        fault = engine.error
        kind = Kind.CERTIFICATE if fault is not None and fault.kind is FaultKind.CERTIFICATE else Kind.TLS
        return ProxyError(kind, f"{endpoint}: {fault or 'the TLS handshake was cut off'}", unprocessed=True)

    # -- HTTP --------------------------------------------------------------------------------------

    @property
    def dials_apart(self) -> bool:
        """An upgrade that HTTP/2 connections to the endpoints don't take may go over HTTP/1.1."""
        return self.tls is not None and self.protocol == "auto"

    @property
    def streams_expected(self) -> int:
        """How many requests a connection takes at once, as far as that is known before there is one."""
        return STREAMS_BEFORE_SETTINGS if self.protocol == "h2" else 1

    def new_codec(self, alpn: bytes, streams: int = 1) -> Codec:
        """The codec for what was agreed on; without TLS, HTTP/2 is spoken where the config says that the origin knows
        it. `streams`: how many the endpoint took at once on an earlier connection.
        """
        if alpn == b"h2" or self.protocol == "h2":
            return H2ClientCodec(
                H2Limits(header_bytes=ORIGIN_LIMITS.header_bytes, headers=ORIGIN_LIMITS.headers),
                streams if streams > 1 else STREAMS_BEFORE_SETTINGS,
            )
        return H1ClientCodec(ORIGIN_LIMITS)

    def authority(self, endpoint: Endpoint) -> bytes:
        """What a request of our own puts into `host`."""
        if self.server_name:
            return self.server_name.encode()
        return str(endpoint).encode() if not endpoint.path else b"localhost"


def client_settings(section: UpstreamSection) -> ClientSettings | None:
    """TLS towards an upstream's endpoints; None for plaintext."""
    tls = section.tls
    if tls is None:
        return None
    return ClientSettings(
        server_name=tls.server_name,
        ca=_text(tls.ca),
        certificate=_text(tls.certificate),
        key=_text(tls.key),
        verify=tls.verify,
        alpn=ALPN[section.protocol],
        spiffe_id=tls.spiffe_id,
        early_data=tls.early_data,
        groups=":".join(tls.groups) or None,
    )


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
