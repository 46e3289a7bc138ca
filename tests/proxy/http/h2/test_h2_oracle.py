"""Properties: any chunking gives the same events, nothing a peer sends raises, and `h2` agrees on every session."""

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.http.h2 import PREFACE, H2ClientCodec, H2Limits, H2ServerCodec
from proxy.http.h2 import frames as wire
from proxy.http.message import (
    ConnectionFailed,
    DataReceived,
    HeadersReceived,
    LimitsChanged,
    RequestHead,
    ResponseHead,
    StreamWritable,
    TrailersReceived,
)

pytestmark = pytest.mark.filterwarnings("ignore")
EXPECTED = (HeadersReceived, DataReceived, TrailersReceived, StreamWritable)
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(
    lambda name: b"x-" + name.encode()
)
values = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=40).map(str.encode)
field_lists = st.lists(st.tuples(names, values), max_size=6)
bodies = st.integers(0, 40_000).map(lambda size: bytes(i * 7 & 0xFF for i in range(size % 257)) * (size // 257 + 1))
messages = st.tuples(
    field_lists,
    st.lists(bodies, max_size=3),
    st.one_of(st.none(), st.lists(st.tuples(names, values), min_size=1, max_size=3)),
)
windows = st.sampled_from([1, 10, 1000, 16384, 65535, 200_000])
their_windows = st.sampled_from([300, 1000, 16384, 65535, 200_000])  # smaller ones count as abuse


def simplified(events):
    """Events as values; adjacent data of a stream joined, because only chunking divides it."""
    seen = []
    for event in events:
        values = [type(event).__name__, *(getattr(event, name) for name in dir(event) if name[0] != "_")]
        if isinstance(event, HeadersReceived):
            head = event.head
            values = ["headers", event.stream_id, event.end, head.fields, head.content_length, repr(head)]
        values = [repr(value) if isinstance(value, Exception) else value for value in values]
        seen.append(values)
    return seen


def session():
    """The bytes of a client that does a bit of everything."""
    client = H2ClientCodec(H2Limits())
    client.receive(wire.settings([(wire.ENABLE_CONNECT_PROTOCOL, 1)]))
    for body, trailers in ((b"", None), (b"x" * 3000, None), (b"y" * 100, [(b"x-end", b"1")])):
        for path in (b"/one", b"/two/" + b"long" * 30):
            stream_id = client.open_stream()
            fields = [(b"user-agent", b"test"), (b"cookie", b"a=b; c=d"), (b"x-path", path)]
            head = RequestHead(b"POST", path, b"example.com", fields, {}, content_length=len(body))
            client.send_headers(stream_id, head, not body)
            if body:
                client.send_data(stream_id, body, trailers is None)
                if trailers:
                    client.send_trailers(stream_id, trailers)
    client.ping(b"12345678")
    client.reset(stream_id, None)
    extra = wire.frame(wire.PRIORITY, 0, 99, bytes(5)) + wire.window_update(0, 5) + wire.frame(0xAA, 3, 7, b"grease")
    return client.data_to_send() + extra


SESSION = session()


def serve(data, sizes):
    """Feed `data` in chunks of these sizes (the last one again and again)."""
    codec = H2ServerCodec(H2Limits())
    events, sent = [], b""
    position = index = 0
    while position < len(data):
        size = sizes[min(index, len(sizes) - 1)]
        for event in codec.receive(data[position : position + size]):
            events.append(event)
        sent += codec.data_to_send()
        position += size
        index += 1
    return simplified(events), sent


@SLOW
@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_any_chunking_gives_the_same_events(sizes):
    assert serve(SESSION, sizes) == serve(SESSION, [len(SESSION)])


def test_bytes_one_by_one():
    assert serve(SESSION, [1]) == serve(SESSION, [len(SESSION)])


@SLOW
@given(st.integers(24, len(SESSION) - 1), st.binary(min_size=1, max_size=12), st.booleans(), st.integers(1, 200))
def test_mutated_sessions_never_raise(position, noise, insert, size):
    data = SESSION[:position] + noise + SESSION[position + (0 if insert else len(noise)) :]
    events, sent = serve(data, [size])
    assert (events, sent) == serve(data, [len(data)])
    failures = [event for event in events if event[0] == ConnectionFailed.__name__]
    assert len(failures) <= 1
    assert not failures or events[-1] == failures[0]


frames = st.builds(
    wire.frame,
    st.sampled_from(range(12)),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 2, 3, 5, 7]),
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([b"\x82\x87\x84\x41\x01a", b"\x88", bytes(4), bytes(8), b"\x00\x00\x00\x05", b"\xbe\xbf"]),
    ),
)


