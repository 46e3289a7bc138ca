"""One request: what is sent, the same each time, and the instants at which it got on.

It knows nothing of connections but that one can be told to give it up, and nothing of how instants are recorded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from .plan import USER_AGENT

if TYPE_CHECKING:
    from .plan import Plan, Target

STATES: Final = ("cold", "resumed", "early", "reused")
"""Of the connection that a request got."""
UNCONNECTED: Final = "unconnected"  # timed out before it had a connection, so in no state of one

_HOP_BY_HOP: Final = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host"))


class Carrier:
    """What a request was sent on: a connection, whatever it speaks."""

    def abandon(self, request: Request, now: float) -> None:
        """Give up one request whose time is over; its owner has counted it already."""
        raise NotImplementedError


class Request:
    """One request and its instants (seconds on `time.monotonic`, 0 where not reached).

    `intended`: what the schedule said; `began`: its dial began, or it was written to a ready connection; `sent`:
    written; `first_byte`: of the answer. `interval` is its step in the time series, -1 in the warm-up. `dialled`: it
    opened its connection, which took the three phases (-1: there was no look-up, no TLS).
    """

    __slots__ = (
        "began",
        "connection",
        "dialled",
        "dns_s",
        "done",
        "first_byte",
        "intended",
        "interval",
        "sent",
        "state",
        "status",
        "stream_id",
        "task",
        "tcp_s",
        "tls_s",
    )

    def __init__(self, intended: float, interval: int) -> None:
        self.intended = intended
        self.interval = interval
        self.began = 0.0
        self.sent = 0.0
        self.first_byte = 0.0
        self.dns_s = -1.0
        self.tcp_s = 0.0
        self.tls_s = -1.0
        self.dialled = False
        self.done = False
        self.state = UNCONNECTED
        self.status = 0
        self.stream_id = 0
        self.connection: Carrier | None = None
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Request at {self.intended:.6f} {self.state}{' done' if self.done else ''}>"


def request_bytes(plan: Plan, target: Target) -> bytes:
    """The HTTP/1.1 request that a run sends to a target, the same each time."""
    given = {name.lower() for name, _ in plan.headers}
    lines = [f"{plan.method} {target.target} HTTP/1.1"]
    for name, value in default_fields(plan, target):
        if name not in given:
            lines.append(f"{name}: {value}")
    lines.extend(f"{name}: {value}" for name, value in plan.headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + plan.body


def default_fields(plan: Plan, target: Target) -> list[tuple[str, str]]:
    """What a request carries unless --header says otherwise."""
    fields = [("host", target.authority), ("user-agent", USER_AGENT), ("accept", "*/*")]
    if plan.body or plan.method in ("POST", "PUT", "PATCH"):
        fields.append(("content-length", str(len(plan.body))))
    return fields


def request_fields(plan: Plan, target: Target) -> list[tuple[bytes, bytes]]:
    """The field section that a run sends to a target, the same each time."""
    given = {name.lower(): value for name, value in plan.headers}
    fields = [
        (":method", plan.method),
        (":scheme", "https" if target.tls else "http"),
        (":authority", given.get("host", target.authority)),
        (":path", target.target),
    ]
    fields.extend(
        (name, value) for name, value in default_fields(plan, target) if name not in given and name not in _HOP_BY_HOP
    )
    fields.extend((name.lower(), value) for name, value in plan.headers if name.lower() not in _HOP_BY_HOP)
    return [(name.encode(), value.encode()) for name, value in fields]
