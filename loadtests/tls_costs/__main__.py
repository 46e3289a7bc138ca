"""What TLS costs: handshakes, records, memory of idle connections, the session store. Prints the tables of docs/tls.md.

    python -m loadtests.tls_costs                  all of it, about two minutes
    python -m loadtests.tls_costs handshakes records memory storm store --json out.json

Times are CPU time of this process (and, for `storm`, of nginx, from the kernel's accounting), so a busy machine
disturbs them little. Handshakes are lower quartiles, records the least of several rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loadtests.lab.certificates import KeyKind, issue, make_ca
from tlscache.context import CertificatePair, ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.openssl import lib
from tlscache.replay import ReplayRegister
from tlscache.session import Scope, Session
from tlscache.session_file import SessionFile
from tlscache.sqlite_store import SQLiteStore
from tlscache.store import MemoryStore

from .storm import KINDS, storm

Rows = list[dict[str, object]]
ROUNDS: Final = 5
REQUEST: Final = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Pair:
    """A client's and a server's context on one certificate."""

    def __init__(self, directory: Path, kind: KeyKind, groups: str | None = None) -> None:
        self.directory = directory / kind
        self.directory.mkdir(exist_ok=True)
        self.ca = make_ca(self.directory)
        self.leaf = issue(self.ca, names=["localhost"], key=kind)
        self.client = ClientContext(ClientSettings(ca=str(self.ca.certificate), groups=groups, early_data=True))
        pair = CertificatePair(str(self.leaf.certificate), str(self.leaf.key))
        settings = ServerSettings((pair,), groups=groups, early_data=True)
        self.server = ServerContext(settings, replay_register=ReplayRegister())

    def connect(self, session: Session | None = None, *, early: bool = False) -> tuple[TLSEngine, TLSEngine, int, int]:
        """One handshake over memory: both engines, and the nanoseconds of CPU that each side took."""
        clock = time.thread_time_ns
        began = clock()
        client = TLSEngine(self.client, server_name="localhost", session=session)
        if early:
            client.write_early(REQUEST)
        client.start()
        flight = client.data_to_send()
        client_ns = clock() - began
        began = clock()
        server = TLSEngine(self.server)
        server.receive(flight)
        flight = server.data_to_send()
        server_ns = clock() - began
        began = clock()
        client.receive(flight)
        flight = client.data_to_send()
        client_ns += clock() - began
        began = clock()
        server.receive(flight)
        flight = server.data_to_send()
        server_ns += clock() - began
        began = clock()
        client.receive(flight)
        client_ns += clock() - began
        if client.state is not State.OPEN or server.state is not State.OPEN:
            raise RuntimeError(f"{client} {server}")
        return client, server, client_ns, server_ns


def quartile_us(values: list[int]) -> float:
    """The lower quartile of nanoseconds, in microseconds: what other programs disturb lies above it."""
    return sorted(values)[len(values) // 4] / 1000


def handshakes(directory: Path) -> Rows:
    """CPU of a handshake for either side."""
    rows: Rows = []
    for kind in KINDS:
        for groups in (None, "X25519"):
            pair = Pair(directory, kind, groups)
            full = [pair.connect() for _ in range(300)]
            tickets = [ticket for client, *_ in full for ticket in client.tickets]
            resumed = [pair.connect(ticket) for ticket in tickets[:300]]
            early = [pair.connect(ticket, early=True) for ticket in tickets[300:600]]
            for name, runs in (("full", full), ("resumed", resumed), ("0-RTT", early)):
                rows.append(
                    {
                        "certificate": kind,
                        "groups": groups or "default (X25519MLKEM768)",
                        "handshake": name,
                        "client us": round(quartile_us([run[2] for run in runs])),
                        "server us": round(quartile_us([run[3] for run in runs])),
                    }
                )
    return rows


def least_us(action: Callable[[], object], times: int) -> float:
    """CPU microseconds of one `action`: the least of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for _ in range(times):
            action()
        best = min(best, (time.thread_time_ns() - began) / times / 1000)
    return best