@settings(SLOW, max_examples=300)
@given(st.lists(st.one_of(frames, st.binary(max_size=30)), max_size=25), st.booleans())
def test_arbitrary_frames_never_raise(parts, server):
    codec = H2ServerCodec(H2Limits()) if server else H2ClientCodec(H2Limits())
    codec.receive(PREFACE + wire.settings([]) if server else wire.settings([]))
    if not server:
        for method in (b"GET", b"HEAD", b"POST"):
            codec.send_headers(codec.open_stream(), RequestHead(method, b"/", b"a", [], {}), method != b"POST")
    for part in parts:
        for event in codec.receive(part):
            if isinstance(event, DataReceived):
                codec.consumed(event.stream_id, event.size)
            elif server and isinstance(event, HeadersReceived):
                codec.send_headers(event.stream_id, ResponseHead(200, [], {}), False)
                codec.send_data(event.stream_id, b"x" * 10, True)
        codec.data_to_send()
    codec.receive_eof()
    assert codec.open_streams == 0
    assert codec.held_bytes == 0


class Received:
    """What arrived on each stream of our codec, consumed as it comes."""

    def __init__(self, codec):
        self.codec = codec
        self.heads, self.bodies, self.trailers, self.ended = {}, {}, {}, set()

    def take(self, data):
        for event in self.codec.receive(data):
            if isinstance(event, LimitsChanged):
                continue
            assert isinstance(event, EXPECTED), repr(event)
            stream_id = event.stream_id
            if isinstance(event, HeadersReceived):
                self.heads[stream_id] = event.head
                self.bodies[stream_id] = b""
            elif isinstance(event, DataReceived):
                self.bodies[stream_id] += event.data
                self.codec.consumed(stream_id, event.size)
            elif isinstance(event, TrailersReceived):
                self.trailers[stream_id] = event.fields
            if isinstance(event, TrailersReceived) or (not isinstance(event, StreamWritable) and event.end):
                self.ended.add(stream_id)


def send_message(codec, stream_id, head, body, trailers):
    codec.send_headers(stream_id, head, not body and trailers is None)
    for number, part in enumerate(body, 1):
        codec.send_data(stream_id, part, number == len(body) and trailers is None)
    if trailers is not None:
        codec.send_trailers(stream_id, trailers)


def request(fields):
    return RequestHead(b"POST", b"/path", b"example.com", fields, {}, content_length=None)


@SLOW
@given(st.lists(st.tuples(messages, messages), min_size=1, max_size=4), windows, windows)
def test_our_own_codecs_understand_each_other(exchanges, client_window, server_window):
    client = H2ClientCodec(H2Limits(stream_window=client_window, connection_window=100_000))
    server = H2ServerCodec(H2Limits(stream_window=server_window, connection_window=100_000))
    got_server, got_client = Received(server), Received(client)

    def pump():
        while (data := client.data_to_send()) or server._out:
            got_server.take(data)
            got_client.take(server.data_to_send())

    pump()
    for (fields, body, trailers), _ in exchanges:
        send_message(client, client.open_stream(), request(fields), body, trailers)
    pump()
    for index, ((fields, body, trailers), answer) in enumerate(exchanges):
        stream_id = 2 * index + 1
        assert got_server.heads[stream_id].fields == fields
        assert got_server.bodies[stream_id] == b"".join(body)
        assert got_server.trailers.get(stream_id) == trailers
        assert stream_id in got_server.ended
        send_message(server, stream_id, ResponseHead(200, answer[0], {}), answer[1], answer[2])
    pump()
    for index, (_, (fields, body, trailers)) in enumerate(exchanges):
        stream_id = 2 * index + 1
        assert got_client.heads[stream_id].fields == fields
        assert got_client.bodies[stream_id] == b"".join(body)
        assert got_client.trailers.get(stream_id) == trailers
        assert stream_id in got_client.ended
    assert (client.open_streams, server.open_streams, client.held_bytes, server.held_bytes) == (0, 0, 0, 0)
    for codec in (client, server):
        assert not codec._lingering
        assert codec._credit * 2 < 100_000


