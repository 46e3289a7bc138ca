"""What a start may not wait for: budgets of imported modules, which unlike milliseconds are the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """\
listeners: [{address: "127.0.0.1:0", upstream: app}]
upstreams: {app: {regions: {here: {endpoints: ["127.0.0.1:9"]}}}}
admin: {address: "127.0.0.1:0"}
access_log: off
"""
START = "import sys\nfrom proxy.process import inheritance, start\n"
UNTIL_BOUND = START + (
    "def bind(*given): print(*sys.modules); sys.stdout.flush(); raise SystemExit(0)\n"
    "inheritance.bind = bind\nstart.start(sys.argv[1])\n"
)
UNTIL_SERVING = START + (
    "real = start.import_module\n"
    "def run(main): main.close(); print(*sys.modules); return 0\n"
    "def imported(name):\n    module = real(name)\n    module.uvloop.run = run\n    return module\n"
    "start.import_module = imported\nstart.start(sys.argv[1])\n"
)
COMMAND = "import atexit, sys\natexit.register(lambda: print(*sys.modules))\nfrom proxy.cli import main\nmain()\n"

OPERATORS = {"rich", "typer", "click", "shellingham", "pygments"}
HEAVY = {"pydantic", "pydantic_core", "structlog", "asyncio", "uvloop", "msgspec", "prometheus_client", "cryptography"}
AFTERWARDS = {"prometheus_client", "http.client", "cryptography.x509"}
OTHERS = {"loadtests", "proxy.bench", "proxy.demo", "hdrh", "h2", "httptools", "locust"}


def loaded(script: str, *arguments: str) -> set[str]:
    """Modules that the script had imported when it printed them."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def among(modules: set[str], forbidden: set[str]) -> set[str]:
    """Those of `modules` that are, or belong to, what is forbidden."""
    return {one for one in modules if any(one == name or one.startswith(f"{name}.") for name in forbidden)}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "onetrip.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_a_start_binds_before_it_imports_the_program(file: str) -> None:
    modules = loaded(UNTIL_BOUND, file)
    assert not among(modules, HEAVY | OPERATORS | OTHERS | {"routing", "tlscache", "ssl", "logging"})
    assert "proxy.config.model" not in modules
    assert len([one for one in modules if one.startswith("proxy")]) <= 13


def test_a_start_imports_what_it_needs_to_serve(file: str) -> None:
    modules = loaded(UNTIL_SERVING, file)
    modules.discard("rich")  # it stands there as what can't be imported
    assert not among(modules, OPERATORS | OTHERS | AFTERWARDS)
    assert not among(modules, {"proxy.config.json_schema", "proxy.config.reference", "proxy.admin.show"})
    assert "proxy.process.supervisor" not in modules  # there is one worker


def test_a_check_imports_neither_the_program_nor_a_command_line(file: str) -> None:
    modules = loaded(COMMAND, "check", file)
    assert not among(modules, OPERATORS | OTHERS | AFTERWARDS | (HEAVY - {"pydantic", "pydantic_core"}))
    assert not among(modules, {"proxy.process.worker", "proxy.config.json_schema", "proxy.upstream"})


@pytest.mark.parametrize("command", ["status", "healthcheck"])
def test_asking_a_proxy_needs_no_proxy(command: str) -> None:
    modules = loaded(COMMAND, command, "--admin", "127.0.0.1:9")
    assert not among(modules, HEAVY | OTHERS | (OPERATORS - {"rich"}) | {"routing", "tlscache", "proxy.config"})
