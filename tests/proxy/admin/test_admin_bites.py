"""What walks endpoints lets others go first: between any two of them the loop can turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from proxy.admin.questions import answer
from proxy.loop import bites

from ..edge import config, edge, origin
from .test_admin import OneWorker, asking

ENDPOINTS = 60


async def turns_during(work: Awaitable[Any]) -> int:
    """How often the loop turned."""
    task, turns = asyncio.ensure_future(work), 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    task.result()
    return turns


def many(port: int) -> str:
    ports = ", ".join(f'"127.0.0.{number + 1}:{port}"' for number in range(ENDPOINTS))
    text = config(port)
    found = text.replace(f'"127.0.0.1:{port}"', ports)
    assert found != text
    return found


@pytest.mark.parametrize("do", ["metrics", "status"])
async def test_a_worker_that_is_asked(do: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bites, "BITE_S", 0.0)
    async with origin() as app, edge(many(app.port)) as it:
        assert await turns_during(answer(it.worker, {"do": do})) >= ENDPOINTS


async def test_the_text_of_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    async with origin() as app, edge(many(app.port)) as it, asking(OneWorker(it)) as ask:
        few = await turns_during(ask("GET", "/metrics"))
        monkeypatch.setattr(bites, "BITE_S", 0.0)
        assert await turns_during(ask("GET", "/metrics")) > few + 2 * ENDPOINTS
