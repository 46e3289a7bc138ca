"""A client's connection until its first request can be read.

It begins with what the listener asks for, in this order: a PROXY header, a TLS handshake, then the HTTP version (ALPN,
or the HTTP/2 preface); the codec that follows from it is `begin`s. Steps of handshakes take turns: one costs as much as
many requests.

It owns the bytes that come before there is a codec, and never reads a request.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, cast

import msgspec

from proxy.errors import Kind, ProxyError
from proxy.http.connection import WRITE_HIGH_WATER
from proxy.http.h1 import H1ServerCodec
from proxy.http.h2 import H2Limits, H2ServerCodec
from proxy.http.serving import Downstream, Hop
from proxy.net.address import unmapped
from tlscache.engine import State as TLSState
from tlscache.engine import TLSEngine

from .base import BaseListener
from .early import EarlyRequests
from .proxy_protocol import NotProxyProtocol, ProxyProtocolReader

if TYPE_CHECKING:
    import asyncio

    from proxy.http.h1 import H1Limits
    from proxy.http.serving import RequestService
    from proxy.http.stream import Codec
    from proxy.loop.timers import Timed

FLIGHT_BYTES_MAX: Final = 32 * 1024  # of a handshake that waits for its turn
H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_OVERLOADED: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n"
    b'proxy-status: onetrip; error=connection_limit_reached; details="limits.connections is reached"\r\n\r\n'
)


class State(Enum):
    """Where a client connection stands."""

    PRELUDE = "prelude"
    OPEN = "open"
    LINGERING = "lingering"
    CLOSED = "closed"


# As constants: an attribute of an Enum class costs the hot path a look-up each time.
_PRELUDE: Final = State.PRELUDE
_CLOSED: Final = State.CLOSED
_TLS_OPEN: Final = TLSState.OPEN


class HttpListener(BaseListener["Opening"]):
    """A listener, as its connections see it."""

    service: RequestService  # who answers


def codec_for(alpn: bytes, limits: H1Limits) -> Codec:
    """The codec that ALPN, or the first bytes, asked for."""
    if alpn == b"h2":
        return H2ServerCodec(
            H2Limits(header_bytes=limits.header_bytes, headers=limits.headers, body_bytes=limits.body_bytes)
        )
    return H1ServerCodec(limits)


class Opening(Downstream):
    """What `ServerConnection` is before it is one."""

    __slots__ = (
        "early",
        "flight",
        "head_since",
        "idle_since",
        "listener",
        "prelude",
        "proxy_header",
        "state",
        "timer_bucket",
    )

    def __init__(self, listener: HttpListener) -> None:
        super().__init__(listener.turn)
        self.listener = listener
        self.state = _PRELUDE
        self.timer_bucket: set[Timed] | None = None
        self.client = ""
        self.log_start = b""
        self.early: EarlyRequests | None = None  # 0-RTT is served
        self.idle_since = 0.0
        self.head_since = 0.0
        self.prelude = b""
        self.flight = b""  # of the client's TLS handshake, while it waits for its turn
        self.proxy_header: ProxyProtocolReader | None = None

    # -- what a subclass does ----------------------------------------------------------------------

    def begin(self, codec: Codec, data: bytes) -> None:
        """The prelude is over; `data` came with it."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        raise NotImplementedError

    def take(self, data: bytes) -> None:
        """Bytes from the client whose turn it is."""
        raise NotImplementedError

    def on_timer(self, now: float) -> None:
        """The connection's one timer."""
        raise NotImplementedError

    def drain(self) -> None:
        """Take no new requests."""
        raise NotImplementedError

    def end_now(self) -> None:
        """Close, whatever is under way."""
        raise NotImplementedError

    # -- the beginning -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        transport = cast("asyncio.Transport", transport)
        self.transport = transport
        listener = self.listener
        counters = listener.counters
        counters.accepted += 1
        counters.connections += 1
        listener.connections.add(self)
        settings = listener.settings
        if len(listener.connections) > settings.connection_limit:
            counters.refused += 1
            self.state = _CLOSED
            if settings.tls is None:
                transport.write(_OVERLOADED)
            transport.close()
            return
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        peer = transport.get_extra_info("peername")
        self._set_client(unmapped(peer[0]) if isinstance(peer, tuple) and peer else "")
        now = self.head_since = self.idle_since = self.turn.now
        if settings.proxy_protocol:
            self.proxy_header = ProxyProtocolReader()
        if settings.tls is not None:
            self.engine = TLSEngine(settings.tls)
        listener.timers.set(self, now + settings.header_timeout_s, now)

    def _set_client(self, address: str) -> None:
        listener = self.listener
        settings = listener.settings
        self.client = address or "unix"
        self.log_start = msgspec.json.encode({"listener": listener.name, "client": self.client})[1:-1]
        proto = b"https" if settings.tls is not None else b"http"
        trusted, loop_name = settings.trusts(address), settings.via_name + b"-" + settings.instance
        self.hop = Hop(address.encode() or b"unknown", proto, settings.via_name, trusted, loop_name)

    def queue_flight(self, data: bytes) -> None:
        """A step of a handshake costs as much as many requests: those of a thousand clients at once take turns."""
        self.flight += data
        if not self.waiting:
            self.waiting = True
            self.turn.wait(self)
        if len(self.flight) > FLIGHT_BYTES_MAX and not self.read_paused and self.transport is not None:
            self.read_paused = True
            self.transport.pause_reading()

    def take_flight(self) -> None:
        """Go on with the handshake."""
        flight, self.flight = self.flight, b""
        transport = self.transport
        if self.read_paused and transport is not None and not transport.is_closing():
            self.read_paused = False
            transport.resume_reading()
        if flight and transport is not None:
            self.take(flight)

    def read_prelude(self, data: bytes) -> None:
        """PROXY header, TLS handshake, or the first plaintext bytes."""
        reader = self.proxy_header
        if reader is not None:
            found = reader.receive(data)
            if found is None:
                return
            if isinstance(found, NotProxyProtocol):
                self.listener.log.warning(
                    "proxy_header_refused", listener=self.listener.name, client=self.client, reason=found.details
                )
                self.end_now()
                return
            self.proxy_header = None
            if found.source is not None:
                self._set_client(found.source[0])
            data = reader.rest
            if self.engine is not None:
                if data:
                    self.data_received(data)
                return
        engine = self.engine
        if engine is not None:
            if engine.state is _TLS_OPEN:
                data, self.prelude = self.prelude + data, b""
                self.begin(codec_for(engine.alpn, self.listener.settings.limits), data)
                return
            if not data or engine.state is not TLSState.HANDSHAKING:
                return
        self.prelude += data
        if H2_PREFACE.startswith(self.prelude[: len(H2_PREFACE)]) and len(self.prelude) < len(H2_PREFACE):
            return  # may still become HTTP/2 with prior knowledge
        data, self.prelude = self.prelude, b""
        if data:
            if engine is not None:
                # 0-RTT; ALPN's choice is reported at the handshake's end, the first bytes tell as well
                self.early = EarlyRequests()
            alpn = b"h2" if data.startswith(H2_PREFACE) else b""
            self.begin(codec_for(alpn, self.listener.settings.limits), data)

    def drive_tls(self, engine: TLSEngine) -> None:
        """Send what the handshake says; one that failed ends the connection."""
        transport = self.transport
        data = engine.data_to_send()
        if data and transport is not None:
            transport.write(data)
        if engine.state is TLSState.FAILED:
            if self.state is _PRELUDE:
                self.listener.counters.tls_failures += 1
                self.listener.log.info(
                    "tls_handshake_failed", listener=self.listener.name, client=self.client, reason=str(engine.error)
                )
            self.fail_streams(ProxyError(Kind.CLIENT_LEFT, f"TLS with the client failed: {engine.error}"))
            self.end_now()
