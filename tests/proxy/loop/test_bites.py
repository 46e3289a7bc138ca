"""Long work in bites."""

from __future__ import annotations

import asyncio

import pytest

from proxy.loop import bites as module
from proxy.loop.bites import Bites


async def work(steps: int) -> None:
    bites = Bites()
    for _ in range(steps):
        await bites.rest()


async def test_others_go_first_once_a_bite_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += module.BITE_S / 4
        return now[0]

    monkeypatch.setattr(module, "monotonic", clock)
    turns = 0
    task = asyncio.ensure_future(work(1000))
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert 150 < turns < 400, "a turn for about every four steps"


async def test_short_work_does_not_rest() -> None:
    task = asyncio.ensure_future(work(3))
    await asyncio.sleep(0)
    assert task.done()
