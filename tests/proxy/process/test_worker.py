"""One worker's upkeep and end: what goes wrong with one of its parts stays with that part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.config import Config, parse_config
from proxy.process import inheritance as listening
from proxy.process import worker as working
from proxy.process.worker import Worker
from tlscache.ticket_keys import TicketKeys

from ..e2e.harness import Log

CONFIG = """
listeners:
  - {name: web, address: "127.0.0.1:0", upstream: first}
  - {name: raw, address: "127.0.0.1:0", protocol: tcp, upstream: third}
upstreams:
  first: {regions: {here: {endpoints: ["127.0.0.1:1"]}}, pool: {warm: 0}}
  second: {regions: {here: {endpoints: ["127.0.0.1:1"]}}, pool: {warm: 0}}
  third: {protocol: tcp, regions: {here: {endpoints: ["127.0.0.1:1"]}}, pool: {warm: 0}}
admin: {address: "127.0.0.1:0"}
access_log: off
"""


class Rig:
    """A worker, and what its loop was told of faults."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.calls: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: self.complaints.append(told["message"]))
        self.config: Config = parse_config(CONFIG)
        self.worker = Worker(self.config, Log(), TicketKeys(contexts=4))

    async def start(self) -> None:
        sockets = listening.open_sockets(self.config)
        sockets.pop(listening.ADMIN).close()
        await self.worker.start(sockets)

    def noting(self, name: str, fails: bool) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            self.calls.append(name)
            if fails:
                raise RuntimeError(name)
            return 0  # as `abort` does

        return call


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Any:
    one = Rig()
    await one.start()
    handle = one.worker._tick_handle
    assert handle is not None
    handle.cancel()
    monkeypatch.setattr(working, "TICK_S", 3600.0)  # from here on the test ticks
    yield one
    monkeypatch.undo()
    await one.worker.close()
    assert one.worker.turn.depth == 0


@pytest.mark.parametrize("what", ["tick", "measure", "reload_certificates"])
async def test_what_fails_in_the_upkeep_of_one_upstream_leaves_the_others_theirs(
    rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, upstream in rig.worker.upstreams.items():
        monkeypatch.setattr(upstream, what, rig.noting(name, name == "first"))
    rig.worker._next_measure = rig.worker._next_certificates = 0.0
    rig.worker._tick()
    assert rig.calls == ["first", "second", "third"]
    assert len(rig.complaints) == 1
    assert "first" in rig.complaints[0]
    assert rig.worker.turn.depth == 0


async def test_what_fails_in_the_upkeep_of_one_listener_leaves_the_others_theirs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, listener in rig.worker.listeners.items():
        monkeypatch.setattr(listener, "tick", rig.noting(name, name == "web"))
    rig.worker._next_measure = 0.0
    rig.worker._tick()
    assert rig.calls == ["web", "raw"]
    assert len(rig.complaints) == 1
    assert rig.worker.turn.depth == 0


async def test_a_listener_that_can_not_drain_is_cut_and_the_others_drain(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, raw = rig.worker.listeners.values()
    monkeypatch.setattr(web, "drain", rig.noting("web", True))
    monkeypatch.setattr(web, "abort", rig.noting("abort", False))
    left = await rig.worker.drain(0.05)
    assert rig.calls == ["web", "abort"]
    assert left == 0
    assert raw.drained.is_set()
    assert len(rig.complaints) == 1
    assert rig.worker.turn.depth == 0


@pytest.mark.parametrize("what", ["stop_accepting", "abort"])
async def test_what_fails_at_the_end_keeps_nothing_else_open(
    rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, raw = rig.worker.listeners.values()
    monkeypatch.setattr(web, what, rig.noting("web", True))
    monkeypatch.setattr(raw, "abort", rig.noting("raw", False))
    for name, upstream in rig.worker.upstreams.items():
        real, noted = upstream.close, rig.noting(name, name == "first")
        monkeypatch.setattr(upstream, "close", lambda real=real, noted=noted: (real(), noted()))
    await rig.worker.close()
    assert [one for one in rig.calls if one != "web"] == ["raw", "first", "second", "third"]
    assert len(rig.complaints) == 2
    assert rig.worker.turn.depth == 0
    monkeypatch.undo()
