"""HTTP/2 header lists: fields to heads and back (RFC 9113 section 8).

Reading rules (section 8.2 and 8.3; what breaks one is malformed, and never reaches a peer that would read it
differently):
- Pseudo-fields come first, each once, only those that the message has: a request all of :method, :scheme and :path,
  with CONNECT only :authority, with extended CONNECT all and :protocol (RFC 8441); a response :status; trailers none.
- A name is a lower-case token. A value has no control characters and no white space around it.
- Nothing connection-specific: no `connection` and its kind, `te` only as `trailers`. One `content-length`.
- :authority or one `host` says where to, both only if they agree, and it must be a valid host. A path starts with `/`
  (or is `*` for OPTIONS) and holds what may stand in an HTTP/1.1 request line: so no request can become two on its
  way there.

A WebSocket by extended CONNECT stands in a `RequestHead` as HTTP/1.1 would have it: GET with `upgrade`, and a 101
answers it. `sec-websocket-key` is made up when it is read, and its answer when the head is sent on (RFC 8441 section
5).
"""

from __future__ import annotations

import base64
import hashlib
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError
from proxy.http import semantics
from proxy.http.claims import CLAIM_NAMES, CLAIMED, is_claim, is_twin
from proxy.http.compression import hpack
from proxy.http.message import KNOWN_REQUEST_FIELDS, KNOWN_RESPONSE_FIELDS, RequestHead, ResponseHead
from proxy.http.semantics import quoted
from proxy.http.sensitive import Sensitive

if TYPE_CHECKING:
    from proxy.http.message import Field, Fields

# What to do with a field, by its name; names not listed are checked, and then plain.
_PLAIN, _KNOWN, _LENGTH, _COOKIE, _HOST, _TE, _EXPECT, _DROPPED, _TWIN, _FORBIDDEN, _CLAIM = range(11)

_CONNECTION_SPECIFIC: Final = semantics.HOP_BY_HOP - {b"te", b"http2-settings"}
_COMMON_NAMES: Final = {name for name, _ in hpack.STATIC if not name.startswith(b":")} | {
    *(b"origin", b"priority", b"tracestate", b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"sec-ch-ua"),
    *(b"sec-ch-ua-mobile", b"sec-ch-ua-platform", b"upgrade-insecure-requests", b"grpc-timeout", b"grpc-encoding"),
    *(b"grpc-accept-encoding", b"grpc-message", b"x-request-id", b"dnt", b"content-security-policy", b"trailer"),
}
_REQUEST_NAMES: Final[dict[bytes, int]] = {
    **dict.fromkeys(_COMMON_NAMES, _PLAIN),
    **dict.fromkeys(CLAIM_NAMES, _CLAIM),
    **dict.fromkeys(KNOWN_REQUEST_FIELDS, _KNOWN),
    **dict.fromkeys(semantics.NEVER_FORWARDED, _DROPPED),
    **dict.fromkeys(semantics.UNDERSCORE_TWINS_REFUSED, _TWIN),
    **dict.fromkeys(_CONNECTION_SPECIFIC, _FORBIDDEN),
    **{b"content-length": _LENGTH, b"cookie": _COOKIE, b"host": _HOST, b"te": _TE, b"expect": _EXPECT},
}
_RESPONSE_NAMES: Final[dict[bytes, int]] = {
    **dict.fromkeys(_COMMON_NAMES, _PLAIN),
    **dict.fromkeys(KNOWN_RESPONSE_FIELDS, _KNOWN),
    **dict.fromkeys((b"http2-settings", b"proxy-authenticate", b"te"), _DROPPED),
    **dict.fromkeys(_CONNECTION_SPECIFIC, _FORBIDDEN),
    b"content-length": _LENGTH,
}
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_SCHEMES: Final = frozenset((b"http", b"https"))
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

_AUTHORITY_BYTES_MAX: Final = 261  # a name of 255 and a port
_CONTROLS: Final = bytes({*range(32), 127} - {10})

_authority = lru_cache(1024)(semantics.authority)


def parse_request(fields: Fields) -> RequestHead | ProxyError | str:
    """A request's head; a ProxyError where an answer tells the client more than a reset; a str says what is malformed.

    `content_length` is None where no field gave it. `expect_continue` is set whether or not a body follows.
    """
    pseudo: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] != b":":
            break
        if name not in _REQUEST_PSEUDO or name in pseudo:
            return f"unknown or repeated pseudo-field {quoted(name)}"
        pseudo[name] = value
    head = RequestHead(b"", b"", b"", [], {}, content_length=None, version=b"2")
    fault = _read_request_fields(head, fields[len(pseudo) :], pseudo.get(b":authority"))
    if fault is not None:
        return fault
    return _apply_pseudo(head, pseudo)


