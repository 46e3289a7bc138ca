"""grpcio, client and server, through the proxy: the real thing on both sides."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from loadtests.lab.certificates import Issued, issue, make_ca
from proxy.config import parse_config
from proxy.process import inheritance as listening
from proxy.process.worker import Worker
from tlscache.ticket_keys import TicketKeys

WAIT_S = 10.0
SERVICE = "test.Echo"

CONFIG = """
listeners:
  - name: web
    address: "127.0.0.1:0"{tls_down}
    routes: [{{match: {{path: /test.Echo/}}, upstream: app}}, {{match: {{path: /grpc.}}, upstream: app}}]
upstreams:
  app:
    protocol: {protocol}
    regions: {regions}
    timeouts: {{total: {total}}}
    hedge: off
    retry: {{attempts: 2, budget: 100%, idempotency_key: true}}
    pool: {{warm: 1, keepalive: 15s}}{tls_up}{extra}
access_log: off
"""


class Log:
    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: None


class Proxy:
    """A worker on an event loop of its own, in a thread of its own: grpcio's calls block."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.up = threading.Event()
        self.port = 0
        self.problem: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.up.wait(WAIT_S)
        if self.problem is not None:
            raise self.problem

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        try:
            parsed = parse_config(self.text)
            sockets = listening.open_sockets(parsed)
            sockets.pop(listening.ADMIN).close()
            self.worker = Worker(parsed, Log(), TicketKeys(contexts=1))
            self.port = sockets["web"].getsockname()[1]
            await self.worker.start(sockets)
            async with asyncio.timeout(WAIT_S):
                await self.worker.ready.wait()
        except BaseException as problem:
            self.problem = problem
            self.up.set()
            raise
        self.up.set()
        await self.stopped.wait()
        await self.worker.close()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run something on the proxy's loop."""

        async def run() -> Any:
            found = function()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)
        self.thread.join(WAIT_S)


@dataclass
class Server:
    """A grpcio server: `unary`, `down`, `up` and `both` streaming, with handlers that tests may replace."""

    unary: Callable[[bytes, Any], bytes] = lambda request, context: request
    down: Callable[[bytes, Any], Iterator[bytes]] = lambda request, context: (request * n for n in range(1, 50))
    up: Callable[[Iterator[bytes], Any], bytes] = lambda requests, context: b"".join(requests)
    both: Callable[[Iterator[bytes], Any], Iterator[bytes]] = lambda requests, context: (
        b"<" + r + b">" for r in requests
    )
    serving: int = 1
    calls: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def start(self, leaf: Issued | None) -> Server:
        self.server = grpc.server(futures.ThreadPoolExecutor(16))
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._seen("unary")),
            "Down": grpc.unary_stream_rpc_method_handler(self._seen("down")),
            "Up": grpc.stream_unary_rpc_method_handler(self._seen("up")),
            "Both": grpc.stream_stream_rpc_method_handler(self._seen("both")),
        }
        health = {"Check": grpc.unary_unary_rpc_method_handler(self._check)}
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, methods),
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
            )
        )
        if leaf is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            pair = (leaf.key.read_bytes(), leaf.certificate.read_bytes())
            self.port = self.server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        self.server.start()
        return self

    def _seen(self, name: str) -> Callable[[Any, Any], Any]:
        def run(request: Any, context: Any) -> Any:
            self.calls.append(dict(context.invocation_metadata()))
            return getattr(self, name)(request, context)

        return run

    def _check(self, request: bytes, context: Any) -> bytes:
        if request not in (b"", b"\x0a\x09test.Echo"):
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return b"\x08" + bytes([self.serving]) if self.serving else b""

    def reset(self) -> None:
        for name, one in Server.__dataclass_fields__.items():
            if name in ("unary", "down", "up", "both", "serving"):
                setattr(self, name, one.default)
        self.calls.clear()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grpc")


@pytest.fixture(scope="module")
def ca(directory: Path) -> Issued:
    return make_ca(directory)


@pytest.fixture(scope="module")
def leaf(ca: Issued) -> Issued:
    return issue(ca, names=["localhost", "127.0.0.1"])


Start = Callable[..., tuple[Proxy, grpc.Channel]]


