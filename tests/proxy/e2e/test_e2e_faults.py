"""A fault of our own code ends the connection it happens on, visibly and in the log; nobody else notices.

Faults are injected where no peer can cause one: into a codec's methods and into a request's handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import pytest

from proxy.errors import Kind, ProxyError

from .harness import OK, Client, Message, Origin, OriginPeer, Proxy, config, request, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRI = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


class Faulty:
    """A codec one of whose parts raises."""

    def __init__(self, codec: Any, part: str) -> None:
        self.codec, self.part = codec, part

    def __getattr__(self, name: str) -> Any:
        if name == self.part:
            raise AssertionError(f"a bug in {name}")
        return getattr(self.codec, name)


async def connection_of(proxy: Proxy, known: set[Any]) -> Any:
    """The downstream connection that has come since."""
    await wait_for(lambda: proxy.listener.connections - known)
    (connection,) = proxy.listener.connections - known
    await wait_for(lambda: connection.state.value == "open")
    return connection


async def ends_alone(proxy: Proxy, bystander: Client, failing: Any, faults: int = 1) -> None:
    """The failing connection is closed and reported; another client's is as it was."""
    await wait_for(lambda: failing not in proxy.listener.connections)
    assert (await bystander.get()).status == 200
    assert proxy.worker.turn.depth == 0
    assert proxy.listener.counters.in_flight == 0
    complaints, proxy.complaints = proxy.complaints, []
    assert len(complaints) >= faults
    assert all(isinstance(complaint["exception"], AssertionError) for complaint in complaints), complaints


@pytest.mark.parametrize("part", ["receive", "reading", "pending", "data_to_send", "closing", "send_headers"])
async def test_a_downstream_codec_fails_while_a_request_is_served(proxy: Proxy, origin: Origin, part: str) -> None:
    bystander = await proxy.connect()
    assert (await bystander.get()).status == 200
    known = set(proxy.listener.connections)
    client = await proxy.connect()
    assert (await client.get()).status == 200
    failing = await connection_of(proxy, known)
    failing.codec = Faulty(failing.codec, part)
    await client.send(request())
    await client.closed()
    await ends_alone(proxy, bystander, failing)


async def test_a_downstream_codec_fails_at_the_end(proxy: Proxy, origin: Origin) -> None:
    bystander = await proxy.connect()
    assert (await bystander.get()).status == 200
    known = set(proxy.listener.connections)
    client = await proxy.connect()
    assert (await client.get()).status == 200
    failing = await connection_of(proxy, known)
    failing.codec = Faulty(failing.codec, "receive_eof")
    client.half_close()
    await client.closed()
    await ends_alone(proxy, bystander, failing)


async def test_a_codec_fails_in_the_upkeep(proxy: Proxy, origin: Origin) -> None:
    bystander = await proxy.connect()
    assert (await bystander.get()).status == 200
    known = set(proxy.listener.connections)
    client = await proxy.connect()
    await client.send(PRI)
    failing = await connection_of(proxy, known)
    failing.codec = Faulty(failing.codec, "tick")
    proxy.listener.tick()
    await client.closed()
    await ends_alone(proxy, bystander, failing)


@pytest.mark.parametrize("part", ["receive", "data_to_send", "reading"])
async def test_an_upstream_codec_fails(start: Callable[[str], Awaitable[Proxy]], own_origin: Origin, part: str) -> None:
    """The request that it carried is answered by an error; the next one goes over another connection."""
    loop = asyncio.get_running_loop()
    shared = loop.get_exception_handler()
    proxy = await start(config(own_origin.port))
    client = await proxy.connect()
    assert (await client.get()).status == 200
    (failing,) = proxy.pool.stock.connections
    failing.codec = Faulty(failing.codec, part)
    answer = await client.get()
    assert answer.status in (200, 502)
    assert (await client.get()).status == 200
    assert failing not in proxy.pool.stock.connections
    assert proxy.worker.turn.depth == 0
    assert proxy.complaints
    loop.set_exception_handler(shared)


@pytest.mark.parametrize("event", ["connection_lost", "on_timer", "resume_writing"])
async def test_a_handler_fails(proxy: Proxy, origin: Origin, event: str) -> None:
    """Entry points that reach a request's handler first."""

    async def silent(peer: OriginPeer, got: Message) -> None:
        await peer.gone()

    bystander = await proxy.connect()
    assert (await bystander.get()).status == 200
    known = set(proxy.listener.connections)
    client = await proxy.connect()
    origin.answer = silent
    await client.send(request())
    failing = await connection_of(proxy, known)
    await wait_for(lambda: failing.streams)
    (stream,) = failing.streams.values()
    real = stream.handler

    class Handler:
        """Fails first, and lets go of the request then."""

        def fail(self, *_: Any) -> None:
            raise AssertionError("a bug")

        on_reset = on_writable = fail

    if event == "connection_lost":
        stream.handler = Handler()
        client.reset()
    elif event == "resume_writing":
        stream.handler = Handler()
        stream.blocked = True
        failing.resume_writing()
    else:

        class Timed:
            timer_bucket: Any = None

            def on_timer(self, now: float) -> None:
                raise AssertionError("a bug")

            def break_down(self, error: Exception) -> None:
                failing.break_down(error)

        proxy.worker.timers.set(Timed(), monotonic() + 0.01, monotonic())
    await wait_for(lambda: failing not in proxy.listener.connections)
    if event != "on_timer":  # the handler was ours: the request behind it has not heard of the end
        real.on_reset(ProxyError(Kind.CLIENT_LEFT, "the test is over"))
    origin.answer = answer_ok
    await ends_alone(proxy, bystander, failing)


async def answer_ok(peer: OriginPeer, got: Message) -> None:
    await peer.send(OK)


async def test_accepting_comes_in_bites(proxy: Proxy, origin: Origin) -> None:
    """However many clients connect at once, other callbacks run in between."""
    before = proxy.listener.counters.accepted
    clients = [await proxy.connect() for _ in range(200)]
    most, seen = 0, proxy.listener.counters.accepted
    while seen < before + len(clients):
        await asyncio.sleep(0)
        most, seen = max(most, proxy.listener.counters.accepted - seen), proxy.listener.counters.accepted
    assert most <= 16
