"""`onetrip serve` between real programs: nginx and HAProxy behind and before it; curl, wrk, OpenSSL and `websockets`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from loadtests.lab.certificates import Issued, issue, make_ca

from ..programs import needs
from ..proxy.program import (
    WAIT_S,
    Onetrip,
    config,
    free_port,
    get,
    http_origin,
    serving,
    wait_for,
)

pytestmark = pytest.mark.interop


class Server:
    """Another program that listens on a port."""

    def __init__(self, port: int, *command: str) -> None:
        self.port = port
        self.command = command
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(self._listens, f"{self.command[0]} on port {self.port}")

    def _listens(self) -> bool:
        if self.process.poll() is not None:
            self._output.seek(0)
            pytest.fail(f"{self.command} ended: {self._output.read().decode()}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """With all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.kill()
        self._output.close()


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start another program; it is ended with the test."""
    started: list[Server] = []

    def one(port: int, *command: str) -> Server:
        started.append(Server(port, *command))
        return started[-1]

    yield one
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return make_ca(tmp_path_factory.mktemp("interop"))


NGINX = """
user root;
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  client_max_body_size 0;
  types {{ text/html html; application/octet-stream bin; }}
  gzip on; gzip_proxied any; gzip_min_length 1; gzip_types text/html;
  server {{
    listen 127.0.0.1:{port} ssl;
    server_name localhost;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_client_certificate {ca};
    ssl_verify_client optional;
    root {directory}/files;
    location = /who {{ default_type text/plain; return 200 "$ssl_client_s_dn $http_x_forwarded_for $http_via\\n"; }}
    location /upload/ {{ dav_methods PUT; }}
    location = /moved {{ return 301 /index.html; }}
  }}
}}
"""


class Nginx:
    """nginx with TLS, and its files."""

    def __init__(self, directory: Path, ca: Issued) -> None:
        leaf = issue(ca, names=["localhost", "127.0.0.1"], file_name="nginx")
        self.port = free_port()
        self.files = directory / "files"
        (self.files / "upload").mkdir(parents=True)
        self.large = os.urandom(5_000_000)
        (self.files / "large.bin").write_bytes(self.large)
        (self.files / "index.html").write_text("<!doctype html>" + "hello " * 500)
        values = {"certificate": leaf.certificate, "key": leaf.key, "ca": ca.certificate}
        path = directory / "nginx.conf"
        path.write_text(NGINX.format(directory=directory, port=self.port, **values))
        self.server = Server(self.port, needs("nginx"), "-c", str(path))


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, ca: Issued) -> Iterator[Nginx]:
    found = Nginx(tmp_path_factory.mktemp("nginx"), ca)
    yield found
    found.server.stop()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, nginx: Nginx, ca: Issued) -> Iterator[Onetrip]:
    """onetrip before nginx, with mutual TLS; TLS and plaintext listeners."""
    directory = tmp_path_factory.mktemp("edge")
    me = issue(ca, names=["edge.test"], file_name="me")
    one, two = (issue(ca, names=[name]) for name in ("one.test", "two.test"))
    pairs = ", ".join(f'{{certificate: "{leaf.certificate}", key: "{leaf.key}"}}' for leaf in (one, two))
    listeners = f'  - {{name: tls, address: "127.0.0.1:0", upstream: app, tls: {{certificates: [{pairs}]}}}}\n'
    listeners += (
        '  - {name: mutual, address: "127.0.0.1:0", upstream: app, '
        f'tls: {{certificates: [{pairs}], client_ca: "{ca.certificate}"}}}}\n'
    )
    mine = f'certificate: "{me.certificate}", key: "{me.key}"'
    tls = f'    tls: {{server_name: localhost, ca: "{ca.certificate}", {mine}}}\n'
    with serving(directory, config(nginx.port, listeners=listeners, upstreams=tls)) as found:
        yield found


def curl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [needs("curl"), "-sS", "--max-time", "20", *arguments], capture_output=True, check=False, timeout=30
    )
    if check:
        assert done.returncode == 0, done.stderr.decode()
    return done


def here(port: int) -> str:
    """A region."""
    return f'here: {{endpoints: ["127.0.0.1:{port}"]}}'


def at(edge: Onetrip, path: str) -> str:
    return f"http://127.0.0.1:{edge.port()}{path}"


# nginx over TLS, served to curl and wrk.


def test_small_and_large_files(edge: Onetrip, nginx: Nginx) -> None:
    urls = [at(edge, path) for path in ("/index.html", "/large.bin", "/index.html", "/large.bin")]
    done = curl(*urls)
    page = b"<!doctype html>" + b"hello " * 500
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256((page + nginx.large) * 2).digest()


def test_one_connection_serves_many_requests(edge: Onetrip) -> None:
    done = curl("-o", "/dev/null", "-w", "%{num_connects}\n", *[at(edge, "/index.html")] * 5, "-o", "/dev/null")
    counts = [int(line) for line in re.findall(rb"^\d+$", done.stdout, re.MULTILINE)]
    assert sum(counts) == 1


def test_heads_ranges_conditions_and_compression(edge: Onetrip, nginx: Nginx) -> None:
    head = curl("-I", at(edge, "/large.bin")).stdout.decode()
    assert "content-length: 5000000" in head
    assert curl("-r", "100-199", at(edge, "/large.bin")).stdout == nginx.large[100:200]
    stamp = re.search(r"last-modified: (.*)\r", head)
    assert stamp is not None
    not_modified = curl("-H", f"If-Modified-Since: {stamp[1]}", "-w", "%{http_code}", at(edge, "/large.bin"))
    assert not_modified.stdout == b"304"
    packed = curl("-H", "Accept-Encoding: gzip", at(edge, "/index.html")).stdout
    assert packed[:2] == b"\x1f\x8b"
    assert curl("--compressed", at(edge, "/index.html")).stdout.startswith(b"<!doctype html>")
    assert curl("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", at(edge, "/moved")).stdout.startswith(b"301 ")


@pytest.mark.parametrize("how", ["length", "chunked", "expect"])
def test_uploads(edge: Onetrip, nginx: Nginx, tmp_path: Path, how: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(content := os.urandom(3_000_000))
    more = {
        "length": ["-H", "Expect:"],
        "chunked": ["-H", "Transfer-Encoding: chunked", "-H", "Expect:"],
        "expect": ["-H", "Expect: 100-continue"],
    }
    curl("-f", "-X", "PUT", "--data-binary", f"@{path}", *more[how], at(edge, f"/upload/{how}"))
    assert (nginx.files / "upload" / how).read_bytes() == content


def test_nginx_sees_our_certificate_and_the_client(edge: Onetrip) -> None:
    text = curl("--interface", "127.0.0.9", at(edge, "/who")).stdout.decode()
    assert text == "CN=edge.test 127.0.0.9 1.1 onetrip\n"


def test_wrk_has_no_errors(edge: Onetrip) -> None:
    done = subprocess.run(
        [needs("wrk"), "-t1", "-c16", "-d1", at(edge, "/index.html")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    match = re.search(r"(\d+) requests in", done.stdout)
    assert match is not None
    assert int(match[1]) > 50
    assert "Socket errors" not in done.stdout
    assert "Non-2xx" not in done.stdout


# TLS to clients.


def to_tls(edge: Onetrip, name: str, listener: str = "tls") -> list[str]:
    port = edge.port(listener)
    return ["--connect-to", f"{name}:443:127.0.0.1:{port}", f"https://{name}/index.html"]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_certificates_are_chosen_by_name(edge: Onetrip, ca: Issued, version: str) -> None:
    for name in ("one.test", "two.test"):
        options = ["--cacert", str(ca.certificate), "--tlsv1.2", "--tls-max", version]
        assert curl(*options, *to_tls(edge, name)).stdout.startswith(b"<!doctype")
    refused = curl("--cacert", str(ca.certificate), *to_tls(edge, "three.test"), check=False)
    assert refused.returncode == 60, "curl: the certificate is for another name"


def test_clients_need_a_certificate_where_it_says_so(edge: Onetrip, ca: Issued, tmp_path: Path) -> None:
    mine = issue(ca, names=["client.test"])
    stranger = issue(make_ca(tmp_path), names=["client.test"])
    asked = ["--cacert", str(ca.certificate), *to_tls(edge, "one.test", "mutual")]
    done = curl("--cert", str(mine.certificate), "--key", str(mine.key), *asked)
    assert done.stdout.startswith(b"<!doctype")
    for more in ([], ["--cert", str(stranger.certificate), "--key", str(stranger.key)]):
        refused = curl(*more, *asked, check=False)
        assert refused.returncode in (35, 55, 56), refused.stderr
        assert refused.stdout == b""
    edge.event("tls_handshake_failed", 2)


def test_what_openssl_makes_of_it(edge: Onetrip, ca: Issued) -> None:
    done = subprocess.run(
        [
            *(needs("openssl"), "s_client", "-connect", f"127.0.0.1:{edge.port('tls')}", "-servername", "two.test"),
            *("-CAfile", str(ca.certificate), "-verify_return_error", "-alpn", "http/1.1"),
        ],
        input=b"GET /index.html HTTP/1.1\r\nhost: two.test\r\nconnection: close\r\n\r\n",
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert b"Verify return code: 0 (ok)" in done.stdout
    assert b"ALPN protocol: http/1.1" in done.stdout
    assert b"subject=CN = two.test" in done.stdout or b"subject=CN=two.test" in done.stdout


def test_new_certificates_are_taken_up_and_open_connections_stay(tmp_path: Path, nginx: Nginx, ca: Issued) -> None:
    leaf = issue(ca, names=["edge.test"], directory=tmp_path)
    pair = f'{{certificate: "{leaf.certificate}", key: "{leaf.key}"}}'
    listeners = f'  - {{name: tls, address: "127.0.0.1:0", upstream: app, tls: {{certificates: [{pair}]}}}}\n'
    upstream = f'    tls: {{server_name: localhost, ca: "{ca.certificate}"}}\n'
    context = ssl.create_default_context(cafile=str(ca.certificate))

    with serving(tmp_path / "edge", config(nginx.port, listeners=listeners, upstreams=upstream)) as edge:

        def open_one() -> ssl.SSLSocket:
            raw = socket.create_connection(("127.0.0.1", edge.port("tls")), timeout=WAIT_S)
            return context.wrap_socket(raw, server_hostname="edge.test")

        def serial(connection: ssl.SSLSocket) -> Any:
            found = connection.getpeercert()
            assert found is not None
            return found["serialNumber"]

        def ask(connection: ssl.SSLSocket) -> None:
            connection.sendall(b"GET /moved HTTP/1.1\r\nhost: edge.test\r\n\r\n")
            received = b""
            while b"</html>\r\n" not in received:
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 301 ")

        kept = open_one()
        before = serial(kept)
        ask(kept)
        issue(ca, names=["edge.test"], directory=tmp_path)

        def renewed() -> bool:
            with open_one() as other:
                ask(other)
                return bool(serial(other) != before)

        wait_for(renewed, "the new certificate")
        ask(kept)
        kept.close()


# HAProxy.

HAPROXY = """
global
  maxconn 100
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
"""


def haproxy(start: Start, directory: Path, text: str, port: int) -> Server:
    path = directory / f"haproxy-{port}.cfg"
    path.write_text(HAPROXY + text)
    return start(port, needs("haproxy"), "-db", "-f", str(path))


def test_haproxy_as_the_origin(tmp_path: Path, start: Start) -> None:
    port = free_port()
    text = f"""
