"""`onetrip serve` as a process that a scenario operates: its config file, signals, admin address, log, and what the
kernel says of it. Nothing here blocks the test's event loop, on which origins and clients run, too.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_S = 15.0
_LOOK_S = 0.02
_SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')

Labels = tuple[tuple[str, str], ...]


async def until(condition: Callable[[], Any], what: str, wait_s: float = WAIT_S) -> Any:
    """The condition's value (awaited, where it is a coroutine) once it is true; AssertionError at the deadline."""
    deadline = monotonic() + wait_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert monotonic() < deadline, f"not within {wait_s:g} s: {what}"
        await asyncio.sleep(_LOOK_S)


class AdminFault(AssertionError):
    """The admin address said no."""

    def __init__(self, status: int, content: Any) -> None:
        super().__init__(f"{status}: {content}")
        self.status = status
        self.content = content


class Program:
    """One `onetrip serve`. `config` is what its file says now."""

    def __init__(self, directory: Path, config: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.path = directory / "onetrip.yaml"
        self.log_path = directory / "stderr.log"
        self.config = copy.deepcopy(config)
        self.environment = environment or {}
        self.token: str | None = None
        self.pid = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self._read = 0
        self._rest = b""
        self.admin = config["admin"]["address"]  # a reload can't move it

    # -- its life ----------------------------------------------------------------------------------

    async def start(self, *, prefix: Iterable[str] = (), stderr: int | None = None) -> Program:
        """Run it until it is ready. `prefix`: a command that runs it."""
        self.launch(prefix=prefix, stderr=stderr)
        if stderr is None:
            await self.event("listening")
            await until(self.is_ready, f"ready ({self.tail()})")
        return self

    def launch(self, *, prefix: Iterable[str] = (), stderr: int | None = None) -> None:
        """Run it, and don't wait."""
        self.write(self.config)
        with self.log_path.open("ab") as log, (self.directory / "stdout.log").open("ab") as out:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "proxy.cli", "serve", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log if stderr is None else stderr,
                cwd=ROOT,
                env={**os.environ, **self.environment},
            )
        self.pid = self.process.pid

    async def is_ready(self) -> bool:
        """What a load balancer would think."""
        try:
            status, _ = await self.ask("GET", "/readyz")
        except OSError:
            return False
        return status == 200

    async def hand_over(self) -> None:
        """SIGUSR2, until a new program is ready and in its place; the old one drains beside it."""
        count, ready = len(self.logged("hand_over")), len(self.logged("ready"))
        self.signal(signal.SIGUSR2)
        successor = (await self.event("hand_over", count + 1))["successor"]
        await self.event("listening", pid=successor)
        await self.event("ready", ready + 1)
        self.pid = successor

    async def wait(self, wait_s: float = WAIT_S) -> int:
        """Its exit code (of a successor, which is nobody's child: 0 where it says that nothing was cut)."""
        process = self.process
        assert process is not None
        if self.pid != process.pid:
            await until(lambda: not alive(self.pid), f"the successor's end ({self.tail()})", wait_s)
            return 3 if "connections_cut" in self.logged("stopped")[-1] else 0
        await until(lambda: process.poll() is not None, f"the program's end ({self.tail()})", wait_s)
        return int(process.returncode)

    async def stop(self) -> int:
        """SIGTERM. Its exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the process that serves now."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and what it started, whatever it is at."""
        self.log()
        left = [self.pid, *self.workers()] if self.pid else []
        left += [event["pid"] for event in self.events if event.get("event") in ("worker_started", "listening")]
        for pid in left:
            with suppress(OSError):
                if str(self.path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    # -- its log -----------------------------------------------------------------------------------

    def log(self) -> list[dict[str, Any]]:
        """Every event so far."""
        with suppress(FileNotFoundError), self.log_path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
            self._read += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    self.complaints.append(line.decode(errors="replace"))
        return self.events

    def tail(self) -> str:
        """The log's last lines."""
        with suppress(OSError):
            return self.log_path.read_text()[-1500:]
        return "no log"

    def logged(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of that name with those fields."""
        return [one for one in self.log() if one.get("event") == name and fields.items() <= one.items()]

    async def event(self, name: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """The n-th event of that name."""
        found = await until(
            lambda: len(all_ := self.logged(name, **fields)) >= count and all_, f"event {name} {fields}: {self.tail()}"
        )
        event = found[count - 1]
        assert isinstance(event, dict)
        return event

    def port(self, listener: str = "web") -> int:
        """A listener's port, as the config gives it."""
        section = next(one for one in self.config["listeners"] if one["name"] == listener)
        return int(section["address"].rpartition(":")[2])

    # -- operating it ------------------------------------------------------------------------------

    def write(self, config: dict[str, Any]) -> None:
        """Replace the config file (JSON is YAML)."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(config, indent=1))
        fresh.rename(self.path)

    async def reload(self, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write a config, and have it loaded. Raises AdminFault where it is refused (the file goes back then)."""
        if config is not None:
            self.write(config)
        status, answer = await self.ask("POST", "/reload")
        if status != 200:
            self.write(self.config)
            raise AdminFault(status, answer)
        if config is not None:
            self.config = copy.deepcopy(config)
        assert isinstance(answer, dict)
        return answer

    async def hang_up(self) -> None:
        """SIGHUP, until its reload has been counted."""
        before = sum(value for _, value in self.series(await self.metrics(), "onetrip_config_reloads_total"))
        self.signal(signal.SIGHUP)

        async def counted() -> bool:
            return sum(value for _, value in self.series(await self.metrics(), "onetrip_config_reloads_total")) > before

        await until(counted, "the reload is counted")

    # -- asking it ---------------------------------------------------------------------------------

    async def ask(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        """The admin address's answer: status and JSON (or text)."""
        address = self.admin
        reader, writer = await asyncio.open_connection(address.rpartition(":")[0], int(address.rpartition(":")[2]))
        body = json.dumps(content).encode() if content is not None else b""
        token = f"authorization: Bearer {self.token}\r\n" if self.token else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{token}"
        try:
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(WAIT_S):
                answer = await reader.read()
        finally:
            writer.close()
        head, _, text = answer.decode().partition("\r\n\r\n")
        if not head:
            raise ConnectionResetError(f"{method} {path}: no answer")
        is_json = "application/json" in head
        return int(head.split()[1]), json.loads(text) if is_json else text

    async def get(self, path: str) -> Any:
        """What a GET gives. AdminFault for anything but 200."""
        status, content = await self.ask("GET", path)
        if status != 200:
            raise AdminFault(status, content)
        return content

    async def post(self, path: str, **content: Any) -> Any:
        """Change something. AdminFault for anything but 200."""
        status, answer = await self.ask("POST", path, content)
        if status != 200:
            raise AdminFault(status, answer)
        return answer

    async def status(self) -> dict[str, Any]:
        """`/status`."""
        found = await self.get("/status")
        assert isinstance(found, dict)
        return found

    async def region(self, name: str, upstream: str = "app") -> dict[str, Any]:
        """A region's status."""
        regions = (await self.status())["upstreams"][upstream]["regions"]
        found = next(one for one in regions if one["region"] == name)
        assert isinstance(found, dict)
        return found

    async def metrics(self) -> dict[tuple[str, Labels], float]:
        """Every sample."""
        samples = {}
        for line in (await self.get("/metrics")).splitlines():
            if match := _SAMPLE.match(line):
                samples[match[1], tuple(sorted(_LABEL.findall(match[2] or "")))] = float(match[3])
        return samples

    @staticmethod
    def series(
        samples: dict[tuple[str, Labels], float], name: str, **labels: str
    ) -> list[tuple[dict[str, str], float]]:
        """A metric's samples with those labels."""
        return [
            (found, value)
            for (metric, given), value in samples.items()
            if metric == name and labels.items() <= (found := dict(given)).items()
        ]

    async def total(self, name: str, **labels: str) -> float:
        """The sum over a metric's samples with those labels."""
        return sum(value for _, value in self.series(await self.metrics(), name, **labels))

    # -- what the kernel says ----------------------------------------------------------------------

    def workers(self) -> list[int]:
        """Its worker processes, by the log."""
        started = [one["pid"] for one in self.log() if one.get("event") == "worker_started"]
        return [pid for pid in started if alive(pid)]

    def processes(self) -> list[int]:
        """Itself and its workers."""
        return [self.pid, *(pid for pid in self.workers() if pid != self.pid)]

    def memory_bytes(self) -> int:
        """Resident, of all processes."""
        total = 0
        for pid in self.processes():
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            assert found is not None
            total += int(found[1]) * 1024
        return total

    def descriptors(self) -> list[str]:
        """What its open descriptors are, of all processes: `socket:LOCAL->REMOTE` for TCP."""
        return [what for pid in self.processes() for _, what in self.numbered_descriptors(pid)]

    def numbered_descriptors(self, pid: int) -> list[tuple[int, str]]:
        """One process's, with their numbers."""
        found = []
        with suppress(FileNotFoundError):  # the process has ended
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    found.append((int(entry.name), os.readlink(entry)))
        tcp = _tcp_sockets()
        return [(number, tcp.get(one, one)) for number, one in found]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _tcp_sockets() -> dict[str, str]:
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[9] != "0":
            local, remote = (int(words[n].partition(":")[2], 16) for n in (1, 2))
            found[f"socket:[{words[9]}]"] = f"tcp:{local}->{remote}"
    return found
