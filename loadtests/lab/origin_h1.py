"""The programmable origin over HTTP/1.1: one request at a time, pipelined ones in order, read by httptools.

`upgrade: echo` and CONNECT make the connection a tunnel that echoes. Other upgrades are ignored, as RFC 9110 section
7.8 allows.
"""

# ruff: noqa: D102 - the callbacks are asyncio's and httptools', named and described there

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

import httptools

from .behaviour import Outcome
from .origin_app import Reply, Request, Service, extra_delay_s, respond

_PIPELINE_MAX: Final = 128  # requests waiting on one connection; past it reading stops
_PREFACE: Final = b"PRI * HTTP/2.0\r\n"
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}


class H1Connection(asyncio.Protocol):
    """One connection: reading a request, `_busy` with one, `_hung` on one, `_echoing` as a tunnel, or closed."""

    def __init__(self, origin: Service) -> None:
        self._origin = origin
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._busy = False
        self._writable = True
        self._body: Iterator[bytes] | None = None
        self._chunked = False
        self._keep_alive = True
        self._first = True
        self._tls = False
        self._hung = False
        self._echoing = False
        self._half_closed = False
        self._closed = False
        self.active_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._tls = transport.get_extra_info("ssl_object") is not None
        self._origin.opened(self, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._waiting.clear()
        self._origin.closed(self)

    @property
    def idle(self) -> bool:
        """Nothing is being received or answered."""
        return not self._busy and not self._waiting

    def close(self) -> None:
        """Close, as a server does with an idle connection."""
        self._transport.close()

    def abort(self) -> None:
        """Close with a RST."""
        self._closed = True
        self._origin.abort(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._first:
            self._first = False
            if data.startswith(_PREFACE) and self._origin.take_over_h2(self, self._transport, data):
                return
        if self._echoing:
            self._transport.write(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if not self._echoing:
                self._parser = httptools.HttpRequestParser(self)
            if rest:
                self.data_received(rest)
        except httptools.HttpParserError:
            if not self._closed:
                self._closed = True
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                self._transport.close()

    def eof_received(self) -> bool:
        self._half_closed = True
        return self._busy and not self._hung and not self._tls  # what is being answered still gets its answer

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._request = Request()

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._request.method = self._parser.get_method()
        if (b"expect", b"100-continue") in self._request.fields:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._request.take(data)

    def on_message_complete(self) -> None:
        if self._closed:
            return
        request, keep_alive = self._request, self._parser.should_keep_alive()
        self._origin.arrived(request)
        if self._parser.should_upgrade() and self._tunnel(request):
            return
        if self._busy or self._waiting:
            self._waiting.append((request, keep_alive))
            if len(self._waiting) == _PIPELINE_MAX:
                self._transport.pause_reading()
        else:
            self._start(request, keep_alive)

    def _tunnel(self, request: Request) -> bool:
        if request.method == b"CONNECT":
            head = b"HTTP/1.1 200 OK\r\n\r\n"
        elif (b"upgrade", b"echo") in request.fields:
            head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n"
        else:
            return False
        self._echoing = True
        self._transport.write(head)
        return True

    def _start(self, request: Request, keep_alive: bool) -> None:
        self._keep_alive = keep_alive
        self._busy = True
        origin = self._origin
        if origin.instant and not request.target.startswith(b"/slow"):
            self._answer(request, 0)
            return
        outcome, delay_s, status = origin.decide(request)
        if outcome is Outcome.RESET:
            self.abort()
        elif outcome is Outcome.HANG:
            self._hung = True
        else:
            delay_s += extra_delay_s(request.target)
            if delay_s:
                origin.timers.call_at(origin.now() + delay_s, self._answer, request, status)
            else:
                self._answer(request, status)

    def _answer(self, request: Request, status: int) -> None:
        if self._closed:
            return
        origin = self._origin
        if request.method == b"GET" and request.target == b"/" and not status and self._keep_alive:
            self._transport.write(origin.canned)
            self._done()
            return
        reply = respond(origin, request, status)
        head = self._head(reply)
        bodyless = request.method == b"HEAD" or reply.status in {204, 304}
        first = b"" if bodyless else next(reply.pieces, b"")
        self._chunked = reply.length is None and not bodyless
        self._body = iter(()) if bodyless else reply.pieces
        self._transport.write(head + self._framed(first))
        self._send_body()

    def _head(self, reply: Reply) -> bytes:
        lines = [b"HTTP/1.1 %d %s" % (reply.status, _REASONS.get(reply.status, b"Unknown"))]
        lines += [b"%s: %s" % field for field in reply.fields]
        if reply.length is None:
            lines.append(b"transfer-encoding: chunked")
        elif reply.status != 204:
            lines.append(b"content-length: %d" % reply.length)
        if not self._keep_alive:
            lines.append(b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _framed(self, piece: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(piece), piece) if self._chunked and piece else piece

    def _send_body(self) -> None:
        while self._writable and self._body is not None and not self._closed:
            piece = next(self._body, None)
            if piece is None:
                self._body = None
                if self._chunked:
                    self._transport.write(b"0\r\n\r\n")
                self._done()
            else:
                self._transport.write(self._framed(piece))

    def _done(self) -> None:
        self._busy = False
        self.active_at = self._origin.now()
        if not self._keep_alive:
            self._closed = True
            self._transport.close()
        elif self._half_closed and not self._waiting:
            self._transport.close()
        elif self._waiting:
            if len(self._waiting) == _PIPELINE_MAX:
                self._transport.resume_reading()
            # Not from here: a hundred pipelined requests would nest a hundred calls.
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if not self._closed and not self._busy and self._waiting:
            self._start(*self._waiting.popleft())

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._send_body()
