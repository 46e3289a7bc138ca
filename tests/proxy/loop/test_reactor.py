"""One epoll for many descriptors: who is told, who no longer is."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_asyncio

from proxy.loop.reactor import BROKEN, EVENTS_MAX, READ, WRITE, Reactor
from proxy.loop.turn import Turn


class Watcher:
    def __init__(self, do: Any = None) -> None:
        self.told: list[tuple[int, int]] = []
        self.do = do

    def on_event(self, fd: int, events: int) -> None:
        self.told.append((fd, events))
        if self.do is not None:
            self.do(fd, events)


class Sockets:
    """Pairs that are closed in the end."""

    def __init__(self) -> None:
        self.all: list[socket.socket] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        one, other = socket.socketpair()
        one.setblocking(False)
        other.setblocking(False)
        self.all += [one, other]
        return one, other


@pytest_asyncio.fixture
async def sockets() -> AsyncIterator[Sockets]:
    found = Sockets()
    yield found
    for sock in found.all:
        sock.close()


@pytest_asyncio.fixture
async def turn() -> Turn:
    return Turn(asyncio.get_running_loop())


@pytest_asyncio.fixture
async def reactor(turn: Turn) -> AsyncIterator[Reactor]:
    found = Reactor(asyncio.get_running_loop(), turn)
    yield found
    found.close()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


async def test_a_watcher_is_told_what_it_asked_for_while_it_lasts(reactor: Reactor, sockets: Sockets) -> None:
    one, other = sockets.pair()
    watcher = Watcher()
    reactor.watch(one.fileno(), READ, watcher)
    await turns()
    assert watcher.told == []
    other.send(b"x")
    await turns(3)
    assert len(watcher.told) >= 2, "level-triggered: told again until it is read"
    assert all(fd == one.fileno() and events & READ for fd, events in watcher.told)
    one.recv(10)
    await turns(3)
    before = len(watcher.told)
    await turns()
    assert len(watcher.told) == before


async def test_watching_for_something_else(reactor: Reactor, sockets: Sockets) -> None:
    one, other = sockets.pair()
    watcher = Watcher()
    reactor.watch(one.fileno(), READ, watcher)
    reactor.watch(one.fileno(), WRITE, watcher)
    other.send(b"x")
    await turns(3)
    assert watcher.told
    assert {events for _, events in watcher.told} == {WRITE}


async def test_a_hang_up_is_told_unasked(reactor: Reactor, sockets: Sockets) -> None:
    one, other = sockets.pair()
    watcher = Watcher(lambda fd, events: reactor.forget(fd))
    reactor.watch(one.fileno(), 0, watcher)
    other.close()
    await turns()
    assert len(watcher.told) == 1
    assert watcher.told[0][1] & BROKEN


async def test_handing_over_keeps_the_events(reactor: Reactor, sockets: Sockets) -> None:
    one, other = sockets.pair()
    before, after = Watcher(), Watcher(lambda fd, events: one.recv(10))
    reactor.watch(one.fileno(), READ, before)
    reactor.hand_over(one.fileno(), after)
    other.send(b"x")
    await turns()
    assert before.told == []
    assert len(after.told) == 1


async def test_forgetting_and_closing_are_idempotent(reactor: Reactor, sockets: Sockets) -> None:
    one, other = sockets.pair()
    watcher = Watcher()
    reactor.watch(one.fileno(), READ, watcher)
    other.send(b"x")
    reactor.forget(one.fileno())
    reactor.forget(one.fileno())
    reactor.closing(one.fileno())
    await turns()
    assert watcher.told == []
    reactor.watch(one.fileno(), READ, watcher)
    await turns()
    assert watcher.told


async def test_a_closed_descriptor_takes_its_watch_along(reactor: Reactor, sockets: Sockets) -> None:
    one, _ = sockets.pair()
    fd = one.fileno()
    reactor.watch(fd, READ, Watcher())
    reactor.closing(fd)
    one.close()
    again = os.dup(sockets.pair()[0].fileno())
    try:
        reactor.watch(again, READ, Watcher())  # FileExistsError, if the kernel still had the number
    finally:
        reactor.closing(again)
        os.close(again)


async def test_events_of_a_descriptor_whose_number_was_reused_are_dropped(reactor: Reactor, sockets: Sockets) -> None:
    """A connection closes another one that has events in the same round, and opens a new one with its number."""
    (one, a), (two, b) = sockets.pair(), sockets.pair()
    fresh = Watcher()
    numbers: list[int] = []

    def replace(fd: int, events: int) -> None:
        if numbers:
            return
        victim = two if fd == one.fileno() else one
        number = victim.fileno()
        reactor.closing(number)
        victim.close()
        spare, _ = sockets.pair()
        assert spare.fileno() == number, "the kernel gives the lowest number that is free"
        numbers.append(number)
        reactor.watch(number, READ, fresh)

    replacing = Watcher(replace)
    reactor.watch(one.fileno(), READ, replacing)
    reactor.watch(two.fileno(), READ, replacing)
    a.send(b"x")
    b.send(b"x")
    await turns()
    assert numbers
    assert fresh.told == []


async def test_one_that_raises_does_not_cost_the_others_their_events(
    reactor: Reactor, sockets: Sockets, turn: Turn
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    pairs = [sockets.pair() for _ in range(3)]

    def fail(fd: int, events: int) -> None:
        raise RuntimeError("ours")

    failing = Watcher(fail)
    others = [Watcher(lambda fd, events, sock=sock: sock.recv(10)) for sock, _ in pairs[1:]]
    for (sock, _), watcher in zip(pairs, [failing, *others], strict=True):
        reactor.watch(sock.fileno(), READ, watcher)
    for _, outside in pairs:
        outside.send(b"x")
    await turns()
    assert [len(other.told) for other in others] == [1, 1]
    assert len(failing.told) == 1, "it is called no more, however long its descriptor stays readable"
    assert [str(context["exception"]) for context in reported] == ["ours"]
    assert turn.depth == 0


async def test_more_descriptors_than_one_round_takes(reactor: Reactor, sockets: Sockets) -> None:
    count = EVENTS_MAX + 50
    told: set[int] = set()
    for _ in range(count):
        one, other = sockets.pair()
        other.send(b"x")

        def read(fd: int, events: int, sock: socket.socket = one) -> None:
            sock.recv(10)
            told.add(fd)

        reactor.watch(one.fileno(), READ, Watcher(read))
    await turns()
    assert len(told) == count
    assert str(count) in repr(reactor)


async def test_closing_the_reactor_within_a_round(sockets: Sockets, turn: Turn) -> None:
    reactor = Reactor(asyncio.get_running_loop(), turn)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    watchers = []
    for _ in range(2):
        one, other = sockets.pair()
        other.send(b"x")
        watchers.append(Watcher(lambda fd, events: reactor.close()))
        reactor.watch(one.fileno(), READ, watchers[-1])
    await turns()
    assert sum(len(watcher.told) for watcher in watchers) == 1
    assert reported == []


async def test_writes_of_a_round_leave_when_it_ends(reactor: Reactor, sockets: Sockets, turn: Turn) -> None:
    flushed: list[int] = []

    class Buffered:
        def flush(self) -> None:
            flushed.append(turn.depth)

    one, other = sockets.pair()

    def write(fd: int, events: int) -> None:
        one.recv(10)
        turn.add(Buffered())
        assert flushed == []

    reactor.watch(one.fileno(), READ, Watcher(write))
    other.send(b"x")
    await turns()
    assert flushed == [0]


class Relay:
    def __init__(self, told: list[Relay], fails: bool = False) -> None:
        self.told = told
        self.fails = fails

    def on_rested(self) -> None:
        self.told.append(self)
        if self.fails:
            raise AssertionError("a bug")


async def test_who_rests_is_told_once_and_soon(reactor: Reactor) -> None:
    told: list[Relay] = []
    one, other = Relay(told), Relay(told)
    reactor.rest(one)
    reactor.rest(other)
    assert not told
    await until(lambda: len(told) == 2)
    assert told == [one, other]
    reactor.rest(other)
    await until(lambda: len(told) == 3)
    assert told == [one, other, other]


async def test_one_that_fails_does_not_keep_the_others_from_going_on(reactor: Reactor) -> None:
    told: list[Relay] = []
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    reactor.rest(Relay(told, fails=True))
    reactor.rest(last := Relay(told))
    await until(lambda: last in told)
    assert [str(report["exception"]) for report in reports] == ["a bug"]
