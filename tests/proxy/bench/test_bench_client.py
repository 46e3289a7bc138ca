"""HTTP/1.1 and HTTP/2 on a connection, without sockets: bytes in, what the owner is told out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bench.client import Connection, H1Connection, Phase
from proxy.bench.client_h2 import H2Connection
from proxy.bench.plan import Plan, targets
from proxy.bench.request import Request, request_bytes, request_fields
from proxy.errors import Kind, ProxyError

TARGET = targets(["http://localhost:8080/x?y=1"])
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Transport:
    """Keeps what is written; closing only notes it."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close


@dataclass
class Owner:
    """Notes what a connection tells."""

    answers: list[tuple[Request, int]] = field(default_factory=list)
    failures: list[tuple[Request, ProxyError]] = field(default_factory=list)
    closings: list[ProxyError | None] = field(default_factory=list)
    opened_count: int = 0
    freed_count: int = 0
    size: int = 0

    def opened(self, connection: Connection) -> None:
        self.opened_count += 1

    def answered(self, connection: Connection, request: Request, now: float) -> None:
        self.answers.append((request, request.status))

    def failed(self, connection: Connection, request: Request, error: ProxyError, now: float) -> None:
        self.failures.append((request, error))

    def freed(self, connection: Connection, now: float) -> None:
        self.freed_count += 1

    def closed(self, connection: Connection, error: ProxyError | None) -> None:
        self.closings.append(error)

    def received_bytes(self, size: int) -> None:
        self.size += size


def h1(method: str = "GET") -> tuple[H1Connection, Owner, Transport]:
    owner, transport = Owner(), Transport()
    plan = Plan(TARGET, method=method)
    connection = H1Connection(owner, None, request_bytes(plan, TARGET[0]), head_only=method == "HEAD")
    connection.connection_made(cast(asyncio.Transport, transport))
    return connection, owner, transport


def asked(connection: Connection) -> Request:
    request = Request(1.0, 0)
    connection.send(request, 1.0)
    return request


def test_a_request_is_written_in_one_piece() -> None:
    connection, owner, transport = h1()
    asked(connection)
    assert owner.opened_count == 1
    assert transport.written == (
        b"GET /x?y=1 HTTP/1.1\r\nhost: localhost:8080\r\nuser-agent: onetrip-bench\r\naccept: */*\r\n\r\n"
    )


def test_given_fields_replace_the_defaults_and_a_body_has_its_length() -> None:
    plan = Plan(TARGET, method="POST", headers=(("Host", "other"), ("x-a", "1")), body=b"abc")
    lines = request_bytes(plan, TARGET[0]).split(b"\r\n")
    assert lines[0] == b"POST /x?y=1 HTTP/1.1"
    assert b"Host: other" in lines
    assert b"host: localhost:8080" not in lines
    assert b"content-length: 3" in lines
    assert lines[-1] == b"abc"


CHUNKED = b"HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@given(cuts=st.lists(st.integers(1, 90), max_size=6))
def test_any_chunking_gives_the_same_answers(cuts: list[int]) -> None:
    connection, owner, _ = h1()
    for answer in (OK, HINTS + CHUNKED, EMPTY):
        asked(connection)
        edges = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
        for start, end in pairwise(edges):
            connection.data_received(answer[start:end])
    assert [status for _, status in owner.answers] == [200, 404, 204]
    assert not owner.failures
    assert connection.has_room(1)


def test_the_first_byte_is_that_of_the_first_chunk() -> None:
    connection, _, _ = h1()
    request = asked(connection)
    connection.data_received(OK[:1])
    first = request.first_byte
    connection.data_received(OK[1:])
    assert request.first_byte == first > 0


def test_connection_close_leaves_no_room() -> None:
    connection, owner, _ = h1()
    asked(connection)
    connection.data_received(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
    assert len(owner.answers) == 1
    assert connection.draining
    assert not connection.has_room(1)


def test_a_head_answer_has_no_body_whatever_its_length_says() -> None:
    connection, owner, _ = h1("HEAD")
    for _ in range(2):
        asked(connection)
        connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    assert [status for _, status in owner.answers] == [200, 200]
    assert connection.has_room(1)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    connection, owner, _ = h1()
    asked(connection)
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nsome")
    connection.data_received(b"thing")
    assert not owner.answers
    connection.eof_received()
    assert [status for _, status in owner.answers] == [200]
    assert not owner.failures
    assert owner.closings == [None]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Kind.TERMINATED),
        (b"HTTP/1.1 200 OK\r\ncontent-le", Kind.TERMINATED),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", Kind.TERMINATED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", Kind.TERMINATED),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Kind.BAD_RESPONSE),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", Kind.BAD_RESPONSE),
    ],
)
def test_an_incomplete_or_foreign_answer_fails_once(data: bytes, kind: Kind) -> None:
    connection, owner, transport = h1()
    request = asked(connection)
    if data:
        connection.data_received(data)
    connection.eof_received()
    connection.connection_lost(None)
    assert [(r, e.kind) for r, e in owner.failures] == [(request, kind)]
    assert not owner.answers
    assert owner.closings == [None]
    assert transport.closed
    assert connection.phase is Phase.CLOSED


def test_an_answer_to_nothing_closes() -> None:
    connection, owner, transport = h1()
    connection.data_received(OK)
    assert transport.closed
    assert not owner.answers
    assert owner.closings == [None]


def test_an_abandoned_request_closes_without_a_word_of_it() -> None:
    connection, owner, transport = h1()
    connection.abandon(asked(connection), 1.0)
    assert transport.closed
    assert not owner.failures
    assert owner.closings == [None]


