"""Scripts against one codec: frames in, events and frames out. HPACK on the peer's side is the `hpack` library's."""

import struct
from collections import namedtuple

import hpack
import pytest

from proxy.http.h2 import PREFACE, H2ClientCodec, H2Limits, H2ServerCodec
from proxy.http.h2 import frames as wire
from proxy.http.message import ConnectionFailed, LimitsChanged, RequestHead, ResponseHead

Frame = namedtuple("Frame", "kind flags stream_id payload")

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"example.com")]
POST = [(b":method", b"POST"), *GET[1:]]


def parse(data):
    """All frames in `data`, which must hold nothing else."""
    frames = []
    while data:
        high, low, kind, flags, stream_id = struct.unpack_from(">BHBBL", data)
        length = high << 16 | low
        assert len(data) >= 9 + length
        frames.append(Frame(kind, flags, stream_id, data[9 : 9 + length]))
        data = data[9 + length :]
    return frames


class Script:
    """What both roles' scripts share. `frames` are those that the codec has sent since they were last taken."""

    def __init__(self, codec):
        self.codec = codec
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.events = []

    def raw(self, data):
        events = self.codec.receive(data)
        self.events = [event for event in events if not isinstance(event, LimitsChanged)]
        self.limits_changed = len(events) - len(self.events)
        return self.events

    def send(self, *frames):
        return self.raw(b"".join(frames))

    def frames(self):
        return parse(self.codec.data_to_send())

    def headers(self, stream_id, fields, end=True, flags=wire.END_HEADERS):
        block = fields if isinstance(fields, bytes) else self.encoder.encode(fields)
        return wire.frame(wire.HEADERS, flags | (wire.END_STREAM if end else 0), stream_id, block)

    @staticmethod
    def data(stream_id, payload=b"", end=False):
        return wire.frame(wire.DATA, wire.END_STREAM if end else 0, stream_id, payload)

    def fields(self, frame):
        return [tuple(field) for field in self.decoder.decode(frame.payload, raw=True)]

    def goaway(self):
        """(last stream id, code) of the one GOAWAY that was sent."""
        (frame,) = [frame for frame in self.frames() if frame.kind == wire.GOAWAY]
        return struct.unpack_from(">LL", frame.payload)

    def connection_error(self, code):
        """The last thing that happened was a connection error with this code."""
        assert self.goaway()[1] == code
        assert isinstance(self.events[-1], ConnectionFailed)
        assert self.codec.closing
        assert self.codec.receive(wire.frame(wire.PING, 0, 0, bytes(8))) == []

    def stream_error(self, stream_id, code):
        """A stream was reset with this code, and nothing else was; the connection lives."""
        resets = [(frame.stream_id, *struct.unpack(">L", frame.payload)) for frame in self.frames() if frame.kind == 3]
        assert resets == [(stream_id, code)]
        self.alive()

    def alive(self):
        """The connection still answers a PING."""
        assert not self.codec.closing
        self.codec.receive(wire.frame(wire.PING, 0, 0, b"arealive"))
        assert Frame(wire.PING, wire.ACK, 0, b"arealive") in self.frames()


class ServerScript(Script):
    """The codec is a server; the script is its client."""

    def __init__(self, limits=None, settings=()):
        super().__init__(H2ServerCodec(limits or H2Limits()))
        assert self.raw(PREFACE + wire.settings(settings)) == []
        self.first = self.frames()

    def get(self, stream_id=1):
        return self.send(self.headers(stream_id, GET))

    def respond(self, stream_id=1, body=b"", status=200, fields=()):
        self.codec.send_headers(stream_id, ResponseHead(status, list(fields), {}), not body)
        if body:
            return self.codec.send_data(stream_id, body, True)
        return True


class ClientScript(Script):
    """The codec is a client; the script is its server."""

    def __init__(self, limits=None, settings=()):
        super().__init__(H2ClientCodec(limits or H2Limits()))
        self.preface = self.codec.data_to_send()
        assert self.raw(wire.settings(settings)) == []
        self.frames()

    def get(self, method=b"GET", end=True, **options):
        stream_id = self.codec.open_stream()
        head = RequestHead(method, b"/", b"example.com", [], {}, **options)
        self.codec.send_headers(stream_id, head, end)
        self.request = self.fields(self.frames()[-1])
        return stream_id


@pytest.fixture(scope="session")
def server():
    return ServerScript


@pytest.fixture(scope="session")
def client():
    return ClientScript
