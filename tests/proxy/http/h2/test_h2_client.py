"""The client role: how requests go out, what answers become, what is safe to send again."""

import pytest

from proxy.errors import Kind, ProxyError
from proxy.http.h2 import PREFACE, H2ClientCodec, H2Limits
from proxy.http.h2 import frames as wire
from proxy.http.message import DataReceived, GoAway, HeadersReceived, RequestHead, StreamReset, TrailersReceived

OK = [(b":status", b"200")]


@pytest.fixture
def peer(client):
    return client()


@pytest.fixture
def websocket(client):
    peer = client(settings=[(wire.ENABLE_CONNECT_PROTOCOL, 1)])
    fields = {"upgrade": b"websocket", "content_length": 0}
    peer.stream_id = peer.codec.open_stream()
    key = [(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="), (b"sec-websocket-version", b"13")]
    peer.codec.send_headers(peer.stream_id, RequestHead(b"GET", b"/chat", b"a", key, {}, **fields), True)
    peer.request = peer.frames()[-1]
    return peer


def test_preface():
    data = H2ClientCodec(H2Limits()).data_to_send()
    assert data.startswith(PREFACE)
    assert dict(wire.read_settings(data[24 + 9 : 24 + 9 + 18])) == {2: 0, 4: 256 * 1024, 6: 65536}


def test_request(peer):
    peer.get(scheme=b"https", te_trailers=True, expect_continue=True, content_length=None, end=False)
    assert peer.request == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", b"example.com"),
        (b":path", b"/"),
        (b"te", b"trailers"),
        (b"expect", b"100-continue"),
    ]


def test_content_length_goes_out_where_it_means_something(peer):
    peer.get(b"POST", content_length=5, end=False)
    assert (b"content-length", b"5") in peer.request
    peer.get(b"POST", content_length=0)
    assert (b"content-length", b"0") in peer.request
    peer.get(b"GET", content_length=0)
    assert b"content-length" not in dict(peer.request)


def test_response(peer):
    stream_id = peer.get()
    early, head, data, trailers = peer.send(
        peer.headers(stream_id, [(b":status", b"103"), (b"link", b"</a>")], end=False),
        peer.headers(stream_id, [*OK, (b"content-length", b"2"), (b"via", b"x"), (b"via", b"y")], end=False),
        peer.data(stream_id, b"ok"),
        peer.headers(stream_id, [(b"grpc-status", b"0")]),
    )
    assert (early.head.status, early.end) == (103, False)
    assert (head.head.status, head.head.content_length, head.end) == (200, 2, False)
    assert head.head.known == {b"via": b"x, y"}
    assert head.head.fields == [(b"via", b"x"), (b"via", b"y")]
    assert isinstance(data, DataReceived)
    assert isinstance(trailers, TrailersReceived)
    assert peer.codec.open_streams == 0


def test_known_fields_of_a_trailers_only_response(peer):
    (event,) = peer.send(peer.headers(peer.get(), [*OK, (b"grpc-status", b"14")]))
    assert event.end
    assert event.head.known == {b"grpc-status": b"14"}
    assert event.head.content_length == 0


@pytest.mark.parametrize(
    ("method", "fields", "length"),
    [
        (b"HEAD", [(b":status", b"200"), (b"content-length", b"9")], 9),
        (b"HEAD", [(b":status", b"200")], None),
        (b"GET", [(b":status", b"304"), (b"content-length", b"9")], 9),
        (b"GET", [(b":status", b"204")], None),
        (b"GET", [(b":status", b"200")], 0),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_no_body(peer, method, fields, length, apart):
    stream_id = peer.get(method)
    if not apart:
        (event,) = peer.send(peer.headers(stream_id, fields))
        assert (event.end, event.head.content_length) == (True, length)
    else:
        head, data = peer.send(peer.headers(stream_id, fields, end=False), peer.data(stream_id, end=True))
        assert (head.end, data.data, data.end) == (False, b"", True)
    assert peer.codec.open_streams == 0


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"server", b"x")],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"abc")],
        [(b":status", b"099")],
        [*OK, *OK],
        [*OK, (b":path", b"/")],
        [(b"server", b"x"), *OK],
        [*OK, (b"Server", b"x")],
        [*OK, (b"connection", b"close")],
        [*OK, (b"transfer-encoding", b"chunked")],
        [*OK, (b"x", b"a\r\nb")],
        [*OK, (b"content-length", b"1"), (b"content-length", b"1")],
        [*OK, (b"content-length", b"-1")],
        [(b":status", b"101")],
    ],
)
def test_malformed_response(peer, fields):
    stream_id = peer.get()
    (event,) = peer.send(peer.headers(stream_id, fields, end=False))
    assert isinstance(event, StreamReset)
    assert event.error.kind is Kind.BAD_RESPONSE
    peer.stream_error(stream_id, wire.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "frames",
    [
        lambda peer, i: [peer.headers(i, [(b":status", b"103")])],
        lambda peer, i: [peer.headers(i, [(b":status", b"103")], end=False)] * 33,
        lambda peer, i: [peer.data(i, b"x")],
        lambda peer, i: [peer.headers(i, [*OK, (b"content-length", b"1")])],
        lambda peer, i: [peer.headers(i, [*OK, (b"content-length", b"1")], end=False), peer.data(i, b"xy")],
        lambda peer, i: [peer.headers(i, [*OK, (b"content-length", b"3")], end=False), peer.data(i, b"xy", end=True)],
        lambda peer, i: [peer.headers(i, [(b":status", b"304")], end=False), peer.data(i, b"x", end=True)],
        lambda peer, i: [peer.headers(i, OK, end=False), peer.headers(i, OK, end=False)],
    ],
)
def test_malformed_message(peer, frames):
    stream_id = peer.get()
    event = peer.send(*frames(peer, stream_id))[-1]
    assert isinstance(event, StreamReset)
    peer.stream_error(stream_id, wire.PROTOCOL_ERROR)


