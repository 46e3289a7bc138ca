"""gRPC as far as a proxy has to know it: deadlines, statuses, errors of its own, health checks.

A call is an HTTP/2 POST whose real result stands in `grpc-status`, in the trailers or, where there is nothing but a
result ("trailers-only"), in a head that ends the response. A proxy that only reads `:status` takes every failure for a
success. Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and health-checking.md beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, Source

from .message import RequestHead, ResponseHead
from .semantics import decimal

if TYPE_CHECKING:
    from proxy.errors import ProxyError

    from .message import Fields

CONTENT_TYPE: Final = b"application/grpc"

CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_DIGITS_MAX: Final = 8
_MESSAGE_BYTES_MAX: Final = 1024
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {0x25}

_STATUS_OF_KIND: Final = {
    Kind.CLIENT_LEFT: CANCELLED,
    Kind.SLOW_REQUEST: DEADLINE_EXCEEDED,
    Kind.RESPONSE_TIMEOUT: DEADLINE_EXCEEDED,
    Kind.READ_TIMEOUT: DEADLINE_EXCEEDED,
    Kind.NO_ROUTE: UNIMPLEMENTED,
    Kind.NOT_IMPLEMENTED: UNIMPLEMENTED,
    Kind.HEAD_TOO_LARGE: RESOURCE_EXHAUSTED,
    Kind.BODY_TOO_LARGE: RESOURCE_EXHAUSTED,
    Kind.TOO_MANY: RESOURCE_EXHAUSTED,
    Kind.TOO_EARLY: UNAVAILABLE,
    Kind.POOL_FULL: UNAVAILABLE,
    Kind.CONNECTION_LIMIT: UNAVAILABLE,
    Kind.STOPPING: UNAVAILABLE,
}
_AS_HTTP: Final = {b"14": 503, b"4": 504, b"2": 500, b"13": 500, b"15": 500}
"""What routing makes of a result: the server's faults. (8 is a quota, often of one client; 12 a client's mistake.)"""


def is_call(head: RequestHead) -> bool:
    """A gRPC call: by its `content-type` (`application/grpc`, `application/grpc+proto`, ...)."""
    for name, value in head.fields:
        if name == b"content-type":
            return value.startswith(CONTENT_TYPE) and value[16:17] in (b"", b"+", b";")
    return False


def timeout_s(head: RequestHead) -> float | None:
    """The call's `grpc-timeout` in seconds; None where there is none, or none that can be read."""
    for name, value in head.fields:
        if name == b"grpc-timeout":
            unit = _UNITS.get(value[-1:])
            count = decimal(value[:-1], _DIGITS_MAX)
            return count * unit if unit is not None and count is not None else None
    return None


def call_status(status: bytes | None) -> int:
    """The HTTP status that says to routing what this `grpc-status` says; 0 where the call went well, or failed by its
    own fault.
    """
    return _AS_HTTP.get(status, 0) if status is not None else 0


def status_of(error: ProxyError) -> int:
    """The `grpc-status` of a fault of ours or of the way to the origin."""
    if error.kind.source is Source.UPSTREAM:
        return _STATUS_OF_KIND.get(error.kind, UNAVAILABLE)
    return _STATUS_OF_KIND.get(error.kind, INTERNAL)


def encode_message(text: str) -> bytes:
    """`grpc-message`: UTF-8, percent-encoded outside of printable ASCII."""
    return b"".join(
        bytes((octet,)) if octet in _PLAIN else b"%%%02X" % octet for octet in text.encode()[:_MESSAGE_BYTES_MAX]
    )


def error_head(error: ProxyError, fields: Fields) -> ResponseHead:
    """A trailers-only answer that tells a gRPC client of an error. `fields` come with it."""
    return ResponseHead(200, [(b"content-type", CONTENT_TYPE), *error_trailers(error), *fields], {}, reason=b"OK")


def error_trailers(error: ProxyError) -> Fields:
    """The trailers that end a call, or a response that has begun, by an error."""
    return [(b"grpc-status", b"%d" % status_of(error)), (b"grpc-message", encode_message(error.details))]


# Health checks: grpc.health.v1.Health/Check, whose messages have one field each.

HEALTH_PATH: Final = b"/grpc.health.v1.Health/Check"
_SERVING: Final = 1


def health_request(service: str) -> bytes:
    """The body of a Check: HealthCheckRequest {string service = 1}, in gRPC's frame of 5 octets."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def is_serving(body: bytes) -> bool:
    """Whether the body of the answer is one HealthCheckResponse {ServingStatus status = 1} that says SERVING."""
    if len(body) < 5 or body[0] != 0 or int.from_bytes(body[1:5], "big") != len(body) - 5:
        return False
    message = body[5:]
    status = position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _read_varint(message, position)
            if tag >> 3 == 1:
                status = value
        elif kind == 2:
            size, position = _read_varint(message, position)
            position += size
        else:
            return False
    return status == _SERVING and position == len(message)


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """A varint and the position behind it; cut short, the position lies beyond the end."""
    value = shift = 0
    while position < len(message):
        octet = message[position]
        position += 1
        value |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            return value, position
    return value, len(message) + 1
