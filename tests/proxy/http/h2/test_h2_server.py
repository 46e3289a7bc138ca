"""The server role: what requests become, how answers go out, how a connection is wound up."""

import base64

import pytest

from proxy.errors import Kind, ProxyError
from proxy.http.h2 import H2Limits
from proxy.http.h2 import frames as wire
from proxy.http.message import DataReceived, HeadersReceived, HeadRefused, PingAcknowledged, ResponseHead, StreamReset
from proxy.http.sensitive import Sensitive

GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/a?b=c"), (b":authority", b"example.com:8443")]
POST = [(b":method", b"POST"), *GET[1:]]
CONNECT = [(b":method", b"CONNECT"), (b":authority", b"example.com:443")]
WEBSOCKET = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:], (b"sec-websocket-version", b"13")]


@pytest.fixture
def peer(server):
    return server()


def test_first_settings(server):
    peer = server(H2Limits(max_concurrent_streams=7, header_bytes=1000, stream_window=70000, connection_window=100000))
    settings, window = peer.first[:2]
    assert dict(wire.read_settings(settings.payload)) == {3: 7, 4: 70000, 6: 1000, 8: 1}
    assert window == (wire.WINDOW_UPDATE, 0, 0, (100000 - 65535).to_bytes(4, "big"))


def test_request_head(peer):
    fields = [
        *GET,
        (b"user-agent", b"x"),
        (b"cookie", b"a=1"),
        (b"via", b"1.1 one"),
        (b"te", b"trailers"),
        (b"cookie", b"b=2"),
        (b"via", b"1.1 two"),
        (b"host", b"EXAMPLE.com:8443"),
        (b"expect", b"100-continue"),
        (b"http2-settings", b"AAA"),
        (b"x-forwarded_for", b"dropped"),
        (b"x_forwarded_for", b"dropped"),
    ]
    (event,) = peer.send(peer.headers(1, fields, end=False))
    head = event.head
    assert (head.method, head.scheme, head.target, head.version) == (b"GET", b"https", b"/a?b=c", b"2")
    assert head.authority in (b"example.com:8443", b"EXAMPLE.com:8443")
    assert head.te_trailers
    assert head.expect_continue
    assert head.content_length is None
    assert not head.upgrade
    assert head.known == {b"user-agent": b"x", b"cookie": b"a=1; b=2", b"via": b"1.1 one, 1.1 two"}
    assert sorted(head.fields) == [
        (b"cookie", b"a=1; b=2"),
        (b"user-agent", b"x"),
        (b"via", b"1.1 one"),
        (b"via", b"1.1 two"),
    ]


def test_no_body_is_length_0(peer):
    (event,) = peer.send(peer.headers(1, [*GET, (b"expect", b"100-continue")]))
    assert (event.head.content_length, event.end, event.head.expect_continue) == (0, True, False)


def test_authority_by_host_alone(peer):
    (event,) = peer.send(peer.headers(1, [*GET[:3], (b"host", b"example.org")]))
    assert event.head.authority == b"example.org"


def test_heads_of_equal_blocks_are_separate(peer):
    """The parsed head is remembered by its block; what one exchange does to its own must not show in the next."""
    heads = [peer.send(peer.headers(2 * i + 1, [*GET, (b"user-agent", b"x")]))[0].head for i in range(4)]
    heads[2].fields.append((b"x", b"y"))
    heads[2].known[b"via"] = b"z"
    (event,) = peer.send(peer.headers(9, [*GET, (b"user-agent", b"x")]))
    assert event.head.fields == [(b"user-agent", b"x")]
    assert event.head.known == {b"user-agent": b"x"}


def test_memory_of_blocks_ends_with_the_table_they_refer_to(peer):
    """The same bytes, another table: a head remembered by its block alone would be the wrong one."""
    peer.send(peer.headers(1, b"\x82\x86\x84\x41\x01a\x40\x01x\x01a"))
    block = b"\x82\x86\x84\xbf\xbe"
    assert [peer.send(peer.headers(i, block))[0].head.fields for i in (3, 5)] == [[(b"x", b"a")]] * 2
    peer.send(peer.headers(7, b"\x82\x86\x84\x01\x01a\x40\x01x\x01b"))  # now 62 is x: b, and 63 what 62 was
    assert peer.send(peer.headers(9, block)) == []  # 63 is no authority
    peer.stream_error(9, wire.PROTOCOL_ERROR)


