"""A reconnect storm, and what it costs the origin: the part `storm` of `python -m loadtests.tls_costs`.

A proxy makes 1,000 connections to one nginx at once; it is killed with -9 once they are there, started again, and makes
them with the sessions that its file has.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.lab.certificates import KeyKind, issue, make_ca
from loadtests.peers.nginx import Nginx
from loadtests.peers.process import free_port
from loadtests.peers.wiring import Unavailable
from proxy.admin.ask import Admin, AdminError

KINDS: Final[tuple[KeyKind, ...]] = ("ecdsa", "rsa2048")
CONNECTIONS: Final = 1000
ROUNDS: Final = 5
WAIT_S: Final = 30.0
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Origin:
    """An nginx of one process on two loopback ports; `ca` is what its certificate is verified with."""

    directory: Path
    pid: int
    port: int
    port_without_tls: int
    ca: Path

    def cpu_ns(self) -> int:
        """CPU time that it has used, from the scheduler's accounting, once it has nothing to do."""
        before, now = -1, self._cpu_ns()
        while now != before:
            time.sleep(0.3)
            before, now = now, self._cpu_ns()
        return now

    def _cpu_ns(self) -> int:
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0])


@contextmanager
def nginx(directory: Path, kind: KeyKind) -> Iterator[Origin]:
    """A started one."""
    try:
        command = Nginx().find()
    except Unavailable as missing:
        sys.exit(f"the storm needs nginx: {missing}")
    ca = make_ca(directory)
    leaf = issue(ca, names=["localhost"], key=kind)
    port, plain = free_port(), free_port()
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        daemon off; master_process off; pid {directory}/pid; error_log stderr; worker_rlimit_nofile 8192;
        events {{ worker_connections 4096; }}
        http {{
            access_log off;
            server {{
                listen 127.0.0.1:{port} ssl backlog=1024;
                listen 127.0.0.1:{plain} backlog=1024;
                ssl_certificate {leaf.certificate}; ssl_certificate_key {leaf.key};
                ssl_protocols TLSv1.3;
                return 204;
            }}
        }}
        """
    )
    with subprocess.Popen([*command, "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.02)
            yield Origin(directory, process.pid, port, plain, ca.certificate)
        finally:
            process.kill()


def strike(origin: Origin, sessions: Path | None) -> tuple[int, int]:
    """Start a proxy that keeps `CONNECTIONS` warm (without TLS where there is no session file), and kill it once they
    are there. Nanoseconds of the origin's CPU for each, and how many of them resumed.
    """
    admin = f"127.0.0.1:{free_port()}"
    upstream: dict[str, object] = {"pool": {"warm": CONNECTIONS, "max_connections": CONNECTIONS}}
    config = {
        "listeners": [{"name": "storm", "address": f"127.0.0.1:{free_port()}", "upstream": "app"}],
        "upstreams": {"app": upstream},
        "admin": {"address": admin},
    }
    port = origin.port_without_tls
    if sessions is not None:
        port = origin.port
        upstream["tls"] = {"ca": str(origin.ca), "server_name": "localhost"}
        config["sessions"] = {"path": str(sessions), "key": "env:STORM_KEY"}
    upstream["regions"] = {"here": {"endpoints": [f"127.0.0.1:{port}"]}}
    file = origin.directory / "onetrip.yaml"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "proxy.cli", "serve", str(file)]
    environment = {**os.environ, "STORM_KEY": "k" * 32}
    began = origin.cpu_ns()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT) as proxy:
        try:
            opened = _wait(admin, sessions)
            cost = (origin.cpu_ns() - began) // CONNECTIONS
        finally:
            proxy.kill()
    origin.cpu_ns()  # the next strike does not pay for the ends of these
    return cost, opened.get("resumed", 0)


def _wait(admin: str, sessions: Path | None) -> dict[str, int]:
    """Until every connection is there, and a ticket for each in the file; the connections by kind of handshake."""
    deadline = time.monotonic() + WAIT_S
    opened: dict[str, int] = {}
    while time.monotonic() < deadline:
        time.sleep(0.2)
        with suppress(AdminError):
            status = Admin(admin, None).ask("GET", "/status")
            opened = status["upstreams"]["app"]["regions"][0]["endpoints"][0]["pool"]["opened"]
        if sum(opened.values()) >= CONNECTIONS and (sessions is None or _rows_in(sessions) >= CONNECTIONS):
            return opened
    raise RuntimeError(f"{CONNECTIONS} connections were wanted, {opened} came about")


def _rows_in(sessions: Path) -> int:
    """Tickets in a session file."""
    with closing(sqlite3.connect(f"file:{sessions}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM sessions").fetchone()[0])


def storm(directory: Path) -> list[dict[str, object]]:
    """CPU that nginx needs for each of 1,000 connections that a proxy makes at once: without sessions, and with the
    tickets of the proxy that was killed before. `handshake` is without what they cost where there is no TLS.
    """
    return [_storm(directory / kind, kind) for kind in KINDS]


def _storm(directory: Path, kind: KeyKind) -> dict[str, object]:
    directory.mkdir(exist_ok=True)
    full, again, plainly, resumed = [], [], [], 0
    with nginx(directory, kind) as origin:
        for number in range(ROUNDS):
            sessions = directory / f"{number}.db"
            plainly.append(strike(origin, None)[0])
            full.append(strike(origin, sessions)[0])
            cost, count = strike(origin, sessions)
            again.append(cost)
            resumed += count
    full_us, again_us, plain_us = (sorted(found)[ROUNDS // 4] / 1000 for found in (full, again, plainly))
    return {
        "certificate": kind,
        "resumed": f"{resumed} of {ROUNDS * CONNECTIONS}",
        "full us": round(full_us),
        "resumed us": round(again_us),
        "without TLS us": round(plain_us),
        "ratio": round(again_us / full_us, 2),
        "handshakes' ratio": round((again_us - plain_us) / (full_us - plain_us), 2),
    }
