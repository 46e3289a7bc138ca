"""A worker with L4 listeners on the test's own loop, between raw clients and scripted raw origins."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from proxy.config import parse_config
from proxy.l4.listener import TunnelListener
from proxy.process import inheritance as listening
from proxy.process.worker import Worker
from tlscache.ticket_keys import TicketKeys

from .e2e.harness import WAIT_S, Ended, Log, Peer, wait_for

CONFIG = """
listeners:
  - {{name: edge, address: "127.0.0.1:0", protocol: {protocol}, {listener}}}
upstreams:
  app:
    protocol: tcp
    regions: {{{regions}}}
    retry: {retry}
    routing: {{policy: ordered}}
    timeouts: {{connect: {connect}, idle: {idle}}}
    pool: {{warm: {warm}, max_connections: {max_connections}{pool}}}
    {upstream}
admin: {{address: "127.0.0.1:0"}}
access_log: off
limits: {{{limits}}}
"""


def config(
    *endpoints: int | str,
    protocol: str = "tcp",
    listener: str = "upstream: app",
    regions: str = "",
    retry: str = "{}",
    connect: str = "2s",
    idle: str = "60s",
    warm: int = 0,
    max_connections: int = 128,
    pool: str = "",
    upstream: str = "",
    limits: str = "header_timeout: 5s",
) -> str:
    """One listener, one upstream; each endpoint in a region of its own (`r1`, `r2`, …), the first preferred."""
    found = [f"127.0.0.1:{one}" if isinstance(one, int) else one for one in endpoints]
    regions = regions or ", ".join(f'r{n}: {{endpoints: ["{one}"]}}' for n, one in enumerate(found, 1))
    return CONFIG.format(
        protocol=protocol,
        listener=listener,
        regions=regions,
        retry=retry,
        connect=connect,
        idle=idle,
        warm=warm,
        max_connections=max_connections,
        pool=pool,
        upstream=upstream,
        limits=limits,
    )


Script = Callable[[Peer], Awaitable[None]]


async def echo(peer: Peer) -> None:
    """Send everything back, then end."""
    with suppress(Ended):
        while True:
            await peer.fill(60)
            data, peer.held = peer.held, b""
            await peer.send(data)
    peer.half_close()
    await peer.rest()


class Origin:
    """Accepts connections and runs a script on each. `peers`: the connections so far, in order."""

    def __init__(self, script: Script = echo, sock: socket.socket | None = None) -> None:
        if sock is None:
            sock = socket.create_server(("127.0.0.1", 0))
        self.sock = sock
        sock.setblocking(False)
        self.script = script
        self.peers: list[Peer] = []
        self._tasks: dict[Peer, asyncio.Task[None]] = {}
        self._acceptor = asyncio.get_running_loop().create_task(self._accept())

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.sock)
            peer = Peer(sock)
            self.peers.append(peer)
            self._tasks[peer] = loop.create_task(self._run(peer))

    async def _run(self, peer: Peer) -> None:
        with suppress(Ended, OSError, TimeoutError):
            await self.script(peer)
        peer.close()

    async def drop(self, peer: Peer, *, reset: bool = False) -> None:
        """End a connection, whatever its script is at."""
        task = self._tasks[peer]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if reset:
            peer.reset()
        else:
            peer.close()

    async def peer(self, number: int = 1) -> Peer:
        """The n-th connection."""
        await wait_for(lambda: len(self.peers) >= number)
        return self.peers[number - 1]

    async def close(self) -> None:
        self._acceptor.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(self._acceptor, *self._tasks.values(), return_exceptions=True)
        self.sock.close()


async def hear(peer: Peer) -> None:
    """Take everything (`peer.held` has it) and say nothing."""
    with suppress(Ended):
        while True:
            await peer.fill(60)


class Edge:
    """The worker. `listener` is the first one, `upstream` the first upstream, `pool` its first socket pool."""

    def __init__(self) -> None:
        self.log = Log()
        self.complaints: list[dict[str, Any]] = []
        self.clients: list[Peer] = []
        self.worker: Worker

    async def start(self, text: str) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.complaints.append(context))
        parsed = parse_config(text)
        sockets = listening.open_sockets(parsed)
        sockets.pop(listening.ADMIN).close()
        self.addresses = {name: sock.getsockname() for name, sock in sockets.items()}
        self.worker = Worker(parsed, self.log, TicketKeys(contexts=4))
        await self.worker.start(sockets)
        async with asyncio.timeout(WAIT_S):
            await self.worker.ready.wait()

    @property
    def listener(self) -> TunnelListener:
        found = next(iter(self.worker.listeners.values()))
        assert isinstance(found, TunnelListener)
        return found

    @property
    def upstream(self) -> Any:
        return next(iter(self.worker.upstreams.values()))

    @property
    def pool(self) -> Any:
        return next(iter(next(iter(self.upstream._links.values())).values()))

    async def connect(self, name: str = "edge", source: str = "") -> Peer:
        """A client."""
        address = self.addresses[name]
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.setblocking(False)
        if source:
            sock.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(sock, address)
        client = Peer(sock)
        self.clients.append(client)
        return client

    async def quiet(self) -> None:
        """Until no connection is left; then nothing else may be."""
        await wait_for(lambda: not self.listener.connections)
        for region in self.upstream.balancer.regions:
            assert region.in_flight == 0, f"{region.name}: {region.in_flight} in flight"
            assert region.held == 0
        for pool in self.upstream.every_socket_pool():
            assert pool.open == 0
            assert pool.target.ready == len(pool.idle)
        assert self.worker.turn.depth == 0

    async def stop(self) -> None:
        for client in self.clients:
            client.close()
        await self.worker.close()
        assert not self.complaints, self.complaints
        errors = [entry for entry in self.log.entries if entry[0] in ("error", "exception", "critical")]
        assert not errors, errors


@asynccontextmanager
async def edge(text: str) -> AsyncIterator[Edge]:
    """A started worker; nothing may be left of its connections in the end."""
    one = Edge()
    await one.start(text)
    try:
        yield one
        for client in one.clients:
            client.close()
        await one.quiet()
    finally:
        await one.stop()


@asynccontextmanager
async def origin(script: Script = echo, sock: socket.socket | None = None) -> AsyncIterator[Origin]:
    """A started origin."""
    one = Origin(script, sock)
    try:
        yield one
    finally:
        await one.close()
