"""A program under measurement: started on one core, counted by the kernel, and stopped with everything it started.

**CPU time** comes from the scheduler's own account of every thread of every process in the program's session
(`setsid`): `/proc/PID/task/TID/schedstat`, in nanoseconds, taken at both ends of a run. How it divides into user and
system time is only known by sampling at the kernel's tick (utime and stime in `/proc/PID/stat`), so the exact total is
divided in the sampled proportion. Work that the kernel does for a socket in a soft interrupt is counted for whatever
runs at that moment, which on loopback is the sender.

**Memory** is the proportional set size (`smaps_rollup`): pages shared by several processes count once. Socket buffers
belong to the kernel and are in no process's account.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from .wiring import ENVIRONMENT, PROJECT, Peer, Unavailable, Wiring, prepare

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
ROUNDING_TICKS: Final = 4
"""User and system time at both ends of a run are rounded to whole ticks."""

GONE_TIMEOUT_S: Final = 5.0
START_TIMEOUT_S: Final = 15.0


class CpuTime(NamedTuple):
    """CPU seconds used: in all, in the program's own code, and in the kernel on its behalf."""

    total_s: float
    user_s: float
    system_s: float


@dataclass(slots=True)
class CpuSnapshot:
    """What had been used at one moment: scheduler nanoseconds by thread, and user and system ticks by process."""

    threads_ns: dict[int, int] = field(default_factory=dict)
    ticks: dict[int, tuple[int, int]] = field(default_factory=dict)

    def until(self, end: CpuSnapshot) -> CpuTime:
        """CPU time used between this moment and `end`.

        A thread that has ended took its nanoseconds with it, while its process keeps the ticks: where they say clearly
        more than the threads that are left, they give the total.
        """
        user = system = 0
        for pid, (end_user, end_system) in end.ticks.items():
            start_user, start_system = self.ticks.get(pid, (0, 0))
            user += end_user - start_user
            system += end_system - start_system
        total_s = sum(ns - self.threads_ns.get(tid, 0) for tid, ns in end.threads_ns.items()) / 1e9
        ticks_s = (user + system) / TICKS_PER_S
        if ticks_s > total_s + ROUNDING_TICKS * len(end.ticks) / TICKS_PER_S:
            total_s = ticks_s
        user_share = user / (user + system) if user + system else 0.5
        return CpuTime(total_s, total_s * user_share, total_s * (1 - user_share))


def stat_fields(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the name: state is [0], session [3], utime [11], stime [12] (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def session_pids(session: int) -> list[int]:
    """Every process of a session, in ascending order; zombies are none."""
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = stat_fields(int(entry))
            except OSError:  # it ended meanwhile
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                pids.append(int(entry))
    return sorted(pids)


def cpu_snapshot(pids: list[int]) -> CpuSnapshot:
    """What these processes have used so far."""
    snapshot = CpuSnapshot()
    for pid in pids:
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                on_cpu_ns = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0]
                snapshot.threads_ns[int(tid)] = int(on_cpu_ns)
        except OSError:  # no schedstat in this kernel, or the thread ended: ticks then
            snapshot.threads_ns.clear()
        try:
            fields = stat_fields(pid)
        except OSError:
            continue
        snapshot.ticks[pid] = (int(fields[11]), int(fields[12]))
    return snapshot


def memory_bytes(pids: list[int]) -> int:
    """Proportional set size of these processes together."""
    total_kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kib * 1024


def core_busy_s(core: int) -> float:
    """Seconds that a core has not been idle since boot, soft interrupts included."""
    for line in Path("/proc/stat").read_text().splitlines():
        words = line.split()
        if words[0] == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in words[1:8])
            return (user + nice + system + irq + softirq) / TICKS_PER_S
    raise ValueError(f"no core {core}")


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run the body on one core: what it starts inherits that, and stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago, below the range of outgoing connections."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = low - 1 - int.from_bytes(os.urandom(2), "big") % min(12000, low - 1024)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Program:
    """One running program and all it started. A context manager: leaving it stops them."""

    def __init__(self, name: str, command: list[str], directory: Path, core: int, stdout: Path | None = None) -> None:
        self.name = name
        self.directory = directory
        self._errors = directory / "stderr.log"
        with open(stdout or os.devnull, "ab") as out, open(self._errors, "ab") as errors, on_core(core):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
                cwd=PROJECT,
                env=ENVIRONMENT,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Program {self.name} pid={self.pid} returncode={self._process.poll()}>"

    @property
    def pid(self) -> int:
        """Of the process that was started: the session's leader."""
        return self._process.pid

    def pids(self) -> list[int]:
        """All its processes now."""
        return session_pids(self.pid)

    def cpu(self) -> CpuSnapshot:
        """What all its threads have used so far."""
        return cpu_snapshot(self.pids())

    def memory(self) -> int:
        """Its proportional set size in bytes."""
        return memory_bytes(self.pids())

    def complaint(self) -> str:
        """The last line it wrote to standard error, for the report."""
        lines = [line.strip() for line in self._errors.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1][-300:]
        code = self._process.poll()
        return "it said nothing" if code is None else f"it ended with exit code {code}"

    def wait_listening(self, port: int) -> None:
        """Return once it accepts on the port; raise `Unavailable` where it ends first, or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Unavailable(f"did not start: {self.complaint()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise Unavailable(f"did not listen within {START_TIMEOUT_S:.0f} s: {self.complaint()}")

    def stop(self) -> None:
        """End the whole session: SIGTERM twice (the second one cuts a drain short), then SIGKILL."""
        for number, patience_s in ((signal.SIGTERM, 1.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while (rest := session_pids(self.pid)) and time.monotonic() < deadline:
            for pid in rest:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def start_peer(peer: Peer, wiring: Wiring, core: int) -> Program:
    """Write the peer's config, start it on the core and wait until it listens."""
    config = prepare(peer, wiring)
    stdout = wiring.access_log if peer.name == "haproxy" else wiring.directory / "stdout.log"
    program = Program(peer.name, peer.command(config), wiring.directory, core, stdout)
    try:
        program.wait_listening(wiring.port)
    except BaseException:
        program.stop()
        raise
    return program
