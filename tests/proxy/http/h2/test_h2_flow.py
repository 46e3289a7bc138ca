"""Flow control: windows open by `consumed` alone, the peer's are honoured, streams take turns, nothing leaks."""

import pytest

from proxy.errors import Kind, ProxyError
from proxy.http.h2 import H2Limits
from proxy.http.h2 import frames as wire
from proxy.http.message import ResponseHead, StreamReset, StreamWritable

POST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"example.com")]
KIB = 1024


@pytest.fixture
def upload(server):
    peer = server(H2Limits(stream_window=64 * KIB, stream_window_max=256 * KIB, connection_window=512 * KIB))
    peer.send(peer.headers(1, POST, end=False))
    peer.frames()
    return peer


def updates(peer):
    """{stream: credit} of the WINDOW_UPDATE frames sent."""
    credit = {}
    for frame in peer.frames():
        if frame.kind == wire.WINDOW_UPDATE:
            credit[frame.stream_id] = credit.get(frame.stream_id, 0) + int.from_bytes(frame.payload, "big")
    return credit


def fill(peer, stream_id, size):
    for start in range(0, size, 16 * KIB):
        peer.send(peer.data(stream_id, bytes(min(16 * KIB, size - start))))


def test_unconsumed_bytes_are_not_replaced(upload):
    fill(upload, 1, 64 * KIB)
    assert updates(upload) == {}
    (event,) = upload.send(upload.data(1, b"x"))
    assert isinstance(event, StreamReset)
    upload.stream_error(1, wire.FLOW_CONTROL_ERROR)


def test_consumed_bytes_are_replaced_and_the_window_doubles(upload):
    fill(upload, 1, 64 * KIB)
    upload.codec.consumed(1, 31 * KIB)
    assert updates(upload) == {}
    upload.codec.consumed(1, 1 * KIB)
    assert updates(upload) == {1: 32 * KIB + 64 * KIB}
    upload.codec.consumed(1, 32 * KIB)
    assert updates(upload) == {}
    fill(upload, 1, 96 * KIB)
    upload.codec.consumed(1, 96 * KIB)
    assert updates(upload)[1] == 32 * KIB + 96 * KIB + 128 * KIB  # 256 KiB from now on, the most


def test_growth_leaves_half_of_the_connection_to_the_others(upload):
    """Two streams grow to 192 KiB more than they had, the third can't."""
    for stream_id in (3, 5):
        upload.send(upload.headers(stream_id, POST, end=False))
    for stream_id in (1, 3, 5):
        for _ in range(12):
            fill(upload, stream_id, 32 * KIB)
            upload.codec.consumed(stream_id, 32 * KIB)
    windows = [upload.codec._streams[stream_id].window for stream_id in (1, 3, 5)]
    assert sum(windows) - 3 * 64 * KIB <= 256 * KIB
    assert windows[0] == 256 * KIB
    upload.codec.reset(1, None)
    fill(upload, 5, 32 * KIB)
    upload.codec.consumed(5, 64 * KIB)
    assert upload.codec._streams[5].window > windows[2]


def test_connection_window(upload):
    """It bounds all streams together, and is given back in halves."""
    for stream_id in range(3, 17, 2):
        upload.send(upload.headers(stream_id, POST, end=False))
    for stream_id in range(1, 17, 2):
        fill(upload, stream_id, 64 * KIB)
    assert updates(upload) == {}
    for stream_id in range(1, 9, 2):
        upload.codec.consumed(stream_id, 64 * KIB)
    assert updates(upload)[0] == 256 * KIB
    upload.send(upload.headers(17, POST, end=False))
    for _ in range(4):
        fill(upload, 17, 64 * KIB)
        upload.codec._streams[17].receive_left += 64 * KIB  # this stream alone would be allowed more
    upload.send(upload.data(17, b"x"))
    upload.connection_error(wire.FLOW_CONTROL_ERROR)


