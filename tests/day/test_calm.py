"""A day on which nothing happens: what every other scenario stands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from .town import Town


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_quiet_minute(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        await town.traffic.more(150)
        assert {*town.traffic.origins} == {"near"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_of_the_same_file(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        for _ in range(3):
            assert (await town.program.reload())["reloaded"]
            await town.program.hang_up()
        await town.traffic.more()
