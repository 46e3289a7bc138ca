"""What an operator has drained stays drained, whoever serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from proxy.config import parse_config
from proxy.process.drains import OperatorDrain, OperatorDrains

from ..program import HttpOrigin, Onetrip, config, free_port, get, http_origin, serving, wait_for


@pytest.fixture(scope="module")
def origins() -> Iterator[tuple[HttpOrigin, HttpOrigin]]:
    with http_origin("near") as near, http_origin("far") as far:
        yield near, far


def two_regions(origins: tuple[HttpOrigin, HttpOrigin], workers: int, port: int) -> str:
    near, far = origins
    text = config(near.port, workers=workers, upstreams="    routing: {policy: ordered}\n")
    text = text.replace("127.0.0.1:0", f"127.0.0.1:{port}", 1)
    return text.replace("}}\n", f'}}, there: {{endpoints: ["127.0.0.1:{far.port}"]}}}}\n', 1)


def answers(port: int, count: int = 40) -> set[str]:
    return {get(port).text.split()[0] for _ in range(count)}


def drained(program: Onetrip, listening: int = 1) -> list[tuple[str, str]]:
    regions = program.admin(listening=listening).ask("GET", "/status")["upstreams"]["app"]["regions"]
    return [(region["region"], region["state"]) for region in regions]


def test_by_a_restarted_worker(origins: tuple[HttpOrigin, HttpOrigin], tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, two_regions(origins, 2, port)) as program:
        program.event("ready", 2)
        assert answers(port) == {"near"}
        program.admin().ask("POST", "/drain", {"region": "here"})
        for count, pid in enumerate(program.workers(), 1):
            os.kill(pid, signal.SIGKILL)
            program.event("ready", 2 + count)
        assert answers(port) == {"far"}
        program.admin().ask("POST", "/undrain", {"region": "here"})
        for count, pid in enumerate(program.workers(), 3):
            os.kill(pid, signal.SIGKILL)
            program.event("ready", 2 + count)
        wait_for(lambda: answers(port, 5) == {"near"}, "an undrained region")


@pytest.mark.parametrize("workers", [1, 2])
def test_by_a_successor_and_its_reload(origins: tuple[HttpOrigin, HttpOrigin], tmp_path: Path, workers: int) -> None:
    port = free_port()
    with serving(tmp_path, two_regions(origins, workers, port)) as program:
        program.event("ready", workers)
        program.admin().ask("POST", "/drain", {"region": "here", "for": "10m"})
        program.signal(signal.SIGUSR2)
        program.event("listening", 2)
        assert program.wait() == 0
        assert answers(port) == {"far"}
        told = program.admin(listening=2).ask("POST", "/undrain", {"region": "here"})
        assert told == {"undrained": ["app"]}


def test_until_its_time_is_over() -> None:
    drains = OperatorDrains()
    drains.note({"region": "r"}, {"drained": ["u", "v"]}, 100.0)
    drains.note({"region": "s", "for_s": 5.0}, {"drained": ["u"]}, 100.0)
    kept: dict[str, str] = drains.environment(104.0)
    found = OperatorDrains.inherited(kept)
    assert kept == {}
    lasting = [OperatorDrain("u", "r", None), OperatorDrain("v", "r", None)]
    assert found.current(104.0) == [*lasting, OperatorDrain("u", "s", 105.0)]
    assert found.current(105.0) == lasting
    found.note({"region": "r"}, {"undrained": ["u"]}, 105.0)
    assert found.current(105.0) == lasting[1:]
    assert OperatorDrains.inherited({}).current(monotonic()) == []


def test_until_a_reload_takes_its_region_away() -> None:
    text = "listeners: [{name: a, address: 127.0.0.1:1, upstream: u}]\nupstreams: {u: {regions: {r: {endpoints: ['a:1']}}}}"
    drains = OperatorDrains(
        [OperatorDrain("u", "r", None), OperatorDrain("u", "s", None), OperatorDrain("v", "r", None)]
    )
    drains.keep(parse_config(text))
    assert drains.current(0.0) == [OperatorDrain("u", "r", None)]
