"""The programmable origin's process: one endpoint, HTTP/1.1 and HTTP/2, plain or TLS, with faults and counters.

Started by `Lab.origin`; runs until its control socket closes. It uses the standard library's TLS on purpose: what is
measured against it is then measured against an implementation that is not ours.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import signal
import socket
import ssl
import struct
import sys
from collections import Counter
from time import monotonic
from typing import Any, Final

import uvloop

from .behaviour import Behaviour, Outcome
from .control import Message, answer
from .origin_app import OriginConnection, Request, usual_body
from .origin_h1 import H1Connection
from .origin_h2 import H2Connection
from .timers import Timers

_TCP_FASTOPEN: Final = 23
_BACKLOG: Final = 4096
_IDLE_SWEEP_S: Final = 0.05


class Origin:
    """One endpoint: its listening socket, its connections, its behaviour."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.region = config["region"].encode()
        self.endpoint = str(config["endpoint"]).encode()
        self.timers = Timers(asyncio.get_running_loop())
        self._config = config
        self._random = random.Random(config.get("seed"))
        self._server: asyncio.Server | None = None
        self._tls = _server_context(config) if config["tls"] else None
        # A port that is any is chosen now: an origin that starts by refusing has one too.
        with _bound((config["host"], config["port"])) as bound:
            self._address: tuple[str, int] = bound.getsockname()[:2]
        self._connections: set[OriginConnection] = set()
        self._counts: Counter[str] = Counter()
        self._requests = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self.configure(Behaviour(**config["behaviour"]))

    @property
    def port(self) -> int:
        """Where it listens, or did before it was told to refuse."""
        return self._address[1]

    def now(self) -> float:
        """The clock of its delays: `time.monotonic`."""
        return monotonic()

    def configure(self, behaviour: Behaviour) -> None:
        """Take new settings, for requests that arrive from now on."""
        self.behaviour = behaviour
        self.instant = behaviour.instant
        self.usual_body = usual_body(self.region, self.endpoint, behaviour.body_bytes)
        self.canned = b"\r\n".join(
            (
                b"HTTP/1.1 200 OK",
                b"x-region: " + self.region,
                b"x-endpoint: " + self.endpoint,
                b"content-type: text/plain",
                b"content-length: %d" % len(self.usual_body),
                b"",
                self.usual_body,
            )
        )
        if self._sweeper is None:
            self._sweep()

    async def listen(self) -> None:
        """Open the listening socket, unless it is told to refuse or has one."""
        if self._server is not None:
            return
        listening = _bound(self._address)
        if self._config["fast_open"]:
            listening.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN, _BACKLOG)
        self._server = await asyncio.get_running_loop().create_server(
            self._connection, sock=listening, ssl=self._tls, backlog=_BACKLOG
        )

    def refuse(self) -> None:
        """Close the listening socket: what dials now is refused by the kernel."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def drop_connections(self) -> int:
        """Close every connection with a RST; says how many there were."""
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        return len(connections)

    def counters(self) -> dict[str, float]:
        """Events since the start; `connections_open` now; `cpu_s` of the process."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        names = (
            "connections",
            "handshakes_full",
            "handshakes_resumed",
            "early",
            "resets",
            "hangs",
            "cancelled",
            "health_checks",
        )
        return {
            "requests": self._requests,
            **{name: self._counts[name] for name in names},
            "connections_open": len(self._connections),
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }

    # What connections tell it

    def opened(self, connection: OriginConnection, transport: asyncio.Transport) -> None:
        """A connection is ready for requests, its TLS handshake done."""
        connection.active_at = monotonic()
        self._connections.add(connection)
        self._counts["connections"] += 1
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._counts["handshakes_resumed" if tls.session_reused else "handshakes_full"] += 1

    def closed(self, connection: OriginConnection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)

    def abort(self, transport: asyncio.Transport) -> None:
        """End a connection with a RST: what SO_LINGER with a time of zero makes of close(2)."""
        self._counts["resets"] += 1
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def arrived(self, request: Request) -> None:
        """A request is complete."""
        self._requests += 1
        if request.path == b"/healthz":
            self._counts["health_checks"] += 1
        if (b"early-data", b"1") in request.fields:
            self._counts["early"] += 1

    def cancelled(self) -> None:
        """A peer has reset a stream."""
        self._counts["cancelled"] += 1

    def decide(self, request: Request) -> tuple[Outcome, float, int]:
        """What becomes of a request: see `Behaviour.decide`."""
        outcome, delay_s, status = self.behaviour.decide(self._random, health=request.path == b"/healthz")
        if outcome is Outcome.HANG:
            self._counts["hangs"] += 1
        return outcome, delay_s, status

    def take_over_h2(self, connection: OriginConnection, transport: asyncio.Transport, data: bytes) -> bool:
        """A plaintext connection opened with HTTP/2's preface: hand it over, where this origin speaks HTTP/2."""
        if not self._config["h2"]:
            return False
        self.closed(connection)
        self._counts["connections"] -= 1
        successor = H2Connection(self)
        transport.set_protocol(successor)
        successor.connection_made(transport)
        successor.data_received(data)
        return True

    def _connection(self) -> asyncio.Protocol:
        return _ByALPN(self) if self._tls is not None and self._config["h2"] else H1Connection(self)

    def _sweep(self) -> None:
        limit_s = self.behaviour.close_idle_s
        self._sweeper = None
        if not limit_s:
            return
        before = monotonic() - limit_s
        for connection in [one for one in self._connections if one.idle and one.active_at < before]:
            connection.close()
        self._sweeper = asyncio.get_running_loop().call_later(_IDLE_SWEEP_S, self._sweep)


class _ByALPN(asyncio.Protocol):
    """Becomes the protocol that the handshake agreed on."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        successor = H2Connection(self._origin) if chosen == "h2" else H1Connection(self._origin)
        transport.set_protocol(successor)
        successor.connection_made(transport)


def _bound(address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _server_context(config: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config["certificate"], config["key"])
    context.set_alpn_protocols(["h2", "http/1.1"] if config["h2"] else ["http/1.1"])
    if config["tls_version"]:
        version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[config["tls_version"]]
        context.minimum_version = context.maximum_version = version
    if config["client_ca"]:
        context.load_verify_locations(config["client_ca"])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def _serve(config: dict[str, Any]) -> None:
    control = socket.socket(fileno=config["control"])
    try:
        origin = Origin(config)
        if not origin.behaviour.refuse:
            await origin.listen()
    except OSError as error:  # the address is taken, a certificate can't be read
        control.sendall(json.dumps({"error": str(error)}).encode() + b"\n")
        return

    async def command(op: str, message: Message) -> Message:
        if op == "set":
            behaviour = origin.behaviour.changed(**message["values"])
            origin.configure(behaviour)
            if behaviour.refuse:
                origin.refuse()
            else:
                await origin.listen()
            return {"port": origin.port}
        if op == "counters":
            return {"counters": origin.counters()}
        if op == "drop":
            return {"dropped": origin.drop_connections()}
        raise ValueError(f"no such command: {op}")

    # The objects that live as long as the process need not be looked at by every collection.
    gc.freeze()
    await answer(control, {"port": origin.port}, command)


def main() -> None:
    """The process: `argv[1]` is its configuration as JSON (see `Lab.origin`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(_serve(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