def test_head_too_large(client):
    peer = client(H2Limits(header_bytes=200))
    (event,) = peer.send(peer.headers(peer.get(), [*OK, (b"x", b"y" * 300)]))
    assert event.error.kind is Kind.RESPONSE_HEAD_TOO_LARGE
    peer.stream_error(1, wire.CANCEL)


def test_heads_of_equal_blocks_are_separate(peer):
    fields = [*OK, (b"server", b"x")]
    heads = [peer.send(peer.headers(peer.get(), fields))[0].head for _ in range(4)]
    heads[2].fields.append((b"x", b"y"))
    assert peer.send(peer.headers(peer.get(), fields))[0].head.fields == [(b"server", b"x")]


@pytest.mark.parametrize(
    ("code", "unprocessed"),
    [(wire.REFUSED_STREAM, True), (wire.CANCEL, False), (wire.ENHANCE_YOUR_CALM, False), (99, False)],
)
def test_servers_reset(peer, code, unprocessed):
    (event,) = peer.send(wire.rst_stream(peer.get(), code))
    assert isinstance(event, StreamReset)
    assert event.error.unprocessed is unprocessed
    peer.alive()


def test_goaway_fails_nothing_that_was_not_processed(peer):
    first, second, third = peer.get(), peer.get(), peer.get()
    goaway, *resets = peer.send(wire.goaway(first, wire.NO_ERROR))
    assert isinstance(goaway, GoAway)
    assert [(event.stream_id, event.error.unprocessed) for event in resets] == [(second, True), (third, True)]
    assert not peer.codec.can_open
    assert not peer.codec.closing
    assert peer.send(peer.headers(first, OK))[0].head.status == 200
    assert peer.codec.closing


def test_graceful_goaway(peer):
    stream_id = peer.get()
    (event,) = peer.send(wire.goaway(2**31 - 1, wire.NO_ERROR))
    assert isinstance(event, GoAway)
    assert not peer.codec.can_open
    assert len(peer.send(wire.goaway(stream_id, wire.NO_ERROR))) == 1
    assert not peer.codec.closing


def test_servers_limit(client):
    peer = client(settings=[(wire.MAX_CONCURRENT_STREAMS, 2)])
    first = peer.get()
    assert peer.codec.can_open
    peer.get()
    assert (peer.codec.can_open, peer.codec.stream_limit) == (False, 2)
    peer.send(peer.headers(first, OK))
    assert peer.codec.can_open
    peer.send(wire.settings([(wire.MAX_CONCURRENT_STREAMS, 0)]))
    assert not peer.codec.can_open


def test_limit_before_settings():
    codec = H2ClientCodec(H2Limits())
    assert (codec.stream_limit, codec.settled, codec.can_upgrade) == (100, False, False)
    codec.receive(wire.settings([]))
    assert (codec.stream_limit, codec.settled) == (1024, True)


def test_ids_run_out(peer):
    peer.codec._last_id = 2**31 - 3
    assert peer.codec.can_open
    assert peer.codec.open_stream() == 2**31 - 1
    assert not peer.codec.can_open


def test_reset(peer):
    stream_id = peer.get()
    peer.codec.reset(stream_id, None)
    peer.stream_error(stream_id, wire.CANCEL)
    assert peer.send(peer.headers(stream_id, OK, end=False), peer.data(stream_id, b"late", end=True)) == []
    peer.alive()


def test_reset_for_a_bad_response(peer):
    stream_id = peer.get()
    peer.codec.reset(stream_id, ProxyError(Kind.BAD_RESPONSE, "x"))
    peer.stream_error(stream_id, wire.PROTOCOL_ERROR)


