"""Names to addresses, addresses to sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.errors import Kind, ProxyError
from proxy.loop.background import Background
from proxy.net import dial as connect
from proxy.net import resolver as resolving
from proxy.net.dial import SocketOptions, connect_error, connect_socket, new_socket, open_socket
from proxy.net.resolver import Resolver, SockAddress, interleave
from routing.model import Endpoint

NAME = Endpoint("service.test", 443)
OPTIONS = SocketOptions()
V4, V6 = socket.AF_INET, socket.AF_INET6


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


class Names:
    """Stands in for the threads that call getaddrinfo(3)."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | OSError] = {}
        self.asked: list[str] = []
        self.held: asyncio.Event | None = None

    async def look_up(self, lane: Any, host: str, port: int) -> list[SockAddress]:
        self.asked.append(host)
        if self.held is not None:
            await self.held.wait()
        answer = self.answers[host]
        if isinstance(answer, OSError):
            raise answer
        return [(V6 if ":" in ip else V4, (ip, port)) for ip in answer]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(resolving, "monotonic", clock)
    return clock


@pytest_asyncio.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(resolving._Lane, "look_up", lambda lane, host, port: names.look_up(lane, host, port))
    return names


@pytest_asyncio.fixture
async def background() -> AsyncIterator[Background]:
    failures: list[BaseException] = []
    found = Background(lambda name, error: failures.append(error))
    yield found
    await found.close()
    assert failures == []


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def addresses(found: list[SockAddress]) -> list[str]:
    return [address[0] for _, address in found]


# Resolving.


async def test_the_first_look_up_is_awaited_and_later_ones_return_at_once(
    names: Names, background: Background, clock: Clock
) -> None:
    resolver = Resolver(background)
    names.answers["service.test"] = ["10.0.0.1", "10.0.0.2"]
    assert resolver.known("service.test", 443) is None
    assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1", "10.0.0.2"]
    names.held = asyncio.Event()  # nobody would get an answer now
    assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1", "10.0.0.2"]
    assert names.asked == ["service.test"]


async def test_what_is_old_is_used_and_refreshed_behind_the_scenes(
    names: Names, background: Background, clock: Clock
) -> None:
    resolver = Resolver(background)
    names.answers["service.test"] = ["10.0.0.1"]
    await resolver.resolve("service.test", 443)
    names.answers["service.test"] = ["10.0.0.9"]
    clock.now += 29
    assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1"]
    await turns()
    assert len(names.asked) == 1
    clock.now += 2
    assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1"], "nobody waits for the refresh"
    assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1"]
    await turns()
    assert len(names.asked) == 2, "one refresh at a time"
    assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.9"]


async def test_a_refresh_that_fails_keeps_the_old_addresses(names: Names, background: Background, clock: Clock) -> None:
    resolver = Resolver(background)
    names.answers["service.test"] = ["10.0.0.1"]
    await resolver.resolve("service.test", 443)
    names.answers["service.test"] = socket.gaierror(socket.EAI_AGAIN, "no name server answers")
    for number in range(2, 5):
        clock.now += 31
        assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1"]
        await turns()
        assert len(names.asked) == number, "it is tried again, and not at every dial"
        assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1"]
        await turns()
        assert len(names.asked) == number
    assert resolver.failures == 3


async def test_a_name_that_never_resolved_says_why(names: Names, background: Background) -> None:
    resolver = Resolver(background)
    names.answers["service.test"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(ProxyError) as caught:
        await resolver.resolve("service.test", 443)
    assert caught.value.kind is Kind.DNS
    assert caught.value.details == "service.test does not resolve: Name or service not known"
    assert caught.value.unprocessed
    assert resolver.known("service.test", 443) is None
    names.answers["service.test"] = ["10.0.0.1"]
    assert addresses(await resolver.resolve("service.test", 443)) == ["10.0.0.1"], "a failure is not remembered"


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "x..test", "\udcff.test"])
async def test_what_is_no_name_at_all_is_an_error_not_a_crash(host: str, background: Background) -> None:
    with pytest.raises(ProxyError, match="does not resolve"):
        await Resolver(background).resolve(host, 443)


