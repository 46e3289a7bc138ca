"""The end: the keys of `shutdown`, changed by a reload, seen at SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from .keys import ask
from .program import until
from .town import Town, set_at


async def test_a_reload_changes_settle(tmp_path: Path, workers: int) -> None:
    """`shutdown.settle`: not ready, and still accepting, for so long; then nobody is refused who was accepted."""
    town = Town(tmp_path, workers=workers)
    await town.open()
    try:
        await town.change(set_at("shutdown.settle", "3s"))
        town.program.signal(signal.SIGTERM)
        await town.program.event("draining")
        assert (await town.program.ask("GET", "/readyz"))[0] == 503
        await town.traffic.more(60)
        town.complain()
        await town.traffic.stop()
        assert await town.program.wait() == 0
        town._check_log()
        town.complain()
    finally:
        await town.close()


async def test_a_reload_changes_the_deadline(tmp_path: Path, workers: int) -> None:
    """`shutdown.deadline`: what is open after so long is cut, and the exit code says so."""
    town = Town(tmp_path, workers=workers, edit=set_at("shutdown.deadline", "1m"))
    await town.open()
    try:
        await town.change(set_at("shutdown.deadline", "300ms"))
        held = asyncio.ensure_future(ask(town, "/held"))
        await until(lambda: town.near.seen_at("/held"), "the request is at the origin")
        await town.traffic.stop()
        assert await town.program.stop() == 3
        await asyncio.gather(held, return_exceptions=True)
    finally:
        await town.close()


async def test_sigterm_under_load(tmp_path: Path, workers: int) -> None:
    """Whoever was connected is answered; new ones are refused, not left hanging."""
    town = Town(tmp_path, workers=workers)
    await town.open()
    try:
        await town.traffic.more(30)
        stopped = asyncio.Event()
        town.traffic.excuse = lambda failure: (
            stopped.is_set() and ("ConnectionRefused" in failure.text or "Connect call failed" in failure.text)
        )
        stopped.set()
        town.program.signal(signal.SIGTERM)
        await town.program.event("stopped")
        await town.traffic.stop()
        assert await town.program.wait() == 0
        town.complain()
    finally:
        await town.close()
