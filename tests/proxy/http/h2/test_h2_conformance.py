"""RFC 9113 and RFC 7541 case by case, in the order and with the codes of the h2spec suite, on the server codec."""

import struct

import pytest

from proxy.http.h2 import PREFACE, H2Limits, H2ServerCodec
from proxy.http.h2 import frames as wire
from proxy.http.message import ConnectionFailed, DataReceived, HeadersReceived, StreamReset, TrailersReceived

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"example.com")]
POST = [(b":method", b"POST"), *GET[1:]]

PROTOCOL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION = 1, 3, 5, 6, 7, 9


@pytest.fixture
def peer(server):
    return server()


def u32(*values):
    return struct.pack(f">{len(values)}L", *values)


def setting(identifier, value):
    return wire.settings([(identifier, value)])


# 3.4 (3.5 in RFC 7540): preface


def test_preface_is_answered_by_settings(peer):
    assert peer.first[0].kind == wire.SETTINGS
    assert not peer.first[0].flags


@pytest.mark.parametrize(
    "data", [b"INVALID CONNECTION PREFACE\r\n\r\n", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nXX"]
)
def test_invalid_preface_ends_the_connection(data):
    codec = H2ServerCodec(H2Limits())
    assert isinstance(codec.receive(data)[-1], ConnectionFailed)
    assert codec.closing


def test_first_frame_must_be_settings():
    codec = H2ServerCodec(H2Limits())
    events = codec.receive(PREFACE + wire.frame(wire.PING, 0, 0, bytes(8)))
    assert isinstance(events[-1], ConnectionFailed)


# 4.1, 4.2, 5.5: frame format and size


def test_unknown_type_is_ignored(peer):
    assert peer.send(wire.frame(0x16, 0, 0, bytes(8)), wire.frame(0xFF, 0xFF, 7, b"")) == []
    peer.alive()


def test_undefined_flags_and_reserved_bit_are_ignored(peer):
    peer.send(wire.pack_header(0, 8, wire.PING, 0x16, 0) + b"12345678")
    assert peer.frames() == [(wire.PING, wire.ACK, 0, b"12345678")]
    peer.send(wire.pack_header(0, 8, wire.PING, 0, 1 << 31) + b"12345678")
    assert peer.frames() == [(wire.PING, wire.ACK, 0, b"12345678")]


def test_data_of_the_largest_size(peer):
    peer.send(peer.headers(1, POST, end=False))
    (event,) = peer.send(peer.data(1, bytes(16384), end=True))
    assert (len(event.data), event.size, event.end) == (16384, 16384, True)


@pytest.mark.parametrize("kind", [wire.DATA, wire.HEADERS, 0x16])
def test_frame_above_the_largest_size(peer, kind):
    peer.send(peer.headers(1, POST, end=False), wire.frame(kind, 0, 1, bytes(16385)))
    peer.connection_error(SIZE)


# 4.3: header blocks


def test_invalid_block_is_a_compression_error(peer):
    peer.send(peer.headers(1, b"\x01\x02"))
    peer.connection_error(COMPRESSION)


@pytest.mark.parametrize(
    "frame",
    [
        wire.frame(wire.PRIORITY, 0, 1, u32(0) + b"\x0f"),
        wire.frame(wire.HEADERS, 4, 3, b"\x82"),
        wire.frame(wire.CONTINUATION, 4, 3, b"\x82"),
        wire.frame(wire.DATA, 0, 1, b"x"),
        wire.frame(0x16, 0, 0, b""),
        wire.frame(wire.SETTINGS, 0, 0),
    ],
)
def test_block_must_not_be_interrupted(peer, frame):
    peer.send(peer.headers(1, GET, flags=0), frame)
    peer.connection_error(PROTOCOL)


# 5.1: stream states


@pytest.mark.parametrize(
    "frame",
    [
        wire.frame(wire.DATA, 1, 1, b"test"),
        wire.frame(wire.RST_STREAM, 0, 1, u32(8)),
        wire.frame(wire.WINDOW_UPDATE, 0, 1, u32(100)),
        wire.frame(wire.CONTINUATION, 4, 1, b""),
    ],
)
def test_idle(peer, frame):
    peer.send(frame)
    peer.connection_error(PROTOCOL)


def test_half_closed_remote(peer):
    peer.get(1)
    (reset,) = peer.send(peer.data(1, b"test", end=True))
    assert isinstance(reset, StreamReset)
    peer.stream_error(1, CLOSED)
    peer.get(3)
    peer.send(peer.headers(3, GET))
    peer.stream_error(3, CLOSED)
    peer.get(5)
    peer.send(wire.frame(wire.CONTINUATION, 4, 5, b"\x82"))
    peer.connection_error(PROTOCOL)


def test_half_closed_remote_allows_window_update_priority_and_reset(peer):
    peer.get()
    assert peer.send(wire.window_update(1, 100), wire.frame(wire.PRIORITY, 0, 1, u32(0) + b"\x00")) == []
    (event,) = peer.send(wire.rst_stream(1, wire.CANCEL))
    assert isinstance(event, StreamReset)
    peer.alive()


@pytest.mark.parametrize("kind", [wire.DATA, wire.HEADERS])
def test_closed_by_the_peers_reset(peer, kind):
    peer.send(peer.headers(1, POST, end=False), wire.rst_stream(1, wire.CANCEL))
    peer.send(peer.data(1, b"x") if kind == wire.DATA else peer.headers(1, POST))
    peer.stream_error(1, CLOSED)


def test_continuation_behind_the_peers_reset(peer):
    peer.send(peer.headers(1, POST, end=False), wire.rst_stream(1, 8), wire.frame(wire.CONTINUATION, 4, 1, b"\x82"))
    peer.connection_error(PROTOCOL)


@pytest.mark.parametrize("kind", [wire.DATA, wire.HEADERS])
def test_closed_by_both_ends(peer, kind):
    peer.get()
    peer.respond()
    peer.send(peer.data(1, b"x") if kind == wire.DATA else peer.headers(1, GET))
    peer.connection_error(CLOSED)


def test_closed_ignores_window_update_reset_and_priority(peer):
    peer.get()
    peer.respond()
    late = wire.window_update(1, 5), wire.rst_stream(1, 8), wire.frame(wire.PRIORITY, 0, 1, u32(3) + b"\x00")
    assert peer.send(*late) == []
    peer.alive()


def test_closed_by_our_reset_drops_what_was_under_way(peer):
    peer.send(peer.headers(1, POST, end=False))
    peer.codec.reset(1, None)
    assert [frame.kind for frame in peer.frames()] == [wire.RST_STREAM]
    trailers = peer.headers(1, [(b"x-late", b"1" * 50)])
    assert peer.send(peer.data(1, bytes(100)), trailers) == []
    (event,) = peer.send(peer.headers(3, [*GET, (b"x-late", b"1" * 50)]))  # the block was decoded all the same
    assert (b"x-late", b"1" * 50) in event.head.fields
    peer.alive()


# 5.1.1, 5.1.2: identifiers and concurrency


def test_even_id(peer):
    peer.send(peer.headers(2, GET))
    peer.connection_error(PROTOCOL)


def test_smaller_id(peer):
    peer.get(5)
    peer.send(peer.headers(3, GET))
    peer.connection_error(PROTOCOL)


def test_more_streams_than_allowed(server):
    peer = server(H2Limits(max_concurrent_streams=2))
    peer.get(1)
    peer.get(3)
    assert peer.get(5) == []
    peer.stream_error(5, REFUSED)
    peer.respond(1)
    assert isinstance(peer.get(7)[0], HeadersReceived)


# 5.3.1: a stream that depends on itself (RFC 7540)


def test_headers_that_depend_on_themselves(peer):
    assert peer.send(wire.frame(wire.HEADERS, 0x25, 1, u32(1) + b"\xff" + peer.encoder.encode(GET))) == []
    peer.stream_error(1, PROTOCOL)


def test_priority_that_depends_on_itself(peer):
    peer.get()
    peer.send(wire.frame(wire.PRIORITY, 0, 1, u32(1) + b"\xff"))
    peer.stream_error(1, PROTOCOL)


# 6.1: DATA


def test_data_on_stream_0(peer):
    peer.send(peer.data(0, b"x"))
    peer.connection_error(PROTOCOL)


@pytest.mark.parametrize(("payload", "code"), [(b"\x06Test", PROTOCOL), (b"\x05Test", PROTOCOL), (b"", SIZE)])
def test_data_with_invalid_padding(peer, payload, code):
    peer.send(peer.headers(1, POST, end=False), wire.frame(wire.DATA, wire.PADDED, 1, payload))
    peer.connection_error(code)


def test_data_with_padding(peer):
    peer.send(peer.headers(1, POST, end=False))
    (event,) = peer.send(wire.frame(wire.DATA, wire.PADDED | 1, 1, b"\x02okxx"))
    assert (event.data, event.size, event.end) == (b"ok", 5, True)


# 6.2: HEADERS


def test_headers_on_stream_0(peer):
    peer.send(peer.headers(0, GET))
    peer.connection_error(PROTOCOL)


def test_headers_with_invalid_padding(peer):
    block = peer.encoder.encode(GET)
    peer.send(wire.frame(wire.HEADERS, 0x0D, 1, bytes([len(block) + 1]) + block))
    peer.connection_error(PROTOCOL)


def test_headers_too_short_for_priority(peer):
    peer.send(wire.frame(wire.HEADERS, 0x25, 1, b"\x00\x00"))
    peer.connection_error(SIZE)


@pytest.mark.parametrize("payload", [b"\x05" + u32(0) + b"\x10abc", b"\x03" + u32(0) + b"\x10"])
def test_headers_whose_padding_reaches_into_the_priority(peer, payload):
    peer.send(wire.frame(wire.HEADERS, 0x2D, 1, payload))
    peer.connection_error(PROTOCOL)


def test_headers_with_padding_and_priority(peer):
    block = peer.encoder.encode(GET)
    (event,) = peer.send(wire.frame(wire.HEADERS, 0x2D, 1, b"\x03" + u32(0) + b"\x10" + block + bytes(3)))
    assert event.head.target == b"/"


# 6.3: PRIORITY


def test_priority_on_stream_0(peer):
    peer.send(wire.frame(wire.PRIORITY, 0, 0, u32(0) + b"\x00"))
    peer.connection_error(PROTOCOL)


def test_priority_of_a_wrong_size(peer):
    peer.get()
    peer.send(wire.frame(wire.PRIORITY, 0, 1, u32(0)))
    peer.stream_error(1, SIZE)


def test_priority_on_an_idle_stream(peer):
    assert peer.send(wire.frame(wire.PRIORITY, 0, 5, u32(0) + b"\x00")) == []
    assert isinstance(peer.get(1)[0], HeadersReceived)


# 6.4: RST_STREAM


def test_reset_on_stream_0(peer):
    peer.send(wire.rst_stream(0, 8))
    peer.connection_error(PROTOCOL)


def test_reset_of_a_wrong_size(peer):
    peer.get()
    peer.send(wire.frame(wire.RST_STREAM, 0, 1, b"\x00\x00\x00"))
    peer.connection_error(SIZE)


def test_reset_with_an_unknown_code(peer):
    peer.get()
    assert isinstance(peer.send(wire.rst_stream(1, 0xFF))[0], StreamReset)
    peer.alive()


# 6.5: SETTINGS


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (wire.frame(wire.SETTINGS, wire.ACK, 0, b"\x00"), SIZE),
        (wire.frame(wire.SETTINGS, 0, 1, struct.pack(">HL", 3, 1)), PROTOCOL),
        (wire.frame(wire.SETTINGS, 0, 0, b"\x00\x03\x00"), SIZE),
        (setting(wire.ENABLE_PUSH, 2), PROTOCOL),
        (setting(wire.INITIAL_WINDOW_SIZE, 1 << 31), FLOW),
        (setting(wire.MAX_FRAME_SIZE, 16383), PROTOCOL),
        (setting(wire.MAX_FRAME_SIZE, 1 << 24), PROTOCOL),
        (setting(wire.ENABLE_CONNECT_PROTOCOL, 2), PROTOCOL),
    ],
)
def test_invalid_settings(peer, frame, code):
    peer.send(frame)
    peer.connection_error(code)


