"""What a peer can make us do for nothing is bounded, and ends with ENHANCE_YOUR_CALM. Honest peers never notice."""

import pytest

from proxy.errors import Kind
from proxy.http.h2 import H2Limits
from proxy.http.h2 import frames as wire
from proxy.http.h2.guard import TICK_WORK, Abuse, Guard
from proxy.http.message import ConnectionFailed, HeadRefused, ResponseHead

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"example.com")]
POST = [(b":method", b"POST"), *GET[1:]]
CALM = wire.ENHANCE_YOUR_CALM
EMPTY_SETTINGS = wire.frame(wire.SETTINGS, 0, 0)


@pytest.fixture
def peer(server):
    return server()


def flood(peer, frames, at_most):
    """Send frames until the codec ends the connection; how many it took."""
    for number, frame in enumerate(frames, 1):
        events = peer.send(frame)
        if events and isinstance(events[-1], ConnectionFailed):
            assert number <= at_most
            assert peer.goaway()[1] == CALM
            assert events[-1].error.kind is Kind.TOO_MANY
            return number
    raise AssertionError("no end to it")


def test_rapid_reset(peer):
    frames = (peer.headers(i, GET) + wire.rst_stream(i, wire.CANCEL) for i in range(1, 2000, 2))
    assert flood(peer, frames, 201) > 100
    assert peer.codec.guard.totals["reset"] == 201


def test_resets_of_answered_streams_are_no_abuse(peer):
    for i in range(1, 2001, 2):
        peer.send(peer.headers(i, POST, end=False))
        peer.respond(i, body=b"x")
        peer.send(wire.rst_stream(i, wire.CANCEL))
    peer.alive()


def test_resets_among_honest_requests_are_no_abuse(peer):
    for i in range(1, 4001, 4):
        peer.send(peer.headers(i, GET), peer.headers(i + 2, GET), wire.rst_stream(i, wire.CANCEL))
        peer.respond(i + 2)
    peer.alive()


def test_resets_that_the_peer_makes_us_send(peer):
    """CVE-2025-8671: the same as rapid reset, with our RST_STREAM."""
    flood(peer, (peer.headers(i, GET) + wire.window_update(i, 0) for i in range(1, 2000, 2)), 201)


def test_malformed_requests(peer):
    flood(peer, (peer.headers(i, GET[1:]) for i in range(1, 2000, 2)), 201)


def test_streams_above_the_limit(server):
    peer = server(H2Limits(max_concurrent_streams=1))
    flood(peer, (peer.headers(i, GET) for i in range(1, 9999, 2)), 2003)


@pytest.mark.parametrize(
    ("frame", "at_most"),
    [
        (wire.frame(wire.PING, 0, 0, bytes(8)), 201),
        (wire.frame(wire.PING, wire.ACK, 0, bytes(8)), 201),
        (EMPTY_SETTINGS, 101),
        (wire.frame(wire.SETTINGS, wire.ACK, 0), 101),
        (wire.window_update(0, 1), 2001),
        (wire.frame(wire.PRIORITY, 0, 3, bytes(5)), 2001),
        (wire.frame(0xFA, 0, 0), 2001),
        (wire.goaway(0, 0), 101),
    ],
)
def test_control_frames(peer, frame, at_most):
    flood(peer, [frame] * 3000, at_most)
    assert len(peer.codec.data_to_send()) == 0


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x10" + bytes(16)])
def test_empty_data(peer, payload):
    peer.send(peer.headers(1, POST, end=False))
    flood(peer, [wire.frame(wire.DATA, wire.PADDED if payload else 0, 1, payload)] * 1000, 201)


def test_empty_data_on_a_refused_stream(server):
    peer = server(H2Limits(header_bytes=300))
    assert isinstance(peer.send(peer.headers(1, [*POST, (b"x", b"y" * 300)], end=False))[0], HeadRefused)
    flood(peer, [peer.data(1)] * 1000, 201)


def test_frames_for_streams_that_are_gone(peer):
    peer.send(peer.headers(1, POST, end=False))
    peer.codec.reset(1, None)
    flood(peer, [peer.data(1)] * 3000, 2001)


