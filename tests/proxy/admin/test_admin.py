"""The admin endpoints: paths, methods, token, statuses, and the shape of what they say."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.admin.admin import BODY_MAX, Admin
from proxy.admin.questions import answer, merge
from proxy.loop.background import Background
from proxy.loop.timers import Timers
from proxy.loop.turn import Turn

from ..e2e.harness import Log, Peer
from ..edge import Edge, config, edge, origin


class Backend:
    """Answers as it is told to."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = [{"ready": True}]
        self.asked: list[dict[str, Any]] = []
        self.stopping = False
        self.result: dict[str, Any] = {"reloaded": True, "restart": [], "faults": []}

    async def ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(question)
        return self.answers

    async def reload(self) -> dict[str, Any]:
        return self.result

    def reloads(self) -> dict[str, int]:
        return {"ok": 3, "refused": 1}

    def config_yaml(self) -> str:
        return "listeners: []\n"


class OneWorker(Backend):
    """A real worker behind it."""

    def __init__(self, it: Edge) -> None:
        super().__init__()
        self.it = it

    async def ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(json.dumps(await answer(self.it.worker, question)))]


class Answer:
    def __init__(self, status: int, fields: dict[str, str], body: bytes) -> None:
        self.status, self.fields, self.body = status, fields, body

    @property
    def json(self) -> Any:
        assert self.fields["content-type"] == "application/json"
        return json.loads(self.body)


