"""Listening sockets: bound here, taken over from systemd, or from the program that this one replaces.

A program that starts another on SIGUSR2 passes its sockets as `ONETRIP_SOCKETS={"name": fd, …}` and a pipe as
`ONETRIP_READY_FD`; systemd passes `LISTEN_FDS` with `LISTEN_FDNAMES` (sd_listen_fds(3)). Such a socket is used where
its name is a listener's (or `admin`): systemd's whatever its address, the predecessor's where the config still has the
address that it is bound to. `ONETRIP_INSTANCE` is the predecessor's name, which this program goes on with.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.config import Address, Config, ConfigDiff

SOCKETS_VARIABLE: Final = "ONETRIP_SOCKETS"
READY_VARIABLE: Final = "ONETRIP_READY_FD"
INSTANCE_VARIABLE: Final = "ONETRIP_INSTANCE"
INSTANCE: Final = os.environ.pop(INSTANCE_VARIABLE, "") or os.urandom(4).hex()
"""What tells this program from others of its kind (`cdn-loop`). Made before workers are forked: they share it."""
ADMIN: Final = "admin"
BACKLOG: Final = 4096
FAST_OPEN_QUEUE: Final = 1024
FDS_MAX: Final = 253  # in one message: SCM_MAX_FD
_LISTEN_FDS_START: Final = 3
_NAMES_MAX: Final = 2**20


def addresses(config: Config) -> dict[str, tuple[Address, bool]]:
    """Name to (address, fast open) of every socket that the config asks for."""
    wanted = {one.name: (one.address, one.fast_open) for one in config.listeners}
    wanted[ADMIN] = (config.admin.address, False)
    return wanted


def inherits() -> bool:
    """Whether sockets were passed to this program."""
    return SOCKETS_VARIABLE in os.environ or "LISTEN_FDS" in os.environ


def open_sockets(
    config: Config, bound: dict[tuple[Address, bool], socket.socket] | None = None
) -> dict[str, socket.socket]:
    """Every socket that the config asks for: inherited, among those `bound` already, or bound now. The others are
    closed. Raises OSError that says which.
    """
    bound = dict(bound or {})
    handed_over, activated = _handed_over(), _activated()
    found: dict[str, socket.socket] = {}
    try:
        for name, (address, fast_open) in addresses(config).items():
            taken = activated.pop(name, None)
            if taken is None and (before := handed_over.get(name)) is not None and _is_bound_to(before, address):
                taken = handed_over.pop(name)
            if taken is None:
                taken = bound.pop((address, fast_open), None)
            found[name] = taken if taken is not None else bind(address, fast_open)
    except OSError:
        close_all(found.values())
        raise
    finally:
        close_all((*handed_over.values(), *activated.values(), *bound.values()))
    return found


def _is_bound_to(sock: socket.socket, address: Address) -> bool:
    """Port 0 is any port."""
    bound = sock.getsockname()
    if address.path or not isinstance(bound, tuple):
        return bool(bound == address.path)
    family, _, _, _, target = _resolved(address)
    return bool(family == sock.family and bound[0] == target[0] and bound[1] == (address.port or bound[1]))


def bind(address: Address, fast_open: bool = False, *, beside: bool = False) -> socket.socket:
    """A listening socket. OSError says which address, and what to do. `beside`: another socket of ours, with
    SO_REUSEPORT, may have the port.
    """
    try:
        return _bind(address, fast_open, beside)
    except OSError as error:
        hint = ""
        if isinstance(error, PermissionError) and address.port and address.port < 1024:
            hint = " (ports below 1024 need root or CAP_NET_BIND_SERVICE)"
        raise OSError(f"can't listen on {address}: {error.strerror}{hint}") from error


def again(sock: socket.socket, fast_open: bool) -> socket.socket:
    """The same listening socket for a listener that takes another's place: what waits in its queue stays."""
    found = sock.dup()
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE if fast_open else 0)
    return found


