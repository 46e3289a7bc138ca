"""Dialling: an endpoint's name to addresses, addresses to a connected socket.

These are coroutines: they run once per connection, never per request.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.errors import Kind, ProxyError

from .resolver import REFRESH_S, interleave

if TYPE_CHECKING:
    from routing.model import Endpoint

    from .resolver import Resolver, SockAddress

ATTEMPT_DELAY_S: Final = 0.25
"""RFC 8305 section 5: the delay between two connection attempts that race."""
_TCP_FASTOPEN_CONNECT: Final = 30
_UNREACHABLE: Final = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL))


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
    endpoint: Endpoint,
    resolver: Resolver,
    options: SocketOptions,
    refresh_s: float = REFRESH_S,
    connect_s: float = 2.0,
) -> tuple[socket.socket, float, float]:
    """A connected socket to the endpoint, and the seconds that the name and the connect took. `connect_s` is what the
    caller allows for all of it: an old answer's refresh is waited for half as long.
    """
    started = monotonic()
    if endpoint.path:
        addresses: list[SockAddress] = [(socket.AF_UNIX, endpoint.path)]
    else:
        addresses = await resolver.resolve(endpoint.host, endpoint.port, refresh_s, connect_s / 2)
    resolved = monotonic()
    sock = await connect_socket(endpoint, addresses, options)
    return sock, resolved - started, monotonic() - resolved