def test_reset_gives_the_connection_its_credit_back(upload):
    upload.send(
        upload.headers(3, POST, end=False), upload.headers(5, POST, end=False), upload.headers(7, POST, end=False)
    )
    for stream_id in (1, 3, 5, 7):
        fill(upload, stream_id, 64 * KIB)
    upload.codec.reset(1, None)
    upload.codec.consumed(1, 64 * KIB)  # late, and not counted twice
    upload.codec.reset(3, None)
    upload.send(wire.rst_stream(5, wire.CANCEL))
    assert updates(upload) == {}
    upload.codec.reset(7, None)
    assert updates(upload) == {0: 256 * KIB}


def test_data_on_a_reset_stream_costs_no_credit(upload):
    upload.codec.reset(1, None)
    fill(upload, 1, 256 * KIB)
    assert updates(upload) == {0: 256 * KIB}


def test_ended_streams_give_back_when_they_are_consumed(upload):
    """The response is complete, but its reader has not taken the request's last bytes."""
    upload.send(
        upload.headers(3, POST, end=False), upload.headers(5, POST, end=False), upload.headers(7, POST, end=False)
    )
    for stream_id in (1, 3, 5, 7):
        fill(upload, stream_id, 64 * KIB)
        upload.send(upload.data(stream_id, end=True))
        upload.respond(stream_id)
    assert upload.codec.open_streams == 0
    assert updates(upload) == {}
    for stream_id in (1, 3, 5):
        upload.codec.consumed(stream_id, 32 * KIB)
        upload.codec.consumed(stream_id, 32 * KIB)
    assert updates(upload) == {}
    upload.codec.reset(7, None)
    assert updates(upload) == {0: 256 * KIB}


def test_padding_counts(upload):
    (event,) = upload.send(wire.frame(wire.DATA, wire.PADDED, 1, b"\xff" + bytes(255) + b"data"))
    assert (event.data, event.size) == (bytes(4), 260)
    upload.codec.consumed(1, event.size)
    assert upload.codec._streams[1].credit == 260


def test_padding_alone_is_given_back_at_once(upload):
    assert upload.send(wire.frame(wire.DATA, wire.PADDED, 1, b"\xff" + bytes(255))) == []
    assert upload.codec._streams[1].credit == 256


# Sending


@pytest.fixture
def download(server):
    """Three streams that may send nothing yet on their own windows; the connection's is 65,535."""
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 0)])
    for stream_id in (1, 3, 5):
        peer.get(stream_id)
        peer.codec.send_headers(stream_id, ResponseHead(200, [], {}), False)
    peer.frames()
    return peer


def test_held_data_goes_when_the_window_opens(download):
    peer = download
    assert peer.codec.send_data(1, b"hello", False) is False
    assert peer.codec.send_data(1, b" world", False) is False
    assert peer.codec.held_bytes == 11
    assert peer.send(wire.window_update(1, 8)) == []
    assert [frame.payload for frame in peer.frames()] == [b"hello wo"]
    (event,) = peer.send(wire.window_update(1, 100))
    assert isinstance(event, StreamWritable)
    assert event.stream_id == 1
    assert [frame.payload for frame in peer.frames()] == [b"rld"]
    assert peer.codec.send_data(1, b"!", True) is True
    assert [(frame.payload, frame.flags) for frame in peer.frames()] == [(b"!", 1)]


def test_end_and_trailers_wait_for_what_is_held(download):
    peer = download
    peer.codec.send_data(1, b"abc", False)
    peer.codec.send_trailers(1, [(b"x", b"y")])
    peer.codec.send_data(3, b"abc", True)
    assert peer.frames() == []
    peer.send(wire.window_update(1, 2), wire.window_update(3, 3))
    assert [(frame.stream_id, frame.kind, frame.flags) for frame in peer.frames()] == [(1, 0, 0), (3, 0, 1)]
    peer.send(wire.window_update(1, 2))
    assert [(frame.kind, frame.flags) for frame in peer.frames()] == [(0, 0), (1, 5)]
    assert peer.codec.open_streams == 1