@pytest.mark.parametrize(("host", "family"), [("192.0.2.7", V4), ("2001:db8::7", V6), ("::1", V6)])
async def test_literals_need_no_resolver(names: Names, background: Background, host: str, family: int) -> None:
    resolver = Resolver(background)
    assert resolver.known(host, 443) == [(family, (host, 443))]
    assert await resolver.resolve(host, 443) == [(family, (host, 443))]
    assert names.asked == []


async def test_ports_are_their_own(names: Names, background: Background) -> None:
    resolver = Resolver(background)
    names.answers["service.test"] = ["10.0.0.1"]
    assert (await resolver.resolve("service.test", 443))[0][1] == ("10.0.0.1", 443)
    assert (await resolver.resolve("service.test", 80))[0][1] == ("10.0.0.1", 80)


async def test_a_flood_of_addresses_is_cut(names: Names, background: Background) -> None:
    names.answers["service.test"] = [f"10.0.{n // 250}.{n % 250}" for n in range(1000)]
    assert len(await Resolver(background).resolve("service.test", 443)) == 16


# Background.


async def test_background_reports_what_was_raised_and_cancels_the_rest() -> None:
    failures: list[tuple[str, str]] = []
    background = Background(lambda name, error: failures.append((name, str(error))))
    ended: list[str] = []

    async def fail() -> None:
        raise ValueError("bad")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")

    background.start(fail(), "failing")
    background.start(wait(), "waiting")
    await turns()
    assert failures == [("failing", "bad")]
    await background.close()
    assert ended == ["waiting"]
    assert failures == [("failing", "bad")]


# Connecting.


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


