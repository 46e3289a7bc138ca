"""The loopback relay: an imitation of the paths for users who may not make network namespaces.

Each endpoint has a listener at 127.66.REGION.INDEX; what arrives there goes on to the origin on 127.0.0.1, every byte
as late as the path would have made it, in both directions. With d the delay towards the origin, b the delay back, and A
the instant of the accept:

- TCP's handshake. The kernel on loopback accepts at once, so its round trip is taken from the bytes instead: over a
  real path the client is connected at A + d + b, and the origin at A + d + b + d. Bytes read from the client before the
  former count as read then; so do bytes read from the origin before the latter. A connection that was opened at least a
  round trip before its first byte (a warm pool's) therefore costs nothing more, and a new one costs its round trip.
- End of stream and resets travel as the bytes do, behind them. A RST is made by closing with SO_LINGER 0.
- Blackhole: bytes, ends and resets wait. When the path is back they are sent anew, as TCP would retransmit them;
  so is the handshake of a connection that was dialled meanwhile.
- Bandwidth: the bytes of all connections share the path's rate. The queue is TCP's: it waits and does not drop.
- Refused: the endpoint's listener is closed, as the origin's is.

What it can't imitate is in `BANNER`, which everything that uses the relay shows.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import signal
import socket
import sys
from typing import Any, Final

import uvloop

from .control import Message, answer
from .path import Link, PathSettings
from .relay_flow import Flow, Mark, Side, Wire
from .scheduling import CARRYING, hurry
from .timers import Timers

BANNER: Final = (
    "an imitation by a relay on loopback. Imitated: the round trips of TCP and TLS handshakes, delay, jitter, "
    "bandwidth, blackholes, resets, refused dials. Not imitated: packet loss, reordering, congestion windows, "
    "TCP Fast Open, UDP, a SYN that stays unanswered, and what TCP itself sees of the path (TCP_INFO, keepalive, "
    "TCP_USER_TIMEOUT)"
)


class _Endpoint:
    """One relayed address."""

    def __init__(self, region: int, index: int, target: tuple[str, int]) -> None:
        self.region = region
        self.index = index
        self.target = target
        self.address: tuple[str, int] = ("", 0)
        self.server: asyncio.Server | None = None


class Relay:
    """All endpoints and paths.

    Runs in its own process (`main`) or, for tests, in any event loop; `delays_ms` as in `carrier`.
    """

    def __init__(self, delays_ms: list[list[float]]) -> None:
        self._to = [Wire(delay) for delay in delays_ms[0]]
        self._from = [Wire(row[0]) for row in delays_ms]
        self._endpoints: dict[tuple[int, int], _Endpoint] = {}
        self._dialling: set[asyncio.Task[None]] = set()
        self._sides: set[Side] = set()
        self.timers = Timers(asyncio.get_running_loop())

    def __repr__(self) -> str:
        return f"<Relay {len(self._endpoints)} endpoints, {len(self._sides) // 2} connections>"

    async def publish(self, region: int, index: int, target: tuple[str, int]) -> tuple[str, int]:
        """Relay to `target`; returns the address to dial.

        A second call moves the endpoint's target and keeps its address.
        """
        endpoint = self._endpoints.get((region, index))
        if endpoint is None:
            endpoint = self._endpoints[region, index] = _Endpoint(region, index, target)
            await self.listen(region, index)
        endpoint.target = target
        return endpoint.address

    async def listen(self, region: int, index: int) -> None:
        """Open an endpoint's listener (again)."""
        endpoint = self._endpoints[region, index]
        if endpoint.server is not None:
            return
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.address[1]:
            listening.bind(endpoint.address)
        else:
            try:
                listening.bind((f"127.66.{region}.{index + 1}", 0))
            except OSError:  # only Linux has all of 127.0.0.0/8
                listening.bind(("127.0.0.1", 0))
        endpoint.address = listening.getsockname()[:2]
        loop = asyncio.get_running_loop()
        endpoint.server = await loop.create_server(lambda: self._accept(endpoint), sock=listening, backlog=4096)

    def refuse(self, region: int, index: int) -> None:
        """Close an endpoint's listener."""
        endpoint = self._endpoints[region, index]
        if endpoint.server is not None:
            endpoint.server.close()
            endpoint.server = None

    def configure(self, source: int, target: int, values: dict[str, Any]) -> None:
        """Change the path from region `source` to region `target`; one of them is home."""
        wire = self._to[target] if source == 0 else self._from[source]
        wire.configure(values)

    def counters(self) -> Message:
        """As `carrier` gives them."""
        idle = Link(PathSettings()).counters()
        paths = [[idle for _ in self._to] for _ in self._to]
        for region in range(1, len(self._to)):
            paths[0][region] = self._to[region].link.counters()
            paths[region][0] = self._from[region].link.counters()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "paths": paths,
            "carrier": {"connections": len(self._sides) // 2, "cpu_s": usage.ru_utime + usage.ru_stime},
        }

    def close(self) -> None:
        """Stop listening, reset what is open."""
        for endpoint in self._endpoints.values():
            self.refuse(endpoint.region, endpoint.index)
        for side in list(self._sides):
            side.reset()
        for task in self._dialling:
            task.cancel()
        self.timers.close()

    def _accept(self, endpoint: _Endpoint) -> Side:
        to, back = self._to[endpoint.region], self._from[endpoint.region]
        forward, backward = Flow(self.timers, to), Flow(self.timers, back)

        def opening(now: float) -> None:
            forward.established_at = now + to.delay_s + back.delay_s
            backward.established_at = forward.established_at + to.delay_s

        def dial() -> None:
            task = asyncio.get_running_loop().create_task(self._connect(endpoint, forward, backward))
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)

        forward.on_opening = opening
        forward.on_open = dial
        forward.push(Mark.OPEN)
        return Side(self._sides, outgoing=forward, incoming=backward)

    async def _connect(self, endpoint: _Endpoint, forward: Flow, backward: Flow) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Side(self._sides, outgoing=backward, incoming=forward), *endpoint.target
            )
        except OSError:
            backward.established_at = 0.0  # a refusal answers the SYN itself
            backward.push(Mark.RESET)


async def _serve(config: dict[str, Any]) -> None:
    relay = Relay(config["delays_ms"])
    hurry(CARRYING)
    gc.freeze()  # what lives as long as the process need not be looked at by every collection

    async def command(op: str, message: Message) -> Message:
        if op == "publish":
            host, port = await relay.publish(message["region"], message["index"], tuple(message["target"]))
            return {"host": host, "port": port}
        if op == "listening":
            if message["open"]:
                await relay.listen(message["region"], message["index"])
            else:
                relay.refuse(message["region"], message["index"])
            return {}
        if op == "set":
            relay.configure(message["source"], message["target"], message["values"])
            return {}
        if op == "counters":
            return relay.counters()
        raise ValueError(f"no such command: {op}")

    await answer(socket.socket(fileno=config["control"]), {"banner": BANNER}, command)
    relay.close()


def main() -> None:
    """The process: `argv[1]` is JSON with `control` (a descriptor) and `delays_ms`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(_serve(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
