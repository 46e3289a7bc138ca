"""The client and its open loop, against servers in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from itertools import pairwise
from time import monotonic

import pytest

from proxy.demo.traffic import CONNECTIONS_MAX, Client, OpenLoop, Series

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each request with what `answer` says (None: never), and counts connections and requests."""

    def __init__(self) -> None:
        self.answer: bytes | None = ANSWER
        self.connections = 0
        self.requests = 0
        self.asked = asyncio.Event()
        self.transports: list[asyncio.Transport] = []

    async def until(self, true: Callable[[], bool]) -> None:
        """Look again at every request."""
        while not true():
            self.asked.clear()
            await self.asked.wait()


class Connection(asyncio.Protocol):
    """One of the server's; a request is never cut in two, as small as they are."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.connections += 1
        self.server.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        assert data.endswith(b"\r\n\r\n")
        self.server.requests += 1
        self.server.asked.set()
        if self.server.answer is not None:
            self.transport.write(self.server.answer)


@pytest.fixture
async def server():
    made = Server()
    listening = await asyncio.get_running_loop().create_server(lambda: Connection(made), "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()
    for transport in made.transports:
        transport.abort()


@pytest.fixture
async def client(server):
    made = client_to(server.port)
    yield made
    made.close()


def client_to(port: int, timeout_s: float = 10.0) -> Client:
    return Client("test", plain_socket, ("127.0.0.1", port), host="origin.test", timeout_s=timeout_s)


def plain_socket() -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    return made


async def send(client: Client, count: int = 1) -> Series:
    series = Series()
    for _ in range(count):
        client.send(monotonic(), series)
    await client.finish()
    return series


class TestClient:
    async def test_keeps_its_connection(self, server, client):
        for _ in range(3):
            assert (await send(client)).failed == 0
        assert (server.connections, server.requests, client.opened_total) == (1, 3, 1)

    async def test_opens_as_many_as_are_needed_at_once(self, server, client):
        series = await send(client, 5)
        assert len(series.samples) == 5
        assert series.failed == 0
        assert server.connections == 5

    async def test_forget_idle_makes_the_next_request_dial(self, server, client):
        await send(client)
        client.forget_idle()
        await send(client)
        assert server.connections == 2

    async def test_latency_counts_from_when_it_was_due(self, client):
        series = Series()
        client.send(monotonic() - 5.0, series)
        await client.finish()
        (sample,) = series.samples
        assert 5.0 <= sample.waited <= sample.seconds

    async def test_a_bad_status_is_a_failure(self, server, client):
        server.answer = b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n"
        assert (await send(client)).failures == {"status 503": 1}

    async def test_connection_close_is_obeyed(self, server, client):
        server.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        assert (await send(client)).failed == 0
        assert (await send(client)).failed == 0
        assert server.connections == 2

    async def test_a_time_out_is_a_failure_with_its_waiting(self, server):
        server.answer = None
        client = client_to(server.port, timeout_s=0.05)
        series = await send(client)
        (sample,) = series.samples
        assert "no answer" in sample.failure
        assert sample.seconds >= 0.05
        server.answer = ANSWER
        assert (await send(client)).failed == 0
        assert server.connections == 2
        client.close()

    async def test_a_connection_lost_with_a_request_on_it(self, server, client):
        server.answer = None
        series = Series()
        client.send(monotonic(), series)
        await server.asked.wait()
        server.transports[0].abort()
        await client.finish()
        assert series.failed == 1

    async def test_a_refused_dial(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        series = await send(client_to(port))
        assert series.failed == 1
        assert "could not connect" in series.samples[0].failure

    async def test_connections_are_bounded_and_the_rest_queues(self, server, client):
        series = await send(client, 3 * CONNECTIONS_MAX)
        assert series.failed == 0
        assert server.connections == CONNECTIONS_MAX
        assert server.requests == 3 * CONNECTIONS_MAX

    async def test_what_queues_until_its_time_is_over_is_never_sent(self, server):
        server.answer = None
        client = client_to(server.port, timeout_s=0.1)
        series = await send(client, CONNECTIONS_MAX + 5)
        assert series.failed == CONNECTIONS_MAX + 5
        assert server.requests <= CONNECTIONS_MAX
        server.answer = ANSWER
        assert (await send(client)).failed == 0
        client.close()

    async def test_a_queued_request_gets_a_new_connection_when_one_closes(self, server, client):
        server.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        series = await send(client, CONNECTIONS_MAX + 5)
        assert series.failed == 0
        assert server.connections == CONNECTIONS_MAX + 5

    async def test_prepared_sockets_are_used_first_and_closed_at_the_end(self, server):
        made: list[socket.socket] = []

        def make() -> socket.socket:
            made.append(plain_socket())
            return made[-1]

        client = Client("test", make, ("127.0.0.1", server.port), host="x", timeout_s=10.0)
        client.prepare(3)
        assert (await send(client, 2)).failed == 0
        assert len(made) == 3
        client.close()
        assert made[0].fileno() == -1


class TestOpenLoop:
    async def test_sides_take_turns_and_record_where_they_are_told(self, server):
        first, second = client_to(server.port), client_to(server.port)
        load = OpenLoop((first, second), rate=500.0)
        before, after = (Series(), Series()), (Series(), Series())
        load.start(before)
        await server.until(lambda: len(before[1].samples) >= 4)
        load.record(after)
        await server.until(lambda: len(after[1].samples) >= 4)
        load.stop()
        await first.finish()
        await second.finish()
        for one, other in (before, after):
            assert len(one.samples) >= 4
            assert abs(len(one.samples) - len(other.samples)) <= 1
        dues = sorted(sample.due for one in (*before, *after) for sample in one.samples)
        assert all(later - earlier == pytest.approx(0.001) for earlier, later in pairwise(dues))
        assert len(load.lags) == len(dues)
        first.close()
        second.close()

    async def test_a_server_that_does_not_answer_stops_nothing(self, server):
        server.answer = None
        client = client_to(server.port)
        load = OpenLoop((client,), rate=500.0)
        load.start((Series(),))
        await server.until(lambda: server.requests >= 10)
        load.stop()
        load.stop()
        assert client.in_flight >= 10
        client.close()
