"""Load: closed loops by wrk (HTTP/1.1) and h2load (HTTP/2), and idle clients. All of it runs on the load's core."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .process import on_core
from .wiring import CIPHERSUITE, HOST, find_binary

REQUEST: Final = b"GET /small HTTP/1.1\r\nhost: " + HOST.encode() + b"\r\n\r\n"
SMALL: Final = b"hello there\n"
"""The origin's answer to `REQUEST`."""

LUA: Final = """\
wrk.headers["Host"] = "{host}"
{extra}
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\nRESULT {{"requests":%d,"bytes":%d,"duration_us":%d,"errors":%d,"p50_us":%d,"p99_us":%d}}\\n',
    summary.requests, summary.bytes, summary.duration, e.status + e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""

OPENSSL: Final = """\
openssl_conf = init
[init]
ssl_conf = modules
[modules]
system_default = defaults
[defaults]
Ciphersuites = {suite}
MinProtocol = TLSv1.3
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What a load generator did: answered requests, bytes of responses, errors of any kind, latency in microseconds."""

    requests: int
    bytes: int
    duration_s: float
    errors: int
    p50_us: float = 0.0
    p99_us: float = 0.0


class LoadFailed(Exception):
    """The load generator could not do its work; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop: `connections` clients (times `streams` for HTTP/2), each sending when it has its answer."""

    path: str
    connections: int
    tls: bool = False
    h2: bool = False
    streams: int = 1
    body_bytes: int = 0
    grpc: bool = False
    """Calls with one message of `body_bytes` (HTTP/2 only)."""
    close: bool = False
    """A new connection for every request."""


def wrk_script(load: Load) -> str:
    """The Lua script that shapes the requests and prints the result as JSON."""
    extra = ""
    if load.body_bytes:
        extra += f'wrk.method = "POST"\nwrk.body = string.rep("x", {load.body_bytes})\n'
    if load.close:
        extra += 'wrk.headers["Connection"] = "close"\n'
    return LUA.format(host=HOST, extra=extra)


def run(load: Load, port: int, seconds: float, core: int, directory: Path) -> Done:
    """Run a load for whole seconds (at least one) and return what it did."""
    seconds = max(1, round(seconds))
    scheme = "https" if load.tls else "http"
    if load.h2:
        command = [find_binary("h2load", "apt install nghttp2-client"), "-D", str(seconds), "-t", "1"]
        command += ["-c", str(load.connections), "-m", str(load.streams), "-H", f":authority: {HOST}"]
        if load.grpc:
            message = directory / "message"
            message.write_bytes(b"\0" + load.body_bytes.to_bytes(4, "big") + b"x" * load.body_bytes)
            command += ["-d", str(message), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        command += [f"{scheme}://127.0.0.1:{port}{load.path}"]
    else:
        script = directory / "wrk.lua"
        script.write_text(wrk_script(load))
        command = [find_binary("wrk", "apt install wrk"), "-t", "1", "-c", str(load.connections), "-d", str(seconds)]
        command += ["--timeout", "10", "-s", str(script), f"{scheme}://127.0.0.1:{port}{load.path}"]
    openssl = directory / "openssl.cnf"
    openssl.write_text(OPENSSL.format(suite=CIPHERSUITE))
    with on_core(core):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
            env={**os.environ, "OPENSSL_CONF": str(openssl)},
        )
    result = (parse_h2load if load.h2 else parse_wrk)(done.stdout)
    if done.returncode or result is None:
        raise LoadFailed((done.stderr or done.stdout).strip()[-300:] or f"exit code {done.returncode}")
    return result


def parse_wrk(output: str) -> Done | None:
    """The line that `LUA` prints, or None."""
    found = re.search(r"^RESULT (\{.*\})$", output, re.MULTILINE)
    if found is None:
        return None
    values = json.loads(found.group(1))
    duration_s = values.pop("duration_us") / 1e6
    return Done(duration_s=duration_s, **values)


def parse_h2load(output: str) -> Done | None:
    """h2load's summary, or None. It prints no percentiles."""
    finished = re.search(r"^finished in ([\d.]+)(us|ms|s|m)", output, re.MULTILINE)
    requests = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    codes = re.search(r"status codes: (\d+) 2xx", output)
    traffic = re.search(r"^traffic: \S+ \((\d+)\) total", output, re.MULTILINE)
    if not (finished and requests and codes and traffic):
        return None
    good = int(codes.group(1))
    failed = sum(int(requests.group(number)) for number in (2, 3, 4)) + max(0, int(requests.group(1)) - good)
    unit_s = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[finished.group(2)]
    return Done(good, int(traffic.group(1)), float(finished.group(1)) * unit_s, failed)


def read_answer(client: socket.socket) -> bytes:
    """One response with a content-length, read to its end."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = client.recv(65536)
        if not more:
            raise LoadFailed("closed before the response's head")
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    missing = int(length.group(1)) - len(body) if length else 0
    while missing > 0:
        more = client.recv(missing)
        if not more:
            raise LoadFailed("closed within the response's body")
        body += more
        missing -= len(more)
    if not head.split(b" ", 2)[1].startswith(b"2"):
        raise LoadFailed(f"answered {head.splitlines()[0].decode('latin-1')}: {body[:100].decode('latin-1')}")
    return body


class IdleClients:
    """Connections that each had one answer, and then say nothing."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self._clients = clients

    def __len__(self) -> int:
        return len(self._clients)

    def closed(self) -> int:
        """How many of them the proxy has closed since."""
        gone = 0
        for client in self._clients:
            try:
                gone += client.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                continue
            except OSError:
                gone += 1
        return gone


@contextmanager
def idle_clients(count: int, port: int) -> Iterator[IdleClients]:
    """Hold `count` idle connections to a port of loopback while the body runs."""
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            clients.append(client)
            client.sendall(REQUEST)
            read_answer(client)
            client.setblocking(False)
        yield IdleClients(clients)
    finally:
        for client in clients:
            client.close()