class Oracle:
    """An `h2` connection that reads everything, gives credit back at once, and sends within its windows."""

    def __init__(self, client_side, window):
        config = h2.config.H2Configuration(client_side=client_side, header_encoding=None)
        self.connection = h2.connection.H2Connection(config)
        self.connection.local_settings = h2.settings.Settings(
            client=client_side, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.connection.initiate_connection()
        self.heads, self.bodies, self.trailers, self.ended = {}, {}, {}, set()
        self.pending = {}

    def take(self, data):
        for event in self.connection.receive_data(data):
            stream_id = getattr(event, "stream_id", None)
            if isinstance(event, (h2.events.RequestReceived, h2.events.ResponseReceived)):
                self.heads[stream_id] = [tuple(field) for field in event.headers if not field[0].startswith(b":")]
                self.bodies[stream_id] = b""
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[stream_id] += event.data
                if event.flow_controlled_length:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[stream_id] = [tuple(field) for field in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(stream_id)
            else:
                assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
        self.push()

    def send(self, stream_id, fields, body, trailers):
        self.connection.send_headers(stream_id, fields)
        self.pending[stream_id] = (b"".join(body), trailers)
        self.push()

    def push(self):
        for stream_id, (body, trailers) in list(self.pending.items()):
            size = min(len(body), self.connection.local_flow_control_window(stream_id), 16384)
            while size > 0:
                self.connection.send_data(stream_id, body[:size])
                body = body[size:]
                size = min(len(body), self.connection.local_flow_control_window(stream_id), 16384)
            self.pending[stream_id] = (body, trailers)
            if not body:
                del self.pending[stream_id]
                if trailers is None:
                    self.connection.end_stream(stream_id)
                else:
                    self.connection.send_headers(stream_id, trailers, end_stream=True)


def settle(oracle, received):
    """Carry bytes both ways until neither side has any."""
    while True:
        data = oracle.connection.data_to_send()
        received.take(data)
        back = received.codec.data_to_send()
        if back:
            oracle.take(back)
        elif not data:
            return


def same(received, sent):
    """Bodies and heads as they were sent, stream by stream."""
    for index, (fields, body, trailers) in enumerate(sent):
        stream_id = 2 * index + 1
        heads = received.heads[stream_id]
        assert (heads if isinstance(heads, list) else heads.fields) == fields
        assert received.bodies[stream_id] == b"".join(body)
        assert received.trailers.get(stream_id) == trailers
        assert stream_id in received.ended


@SLOW
@given(st.lists(st.tuples(messages, messages), min_size=1, max_size=3), windows, their_windows)
def test_client_against_h2(exchanges, ours, theirs):
    received = Received(H2ClientCodec(H2Limits(stream_window=ours, connection_window=100_000)))
    oracle = Oracle(False, theirs)
    settle(oracle, received)
    for (fields, body, trailers), _ in exchanges:
        send_message(received.codec, received.codec.open_stream(), request(fields), body, trailers)
    settle(oracle, received)
    same(oracle, [request for request, _ in exchanges])
    for index, (_, (fields, body, trailers)) in enumerate(exchanges):
        oracle.send(2 * index + 1, [(b":status", b"200"), *fields], body, trailers)
    settle(oracle, received)
    same(received, [answer for _, answer in exchanges])


@SLOW
@given(st.lists(st.tuples(messages, messages), min_size=1, max_size=3), windows, their_windows)
def test_server_against_h2(exchanges, ours, theirs):
    received = Received(H2ServerCodec(H2Limits(stream_window=ours, connection_window=100_000)))
    oracle = Oracle(True, theirs)
    settle(oracle, received)
    start = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"example.com"), (b":path", b"/path")]
    for index, ((fields, body, trailers), _) in enumerate(exchanges):
        oracle.send(2 * index + 1, [*start, *fields], body, trailers)
    settle(oracle, received)
    same(received, [request for request, _ in exchanges])
    for index, (_, (fields, body, trailers)) in enumerate(exchanges):
        send_message(received.codec, 2 * index + 1, ResponseHead(200, fields, {}), body, trailers)
    settle(oracle, received)
    same(oracle, [answer for _, answer in exchanges])
