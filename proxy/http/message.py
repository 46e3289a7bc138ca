"""Message heads and the events that codecs make of bytes: values that know nothing of an HTTP version.

A head holds what is end to end. Everything hop by hop (framing, `connection` and what it names, `upgrade`, `te`,
`expect`) has been read by the codec that received it, removed from `fields`, and stands as an attribute; the codec
that sends it writes its own. No framing of one peer therefore ever reaches another (RFC 9112 section 6.3, RFC 9110
section 7.6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from proxy.errors import ProxyError

Field: TypeAlias = tuple[bytes, bytes]
Fields: TypeAlias = list[Field]
"""Name (lower case) and value (no white space around it) of each field line, in the order received."""


class RequestHead:
    """A request's head.

    `target` is in origin form (`/path?query`), or `*` for OPTIONS; for CONNECT it is empty and `authority` says where
    to. `authority` is what `Host` or `:authority` said (b"" for an HTTP/1.0 request without one). `known` holds the
    values of the fields in `KNOWN_REQUEST_FIELDS` that are present, repeated ones joined by a comma: one look-up
    where the alternative is a scan. They are in `fields` too. Its key `claims.CLAIMED` says that a field is a
    claim, and a stranger's has to go. `content_length` is None where the body's length is not known in advance, and 0
    where there is no body. `upgrade` is the protocol asked for by `connection: upgrade` or an extended CONNECT (RFC
    8441), or b"".
    """

    __slots__ = (
        "authority",
        "content_length",
        "early",
        "expect_continue",
        "fields",
        "known",
        "method",
        "scheme",
        "target",
        "te_trailers",
        "upgrade",
        "version",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        authority: bytes,
        fields: Fields,
        known: dict[bytes, bytes],
        *,
        scheme: bytes = b"http",
        content_length: int | None = 0,
        upgrade: bytes = b"",
        expect_continue: bool = False,
        te_trailers: bool = False,
        version: bytes = b"1.1",
    ) -> None:
        self.method = method
        self.target = target
        self.authority = authority
        self.fields = fields
        self.known = known
        self.scheme = scheme
        self.content_length = content_length
        self.upgrade = upgrade
        self.expect_continue = expect_continue
        self.te_trailers = te_trailers
        self.version = version
        self.early = False

    def __repr__(self) -> str:
        return f"<RequestHead {(self.method + b' ' + self.authority + self.target).decode('latin-1')}>"


class ResponseHead:
    """A response's head. `content_length` is None where the length is not known in advance.

    For a HEAD request or a 304 it is what a GET would have had (or None), although no body follows.
    `upgrade` is the protocol that a 101 switches to, or b"". `known` is as in `RequestHead`, for
    `KNOWN_RESPONSE_FIELDS`.
    """

    __slots__ = ("content_length", "fields", "known", "reason", "status", "upgrade", "version")

    def __init__(
        self,
        status: int,
        fields: Fields,
        known: dict[bytes, bytes],
        *,
        reason: bytes = b"",
        content_length: int | None = None,
        upgrade: bytes = b"",
        version: bytes = b"1.1",
    ) -> None:
        self.status = status
        self.fields = fields
        self.known = known
        self.reason = reason
        self.content_length = content_length
        self.upgrade = upgrade
        self.version = version

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status}>"


KNOWN_REQUEST_FIELDS: Final = frozenset(
    (
        b"accept",
        b"authorization",
        b"cookie",
        b"early-data",
        b"idempotency-key",
        b"max-forwards",
        b"onetrip-attempt",
        b"onetrip-debug",
        b"traceparent",
        b"user-agent",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
    )
)
KNOWN_RESPONSE_FIELDS: Final = frozenset(
    (b"alt-svc", b"date", b"grpc-status", b"retry-after", b"server-timing", b"via")
)


class HeadersReceived:
    """A head. In the client role, one with a status below 200 is interim and another one follows."""

    __slots__ = ("end", "head", "stream_id")

    def __init__(self, stream_id: int, head: RequestHead | ResponseHead, end: bool) -> None:
        self.stream_id = stream_id
        self.head = head
        self.end = end


class DataReceived:
    """Body bytes. `size` is what flow control counts (with h2's padding): give it back with `Codec.consumed`."""

    __slots__ = ("data", "end", "size", "stream_id")

    def __init__(self, stream_id: int, data: bytes, end: bool, size: int) -> None:
        self.stream_id = stream_id
        self.data = data
        self.end = end
        self.size = size


class TrailersReceived:
    """The trailer section; the message ends with it. Fields that must not stand in one are gone (RFC 9110 section
    6.5.1).
    """

    __slots__ = ("fields", "stream_id")

    def __init__(self, stream_id: int, fields: Fields) -> None:
        self.stream_id = stream_id
        self.fields = fields


class HeadRefused:
    """Server role: a request that can't be accepted. Answer `error.status` on the stream; the codec then closes or goes
    on by itself.
    """

    __slots__ = ("error", "head", "stream_id")

    def __init__(self, stream_id: int, error: ProxyError, head: RequestHead | None = None) -> None:
        self.stream_id = stream_id
        self.error = error
        self.head = head


class StreamReset:
    """The peer (or a fault of its own) ended this stream before its time. `error` says whether a retry is safe."""

    __slots__ = ("error", "stream_id")

    def __init__(self, stream_id: int, error: ProxyError) -> None:
        self.stream_id = stream_id
        self.error = error


class StreamWritable:
    """The peer's flow control opened, and what was buffered for the stream has gone out."""

    __slots__ = ("stream_id",)

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id


class GoAway:
    """The connection takes no new streams: the peer said so, or its stream ids are used up. Those above
    `last_stream_id`
    were not processed and get a StreamReset. `calm`: the peer gave as its reason that we ask too much of it, pings
    among it.
    """

    __slots__ = ("calm", "last_stream_id")

    def __init__(self, last_stream_id: int, calm: bool = False) -> None:
        self.last_stream_id = last_stream_id
        self.calm = calm


class LimitsChanged:
    """Client role: what the peer allows (`Codec.stream_limit`, `Codec.upgrades`) is known now, or has changed."""

    __slots__ = ()


class PingAcknowledged:
    """An answer to our PING with this opaque payload (8 bytes)."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


class ConnectionFailed:
    """The connection can't go on: send what `data_to_send` still gives, then close. Open streams have got their
    StreamReset.
    """

    __slots__ = ("error",)

    def __init__(self, error: ProxyError) -> None:
        self.error = error


Event: TypeAlias = (
    HeadersReceived
    | DataReceived
    | TrailersReceived
    | HeadRefused
    | StreamReset
    | StreamWritable
    | GoAway
    | LimitsChanged
    | PingAcknowledged
    | ConnectionFailed
)
