"""Ports below the range that the kernel takes for outgoing connections, so that no client can be in the way."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _LAST = 12_000, 32_000
_next = itertools.cycle(range(_FIRST + os.getpid() * 97 % (_LAST - _FIRST - 4000), _LAST))


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has, and that this process gives to nobody else soon."""
    for port in itertools.islice(_next, 4000):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError("there is no free port")
