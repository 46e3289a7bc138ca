"""`onetrip serve` as a process, and a small origin, for tests of signals, workers and the command line.

Waits are for events in the program's log, or for its end; each has a deadline (`WAIT_S`).
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from proxy.admin.ask import Admin

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_S = 20.0
_DECODER = json.JSONDecoder()


def wait_for(condition: Callable[[], Any], what: str = "it", wait_s: float = WAIT_S) -> Any:
    """The condition's value once it is true; AssertionError at the deadline."""
    deadline = time.monotonic() + wait_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in time"
        time.sleep(0.005)
    return value


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class HttpOrigin(ThreadingHTTPServer):
    """Answers `name path`; `/held/…` only once `release` is set; `/bytes/N` with that many."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, name: str = "origin") -> None:
        self.name = name
        self.release = threading.Event()
        self.held = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections are cut in these tests."""

    def close(self) -> None:
        self.release.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpOrigin

    def do_GET(self) -> None:
        if self.path.startswith("/held"):
            with self.server.lock:
                self.server.held += 1
            self.server.release.wait(WAIT_S)
        size = int(self.path.rpartition("/")[2]) if self.path.startswith("/bytes/") else 0
        body = b"x" * size or f"{self.server.name} {self.path}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class Onetrip:
    """A running `onetrip serve`. `events`: its log so far; `shell`: redirections that it is started with."""

    def __init__(
        self,
        directory: Path,
        text: str,
        environment: dict[str, str] | None = None,
        *,
        root: Path = ROOT,
        shell: str = "",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "onetrip.yaml"
        self.write(text)
        self.events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.successors: list[int] = []
        command = [sys.executable, "-m", "proxy.cli", "serve", str(self.path)]
        if shell:
            command = ["sh", "-c", f'exec "$0" "$@" {shell}', *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, **(environment or {})},
        )
        self.output: list[str] = []
        for stream, into in ((self.process.stderr, self._read), (self.process.stdout, self.output.append)):
            threading.Thread(target=self._follow, args=(stream, into), daemon=True).start()

    def write(self, text: str) -> None:
        """Replace the config file."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.path)

    def _follow(self, stream: Any, into: Callable[[str], None]) -> None:
        for line in stream:
            into(line)

    def _read(self, line: str) -> None:
        line = line.strip()
        while line:
            try:
                event, end = _DECODER.raw_decode(line)
            except ValueError:
                self.complaints.append(line)
                return
            line = line[end:].strip()
            if event.get("event") == "hand_over":
                self.successors.append(event["successor"])
            self.events.append(event)

    @property
    def pid(self) -> int:
        return self.process.pid

    def event(self, name: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """The n-th event of that name with those fields, as soon as it is in the log."""

        def found() -> dict[str, Any] | None:
            all_ = [e for e in self.events if e.get("event") == name and fields.items() <= e.items()]
            if len(all_) >= count:
                return all_[count - 1]
            ended = self.process.poll()
            assert ended is None or name == "stopped", f"it ended with {ended}: {self.events[-5:]} {self.complaints}"
            return None

        value = wait_for(found, f"the event {name} {fields} ({self.events[-8:]} {self.complaints[-20:]})")
        assert isinstance(value, dict)
        return value

    def ready(self) -> Onetrip:
        """Once it listens and is ready."""
        self.event("listening")
        self.event("ready")
        return self

    def port(self, name: str = "web", listening: int = 1) -> int:
        """Where a listener is, according to the n-th `listening` event."""
        return int(self.event("listening", listening)["listeners"][name].rpartition(":")[2])

    def admin(self, token: str | None = None, listening: int = 1) -> Admin:
        """Its admin address."""
        return Admin(self.event("listening", listening)["admin"], token)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, wait_s: float = WAIT_S) -> int:
        """Its exit code."""
        return self.process.wait(wait_s)

    def workers(self) -> list[int]:
        """Its worker processes."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if alive(pid)]

    def stop(self) -> None:
        """End it and what it started, whatever it is at."""
        started = [event["pid"] for event in self.events if event.get("event") == "worker_started"]
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in (*self.successors, *started):
            if alive(pid) and b"proxy.cli" in Path(f"/proc/{pid}/cmdline").read_bytes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Answer:
    """What a client got."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.body = response.read()
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """A keep-alive HTTP/1.1 client."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)

    def get(self, path: str = "/", **headers: str) -> Answer:
        self.connection.request("GET", path, headers=headers)
        return Answer(self.connection.getresponse())

    def send(self, path: str) -> None:
        """A request whose answer is fetched later."""
        self.connection.request("GET", path)

    def answer(self) -> Answer:
        return Answer(self.connection.getresponse())

    def close(self) -> None:
        self.connection.close()


def get(port: int, path: str = "/") -> Answer:
    """One request over a connection of its own."""
    client = Client(port)
    try:
        return client.get(path, Connection="close")
    finally:
        client.close()


def refused(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


class Load:
    """Clients that ask on and on: some keep their connection, some make a new one each time."""

    def __init__(self, port: int, keeping: int = 2, fresh: int = 2) -> None:
        self.port = port
        self.answered = 0
        self.failures: list[str] = []
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number < keeping,), daemon=True)
            for number in range(keeping + fresh)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(WAIT_S)

    def more(self, count: int = 50) -> None:
        """Until so many more were answered."""
        goal = self.answered + count
        wait_for(lambda: self.answered >= goal or self.failures, f"{count} more answers")

    def _run(self, keep: bool) -> None:
        client: Client | None = None
        while not self._ending.is_set():
            fresh = client is None
            try:
                client = client or Client(self.port)
                answer = client.get("/", **({} if keep else {"Connection": "close"}))
            except OSError as error:
                client = self._lost(client, error, fresh)
                continue
            except http.client.HTTPException as error:
                client = self._lost(client, error, fresh)
                continue
            with self._lock:
                self.answered += 1
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {answer.text}")
            if not keep or answer.headers.get("connection") == "close":
                client.close()
                client = None

    def _lost(self, client: Client | None, error: Exception, fresh: bool) -> None:
        """A kept connection may end between two requests, as RFC 9112 section 9.5 has it; a new one must not fail."""
        if client is not None:
            client.close()
        if fresh or not isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
            self.failures.append(repr(error))


CONFIG = """\
listeners:
  - {{name: web, address: "127.0.0.1:0", upstream: app}}
{listeners}upstreams:
  app:
    protocol: h1
    regions: {{here: {{endpoints: ["127.0.0.1:{port}"]}}}}
{upstreams}admin: {{address: "127.0.0.1:0"{admin}}}
access_log: {access_log}
workers: {workers}
shutdown: {{{shutdown}}}
"""


def config(
    port: int,
    *,
    listeners: str = "",
    upstreams: str = "",
    admin: str = "",
    access_log: str = "off",
    workers: int = 1,
    shutdown: str = "deadline: 10s",
) -> str:
    """A config with one HTTP listener `web`."""
    return CONFIG.format(**locals())


@contextmanager
def serving(directory: Path, text: str, **environment: str) -> Iterator[Onetrip]:
    """A started program."""
    program = Onetrip(directory, text, environment)
    try:
        yield program.ready()
    finally:
        program.stop()


@contextmanager
def http_origin(name: str = "origin") -> Iterator[HttpOrigin]:
    """A started origin."""
    origin = HttpOrigin(name)
    try:
        yield origin
    finally:
        origin.close()
