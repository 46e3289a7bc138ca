"""Several programs in a row, and programs that reach themselves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..program import Client, HttpOrigin, Onetrip, config, free_port, get, http_origin, serving


def at(port: int, text: str, **top: str) -> str:
    """A config whose listener has this port. `top`: top-level keys."""
    fixed = text.replace('name: web, address: "127.0.0.1:0"', f'name: web, address: "127.0.0.1:{port}"')
    return fixed + "".join(f"{key}: {value}\n" for key, value in top.items())


@contextmanager
def noting_origin() -> Iterator[tuple[HttpOrigin, list[str]]]:
    """An origin, and what it was told of each request's way."""
    with http_origin() as origin:
        seen: list[str] = []
        handler: type[Any] = origin.RequestHandlerClass

        class Noting(handler):  # type: ignore[misc]
            def do_GET(self) -> None:
                seen.append(f"{self.headers['via']} | {self.headers['cdn-loop']}")
                super().do_GET()

        origin.RequestHandlerClass = Noting
        yield origin, seen


@pytest.mark.parametrize("count", [2, 3])
def test_programs_in_a_row_pass_a_request_on(tmp_path: Path, count: int) -> None:
    with noting_origin() as (origin, seen):
        programs: list[Onetrip] = []
        port = origin.port
        try:
            for number in range(count):
                program = Onetrip(tmp_path / str(number), config(port)).ready()
                programs.append(program)
                port = program.port()
            answer = get(port, "/x")
            assert (answer.status, answer.text) == (200, "origin /x")
            via, _, loop = seen[0].partition(" | ")
            assert via == ", ".join(["1.1 onetrip"] * count)
            names = loop.split(", ")
            assert len(set(names)) == count
            assert all(name.startswith("onetrip-") for name in names)
        finally:
            for program in programs:
                program.stop()


def refused_as_loop(answer: Any) -> bool:
    return answer.status == 508 and "proxy_loop_detected" in answer.headers["proxy-status"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_program_that_reaches_itself_says_so(tmp_path: Path, workers: int) -> None:
    port = free_port()
    with serving(tmp_path, at(port, config(port, workers=workers))):
        for _ in range(8):  # whichever workers it meets
            assert refused_as_loop(get(port))


def test_a_loop_over_two_programs_is_found(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    with (
        serving(tmp_path / "a", at(ports[0], config(ports[1]))),
        serving(tmp_path / "b", at(ports[1], config(ports[0]))),
    ):
        assert refused_as_loop(get(ports[0]))
        assert refused_as_loop(get(ports[1]))


def test_replicas_of_one_name_are_one_proxy(tmp_path: Path) -> None:
    with (
        http_origin() as origin,
        serving(tmp_path / "b", config(origin.port) + "instance: edge\n") as second,
        serving(tmp_path / "a", config(second.port()) + "instance: edge\n") as first,
    ):
        answer = get(first.port())
        assert refused_as_loop(answer)
        assert "onetrip-edge" in answer.text


def test_the_name_outlives_reloads_and_hand_overs(tmp_path: Path) -> None:
    with noting_origin() as (origin, seen), serving(tmp_path, config(origin.port, workers=2)) as program:
        port = program.port()
        client = Client(port)
        client.get()
        program.write(config(origin.port, workers=2, shutdown="deadline: 9s"))
        program.signal(signal.SIGHUP)
        program.event("config_reloaded")
        assert [get(port).status for _ in range(4)] == [200] * 4
        program.write(at(port, config(origin.port, workers=2)))  # an address that it keeps
        program.signal(signal.SIGUSR2)
        program.event("ready", 2)
        program.event("stopped")
        assert [get(port).status for _ in range(4)] == [200] * 4
        assert len(seen) == 9
        assert len(set(seen)) == 1, seen
        client.close()


def test_a_reload_changes_the_name(tmp_path: Path) -> None:
    with noting_origin() as (origin, seen), serving(tmp_path, config(origin.port)) as program:
        program.write(config(origin.port) + "instance: edge-7\n")
        program.signal(signal.SIGHUP)
        assert program.event("config_reloaded")["needs_restart"] == []
        assert get(program.port()).status == 200
        assert seen == ["1.1 onetrip | onetrip-edge-7"]