def make_start(ca: Issued, leaf: Issued) -> Iterator[Start]:
    proxies: list[Proxy] = []
    channels: list[grpc.Channel] = []

    def make(*ports: int, tls: bool = False, total: str = "20s", extra: str = "", protocol: str = "") -> Any:
        regions = ", ".join(f'r{number}: {{endpoints: ["127.0.0.1:{port}"]}}' for number, port in enumerate(ports))
        tls_down = f"\n    tls: {{certificates: [{{certificate: {leaf.certificate}, key: {leaf.key}}}]}}"
        text = CONFIG.format(
            regions=f"{{{regions}}}",
            total=total,
            extra=extra,
            protocol=protocol or ("auto" if tls else "h2"),
            tls_down=tls_down if tls else "",
            tls_up=f"\n    tls: {{ca: {ca.certificate}, server_name: localhost}}" if tls else "",
        )
        proxy = Proxy(text)
        proxies.append(proxy)
        if tls:
            trust = grpc.ssl_channel_credentials(ca.certificate.read_bytes())
            channel = grpc.secure_channel(f"localhost:{proxy.port}", trust)
        else:
            channel = grpc.insecure_channel(f"127.0.0.1:{proxy.port}")
        channels.append(channel)
        return proxy, channel

    yield make
    for channel in channels:
        channel.close()
    for proxy in proxies:
        proxy.close()


start = pytest.fixture(make_start, name="start")


@pytest.fixture(scope="module", params=[False, True], ids=["h2c", "tls"])
def running(request: pytest.FixtureRequest, ca: Issued, leaf: Issued) -> Iterator[tuple[Server, grpc.Channel, Proxy]]:
    server = Server().start(leaf if request.param else None)
    made = make_start(ca, leaf)
    proxy, channel = next(made)(server.port, tls=request.param)
    yield server, channel, proxy
    with pytest.raises(StopIteration):
        next(made)
    server.server.stop(None)


@pytest.fixture
def server(running: tuple[Server, grpc.Channel, Proxy]) -> Server:
    running[0].reset()
    return running[0]


@pytest.fixture
def channel(running: tuple[Server, grpc.Channel, Proxy]) -> grpc.Channel:
    return running[1]


def unary(channel: grpc.Channel, service: str = SERVICE) -> Any:
    return channel.unary_unary(f"/{service}/Unary")


