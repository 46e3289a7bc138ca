"""Dialling: names to addresses, addresses to a socket, a socket to a connection that is ready for a request.

These are the coroutines of the data plane: they run once per connection, never per request. A name that resolved
before never holds anybody up again: its addresses are refreshed behind the scenes, and kept when a refresh fails.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from proxy.errors import Kind, ProxyError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from routing.model import Endpoint

SockAddress: TypeAlias = tuple[socket.AddressFamily, Any]

ATTEMPT_DELAY_S: Final = 0.25
"""RFC 8305 section 5: the delay between two connection attempts that race."""
_TCP_FASTOPEN_CONNECT: Final = 30
_ADDRESSES_MAX: Final = 16
_UNREACHABLE: Final = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL))


class Background:
    """Owns tasks: keeps a reference to each until it ends, logs what it raised, cancels the rest at the end."""

    def __init__(self, on_error: Any) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_error = on_error

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a coroutine beside everything else."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(task.get_name(), error)

    async def close(self) -> None:
        """Cancel what still runs, and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class _Answer:
    addresses: list[SockAddress]
    at: float


class Resolver:
    """Names to addresses by the system's resolver, remembered.

    The first look-up of a name is awaited by the dial that needs it; later ones return at once what is known, and
    start a refresh when it is older than `refresh_s`. A failed refresh keeps the old addresses.
    """

    def __init__(self, background: Background, refresh_s: float = 30.0) -> None:
        self._background = background
        self._refresh_s = refresh_s
        self._answers: dict[tuple[str, int], _Answer] = {}
        self._refreshing: set[tuple[str, int]] = set()
        self.failures = 0

    async def resolve(self, host: str, port: int) -> list[SockAddress]:
        """Addresses of `host`, in the resolver's order. Raises ProxyError(DNS) where none was ever known."""
        known = self.known(host, port)
        if known is not None:
            return known
        answer = self._answers[host, port] = _Answer(await self._look_up(host, port), monotonic())
        return answer.addresses

    def known(self, host: str, port: int) -> list[SockAddress] | None:
        """What is known without waiting; None where the name was never resolved. Starts a refresh where it is due."""
        literal = _literal(host, port)
        if literal is not None:
            return [literal]
        key = (host, port)
        answer = self._answers.get(key)
        if answer is None:
            return None
        if monotonic() - answer.at > self._refresh_s and key not in self._refreshing:
            self._refreshing.add(key)
            self._background.start(self._refresh(key), f"resolve {host}")
        return answer.addresses

    async def _refresh(self, key: tuple[str, int]) -> None:
        try:
            self._answers[key] = _Answer(await self._look_up(*key), monotonic())
        except ProxyError:
            self._answers[key].at = monotonic()
        finally:
            self._refreshing.discard(key)

    async def _look_up(self, host: str, port: int) -> list[SockAddress]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self.failures += 1
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ProxyError(Kind.DNS, f"{host} does not resolve: {text}", unprocessed=True) from error
        return [(socket.AddressFamily(family), address) for family, _, _, _, address in found[:_ADDRESSES_MAX]]


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


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What every upstream socket gets. `fast_open`: connecting may wait for the first bytes, which ride in the SYN
    (RFC 7413): for sockets whose owner speaks first, as in TLS. `keepalive_s`: idle seconds before TCP's own probes,
    which find dead paths before a request does.
    """

    keepalive_s: float = 15.0
    fast_open: bool = False
    user_timeout_s: float = 0.0


def new_socket(family: socket.AddressFamily, options: SocketOptions) -> socket.socket:
    """A non-blocking socket for an upstream connection, with its options set."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if family == socket.AF_UNIX:
        return sock
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.keepalive_s > 0:
        interval = max(1, round(options.keepalive_s / 3))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(options.keepalive_s)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if options.user_timeout_s > 0:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(options.user_timeout_s * 1000))
    if options.fast_open:
        with suppress(OSError):  # a kernel without it dials the ordinary way
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
    return sock


def is_deferred(sock: socket.socket) -> bool:
    """Whether a socket that connect(2) has let pass is not connected yet: Fast Open waits for the first bytes."""
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def connect_error(endpoint: Endpoint, error: OSError) -> ProxyError:
    """What a failed connect(2) means. Nothing of a request was sent."""
    text = f"{endpoint}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno == errno.ECONNREFUSED:
        return ProxyError(Kind.REFUSED, text, unprocessed=True)
    if error.errno in _UNREACHABLE:
        return ProxyError(Kind.UNREACHABLE, text, unprocessed=True)
    if error.errno == errno.ETIMEDOUT:
        return ProxyError(Kind.CONNECT_TIMEOUT, text, unprocessed=True)
    return ProxyError(Kind.REFUSED, text, unprocessed=True)


async def _connect_one(address: SockAddress, options: SocketOptions) -> socket.socket:
    sock = new_socket(address[0], options)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address[1])
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_socket(endpoint: Endpoint, addresses: list[SockAddress], options: SocketOptions) -> socket.socket:
    """A connected, non-blocking socket to the first address that answers.

    Several addresses race, each starting `ATTEMPT_DELAY_S` after the one before or as soon as that one failed (RFC
    8305 section 5). Raises ProxyError with the last failure. The caller bounds the time by cancelling.
    """
    if len(addresses) == 1:
        try:
            return await _connect_one(addresses[0], options)
        except OSError as error:
            raise connect_error(endpoint, error) from error
    loop = asyncio.get_running_loop()
    remaining = interleave(addresses)
    racing: set[asyncio.Task[socket.socket]] = set()
    failure: OSError | None = None
    try:
        while remaining or racing:
            if remaining:
                racing.add(loop.create_task(_connect_one(remaining.pop(0), options), name=f"connect {endpoint}"))
            done, racing = await asyncio.wait(
                racing, timeout=ATTEMPT_DELAY_S if remaining else None, return_when=asyncio.FIRST_COMPLETED
            )
            winner: socket.socket | None = None
            for task in done:
                problem = task.exception()
                if problem is None:
                    if winner is not None:
                        winner.close()
                    winner = task.result()
                elif isinstance(problem, OSError):
                    failure = problem
                else:
                    raise problem
            if winner is not None:
                return winner
    finally:
        for task in racing:
            task.cancel()
            task.add_done_callback(_close_late_winner)
    assert failure is not None
    raise connect_error(endpoint, failure)


def _close_late_winner(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def open_socket(
    endpoint: Endpoint, resolver: Resolver, options: SocketOptions
) -> tuple[socket.socket, float, float]:
    """A connected socket to the endpoint, and the seconds that the name and the connect took."""
    started = monotonic()
    if endpoint.path:
        addresses: list[SockAddress] = [(socket.AF_UNIX, endpoint.path)]
    else:
        addresses = await resolver.resolve(endpoint.host, endpoint.port)
    resolved = monotonic()
    sock = await connect_socket(endpoint, addresses, options)
    return sock, resolved - started, monotonic() - resolved
