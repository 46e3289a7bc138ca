"""Network namespaces and TUN devices by plain system calls: no `ip`, no names, nothing left behind.

A namespace made here has no name in /run/netns: it lives as long as a descriptor or a process of it does. When the
process that made it ends, by whatever signal, the kernel removes namespace, device and addresses. Nothing of the host's
own network is touched.

Region number R (0 is home) has the addresses 10.66.R.1, 10.66.R.2, … on its device `wan0`, whose route covers
10.66.0.0/16.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000
CLONE_NEWUSER: Final = 0x10000000

_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_UP: Final = 0x1
_TUNSETIFF: Final = 0x400454CA
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_RTM_NEWLINK: Final = 16
_RTM_NEWROUTE: Final = 24
_NLM_F_REQUEST_ACK: Final = 0x005
_NLM_F_REPLACE_CREATE: Final = 0x500
_DEVICE: Final = "wan0"
_TX_QUEUE_PACKETS: Final = 10_000  # a burst must wait for the carrier, not be dropped before it

SYSCTLS: Final = {"net.ipv4.tcp_fastopen": "3"}  # Fast Open for clients and servers that ask for it
"""Set in every namespace, unless the lab's user says otherwise.

Everything else is as the kernel makes a new namespace.
"""

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(OSError):
    """The kernel, or the rights of this user, do not allow it; the text says what was tried."""


def region_address(region: int, index: int) -> str:
    """The address of endpoint `index` (from 0) in region number `region`."""
    return f"10.66.{region}.{index + 1}"


def unshare(flags: int) -> None:
    """unshare(2). Raises NamespaceError."""
    if _libc.unshare(flags) != 0:
        error = ctypes.get_errno()
        raise NamespaceError(error, f"unshare({flags:#x}): {os.strerror(error)}")


def enter(descriptor: int) -> None:
    """setns(2) into a network namespace, for this thread. Raises NamespaceError."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise NamespaceError(error, f"setns: {os.strerror(error)}")


def become_root_of_a_user_namespace() -> None:
    """What `unshare -Ur` does: gives an ordinary user the rights that the rest of this module needs.

    Raises NamespaceError.
    """
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise NamespaceError(error.errno, f"user namespace: {error}") from error


def make_region(region: int, addresses: int, congestion: str) -> tuple[int, int]:
    """Make a namespace, move this process into it, and give it its device.

    Returns (namespace, TUN) descriptors, the TUN non-blocking.

    Raises NamespaceError.
    """
    unshare(CLONE_NEWNET)
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise NamespaceError(error.errno, f"/dev/net/tun: {error.strerror}") from error
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _bring_up(control, "lo")
        for index in range(addresses):
            # The old way of giving a device several addresses: an alias for each. A /16 mask makes the route to all
            # regions.
            alias = _DEVICE if index == 0 else f"{_DEVICE}:{index}"
            _set_address(control, _SIOCSIFADDR, alias, region_address(region, index))
            _set_address(control, _SIOCSIFNETMASK, alias, "255.255.0.0")
        _lengthen_queue()
        _bring_up(control, _DEVICE)
    _choose_congestion_control(region, congestion)
    return namespace, tun


def set_sysctls(sysctls: dict[str, str]) -> list[str]:
    """Set `SYSCTLS`, overridden by `sysctls`, in this process's namespace.

    Returns those of SYSCTLS that could not be set.

    /proc/sys is read-only in many containers: only what was asked for is worth failing over. Raises NamespaceError
    then.
    """
    refused = []
    for name, value in {**SYSCTLS, **sysctls}.items():
        try:
            Path("/proc/sys", *name.split(".")).write_text(value)
        except OSError as error:
            if name in sysctls:
                raise NamespaceError(error.errno, f"sysctl {name}={value}: {error.strerror}") from error
            refused.append(f"{name}={value}")
    return refused


def _bring_up(control: socket.socket, device: str) -> None:
    request = struct.pack("16sH22x", device.encode(), 0)
    (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", device.encode(), flags | _IFF_UP))


def _lengthen_queue() -> None:
    """The device's queue; the ioctl for it wants the rights of the whole machine's root."""
    link = struct.pack("BxHiII", 0, 0, socket.if_nametoindex(_DEVICE), 0, 0)
    queue_length = _attribute(13, struct.pack("I", _TX_QUEUE_PACKETS))  # IFLA_TXQLEN
    _netlink("txqueuelen", _RTM_NEWLINK, 0, link + queue_length)


def _choose_congestion_control(region: int, name: str) -> None:
    """Replace the route between regions by one that names the congestion control of connections over it.

    The sysctl of a namespace takes only what the host's administrator allowed; a route takes any.
    """
    route = struct.pack("BBBBBBBBI", socket.AF_INET, 16, 0, 0, 254, 4, 253, 1, 0)  # main table, static, link, unicast
    algorithm = _attribute(16, name.encode() + b"\0")  # RTAX_CC_ALGO
    attributes = (
        (1, socket.inet_aton("10.66.0.0")),  # RTA_DST
        (4, struct.pack("I", socket.if_nametoindex(_DEVICE))),  # RTA_OIF
        (7, socket.inet_aton(region_address(region, 0))),  # RTA_PREFSRC
        (8, algorithm),  # RTA_METRICS
    )
    body = route + b"".join(_attribute(kind, value) for kind, value in attributes)
    _netlink(f"congestion control {name}", _RTM_NEWROUTE, _NLM_F_REPLACE_CREATE, body)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _netlink(what: str, kind: int, flags: int, body: bytes) -> None:
    """One rtnetlink(7) request, and its acknowledgement."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(struct.pack("IHHII", 16 + len(body), kind, _NLM_F_REQUEST_ACK | flags, 1, 0) + body)
        (error,) = struct.unpack_from("i", netlink.recv(4096), 16)
    if error:
        raise NamespaceError(-error, f"{what}: {os.strerror(-error)}")


def _set_address(control: socket.socket, request: int, device: str, address: str) -> None:
    socket_address = struct.pack("H2x4s8x", socket.AF_INET, socket.inet_aton(address))
    fcntl.ioctl(control, request, struct.pack("16s16s8x", device.encode(), socket_address))


def serve_sockets(requests: socket.socket, namespaces: list[int]) -> None:
    """Make sockets in namespaces for a process that may not enter them, until it closes its end.

    A socket belongs to the namespace it was made in, wherever it is used. Each request is (region number, family, type)
    as three signed 32-bit integers; the answer is one byte and the descriptor.
    """
    while request := requests.recv(64):
        region, family, kind = struct.unpack("iii", request)
        enter(namespaces[region])
        with socket.socket(family, kind) as made:
            socket.send_fds(requests, [b"."], [made.fileno()])