def test_settings_are_acknowledged_and_unknown_ones_ignored(peer):
    peer.send(setting(0xFF, 1), wire.settings([(wire.MAX_FRAME_SIZE, 16384), (wire.ENABLE_PUSH, 0)]))
    assert peer.frames() == [(wire.SETTINGS, wire.ACK, 0, b"")] * 2


def test_last_of_several_values_counts(peer):
    peer.send(wire.settings([(wire.INITIAL_WINDOW_SIZE, 100), (wire.INITIAL_WINDOW_SIZE, 1)]))
    peer.get()
    peer.frames()
    assert not peer.respond(body=b"hello")
    assert [frame.payload for frame in peer.frames() if frame.kind == wire.DATA] == [b"h"]


# 6.6, 8.4: push


def test_push_promise_from_a_client(peer):
    peer.send(peer.headers(1, GET), wire.frame(wire.PUSH_PROMISE, 4, 1, u32(2) + b"\x82"))
    peer.connection_error(PROTOCOL)


# 6.7, 6.8: PING and GOAWAY


def test_ping_is_answered_and_its_answer_is_not(peer):
    peer.send(wire.frame(wire.PING, 0, 0, b"12345678"))
    assert peer.frames() == [(wire.PING, wire.ACK, 0, b"12345678")]
    peer.send(wire.frame(wire.PING, wire.ACK, 0, b"invalid!"))
    assert peer.frames() == []


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (wire.frame(wire.PING, 0, 1, bytes(8)), PROTOCOL),
        (wire.frame(wire.PING, 0, 0, bytes(6)), SIZE),
        (wire.frame(wire.PING, wire.ACK, 0, b""), SIZE),
        (wire.frame(wire.GOAWAY, 0, 1, u32(0, 0)), PROTOCOL),
        (wire.frame(wire.GOAWAY, 0, 0, u32(0)), SIZE),
    ],
)
def test_invalid_ping_and_goaway(peer, frame, code):
    peer.send(frame)
    peer.connection_error(code)


