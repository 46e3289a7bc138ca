"""HTTP/1.1 request heads: bytes to values and back (RFC 9112 sections 3, 5, 6). Refusals are raised as `ProxyError`,
to the codec.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.errors import Kind, ProxyError
from proxy.http import semantics
from proxy.http.claims import is_claim, is_twin
from proxy.http.message import KNOWN_REQUEST_FIELDS, RequestHead
from proxy.http.semantics import quoted

from .head import (
    CLAIM,
    CONTROL,
    DROPPED,
    KNOWN,
    PLAIN,
    FieldReader,
    H1Limits,
    bad_octet,
    check_sendable,
    remove_nominated,
)


def _other(name: bytes) -> int:
    """What to do with a field that no table names."""
    if is_claim(name):
        return CLAIM
    return DROPPED if is_twin(name) else PLAIN


_READER: Final = FieldReader(
    dict.fromkeys(KNOWN_REQUEST_FIELDS, KNOWN)
    | dict.fromkeys(
        (b"connection", b"content-length", b"expect", b"host", b"te", b"transfer-encoding", b"upgrade"), CONTROL
    )
    | dict.fromkeys(semantics.UNDERSCORE_TWINS_REFUSED, CONTROL)
    | dict.fromkeys(semantics.NEVER_FORWARDED | {b"keep-alive", b"proxy-connection"}, DROPPED),
    Kind.BAD_REQUEST,
    _other,
)

_METHODS: Final = frozenset(
    (b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT")
)  # need no look at their octets
_METHOD_BYTES: Final = 64  # past every registered one: 501 (RFC 9112 section 3)
_LINE_BYTES: Final = 256  # what a request line may have beside its target
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_VERSIONS: Final = (b"1.1", b"1.0")
_AUTHORITIES_MAX: Final = 1024
_authorities: dict[bytes, bytes] = {}  # values of Host found valid, and their normal form


def _bad(details: str, kind: Kind = Kind.BAD_REQUEST) -> ProxyError:
    return ProxyError(kind, details)


def check_line(line: bytes, finished: bool, limits: H1Limits) -> tuple[bytes, bytes, bytes] | None:
    """Method, target and version (b"1.1") of a request line; None where it is unfinished, but right so far.

    The same octets are refused for the same reason, however they were cut.
    """
    bound = min(limits.target_bytes + _LINE_BYTES, limits.header_bytes)
    octet = bad_octet(line[: bound + 1])
    if octet is not None:
        raise _bad(octet)
    if len(line) > bound + (not finished):  # the CR may have come
        raise _bad(f"request line longer than {bound} bytes", Kind.URI_TOO_LONG)
    if not finished:
        return None
    parts = line.split(b" ")
    if len(parts) != 3:
        raise _bad(f"invalid request line {quoted(line)}")
    method, target, version = parts
    if not semantics.is_token(method):
        raise _bad(f"invalid method {quoted(method)}")
    if len(method) > _METHOD_BYTES:
        raise _bad(f"method longer than {_METHOD_BYTES} bytes", Kind.NOT_IMPLEMENTED)
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise _bad(f"version {quoted(version)} is not served here", Kind.BAD_VERSION)
        raise _bad(f"invalid version {quoted(version)}")
    if len(target) > limits.target_bytes:
        raise _bad(f"target longer than {limits.target_bytes} bytes", Kind.URI_TOO_LONG)
    if not semantics.is_target(target):
        raise _bad(f"invalid target {quoted(target)}")
    return method, target, version[5:]


def parse_request(data: bytes, limits: H1Limits) -> tuple[RequestHead, bool]:
    """A complete head, without the CRLFCRLF that ends it; and whether the connection persists after it. Raises
    ProxyError.
    """
    lines = data.split(b"\r\n")
    line = lines[0]
    del lines[0]
    try:
        method, target, version = line.split(b" ")
        usual = (
            version == b"HTTP/1.1"
            and method in _METHODS
            and target[:1] == b"/"
            and not target.translate(None, semantics.TARGET_OCTETS)
            and len(target) <= limits.target_bytes
        )
    except ValueError:
        usual = False
    if not usual:
        checked = check_line(line, True, limits)
        assert checked is not None
        method, target, version = checked
    fields, known, control = _READER.read(lines)
    if len(lines) > limits.headers:
        raise _bad(f"more than {limits.headers} header fields", Kind.HEAD_TOO_LARGE)
    head = RequestHead(method, target, b"", fields, known)
    if not usual:
        head.version = version
        _apply_host(head, control)
    elif b"host" in control:
        host = control[b"host"]
        head.authority = _authorities.get(host) or _authority(host)
        if len(control) == 1:  # the most common head: nothing else is special
            return head, True
    else:
        raise _bad("no Host field")
    return head, _apply_control(head, control)


def _apply_host(head: RequestHead, control: dict[bytes, bytes]) -> None:
    host = control.get(b"host")
    if host is not None:
        head.authority = _authorities.get(host) or _authority(host)
    elif head.version == b"1.1":
        raise _bad("no Host field")
    if head.target[:1] != b"/" or head.method == b"CONNECT":
        _apply_target(head)


def _authority(host: bytes) -> bytes:
    authority = semantics.authority(host)
    if authority is None:
        raise _bad(f"invalid Host {quoted(host)}")
    if len(_authorities) >= _AUTHORITIES_MAX:
        _authorities.clear()
    _authorities[host] = authority
    return authority


def _apply_control(head: RequestHead, control: dict[bytes, bytes]) -> bool:
    """Read what is hop by hop into a head; return whether the connection persists (RFC 9112 section 9.3)."""
    persistent = head.version == b"1.1"
    length = control.get(b"content-length")
    coding = control.get(b"transfer-encoding")
    if coding is not None:
        _check_coding(coding, length, head.version)
        head.content_length = None
    elif length is not None:
        head.content_length = semantics.content_length(length)
        if head.content_length is None:
            raise _bad(f"invalid Content-Length {quoted(length)}")
    connection = control.get(b"connection")
    if connection is not None:
        if connection in {b"keep-alive", b"Keep-Alive"}:
            persistent = True
        else:
            persistent = _apply_connection(head, semantics.list_members(connection), control, persistent)
    if not control.keys() <= _USUAL:
        _apply_unusual(head, control)
    if head.content_length != 0 and head.method in _BODYLESS_METHODS:
        raise _bad(f"{head.method.decode()} with a body")
    return persistent


_BODYLESS_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))  # RFC 9110 sections 9.3.6 and 9.3.8
_USUAL: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection"))


def _apply_unusual(head: RequestHead, control: dict[bytes, bytes]) -> None:
    for twin in semantics.UNDERSCORE_TWINS_REFUSED:
        if twin in control:
            raise _bad(f"field {quoted(twin)}, which some origins read as framing")
    te = control.get(b"te")
    if te is not None:
        head.te_trailers = b"trailers" in semantics.list_members(te)
    expect = control.get(b"expect")
    if expect is not None and head.version == b"1.1":  # in 1.0 it is ignored (RFC 9110 section 10.1.1)
        if expect.lower() != b"100-continue":
            raise _bad(f"expectation {quoted(expect)} can't be met", Kind.EXPECTATION_FAILED)
        head.expect_continue = head.content_length != 0


def _apply_target(head: RequestHead) -> None:
    """Bring the other forms of a target into origin form and authority (RFC 9112 section 3.2)."""
    target = head.target
    if head.method == b"CONNECT":
        if semantics.authority(target) != target or b":" not in target.rpartition(b"]")[2]:
            raise _bad(f"target of CONNECT is not host:port: {quoted(target)}")
        head.authority, head.target = target, b""
    elif target == b"*":
        if head.method != b"OPTIONS":
            raise _bad("target * without OPTIONS")
    else:
        parts = semantics.split_absolute(target)
        if parts is None:
            raise _bad(f"invalid target {quoted(target)}")
        head.authority = parts[0]  # Host is ignored then (section 3.2.2)
        head.target = parts[1] or (b"*" if head.method == b"OPTIONS" else b"/")


def _check_coding(coding: bytes, length: bytes | None, version: bytes) -> None:
    """Accept `chunked` and nothing else (RFC 9112 sections 6.1 and 6.3, as strictly as they allow)."""
    if length is not None:
        raise _bad("both Content-Length and Transfer-Encoding")
    if version == b"1.0":
        raise _bad("Transfer-Encoding in an HTTP/1.0 request")
    coding = coding.lower()
    if coding == b"chunked":
        return
    names = [name.strip(b" \t") for name in coding.split(b",")]
    unknown = all(semantics.is_token(name) and name not in (b"chunked", b"identity") for name in names[:-1])
    if len(names) > 1 and names[-1] == b"chunked" and unknown:
        raise _bad(f"transfer coding {quoted(coding)} is not implemented", Kind.NOT_IMPLEMENTED)
    raise _bad(f"invalid Transfer-Encoding {quoted(coding)}")


def _apply_connection(head: RequestHead, options: list[bytes], control: dict[bytes, bytes], persistent: bool) -> bool:
    """Read the connection options; return whether the connection persists (RFC 9110 section 7.6.1, RFC 9112 section
    9.3).
    """
    for option in options:
        if option in semantics.FRAMING:
            raise _bad(f"Connection names {quoted(option)}")
        if not semantics.is_token(option):
            raise _bad(f"invalid Connection option {quoted(option)}")
    head.fields = remove_nominated(head.fields, head.known, options)
    # An upgrade waits for no body: with one it is ignored, as RFC 9110 section 7.8 allows.
    if b"upgrade" in options and head.version == b"1.1" and head.content_length == 0 and head.method != b"CONNECT":
        head.upgrade = semantics.upgrade_protocols(control.get(b"upgrade", b""))
    return b"close" not in options and (persistent or b"keep-alive" in options)


def request_lines(head: RequestHead) -> list[bytes]:
    """The request line, Host and field lines of a head to send, without CRLFs between them and without framing.

    An extended CONNECT (RFC 8441) is an upgrade here: it must never read as the CONNECT that opens a tunnel to
    anywhere."""
    if head.version not in _VERSIONS:
        check_sendable(head.fields)
    method = head.method
    if method == b"CONNECT":
        if head.upgrade:
            method, target = b"GET", head.target
        else:
            target = head.authority
    else:
        target = head.target or b"/"
    lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (method, target, head.authority)]
    lines += map(b": ".join, head.fields)
    return lines
