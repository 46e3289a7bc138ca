"""`onetrip serve` as a process: starting, signals, reloading, handing over, exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtests.lab.certificates import issue, make_ca
from proxy.admin.ask import AdminError
from proxy.config import parse_config
from proxy.observe.access_log import AccessRecord
from proxy.observe.event_log import configure_log
from proxy.process.forkserver import ForkServer
from proxy.process.program import Beginning
from proxy.process.serve import serve
from proxy.process.single import SingleProcess
from tlscache.ticket_keys import TicketKeys

from ..l4.test_tunnel import Blackhole
from ..program import (
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


# Starting. What is wrong before anything runs is told by `serve` itself.


Said = pytest.CaptureFixture[str]


def refusal(directory: Path, text: str, said: Said) -> str:
    path = directory / "onetrip.yaml"
    path.write_text(text)
    assert serve(str(path)) == 1
    return said.readouterr().err


def test_a_faulty_config_does_not_start(tmp_path: Path, capsys: Said) -> None:
    text = "listeners:\n  - {adress: '127.0.0.1:0', upstream: app}\nupstreams: {}\n"
    said = refusal(tmp_path, text, capsys)
    assert f"{tmp_path}/onetrip.yaml:2:6: " in said
    assert "did you mean address?" in said


def test_a_config_that_is_not_there(tmp_path: Path, capsys: Said) -> None:
    assert serve(str(tmp_path / "no.yaml")) == 1
    assert "no.yaml" in capsys.readouterr().err


def test_an_address_in_use_is_named(tmp_path: Path, capsys: Said) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(tmp_path, config(1).replace("127.0.0.1:0", f"127.0.0.1:{port}", 1), capsys)
    assert said == f"onetrip: can't listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_certificate_that_does_not_fit_its_key_is_named(tmp_path: Path, capsys: Said) -> None:
    ca = make_ca(tmp_path)
    one, other = issue(ca, names=["one.test"]), issue(ca, names=["other.test"])
    pair = f'{{certificate: "{one.certificate}", key: "{other.key}"}}'
    tls = f'  - {{name: tls, address: "127.0.0.1:0", upstream: app, tls: {{certificates: [{pair}]}}}}\n'
    said = refusal(tmp_path, config(1, listeners=tls), capsys)
    assert str(other.key) in said or str(one.certificate) in said


@pytest.mark.parametrize("workers", [1, 2])
def test_an_access_log_that_can_not_be_opened_is_named(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        program = Onetrip(tmp_path, config(1, access_log=f"{{path: {path}}}", workers=workers))
        try:
            assert program.wait() == 1
            wait_for(lambda: program.complaints or program.events)
            said = "\n".join([*program.complaints, *(json.dumps(event) for event in program.events)])
            assert "log.sock" in said
            assert "Traceback" not in said
        finally:
            program.stop()


def test_an_origin_that_is_down_does_not_stop_the_start(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, config(port, upstreams="    retry: off\n")) as program:
        assert program.event("dial_failed")["endpoint"] == f"127.0.0.1:{port}"
        assert get(program.port()).status == 502
        program.signal(signal.SIGTERM)
        assert program.wait() == 0


def test_an_event_of_the_log_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share standard error, which has no buffer where PYTHONUNBUFFERED is set, as in many containers: what
    takes two writes gets mixed up with the others' events.
    """
    reader, writer = os.pipe2(os.O_DIRECT)  # a read gives what one write wrote
    with os.fdopen(reader, "rb", 0) as pipe, os.fdopen(writer, "wb", 0) as raw:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, write_through=True))
        configure_log().info("something", number=1)
        assert pipe.read(4096).endswith(b"}\n")


# One program for what leaves it running.


@pytest.fixture(scope="module")
def program(origin: HttpOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Onetrip]:
    directory = tmp_path_factory.mktemp("server")
    with serving(directory, config(origin.port, access_log=f"{{path: {directory}/access.log}}")) as found:
        yield found


def metric(program: Onetrip, name: str) -> float:
    """The sum of a metric's samples."""
    text = program.admin().ask("GET", "/metrics")
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"onetrip_{name}"))


def test_it_serves_and_logs(program: Onetrip) -> None:
    log = program.path.parent / "access.log"
    answer = Client(program.port()).get("/path?q=1", **{"User-Agent": "test/1"})
    assert (answer.status, answer.text) == (200, "origin /path?q=1")
    line = wait_for(
        lambda: next((line for line in log.read_text().splitlines() if "/path" in line), None), "the log line"
    )
    found = json.loads(line)
    assert set(found) == set(AccessRecord.__struct_fields__)
    wanted = {
        "listener": "web",
        "client": "127.0.0.1",
        "method": "GET",
        "host": f"127.0.0.1:{program.port()}",
        "path": "/path?q=1",
        "protocol": "HTTP/1.1",
        "status": 200,
        "upstream": "app",
        "region": "here",
        "attempts": 1,
        "bytes_out": len("origin /path?q=1"),
        "user_agent": "test/1",
        "error": "",
        "tried": [],
    }
    assert {key: found[key] for key in wanted} == wanted
    assert found["endpoint"].startswith("127.0.0.1:")
    assert 0 < found["first_byte"] <= found["total"] < 10_000


