"""What this program itself adds to a latency: the same client against a server that answers at once, in the same
process.

Both ends share one event loop, so the figure holds the server's turn of the loop as well: it bounds from above what the
generator adds on an idle machine. It is printed beside the results and never subtracted from them.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from .engine import Engine, Overhead
from .plan import Plan, targets

_RATE: Final = 500.0
_DURATION_S: Final = 0.3
_WARMUP_S: Final = 0.05
_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class _Canned(asyncio.Protocol):
    """Answers every chunk that arrives; the client below sends a request in one."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(_ANSWER)


async def calibrate() -> Overhead | None:
    """Measure for a third of a second. None: not possible here (no loopback)."""
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(_Canned, "127.0.0.1", 0)
    except OSError:
        return None
    try:
        port = server.sockets[0].getsockname()[1]
        plan = Plan(targets([f"http://127.0.0.1:{port}/"]), _RATE, _DURATION_S, _WARMUP_S, 1.0, connections=1)
        outcome = await Engine(plan).run()
    finally:
        server.close()
        await server.wait_closed()
    total = outcome.recorders[0].phase("total")
    if not total.counts:
        return None
    return Overhead(total.count, total.percentile(50), total.percentile(99))
