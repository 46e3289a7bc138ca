"""What the kernel knows of a socket: round-trip times, what a peer has acknowledged, how it is to be closed.

It asks and sets, and never reads, writes or closes. Layout of TCP_INFO: linux/tcp.h `struct tcp_info`; the offsets have
been stable since 4.1.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

_TCP_INFO_BYTES: Final = 256
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger
_ENDED: Final = (b"\x07", b"\x08")  # tcpi_state, the first octet of struct tcp_info: CLOSE and CLOSE_WAIT


def tcp_info(sock: socket.socket) -> tuple[float, int, int]:
    """(smoothed RTT in seconds, unacknowledged segments, bytes acknowledged) from the kernel's TCP_INFO; zeros where
    there is none.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return 0.0, 0, 0
    if len(info) < 136:
        return 0.0, 0, 0
    unacked = struct.unpack_from("=I", info, 24)[0]
    rtt_us = struct.unpack_from("=I", info, 68)[0]
    bytes_acked = struct.unpack_from("=Q", info, 120)[0]
    return rtt_us / 1e6, unacked, bytes_acked


def unacknowledged_s(sock: socket.socket) -> float:
    """Seconds since the peer last acknowledged anything, while something waits for it; 0.0 where nothing does.

    From `struct tcp_info`: tcpi_unacked, tcpi_last_ack_recv (milliseconds).
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return 0.0
    if len(info) < 60:
        return 0.0
    unacked, last_ack_ms = struct.unpack_from("=I28xI", info, 24)
    return last_ack_ms / 1e3 if unacked else 0.0


def tcp_bytes_sent(sock: socket.socket) -> int:
    """Data bytes that the kernel has sent (TCP_INFO's `tcpi_bytes_sent`, Linux 4.19); -1 where it does not say."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return -1
    return int(struct.unpack_from("=Q", info, 200)[0]) if len(info) >= 208 else -1


def has_hung_up(sock: socket.socket) -> bool:
    """Whether a TCP peer has ended the connection, though that may not have been reported yet (`tcpi_state`)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) in _ENDED


def reset_on_close(sock: socket.socket) -> None:
    """Let closing it send a reset, which can't be taken for an orderly end. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def socket_of(transport: asyncio.BaseTransport) -> Any:
    """The transport's socket (uvloop's stand-in for one), for options and kernel counters."""
    return transport.get_extra_info("socket")