class Asking:
    """A client of an admin address."""

    def __init__(self, port: int, background: Background, log: Log) -> None:
        self.port = port
        self.failures: list[BaseException] = []
        self.log = log

    async def __call__(
        self, method: str, path: str, body: Any = None, token: str = "", fields: dict[str, str] | None = None
    ) -> Answer:
        sock = socket.create_connection(("127.0.0.1", self.port))
        peer = Peer(sock)
        try:
            content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            lines = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{self.port}", "connection: close"]
            if body is not None:
                lines.append(f"content-length: {len(content)}")
            if token:
                lines.append(f"authorization: {token}")
            lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
            await peer.send_quietly("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
            head = (await peer.until(b"\r\n\r\n")).decode().split("\r\n")
            rest = await peer.rest()
        finally:
            peer.close()
        found = dict(line.lower().split(": ", 1) for line in head[1:])
        if method != "HEAD":
            assert len(rest) == int(found["content-length"])
        return Answer(int(head[0].split()[1]), found, rest)


@asynccontextmanager
async def asking(backend: Backend, token: str | None = None) -> AsyncIterator[Asking]:
    loop = asyncio.get_running_loop()
    turn, log = Turn(loop), Log()
    failures: list[BaseException] = []
    background = Background(lambda name, error: failures.append(error))
    admin = Admin(
        backend,
        token,
        turn=turn,
        timers=Timers(loop, turn),
        background=background,
        log=log,
        restarts=lambda: 2,
    )
    server = await loop.create_server(admin.listener.accept, "127.0.0.1", 0)
    client = Asking(server.sockets[0].getsockname()[1], background, log)
    client.failures = failures
    try:
        yield client
    finally:
        server.close()
        admin.listener.abort()
        await background.close()


READS = ["/", "/livez", "/readyz", "/healthz", "/metrics", "/status", "/config", "/explain?url=http://x/"]
CHANGES = ["/drain", "/undrain", "/reload"]


# Paths and methods.


@pytest.mark.parametrize("path", READS)
async def test_what_is_read_answers_get_and_head_and_nothing_else(path: str) -> None:
    async with origin() as app, edge(config(app.port)) as it, asking(OneWorker(it)) as ask:
        found = await ask("GET", path)
        assert found.status == 200
        assert found.body
        assert found.fields["cache-control"] == "no-store"
        assert "date" in found.fields
        head = await ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.fields["content-type"] == found.fields["content-type"]
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            refused = await ask(method, path, {})
            assert refused.status == 405
            assert refused.fields["allow"] == "get, head"
            assert refused.json["fault"].endswith("is read by GET")


@pytest.mark.parametrize("path", CHANGES)
async def test_what_changes_something_answers_post_and_nothing_else(path: str) -> None:
    backend = Backend()
    async with asking(backend) as ask:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            refused = await ask(method, path)
            assert refused.status == 405
            assert refused.fields["allow"] == "post"
        assert backend.asked == []


async def test_an_unknown_path_lists_the_known_ones() -> None:
    async with asking(Backend()) as ask:
        for method in ("GET", "POST"):
            found = await ask(method, "/nothing")
            assert found.status == 404
            assert found.json["fault"] == "nothing at /nothing"
            assert set(found.json["paths"]) == {path.partition("?")[0] for path in READS} | set(CHANGES)


async def test_a_target_that_is_no_url_is_a_bad_request() -> None:
    async with asking(Backend()) as ask:
        found = await ask("GET", "//[")
        assert found.status in (400, 404)
        assert ask.failures == []


# Health.


async def test_live_ready_and_why_not() -> None:
    backend = Backend()
    async with asking(backend) as ask:
        assert (await ask("GET", "/livez")).body == b"ok\n"
        assert (await ask("GET", "/readyz")).body == b"ok\n"
        assert (await ask("GET", "/healthz")).json == {"live": True, "ready": True, "reason": "ready"}
        for answers, stopping, reason in (
            ([{"ready": False}], False, "starting"),
            ([{"ready": True}, {"ready": False}], False, "starting"),
            ([], False, "starting"),
            ([{"ready": True}], True, "draining"),
        ):
            backend.answers, backend.stopping = answers, stopping
            assert (await ask("GET", "/livez")).status == 200
            found = await ask("GET", "/readyz")
            assert found.status == 503
            assert found.body.decode().startswith(reason)
            assert found.fields["retry-after"] == "1"
            health = await ask("GET", "/healthz")
            assert health.status == 503
            assert health.json["live"] is True
            assert health.json["ready"] is False
            assert health.json["reason"].startswith(reason)


# The token.


@pytest.mark.parametrize(
    "given", ["", "Bearer wrong", "Bearer", "Basic c2VjcmV0", "secret", "Bearer secret2", "bearer"]
)
async def test_a_wrong_token_opens_nothing_but_health(given: str) -> None:
    backend = Backend()
    async with asking(backend, "secret") as ask:
        for path in ("/livez", "/readyz", "/healthz"):
            assert (await ask("GET", path, token=given)).status == 200
        backend.asked.clear()
        for method, path in [*(("GET", path) for path in ("/", "/metrics", "/status", "/config", "/nothing"))]:
            found = await ask(method, path, token=given)
            assert found.status == 401
            assert found.fields["www-authenticate"] == "bearer"
            assert "authorization: Bearer TOKEN" in found.json["fault"]
        for path in CHANGES:
            assert (await ask("POST", path, {"region": "us"}, token=given)).status == 401
        assert backend.asked == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_right_token_opens_all(scheme: str) -> None:
    async with asking(Backend(), "secret") as ask:
        assert (await ask("GET", "/config", token=f"{scheme} secret")).status == 200
        assert (await ask("POST", "/reload", token=f"{scheme} secret")).status == 200


async def test_pages_of_other_sites_change_nothing() -> None:
    """A browser sends such a POST without asking anybody first."""
    backend = Backend()
    backend.answers = [{"drained": ["app"]}]
    async with asking(backend) as ask:
        for other in ("https://evil.example", "null", f"http://127.0.0.1:{ask.port + 1}"):
            found = await ask("POST", "/drain", {"region": "us"}, fields={"origin": other})
            assert found.status == 403
        assert backend.asked == []
        own = {"origin": f"http://127.0.0.1:{ask.port}"}
        assert (await ask("POST", "/drain", {"region": "us"}, fields=own)).status == 200


# Changing.


async def test_draining_and_undraining() -> None:
    backend = Backend()
    async with asking(backend) as ask:
        backend.answers = [{"drained": ["app", "api"]}]
        assert (await ask("POST", "/drain", {"region": "us"})).json == {"drained": ["app", "api"]}
        assert (await ask("POST", "/drain", {"region": "us", "upstream": "app", "for": "1h30m"})).status == 200
        assert (await ask("POST", "/drain", {"region": "us", "upstream": None, "for": None})).status == 200
        backend.answers = [{"undrained": ["app"]}]
        assert (await ask("POST", "/undrain", {"region": "us", "upstream": "app"})).json == {"undrained": ["app"]}
        assert backend.asked == [
            {"do": "drain", "region": "us", "upstream": None},
            {"do": "drain", "region": "us", "upstream": "app", "for_s": 5400.0},
            {"do": "drain", "region": "us", "upstream": None},
            {"do": "undrain", "region": "us", "upstream": "app"},
        ]


@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        ("/drain", b"", "no region"),
        ("/drain", b"{", "not JSON"),
        ("/drain", b"\xff\xfe", "not JSON"),
        ("/drain", b"[]", "no region"),
        ("/drain", b'{"region": 3}', "no region"),
        ("/drain", b'{"regoin": "us"}', "no region"),
        ("/drain", b'{"region": "us", "form": "15m"}', "unknown: form"),
        ("/drain", b'{"region": "us", "upstream": 3}', "upstream is a name"),
        ("/drain", b'{"region": "us", "for": "soon"}', "for: expected a duration"),
        ("/drain", b'{"region": "us", "for": 15}', "did you mean 15s?"),
        ("/drain", b'{"region": "us", "for": "0s"}', "for no time at all"),
        ("/drain", b'{"region": "us", "for": "-5m"}', "for: expected a duration"),
        ("/undrain", b'{"region": "us", "for": "15m"}', "unknown: for"),
        ("/undrain", b"", "no region"),
    ],
)
async def test_what_can_not_be_understood_is_explained(path: str, body: bytes, fault: str) -> None:
    backend = Backend()
    async with asking(backend) as ask:
        found = await ask("POST", path, body)
        assert found.status == 400
        assert fault in found.json["fault"]
        assert backend.asked == []


