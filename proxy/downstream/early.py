"""Requests in a client's 0-RTT data that must not be acted upon before its handshake is complete.

Anyone on the path can send a first flight a second time, but only the client can finish the handshake. So what is not
safe to execute twice waits for that (RFC 8470 section 3). What waits is bounded by the early data that a server
accepts, which is one record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.http.stream import StreamHandler

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields, RequestHead, ResponseHead
    from proxy.http.stream import RequestHandler


class HeldRequest(StreamHandler):
    """Stands in for an exchange until `on_confirmed`, which hands over all that came for it."""

    __slots__ = ("_chunks", "_end", "_exchange", "_head", "_stream", "_trailers")

    def __init__(self, exchange: RequestHandler, stream: ConnectionStream, head: RequestHead, end: bool) -> None:
        self._exchange = exchange
        self._stream = stream
        self._head = head
        self._end = end
        self._chunks: list[tuple[bytes, bool]] = []
        self._trailers: Fields | None = None
        stream.handler = self
        stream.pause()

    def __repr__(self) -> str:
        return f"<HeldRequest {self._head!r}>"

    def on_confirmed(self) -> None:
        """The handshake is complete."""
        stream, exchange = self._stream, self._exchange
        if stream.handler is not self:
            return  # the client gave it up
        stream.handler = exchange
        exchange.on_headers(self._head, self._end)
        for data, end in self._chunks:
            if stream.handler is exchange:
                exchange.on_data(data, end)
        if self._trailers is not None and stream.handler is exchange:
            exchange.on_trailers(self._trailers)
        if stream.handler is exchange:
            stream.resume()

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """A request has one head, and this handler was made of it."""

    def on_data(self, data: bytes, end: bool) -> None:
        """Body bytes that came early."""
        self._chunks.append((data, end))

    def on_trailers(self, fields: Fields) -> None:
        """Trailers that came early."""
        self._trailers = fields

    def on_writable(self) -> None:
        """Nothing is being sent."""

    def on_reset(self, error: ProxyError) -> None:
        """The client gave it up; nothing has been done for it."""


__all__ = ["HeldRequest"]
