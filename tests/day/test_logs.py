"""The access log is rotated, blocked, full; standard error is read by nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .keys import ask, mark
from .program import until
from .town import Town, set_at


async def _logged(town: Town, path: Path) -> None:
    name = mark()
    await ask(town, f"/{name}")
    await until(lambda: path.exists() and name in path.read_text(), f"{path.name} has the request")


@pytest.mark.parametrize("moved", ["rename", "remove"])
async def test_rotation(tmp_path: Path, workers: int, moved: str) -> None:
    """Rename (or remove) and SIGHUP, as logrotate does: new lines in a new file, and not one lost or doubled."""
    async with Town(tmp_path, workers=workers) as town:
        log, old = tmp_path / "access.log", tmp_path / "access.log.1"
        await _logged(town, log)
        if moved == "rename":
            log.rename(old)
        else:
            log.unlink()
        await town.program.hang_up()
        await _logged(town, log)
        await town.traffic.pause()
        if moved == "rename":
            await until(lambda: _whole(town, old, log), "every answered request stands once in one of the files")


def _whole(town: Town, *logs: Path) -> bool:
    text = "".join(path.read_text() for path in logs)
    return all(text.count(f'"/{name}"') == 1 for name in town.traffic.posts)


async def test_a_fifo_without_a_reader(tmp_path: Path, workers: int) -> None:
    """Opening one waits for a reader; nobody else may wait with it. The reload is refused, or logs later."""
    async with Town(tmp_path, workers=workers) as town:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        town.program.write(town.edited(set_at("access_log.path", str(fifo))))
        status, answer = await town.program.ask("POST", "/reload")
        assert status in (200, 422), answer
        await town.traffic.more(100)
        town.program.write(town.config)
        await town.program.reload(town.config)
        await _logged(town, tmp_path / "access.log")


async def test_a_fifo_whose_reader_leaves(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        await town.change(set_at("access_log.path", str(fifo)))
        await town.traffic.more(50)
        os.close(reader)
        await town.traffic.more(50)
        await town.program.hang_up()
        await town.traffic.more(50)


async def test_a_full_disk(tmp_path: Path, workers: int) -> None:
    """Lines are dropped and counted; requests are not."""
    async with Town(tmp_path, workers=workers) as town:
        await town.change(set_at("access_log.path", "/dev/full"))
        await town.traffic.more(100)
        assert await town.program.total("onetrip_access_log_dropped_total") > 0
        await town.program.reload(town.config)
        await _logged(town, tmp_path / "access.log")


async def test_standard_error_is_never_read(tmp_path: Path, workers: int) -> None:
    """A pipe that nobody reads is full after 64 KiB. What the program says is lost then; what it does is not."""
    read, write = os.pipe()
    town = Town(tmp_path, workers=workers)
    try:
        for origin in town.origins:
            await origin.start()
        await town.program.start(stderr=write)
        os.close(write)
        await until(town.program.is_ready, "ready")
        town.traffic.start()
        for number in range(100):  # each refusal says a kilobyte
            town.program.write({**town.config, f"nonsense-{'x' * 1000}": number})
            assert (await town.program.ask("POST", "/reload"))[0] == 422
        await town.traffic.more(100)
        town.complain()
        await town.traffic.stop()
        assert await town.program.stop() == 0
    finally:
        os.close(read)
        await town.close()
