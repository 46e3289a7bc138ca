"""Reloads of the running program: what changes is seen, what stays keeps its connections, and nobody's request fails."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..program import (
    WAIT_S,
    Client,
    HttpOrigin,
    Load,
    Onetrip,
    config,
    free_port,
    get,
    http_origin,
    refused,
    serving,
    wait_for,
)

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        yield found


def reload(program: Onetrip, text: str | None = None) -> dict[str, Any]:
    """Write the file and ask for a reload; the answer."""
    if text is not None:
        program.write(text)
    connection = http.client.HTTPConnection(program.admin().address, timeout=WAIT_S)
    try:
        connection.request("POST", "/reload")
        found = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    assert isinstance(found, dict)
    return found


def pools(program: Onetrip, upstream: str = "app") -> dict[str, dict[str, Any]]:
    """Each endpoint's pool, from the status."""
    regions = program.admin().ask("GET", "/status")["upstreams"][upstream]["regions"]
    return {one["endpoint"]: one["pool"] for region in regions for one in region["endpoints"]}


CHANGES: dict[str, Callable[[str], str]] = {
    "a time-out": lambda text: text.replace("protocol: h1", "protocol: h1\n    timeouts: {response: 16s}"),
    "the pool": lambda text: text.replace("protocol: h1", "protocol: h1\n    pool: {warm: 5, max_age: 5m}"),
    "a check": lambda text: text.replace("protocol: h1", "protocol: h1\n    health: {path: /healthz}"),
    "how it is reached": lambda text: text.replace("protocol: h1", "protocol: auto"),
    "its region's name": lambda text: text.replace("here:", "there:"),
    "its endpoint's name": lambda text: text.replace('["127.0.0.1:', '["localhost:'),
    "a listener's option": lambda text: text.replace("upstream: app}", "upstream: app, fast_open: true}"),
    "the access log": lambda text: text.replace("access_log: off", "access_log: {path: access.log}"),
}


@WORKERS
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_under_load_costs_nothing(origin: HttpOrigin, tmp_path: Path, change: str, workers: int) -> None:
    before = config(origin.port, workers=workers)
    after = CHANGES[change](before)
    assert before != after
    with serving(tmp_path, before) as program, Load(program.port()) as load:
        load.more()
        for text in (after, before):
            assert reload(program, text) == {"reloaded": True, "restart": [], "faults": []}
            load.more(100)
        assert not load.failures
        assert not [event for event in program.events if event["event"] in ("task_failed", "reload_failed")]


def test_connections_stay_where_they_would_be_made_the_same_way(origin: HttpOrigin, tmp_path: Path) -> None:
    text = config(origin.port)
    with serving(tmp_path, text) as program:
        opened = pools(program)[f"127.0.0.1:{origin.port}"]["opened"]
        assert reload(program, text.replace("protocol: h1", "protocol: h1\n    timeouts: {response: 16s}"))["reloaded"]
        assert get(program.port()).status == 200
        assert pools(program)[f"127.0.0.1:{origin.port}"]["opened"] == opened


def test_requests_that_wait_for_an_endpoint_that_goes_find_another(origin: HttpOrigin, tmp_path: Path) -> None:
    """Its connections are all in use, so they wait; then a reload takes it away."""
    tight = "protocol: h1\n    pool: {warm: 1, max_connections: 1}\n    hedge: off"
    text = config(origin.port).replace("protocol: h1", tight)
    with serving(tmp_path, text) as program, http_origin("another") as another:
        busy, waiting = Client(program.port()), Client(program.port())
        busy.send("/held/1")
        wait_for(lambda: origin.held, "the first request")
        waiting.send("/second")
        wait_for(lambda: pools(program)[f"127.0.0.1:{origin.port}"]["waiting"] == 1, "the second one waits")
        assert reload(program, text.replace(str(origin.port), str(another.port)))["reloaded"]
        assert waiting.answer().text == "another /second"
        origin.release.set()
        assert busy.answer().text == "origin /held/1", "what was under way ends where it began"


@WORKERS
def test_a_faulty_reload_leaves_nothing(origin: HttpOrigin, tmp_path: Path, workers: int) -> None:
    """Everything in it is right but for the log, whose directory is gone; the corrected one is taken."""
    text = config(origin.port, workers=workers)
    port = free_port()
    wrong = text.replace("upstreams:", f'  - {{name: more, address: "127.0.0.1:{port}", upstream: app}}\nupstreams:', 1)
    wrong = wrong.replace("access_log: off", f"access_log: {{path: {tmp_path}/gone/access.log}}")
    with serving(tmp_path, text) as program:
        (tmp_path / "gone").mkdir()
        program.write(wrong)
        (tmp_path / "gone").rmdir()
        answer = reload(program)
        assert not answer["reloaded"]
        assert "gone" in str(answer["faults"])
        assert refused(port)
        assert get(program.port()).status == 200
        assert [one["name"] for one in program.admin().ask("GET", "/status")["listeners"]] == ["web"]
        (tmp_path / "gone").mkdir()
        assert reload(program)["reloaded"]
        assert get(port).status == get(program.port()).status == 200
        wait_for(lambda: (tmp_path / "gone" / "access.log").read_text().count("\n") == 2, "both are logged")


