"""A few requests on imaginary connections before the first real one.

A process's first request meets cold code: pages not yet mapped, inline caches not yet filled, tables not yet learnt.
That costs 2 to 3 ms once, which a user would see as the proxy's latency. The rehearsal pays it before readiness: real
codecs, exchange, pool and routing, with transports that go nowhere and counters that nobody reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from proxy.downstream.connection import ServerConnection
from proxy.downstream.listener import Listener
from proxy.http.compression import huffman
from proxy.http.h2 import H2Limits, H2ServerCodec
from proxy.http.message import HeadersReceived, ResponseHead
from proxy.upstream.connection import ClientConnection

if TYPE_CHECKING:
    from proxy.exchange.service import Service
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.model import Route

ROUNDS: Final = 4
_REQUEST: Final = (
    b"GET /rehearsal HTTP/1.1\r\nhost: rehearsal\r\nuser-agent: onetrip\r\naccept: */*\r\naccept-encoding: gzip\r\n\r\n"
)
_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok"
)


class Nowhere:
    """A transport whose peer does not exist; `written` is what was sent."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        """Gone."""
        self.written += data

    def take(self) -> bytes:
        """What was sent since the last call."""
        data, self.written = self.written, b""
        return data

    def get_extra_info(self, name: str) -> Any:
        """The peer's name, where asked for."""
        return ("127.0.0.1", 0) if name == "peername" else None

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing waits."""

    def pause_reading(self) -> None:
        """Nothing comes."""

    def resume_reading(self) -> None:
        """Nothing comes."""

    def close(self) -> None:
        """Nothing is open."""

    def abort(self) -> None:
        """Nothing is open."""


def rehearse(listener: Listener, service: Service, upstream: UpstreamRuntime, route: Route) -> int:
    """Serve a few requests of `listener` by its `service` to `upstream`; none of them serves anybody else. Returns how
    many were answered.
    """
    huffman.prepare()
    pool = upstream.pools[0]
    connections: list[tuple[ClientConnection, Nowhere, H2ServerCodec | None]] = []
    for _ in range(pool.settings.warm + 1):  # so many that lending one asks for no dial
        connection = ClientConnection(upstream.turn, pool, None)
        transport = Nowhere()
        connection.connection_made(transport)  # type: ignore[arg-type]
        connection.expires = float("inf")
        pool.stock.connections.add(connection)
        pool.release(connection)
        connections.append((connection, transport, H2ServerCodec(H2Limits()) if connection.codec.multiplexed else None))
    service.route((route,), {route.upstream: upstream}, warm=False)
    client: ServerConnection = listener.accept()
    client.connection_made(Nowhere())  # type: ignore[arg-type]
    for _ in range(ROUNDS):
        client.data_received(_REQUEST)
        for connection, transport, origin in connections:
            sent = transport.take()
            if sent:
                connection.data_received(_answer(origin, sent) if origin is not None else _ANSWER)
    listener.timers.cancel(client)
    return sum(listener.counters.codes.values())


def _answer(origin: H2ServerCodec, sent: bytes) -> bytes:
    """What an origin that speaks HTTP/2 says to that."""
    for event in origin.receive(sent):
        if isinstance(event, HeadersReceived):
            head = ResponseHead(200, [(b"content-type", b"text/plain")], {}, content_length=2)
            origin.send_headers(event.stream_id, head, False)
            origin.send_data(event.stream_id, b"ok", True)
    return origin.data_to_send()
