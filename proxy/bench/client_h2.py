"""HTTP/2 on a client connection: many requests at once, one stream each (RFC 9113)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from proxy.errors import Kind, ProxyError

from .client import Connection, ConnectionOwner, Phase

if TYPE_CHECKING:
    from .request import Request
    from .tls import ClientTls

_WINDOW_BYTES: Final = 1 << 24  # large: flow control towards this client is not what is measured


class _Stream:
    """A request on its stream, and the part of its body that flow control holds back."""

    __slots__ = ("body_sent", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.body_sent = 0


class H2Connection(Connection):
    """HTTP/2, by ALPN over TLS or with prior knowledge in clear text."""

    alpn = "h2"

    def __init__(
        self, owner: ConnectionOwner, tls: ClientTls | None, fields: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        super().__init__(owner, tls)
        self._fields = fields
        self._body = body
        self._streams: dict[int, _Stream] = {}
        self._blocked: list[int] = []
        self._greeted = False
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )

    @property
    def active(self) -> int:
        """Open streams."""
        return len(self._streams)

    def has_room(self, streams: int) -> bool:
        """Below the plan's limit and the server's."""
        limit = min(streams, self._h2.remote_settings.max_concurrent_streams)
        return self.phase is Phase.READY and not self.draining and len(self._streams) < limit

    def start(self) -> None:
        """Preface, settings, a large window."""
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 100,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        self._flush()

    def send(self, request: Request, now: float) -> None:
        """Send the head and what flow control lets through of the body."""
        stream_id = self._h2.get_next_available_stream_id()
        request.connection = self
        request.stream_id = stream_id
        request.sent = now
        self._streams[stream_id] = _Stream(request)
        self._h2.send_headers(stream_id, self._fields, end_stream=not self._body)
        if self._body:
            self._send_body(stream_id)
        self._flush()

    def received(self, data: bytes, now: float) -> None:
        """Give the frames to the library, and its events to the requests."""
        if not self._greeted:
            self._greeted = True
            if data.startswith(b"HTTP/"):  # would be taken for a frame of 4 MB, and waited for
                self.close(ProxyError(Kind.BAD_RESPONSE, "the server answered HTTP/2 with HTTP/1: use --h1"), now)
                return
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._flush()
            self.close(
                ProxyError(Kind.BAD_RESPONSE, f"an HTTP/2 protocol error: {str(error) or type(error).__name__}"), now
            )
            return
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self._on_data(event, now)
            elif isinstance(event, h2.events.ResponseReceived):
                self._on_response(event, now)
            elif isinstance(event, h2.events.StreamEnded):
                self._on_end(event.stream_id, now)
            elif isinstance(event, h2.events.StreamReset):
                code = _code_name(event.error_code)
                self._fail(event.stream_id, ProxyError(Kind.TERMINATED, f"the server reset the stream: {code}"), now)
            elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                blocked, self._blocked = self._blocked, []
                for stream_id in blocked:
                    self._send_body(stream_id)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self._on_goaway(event, now)
        self._flush()

    def fail_all(self, error: ProxyError, now: float) -> None:
        """Fail every open stream's request."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            self.owner.failed(self, stream.request, error, now)

    def abandon(self, request: Request, now: float) -> None:
        """Reset the stream; the connection goes on."""
        if self._streams.pop(request.stream_id, None) is not None:
            try:
                self._h2.reset_stream(request.stream_id, h2.errors.ErrorCodes.CANCEL)
            except h2.exceptions.ProtocolError:
                pass  # the stream has just ended
            self._flush()
        self.owner.freed(self, now)

    def _on_response(self, event: h2.events.ResponseReceived, now: float) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        stream.request.first_byte = now
        for name, value in event.headers:
            if name == b":status":
                stream.request.status = int(value)
                break

    def _on_data(self, event: h2.events.DataReceived, now: float) -> None:
        if event.flow_controlled_length:
            try:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            except h2.exceptions.ProtocolError:
                pass  # the stream is gone; the library has given the connection its credit

    def _on_end(self, stream_id: int, now: float) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        if stream.body_sent < len(self._body):  # the answer came before the end of the request
            try:
                self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
            except h2.exceptions.ProtocolError:
                pass
        self.served += 1
        self.owner.answered(self, stream.request, now)

    def _on_goaway(self, event: h2.events.ConnectionTerminated, now: float) -> None:
        self.draining = True
        last = event.last_stream_id or 0
        reason = f"the server sent GOAWAY ({_code_name(event.error_code)}) and did not process it"
        for stream_id in [s for s in self._streams if s > last]:
            self._fail(stream_id, ProxyError(Kind.TERMINATED, reason, unprocessed=True), now)
        if not self._streams:
            self.close()

    def _fail(self, stream_id: int | None, error: ProxyError, now: float) -> None:
        stream = self._streams.pop(stream_id or 0, None)
        if stream is not None:
            self.owner.failed(self, stream.request, error, now)

    def _send_body(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        while stream is not None and stream.body_sent < len(self._body):
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                self._blocked.append(stream_id)
                return
            piece = self._body[stream.body_sent : stream.body_sent + room]
            stream.body_sent += len(piece)
            self._h2.send_data(stream_id, piece, end_stream=stream.body_sent == len(self._body))

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self.write(data)


def _code_name(code: object) -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else str(code)
