"""The packet carrier: one process that holds the regions' namespaces and moves every packet between their TUN devices.

The kernel's own emulation (netem) needs a module that many machines lack; this needs only TUN. It is precise because it
does nothing else: select(2) sleeps with microsecond resolution, timer slack is 1 us, the process runs under a real-time
policy where it may, and the garbage collector is off (nothing here makes cycles). How much too late sleeps end is
followed, and they are made as much shorter. What is due within `_EARLY_S` goes out with the batch at hand: about the
time that a wake-up takes, so that packets are as often early as late.

It ends when its control socket closes, and its namespaces with it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from heapq import heappop, heappush
from time import monotonic
from typing import Any, Final

from .netns import NamespaceError, become_root_of_a_user_namespace, make_region, serve_sockets, set_sysctls
from .path import Link, PathSettings
from .scheduling import CARRYING, hurry

_EARLY_S: Final = 40e-6
_OVERSHOOT_MAX_S: Final = 150e-6  # how much too late a sleep is believed to end, and so how long it may spin instead
_PACKET_BYTES_MAX: Final = 2048  # above the device's MTU of 1500
_BATCH_PACKETS: Final = 64  # read at most so many from one device before delivering what is due
_IN_FLIGHT_MAX: Final = 200_000  # packets; past it new ones are dropped, and counted as overflowed
_PREFIX: Final = bytes((10, 66))


class Carrier:
    """Packets between regions 0..n-1 by a `Link` for each ordered pair."""

    def __init__(self, tuns: list[int], delays_ms: list[list[float]]) -> None:
        self._tuns = tuns
        self._links = [[Link(PathSettings(delay_ms=delay)) for delay in row] for row in delays_ms]
        self._heap: list[tuple[float, int, int, bytes]] = []
        self._sequence = 0
        self._late = [0] * 1001  # deliveries by lateness in steps of 10 us; the last is 10 ms and more
        self._delivered = 0

    def run(self, control: socket.socket) -> None:
        """Carry until `control` closes."""
        heap, tuns = self._heap, self._tuns
        lines = _Lines(control)
        watched = [control.fileno(), *tuns]
        region_of = {tun: region for region, tun in enumerate(tuns)}
        overshoot_s = 0.0
        while True:
            timeout = heap[0][0] - _EARLY_S - overshoot_s - monotonic() if heap else None
            if timeout is not None and timeout <= 0.0:
                timeout = 0.0  # awake before the time: look for packets until it comes
            readable = select.select(watched, (), (), timeout)[0]
            if timeout and not readable:
                late_s = monotonic() - (heap[0][0] - _EARLY_S - overshoot_s)
                overshoot_s += (min(late_s, _OVERSHOOT_MAX_S) - overshoot_s) / 8
            for descriptor in readable:
                if descriptor in region_of:
                    self._receive(descriptor, region_of[descriptor])
                    continue
                messages = lines.receive()
                if messages is None:
                    return
                for message in messages:
                    lines.send(self._command(message))
            if heap:
                self._deliver()

    def _receive(self, tun: int, source: int) -> None:
        links, heap, now = self._links[source], self._heap, monotonic()
        for _ in range(_BATCH_PACKETS):
            try:
                packet = os.read(tun, _PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            # An IPv4 header has the destination in bytes 16 to 19. Everything else (IPv6 router solicitations) has
            # nowhere to go.
            if packet[0] >> 4 != 4 or packet[16:18] != _PREFIX or packet[18] >= len(links):
                continue
            target = packet[18]
            link = links[target]
            due = link.schedule(now, len(packet))
            if due is None:
                continue
            if len(heap) >= _IN_FLIGHT_MAX:
                link.overflowed += 1
                continue
            self._sequence += 1
            heappush(heap, (due, self._sequence, target, packet))

    def _deliver(self) -> None:
        heap, tuns, late = self._heap, self._tuns, self._late
        now = monotonic()
        while heap and heap[0][0] <= now + _EARLY_S:
            due, _, target, packet = heappop(heap)
            try:
                os.write(tuns[target], packet)
            except OSError:  # the device's queue is full: a lost packet, as on any wire
                continue
            late[max(0, min(1000, int((now - due) * 1e5)))] += 1
            self._delivered += 1
            now = monotonic()

    def _command(self, message: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"id": message.get("id")}
        try:
            if message["op"] == "set":
                link = self._links[message["source"]][message["target"]]
                link.configure(link.settings.changed(**message["values"]))
            elif message["op"] == "counters":
                answer["paths"] = [[link.counters() for link in row] for row in self._links]
                answer["carrier"] = self._own_counters()
            else:
                answer["error"] = f"no such command: {message['op']}"
        except (ValueError, LookupError, TypeError) as error:
            answer["error"] = str(error)
        return answer

    def _own_counters(self) -> dict[str, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "delivered": self._delivered,
            "in_flight": len(self._heap),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "late_p50_ms": _quantile(self._late, 0.5) / 100,
            "late_p99_ms": _quantile(self._late, 0.99) / 100,
        }


class _Lines:
    """JSON lines on a blocking socket that `select` watches."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def receive(self) -> list[dict[str, Any]] | None:
        """The complete messages that have arrived; None at the end."""
        data = self._connection.recv(65536)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")


def _quantile(counts: list[int], share: float) -> int:
    remaining = sum(counts) * share
    for step, count in enumerate(counts):
        remaining -= count
        if remaining <= 0:
            return step
    return len(counts) - 1


def main() -> None:
    """The process.

    `argv[1]` is JSON with `control` and `sockets` (descriptors), `delays_ms` (a row per source), `addresses`,
    `sysctls`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = json.loads(sys.argv[1])
    control = socket.socket(fileno=config["control"])
    requests = socket.socket(fileno=config["sockets"])
    lines = _Lines(control)
    rootless = os.geteuid() != 0
    try:
        if rootless:
            become_root_of_a_user_namespace()
        regions, refused = [], []
        for region in range(len(config["delays_ms"])):
            regions.append(make_region(region, config["addresses"], config["congestion"]))
            refused = set_sysctls(config["sysctls"])
    except OSError as error:
        what = str(error) if isinstance(error, NamespaceError) else f"namespace set-up: {error}"
        lines.send({"error": what})
        return
    namespaces = [namespace for namespace, _ in regions]
    tuns = [tun for _, tun in regions]
    if os.fork() == 0:
        # Making sockets stalls for as long as the kernel likes: not in the process that keeps time.
        control.close()
        for tun in tuns:
            os.close(tun)
        serve_sockets(requests, namespaces)
        os._exit(0)
    requests.close()
    scheduling = hurry(CARRYING)
    facts = {"pid": os.getpid(), "namespaces": namespaces, "rootless": rootless}
    lines.send({**facts, "scheduling": scheduling, "refused": refused})
    gc.disable()
    Carrier(tuns, config["delays_ms"]).run(control)


if __name__ == "__main__":
    main()
