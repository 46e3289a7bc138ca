"""The command `onetrip`: every subcommand, its help, its JSON, its exit codes."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from proxy.admin import show
from proxy.commands import app

from .program import ROOT, HttpOrigin, Onetrip, config, free_port, get, http_origin, serving

COMMANDS = (
    *("serve", "check", "config", "demo", "bench", "status", "top", "drain", "undrain", "explain"),
    "healthcheck",
)
ASKING = (*(("status",), ("drain", "here"), ("undrain", "here"), ("explain", "http://x/"), ("healthcheck",), ("top",)),)


@pytest.fixture(scope="module")
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        yield found


@pytest.fixture(scope="module")
def program(origin: HttpOrigin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Onetrip]:
    directory = tmp_path_factory.mktemp("cli")
    with serving(directory, config(origin.port, admin=", token: env:CLI_TOKEN"), CLI_TOKEN="secret") as found:
        get(found.port())
        yield found


@pytest.fixture
def run(program: Onetrip) -> Any:
    """Run a command against the program, with its token."""

    def run(*arguments: str, token: str | None = "secret", admin: str | None = None) -> Result:
        environment = {
            "ONETRIP_ADMIN": admin or program.event("listening")["admin"],
            "ONETRIP_ADMIN_TOKEN": token,
            "COLUMNS": "160",
        }
        return CliRunner().invoke(app, list(arguments), env=environment)

    return run


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})


# Help.


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    found = command(name, "--help")
    assert found.exit_code == 0
    assert re.search(r"Example\S*", found.output), "an example"
    assert f"onetrip {name}" in " ".join(found.output.split())


def test_the_list_of_commands() -> None:
    found = command("--help")
    assert found.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"^\W*{name} +\S", found.output, re.MULTILINE), f"{name} and what it does"
    assert "ONETRIP" not in command().output.partition("Commands")[0]


@pytest.mark.parametrize(
    "arguments",
    [("fly",), ("serve",), ("serve", "a", "b"), ("drain",), ("status", "--colour"), ("check",), ("explain",)],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    found = command(*arguments)
    assert found.exit_code == 2
    assert "Usage:" in found.output


def test_it_runs_as_a_program_and_starts_quickly() -> None:
    """`--help` needs nothing of what serving needs."""
    code = (
        "import sys\nfrom proxy.commands import app\nfrom typer.testing import CliRunner\n"
        "CliRunner().invoke(app, ['--help'])\n"
        "heavy = {'uvloop', 'cryptography', 'pydantic', 'httptools', 'h2', 'prometheus_client'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "proxy.cli", "check", os.devnull], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


# Configs.


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(config(1))
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(config(1).replace("address:", "adress:", 1).replace("deadline: 10s", "deadline: 10"))
    return str(path)


def test_check(good: str, bad: str, tmp_path: Path) -> None:
    found = command("check", good)
    assert (found.exit_code, found.stdout) == (0, "ok\n")
    found = command("check", bad)
    assert found.exit_code == 1
    assert found.stdout == ""
    faults = found.stderr.splitlines()
    assert all(re.match(rf"{re.escape(bad)}:\d+:\d+: ", fault) for fault in faults)
    assert any("did you mean address?" in fault for fault in faults)
    assert any("did you mean 10s?" in fault for fault in faults)
    assert command("check", str(tmp_path / "none.yaml")).exit_code == 1


def test_check_json(good: str, bad: str) -> None:
    found = command("check", "--json", good)
    assert (found.exit_code, json.loads(found.stdout)) == (0, [])
    found = command("check", bad, "--json")
    assert found.exit_code == 1
    for fault in json.loads(found.stdout):
        assert set(fault) == {"file", "line", "column", "message"}
        assert fault["file"] == bad


def test_check_looks_into_certificates(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    path = tmp_path / "tls.yaml"
    path.write_text(config(1, upstreams=f'    tls: {{ca: "{junk}"}}\n'))
    found = command("check", str(path))
    assert found.exit_code == 1
    assert "junk.pem" in found.stderr


def test_config_prints_what_would_be_in_effect(good: str, bad: str) -> None:
    found = command("config", good)
    assert found.exit_code == 0
    assert "retry:" in found.stdout
    assert "header_timeout: 10s" in found.stdout
    found = command("config", good, "--json")
    assert json.loads(found.stdout)["limits"]["header_timeout"] == "10s"
    found = command("config", bad)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "did you mean address?" in found.stderr


def test_what_config_prints_is_a_config_of_the_same_effect(good: str, tmp_path: Path) -> None:
    once = command("config", good).stdout
    again = tmp_path / "again.yaml"
    again.write_text(once)
    assert command("config", str(again)).stdout == once


def test_config_schema() -> None:
    found = command("config", "--schema")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["properties"]["listeners"]
    assert command("config").exit_code == 2


# A running program.


def test_status(run: Any, origin: HttpOrigin) -> None:
    found = run("status")
    assert found.exit_code == 0
    assert re.search(r"ready · up [\d.]+ s · 1 worker$", found.stdout, re.MULTILINE)
    row = next(line for line in found.stdout.splitlines() if f"127.0.0.1:{origin.port}" in line)
    assert "here" in row
    assert "healthy" in row
    assert "web" in found.stdout
    told = json.loads(run("status", "--json").stdout)
    assert told["ready"] is True
    assert told["upstreams"]["app"]["regions"][0]["region"] == "here"


def test_drain_and_undrain(run: Any) -> None:
    assert run("drain", "here", "--for", "15m").stdout == "here drained for app, for 15m\n"
    assert "drained" in run("status").stdout
    assert run("undrain", "here").stdout == "here undrained for app\n"
    assert json.loads(run("drain", "here", "--upstream", "app", "--json").stdout) == {"drained": ["app"]}
    assert json.loads(run("undrain", "here", "--upstream", "app", "--json").stdout) == {"undrained": ["app"]}
    for arguments, fault in (
        (("drain", "nowhere"), "no upstream has a region nowhere; regions: here"),
        (("drain", "here", "--upstream", "none"), "no upstream none has a region here"),
        (("drain", "here", "--for", "soon"), "expected a duration"),
        (("undrain", "nowhere"), "no upstream has a region nowhere"),
    ):
        found = run(*arguments)
        assert found.exit_code == 1
        assert found.stderr.startswith("onetrip: ")
        assert fault in found.stderr


def test_explain(run: Any, origin: HttpOrigin) -> None:
    found = run("explain", "http://shop.example/v1")
    assert found.exit_code == 0
    assert "listener web: route */ → upstream app" in found.stdout
    assert f"→ here at 127.0.0.1:{origin.port}" in found.stdout
    assert re.search(r"^  here: \w+, weight 100%: \S", found.stdout, re.MULTILINE)
    told = json.loads(run("explain", "http://shop.example/v1", "-X", "POST", "--json").stdout)
    assert told["method"] == "POST"
    found = run("explain", "http://[")
    assert found.exit_code == 1
    assert "Invalid IPv6 URL" in found.stderr


def test_healthcheck(run: Any) -> None:
    found = run("healthcheck")
    assert (found.exit_code, found.stdout) == (0, "ready\n")
    assert run("healthcheck", token=None).exit_code == 0, "containers need no token for it"


def test_the_address_may_be_an_option(run: Any, program: Onetrip) -> None:
    found = CliRunner().invoke(app, ["healthcheck", "--admin", program.event("listening")["admin"]])
    assert found.exit_code == 0


@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_token_it_says_which(run: Any, token: str | None) -> None:
    found = run("status", token=token)
    assert found.exit_code == 1
    assert "token is missing or wrong" in found.stderr
    assert "ONETRIP_ADMIN_TOKEN" in found.stderr


@pytest.mark.parametrize("arguments", ASKING, ids=lambda arguments: arguments[0])
def test_where_nobody_answers_it_says_so(run: Any, arguments: tuple[str, ...]) -> None:
    port = free_port()
    found = run(*arguments, admin=f"127.0.0.1:{port}")
    assert found.exit_code == 1
    assert found.stdout == ""
    assert f"can't reach the admin address 127.0.0.1:{port}" in found.stderr
    assert "ONETRIP_ADMIN" in found.stderr


@pytest.mark.parametrize(
    "address", ["nonsense", "localhost", "127.0.0.1:", ":9900", "127.0.0.1:99999", "unix:/no/such"]
)
def test_an_address_that_is_none_is_told(run: Any, address: str) -> None:
    found = run("status", admin=address)
    assert found.exit_code == 1
    assert address in found.stderr
    assert "Traceback" not in found.stderr


def test_an_admin_address_on_a_unix_socket(origin: HttpOrigin, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    text = config(origin.port).replace('admin: {address: "127.0.0.1:0"', f'admin: {{address: "unix:{path}"')
    with serving(tmp_path, text):
        found = CliRunner().invoke(app, ["healthcheck", "--admin", f"unix:{path}"])
        assert (found.exit_code, found.stdout) == (0, "ready\n")


def test_somebody_else_at_the_admin_address_is_told() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(b"\xff not json")

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = CliRunner().invoke(app, ["status", "--admin", f"127.0.0.1:{server.server_address[1]}"])
        server.shutdown()
    assert found.exit_code == 1
    assert "is not onetrip's admin address" in found.stderr


def test_a_server_that_speaks_something_else_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            client, _ = server.accept()
            client.recv(1000)
            client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            client.close()

        threading.Thread(target=speak, daemon=True).start()
        found = CliRunner().invoke(app, ["status", "--admin", f"127.0.0.1:{server.getsockname()[1]}"])
    assert found.exit_code == 1
    assert "can't reach" in found.stderr


def test_top_shows_status_until_it_is_interrupted(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    class Live:
        def __init__(self, first: Any, **_: Any) -> None:
            shown.append(first)

        def __enter__(self) -> Live:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing."""

        def update(self, status: Any, refresh: bool) -> None:
            shown.append(status)

    def sleep(seconds: float) -> None:
        assert seconds == 0.25
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(show, "Live", Live)
    monkeypatch.setattr(show, "sleep", sleep)
    found = run("top", "--interval", "0.25")
    assert found.exit_code == 0
    assert len(shown) == 3


