"""The programmable origin over HTTP/2, by the `h2` library: correct and instrumented rather than fast."""

# ruff: noqa: D102 - the callbacks are asyncio's, named and described there

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from .behaviour import Outcome
from .origin_app import Request, Service, extra_delay_s, respond

_STREAM_WINDOW: Final = 1 << 20  # an upload over a long path is not to be held up by the 64 KiB of the default
_CONNECTION_WINDOW: Final = 16 << 20


class H2Connection(asyncio.Protocol):
    """One connection and its streams: `_requests` are being received, `_replies` wait for flow control."""

    def __init__(self, origin: Service) -> None:
        self._origin = origin
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self._requests: dict[int, Request] = {}
        self._replies: dict[int, tuple[Iterator[bytes], bytes, bytes | None]] = {}  # (pieces, this one, the next one)
        self._writable = True
        self._closed = False
        self.active_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._origin.opened(self, self._transport)
        # Given at the start they hold at once; set later they would only be announced.
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1000,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - 65535)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._replies.clear()
        self._origin.closed(self)

    @property
    def idle(self) -> bool:
        """No stream is open."""
        return not self._requests and not self._replies

    def close(self) -> None:
        """GOAWAY, then close."""
        self._h2.close_connection()
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close with a RST."""
        self._closed = True
        self._origin.abort(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()
            self._transport.close()
            return
        # A request and its reset in one read (sent again after a black hole): the library has forgotten the stream.
        gone = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
        for event in events:
            if isinstance(event, h2.events.StreamEnded) and event.stream_id in gone:
                continue
            if not self._closed:
                self._handle(event)
        self._flush()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            request = Request()
            for name, value in event.headers:
                if name == b":method":
                    request.method = value
                elif name == b":path":
                    request.target = value
                request.fields.append((name, value))
            self._requests[event.stream_id] = request
        elif isinstance(event, h2.events.DataReceived):
            if event.stream_id in self._requests:
                self._requests[event.stream_id].take(event.data)
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._start(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self._origin.cancelled()
            self._requests.pop(event.stream_id, None)
            self._replies.pop(event.stream_id, None)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._send_all()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._transport.close()

    def _start(self, stream_id: int) -> None:
        request = self._requests[stream_id]
        origin = self._origin
        origin.arrived(request)
        outcome, delay_s, status = origin.decide(request)
        if outcome is Outcome.RESET:
            self.abort()
        elif outcome is Outcome.ANSWER:
            delay_s += extra_delay_s(request.target)
            if delay_s:
                origin.timers.call_at(origin.now() + delay_s, self._answer_late, stream_id, status)
            else:
                self._answer(stream_id, status)

    def _answer_late(self, stream_id: int, status: int) -> None:
        self._answer(stream_id, status)
        self._flush()

    def _answer(self, stream_id: int, status: int) -> None:
        request = self._requests.pop(stream_id, None)
        if self._closed or request is None:  # reset meanwhile
            return
        reply = respond(self._origin, request, status)
        fields = [(b":status", b"%d" % reply.status), *reply.fields]
        if reply.length is not None and reply.status != 204:
            fields.append((b"content-length", b"%d" % reply.length))
        bodyless = request.method == b"HEAD" or reply.status in {204, 304} or reply.length == 0
        self._h2.send_headers(stream_id, fields, end_stream=bodyless)
        if not bodyless:
            self._replies[stream_id] = (reply.pieces, next(reply.pieces, b""), next(reply.pieces, None))
            self._send(stream_id)
        self.active_at = self._origin.now()

    def _send(self, stream_id: int) -> None:
        """Send as much of a reply as flow control and the socket take."""
        pieces, piece, following = self._replies[stream_id]
        while self._writable:
            window = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if window <= 0 and piece:
                break
            part, piece = piece[:window], piece[window:]
            end = not piece and following is None
            self._h2.send_data(stream_id, part, end_stream=end)
            if end:
                del self._replies[stream_id]
                return
            if not piece:
                assert following is not None
                piece, following = following, next(pieces, None)
                self._flush()  # this is where the socket may say that it has enough
        self._replies[stream_id] = (pieces, piece, following)

    def _send_all(self) -> None:
        for stream_id in list(self._replies):
            self._send(stream_id)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._h2.data_to_send())

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._send_all()
        self._flush()