def test_nobodys_requests_are_not_logged(program: Onetrip) -> None:
    get(program.port(), "/real")
    log = program.path.parent / "access.log"
    wait_for(lambda: "/real" in log.read_text(), "the log line")
    assert "rehearsal" not in log.read_text()


SAMPLED = """requests_total request_duration_seconds_bucket upstream_request_duration_seconds_bucket requests_in_flight
connections_open upstream_connections_opened_total upstream_connections_reused_total upstream_handshake_seconds_bucket
upstream_pool_idle hedges_total region_weight region_latency_seconds region_state endpoint_ejected config_reloads_total
build_info"""


def test_the_metrics_of_the_contract_have_samples(program: Onetrip) -> None:
    get(program.port())
    text = program.admin().ask("GET", "/metrics")
    missing = [name for name in SAMPLED.split() if f"\nonetrip_{name}{{" not in text]
    assert missing == []


def test_a_bad_reload_is_refused_and_changes_nothing(program: Onetrip, origin: HttpOrigin) -> None:
    before = program.path.read_text()
    refusals = metric(program, 'config_reloads_total{result="refused"}')
    for text in (before.replace("upstreams:", "upstream:"), before.replace("workers: 1", "workers: many"), "{"):
        program.write(text)
        program.signal(signal.SIGHUP)
        refusals += 1
        event = program.event("config_refused", int(refusals))
        assert event["faults"][0].startswith(f"{program.path}:")
        assert event["kept"] == "the running config"
        assert get(program.port()).text == "origin /"
    assert metric(program, 'config_reloads_total{result="refused"}') == refusals
    program.write(before)


def test_a_reload_keeps_connections_and_warm_pools_of_what_stays(program: Onetrip, origin: HttpOrigin) -> None:
    before = program.path.read_text()
    reloads = int(metric(program, 'config_reloads_total{result="ok"}'))
    kept = Client(program.port())
    assert kept.get().status == 200
    opened = metric(program, "upstream_connections_opened_total")
    with http_origin("second") as second:
        added = f'  - {{name: more, address: "127.0.0.1:{free_port()}", upstream: other}}\n'
        other = f'  other: {{protocol: h1, regions: {{here: {{endpoints: ["127.0.0.1:{second.port}"]}}}}}}\n'
        more = int(added.partition("127.0.0.1:")[2].partition('"')[0])
        program.write(before.replace("upstreams:\n", added + "upstreams:\n" + other))
        program.signal(signal.SIGHUP)
        program.event("config_reloaded", reloads + 1)
        assert get(more).text == "second /"
        assert kept.get().text == "origin /"
        upstream = program.admin().ask("GET", "/status")["upstreams"]["app"]
        assert upstream["regions"][0]["endpoints"][0]["pool"]["opened"] == {"plain": opened}
        program.write(before)
        program.signal(signal.SIGHUP)
        program.event("config_reloaded", reloads + 2)
        wait_for(lambda: refused(more), "the removed listener's end")
        assert kept.get().text == "origin /"
    kept.close()