def test_memory_of_blocks_is_bounded(peer):
    start = b"\x82\x86\x41\x01a"  # this one inserts: 62 is the authority from now on
    peer.send(peer.headers(1, start + b"\x84"))
    for number in range(100):
        path = b"/%03d" % number
        (event,) = peer.send(peer.headers(2 * number + 3, b"\x82\x86\xbe\x04\x04" + path))
        assert event.head.target == path
    assert len(peer.codec._memo) <= 32


def test_resets_far_back_are_forgotten_with_indulgence(peer):
    """Frames for a stream that was reset long ago are dropped, not taken for ones on a stream that has ended."""
    for stream_id in range(1, 6001, 2):
        peer.send(peer.headers(stream_id, POST, end=False))
        peer.codec.send_headers(stream_id, ResponseHead(200, [], {}), False)
        peer.codec.reset(stream_id, None)
    assert len(peer.codec._resets) <= 2048
    assert peer.send(peer.data(1, b"late")) == []
    peer.alive()


def test_tunnel_that_the_client_has_closed_already(peer):
    head, end = peer.send(peer.headers(1, CONNECT))
    assert (head.end, end.data, end.end) == (False, b"", True)


def test_answer_to_a_goaway_of_the_client_goes_out(peer):
    peer.get()
    peer.send(wire.goaway(0, 0))
    peer.respond(body=b"x")
    assert [frame.kind for frame in peer.frames()] == [wire.HEADERS, wire.DATA]


def test_a_server_opens_nothing(peer):
    assert not peer.codec.can_open
    with pytest.raises(RuntimeError):
        peer.codec.open_stream()


def test_never_indexed_field_stays_so(peer):
    secret = b"\x82\x86\x84\x41\x01a\x10\x07x-token\x06secret"
    (event,) = peer.send(peer.headers(1, secret))
    assert [type(value) for _, value in event.head.fields] == [Sensitive]


def test_cookie_with_a_never_indexed_crumb_stays_so(peer):
    crumbs = b"\x82\x86\x84\x41\x01a\x10\x06cookie\x03a=1" + b"\x00\x06cookie\x03b=2"
    (event,) = peer.send(peer.headers(1, crumbs))
    assert event.head.fields == [(b"cookie", b"a=1; b=2")]
    assert type(event.head.fields[0][1]) is Sensitive


def test_connect(peer):
    (event,) = peer.send(peer.headers(1, CONNECT, end=False))
    head = event.head
    assert (head.method, head.target, head.authority, head.upgrade) == (b"CONNECT", b"", b"example.com:443", b"")
    assert (event.end, head.content_length) == (False, 0)
    peer.codec.send_headers(1, ResponseHead(200, [], {}, content_length=5), False)
    assert peer.fields(peer.frames()[-1]) == [(b":status", b"200")]
    (data,) = peer.send(peer.data(1, b"hello"))
    assert data.data == b"hello"
    assert peer.codec.send_data(1, b"world", True)


def test_websocket(peer):
    (event,) = peer.send(peer.headers(1, WEBSOCKET, end=False))
    head = event.head
    assert (head.method, head.target, head.upgrade, head.content_length) == (b"GET", b"/a?b=c", b"websocket", 0)
    fields = dict(head.fields)
    assert len(base64.b64decode(fields[b"sec-websocket-key"])) == 16
    assert fields[b"sec-websocket-version"] == b"13"
    peer.codec.send_headers(1, ResponseHead(101, [(b"sec-websocket-accept", b"x")], {}, upgrade=b"websocket"), False)
    frame = peer.frames()[-1]
    assert peer.fields(frame) == [(b":status", b"200")]
    assert not frame.flags & wire.END_STREAM
    assert peer.send(peer.data(1, b"frame"))[0].data == b"frame"


