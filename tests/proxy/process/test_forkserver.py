"""Successors by fork: what they keep (ticket keys, the memory of first flights), and what they take anew (the program)."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.lab.certificates import issue, make_ca
from proxy.process import forkserver
from tlscache.context import ClientContext, ClientSettings
from tlscache.engine import State, TLSEngine
from tlscache.session import Session
from tlscache.ticket_keys import TicketKeys

from ..program import ROOT, WAIT_S, HttpOrigin, Onetrip, alive, config, free_port, http_origin, refused, wait_for

GET = b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        found.release.set()
        yield found


def with_argument(argument: str) -> set[int]:
    """Processes that have it in their command line."""
    found = set()
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):
            if alive(pid) and argument.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.add(pid)
    return found


@dataclass
class Edge:
    """A program with a TLS listener, and clients of it. A port for each test: successors keep it."""

    directory: Path
    origin: HttpOrigin
    workers: int = 1
    root: Path = ROOT

    def __post_init__(self) -> None:
        ca = make_ca(self.directory)
        leaf = issue(ca, names=["localhost"])
        self.ca = str(ca.certificate)
        self.port = free_port()
        pair = f'{{certificate: "{leaf.certificate}", key: "{leaf.key}"}}'
        tls = f"tls: {{certificates: [{pair}], early_data: true}}"
        listener = f'  - {{name: tls, address: "127.0.0.1:{self.port}", upstream: app, {tls}}}\n'
        text = config(self.origin.port, listeners=listener, workers=self.workers)
        self.program = Onetrip(self.directory, text, root=self.root).ready()
        self.pid = self.program.pid

    def resumed(self, session: ssl.SSLSession | None = None) -> tuple[bool, ssl.SSLSession | None]:
        """A request by the standard library's client: whether it resumed, and a ticket."""
        context = self.context if session is not None else ssl.create_default_context(cafile=self.ca)
        self.context = context  # sessions go with their context
        plain = socket.create_connection(("127.0.0.1", self.port), WAIT_S)
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as connection:
            connection.sendall(GET % b"/")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
            return bool(connection.session_reused), connection.session

    def hand_over(self, count: int = 1) -> None:
        """SIGUSR2 to the program that runs; the next one has taken over."""
        os.kill(self.pid, signal.SIGUSR2)
        before, self.pid = self.pid, self.event("hand_over", count)["successor"]
        self.event("listening", count + 1)
        wait_for(lambda: not alive(before), "the end of the one before")

    def event(self, name: str, count: int) -> dict[str, Any]:
        """The n-th of all programs' events of that name."""
        found: list[dict[str, Any]] = wait_for(
            lambda: [one for one in self.program.events if one.get("event") == name][count - 1 : count],
            f"event {count} of {name} in {self.program.events[-8:]}",
        )
        return found[0]

    def processes(self) -> set[int]:
        """Every process that runs on this config."""
        return with_argument(str(self.program.path))

    def reasons(self) -> list[str]:
        return [one["reason"] for one in self.program.events if one.get("event") == "ticket_keys_lost"]

    def close(self) -> None:
        self.program.stop()
        for pid in self.processes() - {self.program.pid}:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def edge(origin: HttpOrigin, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Edge]:
    found = Edge(tmp_path, origin, *getattr(request, "param", ()))
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("edge", [(1,), (2,)], indirect=True)
def test_tickets_are_good_after_sigusr2_and_after_the_next(edge: Edge) -> None:
    again, ticket = edge.resumed()
    assert not again
    for count in (1, 2):
        edge.hand_over(count)
        for _ in range(4):  # with two workers: either of them
            again, _ = edge.resumed(ticket)
            assert again
    assert edge.reasons() == []


def flight(edge: Edge, session: Session | None, path: bytes) -> tuple[bytes, TLSEngine]:
    """A first flight with early data (where there is a session), sent and answered; the recorded bytes."""
    context = ClientContext(ClientSettings(ca=edge.ca, alpn=(b"http/1.1",), early_data=True))
    engine = TLSEngine(context, server_name="localhost", session=session)
    if session is not None:
        engine.write_early(GET % path)
    engine.start()
    first = engine.data_to_send()
    with socket.create_connection(("127.0.0.1", edge.port), WAIT_S) as connection:
        connection.sendall(first)
        said = b""
        while not (engine.tickets and (session is None or b"origin" in said)):
            data = connection.recv(65_536)
            assert data, engine
            said += engine.receive(data)
            connection.sendall(engine.data_to_send())
    assert engine.state is State.OPEN
    return first, engine


