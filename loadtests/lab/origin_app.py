"""What the programmable origin serves, whatever the HTTP version.

| path | answer |
|---|---|
| `/bytes/N` | N bytes with a content-length |
| `/chunked/N` | N bytes without one |
| `/slow?ms=N` | the usual answer, N ms later than usual |
| `/headers` | the request's method, target and fields as JSON |
| `/status/NNN` | that status |
| `/sink` | counts the request's body and answers with the number |
| `/counters` | the endpoint's counters as JSON |
| `/healthz` | `ok` |
| any POST or PUT | its own body and content-type |
| anything else | `body_bytes` bytes of text |

Every answer carries `x-region` and `x-endpoint`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Final, Protocol

from .behaviour import Behaviour, Outcome
from .timers import Timers

BODY_BYTES_MAX: Final = 64 << 20  # of a request that is kept to be echoed; past it: 413
_PIECE: Final = b"onetrip-" * 8192
_NUMBERED: Final = re.compile(rb"/(bytes|chunked|status)/(\d{1,12})$")
_MILLISECONDS: Final = re.compile(rb"[?&]ms=(\d{1,6}(?:\.\d+)?)")


class Request:
    """One request, complete. `body` is empty for /sink, `size` counts its bytes all the same."""

    __slots__ = ("body", "fields", "method", "size", "target")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.size = 0

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    def take(self, data: bytes) -> None:
        """Keep a piece of the body, or only count it."""
        self.size += len(data)
        if self.size <= BODY_BYTES_MAX and self.path != b"/sink":
            self.body += data


class Reply:
    """An answer. `length` None: it is not told in advance. The pieces of the body come when they can be sent."""

    __slots__ = ("fields", "length", "pieces", "status")

    def __init__(
        self, status: int, body: bytes | Iterator[bytes], length: int | None, fields: list[tuple[bytes, bytes]]
    ) -> None:
        self.status = status
        self.length = length
        self.fields = fields
        self.pieces = _slices(body) if isinstance(body, bytes) else body


class OriginConnection(Protocol):
    """What an origin asks of its connections, whatever they speak."""

    active_at: float

    @property
    def idle(self) -> bool:
        """No request is under way."""

    def close(self) -> None:
        """End in order."""

    def abort(self) -> None:
        """End with a RST."""


class Service(Protocol):
    """What connections ask of their origin: who it is, how it behaves, and that it hears of everything."""

    region: bytes
    endpoint: bytes
    behaviour: Behaviour
    timers: Timers
    instant: bool
    """The usual answer may go at once."""
    canned: bytes
    """That answer, as HTTP/1.1."""
    usual_body: bytes

    def now(self) -> float:
        """Its clock, in seconds."""

    def opened(self, connection: OriginConnection, transport: asyncio.Transport) -> None:
        """A connection is ready for requests, its TLS handshake done."""

    def closed(self, connection: OriginConnection) -> None:
        """A connection has ended."""

    def abort(self, transport: asyncio.Transport) -> None:
        """End a connection with a RST."""

    def take_over_h2(self, connection: OriginConnection, transport: asyncio.Transport, data: bytes) -> bool:
        """A plaintext connection opened with HTTP/2's preface: hand it over, where HTTP/2 is spoken."""

    def arrived(self, request: Request) -> None:
        """A request is complete."""

    def cancelled(self) -> None:
        """A peer has reset a stream."""

    def decide(self, request: Request) -> tuple[Outcome, float, int]:
        """What becomes of a request: see `Behaviour.decide`."""

    def counters(self) -> dict[str, float]:
        """Events since the start."""


def extra_delay_s(target: bytes) -> float:
    """What /slow asks for."""
    if not target.startswith(b"/slow"):
        return 0.0
    match = _MILLISECONDS.search(target)
    return float(match[1]) / 1e3 if match else 0.0


def respond(origin: Service, request: Request, status: int) -> Reply:
    """The answer to `request`; `status` is the one that a fault imposes, or 0."""
    fields = [(b"x-region", origin.region), (b"x-endpoint", origin.endpoint)]
    if status:
        if origin.behaviour.retry_after_s:
            fields.append((b"retry-after", b"%d" % origin.behaviour.retry_after_s))
        return _text(status, b"status %d, as told\n" % status, fields)
    path = request.path
    if match := _NUMBERED.match(path):
        number = int(match[2])
        if match[1] == b"bytes":
            return Reply(200, _pieces(number), number, fields)
        if match[1] == b"chunked":
            return Reply(200, _pieces(number), None, fields)
        return _text(number, b"", fields) if 200 <= number <= 599 else _text(400, b"no such status\n", fields)
    if path == b"/headers":
        return _json({"method": request.method, "target": request.target, "headers": request.fields}, fields)
    if path == b"/counters":
        return _json(origin.counters(), fields)
    if path == b"/sink":
        return _json({"bytes": request.size}, fields)
    if path == b"/healthz":
        return _text(200, b"ok\n", fields)
    if request.method in {b"POST", b"PUT"}:
        if request.size > BODY_BYTES_MAX:
            return _text(413, b"too large to echo\n", fields)
        kind = next((value for name, value in request.fields if name == b"content-type"), b"application/octet-stream")
        return Reply(200, bytes(request.body), len(request.body), [*fields, (b"content-type", kind)])
    return _text(200, origin.usual_body, fields)


def usual_body(region: bytes, endpoint: bytes, size: int) -> bytes:
    """`size` bytes of text that say where they come from."""
    return (b"this is %s, endpoint %s " % (region, endpoint)).ljust(size - 1, b".")[: size - 1] + b"\n" if size else b""


def _text(status: int, body: bytes, fields: list[tuple[bytes, bytes]]) -> Reply:
    return Reply(status, body, len(body), [*fields, (b"content-type", b"text/plain")])


def _json(value: object, fields: list[tuple[bytes, bytes]]) -> Reply:
    body = json.dumps(value, default=lambda data: data.decode("latin-1")).encode() + b"\n"
    return Reply(200, body, len(body), [*fields, (b"content-type", b"application/json")])


def _slices(body: bytes) -> Iterator[bytes]:
    if len(body) <= len(_PIECE):
        yield body
    else:
        for start in range(0, len(body), len(_PIECE)):
            yield body[start : start + len(_PIECE)]


def _pieces(size: int) -> Iterator[bytes]:
    while size > 0:
        yield _PIECE[:size]
        size -= len(_PIECE)