class H2Server:
    """The other end of an H2Connection, as h2's own server."""

    def __init__(self, *, body: bytes = b"", **settings: int) -> None:
        self.owner, self.transport = Owner(), Transport()
        plan = Plan(TARGET, protocol="h2", method="POST" if body else "GET", body=body)
        self.client = H2Connection(self.owner, None, request_fields(plan, TARGET[0]), body)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        if settings:
            codes = {h2.settings.SettingCodes[name.upper()]: value for name, value in settings.items()}
            self.h2.local_settings = h2.settings.Settings(client=False, initial_values=codes)
        self.h2.initiate_connection()
        self.client.connection_made(cast(asyncio.Transport, self.transport))
        self.events: list[h2.events.Event] = []
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes both ways until both are quiet."""
        while True:
            to_server, self.transport.written = self.transport.written, b""
            if to_server:
                self.events += self.h2.receive_data(to_server)
            to_client = self.h2.data_to_send()
            if to_client:
                self.client.data_received(to_client)
            if not to_server and not to_client:
                return

    def answer(self, stream_id: int, status: str = "200", body: bytes = b"") -> None:
        self.h2.send_headers(stream_id, [(":status", status)], end_stream=not body)
        if body:
            self.h2.send_data(stream_id, body, end_stream=True)
        self.exchange()


def test_h2_answers_find_their_requests_in_any_order() -> None:
    server = H2Server()
    requests = [asked(server.client) for _ in range(3)]
    server.exchange()
    assert server.client.active == 3
    for stream_id, status in ((5, "503"), (1, "200"), (3, "404")):
        server.answer(stream_id, status, b"x" * 10)
    assert server.owner.answers == [(requests[2], 503), (requests[0], 200), (requests[1], 404)]
    assert all(request.first_byte for request in requests)
    assert server.client.active == 0


def test_h2_sends_the_head_that_the_plan_says() -> None:
    server = H2Server()
    asked(server.client)
    server.exchange()
    received = next(event for event in server.events if isinstance(event, h2.events.RequestReceived))
    fields = dict(received.headers)
    assert fields[b":path"] == b"/x?y=1"
    assert fields[b":authority"] == b"localhost:8080"
    assert fields[b":scheme"] == b"http"
    assert b"host" not in fields


def test_h2_respects_the_servers_stream_limit() -> None:
    server = H2Server(max_concurrent_streams=2)
    assert server.client.has_room(100)
    asked(server.client)
    asked(server.client)
    assert not server.client.has_room(100)
    server.exchange()
    server.answer(1)
    assert server.client.has_room(100)
    assert not server.client.has_room(1)


def test_h2_sends_a_body_as_flow_control_lets_it() -> None:
    body = bytes(200_000)
    server = H2Server(body=body)
    asked(server.client)
    server.exchange()
    received = sum(len(e.data) for e in server.events if isinstance(e, h2.events.DataReceived))
    assert received == 65_535
    for _ in range(10):
        for event in [e for e in server.events if isinstance(e, h2.events.DataReceived)]:
            server.events.remove(event)
            server.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        server.exchange()
    assert any(isinstance(event, h2.events.StreamEnded) for event in server.events)
    server.answer(1)
    assert [status for _, status in server.owner.answers] == [200]


def test_h2_a_reset_fails_one_request_and_the_connection_goes_on() -> None:
    server = H2Server()
    requests = [asked(server.client) for _ in range(2)]
    server.exchange()
    server.h2.reset_stream(1, 7)
    server.exchange()
    assert [(r, e.kind) for r, e in server.owner.failures] == [(requests[0], Kind.TERMINATED)]
    assert "REFUSED_STREAM" in server.owner.failures[0][1].details
    server.answer(3)
    assert server.owner.answers == [(requests[1], 200)]


def test_h2_goaway_fails_what_was_not_processed_and_lets_the_rest_end() -> None:
    server = H2Server()
    requests = [asked(server.client) for _ in range(2)]
    server.exchange()
    # h2 sends nothing on a connection after its GOAWAY, so the frame is written by hand: last stream 1, no error.
    server.client.data_received(b"\0\0\x08\x07\0\0\0\0\0" + (1).to_bytes(4) + bytes(4))
    assert [(r, e.unprocessed) for r, e in server.owner.failures] == [(requests[1], True)]
    assert not server.client.has_room(100)
    assert server.client.active == 1
    assert not server.transport.closed


def test_h2_an_abandoned_request_resets_its_stream_only() -> None:
    server = H2Server()
    first, second = asked(server.client), asked(server.client)
    server.exchange()
    server.client.abandon(first, 1.0)
    assert server.owner.freed_count == 1, "its place may be given to another request"
    server.exchange()
    assert any(isinstance(event, h2.events.StreamReset) for event in server.events)
    server.answer(3)
    assert server.owner.answers == [(second, 200)]
    assert not server.owner.failures


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"\0\0\x01\0\0\0\0\0\0x", "protocol error"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "use --h1")],
)
def test_h2_what_is_not_http2_fails_everything_once(data: bytes, said: str) -> None:
    owner = Owner()
    client = H2Connection(owner, None, request_fields(Plan(TARGET, protocol="h2"), TARGET[0]), b"")
    client.connection_made(cast(asyncio.Transport, Transport()))
    asked(client)
    client.data_received(data)
    client.connection_lost(None)
    ((_, error),) = owner.failures
    assert error.kind is Kind.BAD_RESPONSE
    assert said in error.details
    assert owner.closings == [None]