def test_stream_that_was_not_used(peer):
    """The server has never seen it: there is nothing to reset, and a loss of the connection harms nobody."""
    peer.codec.reset(peer.codec.open_stream(), None)
    assert peer.frames() == []
    peer.codec.open_stream()
    sent = peer.get()
    lost, maybe = peer.codec.receive_eof()
    assert (lost.error.unprocessed, maybe.error.unprocessed, maybe.stream_id) == (True, False, sent)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (wire.frame(wire.PUSH_PROMISE, 4, 1, b"\x00\x00\x00\x02\x82"), wire.PROTOCOL_ERROR),
        (wire.frame(wire.HEADERS, 5, 2, b"\x88"), wire.PROTOCOL_ERROR),
        (wire.frame(wire.HEADERS, 5, 9, b"\x88"), wire.PROTOCOL_ERROR),
        (wire.frame(wire.DATA, 0, 9, b"x"), wire.PROTOCOL_ERROR),
        (wire.rst_stream(9, 8), wire.PROTOCOL_ERROR),
        (wire.settings([(wire.ENABLE_PUSH, 1)]), wire.PROTOCOL_ERROR),
    ],
)
def test_connection_errors(peer, frame, code):
    stream_id = peer.get()
    reset, failed = peer.send(frame)
    assert (reset.stream_id, reset.error.kind) == (stream_id, Kind.BAD_RESPONSE)
    assert failed.error.kind is Kind.BAD_RESPONSE
    peer.connection_error(code)


def test_extended_connect_can_not_be_withdrawn(client):
    peer = client(settings=[(wire.ENABLE_CONNECT_PROTOCOL, 1)])
    peer.send(wire.settings([(wire.ENABLE_CONNECT_PROTOCOL, 0)]))
    peer.connection_error(wire.PROTOCOL_ERROR)


