"""A request's body as far as it is kept: for another try, or for the tunnel that the request asks for.

    KEPT (`chunks`) ── more than `REPLAY_BYTES`, or an answer ──> PASSING: nothing more is kept, and no try can follow

At most `REPLAY_BYTES` are kept, and what the reader had begun to hand over. Past that the client waits while nobody is
there to take the body; a live attempt goes on, and none can follow. A request that ends with its head has no `Body`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields

REPLAY_BYTES: Final = 64 * 1024


class Body:
    """`ended`: all of it came, trailers included; `ended_at`: when (0.0: it has not). Of an upgrade or CONNECT, what
    comes before the answer belongs to the tunnel: such a request is complete with its head.
    """

    __slots__ = ("chunks", "ended", "ended_at", "for_tunnel", "paused", "size", "stream", "trailers", "tunnel_ended")

    def __init__(self, stream: ConnectionStream, for_tunnel: bool) -> None:
        self.stream = stream
        self.for_tunnel = for_tunnel
        self.ended = for_tunnel
        self.ended_at = 0.0
        self.chunks: list[bytes] | None = []  # None: passing
        self.size = 0
        self.trailers: Fields | None = None
        self.tunnel_ended = False  # the client ended its half before there was a tunnel
        self.paused = False

    def __repr__(self) -> str:
        return f"<Body {'passing' if self.chunks is None else 'kept'} {self.size} bytes ended={self.ended}>"

    @property
    def full(self) -> bool:
        """Whether it is more than what is kept."""
        return self.size > REPLAY_BYTES

    def keep(self, data: bytes) -> None:
        """Keep bytes, unless it is passing."""
        chunks = self.chunks
        if chunks is not None and data:
            chunks.append(data)
            self.size += len(data)

    def let_go(self) -> None:
        """Keep nothing any more."""
        self.chunks = None

    def pause(self) -> None:
        """The origin (or what is kept) takes no more: stop reading. Idempotent."""
        if not self.paused:
            self.paused = True
            self.stream.pause()

    def resume(self) -> None:
        """Read on. Idempotent."""
        if self.paused:
            self.paused = False
            self.stream.resume()