def test_goaway_with_an_unknown_code_and_debug_data(peer):
    peer.send(wire.frame(wire.GOAWAY, 0, 0, u32(0, 0xFF) + b"why"))
    peer.alive()


# 6.9: WINDOW_UPDATE


def test_window_update_of_0(peer, server):
    peer.send(wire.window_update(0, 0))
    peer.connection_error(PROTOCOL)
    peer = server()
    peer.get()
    peer.send(wire.window_update(1, 0))
    peer.stream_error(1, PROTOCOL)


def test_window_update_of_a_wrong_size(peer):
    peer.send(wire.frame(wire.WINDOW_UPDATE, 0, 0, b"\x00\x00\x01"))
    peer.connection_error(SIZE)


def test_window_above_the_largest(peer, server):
    peer.send(wire.window_update(0, 2**31 - 1), wire.window_update(0, 2**31 - 1))
    peer.connection_error(FLOW)
    peer = server()
    peer.get()
    peer.send(wire.window_update(1, 2**31 - 1))
    peer.stream_error(1, FLOW)


def test_settings_that_open_a_window_above_the_largest(peer):
    peer.get()
    peer.send(wire.window_update(1, 2**31 - 65536), setting(wire.INITIAL_WINDOW_SIZE, 65536))
    peer.connection_error(FLOW)


