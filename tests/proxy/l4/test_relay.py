"""Bytes, ends and breaks through a relay between real sockets; TLS on either side."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import select
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtests.lab.certificates import issue, make_ca
from proxy.l4 import pipe as pipes
from proxy.l4 import relay as relaying
from proxy.l4.flow import End
from proxy.l4.relay import BUFFER_BYTES, HELD_BYTES_MAX, Relay, State
from proxy.loop.reactor import READ, REST_S, Reactor
from proxy.loop.turn import Turn
from tlscache.context import CertificatePair, ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import State as TLSState
from tlscache.engine import TLSEngine

WAIT_S = 10.0

Contexts = tuple[ClientContext, ServerContext]


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClientContext, ServerContext]:
    directory = tmp_path_factory.mktemp("relay")
    ca = make_ca(directory)
    leaf = issue(ca, names=["relay.test"])
    server = ServerContext(ServerSettings((CertificatePair(str(leaf.certificate), str(leaf.key)),), None, ()))
    client = ClientContext(ClientSettings(server_name="relay.test", ca=str(ca.certificate), alpn=()))
    return client, server


def tcp_pair(buffer_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection."""
    with socket.socket() as listener:
        if buffer_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        one = socket.socket()
        if buffer_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return one, other


def handshaken(contexts: Contexts) -> tuple[TLSEngine, TLSEngine, bytes]:
    """A client's and a server's engine after their handshake, and what the server still has to say (tickets)."""
    client, server = TLSEngine(contexts[0]), TLSEngine(contexts[1])
    client.start()
    while client.state is TLSState.HANDSHAKING or server.state is TLSState.HANDSHAKING:
        server.receive(client.data_to_send())
        client.receive(server.data_to_send())
    return client, server, server.data_to_send()