async def test_a_region_or_upstream_that_is_not_there_is_named() -> None:
    async with origin() as app, edge(config(app.port)) as it, asking(OneWorker(it)) as ask:
        found = await ask("POST", "/drain", {"region": "r9"})
        assert (found.status, found.json) == (404, {"fault": "no upstream has a region r9; regions: r1"})
        found = await ask("POST", "/undrain", {"region": "r1", "upstream": "nope"})
        assert (found.status, found.json) == (404, {"fault": "no upstream nope has a region r1; regions: r1"})


async def test_a_drain_drains() -> None:
    async with origin() as one, origin() as two, edge(config(one.port, two.port)) as it, asking(OneWorker(it)) as ask:
        assert (await ask("POST", "/drain", {"region": "r1", "for": "15m"})).json == {"drained": ["app"]}
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        assert (len(one.peers), len(two.peers)) == (0, 1)
        regions = (await ask("GET", "/status")).json["upstreams"]["app"]["regions"]
        assert {region["region"]: region["state"] for region in regions} == {"r1": "drained", "r2": "healthy"}
        assert (await ask("POST", "/undrain", {"region": "r1"})).json == {"undrained": ["app"]}


async def test_a_reload_tells_what_became_of_it() -> None:
    backend = Backend()
    async with asking(backend) as ask:
        found = await ask("POST", "/reload")
        assert (found.status, found.json) == (200, {"reloaded": True, "restart": [], "faults": []})
        backend.result = {"reloaded": False, "restart": [], "faults": ["onetrip.yaml:1:1: bad"]}
        found = await ask("POST", "/reload")
        assert (found.status, found.json) == (422, backend.result)


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with asking(Backend()) as ask:
        assert (await ask("POST", "/drain", b"x" * (BODY_MAX + 1))).status == 413