# What the command line itself promises.


def test_the_version_has_a_name() -> None:
    found = command("--version")
    assert (found.exit_code, found.output.split()[0]) == (0, "onetrip")
    assert re.fullmatch(r"onetrip \S+\n", found.output)


def every_help() -> list[tuple[str, ...]]:
    return [("--help",), *((name, "--help") for name in COMMANDS), ("bench", "compare", "--help")]


@pytest.mark.parametrize("arguments", every_help(), ids=" ".join)
def test_flags_have_no_type(arguments: tuple[str, ...]) -> None:
    """They take no value, so a type would only ask for one."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy.cli", *arguments],
        cwd=ROOT, env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--help" in done.stdout
    assert "bool" not in done.stdout.lower()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_had(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy.cli", "--show-completion", shell],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "_ONETRIP_COMPLETE" in done.stdout


@pytest.mark.parametrize("way", ["plain", "parsed"])
def test_the_plain_form_of_a_command_does_the_same(program: Onetrip, way: str, tmp_path: Path) -> None:
    """`proxy.cli` goes past the parser where it can; an option that it leaves to the parser goes the other way."""
    admin = program.event("listening")["admin"]
    parsed = way == "parsed"
    for arguments, code, says in (
        (["status", *([f"--admin={admin}"] if parsed else ["--admin", admin])], 0, "onetrip"),
        (["status", "--json", *([f"--admin={admin}"] if parsed else ["--admin", admin])], 0, '"upstreams"'),
        (["healthcheck", *([f"--admin={admin}"] if parsed else ["--admin", admin])], 0, "ready"),
        (["healthcheck", *(["--admin=127.0.0.1:9"] if parsed else ["--admin", "127.0.0.1:9"])], 1, "can't reach"),
        (["check", *(["--"] if parsed else []), str(program.path)], 0, "ok"),
        (["check", *(["--"] if parsed else []), str(tmp_path / "none.yaml")], 1, "can't be read"),
        (["serve", *(["--"] if parsed else []), str(tmp_path / "none.yaml")], 1, "can't be read"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "proxy.cli", *arguments],
            cwd=ROOT, env={**os.environ, "ONETRIP_ADMIN_TOKEN": "secret", "CLI_TOKEN": "secret"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert says in done.stdout + done.stderr
