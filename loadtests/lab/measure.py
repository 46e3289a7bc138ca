"""What the lab itself costs: round trips over it against those asked for, beside the same client and origin without it.

`python -m loadtests.lab measure` runs it; `main` is the client's process, started inside home. Where it may, it runs
client and origin with real-time priority: what else the machine does is not the lab's doing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

import uvloop

from .lab import Lab, Mode
from .openloop import KeepAliveClient, Result, open_loop
from .scheduling import MEASURING, hurry

_IDLE_REQUESTS: Final = 50
_ROOT: Final = Path(__file__).resolve().parents[2]


async def measure(*, mode: Mode, rtt_ms: float, rate: float, duration_s: float, connections: int) -> dict[str, Any]:
    """Open a lab with one region, measure, close it. Figures in milliseconds.

    `added`: a quantile over the lab, less `rtt_ms`, less the same quantile without it.
    """
    async with Lab.open(mode=mode, regions={"far": rtt_ms}) as lab:
        origin = await lab.origin("far")
        for pid in origin.pids:
            hurry(MEASURING, pid)
        arguments = (f"{rate:g}", f"{duration_s:g}", str(connections))
        bare = await _client(lab.command_prefix("far"), lab.bound("far"), arguments)
        before = await lab.counters()
        over = await _client(lab.command_prefix(), lab.address("far"), arguments)
        counters = await lab.counters()
        units = sum(path["packets"] for path in counters["paths"].values())
        units -= sum(path["packets"] for path in before["paths"].values())
        cpu_s = counters["carrier"]["cpu_s"] - before["carrier"]["cpu_s"]
        return {
            "mode": lab.mode,
            "rtt_ms": rtt_ms,
            "rate": rate,
            "without_lab": bare,
            "with_lab": over,
            "added_p50_ms": round(over["loaded"]["p50_ms"] - rtt_ms - bare["loaded"]["p50_ms"], 3),
            "added_p99_ms": round(over["loaded"]["p99_ms"] - rtt_ms - bare["loaded"]["p99_ms"], 3),
            "carried": units,
            "carrier_us_each": round(cpu_s * 1e6 / max(1, units), 1),
            "carrier": counters["carrier"],
        }


async def _client(prefix: Sequence[str], address: tuple[str, int], arguments: Sequence[str]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *(sys.executable, "-m", "loadtests.lab.measure", address[0], str(address[1]), *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    output, _ = await process.communicate()
    result: dict[str, Any] = json.loads(output)
    return result


async def _run(host: str, port: int, rate: float, duration_s: float, connections: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    connects: list[float] = []

    async def dial(protocol: asyncio.Protocol) -> None:
        begin = monotonic()
        await loop.create_connection(lambda: protocol, host, port)
        connects.append((monotonic() - begin) * 1e3)

    async with KeepAliveClient(dial, connections=connections) as client:
        idle = Result()
        await client.get()  # the newest connection's handshake may still be on its way (loopback)
        for _ in range(_IDLE_REQUESTS):
            begin = monotonic()
            await client.get()
            idle.latencies_ms.append((monotonic() - begin) * 1e3)
        loaded = await open_loop(client.get, rate=rate, duration_s=duration_s)
    connects.sort()
    return {
        "connect_p50_ms": round(connects[len(connects) // 2], 3),
        "idle": idle.summary(),
        "loaded": loaded.summary(),
    }


def main() -> None:
    """The client: host, port, rate, seconds, connections; prints its figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("duration_s", type=float)
    parser.add_argument("connections", type=int)
    options = parser.parse_args()
    hurry(MEASURING)
    print(json.dumps(uvloop.run(_run(**vars(options)))))


if __name__ == "__main__":
    main()
