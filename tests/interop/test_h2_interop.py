"""Real HTTP/2 clients and servers through the proxy: curl, h2load, nghttp, Chromium; nginx, nghttpd."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtests.lab.certificates import Issued, issue, make_ca

from ..programs import does_not_apply, needs

pytestmark = pytest.mark.interop
WAIT_S = 20.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until_open(port: int, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert program.poll() is None, "the program ended"
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.02)


def run(*command: str | Path, wait: float = WAIT_S) -> str:
    """A program's output; it must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=wait, check=False)
    assert done.returncode == 0, (command, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.decode(errors="replace")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("h2-interop")
    (found / "www").mkdir()
    (found / "www" / "small").write_bytes(b"hello\n")
    (found / "www" / "large").write_bytes(bytes(range(256)) * 40_000)  # 10 MB
    (found / "www" / "index.html").write_text("<title>title of the page</title><p>body of the page")
    return found


@pytest.fixture(scope="module")
def ca(directory: Path) -> Issued:
    return make_ca(directory)


@pytest.fixture(scope="module")
def leaf(ca: Issued) -> Issued:
    return issue(ca, names=["localhost", "127.0.0.1"])


Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def spawn() -> Iterator[Spawn]:
    programs: list[subprocess.Popen[bytes]] = []

    def start(port: int, *command: str | Path) -> subprocess.Popen[bytes]:
        program = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        programs.append(program)
        wait_until_open(port, program)
        return program

    yield start
    for program in programs:
        program.send_signal(signal.SIGTERM)
    for program in programs:
        try:
            program.wait(5)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def start_nginx(spawn: Spawn, directory: Path, leaf: Issued) -> int:
    """nginx over TLS with HTTP/2, 20 streams a connection, and a GOAWAY after 100 requests."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        textwrap.dedent(f"""\
        user root; daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
        events {{ worker_connections 256; }}
        http {{
          access_log off; client_body_temp_path {directory}/body; client_max_body_size 100m;
          proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u;
          scgi_temp_path {directory}/s;
          http2_max_concurrent_streams 20; keepalive_requests 100;
          server {{
            listen 127.0.0.1:{port} ssl http2;
            ssl_certificate {leaf.certificate}; ssl_certificate_key {leaf.key};
            root {directory}/www;
            location = /empty {{ return 204; }}
            location = /version {{ return 200 $server_protocol; }}
          }}
        }}
        """)
    )
    spawn(port, needs("nginx"), "-c", config, "-e", directory / "nginx.log")
    return port


def start_nghttpd(spawn: Spawn, directory: Path, leaf: Issued) -> int:
    """nghttp2's own server in plaintext, with trailers and an echo of what is sent."""
    port = free_port()
    www = directory / "www"
    spawn(port, needs("nghttpd"), "--no-tls", "--echo-upload", "--trailer=x-sum: 7", f"-d{www}", "-m30", str(port))
    return port


@pytest.fixture(scope="module", params=["nginx", "nghttpd"])
def origin(request: pytest.FixtureRequest, spawn: Spawn, directory: Path, leaf: Issued) -> tuple[str, int]:
    starters = {"nginx": start_nginx, "nghttpd": start_nghttpd}
    return request.param, starters[request.param](spawn, directory, leaf)


@pytest.fixture(scope="module")
def proxy(origin: tuple[str, int], spawn: Spawn, directory: Path, ca: Issued, leaf: Issued) -> tuple[int, int]:
    """Its ports: in plaintext and over TLS."""
    name, port = origin
    plain, secure, admin = free_port(), free_port(), free_port()
    tls = f"\n    tls: {{ca: {ca.certificate}, server_name: localhost}}" if name == "nginx" else ""
    config = directory / f"{name}.yaml"
    config.write_text(
        textwrap.dedent("""\
        listeners:
          - {{name: plain, address: "127.0.0.1:{plain}", upstream: app}}
          - name: secure
            address: "127.0.0.1:{secure}"
            tls: {{certificates: [{{certificate: {leaf.certificate}, key: {leaf.key}}}]}}
            upstream: app
        upstreams:
          app:
            protocol: {protocol}
            regions: {{here: {{endpoints: ["127.0.0.1:{port}"]}}}}{tls}
        access_log: off
        admin: {{address: "127.0.0.1:{admin}"}}
        """).format(
            plain=plain, secure=secure, admin=admin, leaf=leaf, port=port, tls=tls, protocol="auto" if tls else "h2"
        )
    )
    spawn(plain, sys.executable, "-m", "proxy.cli", "serve", config)
    return plain, secure


def test_curl(proxy: tuple[int, int], origin: tuple[str, int], directory: Path, ca: Issued) -> None:
    curl = needs("curl")
    plain, secure = proxy
    show = ("--silent", "--show-error", "--fail", "--write-out", "%{http_version} %{response_code} %{size_download}")
    to = ("--output", directory / "got", "--cacert", ca.certificate)
    for options, url, version in (
        (("--http2-prior-knowledge",), f"http://127.0.0.1:{plain}", "2"),
        (("--http1.1",), f"http://127.0.0.1:{plain}", "1.1"),
        (("--http2",), f"https://localhost:{secure}", "2"),
        (("--http1.1",), f"https://localhost:{secure}", "1.1"),
    ):
        assert run(curl, *show, *to, *options, f"{url}/small") == f"{version} 200 6"
        assert run(curl, *show, *to, *options, f"{url}/large") == f"{version} 200 10240000"
        assert (directory / "got").read_bytes() == (directory / "www" / "large").read_bytes()
        assert run(curl, *show, *to, *options, "--head", f"{url}/large") == f"{version} 200 0"


def test_curl_does_not_get_to_upgrade(proxy: tuple[int, int]) -> None:
    """`upgrade: h2c` is answered in HTTP/1.1, as if it were not there."""
    version = run(needs("curl"), "--silent", "--http2", "--output", "/dev/null", "--write-out", "%{http_version}",
                  f"http://127.0.0.1:{proxy[0]}/small")  # fmt: skip
    assert version == "1.1"


def test_curl_uploads(proxy: tuple[int, int], origin: tuple[str, int], directory: Path, ca: Issued) -> None:
    if origin[0] != "nghttpd":
        does_not_apply("nginx echoes nothing")
    large = directory / "www" / "large"
    for options in (("--http2-prior-knowledge",), ("--http1.1",)):
        run(needs("curl"), "--silent", *options, "--data-binary", f"@{large}", "--output", directory / "back",
            f"http://127.0.0.1:{proxy[0]}/echo")  # fmt: skip
        assert (directory / "back").read_bytes() == large.read_bytes()


def test_nghttp(proxy: tuple[int, int], origin: tuple[str, int]) -> None:
    """nghttp prints every frame: the response, its trailers, and an orderly end."""
    seen = run(needs("nghttp"), "-nv", "-H", "te: trailers", f"http://127.0.0.1:{proxy[0]}/small")
    assert ":status: 200" in seen
    if origin[0] == "nghttpd":
        assert "x-sum: 7" in seen
    assert "RST_STREAM" not in seen
    assert re.search(r"via: .*onetrip", seen) is None  # that is for origins


@pytest.mark.parametrize("secure", [False, True])
def test_h2load(proxy: tuple[int, int], origin: tuple[str, int], secure: bool) -> None:
    """Nothing fails while the origin limits streams and ends its connections by GOAWAY now and then."""
    url = f"https://localhost:{proxy[1]}/small" if secure else f"http://127.0.0.1:{proxy[0]}/small"
    seen = run(needs("h2load"), "-n", "3000", "-c", "4", "-m", "40", url, wait=60)
    assert "3000 total, 3000 started, 3000 done, 3000 succeeded, 0 failed, 0 errored, 0 timeout" in seen, seen
    assert "status codes: 3000 2xx" in seen, seen


def test_h2load_with_small_windows(proxy: tuple[int, int]) -> None:
    seen = run(needs("h2load"), "-n", "20", "-c", "2", "-m", "5", "-w", "16", "-W", "16",
               f"http://127.0.0.1:{proxy[0]}/large", wait=60)  # fmt: skip
    assert "20 succeeded" in seen


def test_the_origin_is_spoken_to_in_its_version(proxy: tuple[int, int], origin: tuple[str, int]) -> None:
    if origin[0] != "nginx":
        does_not_apply("nghttpd speaks nothing else")
    assert run(needs("curl"), "--silent", f"http://127.0.0.1:{proxy[0]}/version") == "HTTP/2.0"
    assert run(needs("curl"), "--silent", "-i", f"http://127.0.0.1:{proxy[0]}/empty").startswith("HTTP/1.1 204")


def test_chromium(proxy: tuple[int, int], origin: tuple[str, int], directory: Path) -> None:
    browser = needs("chromium")
    dom = run(
        browser,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors"),
        *(f"--user-data-dir={directory}/chromium", "--dump-dom", f"https://localhost:{proxy[1]}/index.html"),
        wait=60,
    )
    assert "title of the page" in dom
    assert "body of the page" in dom


def test_a_drain_fails_no_request(proxy: tuple[int, int], origin: tuple[str, int], directory: Path) -> None:
    """SIGTERM in the middle of a load: the client is told to go, and all that it had begun is answered."""
    name = origin[0]
    ports = {"plain": free_port(), "secure": free_port(), "admin": free_port()}
    text = (directory / f"{name}.yaml").read_text()
    for given, port in zip(re.findall(r'address: "127\.0\.0\.1:(\d+)"', text), ports.values(), strict=True):
        text = text.replace(f'address: "127.0.0.1:{given}"', f'address: "127.0.0.1:{port}"')
    config = directory / f"{name}-drain.yaml"
    config.write_text(text + "shutdown: {deadline: 10s}\n")
    program = subprocess.Popen([sys.executable, "-m", "proxy.cli", "serve", str(config)], stderr=subprocess.DEVNULL)
    wait_until_open(ports["plain"], program)

    async def load() -> tuple[int, str]:
        command = (needs("nghttp"), "-nv", "-m20", f"http://127.0.0.1:{ports['plain']}/large")
        client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert client.stdout is not None
        seen = b""
        while b":status: 200" not in seen:
            seen += await asyncio.wait_for(client.stdout.read(65536), WAIT_S)  # noqa: TID251
        program.send_signal(signal.SIGTERM)
        seen += await asyncio.wait_for(client.stdout.read(), WAIT_S)  # noqa: TID251
        return await client.wait(), seen.decode(errors="replace")

    code, seen = asyncio.run(load())
    assert code == 0
    assert seen.count(":status: 200") == 20
    assert "GOAWAY" in seen
    assert "RST_STREAM" not in seen
    assert program.wait(WAIT_S) == 0