def test_window_of_1_is_honoured(server):
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 1)])
    peer.get()
    peer.respond(body=b"hello")
    assert [frame.payload for frame in peer.frames() if frame.kind == wire.DATA] == [b"h"]


def test_settings_change_windows_of_open_streams(server):
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 0)])
    peer.get()
    peer.respond(body=b"hello")
    assert [frame.kind for frame in peer.frames()] == [wire.HEADERS]
    peer.send(setting(wire.INITIAL_WINDOW_SIZE, 1))
    assert [frame.payload for frame in peer.frames() if frame.kind == wire.DATA] == [b"h"]


def test_negative_window(server):
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 3)])
    peer.get()
    peer.respond(body=b"hello")
    assert [frame.payload for frame in peer.frames() if frame.kind == wire.DATA] == [b"hel"]
    peer.send(setting(wire.INITIAL_WINDOW_SIZE, 2))  # now -1
    peer.frames()
    peer.send(wire.window_update(1, 1))
    assert peer.frames() == []
    peer.send(wire.window_update(1, 1))
    assert [frame.payload for frame in peer.frames()] == [b"l"]


# 6.10: CONTINUATION


def test_block_in_many_fragments(peer):
    block = peer.encoder.encode(GET)
    first = wire.frame(wire.HEADERS, 1, 1, block[:1])
    rest = [wire.frame(wire.CONTINUATION, 0, 1, block[i : i + 1]) for i in range(1, len(block))]
    (event,) = peer.send(first, *rest, wire.frame(wire.CONTINUATION, 4, 1))
    assert (event.head.authority, event.end) == (b"example.com", True)