def _read_request_fields(head: RequestHead, fields: Fields, authority: bytes | None) -> str | ProxyError | None:
    fault = _bad_value(fields)
    if fault is not None:
        return fault
    names = _REQUEST_NAMES
    known = head.known
    keep = head.fields.append
    host = authority
    named = False  # by `host`
    sensitive = False
    for field in fields:
        name, value = field
        kind = names.get(name)
        if kind is None:
            if not _is_name(name):
                return f"invalid field name {quoted(name)}"
            kind = _CLAIM if is_claim(name) else _DROPPED if is_twin(name) else _PLAIN
        if not kind:
            keep(field)
        elif kind == _KNOWN:
            keep(field)
            known[name] = known[name] + b", " + value if name in known else value
        elif kind == _CLAIM:
            keep(field)
            known[CLAIMED] = b""
        elif kind == _COOKIE:  # crumbs, which only HTTP/2 allows (RFC 9113 section 8.2.3)
            crumbs = known.get(name)
            known[name] = crumbs + b"; " + value if crumbs and value else crumbs or value
            sensitive = sensitive or type(value) is Sensitive
        elif kind == _LENGTH:
            if head.content_length is not None:
                return "repeated content-length"
            head.content_length = semantics.content_length(value)
            if head.content_length is None:
                return f"invalid content-length {quoted(value)}"
        elif kind == _HOST:
            if named:
                return "repeated host"
            named = True
            if host is not None and host.lower() != value.lower():
                return f"host {quoted(value)} is not {quoted(host)}"
            host = value
        elif kind == _TE:
            if value.lower() != b"trailers":
                return f"te {quoted(value)}"
            head.te_trailers = True
        elif kind == _EXPECT:
            if value.lower() != b"100-continue":
                return ProxyError(Kind.EXPECTATION_FAILED, f"expectation {quoted(value)} can't be met")
            head.expect_continue = True
        elif kind == _FORBIDDEN:
            return f"connection-specific field {quoted(name)}"
        elif kind == _TWIN:
            return f"field {quoted(name)} would be read as framing by some origins"
    cookie = known.get(b"cookie")
    if cookie is not None:
        keep((b"cookie", Sensitive(cookie) if sensitive else cookie))
    if host is None:
        return "neither :authority nor host"
    valid = _authority(host) if len(host) <= _AUTHORITY_BYTES_MAX else None
    if valid is None:
        return f"invalid authority {quoted(host)}"
    head.authority = valid
    return None


def _apply_pseudo(head: RequestHead, pseudo: dict[bytes, bytes]) -> RequestHead | ProxyError | str:
    head.method = method = pseudo.get(b":method", b"")
    if not semantics.is_token(method):
        return f"invalid :method {quoted(method)}"
    protocol = pseudo.get(b":protocol")
    if method == b"CONNECT":
        if head.content_length is not None or b":authority" not in pseudo:
            return "CONNECT with a content-length, or without :authority"
        head.content_length = 0
        if protocol is None:
            if len(pseudo) != 2 or not head.authority.rpartition(b"]")[2].rpartition(b":")[1]:
                return "CONNECT with more than :authority, or without a port"
            return head
        if not semantics.is_token(protocol):
            return f"invalid :protocol {quoted(protocol)}"
    elif protocol is not None:
        return ":protocol without CONNECT"
    head.scheme = scheme = pseudo.get(b":scheme", b"")
    if scheme not in _SCHEMES:
        return f"invalid :scheme {quoted(scheme)}"
    head.target = target = pseudo.get(b":path", b"")
    if not semantics.is_target(target) or (target[:1] != b"/" and (target != b"*" or method != b"OPTIONS")):
        return f"invalid :path {quoted(target)}"
    if protocol is None:
        return head
    if protocol.lower() != b"websocket":
        return ProxyError(Kind.NOT_IMPLEMENTED, f"extended CONNECT to {quoted(protocol)}")
    head.method = b"GET"
    head.upgrade = b"websocket"
    head.fields = [field for field in head.fields if field[0] != b"sec-websocket-key"]
    return head


def copy_request(head: RequestHead) -> RequestHead:
    """A head for one request, of what was parsed once for all that have the same header list."""
    copy = RequestHead(
        head.method,
        head.target,
        head.authority,
        head.fields.copy(),
        head.known.copy(),
        scheme=head.scheme,
        content_length=head.content_length,
        upgrade=head.upgrade,
        expect_continue=head.expect_continue,
        te_trailers=head.te_trailers,
        version=b"2",
    )
    if head.upgrade:
        copy.fields.append((b"sec-websocket-key", base64.b64encode(os.urandom(16))))
    return copy


def parse_response(fields: Fields) -> ResponseHead | str:
    """A response's head, or what is malformed. `content_length` is None where no field gave it."""
    if not fields or fields[0][0] != b":status":
        return "no :status first"
    status = semantics.decimal(fields[0][1], 3)
    if status is None or status < 100:
        return f"invalid :status {quoted(fields[0][1])}"
    fields = fields[1:]
    fault = _bad_value(fields)
    if fault is not None:
        return fault
    known: dict[bytes, bytes] = {}
    kept: Fields = []
    names = _RESPONSE_NAMES
    length: int | None = None
    for field in fields:
        name, value = field
        kind = names.get(name)
        if kind is None and not _is_name(name):
            return f"invalid field name {quoted(name)}"
        if not kind:
            kept.append(field)
        elif kind == _KNOWN:
            kept.append(field)
            known[name] = known[name] + b", " + value if name in known else value
        elif kind == _LENGTH:
            if length is not None:
                return "repeated content-length"
            length = semantics.content_length(value)
            if length is None:
                return f"invalid content-length {quoted(value)}"
        elif kind == _FORBIDDEN:
            return f"connection-specific field {quoted(name)}"
    return ResponseHead(status, kept, known, content_length=length, version=b"2")