def test_listeners_swap_their_addresses(origin: HttpOrigin, tmp_path: Path) -> None:
    one, two = free_port(), free_port()
    line = '  - {{name: {}, address: "127.0.0.1:{}", upstream: app}}\n'
    before = config(origin.port, listeners=line.format("a", one) + line.format("b", two))
    after = config(origin.port, listeners=line.format("a", two) + line.format("b", one))
    with serving(tmp_path, before) as program, Load(one) as load:
        load.more()
        assert reload(program, after)["reloaded"]
        load.more()
        assert not load.failures
        assert get(two).status == 200


@pytest.mark.parametrize("hosts", [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "localhost")])
def test_a_listener_moves_to_an_address_that_overlaps(
    origin: HttpOrigin, tmp_path: Path, hosts: tuple[str, str]
) -> None:
    port = free_port()
    line = '  - {{name: more, address: "{}:{}", upstream: app}}\n'
    with serving(tmp_path, config(origin.port, listeners=line.format(hosts[0], port))) as program:
        assert reload(program, config(origin.port, listeners=line.format(hosts[1], port)))["reloaded"]
        assert get(port).status == 200


def test_a_listener_becomes_one_of_another_protocol(origin: HttpOrigin, tmp_path: Path) -> None:
    port = free_port()
    line = '  - {{name: more, address: "127.0.0.1:{}", protocol: {}, upstream: raw}}\n'
    more = f'  raw: {{protocol: h1, regions: {{here: {{endpoints: ["127.0.0.1:{origin.port}"]}}}}}}\n'
    http = config(origin.port, listeners=line.format(port, "http"), upstreams=more)
    tcp = config(
        origin.port, listeners=line.format(port, "tcp"), upstreams=more.replace("protocol: h1", "protocol: tcp")
    )
    with serving(tmp_path, http) as program:
        assert "via" in get(port).headers or get(port).status == 200
        for text, protocol in ((tcp, "tcp"), (http, "http")):
            assert reload(program, text)["reloaded"]
            assert get(port).text == "origin /"
            found = {one["name"]: one["protocol"] for one in program.admin().ask("GET", "/status")["listeners"]}
            assert found["more"] == protocol


def test_two_reloads_at_once_end_with_the_last_file(origin: HttpOrigin, tmp_path: Path) -> None:
    text = config(origin.port)
    with serving(tmp_path, text) as program, Load(program.port()) as load:
        load.more()
        for seconds in range(16, 26):
            program.write(text.replace("protocol: h1", f"protocol: h1\n    timeouts: {{response: {seconds}s}}"))
            program.signal(signal.SIGHUP)
            threading.Thread(target=reload, args=(program,), daemon=True).start()
        wait_for(lambda: "response: 25s" in program.admin().ask("GET", "/config"), "the last one")
        load.more()
        assert not load.failures


@WORKERS
def test_a_removed_listeners_requests_end_in_their_time(origin: HttpOrigin, tmp_path: Path, workers: int) -> None:
    """They are seen, and a drain waits for them too."""
    port = free_port()
    text = config(origin.port, workers=workers)
    line = f'  - {{name: more, address: "127.0.0.1:{port}", upstream: app}}\nupstreams:'
    with serving(tmp_path, text.replace("upstreams:", line, 1)) as program:
        client = Client(port)
        client.send("/held/1")
        wait_for(lambda: origin.held, "the request")
        assert reload(program, text)["reloaded"]
        assert refused(port)
        found = {one["name"]: one for one in program.admin().ask("GET", "/status")["listeners"]}
        assert found["more"]["draining"]
        assert found["more"]["requests_in_flight"] == 1
        program.signal(signal.SIGTERM)
        program.event("draining")
        time.sleep(0.3)  # nothing should happen in it
        origin.release.set()
        assert client.answer().status == 200
        assert program.wait() == 0


def test_what_has_left_stays_counted(origin: HttpOrigin, tmp_path: Path) -> None:
    port = free_port()
    more = f'  other: {{protocol: h1, regions: {{far: {{endpoints: ["127.0.0.1:{origin.port}"]}}}}}}\n'
    line = f'  - {{name: more, address: "127.0.0.1:{port}", upstream: other}}\n'
    text = config(origin.port)
    with serving(tmp_path, config(origin.port, listeners=line, upstreams=more)) as program:
        for _ in range(3):
            assert get(port).status == 200
        before = counters(program)
        assert before['onetrip_requests_total{code="200",listener="more"}'] == 3
        assert reload(program, text)["reloaded"]
        wait_for(lambda: "other" not in program.admin().ask("GET", "/status")["upstreams"], "it has left")
        after = counters(program)
        assert {name: after.get(name) for name in before if after.get(name, 0.0) < before[name]} == {}


def counters(program: Onetrip) -> dict[str, float]:
    """Every counter of `/metrics`."""
    found = {}
    for line in program.admin().ask("GET", "/metrics").splitlines():
        name, _, value = line.rpartition(" ")
        if "_total" in name.partition("{")[0] and not line.startswith("#"):
            head, brace, labels = name.partition("{")
            found[head + brace + ",".join(sorted(labels.rstrip("}").split(","))) + ("}" if brace else "")] = float(
                value
            )
    return found