@pytest.mark.parametrize(
    "before",
    [
        lambda peer: b"",
        lambda peer: peer.headers(1, POST, end=False),
        lambda peer: peer.headers(1, POST, end=False) + peer.data(1, b"x"),
        lambda peer: peer.headers(1, GET, flags=0) + wire.frame(wire.CONTINUATION, 4, 1),
    ],
)
def test_continuation_without_a_block(peer, before):
    peer.send(before(peer), wire.frame(wire.CONTINUATION, 4, 1, b""))
    peer.connection_error(PROTOCOL)


def test_continuation_on_stream_0(peer):
    peer.send(peer.headers(1, GET, flags=0), wire.frame(wire.CONTINUATION, 4, 0, b""))
    peer.connection_error(PROTOCOL)


# 8: messages


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([*GET, (b"X-TEST", b"ok")], id="upper case"),
        pytest.param([*GET, (b"x test", b"ok")], id="space in a name"),
        pytest.param([*GET, (b"", b"ok")], id="empty name"),
        pytest.param([*GET, (b"x:y", b"ok")], id="colon in a name"),
        pytest.param([*GET, (b"x\xc3\xa4", b"ok")], id="non-ASCII name"),
        pytest.param([*GET, (b"x", b"a\r\nb: c")], id="CR LF in a value"),
        pytest.param([*GET, (b"x", b"a\nb")], id="LF in a value"),
        pytest.param([*GET, (b"x", b"a\0b")], id="NUL in a value"),
        pytest.param([*GET, (b"x", b" a")], id="leading space"),
        pytest.param([*GET, (b"x", b"a\t")], id="trailing tab"),
        pytest.param([*GET, (b":test", b"ok")], id="unknown pseudo-field"),
        pytest.param([(b":test", b"ok"), *GET], id="unknown pseudo-field first"),
        pytest.param([*GET, (b":status", b"200")], id="pseudo-field of a response"),
        pytest.param([(b"x", b"y"), *GET], id="pseudo-field behind a field"),
        pytest.param([*GET[:3], (b"x", b"y"), GET[3]], id="authority behind a field"),
        pytest.param([*GET, (b"connection", b"keep-alive")], id="connection"),
        pytest.param([*GET, (b"keep-alive", b"1")], id="keep-alive"),
        pytest.param([*GET, (b"proxy-connection", b"keep-alive")], id="proxy-connection"),
        pytest.param([*GET, (b"transfer-encoding", b"chunked")], id="transfer-encoding"),
        pytest.param([*GET, (b"upgrade", b"h2c")], id="upgrade"),
        pytest.param([*GET, (b"te", b"trailers, deflate")], id="te"),
        pytest.param([GET[0], GET[1], (b":path", b""), GET[3]], id="empty path"),
        pytest.param(GET[1:], id="no method"),
        pytest.param([GET[0], *GET[2:]], id="no scheme"),
        pytest.param([*GET[:2], GET[3]], id="no path"),
        pytest.param(GET[:3], id="no authority"),
        pytest.param([*GET[:3], (b":authority", b"")], id="empty authority"),
        *[pytest.param([field, *GET], id=f"two of {field[0].decode()}") for field in GET],
        pytest.param([(b":method", b"G ET"), *GET[1:]], id="space in the method"),
        pytest.param([(b":method", b"GET / HTTP/1.1\r\nx: y"), *GET[1:]], id="request in the method"),
        pytest.param([(b":method", b""), *GET[1:]], id="empty method"),
        pytest.param([GET[0], (b":scheme", b"ftp"), *GET[2:]], id="scheme"),
        pytest.param([GET[0], (b":scheme", b"http://evil/"), *GET[2:]], id="URL as the scheme"),
        *[
            pytest.param([*GET[:2], (b":path", path), GET[3]], id=f"path {path!r}")
            for path in (
                b"x",
                b"/a b",
                b"/a\tb",
                b"/a\r\nx: y",
                b"/a#b",
                b"/\xff",
                b"/\x7f",
                b"*",
                b"http://a/",
                b"/a HTTP/1.1",
            )
        ],
        *[
            pytest.param([*GET[:3], (b":authority", value)], id=f"authority {value!r}")
            for value in (b"user@example.com", b"a b", b"a/b", b"a\r\nx:y", b"a:99999", b"a:b", b"[::1", b"a,b", b"a#b")
        ],
        pytest.param([*GET, (b"host", b"other.com")], id="host differs"),
        pytest.param([*GET[:3], (b"host", b"a.com"), (b"host", b"b.com")], id="two hosts"),
        pytest.param([*GET[:3], (b"host", b"a.com"), (b"host", b"a.com")], id="the same host twice"),
        pytest.param([*GET, (b"host", b"example.com"), (b"host", b"example.com")], id="authority and two hosts"),
        pytest.param([(b":method", b"CONNECT"), *GET[1:], (b":protocol", b"web\r\nsocket")], id="protocol with CRLF"),
        pytest.param([(b":method", b"CONNECT"), *GET[1:], (b":protocol", b"")], id="empty protocol"),
        pytest.param([*GET, (b"content-length", b"1")], id="length without a body"),
        pytest.param([*GET, (b"content-length", b"+0")], id="signed length"),
        pytest.param([*GET, (b"content-length", b"0"), (b"content-length", b"0")], id="two lengths"),
        pytest.param([*GET, (b"content-length", b"0, 0")], id="list of lengths"),
        pytest.param([*GET, (b"transfer_encoding", b"chunked")], id="transfer_encoding"),
        pytest.param([(b":method", b"CONNECT"), *GET[1:]], id="CONNECT with a path"),
        pytest.param([(b":method", b"CONNECT"), GET[3]], id="CONNECT without a port"),
        pytest.param([(b":method", b"CONNECT")], id="CONNECT to nowhere"),
        pytest.param([*GET, (b":protocol", b"websocket")], id=":protocol without CONNECT"),
        pytest.param([], id="nothing"),
    ],
)
def test_malformed_request(peer, fields):
    assert peer.send(peer.headers(1, fields)) == []
    peer.stream_error(1, PROTOCOL)
    assert isinstance(peer.get(3)[0], HeadersReceived)


