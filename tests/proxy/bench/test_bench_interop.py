"""Runs against a real nginx on loopback: h1 and h2, plaintext and TLS, resumption."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.bench.commands import measure
from proxy.bench.evaluate import evaluate
from proxy.bench.plan import Plan, targets
from proxy.bench.result import RegionResult

from ...programs import needs

pytestmark = [pytest.mark.interop, pytest.mark.needs("nginx", "openssl")]

CONFIG = """
{user} pid {root}/nginx.pid; error_log {root}/error.log; daemon off; worker_processes 1;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  server {{ listen 127.0.0.1:{plain}; location / {{ return 200 "ok"; }} location /big {{ root {root}; }} }}
  server {{ listen 127.0.0.1:{clear_h2} http2; location / {{ return 200 "ok"; }} }}
  server {{
    listen 127.0.0.1:{tls} ssl http2; ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3; http2_max_concurrent_streams 8;
    location / {{ return 200 "ok"; }} location /big {{ root {root}; }}
  }}
}}
"""


@dataclass
class Nginx:
    plain: int
    tls: int
    clear_h2: int
    certificate: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    root = tmp_path_factory.mktemp("nginx")
    subprocess.run(
        [
            *(
                needs("openssl"),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(root / "key.pem"), "-out", str(root / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    (root / "big").write_bytes(bytes(3_000_000))
    ports = Nginx(free_port(), free_port(), free_port(), str(root / "cert.pem"))
    config = root / "nginx.conf"
    config.write_text(
        CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "",
            root=root,
            plain=ports.plain,
            tls=ports.tls,
            clear_h2=ports.clear_h2,
        )
    )
    process = subprocess.Popen([needs("nginx"), "-p", str(root), "-c", str(config)], stderr=subprocess.PIPE)
    try:
        wait_for(ports.tls, process, root)
        yield ports
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int, process: subprocess.Popen[bytes], root: Path) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    pytest.fail(f"nginx ended: {(root / 'error.log').read_text()}")


def run(url: str, **options: Any) -> RegionResult:
    options = {"rate": 200.0, "duration_s": 0.5} | options
    result = evaluate(uvloop.run(measure(Plan(targets([url]), **options), calibrate=False)))
    (region,) = result.regions
    assert not region.failures, region.failures
    assert region.answered == region.requests == round(options["rate"] * options["duration_s"])
    assert set(region.statuses) == {"200"}
    return region


def test_h1(nginx: Nginx) -> None:
    region = run(f"http://127.0.0.1:{nginx.plain}/", connections=4)
    assert set(region.states) == {"cold", "reused"}


def test_h1_head_and_body(nginx: Nginx) -> None:
    run(f"http://127.0.0.1:{nginx.plain}/big", method="HEAD")
    run(f"http://127.0.0.1:{nginx.plain}/", method="POST", body=bytes(10_000))


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_tls_sessions_are_resumed(nginx: Nginx, protocol: str) -> None:
    url = f"https://localhost:{nginx.tls}/"
    region = run(url, ca=nginx.certificate, protocol=protocol, connections=1, connection_requests=5, rate=100)
    assert region.connections_opened >= 2
    assert region.states["cold"]["tls"].count == 1
    assert region.states["resumed"]["tls"].count == region.connections_opened - 1
    assert set(region.tls_versions) == {"TLSv1.3"}
    assert {"tcp", "tls", "first_byte", "total"} <= set(region.states["resumed"])


def test_h2_in_clear_text(nginx: Nginx) -> None:
    region = run(f"http://127.0.0.1:{nginx.clear_h2}/", protocol="h2", connections=1)
    assert region.connections_opened == 1


@pytest.mark.parametrize("connections", [1, 3])
def test_h2_keeps_to_the_servers_stream_limit(nginx: Nginx, connections: int) -> None:
    # A burst: everything is due at once, eight streams are allowed on each connection, the rest queues.
    options = {"ca": nginx.certificate, "protocol": "h2", "connections": connections}
    region = run(f"https://localhost:{nginx.tls}/", rate=20_000, duration_s=0.01, **options)
    assert region.connections_opened == connections


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_large_bodies_are_read_to_the_end(nginx: Nginx, protocol: str) -> None:
    url = f"https://localhost:{nginx.tls}/big"
    region = run(url, ca=nginx.certificate, protocol=protocol, connections=2, rate=20)
    assert region.bytes_received >= 10 * 3_000_000
    assert region.phases["receive"].count == 10


def test_poisson_and_several_regions(nginx: Nginx) -> None:
    urls = [f"a=http://127.0.0.1:{nginx.plain}/", f"b=https://localhost:{nginx.tls}/"]
    plan = Plan(targets(urls), rate=200, duration_s=0.5, poisson=True, seed=1, insecure=True, ab=True)
    result = evaluate(uvloop.run(measure(plan, calibrate=False)))
    assert all(region.answered == region.requests > 0 for region in result.regions)
    assert result.ab is not None