def test_websocket_keys_differ(peer):
    keys = [
        dict(peer.send(peer.headers(i, WEBSOCKET, end=False))[0].head.fields)[b"sec-websocket-key"] for i in (1, 3, 5)
    ]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("fields", "status", "code"), [(WEBSOCKET, 101, wire.CANCEL), (CONNECT, 200, wire.CONNECT_ERROR)]
)
def test_tunnel_that_broke(peer, fields, status, code):
    """RFC 8441 section 5 and RFC 9113 section 8.5: what a TCP reset at the other end is called."""
    peer.send(peer.headers(1, fields, end=False))
    peer.codec.send_headers(1, ResponseHead(status, [], {}), False)
    peer.codec.send_data(1, b"before", False)
    peer.codec.reset(1, ProxyError(Kind.TERMINATED, "connection lost"))
    peer.stream_error(1, code)


def test_refused_websocket_is_a_message(peer):
    peer.send(peer.headers(1, WEBSOCKET, end=False))
    peer.codec.send_headers(1, ResponseHead(403, [], {}, content_length=2), False)
    peer.codec.send_data(1, b"no", True)
    head, data, reset = peer.frames()[-3:]
    assert peer.fields(head) == [(b":status", b"403"), (b"content-length", b"2")]
    assert data.flags == wire.END_STREAM
    assert reset == (wire.RST_STREAM, 0, 1, bytes(4))
    assert peer.codec.open_streams == 0


def test_origin_that_ignores_the_upgrade_is_no_success(peer):
    peer.send(peer.headers(1, WEBSOCKET, end=False))
    peer.codec.send_headers(1, ResponseHead(200, [], {}), True)
    assert peer.fields(peer.frames()[-2]) == [(b":status", b"502")]


def test_other_protocols_are_not_implemented(peer):
    (event,) = peer.send(peer.headers(1, [CONNECT[0], (b":protocol", b"connect-udp"), *GET[1:]], end=False))
    assert isinstance(event, HeadRefused)
    assert event.error.status == 501


def test_unknown_expectation(peer):
    (event,) = peer.send(peer.headers(1, [*GET, (b"expect", b"more")]))
    assert isinstance(event, HeadRefused)
    assert event.error.status == 417


def test_refused_head_is_answered_then_reset(peer):
    """The rest of the request is dropped and still gives the connection its credit back."""
    (event,) = peer.send(large(peer, 70000))
    assert isinstance(event, HeadRefused)
    assert event.error.status == 431
    assert peer.send(peer.data(1, bytes(1000))) == []
    peer.frames()
    peer.respond(body=b"too large", status=431)
    kinds = [frame.kind for frame in peer.frames()]
    assert kinds == [wire.HEADERS, wire.DATA, wire.RST_STREAM]
    assert peer.send(peer.data(1, bytes(1000), end=True)) == []
    assert isinstance(peer.get(3)[0], HeadersReceived)


def large(peer, size, stream_id=1, end=False):
    block = peer.encoder.encode([*POST, (b"x", b"y" * size)], huffman=False)
    parts = [block[i : i + 16384] for i in range(0, len(block), 16384)]
    frames = [wire.frame(wire.HEADERS, end, stream_id, parts[0])]
    frames += [wire.frame(wire.CONTINUATION, 4 * (part is parts[-1]), stream_id, part) for part in parts[1:]]
    return b"".join(frames)


def test_too_many_fields(server):
    peer = server(H2Limits(headers=10))
    (event,) = peer.send(peer.headers(1, [*GET, *[(b"x", b"y")] * 7]))
    assert isinstance(event, HeadRefused)
    assert event.error.kind is Kind.HEAD_TOO_LARGE
    assert isinstance(peer.send(peer.headers(3, [*GET, *[(b"x", b"y")] * 6]))[0], HeadersReceived)


def test_trailers_too_large(server):
    peer = server(H2Limits(header_bytes=300))
    peer.send(peer.headers(1, POST, end=False))
    (event,) = peer.send(peer.headers(1, [(b"x", b"y" * 300)]))
    assert isinstance(event, StreamReset)
    peer.stream_error(1, wire.CANCEL)


def test_announced_body_too_large(server):
    peer = server(H2Limits(body_bytes=100))
    (event,) = peer.send(peer.headers(1, [*POST, (b"content-length", b"101")], end=False))
    assert isinstance(event, HeadRefused)
    assert (event.error.status, event.head.content_length) == (413, 101)
    peer.send(peer.headers(3, [*POST, (b"content-length", b"100")], end=False))
    assert peer.send(peer.data(3, bytes(100), end=True))[0].end