def test_second_head_without_end(peer):
    peer.send(peer.headers(1, POST, end=False))
    (reset,) = peer.send(peer.headers(1, [(b"x", b"y")], end=False))
    assert isinstance(reset, StreamReset)
    peer.stream_error(1, PROTOCOL)


@pytest.mark.parametrize(
    "field",
    [(b":method", b"POST"), (b"X", b"y"), (b"connection", b"close"), (b"te", b"gzip"), (b"x", b"a\nb")],
)
def test_malformed_trailers(peer, field):
    peer.send(peer.headers(1, POST, end=False), peer.data(1, b"test"))
    peer.send(peer.headers(1, [field]))
    peer.stream_error(1, PROTOCOL)


@pytest.mark.parametrize("chunks", [[b"test"], [b"te", b"st"], [b"", b"x"]])
@pytest.mark.parametrize("length", [b"2", b"5"])
def test_content_length_differs(peer, length, chunks):
    peer.send(peer.headers(1, [*POST, (b"content-length", length)], end=False))
    for chunk in chunks[:-1]:
        peer.send(peer.data(1, chunk))
    peer.send(peer.data(1, chunks[-1], end=True))
    peer.stream_error(1, PROTOCOL)


def test_content_length_differs_before_trailers(peer):
    peer.send(peer.headers(1, [*POST, (b"content-length", b"5")], end=False), peer.data(1, b"test"))
    peer.send(peer.headers(1, [(b"x", b"y")]))
    peer.stream_error(1, PROTOCOL)


