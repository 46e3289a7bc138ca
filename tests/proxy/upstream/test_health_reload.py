"""Checks that are under way as a reload changes or ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.config.sections import HealthSection
from proxy.upstream.health import Check, Health

SECTION = HealthSection.model_validate({"path": "/health", "interval": "100ms"})
OTHERS = {
    "no checks": None,
    "another path": HealthSection.model_validate({"path": "/other", "interval": "100ms"}),
    "longer": HealthSection.model_validate({"path": "/health", "interval": "1m"}),
}


class Target:
    """An endpoint."""

    endpoint = "192.0.2.1:80"


class Told:
    """A balancer with one endpoint: what it was told of probes."""

    def __init__(self) -> None:
        self.endpoints = [Target()]
        self.probes: list[bool] = []

    def probes_wanted(self, now: float) -> list[Any]:
        return []

    def observe_probe(self, target: object, now: float, ok: bool, seconds: float) -> None:
        self.probes.append(ok)


class Connection:
    """A check's connection, which resets the check as a real one does."""

    def __init__(self, check: Check) -> None:
        self.pool = SimpleNamespace(closed=False)
        self.check = check

    def fail_streams(self, error: Any) -> None:
        self.check.on_reset(error)

    def abort(self) -> None:
        pass


class Stage:
    """Health with all around it made up: tasks are started when the test says so."""

    def __init__(self) -> None:
        self.told = Told()
        self.due: list[Coroutine[Any, Any, None]] = []
        upstream: Any = SimpleNamespace(
            context=SimpleNamespace(
                balancer=self.told, background=SimpleNamespace(start=lambda work, name: self.due.append(work))
            ),
            every_pool=lambda: [],
        )
        self.health = Health(upstream, SECTION)

    def come_due(self) -> Coroutine[Any, Any, None]:
        """The next check, not yet begun."""
        self.health.tick(0.0, False)
        self.health.tick(1e6, False)
        return self.due.pop()


@pytest.mark.parametrize("other", OTHERS)
async def test_a_check_that_was_due_as_a_reload_came(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither raises nor speaks for the checks of now, and the endpoint is checked again when those come back."""
    stage = Stage()
    asked: list[bytes] = []

    async def ask(target: object, path: bytes) -> int:
        asked.append(path)
        return 500

    monkeypatch.setattr(stage.health, "_ask", ask)
    check = stage.come_due()
    stage.health.adopt(OTHERS[other])
    await check
    assert asked in ([], [b"/health"])
    assert stage.told.probes == []
    stage.health.adopt(SECTION)
    await stage.come_due()
    assert stage.told.probes == [False]


async def test_a_check_that_a_reload_cuts_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pool has been replaced, and its connection with it: that is no failure of the endpoint."""
    stage = Stage()
    check = Check()
    connection: Any = Connection(check)

    async def ask(target: Any, path: bytes) -> int:
        stage.health._checks[target] = connection
        return await check.done

    monkeypatch.setattr(stage.health, "_ask", ask)
    task = asyncio.ensure_future(stage.come_due())
    await asyncio.sleep(0)
    connection.pool.closed = True
    stage.health.adopt(SECTION)
    await task
    assert stage.told.probes == []
