"""A day on which nothing happens: what every other scenario stands on."""

from __future__ import annotations

from pathlib import Path

from .town import Town


async def test_a_quiet_minute(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        assert await town.leads("near", 150)


async def test_a_reload_of_the_same_file(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        for _ in range(3):
            assert (await town.program.reload())["reloaded"]
            await town.program.hang_up()
        await town.traffic.more()
