"""The Dockerfile can't be built in tests; what it copies, builds and runs can be."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text()
WAIT_S = 30.0


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", TEXT, re.MULTILINE)


def command(name: str) -> list[str]:
    (found,) = [json.loads(words) for words in instructions(name)]
    return list(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` makes of exactly the files that the image's first stage copies."""
    source = tmp_path_factory.mktemp("src")
    for line in instructions("COPY"):
        *names, target = shlex.split(line)
        if names[0].startswith("--from"):
            continue
        for name in names:
            place = source / target / (name if target == "./" else "")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copy(ROOT / name, place)
    target = tmp_path_factory.mktemp("image")
    target.chmod(0o755)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    subprocess.run(
        [*pip, "."], cwd=source, check=True, timeout=300, env={**os.environ, "ONETRIP_PURE": "1"}, capture_output=True
    )
    return target


def test_every_package_is_copied() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = {shlex.split(line)[0] for line in instructions("COPY")}
    assert {package.partition(".")[0] for package in packages} <= copied


def test_it_runs_as_nobody() -> None:
    (user,) = instructions("USER")
    assert int(user.partition(":")[0]) > 0


def test_its_commands_are_the_program_s(installed: Path, tmp_path: Path) -> None:
    (entry,) = command("ENTRYPOINT")
    serve, config = command("CMD")
    (health,) = re.findall(r'CMD (\["onetrip".*\])$', "\n".join(instructions("HEALTHCHECK")))
    assert entry == json.loads(health)[0] == "onetrip"
    with socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
        port, admin = one.getsockname()[1], other.getsockname()[1]
    file = tmp_path / Path(config).name
    file.write_text(
        f'listeners: [{{address: "127.0.0.1:{port}", upstream: app}}]\n'
        'upstreams: {app: {regions: {here: {endpoints: ["127.0.0.1:9"]}}}}\n'
        f'admin: {{address: "127.0.0.1:{admin}"}}\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    onetrip = [sys.executable, "-m", "proxy.cli"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*onetrip, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    with subprocess.Popen([*onetrip, serve, str(file)], cwd=tmp_path, env=environment) as program:
        try:
            deadline = time.monotonic() + WAIT_S
            while (asked := run(*json.loads(health)[1:], "--admin", f"127.0.0.1:{admin}")).returncode:
                assert time.monotonic() < deadline, asked.stderr
                assert program.poll() is None
        finally:
            program.terminate()
        assert program.wait(WAIT_S) == 0
    where = subprocess.run(
        [sys.executable, "-c", "import proxy; print(proxy.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(installed)), "the copy ran, not the checkout"