def test_upload_under_way_to_a_stream_that_was_reset_is_no_abuse(peer):
    """In small frames, but no more than the window that the stream had."""
    peer.send(peer.headers(1, POST, end=False))
    peer.codec.reset(1, None)
    for _ in range(256):
        peer.send(peer.data(1, bytes(64)) * 16)
    peer.alive()
    flood(peer, [peer.data(1, bytes(64))] * 3000, 2001)


def test_crumbs_of_window(server):
    """One byte of credit makes us send one byte in a frame of ten."""
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 0)])
    peer.get()
    peer.respond(body=bytes(10000))
    flood(peer, [wire.window_update(1, 1)] * 10000, 2005)


def test_credit_for_data_is_no_abuse(server):
    peer = server(settings=[(wire.INITIAL_WINDOW_SIZE, 0)])
    peer.get()
    peer.respond(body=bytes(1 << 24))
    for _ in range(5000):
        peer.send(wire.window_update(1, 1000), wire.window_update(0, 1000))
    peer.alive()


def test_credit_that_comes_late_is_no_abuse(server):
    """Two updates for each of many small DATA frames, when the peer gets to read them."""
    peer = server()
    peer.get()
    peer.codec.send_headers(1, ResponseHead(200, [], {}), False)
    for _ in range(5000):
        peer.codec.send_data(1, b"x", False)
    peer.codec.data_to_send()
    for _ in range(5000):
        peer.send(wire.window_update(1, 1), wire.window_update(0, 1))
    peer.alive()
    flood(peer, [wire.window_update(0, 1)] * 99999, 20000)


def test_credit_for_work_long_ago_is_bounded():
    guard = Guard()
    guard.work += 1 << 30
    kind = Abuse.WINDOW
    assert all(guard.spend(kind) for _ in range(kind.saved + kind.size))
    assert not guard.spend(kind)


def test_continuations_without_end(peer):
    peer.send(peer.headers(1, GET, flags=0))
    flood(peer, [wire.frame(wire.CONTINUATION, 0, 1)] * 1000, 128)


def test_continuations_that_grow(peer):
    peer.send(peer.headers(1, GET, flags=0))
    flood(peer, [wire.frame(wire.CONTINUATION, 0, 1, bytes(16384))] * 100, 17)


def test_hpack_bomb(peer):
    """One entry of 4,000 bytes, referred to again and again: a megabyte a kilobyte."""
    peer.send(peer.headers(1, [*GET, (b"x", b"y" * 3900)]))
    bomb = peer.encoder.encode(GET) + b"\xbe" * 16000
    peer.send(peer.headers(3, bomb))
    peer.connection_error(CALM)


def test_list_that_is_just_too_long_is_answered(peer):
    peer.send(peer.headers(1, [*GET, (b"x", b"y" * 3900)]))
    (event,) = peer.send(peer.headers(3, peer.encoder.encode(GET) + b"\xbe" * 17))
    assert isinstance(event, HeadRefused)
    assert event.error.status == 431


def test_unanswered_pings_of_ours_are_bounded(peer):
    for i in range(1000):
        peer.codec.ping(i.to_bytes(8, "big"))
    assert len(peer.frames()) == 64


def test_keepalives_over_hours_are_no_abuse(peer):
    for _ in range(10000):
        peer.alive()
        peer.codec.tick()


def test_bucket_drains_by_work():
    guard = Guard()
    kind = Abuse.SETTINGS
    assert all(guard.spend(kind) for _ in range(kind.size))
    assert not guard.spend(kind)
    guard.work += 2
    assert guard.spend(kind)
    assert not guard.spend(kind)
    guard.work += 1000
    assert [guard.spend(kind) for _ in range(kind.size + 1)] == [True] * kind.size + [False]
    guard.tick()
    assert [guard.spend(kind) for _ in range(TICK_WORK)] == [True] * (TICK_WORK - 1) + [False]


def test_output_that_nobody_takes_stops_reading(peer):
    """A client that sends requests and never reads: HEADERS know no flow control, so reading has to stop."""
    fields = [(b"x-%d" % i, b"y" * 900) for i in range(20)]
    stream_id = 1
    while peer.codec.reading:
        peer.send(peer.headers(stream_id, GET))
        peer.respond(stream_id, fields=fields)
        stream_id += 2
        assert stream_id < 1000
    peer.codec.data_to_send()
    assert peer.codec.reading