def records(directory: Path) -> Rows:
    """CPU of carrying data one way: `send` with `data_to_send`, and `receive`."""
    pair = Pair(directory, "ecdsa")
    rows: Rows = []
    for size in (100, 1024, 16_384, 65_536, 262_144):
        data = bytes(size)
        client, server, *_ = pair.connect()

        def seal(data: bytes = data, client: TLSEngine = client) -> bytes:
            client.send(data)
            return client.data_to_send()

        def carry(data: bytes = data, client: TLSEngine = client, server: TLSEngine = server) -> None:
            client.send(data)
            server.receive(client.data_to_send())

        times = max(200, 20_000_000 // (size + 10_000))
        both = least_us(carry, times)
        sealing = least_us(seal, times)  # last: the server misses these records
        rows.append(
            {
                "bytes": size,
                "send us": round(sealing, 2),
                "receive us": round(both - sealing, 2),
                "MB/s of one core": round(size / both),
            }
        )
    return rows


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
    ]


def allocated() -> int:
    """Bytes that malloc has given out (glibc)."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def memory(directory: Path) -> Rows:
    """Bytes that an idle connection holds after it has carried 1 KiB each way."""
    rows: Rows = []
    for groups in (None, "X25519"):
        pair = Pair(directory, "ecdsa", groups)
        for role in (0, 1):
            kept = []
            pair.connect()
            gc.collect()
            before = allocated()
            for _ in range(500):
                client, server, *_ = pair.connect()
                client.send(bytes(1024))
                server.receive(client.data_to_send())
                server.send(bytes(1024))
                client.receive(server.data_to_send())
                client.tickets.clear()
                kept.append((client, server)[role])
            del client, server
            gc.collect()
            rows.append(
                {
                    "role": ("client", "server")[role],
                    "groups": groups or "default (X25519MLKEM768)",
                    "bytes": round((allocated() - before) / len(kept)),
                }
            )
    bare = [lib.SSL_new(pair.server.base.handle) for _ in range(500)]
    before = allocated()
    for ssl in bare:
        lib.SSL_free(ssl)
    rows.append({"role": "OpenSSL's SSL_new alone", "groups": "", "bytes": round((before - allocated()) / len(bare))})
    return rows


def store(directory: Path) -> Rows:
    """CPU and size of keeping sessions."""
    pair = Pair(directory, "ecdsa")
    ticket = pair.connect()[0].tickets[0]
    now = ticket.facts.issued_at
    scopes = [Scope(f"host-{number}", 443, "", pair.client.scope_material) for number in range(1000)]
    rows: Rows = []

    def measure(name: str, action: Callable[[int], object], times: int, batch: int = 1) -> None:
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for number in range(times):
            action(number)
        wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
        each = times * batch * 1000
        rows.append({"operation": name, "CPU us": round(cpu / each, 1), "wall us": round(wall / each, 1)})

    copies = [Session(ticket.der, ticket.verified_at) for _ in range(5000)]
    in_memory = MemoryStore(per_scope=8)
    measure("memory: put", lambda n: in_memory.put(scopes[n % 1000], copies[n], now), 5000)
    measure("memory: pop", lambda n: in_memory.pop(scopes[n % 1000], now), 5000)
    path = str(directory / "sessions.db")
    shared = SQLiteStore(path, [bytes(32)], per_scope=8)
    shared.flush()
    measure("SQLite store, on the event loop: put", lambda n: shared.put(scopes[n % 1000], copies[n], now), 5000)
    shared.flush()
    measure("SQLite store, on the event loop: pop", lambda n: shared.pop(scopes[n % 1000], now), 5000)
    shared.close()
    file = SessionFile(path, [bytes(32)], per_scope=1000, total=200_000, warn=print)
    file.open()

    def write(number: int) -> None:
        file.begin()
        for place in range(100):
            row = file.add(scopes[number].digest, copies[place])
            file.share(scopes[number].digest, row)
        file.commit()

    def take(number: int) -> None:
        file.begin()
        for row, _session in file.claim(scopes[number].digest, 10, now):
            file.remove(row)
        file.commit()

    measure("file, on the thread: write, 100 in a transaction", write, 1000, 100)
    file.close()
    size = sum(found.stat().st_size for found in directory.glob("sessions.db*")) / 2**20
    rows.append({"operation": f"100,000 tickets of {len(ticket.der)} bytes: {size:.0f} MiB"})
    file.open()
    measure("file, on the thread: claim and remove, 10 in a transaction", take, 1000, 10)
    file.close()
    return rows


PARTS: Final[dict[str, Callable[[Path], Rows]]] = {
    "handshakes": handshakes,
    "records": records,
    "memory": memory,
    "storm": storm,
    "store": store,
}


def table(rows: Rows) -> str:
    """A Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.tls_costs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    found = {}
    for name in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory() as directory:
            found[name] = PARTS[name](Path(directory))
        print(f"\n{name}: {(PARTS[name].__doc__ or '').strip()}\n\n{table(found[name])}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