def rebind(address: Address, fast_open: bool, going: Iterable[socket.socket]) -> socket.socket:
    """A listening socket: that of a listener which goes, where it is bound to this very address (a second one could not
    be), else a new one. OSError as of `bind`.
    """
    overlapping = []
    for sock in going:
        if (address.path or address.port) and _is_bound_to(sock, address):
            return again(sock, fast_open)
        if not address.path and sock.family != socket.AF_UNIX and sock.getsockname()[1] == address.port:
            overlapping.append(sock)
    # `0.0.0.0:80` in place of `127.0.0.1:80`, say: for a moment both are bound.
    for sock in overlapping:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        return bind(address, fast_open, beside=bool(overlapping))
    finally:
        for sock in overlapping:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def _bind(address: Address, fast_open: bool, beside: bool) -> socket.socket:
    if address.path:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(address.path).st_mode) and not _answers(address.path):
                os.unlink(address.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        target: object = address.path
    else:
        family, _, _, _, target = _resolved(address)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if fast_open:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)
    try:
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(target)  # type: ignore[arg-type]
        sock.listen(BACKLOG)
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except OSError:
        sock.close()
        raise
    return sock


def _resolved(address: Address) -> Any:
    """The first of getaddrinfo(3)'s answers. OSError where there is none."""
    host = address.host.encode() if address.host.isascii() else address.host  # as text, IDNA's tables are imported
    return socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]


def _answers(path: str) -> bool:
    """Whether another process still listens on this Unix socket."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def _handed_over() -> dict[str, socket.socket]:
    found: dict[str, socket.socket] = {}
    for name, fd in json.loads(os.environ.pop(SOCKETS_VARIABLE, "{}")).items():
        found[name] = _adopt(fd)
    return found


def _activated() -> dict[str, socket.socket]:
    found: dict[str, socket.socket] = {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if os.environ.pop("LISTEN_PID", "") == str(os.getpid()):
        for index in range(count):
            name = names[index] if index < len(names) else ""
            found[name] = _adopt(_LISTEN_FDS_START + index)
    return found


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def environment_for(sockets: dict[str, socket.socket], ready_fd: int) -> tuple[dict[str, str], list[int]]:
    """What a successor needs: its environment's additions, and the descriptors to pass."""
    numbers = json.dumps({name: sock.fileno() for name, sock in sockets.items()})
    return {SOCKETS_VARIABLE: numbers, READY_VARIABLE: str(ready_fd), INSTANCE_VARIABLE: INSTANCE}, [
        *(sock.fileno() for sock in sockets.values()),
        ready_fd,
    ]


def pass_on(channel: socket.socket, sockets: dict[str, socket.socket]) -> bool:
    """Send listening sockets to a worker (a datagram for each `FDS_MAX`). False: it does not take them."""
    items = list(sockets.items())
    try:
        for start in range(0, len(items), FDS_MAX):
            names, socks = zip(*items[start : start + FDS_MAX], strict=True)
            socket.send_fds(channel, [json.dumps(names).encode()], [sock.fileno() for sock in socks])
    except OSError:
        return False
    return True


def take_over(channel: socket.socket, count: int) -> dict[str, socket.socket]:
    """Receive so many of them. Raises OSError."""
    found: dict[str, socket.socket] = {}
    while len(found) < count:
        names, fds, _, _ = socket.recv_fds(channel, _NAMES_MAX, FDS_MAX)
        found |= {name: _adopt(fd) for name, fd in zip(json.loads(names), fds, strict=True)}
    return found


def tell_predecessor() -> None:
    """Started by SIGUSR2: the old program may drain now."""
    fd = os.environ.pop(READY_VARIABLE, "")
    if fd:
        with suppress(OSError):
            os.write(int(fd), b"ready")
            os.close(int(fd))


def notify_systemd(*lines: str) -> None:
    """sd_notify(3), where systemd asked for it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.send("\n".join(lines).encode())


def for_change(
    sockets: dict[str, socket.socket], before: Config, config: Config, change: ConfigDiff
) -> dict[str, socket.socket]:
    """Sockets of listeners that `change` adds or rebinds: where one that goes is bound to the address, the same socket,
    so that no connection is lost between the two. Raises OSError.
    """
    going = [sockets[name] for name in (*change.listeners_removed, *change.listeners_rebound)]
    fresh: dict[str, socket.socket] = {}
    try:
        for name in (*change.listeners_added, *change.listeners_rebound):
            section = config.listener(name)
            if name in change.listeners_rebound and section.address == before.listener(name).address:
                fresh[name] = again(sockets[name], section.fast_open)
            else:
                fresh[name] = rebind(section.address, section.fast_open, going)
    except OSError:
        close_all(fresh.values())
        raise
    return fresh


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close sockets."""
    for sock in sockets:
        sock.close()
