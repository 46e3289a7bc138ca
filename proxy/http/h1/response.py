"""HTTP/1.1 response heads: bytes to values and back (RFC 9112 sections 4 to 6). Refusals are raised as `ProxyError`,
to the codec.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from proxy.errors import Kind, ProxyError
from proxy.http import semantics
from proxy.http.message import KNOWN_RESPONSE_FIELDS, ResponseHead
from proxy.http.semantics import quoted

from .head import CONTROL, DROPPED, KNOWN, FieldReader, H1Limits, check_sendable, remove_nominated

_READER: Final = FieldReader(
    dict.fromkeys(KNOWN_RESPONSE_FIELDS, KNOWN)
    | dict.fromkeys((b"connection", b"content-length", b"transfer-encoding", b"upgrade"), CONTROL)
    | dict.fromkeys((b"http2-settings", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te"), DROPPED),
    Kind.BAD_RESPONSE,
)

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_VERSIONS: Final = (b"1.1", b"1.0")
_STATUS_LINES_MAX: Final = 256
_status_lines: dict[bytes, tuple[bytes, int, bytes]] = {}  # received ones, and what they mean
_status_starts: dict[tuple[int, bytes], bytes] = {}  # ones to send


def _bad(details: str, kind: Kind = Kind.BAD_RESPONSE) -> ProxyError:
    return ProxyError(kind, details)


def status_line(line: bytes) -> tuple[bytes, int, bytes]:
    """Version, status and reason of a status line. A missing reason may take its space with it."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise _bad(f"invalid status line {quoted(line)}")
    result = (b"1." + match[1], int(match[2]), match[3] or b"")
    if len(line) <= 64:
        if len(_status_lines) >= _STATUS_LINES_MAX:
            _status_lines.clear()
        _status_lines[line] = result
    return result


def parse_response(head: bytes, limits: H1Limits) -> tuple[ResponseHead, bool, bool]:
    """A complete head, without the CRLFCRLF that ends it; whether its body is chunked; and whether the connection
    persists after it.
    """
    lines = head.split(b"\r\n")
    line = lines[0]
    del lines[0]
    version, status, reason = _status_lines.get(line) or status_line(line)
    fields, known, control = _READER.read(lines)
    if len(lines) > limits.headers:
        raise _bad(f"more than {limits.headers} header fields", Kind.RESPONSE_HEAD_TOO_LARGE)
    result = ResponseHead(status, fields, known)
    result.reason = reason
    result.version = version
    length = control.get(b"content-length")
    if length is not None:
        result.content_length = semantics.content_length(length)
        if result.content_length is None:
            raise _bad(f"invalid Content-Length {quoted(length)}")
        if len(control) == 1:
            return result, False, version == b"1.1"
    chunked, persistent = _apply_control(result, control, version == b"1.1")
    return result, chunked, persistent


def _apply_control(head: ResponseHead, control: dict[bytes, bytes], persistent: bool) -> tuple[bool, bool]:
    """Read what is hop by hop; return whether the body is chunked, and whether the connection persists."""
    coding = control.get(b"transfer-encoding")
    if coding is not None:
        if head.content_length is not None:
            raise _bad("both Content-Length and Transfer-Encoding")
        if head.version == b"1.0":
            raise _bad("Transfer-Encoding in an HTTP/1.0 response")
        if coding.lower() != b"chunked":
            raise _bad(f"invalid Transfer-Encoding {quoted(coding)}")
    connection = control.get(b"connection")
    if connection is not None:
        if connection in {b"keep-alive", b"Keep-Alive"}:
            return coding is not None, True
        options = semantics.list_members(connection)
        head.fields = remove_nominated(head.fields, head.known, options)
        persistent = b"close" not in options and (persistent or b"keep-alive" in options)
        if head.status == 101 and b"upgrade" in options:
            head.upgrade = control.get(b"upgrade", b"")
    return coding is not None, persistent


def response_lines(head: ResponseHead) -> list[bytes]:
    """The status line and field lines of a head to send, without CRLFs and without framing."""
    if head.version not in _VERSIONS:
        check_sendable(head.fields)
    key = (head.status, head.reason)
    start = _status_starts.get(key)
    if start is None:
        start = b"HTTP/1.1 %d %b" % (head.status, head.reason or _reason(head.status))
        if len(start) <= 64:
            if len(_status_starts) >= _STATUS_LINES_MAX:
                _status_starts.clear()
            _status_starts[key] = start
    lines = [start]
    lines += map(b": ".join, head.fields)
    return lines


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
