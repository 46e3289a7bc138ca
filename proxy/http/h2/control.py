"""HTTP/2's frames without heads and bodies: PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY and WINDOW_UPDATE.

What each may look like, and which fault ends what, is RFC 9113 sections 6.3 to 6.9. Every one of them is counted by the
guard, because a peer can send them for nothing.
"""

from __future__ import annotations

from typing import Final

from proxy.errors import Kind, ProxyError
from proxy.http.message import PingAcknowledged, StreamReset

from . import frames as wire
from .flow import PEER_RESET, H2Flow
from .guard import Abuse
from .stream import H2Limits, H2Stream, Half

_PINGS_MAX: Final = 64  # of ours, unanswered


class H2Error(Exception):
    """A connection error: raised by what reads frames, turned into events by `receive`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class H2Control(H2Flow):
    """A connection's settings, pings, resets and windows. `peer_settings`: what the peer announced, by identifier."""

    __slots__ = ("_draining", "_last_id", "_pings", "peer_settings")

    _server: bool

    def __init__(self, limits: H2Limits) -> None:
        super().__init__(limits)
        self._last_id = 0  # the highest id that a client has used
        self._draining = False
        self._pings: set[bytes] = set()
        self.peer_settings: dict[int, int] = {}

    def ping(self, payload: bytes) -> None:
        """Send a PING with 8 bytes, which its PingAcknowledged repeats; not while 64 are unanswered."""
        if len(self._pings) < _PINGS_MAX:
            self._pings.add(payload)
            self._out.append(wire.frame(wire.PING, 0, 0, payload))

    def tick(self) -> None:
        """About a second has passed: refill what abuse limits allow an idle connection (see `h2_guard`), and end
        streams
        that the peer has held up for too long.
        """
        self.guard.tick()
        if self._held_bytes:
            for stream in list(self._streams.values()):
                if stream.held_bytes:
                    stream.stalled_ticks += 1
                    if stream.stalled_ticks > self._limits.stall_ticks:
                        self._end_stalled(stream)

    def _end_stalled(self, stream: H2Stream) -> None:
        self._reset(stream, wire.CANCEL)
        kind = Kind.CLIENT_LEFT if self._server else Kind.READ_TIMEOUT
        text = f"the peer's window was closed for {self._limits.stall_ticks} s"
        self._events.append(StreamReset(stream.stream_id, ProxyError(kind, text)))

    def _spend(self, kind: Abuse) -> None:
        if not self.guard.spend(kind):
            raise H2Error(wire.ENHANCE_YOUR_CALM, f"too many frames that do nothing ({kind.label})")

    def _is_idle(self, stream_id: int) -> bool:
        """A stream that nobody has opened. Even ids are a server's, and none of them may be used: push is off."""
        return stream_id > self._last_id or not stream_id & 1

    def _stream_error(self, stream: H2Stream, code: int, reason: str) -> None:
        """End a stream that is known above by a fault of the peer."""
        self._reset(stream, code)
        kind = Kind.BAD_REQUEST if self._server else Kind.BAD_RESPONSE
        self._events.append(StreamReset(stream.stream_id, ProxyError(kind, reason)))
        self._spend(Abuse.FAULT)

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Form only. A stream can't depend on itself: RFC 7540 section 5.3.1, which RFC 9113 no longer mentions."""
        if not stream_id:
            raise H2Error(wire.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._spend(Abuse.IGNORED)
        code = wire.NO_ERROR
        if len(payload) != 5:
            code = wire.FRAME_SIZE_ERROR
        elif wire.unpack_u32(payload)[0] & wire.STREAM_ID_MAX == stream_id:
            code = wire.PROTOCOL_ERROR
        if code:
            stream = self._streams.get(stream_id)
            if stream is not None:
                self._stream_error(stream, code, "malformed PRIORITY")
            else:
                raise H2Error(code, "malformed PRIORITY")

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise H2Error(wire.FRAME_SIZE_ERROR, f"RST_STREAM of {len(payload)} bytes")
        if not stream_id or self._is_idle(stream_id):
            raise H2Error(wire.PROTOCOL_ERROR, f"RST_STREAM on idle stream {stream_id}")
        stream = self._streams.get(stream_id)
        if stream is None:
            self._spend(Abuse.IGNORED)
            return
        (code,) = wire.unpack_u32(payload)
        self._drop(stream)
        self._remember_reset(stream_id, PEER_RESET)
        self._events.append(StreamReset(stream_id, self._reset_error(code)))
        if self._server and stream.sending is Half.HEAD:
            self._spend(Abuse.RESET)

    def _reset_error(self, code: int) -> ProxyError:
        raise NotImplementedError

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise H2Error(wire.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if len(payload) % 6 or (flags & wire.ACK and payload):
            raise H2Error(wire.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        self._spend(Abuse.SETTINGS)
        if flags & wire.ACK:
            return
        for identifier, value in wire.read_settings(payload):
            self._apply_setting(identifier, value)
        self._out.append(wire.frame(wire.SETTINGS, wire.ACK, 0))
        self._on_new_settings()

    def _on_new_settings(self) -> None:
        """The peer's settings have been applied."""

    def _apply_setting(self, identifier: int, value: int) -> None:
        if identifier in (wire.ENABLE_PUSH, wire.ENABLE_CONNECT_PROTOCOL) and value > 1:
            raise H2Error(wire.PROTOCOL_ERROR, f"setting {identifier} of {value}")
        if identifier == wire.INITIAL_WINDOW_SIZE:
            if value > wire.WINDOW_MAX:
                raise H2Error(wire.FLOW_CONTROL_ERROR, f"an initial window of {value}")
            self._resize_windows(value)
        elif identifier == wire.MAX_FRAME_SIZE:
            if not 16384 <= value <= 2**24 - 1:
                raise H2Error(wire.PROTOCOL_ERROR, f"a frame size of {value}")
        elif identifier == wire.HEADER_TABLE_SIZE:
            self._encoder.resize(value)
        if identifier <= wire.ENABLE_CONNECT_PROTOCOL:
            self.peer_settings[identifier] = value

    def _resize_windows(self, value: int) -> None:
        """Move all streams' windows with the setting (RFC 9113 section 6.9.2); they may become negative."""
        change = value - self._peer_window
        self._peer_window = value
        for stream in self._streams.values():
            stream.send_window += change
            if stream.send_window > wire.WINDOW_MAX:
                raise H2Error(wire.FLOW_CONTROL_ERROR, "SETTINGS open a window beyond 2^31-1")
            self._enqueue(stream)
        self._flush()

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise H2Error(wire.PROTOCOL_ERROR, "PUSH_PROMISE")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise H2Error(wire.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        if len(payload) != 8:
            raise H2Error(wire.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        if not flags & wire.ACK:
            self._spend(Abuse.PING)
            self._out.append(wire.frame(wire.PING, wire.ACK, 0, payload))
        elif payload in self._pings:
            self._pings.discard(payload)
            self._on_pong(payload)
        else:
            self._spend(Abuse.PING)

    def _on_pong(self, payload: bytes) -> None:
        self._events.append(PingAcknowledged(payload))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise H2Error(wire.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        if len(payload) < 8:
            raise H2Error(wire.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self._spend(Abuse.SETTINGS)
        (last,) = wire.unpack_u32(payload)
        (code,) = wire.unpack_u32(payload, 4)
        self._on_going(last & wire.STREAM_ID_MAX, code)

    def _on_going(self, last: int, code: int) -> None:
        """The peer's GOAWAY. A client's says nothing that a server acts on: it never opens streams to it."""

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise H2Error(wire.FRAME_SIZE_ERROR, f"WINDOW_UPDATE of {len(payload)} bytes")
        increment = wire.unpack_u32(payload)[0] & wire.WINDOW_MAX
        self._spend(Abuse.WINDOW)
        if not stream_id:
            if not increment:
                raise H2Error(wire.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._send_window += increment
            if self._send_window > wire.WINDOW_MAX:
                raise H2Error(wire.FLOW_CONTROL_ERROR, "the connection's window beyond 2^31-1")
            self._flush()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise H2Error(wire.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")
            return
        stream.send_window += increment
        if not increment:
            self._stream_error(stream, wire.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        elif stream.send_window > wire.WINDOW_MAX:
            self._stream_error(stream, wire.FLOW_CONTROL_ERROR, "the stream's window beyond 2^31-1")
        elif stream.held_bytes:
            self._enqueue(stream)
            self._flush()
