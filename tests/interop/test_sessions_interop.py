"""`onetrip serve` in front of nginx, HAProxy, s_server and Node: sessions that survive `kill -9`, 0-RTT, and what must never resume."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from loadtests.lab.certificates import issue, make_ca

from ..programs import needs

pytestmark = pytest.mark.interop

WARM = 3
DEADLINE_S = 30.0
KEY = "a key that nobody guesses"

NGINX = """\
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  keepalive_timeout 600;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
    ssl_early_data on; {option}
    location /resumed {{ return 200 "resumed:$ssl_session_reused\n"; }}
    location / {{ return 200 "early:$ssl_early_data told:$http_early_data attempt:$http_onetrip_attempt\\n"; }}
    location /late {{
      if ($http_early_data) {{ return 425; }}
      return 200 "early:$ssl_early_data told:$http_early_data attempt:$http_onetrip_attempt\\n";
    }}
  }}
}}
"""
HAPROXY = """\
global
  maxconn 200
defaults
  mode http
  timeout client 600s
  timeout server 10s
  timeout connect 5s
frontend origin
  bind 127.0.0.1:{port} ssl crt {both} alpn http/1.1
  http-request return status 200 content-type text/plain lf-string "resumed:%[ssl_fc_is_resumed]"
"""
NODE = """\
const https = require("https"), fs = require("fs");
const [cert, key, port] = process.argv.slice(1);
const server = https.createServer({cert: fs.readFileSync(cert), key: fs.readFileSync(key)}, (request, response) => {
  response.end("resumed:" + request.socket.isSessionReused());
});
server.keepAliveTimeout = 600e3;
server.listen(Number(port), "127.0.0.1");
"""
CONFIG = """\
listeners: [{{name: web, address: "127.0.0.1:{listen}", upstream: app}}]
upstreams:
  app:
    protocol: {protocol}
    tls: {{{tls}}}
    regions: {{here: {{endpoints: ["127.0.0.1:{port}"]}}}}
    pool: {{warm: {warm}}}
    hedge: off
    health: {{interval: 1h}}
sessions: {{path: "{directory}/sessions.db", key: "{key}"}}
admin: {{address: "127.0.0.1:{admin}"}}
access_log: off
workers: {workers}
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in time"
        time.sleep(0.02)
    return found


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sessions-interop")
    (directory / "other").mkdir()
    ca, other = make_ca(directory), make_ca(directory / "other")
    server = issue(ca, names=["localhost", "other.test", "127.0.0.1"], key="ecdsa", file_name="server")
    client = issue(ca, names=["client"], key="ecdsa", file_name="client")
    both = directory / "both.pem"
    both.write_bytes(server.certificate.read_bytes() + server.key.read_bytes())
    bundle = directory / "bundle.pem"
    bundle.write_bytes(ca.certificate.read_bytes() + other.certificate.read_bytes())
    return SimpleNamespace(
        ca=ca.certificate, bundle=bundle, certificate=server.certificate, key=server.key, both=both, client=client
    )


@pytest.fixture
def run(tmp_path):
    """Start processes; all of them are gone at the end, and the programs that they started in their place."""
    started = []
    errors = tmp_path / "errors"
    errors.touch()  # nothing starts where a program is missing

    def start(command, port):
        with errors.open("wb") as said:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        started.append(process)
        wait_for(lambda: listens(port) or process.poll() is not None, f"{command[0]} listening")
        assert process.poll() is None, f"{command} ended: {errors.read_text()}"
        return process

    yield start
    for pid in successors(errors):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        process.kill()
        process.communicate()


def successors(errors):
    """The programs that SIGUSR2 had started, by what was logged."""
    return [int(pid) for pid in re.findall(r'"successor": ?(\d+)', errors.read_text())]


class Nginx:
    warm = WARM
    resumed = "resumed:r"

    def __init__(self, run, files, directory, option=""):
        self.run = run
        self.port = free_port()
        self.command = [needs("nginx"), "-c", str(directory / "nginx.conf")]
        names = {"directory": directory, "port": self.port, "certificate": files.certificate, "key": files.key}
        (directory / "nginx.conf").write_text(NGINX.format(option=option, **names))
        self.start()

    def start(self):
        self.process = self.run(self.command, self.port)

    def restart(self):
        """New ticket keys: what was accepted before no longer is. And every connection is cut."""
        self.process.kill()
        self.process.wait()
        self.start()