frontend app
  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain lf-string "%[method] %[path] %[req.hdr(via)]"
"""
    haproxy(start, tmp_path, text, port)
    with serving(tmp_path / "edge", config(port)) as edge:
        assert curl("-X", "DELETE", at(edge, "/thing")).stdout == b"DELETE /thing 1.1 onetrip"


@pytest.mark.parametrize("version", ["", "-v2"])
def test_haproxy_before_it_names_the_client(tmp_path: Path, start: Start, version: str) -> None:
    with http_origin() as origin:
        listeners = '  - {name: behind, address: "127.0.0.1:0", upstream: app, proxy_protocol: true}\n'
        log = tmp_path / "access.log"
        text = config(origin.port, listeners=listeners, access_log=f"{{path: {log}}}")
        with serving(tmp_path / "edge", text) as edge:
            port = free_port()
            before = f"""
frontend public
  mode tcp
  bind 127.0.0.1:{port}
  default_backend edge
backend edge
  mode tcp
  server edge 127.0.0.1:{edge.port("behind")} send-proxy{version}
"""
            haproxy(start, tmp_path, before, port)
            done = curl("--interface", "127.0.0.7", f"http://127.0.0.1:{port}/hello")
            assert done.stdout == b"origin /hello"
            wait_for(lambda: '"client":"127.0.0.7"' in log.read_text(), "the log line")
            refused = curl(f"http://127.0.0.1:{edge.port('behind')}/", check=False)
            assert refused.returncode in (52, 56), "without a header there is no answer"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_behind_it_sees_the_client(tmp_path: Path, start: Start, version: str) -> None:
    port = free_port()
    text = f"""
