"""The scenarios of the CPU bench: what is wired to what, which load runs, and what one run of it measures.

A run's measures are a flat dict of figures. Each kind of scenario has one figure that proxies are compared by
(`Kind.figure`); the others explain it. User and system time are part of every kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from .load import Done, Load, LoadFailed, idle_clients, run
from .openloop import OpenLoop, percentile
from .process import CpuTime, Program, core_busy_s
from .wiring import Downstream, Upstream

Measures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a scenario's runs yield: the figure to compare by, whether less is better, and its table's columns."""

    figure: str
    less_is_better: bool
    columns: tuple[tuple[str, str, int], ...]
    """Key, heading and decimals of each column."""


COMMON: Final = (("user_us", "user", 1), ("system_us", "system", 1))
REQUESTS: Final = Kind(
    "us_per_request",
    True,
    (
        ("us_per_request", "us/request", 1),
        *COMMON,
        ("requests_per_s", "requests/s", 0),
        ("busy_percent", "core busy %", 0),
    ),
)
MEGABYTES: Final = Kind(
    "mb_per_cpu_s",
    False,
    (
        ("mb_per_cpu_s", "MB/CPU s", 0),
        ("user_us", "user us/MB", 1),
        ("system_us", "system us/MB", 1),
        ("mb_per_s", "MB/s", 0),
        ("busy_percent", "core busy %", 0),
    ),
)
CONNECTIONS: Final = Kind(
    "connections_per_cpu_s",
    False,
    (
        ("connections_per_cpu_s", "connections/CPU s", 0),
        *COMMON,
        ("requests_per_s", "connections/s", 0),
        ("busy_percent", "core busy %", 0),
    ),
)
IDLE: Final = Kind(
    "kib_per_connection",
    True,
    (
        ("kib_per_connection", "KiB/idle connection", 2),
        ("us_per_request", "us/request beside them", 1),
        ("alone_us_per_request", "us/request alone", 1),
        ("idle", "idle connections", 0),
        ("closed", "of them closed", 0),
    ),
)
LATENCY: Final = Kind(
    "p99_ms",
    True,
    (
        ("p50_ms", "p50 ms", 3),
        ("p99_ms", "p99 ms", 3),
        ("service_p50_ms", "from sending: p50 ms", 3),
        ("service_p99_ms", "p99 ms", 3),
        ("us_per_request", "us/request", 1),
        ("late_starts", "late starts", 0),
    ),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the bench.

    `fresh`: every run has a newly started proxy without load so far, since an allocator keeps what it was given back.
    """

    name: str
    title: str
    downstream: Downstream
    upstream: Upstream
    load: Load
    kind: Kind = REQUESTS
    fresh: bool = False


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("h1", "HTTP/1.1 to HTTP/1.1, small answers", "h1", "h1", Load("/small", 64)),
        Scenario("tls-up", "HTTP/1.1 to HTTP/1.1 over TLS 1.3", "h1", "h1-tls", Load("/small", 64)),
        Scenario("tls-down", "HTTP/1.1 over TLS 1.3 to HTTP/1.1", "h1-tls", "h1", Load("/small", 64, tls=True)),
        Scenario(
            "h2-down", "h2c to HTTP/1.1, 8 connections of 8 streams", "h2c", "h1", Load("/small", 8, h2=True, streams=8)
        ),
        Scenario("h2-up", "HTTP/1.1 to HTTP/2 over TLS 1.3", "h1", "h2-tls", Load("/small", 64)),
        Scenario(
            "grpc",
            "unary gRPC calls, h2c to HTTP/2 over TLS 1.3, 8 connections of 8 streams",
            "h2c",
            "h2-tls",
            Load("/bench.Echo/Call", 8, h2=True, streams=8, body_bytes=100, grpc=True),
        ),
        Scenario("post", "POST of 16 KiB, echoed", "h1", "h1", Load("/echo", 64, body_bytes=16384)),
        Scenario("download", "downloads of 1 MiB, 16 connections", "h1", "h1", Load("/bytes", 16), MEGABYTES),
        Scenario("tcp", "L4: downloads of 1 MiB, 16 connections", "tcp", "tcp", Load("/bytes", 16), MEGABYTES),
        Scenario(
            "tcp-connect", "L4: a new connection per request", "tcp", "tcp", Load("/small", 64, close=True), CONNECTIONS
        ),
        Scenario("idle", "64 active connections beside idle ones", "h1", "h1", Load("/small", 64), IDLE, fresh=True),
        Scenario("latency", "open loop", "h1", "h1", Load("/small", 64), LATENCY),
    )
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how much: `seconds` a run, `idle` connections held, `rate` of the open loop in requests a second."""

    seconds: float = 5.0
    connections: int = 64
    idle: int = 10_000
    rate: float = 1000.0
    proxy_core: int = 1
    load_core: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of time: the proxy's CPU time, its core's busy share, and what the load did meanwhile."""

    cpu: CpuTime
    busy_percent: float
    foreign_percent: float
    """Share of the stretch in which the proxy's core worked for somebody else: another program disturbed the run."""
    done: Done


def measure_window(program: Program | None, settings: Settings, work: Callable[[], Done]) -> Window:
    """Take the accounts before and after `work`."""
    before, busy, begun = program.cpu() if program else None, core_busy_s(settings.proxy_core), time.monotonic()
    done = work()
    wall_s = time.monotonic() - begun
    busy_s = core_busy_s(settings.proxy_core) - busy
    cpu = before.until(program.cpu()) if before and program else CpuTime(0.0, 0.0, 0.0)
    return Window(cpu, 100 * busy_s / wall_s, max(0.0, 100 * (busy_s - cpu.total_s) / wall_s), done)


def scenario_load(scenario: Scenario, settings: Settings) -> Load:
    """The scenario's load, with the number of connections that was asked for where it is the usual 64."""
    return (
        replace(scenario.load, connections=settings.connections) if scenario.load.connections == 64 else scenario.load
    )


def closed_loop(scenario: Scenario, program: Program, port: int, settings: Settings, directory: Path) -> Measures:
    """One run of a closed loop."""
    load = scenario_load(scenario, settings)
    window = measure_window(program, settings, lambda: run(load, port, settings.seconds, settings.load_core, directory))
    done, cpu = window.done, window.cpu
    if not done.requests or not cpu.total_s:
        raise LoadFailed(f"nothing was answered ({done.errors} errors)")
    megabytes = max(done.bytes / 1e6, 1e-9)
    count = megabytes if scenario.kind is MEGABYTES else done.requests
    return {
        "us_per_request": cpu.total_s / done.requests * 1e6,
        "user_us": cpu.user_s / count * 1e6,
        "system_us": cpu.system_s / count * 1e6,
        "requests_per_s": done.requests / done.duration_s,
        "mb_per_s": megabytes / done.duration_s,
        "mb_per_cpu_s": megabytes / cpu.total_s,
        "connections_per_cpu_s": done.requests / cpu.total_s,
        "busy_percent": window.busy_percent,
        "foreign_percent": window.foreign_percent,
        "errors": done.errors,
        "p50_ms": done.p50_us / 1e3,
        "p99_ms": done.p99_us / 1e3,
    }


def beside_idle(scenario: Scenario, program: Program, port: int, settings: Settings, directory: Path) -> Measures:
    """Memory that idle connections take, and what a request costs with and without them.

    Memory comes first, before any load: what a proxy's allocator kept of that would hide what the connections take.
    """
    with idle_clients(settings.connections, port):
        pass  # the first requests make what stays
    memory = program.memory()
    with idle_clients(settings.idle, port) as clients:
        time.sleep(1.0)  # whatever a proxy frees when a connection falls idle, it has freed by then
        grown = program.memory() - memory
        run(scenario.load, port, 1.0, settings.load_core, directory)
        measures = closed_loop(scenario, program, port, settings, directory)
        measures["closed"] = clients.closed()
        measures["idle"] = len(clients)
    measures["kib_per_connection"] = grown / 1024 / settings.idle
    alone = closed_loop(scenario, program, port, settings, directory)
    measures["alone_us_per_request"] = alone["us_per_request"]
    return measures


def open_loop(program: Program | None, port: int, settings: Settings) -> Measures:
    """Latency at a fixed rate. Without a program (directly to the origin) there is no CPU time."""
    loop = OpenLoop(port, settings.rate)
    try:
        loop.run(0.2)
        results = []

        def work() -> Done:
            results.append(loop.run(settings.seconds))
            return Done(len(results[0].due_s), 0, settings.seconds, 0)

        window = measure_window(program, settings, work)
    finally:
        loop.close()
    latencies = results[0]
    return {
        "us_per_request": window.cpu.total_s / window.done.requests * 1e6,
        "user_us": window.cpu.user_s / window.done.requests * 1e6,
        "system_us": window.cpu.system_s / window.done.requests * 1e6,
        "p50_ms": percentile(latencies.due_s, 50) * 1e3,
        "p99_ms": percentile(latencies.due_s, 99) * 1e3,
        "service_p50_ms": percentile(latencies.sent_s, 50) * 1e3,
        "service_p99_ms": percentile(latencies.sent_s, 99) * 1e3,
        "late_starts": latencies.late_starts,
        "foreign_percent": window.foreign_percent if program else 0.0,
        "errors": 0,
    }


def measure(scenario: Scenario, program: Program | None, port: int, settings: Settings, directory: Path) -> Measures:
    """One run of a scenario against one proxy, or (only for latency) against the origin itself."""
    if scenario.kind is LATENCY:
        return open_loop(program, port, settings)
    assert program is not None
    if scenario.kind is IDLE:
        return beside_idle(scenario, program, port, settings, directory)
    return closed_loop(scenario, program, port, settings, directory)
