"""`onetrip serve` at the lab's home, and whether something answers there yet."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from .lab import Lab

SERVER_NAME: Final = "origin.lab.test"
PROXY: Final = ("127.0.0.1", 8080)


async def answering(dial: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]) -> None:
    """Wait until a dial succeeds."""
    for _ in range(100):
        try:
            _, writer = await dial()
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError("nothing answers")


@asynccontextmanager
async def serving(lab: Lab, config: Path) -> AsyncIterator[int]:
    """`onetrip serve` at home, once it answers at `PROXY`: its process id."""
    command = [*lab.command_prefix(), sys.executable, "-m", "proxy.cli", "serve", str(config)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        await answering(lambda: to(lab, PROXY))
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def to(lab: Lab, address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection within home."""
    made = lab.socket()
    try:
        await asyncio.get_running_loop().sock_connect(made, address)
        return await asyncio.open_connection(sock=made)
    except BaseException:
        made.close()
        raise