def test_websocket(websocket):
    peer = websocket
    assert peer.request.flags == wire.END_HEADERS
    assert peer.fields(peer.request) == [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"http"),
        (b":authority", b"a"),
        (b":path", b"/chat"),
        (b"sec-websocket-version", b"13"),
    ]
    (event,) = peer.send(peer.headers(1, [*OK, (b"sec-websocket-protocol", b"chat")], end=False))
    assert (event.head.status, event.head.upgrade, event.end) == (101, b"websocket", False)
    assert dict(event.head.fields)[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
    assert peer.send(peer.data(1, b"\x81\x00"))[0].data == b"\x81\x00"
    peer.codec.send_data(1, b"", True)
    assert peer.send(peer.data(1, end=True))[0].end
    assert peer.codec.open_streams == 0


def test_upgrade_without_extended_connect(peer):
    stream_id = peer.codec.open_stream()
    peer.codec.send_headers(stream_id, RequestHead(b"GET", b"/", b"a", [], {}, upgrade=b"websocket"), False)
    assert peer.frames() == []
    assert peer.codec.pending
    (event,) = peer.codec.receive(b"")
    assert (event.stream_id, event.error.kind, event.error.unprocessed) == (stream_id, Kind.UPGRADE_FAILED, True)
    assert not peer.codec.pending
    peer.get()
    peer.alive()


def test_head_above_the_servers_bound(client):
    peer = client(settings=[(wire.MAX_HEADER_LIST_SIZE, 29 + 19 + 4 * 32)])
    for path, fits in ((b"/a", False), (b"/", True)):
        stream_id = peer.codec.open_stream()
        peer.codec.send_headers(stream_id, RequestHead(b"GET", path, b"example.com", [], {}), True)
        events = peer.codec.receive(b"")
        assert [(event.stream_id, event.error.kind) for event in events] == ([] if fits else [(1, Kind.HEAD_TOO_LARGE)])
    assert [frame.stream_id for frame in peer.frames()] == [3]


def test_connect(peer):
    stream_id = peer.codec.open_stream()
    peer.codec.send_headers(stream_id, RequestHead(b"CONNECT", b"", b"a:443", [], {}), True)
    (frame,) = peer.frames()
    assert frame.flags == wire.END_HEADERS
    assert peer.fields(frame) == [(b":method", b"CONNECT"), (b":authority", b"a:443")]
    head, end = peer.send(peer.headers(stream_id, [*OK, (b"content-length", b"7")]))
    assert (head.head.status, head.head.content_length, head.end, end.end) == (200, None, False, True)
    peer.codec.send_data(stream_id, b"", True)
    assert peer.codec.open_streams == 0


def test_tunnel_that_nobody_opens_ends_with_the_answer(peer):
    stream_id = peer.codec.open_stream()
    peer.codec.send_headers(stream_id, RequestHead(b"CONNECT", b"", b"a:443", [], {}), False)
    assert peer.send(peer.headers(stream_id, [(b":status", b"407")]))[0].end
    assert peer.codec.open_streams == 0


def test_request_without_an_authority(peer):
    stream_id = peer.codec.open_stream()
    peer.codec.send_headers(stream_id, RequestHead(b"GET", b"/", b"", [], {}), True)
    assert b":authority" not in dict(peer.fields(peer.frames()[-1]))


def test_heads_before_their_turn_are_not_for_idle_streams(peer):
    stream_id = peer.codec.open_stream()
    peer.send(peer.headers(stream_id, OK))
    assert peer.events[0].error.unprocessed
    peer.connection_error(wire.PROTOCOL_ERROR)


def test_refused_websocket(websocket):
    peer = websocket
    head, data = peer.send(peer.headers(1, [(b":status", b"403")], end=False), peer.data(1, b"no", end=True))
    assert (head.head.status, head.head.upgrade, data.end) == (403, b"", True)
    assert peer.codec.open_streams == 0
    assert (wire.DATA, wire.END_STREAM, 1, b"") in peer.frames()


def test_trailers_on_a_tunnel(websocket):
    websocket.send(websocket.headers(1, OK, end=False), websocket.headers(1, [(b"x", b"y")]))
    websocket.stream_error(1, wire.PROTOCOL_ERROR)


def test_drain(peer):
    stream_id = peer.get()
    peer.codec.drain()
    assert peer.goaway() == (0, wire.NO_ERROR)
    assert (peer.codec.can_open, peer.codec.closing) == (False, False)
    assert isinstance(peer.send(peer.headers(stream_id, OK))[0], HeadersReceived)
    assert peer.codec.closing


def test_server_that_ends_early(peer):
    """NO_ERROR behind a whole response: the request's body is no longer wanted (RFC 9113 section 8.1)."""
    stream_id = peer.get(b"POST", end=False, content_length=None)
    head, reset = peer.send(peer.headers(stream_id, OK), wire.rst_stream(stream_id, wire.NO_ERROR))
    assert head.end
    assert isinstance(reset, StreamReset)
    assert peer.codec.send_data(stream_id, b"late", True)
    assert peer.codec.open_streams == 0


def test_what_the_server_allows_is_told(client):
    peer = client()
    peer.send(wire.settings([(wire.MAX_CONCURRENT_STREAMS, 3)]))
    assert (peer.limits_changed, peer.codec.stream_limit, peer.codec.upgrades) == (1, 3, False)
    peer.send(wire.settings([(wire.ENABLE_CONNECT_PROTOCOL, 1)]))
    assert (peer.limits_changed, peer.codec.upgrades) == (1, True)
    peer.send(wire.frame(wire.SETTINGS, wire.ACK, 0))
    assert peer.limits_changed == 0


def test_before_settings_nothing_is_known():
    codec = H2ClientCodec(H2Limits(), 7)
    assert (codec.stream_limit, codec.upgrades) == (7, None)


def test_last_stream_id(client):
    """The last request goes out, and no further one; nothing was wrong."""
    peer = client()
    peer.codec._last_id = wire.STREAM_ID_MAX - 2
    stream_id = peer.get()
    assert stream_id == wire.STREAM_ID_MAX
    assert not peer.codec.can_open
    assert peer.codec.pending
    (goaway,) = peer.codec.receive(b"")
    assert isinstance(goaway, GoAway)
    assert not peer.codec.closing
    peer.send(peer.headers(stream_id, [(b":status", b"204")]))
    assert peer.codec.closing


def test_goaway_that_asks_for_calm(client):
    peer = client()
    peer.get()
    peer.send(wire.goaway(1, wire.ENHANCE_YOUR_CALM))
    assert peer.events[0].calm
    peer = client()
    peer.send(wire.goaway(1, wire.NO_ERROR))
    assert not peer.events[0].calm


def test_left_out_by_goaway(client):
    peer = client()
    peer.get()
    peer.get()
    peer.send(wire.goaway(1, wire.NO_ERROR))
    reset = peer.events[-1]
    assert (reset.stream_id, reset.error.unprocessed, reset.error.going_away) == (3, True, True)


def test_clogged_connection_takes_nothing_new(client):
    """Readers that don't read hold nearly all of the window: what is new goes elsewhere, until they do."""
    limits = H2Limits(stream_window=64 * 1024, stream_window_max=64 * 1024, connection_window=256 * 1024)
    peer = client(limits)
    streams = [peer.get() for _ in range(4)]
    for stream_id in streams:
        peer.send(peer.headers(stream_id, [(b":status", b"200")], end=False))
        for _ in range(4):
            assert peer.codec.can_open
            peer.send(peer.data(stream_id, bytes(16_000)))
    assert not peer.codec.can_open
    peer.codec.consumed(streams[0], 64_000)
    assert peer.codec.can_open
