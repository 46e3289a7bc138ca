"""The chunked transfer coding, read strictly (RFC 9112 section 7.1).

States: SIZE (a size line), DATA (octets of a chunk), DATA_END (the CRLF behind them), TRAILER (the trailer section),
DONE, FAILED.

Rules: a size is 1 to 16 hexadecimal digits, at most 2^63-1; nothing stands around it but extensions, which are
syntactically checked, bounded and dropped; every line ends with CRLF, and a bare CR or LF is a fault. What is
ambiguous is a fault: two readers that take it differently are how requests are smuggled."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Final

from proxy.http import semantics

if TYPE_CHECKING:
    from proxy.http.message import Fields

SIZE_LINE_BYTES: Final = 1024  # one chunk's size and extensions
EXTENSION_BYTES: Final = 16 * 1024  # all extensions of one message

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION: Final = rb";[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_SIZE_LINE: Final = re.compile(
    rb"(?P<size>[0-9A-Fa-f]{1,16})(?P<extensions>(?:" + _EXTENSION + rb"(?:[ \t]*" + _EXTENSION + rb")*)?)"
)
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")


class State(Enum):
    """Where in the coding the next octet falls."""

    SIZE = "size"
    DATA = "data"
    DATA_END = "data end"
    TRAILER = "trailer"
    DONE = "done"
    FAILED = "failed"


_SIZE, _DATA, _DATA_END, _TRAILER, _DONE, _FAILED = State


def single_chunk(data: bytes) -> bytes | None:
    """The body where `data` is exactly one chunk and the last one, without extensions and trailers; None where it is
    anything else.

    That is what a small chunked message looks like when it arrives in one piece, and reading it so costs a fifth."""
    stop = data.find(b"\r\n", 1, 10)
    size = semantics.hexadecimal(data[:stop], 8) if stop > 0 else None
    if size is None:
        return None
    start = stop + 2
    stop = start + size
    return data[start:stop] if size and len(data) == stop + 7 and data.endswith(b"\r\n0\r\n\r\n") else None


class ChunkedReader:
    """One chunked body. After each `read`: `fault` says what was wrong, `done` that the message is complete with
    `trailers`.

    `too_large` distinguishes a body above `body_bytes` (0: unlimited) from a malformed one."""

    __slots__ = (
        "_body_bytes",
        "_extension_bytes",
        "_held",
        "_left",
        "_scanned",
        "_state",
        "_total",
        "_trailer_bytes",
        "_trailer_count",
        "fault",
        "rest",
        "too_large",
        "trailers",
    )

    def __init__(self, body_bytes: int, trailer_bytes: int, trailer_count: int) -> None:
        self._state = _SIZE
        self._held = b""  # an unfinished line: at most SIZE_LINE_BYTES, or trailer_bytes
        self._scanned = 0  # octets of `_held` that need no second look
        self._left = 0
        self._total = 0
        self._extension_bytes = 0
        self._body_bytes = body_bytes
        self._trailer_bytes = trailer_bytes
        self._trailer_count = trailer_count
        self.trailers: Fields = []
        self.rest = b""
        self.fault = ""
        self.too_large = False

    @property
    def done(self) -> bool:
        """The last chunk and the trailer section have been read; `rest` holds what came behind them."""
        return self._state is _DONE

    def read(self, data: bytes) -> bytes:
        """Take bytes, return the body octets in them."""
        if self._held:
            data = self._held + data
            self._held = b""
        body: list[bytes] = []
        at = 0
        size = len(data)
        while at < size:
            state = self._state
            if state is _DATA:
                stop = at + self._left
                body.append(data[at:stop])
                if stop > size:
                    self._left = stop - size
                    break
                at = stop
                self._state = state = _DATA_END
            if state is _DATA_END:
                if data[at : at + 2] != b"\r\n":
                    if data[at:] in (b"", b"\r"):
                        self._held = data[at:]
                    else:
                        self._fail(f"chunk data not followed by CRLF but {semantics.quoted(data[at : at + 2])}")
                    break
                at += 2
                self._state = _SIZE
            elif state is _SIZE or state is _TRAILER:
                at = self._read_line(data, at) if state is _SIZE else self._read_trailers(data, at)
                if at < 0:
                    break
            else:
                if state is _DONE:
                    self.rest = data[at:]
                break
        return body[0] if len(body) == 1 else b"".join(body)

    def _read_line(self, data: bytes, at: int) -> int:
        """Read a size line that starts at `at`; return where it ends, or -1 where it is incomplete or wrong."""
        stop = data.find(b"\r\n", at, at + SIZE_LINE_BYTES + 2)
        if stop < 0:
            self._hold(data, at, SIZE_LINE_BYTES, "chunk size line")
            return -1
        match = _SIZE_LINE.fullmatch(data, at, stop)
        if match is None:
            self._fail(f"invalid chunk size line {semantics.quoted(data[at:stop])}")
            return -1
        size = semantics.hexadecimal(match["size"], 16)
        assert size is not None
        self._extension_bytes += len(match["extensions"])
        if size > semantics.CONTENT_LENGTH_MAX or self._extension_bytes > EXTENSION_BYTES:
            self._fail(f"chunk size or extensions too large: {semantics.quoted(data[at:stop])}")
            return -1
        self._total += size
        if 0 < self._body_bytes < self._total:
            self.too_large = True
            self._fail(f"body larger than {self._body_bytes} bytes")
            return -1
        self._left = size
        self._scanned = 0
        self._state = _DATA if size else _TRAILER
        return stop + 2

    def _read_trailers(self, data: bytes, at: int) -> int:
        """Read the trailer section that starts at `at`, once all of it is there."""
        if data.startswith(b"\r\n", at):
            self._state = _DONE
            self.rest = data[at + 2 :]
            return -1
        stop = data.find(b"\r\n\r\n", at, at + self._trailer_bytes + 4)
        if stop < 0:
            self._hold(data, at, self._trailer_bytes, "trailer section")
            return -1
        lines = data[at:stop].split(b"\r\n")
        if len(lines) > self._trailer_count:
            self._fail(f"more than {self._trailer_count} trailer fields")
            return -1
        fields: Fields = []
        for line in lines:
            name, colon, value = line.partition(b":")
            value = value.strip(b" \t")
            if not colon or not semantics.is_token(name) or not semantics.is_field_value(value):
                self._fail(f"invalid trailer line {semantics.quoted(line)}")
                return -1
            fields.append((name.lower(), value))
        self.trailers = semantics.allowed_trailers(fields)
        self._state = _DONE
        self.rest = data[stop + 4 :]
        return -1

    def _hold(self, data: bytes, at: int, bound: int, what: str) -> None:
        """Keep an unfinished line for the next read, unless it can't become a right one."""
        held = data[at:]
        if _BARE.search(held, self._scanned) is not None:
            self._fail(f"bare CR or LF in the {what}")
        elif len(held) > bound + 3:  # the end of a line that fits may have begun
            self._fail(f"{what} longer than {bound} bytes")
        else:
            self._held = held
            self._scanned = max(0, len(held) - 1)

    def _fail(self, fault: str) -> None:
        self.fault = fault
        self._state = _FAILED