frontend app
  bind 127.0.0.1:{port} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] %[dst_port]"
"""
    haproxy(start, tmp_path, text, port)
    raw = '  - {name: raw, address: "127.0.0.1:0", protocol: tcp, upstream: named}\n'
    named = f"  named: {{protocol: tcp, proxy_protocol: {version}, regions: {{{here(port)}}}}}\n"
    with serving(tmp_path / "edge", config(port, listeners=raw, upstreams=named)) as edge:
        raw_port = edge.port("raw")
        done = curl("--interface", "127.0.0.8", f"http://127.0.0.1:{raw_port}/")
        assert done.stdout.decode() == f"127.0.0.8 {raw_port}"


# L4.


def test_sni_passthrough_to_openssl_by_name(tmp_path: Path, start: Start, ca: Issued) -> None:
    upstreams = ""
    routes = []
    for name in ("one", "two"):
        leaf = issue(ca, names=[f"{name}.test"], directory=tmp_path)
        port = free_port()
        (tmp_path / name).mkdir()
        start(
            port,
            *(needs("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-quiet"),
            *("-cert", str(leaf.certificate), "-key", str(leaf.key)),
        )
        upstreams += f"  {name}: {{protocol: tcp, pool: {{warm: 0}}, regions: {{{here(port)}}}}}\n"
        routes.append(f'{{match: {{host: "{name}.test"}}, upstream: {name}}}')
    sni = f'  - {{name: sni, address: "127.0.0.1:0", protocol: sni, routes: [{", ".join(routes)}]}}\n'
    with serving(tmp_path / "edge", config(1, listeners=sni, upstreams=upstreams)) as edge:
        for name in ("one.test", "two.test"):
            options = ["--cacert", str(ca.certificate), "--http1.0"]
            page = curl(*options, *to_tls(edge, name, "sni")[:2], f"https://{name}/").stdout
            assert b"s_server" in page
        unknown = curl("--cacert", str(ca.certificate), *to_tls(edge, "three.test", "sni"), check=False)
        assert unknown.returncode == 35


def test_tcp_with_tls_on_both_sides(tmp_path: Path, nginx: Nginx, ca: Issued) -> None:
    leaf = issue(ca, names=["edge.test"], directory=tmp_path)
    pair = f'{{certificate: "{leaf.certificate}", key: "{leaf.key}"}}'
    raw = f'  - {{name: raw, address: "127.0.0.1:0", protocol: tcp, upstream: far, tls: {{certificates: [{pair}]}}}}\n'
    tls = f'tls: {{server_name: localhost, ca: "{ca.certificate}"}}'
    far = f"  far: {{protocol: tcp, {tls}, regions: {{{here(nginx.port)}}}}}\n"
    with serving(tmp_path / "edge", config(1, listeners=raw, upstreams=far)) as edge:
        options = ["--cacert", str(ca.certificate), *to_tls(edge, "edge.test", "raw")[:2]]
        done = curl(*options, "https://edge.test/large.bin", "https://edge.test/large.bin")
        assert done.stdout == nginx.large * 2


# WebSocket.


async def test_websockets(tmp_path: Path, ca: Issued) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            if message == "bye":
                await connection.close(4001, "as you wish")
                return
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with serving(tmp_path, config(port)) as edge:
            async with asyncio.timeout(WAIT_S), connect(f"ws://127.0.0.1:{edge.port()}/chat", max_size=None) as client:
                for message in ("hello", "x" * 200_000, os.urandom(2_000_000)):
                    await client.send(message)
                    assert await client.recv() == message
                await (await client.ping())
                await asyncio.gather(*(client.send(f"{n}") for n in range(200)))
                assert [await client.recv() for _ in range(200)] == [f"{n}" for n in range(200)]
                await client.send("bye")
                with pytest.raises(ConnectionClosedError) as caught:
                    await client.recv()
                assert caught.value.rcvd is not None
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as you wish")


# Origins that are not there.


def test_a_killed_origin_is_an_error_and_its_return_is_noticed(tmp_path: Path, ca: Issued) -> None:
    nginx = Nginx(tmp_path, ca)
    try:
        upstream = f'    tls: {{server_name: localhost, ca: "{ca.certificate}"}}\n'
        with serving(tmp_path / "edge", config(nginx.port, upstreams=upstream)) as edge:
            assert get(edge.port(), "/index.html").status == 200
            nginx.server.kill()
            began = time.monotonic()
            answer = get(edge.port(), "/index.html")
            assert answer.status in (502, 503)
            assert answer.headers["proxy-status"].startswith("onetrip; error=")
            assert time.monotonic() - began < WAIT_S
            nginx.server.start()
            wait_for(lambda: get(edge.port(), "/index.html").status == 200, "an answer after the return")
    finally:
        nginx.server.stop()


def test_an_endpoint_that_does_not_resolve_leaves_the_others(tmp_path: Path) -> None:
    with http_origin() as origin:
        text = config(origin.port).replace(
            "regions: {", 'regions: {nowhere: {endpoints: ["no-such-name.invalid:443"]}, ', 1
        )
        with serving(tmp_path, text) as edge:
            assert edge.event("dial_failed")["error"] == "dns"
            for _ in range(5):
                assert get(edge.port(), "/hello").text == "origin /hello"
            status = edge.admin().ask("GET", "/status")
            errors = [region["endpoints"][0].get("last_error") for region in status["upstreams"]["app"]["regions"]]
            assert errors[0].startswith("no-such-name.invalid does not resolve: ")
            assert errors[1] is None


def test_random_downloads_at_once_are_whole(edge: Onetrip, nginx: Nginx) -> None:
    rng = random.Random(7)
    ranges = [(start := rng.randrange(4_000_000), start + rng.randrange(900_000)) for _ in range(12)]
    clients = [
        subprocess.Popen(
            [needs("curl"), "-sS", "--max-time", "20", "-r", f"{a}-{b}", at(edge, "/large.bin")],
            stdout=subprocess.PIPE,
        )
        for a, b in ranges
    ]
    for (a, b), client in zip(ranges, clients, strict=True):
        output, _ = client.communicate(timeout=30)
        assert output == nginx.large[a : b + 1]