async def test_without_a_worker_nothing_hangs() -> None:
    backend = Backend()
    backend.answers = []
    async with asking(backend) as ask:
        for method, path in (("GET", "/status"), ("GET", "/explain?url=x"), ("POST", "/drain"), ("POST", "/undrain")):
            found = await ask(method, path, {"region": "us"} if method == "POST" else None)
            assert (found.status, found.json) == (503, {"fault": "no worker answers"})
        assert (await ask("GET", "/metrics")).status == 200


async def test_our_own_faults_are_answered_too() -> None:
    backend = Backend()

    async def fail(question: dict[str, Any]) -> list[dict[str, Any]]:
        raise RuntimeError("ours")

    backend.ask = fail  # type: ignore[method-assign]
    async with asking(backend) as ask:
        found = await ask("GET", "/status")
        assert (found.status, found.json) == (500, {"fault": "the proxy failed here: see its log"})
        await asyncio.sleep(0)
        assert [str(error) for error in ask.failures] == ["ours"]


# What they say.


async def test_status() -> None:
    async with origin() as app, edge(config(app.port, warm=1)) as it, asking(OneWorker(it)) as ask:
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        found = (await ask("GET", "/status")).json
        keys = {"version", "workers", "stopping", "ready", "uptime_s", "tls_sessions", "listeners", "upstreams"}
        assert set(found) == keys
        assert (found["workers"], found["stopping"], found["ready"]) == (1, False, True)
        assert found["listeners"] == [
            {"name": "edge", "protocol": "tcp", "connections": 1, "accepted": 1, "failed": 0, "draining": False}
        ]
        upstream = found["upstreams"]["app"]
        assert upstream["policy"] == "ordered"
        assert set(upstream) >= {"requests_per_s", "regions", "hedges", "retries"}
        (region,) = upstream["regions"]
        for key in ("region", "state", "weight", "in_flight", "rtt_ms", "service_p50_ms", "service_p95_ms", "standby"):
            assert key in region
        (endpoint,) = region["endpoints"]
        assert endpoint["endpoint"] == f"127.0.0.1:{app.port}"
        pool = endpoint["pool"]
        assert (pool["busy"], pool["idle"] + pool["dialling"], pool["reused"]) == (1, 1, 1)
        assert pool["opened"]["plain"] >= 1


async def test_an_endpoint_that_fails_says_why() -> None:
    async with edge(config("127.0.0.1:1", warm=1)) as it, asking(OneWorker(it)) as ask:
        (region,) = (await ask("GET", "/status")).json["upstreams"]["app"]["regions"]
        assert region["endpoints"][0]["last_error"].startswith("127.0.0.1:1: Connection refused")
        assert region["endpoints"][0]["pool"]["dial_failures"] >= 1


