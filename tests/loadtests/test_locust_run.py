"""Locust itself, headless, in a process of its own (it patches the standard library): against an origin of the lab."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from loadtests.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.interop, pytest.mark.needs("locust")]

CLIENT = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from loadtests.scenarios.h2_client import H2Pool, RequestFailed

pool = H2Pool(sys.argv[1], connections=2)
one = pool.connection()
assert one.request("GET", "/", []).body.startswith(b"this is us")
assert one.request("POST", "/orders", [], b"x" * 60_000).body == b"x" * 60_000
assert one.request("GET", "/status/503", []).status == 503
assert len(one.request("GET", "/bytes/300000", []).body) == 300_000
jobs = [gevent.spawn(pool.connection().request, "GET", "/", []) for _ in range(40)]
gevent.joinall(jobs, raise_error=True)
assert {job.value.status for job in jobs} == {200}
try:
    one.request("GET", "/slow?ms=60000", [], timeout_s=0.1)
except RequestFailed as error:
    assert "within 0.1 s" in str(error), error
else:
    raise AssertionError("a slow answer was not given up")
assert one.request("GET", "/", []).status == 200  # the connection outlives it
one.close()
assert not one.usable
assert pool.connection().request("GET", "/", []).status == 200
assert pool.connection().request("GET", "/", []).status == 200
pool.close()
print("done")
"""


async def run(*command: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_users_of_both_versions_and_a_marked_fault(tmp_path: Path) -> None:
    chart = tmp_path / "chart.html"
    async with Lab.open(mode="loopback", regions={"us": 5}) as lab:
        await lab.origin("us", h2=True)
        host, port = lab.address("us")
        command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
        command += ["--host", f"http://{host}:{port}", "--scenario", "region-loss", "--seconds", "2", "--peak", "20"]
        code, out, err = await run(*command, "--json", "--timeline", str(chart))
    assert code == 0, out + err
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert {"GET /", "GET / (h2)"} <= set(entries)
    assert all(entry["num_failures"] == 0 for entry in entries.values())
    times = [float(key) for entry in entries.values() for key in entry["response_times"]]
    assert any(time % 1 for time in times)  # Locust's own buckets are whole milliseconds at best
    assert "us dark: 1 s" in chart.read_text()


async def test_the_h2_client() -> None:
    async with Lab.open(mode="loopback", regions={"us": 2}) as lab:
        await lab.origin("us", h2=True)
        host, port = lab.address("us")
        code, out, err = await run(sys.executable, "-c", CLIENT, f"http://{host}:{port}")
    assert (code, out.strip()) == (0, "done"), err


async def test_the_stage_obeys_the_labs_words() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtests.scenarios.stage", "--mode", "loopback"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def answer() -> dict[str, object]:
        assert process.stdout is not None
        found: dict[str, object] = json.loads(await process.stdout.readline())
        return found

    try:
        hello = await answer()
        assert str(hello["url"]).startswith("http://127.0.0.1:")
        for words, expected in (
            ("set us blackhole=on", "ok"),
            ("origin eu drop", "ok"),
            ("set us colour=red", "error"),
        ):
            process.stdin.write(words.encode() + b"\n")
            assert expected in await answer()
    finally:
        process.stdin.close()
        await process.wait()
    assert process.returncode == 0


LOCUST = (sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary")


async def test_without_a_host_the_lab_and_onetrip_are_opened(tmp_path: Path) -> None:
    """As docs/load.md has it, but short."""
    chart = tmp_path / "loss.html"
    short = ("--seconds", "3", "--peak", "10", "--json")
    code, out, err = await run(*LOCUST, "--scenario", "region-loss", "--timeline", str(chart), *short)
    assert code == 0, out + err
    assert "Traceback" not in err
    assert sum(entry["num_requests"] for entry in json.loads(out)) > 0
    assert "us dark" in chart.read_text()


async def test_a_load_test_without_a_request_fails() -> None:
    """Nobody there to be asked: no users, then no host."""
    nobody = ("--host", "http://127.0.0.1:9", "--scenario", "steady", "--seconds", "1", "--peak", "0")
    code, _, err = await run(*LOCUST, *nobody)
    assert code == 1
    assert "no request was sent" in err
    code, _, err = await run(*LOCUST, "--lab", "off", "--seconds", "1")
    assert code == 2
    assert "--lab off needs --host" in err
    assert "Traceback" not in err