def test_early_data_is_accepted_by_a_successor_and_a_replay_is_not(edge: Edge) -> None:
    tickets = flight(edge, None, b"")[1].tickets
    edge.origin.held = 0
    first, engine = flight(edge, tickets[0], b"/held")
    assert (engine.early, edge.origin.held) == ("accepted", 1)
    edge.hand_over()
    with socket.create_connection(("127.0.0.1", edge.port), WAIT_S) as replay:
        replay.sendall(first)
        assert replay.recv(65_536)  # the server's part of the handshake, which only the client can finish
        _, engine = flight(edge, tickets[1], b"/held")
    assert (engine.early, edge.origin.held) == ("accepted", 2)


def copy_of_the_program(directory: Path) -> Path:
    for floor in ("proxy", "routing", "tlscache", "loadtests"):
        shutil.copytree(ROOT / floor, directory / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for library in ROOT.glob("onetrip__mypyc*.so"):
        shutil.copy(library, directory)
    return directory


def test_a_successor_runs_what_is_installed_by_then(origin: HttpOrigin, tmp_path: Path) -> None:
    root = copy_of_the_program(tmp_path / "installed")
    edge = Edge(tmp_path, origin, root=root)
    try:
        _, ticket = edge.resumed()
        server = root / "proxy" / "process" / "program.py"
        server.write_text(server.read_text().replace("pid=os.getpid(),", 'pid=os.getpid(), edition="next",'))
        edge.hand_over()
        assert "edition" not in edge.event("listening", 1)
        assert edge.event("listening", 2)["edition"] == "next"
        assert edge.resumed(ticket)[0]

        kept = root / "tlscache" / "ticket_keys.py"
        kept.write_text(kept.read_text() + "\n# changed\n")
        edge.hand_over(2)
        assert edge.reasons() == ["the module tlscache.ticket_keys has changed"]
        assert not edge.resumed(ticket)[0]
        _, ticket = edge.resumed()
        edge.hand_over(3)  # that one has a fork server of its own
        assert edge.resumed(ticket)[0]
        assert len(edge.reasons()) == 1
    finally:
        edge.close()


def test_sockets_may_want_the_numbers_that_the_fork_server_uses_itself(edge: Edge) -> None:
    """A successor that binds one more has it where its fork server has something of its own."""
    _, ticket = edge.resumed()
    more = f'  - {{name: more, address: "127.0.0.1:{free_port()}", upstream: app}}\n'
    edge.program.write(edge.program.path.read_text().replace("upstreams:\n", more + "upstreams:\n", 1))
    for count in range(1, 5):
        edge.hand_over(count)
        assert edge.resumed(ticket)[0]
    assert edge.reasons() == []


def test_near_the_limit_of_descriptors_they_move_below_it(edge: Edge) -> None:
    _, ticket = edge.resumed()
    highest = max(int(entry.name) for entry in Path(f"/proc/{edge.pid}/fd").iterdir())
    resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (highest + 8, highest + 8))
    for pid in edge.processes():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 8, highest + 8))
    edge.hand_over()
    assert edge.resumed(ticket)[0]


def test_a_program_that_a_fork_can_not_begin_is_begun_from_scratch(origin: HttpOrigin, tmp_path: Path) -> None:
    root = copy_of_the_program(tmp_path / "installed")
    edge = Edge(tmp_path, origin, root=root)
    try:
        file = root / "proxy" / "process" / "start.py"
        now = file.read_text().replace("    fork_server: ForkServer,", "    *,\n    fork_server: ForkServer,")
        call = "serve(path, forkserver.start(path, __name__, tuple(bound.values())), read, bound)"
        assert call in now
        file.write_text(
            now.replace(call, "serve(path, fork_server=forkserver.start(path, __name__), read=read, bound=bound)")
        )
        os.kill(edge.pid, signal.SIGUSR2)
        failed = edge.event("hand_over", 1)["successor"]
        edge.pid = edge.event("hand_over", 2)["successor"]
        assert edge.event("hand_over_failed", 1)["successor"] == failed
        edge.event("listening", 2)
        assert not alive(failed)
        assert edge.program.wait() == 0
        edge.resumed()
    finally:
        edge.close()


def test_too_much_to_pass_on_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = forkserver.ForkServer(TicketKeys(contexts=1), ours)
        for environment, fds in (({}, [0] * 300), ({"LONG": "x" * 70_000}, [0])):
            with pytest.raises(forkserver.Refused, match="too many to pass on"):
                server.fork(environment, fds)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