def test_body_too_large_on_the_way(server):
    """It can still be answered; what else comes is dropped."""
    peer = server(H2Limits(body_bytes=100))
    peer.send(peer.headers(1, POST, end=False))
    assert isinstance(peer.send(peer.data(1, bytes(100)))[0], DataReceived)
    (event,) = peer.send(peer.data(1, b"x"))
    assert isinstance(event, StreamReset)
    assert event.error.status == 413
    assert peer.send(peer.data(1, bytes(50))) == []
    peer.respond(status=413)
    assert [frame.kind for frame in peer.frames()] == [wire.HEADERS, wire.RST_STREAM]
    assert peer.codec.open_streams == 0


def test_body_too_large_behind_an_answer(server):
    peer = server(H2Limits(body_bytes=100))
    peer.send(peer.headers(1, POST, end=False))
    peer.respond(body=b"early")
    peer.frames()
    (event,) = peer.send(peer.data(1, bytes(101)))
    assert isinstance(event, StreamReset)
    peer.stream_error(1, wire.CANCEL)


def test_response_and_interim_ones(peer):
    peer.get()
    assert peer.frames() == []
    peer.codec.send_headers(1, ResponseHead(103, [(b"link", b"</a>")], {}), False)
    head = ResponseHead(200, [(b"server", b"x")], {}, content_length=5)
    peer.codec.send_headers(1, head, False)
    peer.codec.send_data(1, b"he", False)
    peer.codec.send_data(1, b"llo", False)
    peer.codec.send_trailers(1, [(b"grpc-status", b"0")])
    frames = peer.frames()
    assert [(frame.kind, frame.flags) for frame in frames] == [(1, 4), (1, 4), (0, 0), (0, 0), (1, 5)]
    assert peer.fields(frames[0]) == [(b":status", b"103"), (b"link", b"</a>")]
    assert peer.fields(frames[1]) == [(b":status", b"200"), (b"server", b"x"), (b"content-length", b"5")]
    assert peer.fields(frames[4]) == [(b"grpc-status", b"0")]


def test_101_to_a_plain_request_is_not_sent(peer):
    peer.get()
    peer.frames()
    peer.codec.send_headers(1, ResponseHead(101, [], {}, upgrade=b"x"), False)
    assert peer.frames() == []


def test_empty_trailers_end_the_message(peer):
    peer.get()
    peer.frames()
    peer.codec.send_headers(1, ResponseHead(200, [], {}), False)
    peer.codec.send_trailers(1, [])
    assert [(frame.kind, frame.flags, frame.payload) for frame in peer.frames()][1:] == [(0, 1, b"")]


def test_large_head_is_split(peer):
    peer.get()
    peer.frames()
    peer.codec.send_headers(1, ResponseHead(200, [(b"x", b"y" * 40000)], {}), True)
    frames = peer.frames()
    assert [(frame.kind, frame.flags) for frame in frames] == [(1, 1), (9, 0), (9, 4)]
    assert all(len(frame.payload) <= 16384 for frame in frames)
    block = b"".join(frame.payload for frame in frames)
    assert peer.decoder.decode(block, raw=True)[1] == (b"x", b"y" * 40000)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, wire.CANCEL),
        (ProxyError(Kind.TERMINATED, "x"), wire.INTERNAL_ERROR),
        (ProxyError(Kind.TERMINATED, "x", unprocessed=True), wire.REFUSED_STREAM),
        (ProxyError(Kind.BAD_REQUEST, "x"), wire.PROTOCOL_ERROR),
        (ProxyError(Kind.TOO_MANY, "x"), wire.ENHANCE_YOUR_CALM),
    ],
)
def test_reset_codes(peer, error, code):
    peer.get()
    peer.codec.reset(1, error)
    peer.codec.reset(1, error)
    peer.stream_error(1, code)
    peer.codec.send_headers(1, ResponseHead(200, [], {}), True)
    assert peer.codec.send_data(1, b"x", True)
    assert peer.frames() == []


def test_reset_behind_a_full_answer_is_no_error(peer):
    peer.send(peer.headers(1, POST, end=False))
    peer.respond(body=b"enough")
    peer.frames()
    peer.codec.reset(1, None)
    peer.stream_error(1, wire.NO_ERROR)


