"""Responses that the proxy makes itself: errors that explain, debug fields, and final answers to `max-forwards: 0`."""

from __future__ import annotations

from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from proxy.errors import Kind, ProxyError
from proxy.http.grpc import error_head
from proxy.http.message import ResponseHead

if TYPE_CHECKING:
    from proxy.http.message import Fields, RequestHead
    from proxy.observe.record import RequestRecord

_DETAILS_MAX: Final = 400
_NO_ECHO: Final = frozenset((b"authorization", b"cookie", b"proxy-authorization"))


def reason_phrase(status: int) -> str:
    """The standard phrase of a status, or "" where there is none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def told(error: ProxyError) -> str:
    """What a client may read of a fault. What an origin sent amiss could be meant for somebody else: only the log has
    it.
    """
    return "the upstream's answer is not valid" if error.kind is Kind.BAD_RESPONSE else error.details


def proxy_status(error: ProxyError) -> bytes:
    """The `proxy-status` field's value (RFC 9209): a Structured Fields item; `details` is an sf-string."""
    text = told(error)[:_DETAILS_MAX].encode("ascii", "replace").decode()
    text = "".join(c if " " <= c <= "~" else "?" for c in text).replace("\\", "\\\\").replace('"', '\\"')
    return f'onetrip; error={error.kind.proxy_status}; details="{text}"'.encode()


def error_reply(record: RequestRecord, error: ProxyError, grpc: bool, retry_after: float) -> tuple[ResponseHead, bytes]:
    """What a client gets when there is nothing better: status, `proxy-status`, and a short body that says what was
    tried; a gRPC client, a result without a body. `retry_after`: seconds, for a 503 (0.0: not known).
    """
    if grpc:
        return error_head(error, [(b"proxy-status", proxy_status(error))]), b""
    tried = [
        f"{a.target.region.name}/{a.target.endpoint}: {told(a.error) if a.error else 'no answer'}" for a in record.tries
    ]
    request_id = record.request_id.decode("latin-1")
    known = record.head.known
    if b"json" in known.get(b"accept", b""):
        content: dict[str, Any] = {
            "status": error.status,
            "error": error.kind.label,
            "details": told(error),
            "tried": tried,
        }
        if request_id:
            content["request_id"] = request_id
        body = msgspec.json.encode(content) + b"\n"
        kind = b"application/json"
    else:
        lines = [f"{error.status} {reason_phrase(error.status)}: {told(error)}"]
        lines += [f"tried {line}" for line in tried]
        if request_id:
            lines.append(f"request {request_id}")
        body = ("\n".join(lines) + "\n").encode()
        kind = b"text/plain; charset=utf-8"
    fields: Fields = [(b"content-type", kind), (b"proxy-status", proxy_status(error)), (b"cache-control", b"no-store")]
    if error.status == 503:
        fields.append((b"retry-after", b"%d" % max(1, round(retry_after or 1))))
    if error.status == 426:
        fields.append((b"upgrade", b"HTTP/1.1"))
    if record.trusted and known.get(b"onetrip-debug") == b"1":
        fields += debug_fields(record, monotonic())
    return ResponseHead(
        error.status, fields, {}, reason=reason_phrase(error.status).encode(), content_length=len(body)
    ), body


def debug_fields(record: RequestRecord, now: float) -> Fields:
    """`server-timing` and who answered, for a trusted client that asked by `onetrip-debug: 1`."""
    winner = record.winner
    timing = f"onetrip;dur={(now - record.started) * 1e3:.2f}"
    fields: Fields = []
    if winner is not None:
        timing += f", upstream;dur={(now - winner.connected_at) * 1e3:.2f}"
        fields.append((b"onetrip-region", winner.target.region.name.encode()))
    fields.append((b"server-timing", timing.encode()))
    fields.append((b"onetrip-attempts", b"%d" % len(record.tries)))
    return fields


def final_answer(head: RequestHead) -> tuple[ResponseHead, bytes]:
    """The answer of the final recipient: OPTIONS or TRACE with `max-forwards: 0` (RFC 9110 section 7.6.2)."""
    if head.method == b"TRACE":
        lines = [b"TRACE " + head.target + b" HTTP/" + head.version, b"host: " + head.authority]
        lines += [name + b": " + value for name, value in head.fields if name not in _NO_ECHO]
        body = b"\r\n".join(lines) + b"\r\n\r\n"
        return ResponseHead(200, [(b"content-type", b"message/http")], {}, reason=b"OK", content_length=len(body)), body
    allow = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    return ResponseHead(204, [(b"allow", allow)], {}, reason=b"No Content", content_length=0), b""


__all__ = ["Kind", "debug_fields", "error_reply", "final_answer", "proxy_status", "reason_phrase"]
