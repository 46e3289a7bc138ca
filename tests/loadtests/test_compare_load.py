"""The comparison's load: what becomes of each request, whatever the proxy does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from time import monotonic

import pytest

from loadtests.wan import load
from loadtests.wan.load import Client, OpenLoop, Rate, Sample, burst

OK = b"HTTP/1.1 200 OK\r\nx-region: eu\r\ncontent-length: 2\r\n\r\nok"
Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Client]:
    """A client of a server that calls `handler` with each request's head."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"content-length" in head:
                    await reader.readexactly(len(load.POST_BODY))
                await handler(head, writer)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    client = Client(lambda: dial(address), "origin.lab.test")
    try:
        yield client
    finally:
        client.close()
        server.close()


async def dial(address: tuple[str, int]) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def answering(data: bytes) -> Handler:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return handler


async def test_an_answer_and_its_region() -> None:
    async with serving(answering(OK)) as client:
        sample = await client.get()
    assert (sample.status, sample.region, sample.method, sample.error) == (200, "eu", "GET", "")
    assert not sample.failed
    assert 0 < sample.latency_ms < 5000


async def test_a_gateway_error_is_a_failure_and_a_client_error_is_none() -> None:
    async with serving(answering(OK.replace(b"200 OK", b"503 No"))) as client:
        assert (await client.get()).failed
    async with serving(answering(OK.replace(b"200 OK", b"404 No"))) as client:
        assert not (await client.get()).failed


async def test_a_cut_answer() -> None:
    async def cut(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:20])
        writer.close()

    async with serving(cut) as client:
        sample = await client.get()
    assert sample.failed
    assert sample.error.startswith("the proxy closed the connection")


async def test_what_is_no_answer() -> None:
    async with serving(answering(b"220 smtp ready\r\n")) as client:
        sample = await client.get()
    assert sample.failed
    assert sample.error.startswith("not an answer")


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    client = Client(lambda: dial(address), "x")
    sample = await client.get()
    client.close()
    assert sample.failed
    assert sample.error.startswith("connect")


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "TIMEOUT_S", 0.05)

    async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
        return

    async with serving(silent) as client:
        sample = await client.get()
    assert sample.failed
    assert sample.error == "no answer within 0.05 s"


async def test_connections_are_used_again() -> None:
    writers = set()

    async def count(head: bytes, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        writer.write(OK)

    async with serving(count) as client:
        for _ in range(5):
            assert not (await client.get()).failed
    assert len(writers) == 1


async def test_a_connection_that_says_close_is_not() -> None:
    writers = set()

    async def close(head: bytes, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        writer.write(OK.replace(b"x-region", b"connection: close\r\nx-region"))
        writer.close()

    async with serving(close) as client:
        for _ in range(3):
            assert not (await client.get()).failed
    assert len(writers) == 3


async def test_a_burst_is_due_at_one_instant() -> None:
    async with serving(answering(OK)) as client:
        samples = await burst(client, 20)
    assert len(samples) == 20
    assert len({sample.at for sample in samples}) == 1
    assert not any(sample.failed for sample in samples)


async def test_the_open_loop_keeps_its_schedule_while_answers_are_out() -> None:
    held: list[asyncio.StreamWriter] = []
    enough = asyncio.Event()

    async def hold(head: bytes, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        if len(held) == 12:
            enough.set()

    async with serving(hold) as client:
        running = OpenLoop(client, [Rate(200), Rate(50, "POST")])
        await enough.wait()  # none was answered, and they kept coming
        stopping = asyncio.ensure_future(running.stop())
        while len(held) < running._open:
            await asyncio.sleep(0)
        for writer in held:
            writer.write(OK)
        samples = await stopping
    assert len(samples) >= 12
    assert [sample.at for sample in samples] == sorted(sample.at for sample in samples)
    gets = [sample.at for sample in samples if sample.method == "GET"]
    assert all(abs(later - earlier - 0.005) < 1e-9 for earlier, later in pairwise(gets))
    assert {sample.method for sample in samples} == {"GET", "POST"}


async def test_latency_counts_from_when_a_request_was_due() -> None:
    async with serving(answering(OK)) as client:
        done: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        client.start("GET", "/", monotonic() - 1.0, done.set_result)
        sample = await done
    assert sample.latency_ms >= 1000
    assert sample.lag_ms >= 1000