class Haproxy:
    warm = WARM
    resumed = "resumed:1"

    def __init__(self, run, files, directory):
        self.port = free_port()
        (directory / "haproxy.cfg").write_text(HAPROXY.format(port=self.port, both=files.both))
        run([needs("haproxy"), "-db", "-f", str(directory / "haproxy.cfg")], self.port)


class SServer:
    """OpenSSL's: one connection after the other, and none that waits is even accepted."""

    warm = 1
    resumed = "Reused, TLSv1.3"

    def __init__(self, run, files, directory):
        self.port = free_port()
        command = [needs("openssl"), "s_server", "-accept", f"127.0.0.1:{self.port}", "-www"]
        run([*command, "-cert", str(files.certificate), "-key", str(files.key)], self.port)


class Node:
    warm = WARM
    resumed = "resumed:true"

    def __init__(self, run, files, directory):
        self.port = free_port()
        run([needs("node"), "-e", NODE, str(files.certificate), str(files.key), str(self.port)], self.port)


class Onetrip:
    """`onetrip serve` with a sessions file."""

    def __init__(self, run, directory, port, tls, *, protocol="h1", warm=WARM, workers=1):
        self.run = run
        self.listen, self.admin = free_port(), free_port()
        self.file = directory / "onetrip.yaml"
        self.fields = {
            "listen": self.listen, "admin": self.admin, "port": port, "directory": directory, "key": KEY,
            "protocol": protocol, "warm": warm, "workers": workers,
        }  # fmt: skip
        self.configure(tls)

    def configure(self, tls):
        self.file.write_text(CONFIG.format(tls=tls, **self.fields))

    def start(self):
        self.process = self.run([sys.executable, "-m", "proxy.cli", "serve", str(self.file)], self.admin)
        wait_for(self.ready, "ready")
        return self

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz") as answer:
                return answer.status == 200
        except urllib.error.HTTPError:
            return False

    def endpoint(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/status") as answer:
            return json.load(answer)["upstreams"]["app"]["regions"][0]["endpoints"][0]

    def opened(self):
        return self.endpoint()["pool"]["opened"]

    def wait_for_tickets(self, count=1):
        wait_for(lambda: self.endpoint()["tls_sessions"] >= count, f"{count} tickets")

    def wait_until_written(self):
        """The tickets of a restart are in the file."""
        wanted = self.fields["warm"] * self.fields["workers"]
        self.wait_for_tickets(wanted)
        path = self.fields["directory"] / "sessions.db"

        def written():
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                return database.execute("SELECT count(*) FROM sessions").fetchone()[0] >= wanted

        wait_for(written, "tickets in the file")

    def wait_until_cold(self):
        def cold():
            pool = self.endpoint()["pool"]
            return pool["idle"] == pool["busy"] == pool["dialling"] == 0

        wait_for(cold, "a pool without connections")

    def event(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        [line] = [line for line in lines if line.startswith(f'onetrip_tls_sessions_total{{event="{name}"}}')]
        return float(line.split()[-1])

    def get(self, path="/"):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.listen}{path}") as answer:
            return answer.read().decode().strip()

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def hand_over(self):
        """SIGUSR2: the next answers are the successor's."""
        self.process.send_signal(signal.SIGUSR2)
        assert self.process.wait(DEADLINE_S) == 0


def good(files):
    return f"server_name: localhost, ca: {files.ca}"


@pytest.mark.parametrize("server", [Nginx, Haproxy, SServer, Node])
def test_after_kill_9_every_connection_resumes(run, files, tmp_path, server):
    origin = server(run, files, tmp_path)
    proxy = Onetrip(run, tmp_path, origin.port, good(files), warm=origin.warm).start()
    assert proxy.opened()["full"] > 0
    for _ in range(3):
        proxy.wait_until_written()
        proxy.kill()
        proxy.start()
        assert proxy.opened() == {"resumed": origin.warm}
    assert proxy.event("rejected") == 0
    assert origin.resumed in proxy.get("/resumed")


@pytest.mark.parametrize("tickets", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_after_sigusr2_every_connection_resumes(run, files, tmp_path, workers, tickets):
    origin = Nginx(run, files, tmp_path, f"ssl_conf_command NumTickets {tickets};")
    proxy = Onetrip(run, tmp_path, origin.port, good(files), workers=workers).start()
    assert proxy.opened()["full"] > 0  # a dial that is late may resume with what the first brought
    proxy.wait_until_written()
    proxy.hand_over()
    assert proxy.opened() == {"resumed": WARM * workers}
    assert proxy.event("rejected") == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_successor_that_does_not_come_up_leaves_the_sessions(run, files, tmp_path, workers):
    origin = Nginx(run, files, tmp_path)
    proxy = Onetrip(run, tmp_path, origin.port, good(files), workers=workers).start()
    proxy.wait_until_written()
    proxy.file.write_text("nonsense")
    proxy.process.send_signal(signal.SIGUSR2)
    wait_for(lambda: "hand_over_failed" in (tmp_path / "errors").read_text(), "the failure")
    proxy.wait_for_tickets(WARM * workers)
    assert proxy.get("/resumed") == "resumed:."


@pytest.mark.parametrize("protocol", ["auto", "h2"])
def test_http2_connections_resume_as_well(run, files, tmp_path, protocol):
    text = NGINX.replace(" ssl;\n", " ssl http2;\n")
    port = free_port()
    (tmp_path / "nginx.conf").write_text(
        text.format(directory=tmp_path, port=port, certificate=files.certificate, key=files.key, option="")
    )
    run([needs("nginx"), "-c", str(tmp_path / "nginx.conf")], port)
    proxy = Onetrip(run, tmp_path, port, good(files), protocol=protocol).start()
    proxy.wait_until_written()
    proxy.kill()
    proxy.start()
    assert proxy.opened() == {"resumed": WARM}


@pytest.mark.parametrize(
    "change",
    ["ca: {bundle}", "verify: false", "server_name: other.test", "certificate: {certificate}, key: {key}",
     "groups: [X25519]"],
    ids=["ca", "verify", "server name", "client certificate", "groups"],
)  # fmt: skip
def test_a_config_that_verifies_differently_never_resumes(run, files, tmp_path, change):
    origin = Nginx(run, files, tmp_path)
    proxy = Onetrip(run, tmp_path, origin.port, good(files)).start()
    proxy.wait_until_written()
    proxy.kill()
    key, _, value = change.partition(": ")
    settings = {"server_name": "localhost", "ca": str(files.ca)}
    value = value.format(bundle=files.bundle, certificate=files.client.certificate, key=files.client.key)
    proxy.configure(", ".join(f"{name}: {given}" for name, given in {**settings, key: value}.items()))
    proxy.start()
    assert proxy.opened() == {"full": WARM}
    proxy.kill()
    proxy.configure(good(files))  # what was stored under the first one is still there
    proxy.start()
    assert proxy.opened() == {"resumed": WARM}


def test_a_session_key_that_changed_is_a_full_handshake(run, files, tmp_path):
    origin = Nginx(run, files, tmp_path)
    proxy = Onetrip(run, tmp_path, origin.port, good(files)).start()
    proxy.wait_until_written()
    proxy.kill()
    proxy.fields["key"] = "another key that nobody guesses"
    proxy.configure(good(files))
    proxy.start()
    assert proxy.opened()["full"] > 0  # the first one; a dial that is late may resume with what that one brought
    assert proxy.event("rejected") == 0


def cold(run, files, directory):
    """A proxy that holds a ticket of nginx's, and has no connection to it: both began anew, nginx with its old keys."""
    (directory / "ticket.key").write_bytes(os.urandom(80))
    origin = Nginx(run, files, directory)
    conf = directory / "nginx.conf"
    conf.write_text(
        conf.read_text().replace("ssl_early_data", f"ssl_session_ticket_key {directory}/ticket.key; ssl_early_data", 1)
    )
    origin.restart()
    proxy = Onetrip(run, directory, origin.port, good(files) + ", early_data: true", warm=0).start()
    assert proxy.get() == "early: told: attempt:"
    proxy.wait_for_tickets()
    origin.restart()
    proxy.wait_until_cold()
    return origin, proxy


def test_a_request_rides_in_the_first_flight(run, files, tmp_path):
    _, proxy = cold(run, files, tmp_path)
    assert "told:1 attempt:" in proxy.get()  # `early` is 1 while nginx has not seen the end of the handshake
    assert proxy.opened()["early"] == 1
    assert proxy.event("early_accepted") == 1


def test_rejected_early_data_is_sent_again(run, files, tmp_path):
    origin, proxy = cold(run, files, tmp_path)
    (tmp_path / "ticket.key").write_bytes(os.urandom(80))
    origin.restart()
    assert proxy.get() == "early: told: attempt:"
    assert proxy.event("early_rejected") == 1
    assert "early" not in proxy.opened()


def test_425_is_answered_by_a_request_after_the_handshake(run, files, tmp_path):
    _, proxy = cold(run, files, tmp_path)
    assert proxy.get("/late") == "early: told: attempt:2"
    assert proxy.event("early_accepted") == 1
