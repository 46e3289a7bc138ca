"""Requests in a client's 0-RTT data that must not be acted upon before its handshake is complete.

Anyone on the path can send a first flight a second time, but only the client can finish the handshake. So what is not
safe to execute twice waits for that (RFC 8470 section 3). What waits is bounded by the early data that a server
accepts, which is one record, and by `HELD_MAX`.

It owns what waits, and never looks at the handshake: the connection says when that is complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.http.stream import StreamHandler
from routing.retry import SAFE_METHODS
from tlscache.early_data import may_travel_early

if TYPE_CHECKING:
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields, RequestHead, ResponseHead
    from proxy.http.stream import RequestHandler

HELD_MAX: Final = 16  # requests of a connection's 0-RTT data that wait for the handshake; more are answered 425


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


class EarlyRequests:
    """The requests of one connection whose client's handshake is not complete yet."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[HeldRequest | RequestHandler] = []

    def take(self, handler: RequestHandler, stream: ConnectionStream, head: RequestHead, end: bool) -> None:
        """A request in 0-RTT data: a safe one goes on, saying so; others wait for the handshake, or are refused."""
        upgrade, expect = len(head.upgrade) > 0, head.expect_continue
        safe = head.method in SAFE_METHODS
        if may_travel_early(safe=safe, enabled=True, has_body=not end, upgrade=upgrade, expect_continue=expect):
            head.early = True
            handler.on_headers(head, end)
        elif len(self._waiting) < HELD_MAX:
            self._waiting.append(HeldRequest(handler, stream, head, end))
        else:
            text = f"more than {HELD_MAX} requests that have to wait for the TLS handshake"
            handler.refuse_head(head, ProxyError(Kind.TOO_EARLY, text))

    def wait(self, handler: RequestHandler) -> None:
        """One that went on would now rather wait (`on_confirmed`)."""
        self._waiting.append(handler)

    def confirmed(self) -> None:
        """The handshake is complete: what came was no replay."""
        for one in self._waiting:
            one.on_confirmed()


__all__ = ["EarlyRequests", "HeldRequest"]