@pytest.mark.parametrize("workers", [1, 2])
def test_closed_standard_files_are_no_place_for_sockets(
    origin: HttpOrigin, tmp_path: Path, closed: str, workers: int
) -> None:
    program = Onetrip(tmp_path, config(origin.port, workers=workers), shell=closed)
    try:
        program.ready()
        links = [os.readlink(f"/proc/{program.pid}/fd/{fd}") for fd in (0, 1)]
        assert not any(link.startswith("socket") for link in links)
    finally:
        program.stop()


def test_it_is_no_child_and_goes_with_the_last_program(edge: Edge) -> None:
    others = edge.processes() - {edge.pid}
    assert len(others) == 1
    assert edge.program.workers() == []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        os.kill(*others, number)
    edge.hand_over()
    assert edge.processes() == {edge.pid} | others
    os.kill(edge.pid, signal.SIGKILL)
    wait_for(lambda: not edge.processes(), "the end of all")


def test_a_successor_has_the_descriptors_that_its_predecessor_had(edge: Edge) -> None:
    def open_files() -> list[str]:
        return sorted(os.readlink(entry).partition(":")[0] for entry in Path(f"/proc/{edge.pid}/fd").iterdir())

    before = open_files()
    edge.hand_over()
    wait_for(lambda: open_files() == before, f"{before} again, instead of {open_files()}")
    os.kill(edge.pid, signal.SIGTERM)
    wait_for(lambda: not alive(edge.pid), "its end")
    assert refused(edge.port)


def test_without_it_a_successor_starts_from_scratch(edge: Edge) -> None:
    _, ticket = edge.resumed()
    [server] = edge.processes() - {edge.pid}
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: not alive(server), "its end")
    edge.hand_over()
    assert not edge.resumed(ticket)[0]
    assert len(edge.reasons()) == 1
    assert "fork server" in edge.reasons()[0]


def test_one_that_does_not_answer_forks_nothing_later() -> None:
    """The program has started a successor from scratch by then; two of them would serve."""
    script = (
        "import os, signal, sys\n"
        "from proxy.process import forkserver\n"
        "forkserver.ANSWER_S = 0.1\n"
        "server = forkserver.start('no such config', 'nothing')\n"
        "peer = int(sys.stdin.readline())\n"
        "os.kill(peer, signal.SIGSTOP)\n"
        "try:\n"
        "    server.fork({}, [])\n"
        "except forkserver.Refused as refused:\n"
        "    print(refused, flush=True)\n"
        "os.kill(peer, signal.SIGCONT)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        [peer] = wait_for(lambda: [pid for pid in with_argument(script) if pid != process.pid], "the fork server")
        said, _ = process.communicate(f"{peer}\n", timeout=WAIT_S)
    wait_for(lambda: not alive(peer), "its end")
    assert said == "the fork server does not answer: timed out\n"


def test_there_is_none_without_a_tls_listener(origin: HttpOrigin, tmp_path: Path) -> None:
    program = Onetrip(tmp_path, config(origin.port)).ready()
    try:
        assert with_argument(str(program.path)) == {program.pid}
    finally:
        program.stop()


def test_a_fork_server_has_nothing_compiled_of_the_program() -> None:
    """A successor would not take that anew: an extension module is initialised once in a process."""
    script = (
        "import sys, proxy.cli, proxy.process.start, proxy.process.forkserver as f\n"
        "for name, module in sys.modules.items():\n"
        "    if name.partition('.')[0] in f.OURS | {'onetrip__mypyc'}:\n"
        "        assert (module.__file__ or '').endswith('.py'), name\n"
        "assert f.KEPT <= set(sys.modules)\n"
        "f.forget_program()\n"
        "assert {n for n in sys.modules if n.partition('.')[0] in f.OURS} == f.KEPT\n"
        "assert not hasattr(sys.modules['proxy'], 'cli')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=WAIT_S)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"the package other-1.0": True}, "the package other-1.0 has gone"),
        ({"the interpreter": (1, 2, 3)}, "the interpreter has changed"),
        ({"the module tlscache.openssl": b""}, "the module tlscache.openssl has changed"),
    ],
)
def test_what_a_fork_would_not_renew_is_found(change: dict[str, object], reason: str) -> None:
    stamp = forkserver.stamp_now()
    assert forkserver.change_since(stamp) == ""
    assert any(name.startswith("the package cryptography-") for name in stamp)
    assert forkserver.change_since(stamp | change) == reason


def test_a_package_that_was_installed_since_is_found() -> None:
    stamp = forkserver.stamp_now()
    name = next(name for name in stamp if name.startswith("the package cryptography-"))
    del stamp[name]
    assert forkserver.change_since(stamp) == f"{name} has come"
