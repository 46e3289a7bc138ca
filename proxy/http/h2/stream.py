"""One HTTP/2 stream, and the bounds of a connection that has many.

A stream is two halves, `receiving` and `sending`, each in a `Half`:

    HEAD ──► BODY ──► END             receiving: a head is awaited (client role), then DATA or trailers, then nothing
      │        │                      sending: the same; ENDING is a body that is complete but held by the peer's window
      └► DISCARD ──► END              receiving: the rest of a request is not wanted, and what still comes is dropped

It is gone when both halves have ended, or when either side resets it (RFC 9113 section 5.1).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from . import frames as wire

if TYPE_CHECKING:
    from proxy.http.message import Fields


@dataclass(frozen=True, slots=True)
class H2Limits:
    """Bounds of one connection, in bytes unless named otherwise.

    Past `header_bytes` (name, value and 32 for each field) and `headers`: 431; past `body_bytes` (0: unlimited): 413;
    past `max_concurrent_streams`: REFUSED_STREAM. Windows: a path of 100 Mbit/s and 150 ms needs 1.9 MB in flight.
    While a client holds `held_bytes` of its answers back by its windows, its further requests are refused, and a
    stream of which nothing goes out for `stall_ticks` seconds is reset.
    """

    header_bytes: int = 65536
    headers: int = 128
    body_bytes: int = 0
    max_concurrent_streams: int = 1024
    stream_window: int = 256 * 1024
    stream_window_max: int = 8 * 1024 * 1024
    connection_window: int = 16 * 1024 * 1024
    held_bytes: int = 16 * 1024 * 1024
    stall_ticks: int = 60


class Half(Enum):
    """How far one direction of a stream is."""

    HEAD = "head"
    BODY = "body"
    DISCARD = "discard"
    ENDING = "ending"
    END = "end"


class H2Stream:
    """One stream.

    `body_left` is what `content-length` still announces, or None; `held` waits for the peer's window.
    """

    __slots__ = (
        "body_left",
        "body_size",
        "credit",
        "held",
        "held_bytes",
        "interim",
        "key",
        "method",
        "queued",
        "receive_left",
        "receiving",
        "send_window",
        "sending",
        "stalled",
        "stalled_ticks",
        "stream_id",
        "trailers",
        "tunnel",
        "unconsumed",
        "upgrade",
        "window",
    )

    def __init__(self, stream_id: int, send_window: int, window: int, receiving: Half) -> None:
        self.stream_id = stream_id
        self.receiving = receiving
        self.sending = Half.HEAD
        self.send_window = send_window
        self.window = window  # the receive window's size
        self.receive_left = window if window > wire.WINDOW_DEFAULT else wire.WINDOW_DEFAULT
        self.credit = 0  # consumed and not yet given back
        self.unconsumed = 0
        self.body_left: int | None = None
        self.body_size = 0
        self.held: deque[memoryview] | None = None
        self.held_bytes = 0
        self.queued = False  # in the connection's round
        self.stalled = False  # `send_data` said False
        self.stalled_ticks = 0  # since the peer last let anything of `held` go
        self.trailers: Fields | None = None
        self.tunnel = False  # CONNECT, or an upgrade: the body is somebody else's protocol
        self.upgrade = b""
        self.key = b""  # of a WebSocket's handshake
        self.method = b""
        self.interim = 0

    def __repr__(self) -> str:
        return f"<H2Stream {self.stream_id} receiving {self.receiving.value} sending {self.sending.value}>"