def copy_response(head: ResponseHead) -> ResponseHead:
    """A head for one response, of what was parsed once for all that have the same header list."""
    return ResponseHead(
        head.status, head.fields.copy(), head.known.copy(), content_length=head.content_length, version=b"2"
    )


def parse_trailers(fields: Fields) -> Fields | str:
    """A trailer section without what must not stand in one, or what is malformed (RFC 9113 section 8.1)."""
    for name, value in fields:
        if not _is_name(name) or name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
            return f"invalid trailer {quoted(name)}"
    return _bad_value(fields) or semantics.allowed_trailers(fields)


def _bad_value(fields: Fields) -> str | None:
    """What is wrong with the first bad value (RFC 9113 section 8.2.1).

    All values together are looked at first, which costs less than a call each; only what that can't clear is read
    singly.
    """
    values = b"\n".join([value for _, value in fields])
    if (
        len(values.translate(None, _CONTROLS)) == len(values)
        and values.count(b"\n") < max(len(fields), 1)
        and b" \n" not in values
        and b"\n " not in values
        and values[:1] != b" "
        and values[-1:] != b" "
    ):
        return None
    for name, value in fields:
        if not semantics.is_field_value(value):
            return f"invalid value of {quoted(name)}: {quoted(value)}"
    return None


def _is_name(name: bytes) -> bool:
    return semantics.is_token(name) and name == name.lower()


# Heads to fields.

_METHODS: Final[dict[bytes, Field]] = {
    name: (b":method", name) for name in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
}
_METHODS_WITH_CONTENT: Final = frozenset((b"POST", b"PUT", b"PATCH"))  # an absent body is worth saying (RFC 9110 8.6)
_STATUSES: Final[dict[int, Field]] = {status: (b":status", b"%d" % status) for status in range(100, 1000)}
_TE_TRAILERS: Final = (b"te", b"trailers")
_EXPECT_CONTINUE: Final = (b"expect", b"100-continue")


def request_fields(head: RequestHead, end: bool) -> Fields:
    """The header list of a request (RFC 9113 section 8.3.1)."""
    method = head.method
    fields: Fields
    if method == b"CONNECT":
        return [(b":method", method), (b":authority", head.authority), *head.fields]
    if head.upgrade:
        fields = [
            (b":method", b"CONNECT"),
            (b":protocol", head.upgrade),
            (b":scheme", head.scheme),
            (b":authority", head.authority),
            (b":path", head.target),
        ]
        fields += [field for field in head.fields if field[0] != b"sec-websocket-key"]
        return fields
    fields = [
        _METHODS.get(method) or (b":method", method),
        (b":scheme", head.scheme),
        (b":authority", head.authority),
        (b":path", head.target),
    ]
    if not head.authority:  # an HTTP/1.0 request without Host
        del fields[2]
    fields += head.fields
    length = head.content_length
    if length or (length == 0 and method in _METHODS_WITH_CONTENT):
        fields.append((b"content-length", b"%d" % length))
    if head.te_trailers:
        fields.append(_TE_TRAILERS)
    if head.expect_continue and not end:
        fields.append(_EXPECT_CONTINUE)
    return fields


def response_fields(head: ResponseHead) -> Fields:
    """The header list of a response (RFC 9113 section 8.3.2). A 101 becomes the 200 of RFC 8441 section 5."""
    status = head.status
    if status == 101:
        return [_STATUSES[200], *(field for field in head.fields if field[0] != b"sec-websocket-accept")]
    fields = [_STATUSES[status]]
    fields += head.fields
    if head.content_length is not None and status >= 200 and status != 204:
        fields.append((b"content-length", b"%d" % head.content_length))
    return fields


def websocket_key(head: RequestHead) -> bytes:
    """The `sec-websocket-key` of a request that asks for an upgrade."""
    return next((value for name, value in head.fields if name == b"sec-websocket-key"), b"")


def switching_protocols(head: ResponseHead, protocol: bytes, key: bytes) -> ResponseHead:
    """The 101 that stands for the 2xx to an extended CONNECT, with the answer to the key (RFC 6455 section 4.2.2)."""
    fields = head.fields
    if key:
        digest = hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest()
        fields = [field for field in fields if field[0] != b"sec-websocket-accept"]
        fields.append((b"sec-websocket-accept", base64.b64encode(digest)))
    return ResponseHead(101, fields, head.known, upgrade=protocol, version=b"2")
