"""Names to addresses by the system's resolver, remembered: a name that resolved before never holds anybody up for long.

Rules:
- A look-up is shared by all who wait for the name. It runs in a thread: in one *lane* where the name's last look-up
  went well, in another where it did not or is the first, so that names which do not answer hold up only each other.
- What is known is asked again every `refresh_s`, whoever dials or not (`known` is called once a second for every
  endpoint). A refresh that fails, or brings nothing, keeps the addresses.
- An answer older than twice that is not used unasked: a dial waits for the look-up that is under way, for half of its
  time-out at most, and then takes what there is.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from proxy.errors import Kind, ProxyError

if TYPE_CHECKING:
    from proxy.loop.background import Background

SockAddress: TypeAlias = tuple[socket.AddressFamily, Any]
Name: TypeAlias = tuple[str, int]
"""Host and port."""

REFRESH_S: Final = 30.0
ADDRESSES_MAX: Final = 16
THREADS: Final = 16
"""In each lane: getaddrinfo(3) holds a thread for as long as name servers don't answer, 5 to 30 s."""


@dataclass(slots=True)
class _Answer:
    addresses: list[SockAddress]
    asked_at: float  # when it was confirmed, or a refresh failed
    well: bool = True  # the last look-up went well


class Resolver:
    """One worker's names. `failures`: look-ups that failed."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._answers: dict[Name, _Answer] = {}
        self._asking: dict[Name, asyncio.Task[None]] = {}
        self._well = _Lane("names")
        self._unsure = _Lane("unsure names")
        self.failures = 0
        self._faults: dict[Name, ProxyError] = {}

    async def resolve(
        self, host: str, port: int, refresh_s: float = REFRESH_S, patience_s: float = 1.0
    ) -> list[SockAddress]:
        """Addresses of `host`, in the resolver's order. Raises ProxyError(DNS) where none was ever known. `patience_s`:
        how long to wait for news where the answer is old.
        """
        found = self.known(host, port, refresh_s)
        name = (host, port)
        if found is None:
            await self._ask(name)
            answer = self._answers.get(name)
            if answer is None:
                raise self._faults[name]
            return answer.addresses
        asking = self._asking.get(name)
        if asking is not None and self.is_old(host, port, refresh_s):
            await asyncio.wait([asking], timeout=patience_s)
            return self._answers[name].addresses
        return found

    def known(self, host: str, port: int, refresh_s: float = REFRESH_S) -> list[SockAddress] | None:
        """What is known without waiting; None where the name was never resolved. Starts a refresh where it is due."""
        literal = _literal(host, port)
        if literal is not None:
            return [literal]
        answer = self._answers.get((host, port))
        if answer is None:
            return None
        if monotonic() - answer.asked_at > refresh_s:
            self._start((host, port))
        return answer.addresses

    def is_old(self, host: str, port: int, refresh_s: float = REFRESH_S) -> bool:
        """Whether a dial waits for the look-up that is under way."""
        answer = self._answers.get((host, port))
        return answer is not None and monotonic() - answer.asked_at > 2 * refresh_s

    async def _ask(self, name: Name) -> None:
        await asyncio.wait([self._start(name)])

    def _start(self, name: Name) -> asyncio.Task[None]:
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = self._background.start(self._refresh(name), f"resolve {name[0]}")
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        return task

    async def _refresh(self, name: Name) -> None:
        answer = self._answers.get(name)
        try:
            addresses = await self._look_up(*name, well=answer is not None and answer.well)
        except ProxyError as error:
            self._faults[name] = error
            if answer is not None:
                answer.asked_at = monotonic()
                answer.well = False
        else:
            self._answers[name] = _Answer(addresses[:ADDRESSES_MAX], monotonic())

    async def _look_up(self, host: str, port: int, *, well: bool = False) -> list[SockAddress]:
        lane = self._well if well else self._unsure
        try:
            found = await lane.look_up(host, port)
        except (OSError, UnicodeError) as error:
            self.failures += 1
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ProxyError(Kind.DNS, f"{host} does not resolve: {text}", unprocessed=True) from error
        return found


class _Lane:
    """Threads that look up names, started as they are needed. Daemons: a name server that is silent must not hold up
    the program's end, as an executor's threads would.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._wanted: SimpleQueue[tuple[asyncio.Future[list[SockAddress]], str, int]] = SimpleQueue()
        self._threads = 0
        self._under_way = 0

    async def look_up(self, host: str, port: int) -> list[SockAddress]:
        """Raises what getaddrinfo does."""
        future: asyncio.Future[list[SockAddress]] = asyncio.get_running_loop().create_future()
        self._under_way += 1
        if self._threads < min(self._under_way, THREADS):
            self._threads += 1
            threading.Thread(target=self._run, args=(self._wanted,), name=self._name, daemon=True).start()
        self._wanted.put((future, host, port))
        try:
            return await future
        finally:
            self._under_way -= 1

    @staticmethod
    def _run(wanted: SimpleQueue[tuple[asyncio.Future[list[SockAddress]], str, int]]) -> None:
        while True:
            future, host, port = wanted.get()
            try:
                answer: list[SockAddress] | Exception = _system_look_up(host, port)
            except Exception as error:
                answer = error
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                future.get_loop().call_soon_threadsafe(_settle, future, answer)


def _settle(future: asyncio.Future[list[SockAddress]], answer: list[SockAddress] | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _system_look_up(host: str, port: int) -> list[SockAddress]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(socket.AddressFamily(family), address) for family, _, _, _, address in found]


def _literal(host: str, port: int) -> SockAddress | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return family, (host, port)
    return None


def interleave(addresses: list[SockAddress]) -> list[SockAddress]:
    """Alternate the address families, the first one's first (RFC 8305 section 4)."""
    first = [a for a in addresses if a[0] == addresses[0][0]]
    second = [a for a in addresses if a[0] != addresses[0][0]]
    mixed = [address for pair in zip(first, second, strict=False) for address in pair]
    shorter = min(len(first), len(second))
    return mixed + first[shorter:] + second[shorter:]
