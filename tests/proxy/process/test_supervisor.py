"""`workers: 2`: one program to its users and operators, whatever becomes of a worker."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.ask import AdminError
from proxy.process.supervisor import Child

from ..program import (
    WAIT_S,
    Client,
    HttpOrigin,
    Load,
    Onetrip,
    alive,
    config,
    free_port,
    get,
    http_origin,
    refused,
    serving,
    wait_for,
)


@pytest.fixture(scope="module")
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        yield found


@pytest.fixture(scope="module")
def program(origin: HttpOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Onetrip]:
    with serving(tmp_path_factory.mktemp("supervisor"), config(origin.port, workers=2)) as found:
        found.event("ready", 2)
        yield found


def metrics(program: Onetrip) -> dict[str, float]:
    """Samples by name and labels."""
    found = {}
    for line in program.admin().ask("GET", "/metrics").splitlines():
        if match := re.match(r"onetrip_(\S+?)(\{.*\})? (\S+)$", line):
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def status(program: Onetrip) -> dict[str, Any]:
    found = program.admin().ask("GET", "/status")
    assert isinstance(found, dict)
    return found


def spread(program: Onetrip, count: int = 40) -> None:
    """So many requests, over as many connections at once: both workers get some."""
    clients = [Client(program.port()) for _ in range(count)]
    for client in clients:
        client.send("/")
    for client in clients:
        assert client.answer().status == 200
        client.close()


def whole(program: Onetrip) -> list[int]:
    """The workers, once there are two that are ready."""
    wait_for(lambda: len(program.workers()) == 2, "two workers")

    def ready() -> bool:
        try:
            return program.admin().ask("GET", "/readyz") == "ok\n" and status(program)["workers"] == 2
        except AdminError:
            return False

    wait_for(ready, "readiness")
    return program.workers()


def test_one_status_and_one_set_of_metrics_for_all_workers(program: Onetrip) -> None:
    whole(program)
    before = metrics(program).get('requests_total{code="200",listener="web"}', 0.0)
    spread(program)
    found = metrics(program)
    assert found['requests_total{code="200",listener="web"}'] - before == 40
    assert found['request_duration_seconds_count{listener="web"}'] >= 40
    assert sum(value for name, value in found.items() if name.startswith("upstream_pool_idle")) >= 4
    assert found['region_state{region="here",upstream="app"}'] == 0
    assert found['region_weight{region="here",upstream="app"}'] == 1
    told = status(program)
    assert told["workers"] == 2
    assert told["ready"] is True
    assert told["listeners"][0]["requests"] == found['requests_total{code="200",listener="web"}']
    (region,) = told["upstreams"]["app"]["regions"]
    assert region["weight"] == 1.0
    assert region["state"] == "healthy"


def test_a_drain_reaches_every_worker(program: Onetrip) -> None:
    whole(program)
    assert program.admin().ask("POST", "/drain", {"region": "here"}) == {"drained": ["app"]}
    try:
        assert status(program)["upstreams"]["app"]["regions"][0]["state"] == "drained"
        program.event("region_state", worker=0, after="drained")
        program.event("region_state", worker=1, after="drained")
    finally:
        program.admin().ask("POST", "/undrain", {"region": "here"})
    spread(program)
    with pytest.raises(AdminError, match="no upstream has a region nowhere; regions: here"):
        program.admin().ask("POST", "/drain", {"region": "nowhere"})


def test_a_question_that_fails_does_not_cost_a_worker(program: Onetrip) -> None:
    before = whole(program)
    with pytest.raises(AdminError, match="Invalid IPv6 URL"):
        program.admin().ask("GET", "/explain?url=http://[")
    assert program.workers() == before


def test_a_killed_worker_is_replaced_and_nobody_is_refused(program: Onetrip) -> None:
    before = whole(program)
    restarts = metrics(program)["worker_restarts_total"]
    opened = []

    def knock() -> None:
        while not done.is_set():
            with socket.create_connection(("127.0.0.1", program.port()), timeout=WAIT_S):
                opened.append(1)

    done = threading.Event()
    knocking = threading.Thread(target=knock, daemon=True)
    knocking.start()
    os.kill(before[0], signal.SIGKILL)
    died = program.event("worker_died", pid=before[0])
    assert died["exit_code"] == -signal.SIGKILL
    after = whole(program)
    done.set()
    knocking.join(WAIT_S)
    assert not knocking.is_alive()
    assert len(opened) > 10
    assert before[1] in after
    assert before[0] not in after
    assert metrics(program)["worker_restarts_total"] == restarts + 1
    spread(program)


def listener(name: str, port: int) -> str:
    return f'  - {{name: {name}, address: "127.0.0.1:{port}", upstream: app}}\n'


def test_a_reload_adds_and_removes_listeners_in_every_worker(program: Onetrip) -> None:
    whole(program)
    before = program.path.read_text()
    one, two = free_port(), free_port()
    program.write(before.replace("upstreams:\n", listener("one", one) + listener("two", two) + "upstreams:\n"))
    assert program.admin().ask("POST", "/reload") == {"reloaded": True, "restart": [], "faults": []}
    for port in (one, two):
        assert get(port).text == "origin /"
    victim = program.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        for _ in range(10):
            assert get(one).status == 200, "the other worker has it too"
    finally:
        os.kill(victim, signal.SIGCONT)
    os.kill(victim, signal.SIGKILL)
    program.event("worker_died", pid=victim)
    whole(program)
    for _ in range(20):
        assert get(two).status == 200, "the replacement starts with the new config"
    program.write(before)
    program.admin().ask("POST", "/reload")
    for port in (one, two):
        wait_for(lambda port=port: refused(port), "the removed listener's end")
    assert get(program.port()).status == 200


def test_a_reload_that_one_worker_could_not_follow_changes_none(program: Onetrip, tmp_path: Path) -> None:
    """What only shows when files are read is found before any worker changes."""
    workers = whole(program)
    before = program.path.read_text()
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    program.write(before.replace("    protocol: h1\n", f'    protocol: h1\n    tls: {{ca: "{junk}"}}\n'))
    with pytest.raises(AdminError, match=r"junk\.pem"):
        program.admin().ask("POST", "/reload")
    program.write(before)
    assert program.workers() == workers
    spread(program)


def test_workers_hold_nothing_of_the_supervisors(program: Onetrip) -> None:
    """An admin client's connection ends when the supervisor ends it, though a worker was forked meanwhile."""
    whole(program)
    host, _, port = program.event("listening")["admin"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        victim = program.workers()[0]
        os.kill(victim, signal.SIGKILL)
        program.event("worker_died", pid=victim)
        whole(program)
        client.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        client.settimeout(WAIT_S)
        while client.recv(1000):
            pass


def test_a_reload_with_more_listeners_than_a_message_takes(program: Onetrip, tmp_path: Path) -> None:
    whole(program)
    before = program.path.read_text()
    names = [f"n{number}" for number in range(300)]
    more = "".join(f'  - {{name: "{name},too", address: "unix:{tmp_path}/{name}", upstream: app}}\n' for name in names)
    program.write(before.replace("upstreams:\n", more + "upstreams:\n", 1))
    assert program.admin().ask("POST", "/reload")["reloaded"]
    for name in (names[0], names[-1]):
        for _ in range(8):  # whichever worker takes it
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(WAIT_S)
                client.connect(str(tmp_path / name))
                client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    program.write(before)
    assert program.admin().ask("POST", "/reload")["reloaded"]
    whole(program)


def test_a_worker_that_hangs_does_not_stop_the_answers(program: Onetrip) -> None:
    victim = whole(program)[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        assert status(program)["workers"] == 1
    finally:
        os.kill(victim, signal.SIGCONT)
    whole(program)


def test_a_new_program_takes_over_without_a_failed_request(program: Onetrip) -> None:
    """Last of those that share the program: it ends here."""
    workers = whole(program)
    with Load(program.port()) as load:
        load.more()
        program.signal(signal.SIGUSR2)
        successor = program.event("hand_over")["successor"]
        assert program.wait() == 0
        load.more(200)
        assert load.failures == []
    assert not any(map(alive, workers))
    assert alive(successor)
    os.kill(successor, signal.SIGTERM)
    wait_for(lambda: not alive(successor), "the successor's end")


def test_when_the_supervisor_is_killed_the_workers_finish_and_end(origin: HttpOrigin, tmp_path: Path) -> None:
    origin.release.clear()
    origin.held = 0
    with serving(tmp_path, config(origin.port, workers=2)) as program:
        workers = whole(program)
        client = Client(program.port())
        client.send("/held")
        wait_for(lambda: origin.held, "the request at the origin")
        program.signal(signal.SIGKILL)
        program.process.wait()
        wait_for(lambda: refused(program.port()), "the listener's end")
        origin.release.set()
        assert client.answer().status == 200
        client.close()
        wait_for(lambda: not any(map(alive, workers)), "the workers' end")


def test_draining_is_everybodys_and_a_second_signal_ends_it(origin: HttpOrigin, tmp_path: Path) -> None:
    origin.release.clear()
    origin.held = 0
    try:
        with serving(tmp_path, config(origin.port, workers=2, shutdown="deadline: 10m")) as program:
            workers = whole(program)
            clients = [Client(program.port()) for _ in range(8)]
            for client in clients:
                client.send("/held")
            wait_for(lambda: origin.held >= 8, "the requests at the origin")
            program.signal(signal.SIGTERM)
            wait_for(lambda: refused(program.port()), "the listener's end")
            told = status(program)
            assert told["stopping"] is True
            assert told["workers"] in (1, 2), "questions are answered meanwhile (a worker without clients has ended)"
            assert metrics(program)['requests_in_flight{listener="web"}'] == 8
            program.signal(signal.SIGTERM)
            assert program.wait() == 3
            wait_for(lambda: not any(map(alive, workers)), "the workers' end")
    finally:
        origin.release.set()


# The supervisor's side of a pipe.


class Writer:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def child() -> tuple[Child, Any, Writer]:
    reader, writer = asyncio.StreamReader(), Writer()
    return Child(0, 1, 0.0, reader, writer, None), reader, writer  # type: ignore[arg-type]


async def test_answers_find_their_questions() -> None:
    one, reader, writer = child()
    listening = asyncio.create_task(one.listen())
    first, second = (asyncio.create_task(one.ask({"do": name})) for name in ("a", "b"))
    await asyncio.sleep(0)
    assert writer.written == b'{"n": 1, "do": "a"}\n{"n": 2, "do": "b"}\n'
    assert not one.up
    reader.feed_data(b'{"n": 0}\n{"n": 2, "x": "b"}\n{"n": 99}\n{"n": 1, "x": "a"}\n')
    assert await first == {"x": "a"}
    assert await second == {"x": "b"}
    assert one.up
    assert one.waiting == {}
    reader.feed_eof()
    await listening


async def test_a_worker_that_dies_answers_none_at_once() -> None:
    one, reader, _ = child()
    listening = asyncio.create_task(one.listen())
    asking = asyncio.create_task(one.ask({"do": "a"}, 3600.0))
    await asyncio.sleep(0)
    reader.feed_eof()
    assert await asking is None
    await listening
    assert await one.ask({"do": "b"}, 3600.0) is None


async def test_a_worker_that_is_slow_answers_none_in_time() -> None:
    one, _, _ = child()
    assert await one.ask({"do": "a"}, 0.001) is None
    assert one.waiting == {}
