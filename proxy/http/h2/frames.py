"""HTTP/2 on the wire: frame types, flags, settings, error codes, and the frames that are more than one `struct` call.

Numbers and layouts are RFC 9113 sections 4.1, 6 and 7, and RFC 8441 section 3.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.errors import ProxyError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113 section 3.4)."""

HEADER_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16384
"""The largest payload that we accept (the default), and the most DATA that we send in one: a stream's turn."""

WINDOW_DEFAULT: Final = 65535
WINDOW_MAX: Final = 2**31 - 1
STREAM_ID_MAX: Final = 2**31 - 1

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6
ENABLE_CONNECT_PROTOCOL: Final = 8

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
CONNECT_ERROR: Final = 0xA
ENHANCE_YOUR_CALM: Final = 0xB

CODE_NAMES: Final = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
    *("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)

pack_header: Final = struct.Struct(">BHBBL").pack
"""(length >> 16, length & 0xFFFF, type, flags, stream id) → a frame header."""

unpack_header: Final = struct.Struct(">BHBBL").unpack_from
pack_u32_frame: Final = struct.Struct(">BHBBLL").pack
unpack_u32: Final = struct.Struct(">L").unpack_from


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return pack_header(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream_id) + payload


def window_update(stream_id: int, increment: int) -> bytes:
    """Credit for a stream, or for the connection (stream 0)."""
    return pack_u32_frame(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """The end of a stream before its time."""
    return pack_u32_frame(0, 4, RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: int, debug: str = "") -> bytes:
    """No new streams above `last_stream_id`; `debug` tells whoever reads a trace why."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last_stream_id, code) + debug.encode()[:256])


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame of (identifier, value) pairs."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", *each) for each in values))


def read_settings(payload: bytes) -> Iterable[tuple[int, int]]:
    """The (identifier, value) pairs of a payload whose length is a multiple of 6."""
    return struct.iter_unpack(">HL", payload)


def head_frames(stream_id: int, block: bytes, end: bool) -> bytes:
    """A header block as HEADERS, and CONTINUATION where it exceeds the peer's frame size (RFC 9113 section 4.3)."""
    flags = END_STREAM if end else 0
    length = len(block)
    if length <= FRAME_BYTES_MAX:
        return pack_header(length >> 16, length & 0xFFFF, HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [frame(HEADERS, flags, stream_id, block[:FRAME_BYTES_MAX])]
    for start in range(FRAME_BYTES_MAX, length, FRAME_BYTES_MAX):
        last = start + FRAME_BYTES_MAX >= length
        parts.append(frame(CONTINUATION, END_HEADERS if last else 0, stream_id, block[start : start + FRAME_BYTES_MAX]))
    return b"".join(parts)


def code_name(code: int) -> str:
    """An error code's name, or its number in hexadecimal."""
    return CODE_NAMES[code] if code < len(CODE_NAMES) else f"error {code:#x}"


def reset_code(error: ProxyError | None, server: bool) -> int:
    """The code that tells a peer why we end a stream.

    A server says REFUSED_STREAM where the request may safely be sent again (RFC 9113 section 8.7), INTERNAL_ERROR
    where a response is cut off through no fault of the client; a client just cancels, unless the response was
    malformed.
    """
    if error is None:
        return CANCEL
    if not server:
        return PROTOCOL_ERROR if error.kind is Kind.BAD_RESPONSE else CANCEL
    if error.unprocessed:
        return REFUSED_STREAM
    return _SERVER_CODES.get(error.kind, INTERNAL_ERROR)


_SERVER_CODES: Final = {
    Kind.BAD_REQUEST: PROTOCOL_ERROR,
    Kind.CLIENT_LEFT: CANCEL,
    Kind.TOO_MANY: ENHANCE_YOUR_CALM,
}