def test_post_with_trailers(peer):
    head, data, trailers = peer.send(
        peer.headers(1, [*POST, (b"content-length", b"4"), (b"trailer", b"x-test")], end=False),
        peer.data(1, b"test"),
        peer.headers(1, [(b"x-test", b"ok"), (b"content-length", b"7")]),
    )
    assert isinstance(head, HeadersReceived)
    assert (head.head.content_length, head.end) == (4, False)
    assert isinstance(data, DataReceived)
    assert isinstance(trailers, TrailersReceived)
    assert trailers.fields == [(b"x-test", b"ok")]


def test_options_asterisk(peer):
    (event,) = peer.send(peer.headers(1, [(b":method", b"OPTIONS"), GET[1], (b":path", b"*"), GET[3]]))
    assert event.head.target == b"*"


# HPACK


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x80", id="index 0"),
        pytest.param(b"\xbf\x80\x80", id="index beyond the table"),
        pytest.param(b"\xc6", id="index beyond the empty table"),
        pytest.param(b"\x7f\x80\x01\x01a", id="name index beyond the table"),
        pytest.param(b"\x82\x3f\xe1\x1f", id="size update behind a field"),
        pytest.param(b"\x3f\xe2\x1f", id="size above the setting"),
        pytest.param(b"\x20\x20\x20", id="three size updates"),
        pytest.param(b"\x00\x01x\x82\xff\xff", id="padding of more than 7 bits"),
        pytest.param(b"\x00\x01x\x81\x18", id="padding of zeros"),
        pytest.param(b"\x00\x01x\x84\xff\xff\xff\xff", id="EOS"),
        pytest.param(b"\xff\x80\x80\x80\x80\x80\x01", id="long integer"),
        pytest.param(b"\x00\x05ab", id="string cut short"),
        pytest.param(b"\x40", id="literal cut short"),
        pytest.param(b"\xff", id="integer cut short"),
    ],
)
def test_compression_error(peer, block):
    ok = b"\x82\x86\x84\x41\x0bexample.com"
    peer.send(peer.headers(1, ok + block if block[0] not in (0x20, 0x3F) else block + ok))
    peer.connection_error(COMPRESSION)


@pytest.mark.parametrize("block", [b"\x20\x3f\xe1\x1f", b"\x3f\xe1\x1f", b"\x20"])
def test_size_updates_at_the_start(peer, block):
    (event,) = peer.send(peer.headers(1, block + b"\x82\x86\x84\x41\x0bexample.com"))
    assert event.head.authority == b"example.com"