def test_reloads_at_the_same_time_do_not_mix(program: Onetrip) -> None:
    before = program.path.read_text()
    port = free_port()
    twice = f'  - {{name: twice, address: "127.0.0.1:{port}", upstream: app}}\n'
    program.write(before.replace("upstreams:\n", twice + "upstreams:\n"))
    results: list[object] = []

    def reload() -> None:
        try:
            results.append(program.admin().ask("POST", "/reload"))
        except AdminError as error:
            results.append(error)

    threads = [threading.Thread(target=reload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    program.write(before)
    program.admin().ask("POST", "/reload")
    assert results == [{"reloaded": True, "restart": [], "faults": []}] * 4
    assert refused(port)


def test_a_hand_over_to_a_program_that_can_not_start_changes_nothing(program: Onetrip) -> None:
    before = program.path.read_text()
    program.write("nonsense")
    program.signal(signal.SIGUSR2)
    program.event("hand_over_failed")
    assert get(program.port()).status == 200
    assert program.admin().ask("GET", "/readyz") == "ok\n"
    program.write(before)


@pytest.mark.parametrize("kind", ["", "tls", "proxy_protocol: true"])
def test_a_start_says_nothing_of_clients_that_do_not_exist(origin: HttpOrigin, tmp_path: Path, kind: str) -> None:
    """The rehearsal's requests are neither handshakes nor PROXY headers, whatever the listener wants."""
    if kind == "tls":
        leaf = issue(make_ca(tmp_path), names=["a.test"])
        kind = f'tls: {{certificates: [{{certificate: "{leaf.certificate}", key: "{leaf.key}"}}]}}'
    text = config(origin.port)
    if kind:
        text = text.replace("upstream: app}", f"upstream: app, {kind}}}", 1)
    with serving(tmp_path, text) as program:
        assert [event["event"] for event in program.events] == ["listening", "ready"]


def test_systemd_hears_of_the_successor_and_of_no_end(origin: HttpOrigin, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        with serving(tmp_path, config(origin.port), NOTIFY_SOCKET=str(tmp_path / "notify")) as program:
            assert systemd.recv(1000) == f"READY=1\nMAINPID={program.pid}".encode()
            program.signal(signal.SIGUSR2)
            successor = program.event("hand_over")["successor"]
            assert systemd.recv(1000) == f"READY=1\nMAINPID={successor}".encode()
            assert systemd.recv(1000) == f"MAINPID={successor}".encode()
            assert program.wait() == 0
            os.kill(successor, signal.SIGTERM)
            assert systemd.recv(1000) == b"STOPPING=1"


def test_told_to_stop_while_it_hands_over_the_service_stops(origin: HttpOrigin, tmp_path: Path) -> None:
    with Blackhole() as slow, serving(tmp_path, config(origin.port)) as program:
        program.write(config(slow.port))  # whose pool gets warm late, if at all
        program.signal(signal.SIGUSR2)
        successor = program.event("hand_over")["successor"]
        program.event("listening", 2)
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        wait_for(lambda: not alive(successor), "the successor's end")


async def test_process_1_refuses_to_hand_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    log = SimpleNamespace(error=lambda event, **fields: said.append(event))
    keys = TicketKeys(contexts=1)
    program = SingleProcess(Beginning("none", parse_config(config(1)), {}, log, {}, ForkServer(keys, None)))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    await program._hand_over()
    assert said == ["hand_over_refused"]


# Stopping.


@pytest.fixture
def held(origin: HttpOrigin) -> Iterator[HttpOrigin]:
    origin.release.clear()
    origin.held = 0
    yield origin
    origin.release.set()


def test_requests_under_way_are_finished_and_no_others_begun(held: HttpOrigin, tmp_path: Path) -> None:
    with serving(tmp_path, config(held.port)) as program:
        client = Client(program.port())
        client.send("/held")
        wait_for(lambda: held.held, "the request at the origin")
        program.signal(signal.SIGTERM)
        program.event("draining")
        wait_for(lambda: refused(program.port()), "the listener's end")
        with pytest.raises(AdminError, match="draining"):
            program.admin().ask("GET", "/readyz")
        assert program.admin().ask("GET", "/livez") == "ok\n"
        assert program.admin().ask("GET", "/status")["stopping"] is True
        assert program.process.poll() is None
        held.release.set()
        answer = client.answer()
        assert (answer.status, answer.text) == (200, "origin /held")
        assert answer.headers["connection"] == "close"
        assert program.wait() == 0


def test_after_the_deadline_connections_are_cut(held: HttpOrigin, tmp_path: Path) -> None:
    with serving(tmp_path, config(held.port, shutdown="deadline: 100ms")) as program:
        client = Client(program.port())
        client.send("/held")
        wait_for(lambda: held.held, "the request at the origin")
        program.signal(signal.SIGTERM)
        assert program.wait() == 3
        assert program.event("stopped")["connections_cut"] == 1


def test_a_second_signal_stops_at_once(held: HttpOrigin, tmp_path: Path) -> None:
    with serving(tmp_path, config(held.port, shutdown="deadline: 10m")) as program:
        client = Client(program.port())
        client.send("/held")
        wait_for(lambda: held.held, "the request at the origin")
        program.signal(signal.SIGTERM)
        program.event("draining")
        wait_for(lambda: refused(program.port()), "the listener's end")
        program.signal(signal.SIGTERM)
        assert program.wait() == 3


def test_while_it_settles_it_is_not_ready_and_still_serves(origin: HttpOrigin, tmp_path: Path) -> None:
    with serving(tmp_path, config(origin.port, shutdown="settle: 1s, deadline: 10s")) as program:
        program.signal(signal.SIGINT)
        program.event("draining")
        with pytest.raises(AdminError, match="draining"):
            program.admin().ask("GET", "/readyz")
        assert get(program.port()).status == 200
        assert program.wait() == 0
        program.event("stopped")


# Handing over.


def test_a_new_program_takes_over_without_a_failed_request(origin: HttpOrigin, tmp_path: Path) -> None:
    with serving(tmp_path, config(origin.port)) as program, Load(program.port()) as load:
        load.more()
        program.signal(signal.SIGUSR2)
        successor = program.event("hand_over")["successor"]
        load.more()
        assert program.wait() == 0
        load.more(200)
        assert load.failures == []
        assert alive(successor)
        assert program.admin(listening=2).ask("GET", "/readyz") == "ok\n"
        assert program.event("listening", 2)["listeners"] == program.event("listening")["listeners"]
        os.kill(successor, signal.SIGTERM)
        wait_for(lambda: not alive(successor), "the successor's end")
