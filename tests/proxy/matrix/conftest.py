from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from loadtests.lab.certificates import Issued, issue, make_ca
from proxy.config import parse_config
from proxy.process import inheritance as listening
from proxy.process.worker import Worker
from tlscache.ticket_keys import TicketKeys

from .peers import WAIT_S, Origin, connect


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}


class Log:
    """An event log that remembers."""

    dropped = suppressed = 0

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.entries.append((level, event, fields))


CONFIG = """
listeners:
  - {{name: web, address: "127.0.0.1:0", {to}{tls_down}}}
upstreams:
  app:
    protocol: {protocol}
    regions: {{here: {{endpoints: [{endpoints}]}}}}
    timeouts: {{connect: 2s, response: 5s, idle: 5s, total: {total}}}
    hedge: {hedge}
    retry: {retry}
    pool: {{warm: {warm}, max_connections: {max_connections}, keepalive: {keepalive}}}{tls_up}{extra}
access_log: off
limits: {{header_timeout: 5s}}
"""


@dataclass
class Lab:
    """Certificates, and TLS settings for each role."""

    ca: Issued
    leaf: Issued

    def server(self, *alpn: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.leaf.certificate, self.leaf.key)
        context.set_alpn_protocols(list(alpn))
        return context

    def client(self, *alpn: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca.certificate))
        context.set_alpn_protocols(list(alpn))
        return context


@dataclass
class Proxy:
    """A running worker."""

    worker: Worker
    port: int
    log: Log
    complaints: list[dict[str, Any]] = field(default_factory=list)

    @property
    def listener(self) -> Any:
        return next(iter(self.worker.listeners.values()))

    @property
    def upstream(self) -> Any:
        return next(iter(self.worker.upstreams.values()))

    async def quiet(self) -> None:
        """Nothing of any request is left."""
        await wait_for(lambda: self.listener.counters.in_flight == 0)
        await wait_for(lambda: all(not c.streams for p in self.upstream.pools for c in p.stock.connections))
        for region in self.upstream.balancer.regions:
            assert region.in_flight == 0, f"{region.name}: {region.in_flight} in flight"
        assert self.worker.turn.depth == 0
        complaints, self.complaints = self.complaints, []
        assert not complaints, complaints
        errors = [entry for entry in self.log.entries if entry[0] in ("error", "exception", "critical")]
        assert not errors, errors


async def wait_for(condition: Callable[[], Any], wait: float = WAIT_S) -> None:
    """Until the condition holds; AssertionError at the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    while not condition():
        assert loop.time() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.003)


async def start_proxy(lab: Lab, *ports: int, down_tls: bool, up: str, up_tls: bool, **options: Any) -> Proxy:
    """A worker between a listener and one upstream."""
    tls_down = f", tls: {{certificates: [{{certificate: {lab.leaf.certificate}, key: {lab.leaf.key}}}]}}"
    tls_up = f"\n    tls: {{ca: {lab.ca.certificate}, server_name: localhost}}"
    values: dict[str, Any] = {
        "protocol": up,
        "total": "20s",
        "hedge": "off",
        "retry": "{attempts: 2, budget: 100%}",
        "warm": 1,
        "max_connections": 16,
        "keepalive": "15s",
        "extra": "",
        "to": "upstream: app",
        **options,
    }
    text = CONFIG.format(
        endpoints=", ".join(f'"127.0.0.1:{port}"' for port in ports),
        tls_down=tls_down if down_tls else "",
        tls_up=tls_up if up_tls else "",
        **values,
    )
    parsed = parse_config(text)
    sockets = listening.open_sockets(parsed)
    sockets.pop(listening.ADMIN).close()
    log = Log()
    worker = Worker(parsed, log, TicketKeys(contexts=1))
    proxy = Proxy(worker, sockets["web"].getsockname()[1], log)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: proxy.complaints.append(context))
    await worker.start(sockets)
    async with asyncio.timeout(12):
        await worker.ready.wait()
    return proxy


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    directory: Path = tmp_path_factory.mktemp("certificates")
    ca = make_ca(directory)
    return Lab(ca, issue(ca, names=["localhost", "127.0.0.1"]))


@dataclass
class Pair:
    """One combination: versions on both sides, TLS on both or on none; the proxy and its origin are up."""

    down: str
    up: str
    tls: bool
    lab: Lab
    origin: Origin
    proxy: Proxy
    clients: list[Any] = field(default_factory=list)

    async def client(self, **settings: int) -> Any:
        """A client's connection."""
        context = self.lab.client("h2" if self.down == "h2" else "http/1.1") if self.tls else None
        peer = await connect(self.down, self.proxy.port, context, **settings)
        self.clients.append(peer)
        return peer


PAIRS = [(down, up, tls) for tls in (False, True) for down in ("h1", "h2") for up in ("h1", "h2")]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=PAIRS,
    ids=[f"{down}-{up}{'-tls' if tls else ''}" for down, up, tls in PAIRS],
)
async def running(request: pytest.FixtureRequest, lab: Lab) -> AsyncIterator[Pair]:
    down, up, tls = request.param
    origin = await Origin(up, lab.server("h2" if up == "h2" else "http/1.1") if tls else None).start()
    proxy = await start_proxy(lab, origin.port, down_tls=tls, up=up, up_tls=tls)
    yield Pair(down, up, tls, lab, origin, proxy)
    await proxy.worker.close()
    await origin.close()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(running: Pair) -> AsyncIterator[Pair]:
    """The pair, with a fresh handler; after the test nothing of it may be left."""
    running.origin.reset()
    yield running
    for client in running.clients:
        await client.close()
    running.clients.clear()
    await running.proxy.quiet()


Start = Callable[..., Awaitable[tuple[Origin, Proxy]]]


@pytest_asyncio.fixture(loop_scope="module")
async def start(lab: Lab) -> AsyncIterator[Start]:
    """An origin and a proxy of the test's own: `origin, proxy = await start("h2", tls=False, warm=2)`."""
    made: list[tuple[Origin, Proxy]] = []

    async def make(up: str, *, tls: bool = False, **options: Any) -> tuple[Origin, Proxy]:
        settings = options.pop("settings", {})
        origin = Origin(up, lab.server("h2" if up == "h2" else "http/1.1") if tls else None)
        origin.settings = settings
        await origin.start()
        proxy = await start_proxy(
            lab, origin.port, down_tls=False, up=options.pop("protocol", up), up_tls=tls, **options
        )
        made.append((origin, proxy))
        return origin, proxy

    yield make
    for origin, proxy in made:
        await proxy.worker.close()
        await origin.close()