def test_reset_lets_a_held_answer_out_first(server):
    """The exchange is done with a request that is still being sent, but the client's window holds the answer."""
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 2)])
    peer.send(peer.headers(1, POST, end=False), peer.data(1, b"x"))
    peer.respond(body=b"answer")
    peer.codec.reset(1, None)
    assert peer.send(peer.data(1, b"more")) == []
    peer.frames()
    peer.send(wire.window_update(1, 100))
    assert [(frame.kind, frame.payload) for frame in peer.frames()] == [
        (wire.DATA, b"swer"),
        (wire.RST_STREAM, bytes(4)),
    ]
    assert peer.codec.open_streams == 0


def test_reset_for_an_error_cuts_a_held_answer_off(server):
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 2)])
    peer.get()
    peer.respond(body=b"answer")
    peer.codec.reset(1, ProxyError(Kind.TERMINATED, "x"))
    peer.stream_error(1, wire.INTERNAL_ERROR)
    assert peer.codec.held_bytes == 0


def test_clients_reset(peer):
    peer.get()
    (event,) = peer.send(wire.rst_stream(1, wire.CANCEL))
    assert event.error.kind is Kind.CLIENT_LEFT
    assert "CANCEL" in event.error.details


def test_eof_resets_what_is_open(peer):
    peer.get(1)
    peer.get(3)
    assert [(type(event), event.stream_id) for event in peer.codec.receive_eof()] == [
        (StreamReset, 1),
        (StreamReset, 3),
    ]
    assert peer.codec.closing
    assert peer.codec.receive_eof() == []


def test_drain(peer):
    peer.get(1)
    peer.frames()
    peer.codec.drain()
    goaway, ping = peer.frames()
    assert goaway == (wire.GOAWAY, 0, 0, b"\x7f\xff\xff\xff" + bytes(4))
    assert isinstance(peer.get(3)[0], HeadersReceived)  # it was under way
    assert peer.send(wire.frame(wire.PING, wire.ACK, 0, ping.payload)) == []
    assert peer.goaway() == (3, wire.NO_ERROR)
    assert peer.get(5) == []
    peer.stream_error(5, wire.REFUSED_STREAM)
    peer.respond(1)
    assert not peer.codec.closing
    peer.respond(3)
    assert peer.codec.closing


def test_second_drain_does_not_wait(peer):
    peer.codec.drain()
    peer.frames()
    peer.codec.drain()
    assert peer.goaway() == (0, wire.NO_ERROR)
    assert peer.codec.closing


def test_ping(peer):
    peer.codec.ping(b"12345678")
    assert peer.frames() == [(wire.PING, 0, 0, b"12345678")]
    (event,) = peer.send(wire.frame(wire.PING, wire.ACK, 0, b"12345678"))
    assert isinstance(event, PingAcknowledged)
    assert event.payload == b"12345678"
    assert peer.send(wire.frame(wire.PING, wire.ACK, 0, b"12345678")) == []


def test_connection_error_resets_open_streams(peer):
    peer.get(1)
    peer.send(wire.frame(wire.PING, 0, 0, b"short"))
    assert isinstance(peer.events[0], StreamReset)
    peer.connection_error(wire.FRAME_SIZE_ERROR)
    assert repr(peer.codec) == "<H2ServerCodec nothing, serving, 0 streams>"


def test_an_answer_that_has_begun_is_not_unprocessed(server):
    """REFUSED_STREAM would make the client send the request again."""
    peer = server()
    peer.get(1)
    peer.codec.send_headers(1, ResponseHead(200, [], {}), False)
    peer.frames()
    peer.codec.reset(1, ProxyError(Kind.UNAVAILABLE, "gone", unprocessed=True))
    peer.stream_error(1, wire.INTERNAL_ERROR)


def test_a_header_block_that_does_not_go_on(server):
    peer = server()
    peer.send(peer.headers(1, GET, flags=0))
    assert peer.codec.partial
    peer.events = peer.codec.expire(ProxyError(Kind.SLOW_REQUEST, "too slow"))
    peer.connection_error(wire.ENHANCE_YOUR_CALM)


def test_a_frame_that_does_not_go_on(server):
    peer = server()
    peer.raw(peer.headers(1, GET)[:-1])
    assert peer.codec.partial
    peer.raw(peer.headers(1, GET)[-1:])
    assert not peer.codec.partial