class Outside:
    """Who talks to the relay: a socket, and perhaps TLS on it."""

    def __init__(self, sock: socket.socket, engine: TLSEngine | None = None) -> None:
        self.sock = sock
        self.engine = engine
        self.received = bytearray()
        self.ended = ""
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        if self.engine is not None:
            self.engine.send(data)
            data = self.engine.data_to_send()
        async with asyncio.timeout(WAIT_S):
            await self.loop.sock_sendall(self.sock, data)

    async def end(self) -> None:
        """Send no more."""
        if self.engine is not None:
            self.engine.close()
            await self.loop.sock_sendall(self.sock, self.engine.data_to_send())
        self.sock.shutdown(socket.SHUT_WR)

    async def read(self) -> bool:
        """Something more, or False at the end."""
        if self.ended:
            return False
        try:
            async with asyncio.timeout(WAIT_S):
                data = await self.loop.sock_recv(self.sock, 100_000)
        except ConnectionError:
            self.ended = "reset"
            return False
        engine = self.engine
        if not data:
            if engine is not None:
                engine.receive_eof()
            self.ended = "truncated" if engine is not None and engine.truncated else "eof"
            return False
        self.received += engine.receive(data) if engine is not None else data
        return True

    async def until(self, size: int) -> bytes:
        """At least so many bytes."""
        while len(self.received) < size:
            assert await self.read(), f"{self.ended} after {len(self.received)} of {size} bytes"
        return bytes(self.received)

    async def rest(self) -> bytes:
        while await self.read():
            pass
        return bytes(self.received)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Bench:
    """A relay between two outsides."""

    def __init__(
        self, contexts: Contexts | None = None, tls: str = "", buffer_bytes: int = 0, server_bytes: int | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.reactor = Reactor(loop, Turn(loop))
        self.closed: list[str] = []
        outer_client, inner_client = tcp_pair(buffer_bytes)
        inner_server, outer_server = tcp_pair(buffer_bytes if server_bytes is None else server_bytes)
        client_engine = server_engine = None
        self.client, self.server = Outside(outer_client), Outside(outer_server)
        if "client" in tls:
            assert contexts is not None
            self.client.engine, client_engine, tickets = handshaken(contexts)
            self.client.engine.receive(tickets)
        if "server" in tls:
            assert contexts is not None
            server_engine, self.server.engine, tickets = handshaken(contexts)
            server_engine.receive(tickets)
        self.inner = (inner_client, inner_server)
        self.relay = Relay(
            self.reactor, End(inner_client, client_engine), End(inner_server, server_engine), self.closed.append
        )

    def start(self, preface: bytes = b"", to_server: bytes = b"", to_client: bytes = b"") -> None:
        self.relay.start(preface, to_server, to_client)

    async def until_closed(self) -> str:
        async with asyncio.timeout(WAIT_S):
            while not self.closed:
                await asyncio.sleep(0.001)
        assert len(self.closed) == 1
        assert self.relay.state is State.CLOSED
        assert all(sock.fileno() < 0 for sock in self.inner)
        assert not self.reactor._watchers
        return self.closed[0]


@asynccontextmanager
async def bench(*args: Any, **kwargs: Any) -> AsyncIterator[Bench]:
    one = Bench(*args, **kwargs)
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    try:
        yield one
    finally:
        one.relay.abort("the test is over")
        one.reactor.close()
        one.client.sock.close()
        one.server.sock.close()
    assert not failures, failures


async def turns(count: int = 20) -> None:
    """Let everything that is ready happen."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(params=["", "client", "server", "client server"], ids=["plain", "tls in", "tls out", "tls both"])
def tls(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_both_ways_and_an_orderly_end(contexts: Contexts, tls: str) -> None:
    async with bench(contexts, tls) as it:
        it.start()
        await it.client.send(b"ping")
        assert await it.server.until(4) == b"ping"
        await it.server.send(b"pong")
        assert await it.client.until(4) == b"pong"
        await it.client.end()
        await it.server.rest()
        assert it.server.ended == "eof"
        await it.server.end()
        await it.client.rest()
        assert it.client.ended == "eof"
        assert await it.until_closed() == ""
        assert (it.relay.up.bytes, it.relay.down.bytes) == (4, 4)


async def test_a_client_that_has_sent_all_still_gets_its_answer(contexts: Contexts, tls: str) -> None:
    async with bench(contexts, tls) as it:
        it.start()
        await it.client.send(b"question")
        await it.client.end()
        assert await it.server.rest() == b"question"
        answer = os.urandom(700_000)
        await asyncio.gather(it.server.send(answer), it.client.until(len(answer)))
        await it.server.end()
        assert await it.client.rest() == answer
        assert await it.until_closed() == ""


async def test_a_server_that_has_sent_all_still_gets_the_rest(contexts: Contexts, tls: str) -> None:
    async with bench(contexts, tls) as it:
        it.start()
        await it.server.send(b"hello")
        await it.server.end()
        assert await it.client.rest() == b"hello"
        upload = os.urandom(700_000)
        await asyncio.gather(it.client.send(upload), it.server.until(len(upload)))
        await it.client.end()
        assert await it.server.rest() == upload
        assert await it.until_closed() == ""


async def test_bytes_from_before_the_two_were_joined_come_first(contexts: Contexts, tls: str) -> None:
    async with bench(contexts, tls) as it:
        preface = b"" if "server" in tls else b"PROXY UNKNOWN\r\n"
        it.start(preface, b"early question", b"early greeting")
        await it.client.send(b", later")
        await it.server.send(b", later")
        assert await it.server.until(len(preface) + 21) == preface + b"early question, later"
        assert await it.client.until(21) == b"early greeting, later"
        assert it.relay.up.bytes == 21  # the preface is ours


async def test_an_end_that_came_with_the_first_bytes_is_passed_on(contexts: Contexts) -> None:
    async with bench(contexts, "client") as it:
        engine = it.relay.client.engine
        assert engine is not None
        assert it.client.engine is not None
        it.client.engine.send(b"all")
        it.client.engine.close()
        first = engine.receive(it.client.engine.data_to_send())
        assert engine.eof_received
        it.start(b"", first)
        assert await it.server.rest() == b"all"
        await it.server.send(b"answer")
        await it.server.end()
        assert await it.client.rest() == b"answer"


async def blocked(it: Bench) -> bytes:
    """Send up until the server takes no more. Returns what was sent."""
    sent = bytearray()
    while not it.relay.up.waiting:
        chunk = os.urandom(50_000)
        await it.client.send(chunk)
        sent += chunk
        await turns(5)
    return bytes(sent)


async def test_a_hang_up_is_not_reported_forever(contexts: Contexts, tls: str) -> None:
    """Both directions of the client have ended, with bytes of it left to read, and the server takes nothing: the kernel
    reports EPOLLHUP whatever is asked for.
    """
    async with bench(contexts, tls, server_bytes=8192) as it:
        it.start()
        sent = await blocked(it)
        await it.server.end()
        await it.client.rest()
        await it.client.send(b"the end")
        await it.client.end()
        polls = 0
        inner = it.reactor._epoll

        class Epoll:
            def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
                nonlocal polls
                polls += 1
                return inner.poll(timeout, most)

            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

        it.reactor._epoll = Epoll()  # type: ignore[assignment]
        await turns(200)
        assert polls < 20
        it.reactor._epoll = inner
        assert await it.server.rest() == sent + b"the end"
        assert await it.until_closed() == ""


async def test_a_hang_up_behind_a_full_pipe_loses_nothing() -> None:
    async with bench(server_bytes=65_536) as it:
        it.start()
        sent = bytearray()
        while not it.relay.up.piped:
            await it.client.send(chunk := os.urandom(300_000))
            sent += chunk
            await turns(5)
        await it.server.end()
        await it.client.rest()
        await it.client.send(b"the end")
        await it.client.end()
        await turns(50)
        assert await it.server.rest() == bytes(sent) + b"the end"
        assert await it.until_closed() == ""


async def test_what_a_relay_holds_is_its_own(contexts: Contexts, tls: str) -> None:
    """All relays read into one buffer; what one of them holds must not change when another one reads."""
    async with bench(contexts, tls, server_bytes=8192) as it, bench() as other:
        it.start()
        other.start()
        sent = await blocked(it)
        await push(other, 600_000)
        await it.client.end()
        assert await it.server.rest() == sent


async def test_an_end_right_behind_data_waits_for_it(contexts: Contexts) -> None:
    """close_notify in the same read as more than the server takes at once."""
    async with bench(contexts, "client", server_bytes=8192) as it:
        it.start()
        assert it.client.engine is not None
        it.client.engine.send(data := os.urandom(200_000))
        it.client.engine.close()
        await asyncio.get_running_loop().sock_sendall(it.client.sock, it.client.engine.data_to_send())
        await turns(30)
        assert await it.server.rest() == data


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_reset_resets_the_other_side(contexts: Contexts, tls: str, who: str) -> None:
    async with bench(contexts, tls) as it:
        it.start()
        await it.client.send(b"a")
        await it.server.until(1)
        breaks, sees = (it.client, it.server) if who == "client" else (it.server, it.client)
        breaks.reset()
        await sees.rest()
        assert sees.ended == "reset"
        assert "reset" in (await it.until_closed()).lower()


async def test_what_a_server_said_before_its_reset_arrives(contexts: Contexts, tls: str) -> None:
    """A server that refuses an upload answers and closes with bytes unread: the kernel resets behind its answer."""
    async with bench(contexts, tls, server_bytes=8192) as it:
        it.start()
        await blocked(it)
        await it.server.send(b"no, thanks")
        it.server.sock.close()
        await it.client.rest()
        assert it.client.received == b"no, thanks"
        assert it.client.ended == "reset"
        await it.until_closed()


async def test_a_reset_is_noticed_while_its_bytes_wait() -> None:
    async with bench(buffer_bytes=8192) as it:
        it.start()
        with suppress(BlockingIOError):
            while True:
                it.client.sock.send(b"x" * 60_000)
                await turns(3)
        it.client.reset()
        assert "reset" in (await it.until_closed()).lower()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_an_end_without_close_notify_is_no_orderly_end(contexts: Contexts, who: str) -> None:
    async with bench(contexts, who) as it:
        it.start()
        broken, other = (it.client, it.server) if who == "client" else (it.server, it.client)
        await broken.send(b"half a mess")
        await other.until(11)
        broken.sock.shutdown(socket.SHUT_WR)
        await other.rest()
        assert other.ended == "reset"
        assert "close_notify" in await it.until_closed()


async def test_garbage_instead_of_tls_breaks(contexts: Contexts) -> None:
    async with bench(contexts, "client") as it:
        it.start()
        await asyncio.get_running_loop().sock_sendall(it.client.sock, b"\x17\x03\x03\x00\x20" + b"x" * 32)
        await it.server.rest()
        assert it.server.ended == "reset"
        assert await it.until_closed() != ""


async def test_memory_is_bounded_when_nobody_reads(contexts: Contexts, tls: str) -> None:
    async with bench(contexts, tls, buffer_bytes=16_384) as it:
        it.start()
        sending = asyncio.create_task(it.client.send(b"x" * 6_000_000))
        while not it.relay.up.waiting:
            await asyncio.sleep(0.001)
        await turns(100)
        flow = it.relay.up
        assert len(flow.held) + flow.piped < 2 * BUFFER_BYTES
        before = flow.bytes
        await turns(100)
        assert flow.bytes == before
        assert not sending.done()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_key_updates_that_nobody_reads_end_in_a_break(contexts: Contexts) -> None:
    async with bench(contexts, "client", buffer_bytes=4096) as it:
        it.start()
        flow = it.relay.down
        await it.server.send(b"x" * 3000)
        with suppress(BlockingIOError):
            while not flow.waiting:
                it.server.sock.send(b"y" * 3000)
                await turns(3)
        engine = it.relay.client.engine
        assert engine is not None
        replies = 0
        while not it.closed and replies < 100:  # as if the peer had asked for so many replies each time
            it.relay._write(flow, b"k" * 50_000)
            replies += 1
        assert it.closed
        assert len(flow.held) <= HELD_BYTES_MAX + 100_000


async def test_abort_cuts_both_once() -> None:
    async with bench() as it:
        it.start()
        it.relay.abort("enough")
        it.relay.abort("again")
        assert await it.until_closed() == "enough"
        await it.client.rest()
        await it.server.rest()
        assert (it.client.ended, it.server.ended) == ("reset", "reset")


async def test_a_server_that_broke_before_the_start_is_reported_not_raised() -> None:
    async with bench() as it:
        it.server.reset()
        await turns()
        with suppress(OSError):
            it.inner[1].send(b"x")  # the kernel tells of the reset once
        it.start(b"", b"first bytes")
        assert await it.until_closed() != ""


async def test_activity_is_seen() -> None:
    async with bench() as it:
        it.start()
        it.relay.active = False
        await turns()
        assert not it.relay.active
        await it.client.send(b"x")
        await it.server.until(1)
        assert it.relay.active


# Splicing.


async def push(it: Bench, size: int) -> None:
    """So many bytes each way, at the same time; they arrive as they were."""
    up, down = os.urandom(size), os.urandom(size)
    del it.client.received[:], it.server.received[:]
    await asyncio.gather(it.client.send(up), it.server.send(down), it.client.until(size), it.server.until(size))
    assert it.client.received == down
    assert it.server.received == up


class Spliced:
    """Counts what is spliced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        splice = os.splice

        def counting(source: int, target: int, count: int, *arguments: Any) -> int:
            moved = splice(source, target, count, *arguments)
            self.bytes += moved
            return moved

        monkeypatch.setattr(os, "splice", counting)


async def test_much_is_spliced_and_little_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = Spliced(monkeypatch)
    async with bench() as it:
        it.start()
        for _ in range(50):
            await it.client.send(b"small question")
            await it.server.until(14)
            del it.server.received[:]
        assert spliced.bytes == 0
        await push(it, 8_000_000)
        assert spliced.bytes > 8_000_000  # of 16 million each way, counted in and out of the pipe
        assert it.relay.up.pipe is None
        assert it.relay.down.pipe is None


async def test_a_fast_flow_rests_between_splices_and_loses_nothing() -> None:
    async with bench() as it:
        it.start()
        flow = it.relay.up
        data = os.urandom(1_000_000) * 8
        sending = asyncio.create_task(it.client.send(data))
        rested = 0
        while len(it.server.received) < len(data):
            assert await it.server.read()
            rested += flow.resting
        await sending
        assert it.server.received == data
        assert rested
        while flow.resting:  # nothing more came: it watches its source again
            await asyncio.sleep(0)
        assert it.relay.client.events & READ
        del it.server.received[:]
        await it.client.send(b"one more question")
        assert await it.server.until(17) == b"one more question"
        assert not flow.resting


@pytest.mark.parametrize("how", ["end", "reset", "abort"])
async def test_the_end_of_a_flow_that_rests(how: str) -> None:
    async with bench() as it:
        it.start()
        flow = it.relay.up
        data = os.urandom(1_000_000)
        size = 0
        while not flow.resting:
            await it.client.send(data)
            size += len(data)
            while len(it.server.received) < size and not flow.resting:
                assert await it.server.read()
        if how == "end":
            await it.client.end()
            await it.server.rest()
            assert len(it.server.received) == size
            await it.server.end()
            await it.client.rest()
        elif how == "reset":
            it.client.reset()
            await it.server.rest()
            assert it.server.ended == "reset"
        else:
            it.relay.abort("enough")
        await it.until_closed()
        await asyncio.sleep(REST_S * 2)  # what was asked for while it lived is nobody's any more
        assert it.relay.state is State.CLOSED


async def test_pipes_are_shared_and_none_leaks() -> None:
    async with bench() as it:
        it.start()
        await push(it, 4_000_000)
    kept = len(pipes.kept)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        async with bench() as it:
            it.start()
            await push(it, 4_000_000)
    assert len(os.listdir("/proc/self/fd")) - before == 2 * (len(pipes.kept) - kept)
    assert len(pipes.kept) <= pipes.KEPT_MAX


async def test_a_pipe_with_bytes_in_it_is_not_given_to_others() -> None:
    """A flow breaks while its pipe is full: the next flow must not get those bytes."""
    async with bench(buffer_bytes=65_536) as it:
        it.start()
        sending = asyncio.create_task(it.client.send(b"secret" * 1_000_000))
        async with asyncio.timeout(WAIT_S):
            while not it.relay.up.piped:
                await asyncio.sleep(0.001)
        mine = it.relay.up.pipe
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        it.client.reset()
        await it.until_closed()
        assert mine not in pipes.kept


@pytest.mark.parametrize("problem", ["no descriptors", "no share of pipe memory", "no splice"])
async def test_without_splice_bytes_are_copied(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "kept", [])
    asked = 0

    def refuse(*_: Any, **__: Any) -> Any:
        nonlocal asked
        asked += 1
        raise OSError(errno.EMFILE if problem == "no descriptors" else errno.EINVAL, "no")

    if problem == "no descriptors":
        monkeypatch.setattr(os, "pipe2", refuse)
    elif problem == "no splice":
        monkeypatch.setattr(os, "splice", refuse)
    else:

        def small(fd: int, what: int, size: int = 0) -> int:
            nonlocal asked
            asked += 1
            if size:
                raise PermissionError
            return 8192

        monkeypatch.setattr(pipes.fcntl, "fcntl", small)
    before = len(os.listdir("/proc/self/fd"))
    async with bench() as it:
        it.start()
        fds = len(os.listdir("/proc/self/fd"))
        await push(it, 3_000_000)
        assert asked
        if problem != "no splice":
            assert len(os.listdir("/proc/self/fd")) == fds
    for pipe in pipes.kept:
        pipes.close(pipe)
    assert len(os.listdir("/proc/self/fd")) == before


# Everything at random.


async def talk(me: Outside, script: list[tuple[int, int]], seed: int) -> bytes:
    """Send chunks with pauses, then end. Returns what was sent."""
    rng = random.Random(seed)
    sent = bytearray()
    for size, pause in script:
        chunk = rng.randbytes(size)
        sent += chunk
        await me.send(chunk)
        await turns(pause)
    await me.end()
    return bytes(sent)


async def hear(me: Outside, pause: int) -> None:
    while await me.read():
        await turns(pause)


chunks = st.lists(
    st.tuples(
        st.one_of(st.integers(1, 200), st.integers(1, 20_000), st.integers(100_000, 900_000)), st.integers(0, 12)
    ),
    max_size=6,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    up=chunks,
    down=chunks,
    sides=st.sampled_from(["", "", "client", "server", "client server"]),
    slow=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    buffer_bytes=st.tuples(*[st.sampled_from([0, 0, 20_000, 200_000])] * 2),
    seed=st.integers(0, 2**32),
)
def test_any_bytes_in_any_chunks_arrive_as_they_were(
    contexts: Contexts,
    up: list[tuple[int, int]],
    down: list[tuple[int, int]],
    sides: str,
    slow: tuple[int, int],
    buffer_bytes: tuple[int, int],
    seed: int,
) -> None:
    async def scenario() -> None:
        async with bench(contexts, sides, *buffer_bytes) as it:
            it.start()
            sent_up, sent_down, _, _ = await asyncio.gather(
                talk(it.client, up, seed),
                talk(it.server, down, seed + 1),
                hear(it.client, slow[0]),
                hear(it.server, slow[1]),
            )
            assert it.server.received == sent_up
            assert it.client.received == sent_down
            assert (it.client.ended, it.server.ended) == ("eof", "eof")
            assert await it.until_closed() == ""
            assert (it.relay.up.bytes, it.relay.down.bytes) == (len(sent_up), len(sent_down))

    asyncio.run(scenario())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    down=chunks,
    cut=st.integers(0, 40),
    who=st.sampled_from(["client", "server"]),
    sides=st.sampled_from(["", "client", "server", "client server"]),
    seed=st.integers(0, 2**32),
)
def test_whoever_breaks_whenever_the_rest_is_a_prefix_and_a_reset(
    contexts: Contexts, down: list[tuple[int, int]], cut: int, who: str, sides: str, seed: int
) -> None:
    """A reset at any moment: the other side has got a prefix of what was sent, and never takes it for all."""

    async def scenario() -> None:
        async with bench(contexts, sides, 50_000) as it:
            it.start()
            breaks, sees = (it.client, it.server) if who == "client" else (it.server, it.client)
            everything = b"".join(random.Random(seed).randbytes(size) for size, _ in down)

            async def send() -> None:
                with suppress(OSError):
                    await breaks.send(everything)

            sending = asyncio.create_task(send())
            hearing = asyncio.create_task(hear(sees, 0))
            await turns(cut)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            breaks.reset()
            await hearing
            assert sees.ended == "reset"
            assert everything.startswith(bytes(sees.received))
            assert await it.until_closed() != ""

    asyncio.run(scenario())


def test_the_epoll_flags_are_what_they_are_taken_for() -> None:
    assert relaying._READABLE & select.EPOLLIN
    assert relaying._WRITABLE & select.EPOLLOUT
    assert struct.pack("ii", 1, 0) == relaying._RESET_ON_CLOSE
