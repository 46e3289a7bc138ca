"""Standard error and standard output that nobody reads: the program goes on, and says what it could not say."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.admin.ask import Admin

from ..program import ROOT, WAIT_S, HttpOrigin, Onetrip, config, free_port, get, http_origin, serving, wait_for


@pytest.fixture(scope="module")
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        yield found


class Deaf:
    """A program whose standard output and error are full pipes."""

    def __init__(self, directory: Path, text: str) -> None:
        self.path = directory / "onetrip.yaml"
        self.path.write_text(text)
        self.reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"-" * 4095 + b"\n")
        os.set_blocking(writer, True)
        command = [sys.executable, "-m", "proxy.cli", "serve", str(self.path)]
        self.process = subprocess.Popen(command, stdout=writer, stderr=writer, stdin=subprocess.DEVNULL, cwd=ROOT)
        os.close(writer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reader)


def bad_proxy_header(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock, suppress(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        while sock.recv(1000):
            pass


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_reads_and_clients_write(origin: HttpOrigin, tmp_path: Path, workers: int) -> None:
    web, behind, admin_port = free_port(), free_port(), free_port()
    listeners = f'  - {{name: behind, address: "127.0.0.1:{behind}", upstream: app, proxy_protocol: true}}\n'
    text = config(origin.port, listeners=listeners, workers=workers, access_log='{path: "-"}')
    text = text.replace('"127.0.0.1:0", upstream: app}', f'"127.0.0.1:{web}", upstream: app}}', 1)
    text = text.replace('admin: {address: "127.0.0.1:0"}', f'admin: {{address: "127.0.0.1:{admin_port}"}}')
    deaf = Deaf(tmp_path, text)
    try:
        admin = Admin(f"127.0.0.1:{admin_port}", None)

        def ready() -> bool:
            with suppress(Exception):
                return bool(admin.ask("GET", "/readyz"))
            return False

        wait_for(ready, "readiness")
        for number in range(300):
            bad_proxy_header(behind)
            if number % 3 == 0:
                assert get(web).status == 200
        deaf.process.send_signal(signal.SIGHUP)
        metrics = wait_for(
            lambda: _metrics_with(admin, "log_lines_dropped_total", "rate"), "the count of what was left out"
        )
        assert "onetrip_access_log_dropped_total" in metrics
        assert get(web).status == 200
        before = time.monotonic()
        deaf.process.send_signal(signal.SIGTERM)
        assert deaf.process.wait(WAIT_S) == 0
        assert time.monotonic() - before < WAIT_S
    finally:
        deaf.close()


def _metrics_with(admin: Admin, name: str, reason: str) -> str | None:
    text = str(admin.ask("GET", "/metrics"))
    found = re.search(rf'^onetrip_{name}{{reason="{reason}"}} (\S+)$', text, re.MULTILINE)
    return text if found is not None and float(found[1]) > 0 else None


def test_many_bad_clients_are_one_line_with_a_count(origin: HttpOrigin, tmp_path: Path) -> None:
    listeners = '  - {name: behind, address: "127.0.0.1:0", upstream: app, proxy_protocol: true}\n'
    with serving(tmp_path, config(origin.port, listeners=listeners)) as program:
        port = program.port("behind")
        for _ in range(200):
            bad_proxy_header(port)

        def told() -> int:
            return sum(
                event.get("count", 1)
                for event in program.events
                if "proxy_header_refused" in (event["event"], event.get("of"))
            )

        wait_for(lambda: told() == 200, "all of them told, one way or the other")
        assert program.event("log_suppressed")["listener"] == "behind"


def test_a_fifo_without_a_reader_does_not_stop_the_start(origin: HttpOrigin, tmp_path: Path) -> None:
    path = tmp_path / "access"
    os.mkfifo(path)
    with serving(tmp_path, config(origin.port, access_log=f"{{path: {path}}}")) as program:
        assert get(program.port()).status == 200
        program.event("access_log_failing", reason="a FIFO that nobody reads")
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert isinstance(program, Onetrip)
        wait_for(lambda: get(program.port()).status == 200 and _read(reader), "lines")
        program.event("access_log_goes_on")
        os.close(reader)


def _read(fd: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(fd, 65536)
    return b""