class Stage:
    """Stands in for connecting one address: what becomes of each, and when it was begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.outcomes: dict[str, asyncio.Future[socket.socket]] = {}
        self.cancelled: list[str] = []
        monkeypatch.setattr(connect, "_connect_one", self.connect)

    async def connect(self, address: SockAddress, _: SocketOptions) -> socket.socket:
        ip = address[1][0]
        self.begun.append(ip)
        outcome = self.outcomes[ip] = asyncio.get_running_loop().create_future()
        try:
            return await outcome
        except asyncio.CancelledError:
            self.cancelled.append(ip)
            raise

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.begun) < count:
                await asyncio.sleep(0.001)

    def fail(self, ip: str, number: int = errno.ECONNREFUSED) -> None:
        self.outcomes[ip].set_exception(OSError(number, os.strerror(number)))

    def win(self, ip: str) -> socket.socket:
        sock = socket.socket()
        self.outcomes[ip].set_result(sock)
        return sock


def at(*ips: str) -> list[SockAddress]:
    return [(V6 if ":" in ip else V4, (ip, 443)) for ip in ips]


def test_families_take_turns() -> None:
    assert addresses(interleave(at("::1", "::2", "::3", "1.1.1.1"))) == ["::1", "1.1.1.1", "::2", "::3"]
    assert addresses(interleave(at("1.1.1.1", "::1", "::2"))) == ["1.1.1.1", "::1", "::2"]
    assert addresses(interleave(at("1.1.1.1", "2.2.2.2"))) == ["1.1.1.1", "2.2.2.2"]


async def test_the_next_address_starts_when_the_first_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_S", 0.01)
    stage = Stage(monkeypatch)
    task = asyncio.create_task(connect_socket(NAME, at("::1", "::2", "1.1.1.1"), OPTIONS))
    await stage.until(2)
    assert stage.begun[:2] == ["::1", "1.1.1.1"]
    won = stage.win("1.1.1.1")
    assert await task is won
    await turns()
    assert stage.cancelled[0] == "::1"
    won.close()


async def test_the_next_address_starts_at_once_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_S", 3600.0)
    stage = Stage(monkeypatch)
    task = asyncio.create_task(connect_socket(NAME, at("1.1.1.1", "2.2.2.2", "3.3.3.3"), OPTIONS))
    await stage.until(1)
    stage.fail("1.1.1.1")
    await stage.until(2)
    stage.fail("2.2.2.2")
    await stage.until(3)
    won = stage.win("3.3.3.3")
    assert await task is won
    won.close()


async def test_when_all_fail_the_last_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    task = asyncio.create_task(connect_socket(NAME, at("1.1.1.1", "2.2.2.2"), OPTIONS))
    await stage.until(1)
    stage.fail("1.1.1.1", errno.ECONNREFUSED)
    await stage.until(2)
    stage.fail("2.2.2.2", errno.ENETUNREACH)
    with pytest.raises(ProxyError) as caught:
        await task
    assert caught.value.kind is Kind.UNREACHABLE
    assert caught.value.details == "service.test:443: Network is unreachable"


async def test_of_two_that_connect_at_once_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_S", 0.01)
    stage = Stage(monkeypatch)
    task = asyncio.create_task(connect_socket(NAME, at("1.1.1.1", "2.2.2.2"), OPTIONS))
    await stage.until(2)
    both = [stage.win("1.1.1.1"), stage.win("2.2.2.2")]
    won = await task
    await turns()
    assert won in both
    assert sorted(sock.fileno() >= 0 for sock in both) == [False, True]
    won.close()


async def test_giving_up_leaves_no_dial_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "ATTEMPT_DELAY_S", 0.01)
    stage = Stage(monkeypatch)
    task = asyncio.create_task(connect_socket(NAME, at("1.1.1.1", "2.2.2.2"), OPTIONS))
    await stage.until(2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await turns()
    assert sorted(stage.cancelled) == ["1.1.1.1", "2.2.2.2"]


async def test_a_socket_is_connected_and_timed(listener: socket.socket, background: Background, names: Names) -> None:
    port = listener.getsockname()[1]
    names.answers["service.test"] = ["127.0.0.1"]
    sock, dns_s, tcp_s = await open_socket(Endpoint("service.test", port), Resolver(background), OPTIONS)
    with closing(sock):
        assert sock.getpeername() == ("127.0.0.1", port)
        assert sock.gettimeout() == 0.0
        assert dns_s >= 0.0
        assert tcp_s >= 0.0


async def test_a_dead_address_does_not_hide_a_live_one(
    listener: socket.socket, background: Background, names: Names
) -> None:
    names.answers["service.test"] = ["127.0.0.9", "127.0.0.1"]  # nothing listens at the first
    endpoint = Endpoint("service.test", listener.getsockname()[1])
    sock, _, _ = await open_socket(endpoint, Resolver(background), OPTIONS)
    with closing(sock):
        assert sock.getpeername()[0] == "127.0.0.1"


async def test_a_refused_connection_says_so(refusing: int, background: Background) -> None:
    with pytest.raises(ProxyError) as caught:
        await open_socket(Endpoint("127.0.0.1", refusing), Resolver(background), OPTIONS)
    assert caught.value.kind is Kind.REFUSED
    assert caught.value.details.startswith(f"127.0.0.1:{refusing}: ")
    assert caught.value.unprocessed


async def test_a_refused_connection_is_told_in_the_systems_words(refusing: int, background: Background) -> None:
    with pytest.raises(ProxyError) as caught:
        await open_socket(Endpoint("127.0.0.1", refusing), Resolver(background), OPTIONS)
    assert caught.value.details == f"127.0.0.1:{refusing}: Connection refused"


async def test_a_unix_socket(tmp_path: Path, background: Background) -> None:
    path = str(tmp_path / "app.sock")
    with pytest.raises(ProxyError, match="No such file"):
        await open_socket(Endpoint("", path=path), Resolver(background), OPTIONS)
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(path)
        server.listen()
        sock, _, _ = await open_socket(Endpoint("", path=path), Resolver(background), OPTIONS)
        sock.close()


def test_the_options_reach_the_socket() -> None:
    with closing(new_socket(V4, SocketOptions(keepalive_s=9.0, user_timeout_s=1.5))) as sock:
        assert sock.gettimeout() == 0.0
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 9
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 3
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
    with closing(new_socket(V4, SocketOptions(keepalive_s=0.0))) as sock:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    with closing(new_socket(V4, SocketOptions(keepalive_s=0.2))) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNREFUSED, Kind.REFUSED),
        (errno.ENETUNREACH, Kind.UNREACHABLE),
        (errno.EHOSTUNREACH, Kind.UNREACHABLE),
        (errno.ETIMEDOUT, Kind.CONNECT_TIMEOUT),
        (errno.EACCES, Kind.REFUSED),
    ],
)
def test_what_connect_said_decides_what_the_client_is_told(number: int, kind: Kind) -> None:
    error = connect_error(NAME, OSError(number, os.strerror(number)))
    assert error.kind is kind
    assert error.unprocessed
    assert error.details.startswith("service.test:443: ")