async def test_metrics() -> None:
    async with origin() as app, edge(config(app.port, warm=1)) as it, asking(OneWorker(it)) as ask:
        found = await ask("GET", "/metrics")
        assert found.fields["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = found.body.decode()
        assert re.search(r'^onetrip_build_info\{version="[^"]+"\} 1\.0$', text, re.MULTILINE)
        assert 'onetrip_config_reloads_total{result="ok"} 3.0' in text
        assert 'onetrip_config_reloads_total{result="refused"} 1.0' in text
        assert "onetrip_worker_restarts_total 2.0" in text
        assert 'onetrip_region_state{region="r1",upstream="app"} 0.0' in text
        for line in text.splitlines():
            assert line.startswith(("# HELP onetrip_", "# TYPE onetrip_", "onetrip_")), line


async def test_explain() -> None:
    async with origin() as app, edge(config(app.port, warm=1)) as it, asking(OneWorker(it)) as ask:
        found = (await ask("GET", "/explain?url=http://shop.example/v1&method=POST")).json
        assert (found["url"], found["method"]) == ("http://shop.example/v1", "POST")
        (way,) = found["listeners"]
        assert way["listener"] == "edge"
        assert way["route"] == {"host": "*", "path": "/", "methods": [], "headers": {}}
        assert (way["upstream"], way["region"], way["endpoint"]) == ("app", "r1", f"127.0.0.1:{app.port}")
        assert way["warm_connections"] == 1
        assert [region["region"] for region in way["regions"]] == ["r1"]
        assert way["regions"][0]["why"]


async def test_explain_without_a_route_or_a_url() -> None:
    listener = 'routes: [{match: {host: "known.test"}, upstream: app}]'
    async with (
        origin() as app,
        edge(config(app.port, protocol="sni", listener=listener)) as it,
        asking(OneWorker(it)) as ask,
    ):
        assert (await ask("GET", "/explain")).status == 400
        assert "Invalid IPv6" in (await ask("GET", "/explain?url=http://[")).json["fault"]
        (way,) = (await ask("GET", "/explain?url=https://other.test/")).json["listeners"]
        assert way == {"listener": "edge", "route": None, "why": "no route matches"}
        (way,) = (await ask("GET", "/explain?url=known.test")).json["listeners"]
        assert way["region"] == "r1"


async def test_the_page_and_the_config() -> None:
    async with asking(Backend()) as ask:
        page = await ask("GET", "/")
        assert page.fields["content-type"] == "text/html; charset=utf-8"
        assert page.body.lower().startswith(b"<!doctype html>")
        found = await ask("GET", "/config")
        assert found.fields["content-type"] == "text/plain; charset=utf-8"
        assert found.body == b"listeners: []\n"


# Several workers as one.

ADDS_UP = {
    *("accepted", "connections", "failed", "in_flight", "requests", "requests_in_flight", "requests_per_s"),
    *("busy", "dial_failures", "dialling", "idle", "ready", "reused", "waiting"),
    *("early", "full", "plain", "resumed"),
    *("attempts", "count", "denied", "hedges", "lost", "won"),
}


async def test_what_adds_up_over_workers_and_what_does_not() -> None:
    """Twice the same worker: every number is either the same or twice as much, by its meaning."""

    def compare(one: Any, merged: Any, key: str) -> None:
        if isinstance(one, dict):
            assert set(one) == set(merged)
            for name in one:
                compare(one[name], merged[name], name)
        elif isinstance(one, list):
            assert len(one) == len(merged)
            for first, second in zip(one, merged, strict=True):
                compare(first, second, key)
        elif isinstance(one, int | float) and not isinstance(one, bool) and key in ADDS_UP:
            assert merged == pytest.approx(2 * one), key
        else:
            assert merged == (pytest.approx(one, abs=1e-3) if isinstance(one, float) else one), key

    async with origin() as app, edge(config(app.port, "127.0.0.1:1", warm=1)) as it:
        client = await it.connect()
        await client.send(b"x")
        await client.exactly(1)
        one = it.worker.status()
        compare(one, merge([one, json.loads(json.dumps(one))]), "")


def test_workers_that_differ() -> None:
    us, eu = {"region": "us", "state": "healthy", "in_flight": 1}, {"region": "eu", "state": "healthy", "in_flight": 2}
    a = {"worker": 0, "ready": True, "uptime_s": 9.0, "weight": 0.2, "rtt_ms": None, "regions": [us, eu]}
    b = {"worker": 1, "ready": False, "uptime_s": 4.0, "weight": 0.6, "rtt_ms": 5.0, "regions": [{**eu, "extra": 1}]}
    assert merge([a, b]) == {
        "worker": 0,
        "ready": False,
        "uptime_s": 9.0,
        "weight": 0.4,
        "rtt_ms": 5.0,
        "regions": [us, {"region": "eu", "state": "healthy", "in_flight": 4, "extra": 1}],
    }
    assert merge([a]) is a


async def test_a_question_that_nobody_knows() -> None:
    async with origin() as app, edge(config(app.port)) as it:
        assert await answer(it.worker, {"do": "fly"}) == {"fault": "no such question: fly"}
