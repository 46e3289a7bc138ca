"""The narrow waist: every HTTP version adapts to these three contracts, and `Exchange` and `Attempt` know nothing else.

    socket bytes ── TLS ── Codec ── Stream ⇄ StreamHandler

Three codecs on each side would make nine pairs; through the waist they make six adapters. A codec is sans-I/O: bytes
in, events out, bytes out. A connection (`tcp`) owns the socket, the TLS engine and one codec, and hands out a
`Stream` per request. Whoever drives the request (an `Exchange` downstream, an `Attempt` upstream) is its
`StreamHandler`.

Rules:
- What a peer sends makes events, never exceptions. Calls in the wrong order are our bugs and may raise.
- `consumed` is the only backpressure: a byte that was not consumed is not replaced by the peer, in every version.
- `reset` is idempotent, and no callback comes after it.
- Callbacks of one stream come in order: headers (interim ones first), data, trailers; then nothing but `on_reset`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.errors import ProxyError

    from .message import Event, Fields, RequestHead, ResponseHead


class Codec(ABC):
    """One connection's protocol state, for either role, without I/O."""

    __slots__ = ()

    @property
    def tunnel(self) -> bool:
        """Bytes of another protocol, which knows by itself when it is complete: an end of TCP alone is one."""
        return False

    @property
    @abstractmethod
    def multiplexed(self) -> bool:
        """Several requests may be open at once; and receiving may produce bytes to send (acknowledgements)."""

    @property
    @abstractmethod
    def pending(self) -> bool:
        """Server role: bytes that were held can be read now: call `receive(b"")`. Ask after what ends a response or
        opens a tunnel.
        """

    @property
    @abstractmethod
    def send_eof(self) -> bool:
        """True: our side has ended with the connection open (a tunnel): shut down writing once `data_to_send` has been
        written.
        """

    @abstractmethod
    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the peer (plaintext), return what they mean. Any chunking of the same bytes gives the same
        events.
        """

    @abstractmethod
    def receive_eof(self) -> list[Event]:
        """The peer will send no more: the ends or resets of what was still open."""

    @property
    @abstractmethod
    def partial(self) -> bool:
        """Server role: a request's head has begun and is not complete."""

    @abstractmethod
    def expire(self, error: ProxyError) -> list[Event]:
        """Server role: the unfinished head took too long. Its refusal, to be answered with `error`."""

    @abstractmethod
    def open_stream(self) -> int:
        """Client role: the id for a new request. `can_open` must be true."""

    @property
    @abstractmethod
    def can_open(self) -> bool:
        """Client role: another request may start on this connection now."""

    @abstractmethod
    def send_headers(self, stream_id: int, head: RequestHead | ResponseHead, end: bool) -> None:
        """Send a head. `end`: no body and no trailers follow.

        A request with `upgrade`, or CONNECT, has no `end` in either role: the response decides whether a tunnel
        follows.
        """

    @abstractmethod
    def send_data(self, stream_id: int, data: bytes, end: bool) -> bool:
        """Send body bytes. False: flow control holds some of them back; `StreamWritable` tells when they have gone."""

    @abstractmethod
    def send_trailers(self, stream_id: int, fields: Fields) -> None:
        """Send the trailer section (dropped where the version, or the framing in use, has none) and end the message."""

    @abstractmethod
    def reset(self, stream_id: int, error: ProxyError | None) -> None:
        """End a stream at once (`error` None: it is simply no longer wanted). h1 can only close: `closing` becomes
        true.
        """

    @abstractmethod
    def consumed(self, stream_id: int, size: int) -> None:
        """Body bytes have left our buffers: give the peer credit for as many."""

    @abstractmethod
    def tick(self) -> None:
        """A second has passed: allowances against floods are renewed."""

    @abstractmethod
    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life (8 bytes, echoed in `PingAcknowledged`); h1 has none."""

    @property
    @abstractmethod
    def stream_limit(self) -> int:
        """Client role: how many requests the peer takes at once."""

    @property
    def upgrades(self) -> bool | None:
        """Client role: whether the peer can be asked for an upgrade; None while that is not known."""
        return True

    @abstractmethod
    def drain(self) -> None:
        """Take no new requests: GOAWAY, or `connection: close` on the next head."""

    @abstractmethod
    def data_to_send(self) -> bytes:
        """Bytes for the peer since the last call, b"" where there are none."""

    @property
    @abstractmethod
    def reading(self) -> bool:
        """False: unconsumed bytes fill the codec's bound; stop reading from the socket until it is true again."""

    @property
    @abstractmethod
    def closing(self) -> bool:
        """True: close the connection once `data_to_send` has been written."""


class Stream(ABC):
    """One request's half of a connection, as `Exchange` and `Attempt` see it."""

    __slots__ = ()

    @abstractmethod
    def send_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """Send a head. `end`: nothing follows."""

    @abstractmethod
    def send_data(self, data: bytes, end: bool) -> bool:
        """Send body bytes. False: above the high-water mark; wait for `on_writable`."""

    @abstractmethod
    def send_trailers(self, fields: Fields) -> None:
        """Send the trailer section and end the message."""

    @abstractmethod
    def pause(self) -> None:
        """Stop delivering data. Counted: several parties may pause."""

    @abstractmethod
    def resume(self) -> None:
        """Undo one `pause`."""

    @abstractmethod
    def reset(self, error: ProxyError | None) -> None:
        """End the stream at once. Idempotent; no callback follows."""


class StreamHandler(ABC):
    """Who is told what arrives on a stream."""

    __slots__ = ()

    @abstractmethod
    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """A head arrived (an interim one first, perhaps)."""

    @abstractmethod
    def on_data(self, data: bytes, end: bool) -> None:
        """Body bytes arrived."""

    @abstractmethod
    def on_trailers(self, fields: Fields) -> None:
        """The trailer section arrived; the message is complete."""

    @abstractmethod
    def on_writable(self) -> None:
        """Buffers fell below the low-water mark after `send_data` had returned False."""

    @abstractmethod
    def on_reset(self, error: ProxyError) -> None:
        """The stream ended before its time. Nothing follows."""


class RequestHandler(StreamHandler):
    """Who answers one request of a downstream connection: told its head by `on_headers`, or by `refuse_head` where that
    can't be accepted.
    """

    __slots__ = ()

    @abstractmethod
    def refuse_head(self, head: RequestHead, error: ProxyError) -> None:
        """Answer with an error, whatever else the head says."""

    def on_confirmed(self) -> None:
        """The client's TLS handshake is complete: what came before it is no replay."""

    def takes_interim(self) -> bool:
        """Whether the client is still without an answer, and can be sent an interim one."""
        return False