def test_unary(server: Server, channel: grpc.Channel) -> None:
    def answer(request: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-raw-bin", b"\0\xff")))
        return request[::-1]

    server.unary = answer
    reply, call = unary(channel).with_call(b"abc", metadata=(("x-mine", "7"),), timeout=WAIT_S)
    assert reply == b"cba"
    assert dict(call.initial_metadata())["x-first"] == "1"
    trailing = dict(call.trailing_metadata())
    assert trailing["x-last"] == "2"
    assert trailing["x-raw-bin"] == b"\0\xff"
    assert server.calls[0]["x-mine"] == "7"
    assert "onetrip" in server.calls[0]["via"]


def test_many_calls_on_one_channel(server: Server, channel: grpc.Channel) -> None:
    waiting = [unary(channel).future(b"%d" % number, timeout=WAIT_S) for number in range(300)]
    assert [one.result() for one in waiting] == [b"%d" % number for number in range(300)]


def test_large_messages(server: Server, channel: grpc.Channel) -> None:
    message = bytes(range(256)) * 12_000  # 3 MB; grpcio takes 4
    assert unary(channel)(message, timeout=WAIT_S) == message


def test_streaming_down(server: Server, channel: grpc.Channel) -> None:
    replies = list(channel.unary_stream(f"/{SERVICE}/Down")(b"ab", timeout=WAIT_S))
    assert replies == [b"ab" * number for number in range(1, 50)]


def test_streaming_up(server: Server, channel: grpc.Channel) -> None:
    messages = [bytes([number]) * 1000 for number in range(200)]
    assert channel.stream_unary(f"/{SERVICE}/Up")(iter(messages), timeout=WAIT_S) == b"".join(messages)


def test_streaming_both_ways(server: Server, channel: grpc.Channel) -> None:
    """Each message is sent only when the answer to the one before is there."""
    answered = threading.Semaphore(1)

    def talk() -> Iterator[bytes]:
        for number in range(50):
            assert answered.acquire(timeout=WAIT_S)
            yield b"%d" % number

    replies = []
    for reply in channel.stream_stream(f"/{SERVICE}/Both")(talk(), timeout=WAIT_S):
        replies.append(reply)
        answered.release()
    assert replies == [b"<%d>" % number for number in range(50)]


def test_error_without_an_answer(server: Server, channel: grpc.Channel) -> None:
    def fail(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: 100 % gone, größer")

    server.unary = fail
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel)(b"", timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no such thing: 100 % gone, größer"
    assert dict(caught.value.trailing_metadata())["x-why"] == "because"


def test_error_within_a_stream(server: Server, channel: grpc.Channel) -> None:
    def fail(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"one"
        context.abort(grpc.StatusCode.DATA_LOSS, "lost")

    server.down = fail
    replies = channel.unary_stream(f"/{SERVICE}/Down")(b"", timeout=WAIT_S)
    assert next(replies) == b"one"
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS


def test_deadline(server: Server, channel: grpc.Channel) -> None:
    ended = threading.Event()

    def hang(request: bytes, context: Any) -> bytes:
        context.add_callback(ended.set)
        ended.wait(WAIT_S)
        return b""

    server.unary = hang
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel)(b"", timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert ended.wait(WAIT_S)


def test_cancelled_call_is_cancelled_at_the_server(server: Server, channel: grpc.Channel) -> None:
    began, ended = threading.Event(), threading.Event()

    def hang(request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(ended.set)
        yield b"one"
        began.set()
        ended.wait(WAIT_S)

    server.down = hang
    call = channel.unary_stream(f"/{SERVICE}/Down")(b"", timeout=WAIT_S)
    assert next(call) == b"one"
    assert began.wait(WAIT_S)
    call.cancel()
    assert ended.wait(WAIT_S)


def test_no_route(server: Server, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "test.Other")(b"", timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "no route" in caught.value.details()


def test_nobody_there(start: Start) -> None:
    gone = Server().start(None)
    gone.server.stop(None).wait(WAIT_S)
    _, channel = start(gone.port)
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel)(b"", timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert f"127.0.0.1:{gone.port}" in caught.value.details()


def test_the_routes_own_deadline(start: Start) -> None:
    release = threading.Event()

    def hang(request: bytes, context: Any) -> bytes:
        release.wait(WAIT_S)
        return b""

    server = Server(unary=hang).start(None)
    _, channel = start(server.port, total="300ms")
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel)(b"", timeout=WAIT_S)
    release.set()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.3 s" in caught.value.details()
    server.server.stop(None)


@pytest.mark.parametrize("keyed", [True, False])
def test_unavailable_is_tried_again_where_that_is_safe(start: Start, keyed: bool) -> None:
    def fail_first(request: bytes, context: Any) -> bytes:
        if "onetrip-attempt" not in dict(context.invocation_metadata()):
            context.abort(grpc.StatusCode.UNAVAILABLE, "try elsewhere")
        return b"second"

    servers = [Server(unary=fail_first).start(None) for _ in range(2)]
    _, channel = start(*(server.port for server in servers))
    metadata = (("idempotency-key", "k1"),) if keyed else ()
    if keyed:
        assert unary(channel)(b"", metadata=metadata, timeout=WAIT_S) == b"second"
    else:
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"", metadata=metadata, timeout=WAIT_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "try elsewhere"
    assert sum(len(server.calls) for server in servers) == (2 if keyed else 1)
    for server in servers:
        server.server.stop(None)


def test_a_server_that_shuts_down_gracefully_fails_nobody(start: Start) -> None:
    """Its calls end well, and once its GOAWAY is here, new ones go to the other one."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(request: bytes, context: Any) -> bytes:
        begun.release()
        go_on.wait(WAIT_S)
        return request

    servers = [Server(unary=slow).start(None) for _ in range(2)]
    proxy, channel = start(*(server.port for server in servers))
    calls = [unary(channel).future(b"x", timeout=WAIT_S) for _ in range(10)]
    for _ in calls:
        assert begun.acquire(timeout=WAIT_S)
    (upstream,) = proxy.worker.upstreams.values()
    stopped = next(server for server in servers if server.calls)
    pool = next(pool for pool in upstream.pools if pool.target.endpoint.port == stopped.port)
    (connection,) = pool.stock.shared
    stopping = stopped.server.stop(WAIT_S)
    while connection in pool.stock.shared:
        assert not stopping.wait(0.01)
    go_on.set()
    calls += [unary(channel).future(b"x", timeout=WAIT_S) for _ in range(50)]
    assert [call.result() for call in calls] == [b"x"] * 60
    for server in servers:
        server.server.stop(None)


@pytest.mark.parametrize(
    ("service", "serving", "expected"),
    [("", 1, True), (SERVICE, 1, True), (SERVICE, 2, False), (SERVICE, 0, False), ("other", 1, False)],
)
def test_health_checks(start: Start, service: str, serving: int, expected: bool) -> None:
    server = Server(serving=serving).start(None)
    proxy, _ = start(server.port, extra=f'\n    health: {{grpc: "{service}", interval: 60s}}')
    (upstream,) = proxy.worker.upstreams.values()
    (target,) = upstream.balancer.endpoints
    found = [proxy.call(lambda: upstream.health._call(target, service)) for _ in range(3)]
    assert found == [expected] * 3
    assert len(upstream.pools[0].stock.shared) == 1, "a check's connection is not the pool's"
    server.server.stop(None)