def test_end_needs_no_window(download):
    download.codec.send_data(1, b"", True)
    assert download.frames() == [(wire.DATA, wire.END_STREAM, 1, b"")]


def test_streams_take_turns(download):
    """The connection's window opens for six frames: three streams share them, one each in turn."""
    peer = download
    for stream_id in (1, 3, 5):
        assert peer.codec.send_data(stream_id, bytes(100 * KIB), True) is False
    peer.codec.data_to_send()
    peer.send(wire.window_update(1, 100 * KIB), wire.window_update(3, 100 * KIB), wire.window_update(5, 100 * KIB))
    assert {frame.stream_id for frame in peer.frames()} == {1}  # the first took what there was
    peer.send(wire.window_update(0, 6 * 16 * KIB))
    order = [(frame.stream_id, len(frame.payload)) for frame in peer.frames()]
    assert order == [(stream_id, 16 * KIB) for stream_id in (1, 3, 5, 1, 3, 5)]


def test_stalled_stream_does_not_hold_the_others(download):
    peer = download
    peer.codec.send_data(1, bytes(1000), True)
    peer.send(wire.window_update(3, 1000))
    assert peer.codec.send_data(3, bytes(1000), True) is True


def test_reset_frees_what_is_held(download):
    peer = download
    peer.codec.send_data(1, bytes(1000), True)
    peer.codec.send_data(3, bytes(1000), True)
    peer.codec.reset(1, ProxyError(Kind.TERMINATED, "x"))
    assert peer.codec.held_bytes == 1000
    peer.send(wire.rst_stream(3, wire.CANCEL))
    assert peer.codec.held_bytes == 0
    peer.frames()
    peer.send(wire.window_update(1, 1000))
    assert peer.frames() == []


def test_large_body_leaves_in_frames_of_16_kib(server):
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 1 << 20)])
    peer.send(wire.window_update(0, 1 << 20))
    peer.get()
    peer.frames()
    body = bytes(range(256)) * 200
    assert peer.respond(body=body) is True
    frames = peer.frames()[1:]
    assert [len(frame.payload) for frame in frames] == [16384, 16384, 16384, 2048]
    assert b"".join(frame.payload for frame in frames) == body
    assert [frame.flags for frame in frames] == [0, 0, 0, 1]


def test_smaller_pieces_leave_together(download):
    peer = download
    for _ in range(10):
        peer.codec.send_data(1, b"x" * 100, False)
    peer.send(wire.window_update(1, 1000))
    assert [len(frame.payload) for frame in peer.frames()] == [1000]


def test_stream_that_the_peer_holds_up_is_ended(server):
    """After so many ticks without a byte going out; what goes out in between starts the count anew."""
    peer = server(H2Limits(stall_ticks=3), settings=[(wire.INITIAL_WINDOW_SIZE, 10)])
    peer.get(1)
    peer.respond(1, bytes(100))
    peer.frames()
    for _ in range(3):
        peer.codec.tick()
    peer.send(wire.window_update(1, 5))
    for _ in range(3):
        peer.codec.tick()
    assert not peer.codec.pending
    peer.frames()
    peer.codec.tick()
    (reset,) = peer.codec.receive(b"")
    assert (type(reset).__name__, reset.stream_id) == ("StreamReset", 1)
    assert [frame.kind for frame in peer.frames()] == [wire.RST_STREAM]
    assert peer.codec.held_bytes == 0
    peer.alive()


def test_client_that_holds_up_too_much_gets_nothing_more(server):
    peer = server(H2Limits(held_bytes=1000), settings=[(wire.INITIAL_WINDOW_SIZE, 10)])
    peer.get(1)
    peer.respond(1, bytes(2000))
    peer.frames()
    assert peer.get(3) == []
    peer.stream_error(3, wire.REFUSED_STREAM)
    peer.send(wire.window_update(1, 3000))
    assert len(peer.get(5)) == 1
