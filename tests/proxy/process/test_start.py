"""A start listens before it imports the program, and never where the config does not say so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.config import load_config, parse_config
from proxy.config.model import Config
from proxy.config.source import ADMIN_ADDRESS, addresses, read_source, source_of
from proxy.process import inheritance
from proxy.process.start import bind_early

from ..program import ROOT, WAIT_S, HttpOrigin, Onetrip, config, free_port, get, http_origin, wait_for

UPSTREAMS = 'upstreams: {app: {regions: {here: {endpoints: ["127.0.0.1:9"]}}}}\n'
STALLED = (
    "import sys\nfrom proxy.process import start\nreal = start.import_module\n"
    "def imported(name):\n    print('binding is done', flush=True)\n    sys.stdin.readline()\n    return real(name)\n"
    "start.import_module = imported\nsys.exit(start.start(sys.argv[1]))\n"
)


@pytest.fixture(scope="module")
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        yield found


def seen(text: str, **environ: str) -> list[tuple[str, bool]]:
    return [(str(address), fast_open) for address, fast_open in addresses(source_of(text, environ=environ))]


@pytest.mark.parametrize(
    "listeners",
    [
        'listeners: [{address: "127.0.0.1:80", upstream: app}]\n',
        'listeners: [{address: "[::1]:0", upstream: app, fast_open: true}, {address: "127.0.0.1:81", upstream: app}]\n',
        'listeners: [{address: "${HOST}:80", upstream: app}, {address: "unix:/tmp/x", upstream: app}]\n',
        'listeners: [&x {address: "127.0.0.1:80", upstream: app}, {<<: *x, name: two, address: "127.0.0.1:81"}]\n',
        'listeners: [{address: "127.0.0.1:80", upstream: app}]\nadmin: {address: "127.0.0.1:0"}\n',
        'listeners: [{address: "127.0.0.1:80", upstream: app}]\nadmin: {address: "unix:/tmp/admin"}\n',
    ],
)
def test_what_is_seen_is_what_the_config_says(listeners: str) -> None:
    """The quick look and the model read the same addresses, for all that is not a file."""
    text, environ = listeners + UPSTREAMS, {"HOST": "127.0.0.2"}
    said = {
        (str(address), fast_open)
        for address, fast_open in inheritance.addresses(parse_config(text, environ=environ)).values()
        if not address.path
    }
    assert set(seen(text, **environ)) == said


def test_the_default_of_the_admin_address_is_the_model_s() -> None:
    assert str(Config.model_fields["admin"].get_default(call_default_factory=True).address) == ADMIN_ADDRESS


@pytest.mark.parametrize(
    "text",
    [
        'listeners: [{address: "127.0.0.1", upstream: app}]\n' + UPSTREAMS,
        'listeners: [{address: "127.0.0.1:80"}, {address: 7}]\n' + UPSTREAMS,
        'listeners: {address: "127.0.0.1:80"}\n' + UPSTREAMS,
        'listeners: [{address: "127.0.0.1:80", upstream: app}]\n',
        'listeners: [{address: "127.0.0.1:80", address: "127.0.0.1:81"}]\n' + UPSTREAMS,
        'listeners: [{address: "${NOT_SET}:80"}]\n' + UPSTREAMS,
    ],
)
def test_nothing_is_guessed_of_what_is_faulty(text: str) -> None:
    assert seen(text) == []


def test_what_the_config_does_not_ask_for_is_closed(tmp_path: Path) -> None:
    """However it came to be bound: the config has the last word."""
    file = tmp_path / "onetrip.yaml"
    file.write_text('listeners: [{name: web, address: "127.0.0.1:0", upstream: app}]\n' + UPSTREAMS)
    bound = bind_early(read_source(file))
    other = 'listeners: [{name: web, address: "127.0.0.2:0", upstream: app}]\nadmin: {address: "127.0.0.1:0"}\n'
    asked = parse_config(other + UPSTREAMS)
    opened = inheritance.open_sockets(asked, bound)
    assert opened["web"].getsockname()[0] == "127.0.0.2"
    unused = [sock for sock in bound.values() if sock not in opened.values()]
    assert unused
    assert all(sock.fileno() == -1 for sock in unused)
    inheritance.close_all(opened.values())


def test_what_was_bound_is_used(tmp_path: Path) -> None:
    file = tmp_path / "onetrip.yaml"
    text = 'listeners: [{name: web, address: "127.0.0.1:0", upstream: app}]\nadmin: {address: "[::1]:0"}\n' + UPSTREAMS
    file.write_text(text.replace("[::1]", "127.0.0.2"))
    bound = bind_early(read_source(file))
    opened = inheritance.open_sockets(load_config(file), bound)
    assert set(opened.values()) == set(bound.values())
    inheritance.close_all(opened.values())


def test_what_is_inherited_needs_no_hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "onetrip.yaml"
    file.write_text('listeners: [{address: "127.0.0.1:0", upstream: app}]\n' + UPSTREAMS)
    for name in ("LISTEN_FDS", inheritance.SOCKETS_VARIABLE):
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            assert bind_early(read_source(file)) == {}


def test_a_client_waits_where_it_would_have_been_refused(tmp_path: Path, origin: HttpOrigin) -> None:
    port = free_port()
    file = tmp_path / "onetrip.yaml"
    text = config(origin.port).replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"', 1)
    file.write_text(text)
    assert str(port) in text
    with subprocess.Popen(
        [sys.executable, "-c", STALLED, str(file)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdin is not None
        try:
            assert program.stdout.readline() == b"binding is done\n"
            with socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
                client.sendall(b"GET /early HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                program.stdin.write(b"go on\n")
                program.stdin.flush()
                client.settimeout(WAIT_S)
                answer = b"".join(iter(lambda: client.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b" /early")
            program.terminate()
            program.communicate(timeout=WAIT_S)
            assert program.returncode == 0
        finally:
            program.kill()


@pytest.mark.parametrize("fault", ["nonsense: 1\n", "sessions: {path: /nowhere/at/all}\n"])
def test_a_faulty_config_leaves_nothing_bound(tmp_path: Path, fault: str) -> None:
    port, path = free_port(), tmp_path / "socket"
    file = tmp_path / "onetrip.yaml"
    file.write_text(
        f'listeners: [{{address: "127.0.0.1:{port}", upstream: app}}, {{address: "unix:{path}", upstream: app}}]\n'
        + UPSTREAMS
        + fault
    )
    done = subprocess.run(
        [sys.executable, "-m", "proxy.cli", "serve", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert not path.exists()
    socket.create_server(("127.0.0.1", port)).close()


def test_the_fork_server_holds_no_listener(tmp_path: Path, origin: HttpOrigin) -> None:
    """It outlives the program by a moment; a socket of its own would then take connections for nobody."""
    port = free_port()
    text = config(origin.port).replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"', 1)
    program = Onetrip(tmp_path, text).ready()
    assert get(port).status == 200
    os.kill(program.pid, 9)
    program.wait()

    def refused() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) != 0

    wait_for(refused, "the port's end")


def test_the_soft_limit_of_descriptors_is_raised(origin: HttpOrigin, tmp_path: Path) -> None:
    """1,024 is where most systems begin; that is 500 clients."""
    command = ["sh", "-c", 'ulimit -S -n 256; exec "$0" "$@"', sys.executable, "-m", "proxy.cli", "serve"]
    (tmp_path / "onetrip.yaml").write_text(config(origin.port))
    with subprocess.Popen([*command, str(tmp_path / "onetrip.yaml")], cwd=ROOT, stderr=subprocess.PIPE) as program:
        try:
            assert program.stderr is not None
            program.stderr.readline()  # it runs
            limits = Path(f"/proc/{program.pid}/limits").read_text().splitlines()
            (line,) = [line for line in limits if line.startswith("Max open files")]
            soft, hard = line.split()[3:5]
            assert soft == hard
        finally:
            program.terminate()
