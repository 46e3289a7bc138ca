"""What codecs do grows with what they are sent, never with its square, and is done in bounded pieces.

Counted, not timed: the octets that a codec copies out of what it holds, and the events of one call.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.http.h1 import H1ClientCodec, H1Limits, H1ServerCodec
from proxy.http.h2 import PREFACE, H2Limits, H2ServerCodec
from proxy.http.h2 import frames as wire
from proxy.http.message import DataReceived, HeadersReceived, RequestHead, ResponseHead

GET = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n"
LENGTH = b"POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 5\r\n\r\n12345"
OK = ResponseHead(204, [], {}, content_length=0)
GREAT: Any = {"header_bytes": 1 << 20}


class Counted(bytearray):
    """Counts the octets that are copied out of it."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(key, slice):
            self.copied += len(found)
        return found

    def __bytes__(self) -> bytes:
        self.copied += len(self)
        return b"".join((memoryview(self),))


def counted(codec: Any) -> Counted:
    held = codec._held = Counted(codec._held)
    return held


def pipelined(request: bytes, count: int) -> int:
    """Octets copied for so many requests that come behind one that is in progress."""
    codec = H1ServerCodec(H1Limits(**GREAT))
    codec.receive(GET)
    held = counted(codec)
    codec.receive(request * count)
    served = 0
    while served < count:
        codec.send_headers(served + 1, OK, True)
        codec.data_to_send()
        assert codec.pending
        events = codec.receive(b"")
        assert isinstance(events[0], HeadersReceived)
        for event in events:
            if isinstance(event, DataReceived):
                codec.consumed(event.stream_id, event.size)
        served += 1
    assert codec._held is held, "what is held was moved elsewhere"
    assert not held
    return held.copied


@pytest.mark.parametrize("request_", [GET, CHUNKED, LENGTH], ids=["bodyless", "chunked", "length"])
def test_a_pipelined_request_costs_the_same_however_many_are_held(request_: bytes) -> None:
    few, many = pipelined(request_, 200), pipelined(request_, 400)
    assert many <= 2.2 * few
    assert many <= 400 * (len(request_) + 4096), "its own octets, and a bite"


def test_what_comes_meanwhile_in_crumbs_is_not_copied_each_time() -> None:
    codec = H1ServerCodec(H1Limits())
    codec.receive(GET)
    held = counted(codec)
    for octet in GET * 500:
        codec.receive(bytes((octet,)))
    assert codec._held is held
    assert held.copied == 0


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("line", ["first", "field"])
def test_a_head_in_crumbs_is_looked_at_once(role: str, line: str) -> None:
    """A slow head costs its own octets, not their square."""
    codec: Any
    if role == "server":
        codec = H1ServerCodec(H1Limits())
        start = b"GET /" if line == "first" else b"GET / HTTP/1.1\r\nhost: a.test\r\nx: "
        end = b" HTTP/1.1\r\nhost: a.test\r\n\r\n" if line == "first" else b"\r\n\r\n"
    else:
        codec = H1ClientCodec(H1Limits())
        codec.send_headers(codec.open_stream(), RequestHead(b"GET", b"/", b"a.test", [], {}), True)
        start = b"HTTP/1.1 200 " if line == "first" else b"HTTP/1.1 200 OK\r\nx: "
        end = b"\r\ncontent-length: 0\r\n\r\n"
    head = start + b"x" * 20_000 + end
    codec.receive(head[:1])
    held = counted(codec)
    events = [event for octet in head[1:] for event in codec.receive(bytes((octet,)))]
    assert isinstance(events[0], HeadersReceived)
    assert held.copied <= 3 * len(head) + 7 * 20_000, "its status line's first octets, and once the whole"


def test_chunks_of_one_octet_are_read_in_pieces() -> None:
    codec = H1ServerCodec(H1Limits())
    codec.receive(CHUNKED[: CHUNKED.index(b"2\r\n")])
    pieces: list[int] = []
    events = codec.receive(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n" + GET)
    while True:
        pieces.append(sum(len(event.data) for event in events if isinstance(event, DataReceived)))
        codec.consumed(1, pieces[-1])
        if not codec.pending:
            break
        events = codec.receive(b"")
    assert sum(pieces) == 5000
    assert max(pieces) <= 1024
    assert codec.reading
    codec.send_headers(1, OK, True)
    assert isinstance(codec.receive(b"")[0], HeadersReceived), "the request behind the body"


def requests(count: int) -> bytes:
    """So many requests of one octet of header block each, or nearly so."""
    block = b"\x82\x84\x86\x41\x01a"
    flags = wire.END_HEADERS | wire.END_STREAM
    return b"".join(wire.frame(wire.HEADERS, flags, 2 * i + 1, block) for i in range(count))


def test_requests_that_come_in_one_read_are_begun_in_pieces() -> None:
    codec = H2ServerCodec(H2Limits(max_concurrent_streams=5000))
    events = codec.receive(PREFACE + wire.settings(()) + requests(2000))
    calls = [len(events)]
    while codec.pending:
        assert not codec.reading, "nothing more is read meanwhile"
        calls.append(len(codec.receive(b"")))
    assert sum(calls) == 2000
    assert max(calls) <= 32
    assert codec.reading


def test_bytes_that_come_while_frames_are_left_stand_behind_them() -> None:
    frames = requests(100)
    codec = H2ServerCodec(H2Limits())
    events = codec.receive(PREFACE + wire.settings(()) + frames[:1000])
    for start in range(1000, len(frames), 7):
        events += codec.receive(frames[start : start + 7])
    while codec.pending:
        events += codec.receive(b"")
    assert [event.stream_id for event in events if isinstance(event, HeadersReceived)] == list(range(1, 200, 2))


class Walked(dict[int, Any]):
    """Counts how often its values are walked through."""

    walks = 0

    def values(self) -> Any:
        self.walks += 1
        return super().values()


def test_one_settings_frame_moves_the_windows_once() -> None:
    """2,700 settings in a frame, 1,000 streams: millions of steps for 16 KB."""
    codec = H2ServerCodec(H2Limits())
    codec.receive(PREFACE + wire.settings(()) + requests(1))
    streams: Any = Walked(codec._streams)
    codec._streams = streams
    codec.receive(wire.settings([(wire.INITIAL_WINDOW_SIZE, 1000 + i % 100) for i in range(2700)]))
    assert streams.walks <= 1
    assert streams[1].send_window == 1000 + 2699 % 100
