"""The TLS layer against nginx, HAProxy, OpenSSL's s_server and s_client, and Node: real processes on loopback ports."""

import datetime
import ipaddress
import socket
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tlscache.context import CertificatePair, ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.openssl import lib
from tlscache.replay import ReplayRegister
from tlscache.session import Scope
from tlscache.sqlite_store import SQLiteStore

from ..programs import needs

pytestmark = pytest.mark.interop

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
DEADLINE_S = 10


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A process that listens on a port; ready when it accepts a connection."""

    def __init__(self, command, port, **arguments):
        self.port = port
        self.command = command
        self.arguments = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **arguments}
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, **self.arguments)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{self.command} did not start: {self.process.stdout.read().decode()}")
                time.sleep(0.02)

    def stop(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def servers():
    started = []

    def start(command, port, **arguments):
        started.append(Server(command, port, **arguments))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A CA, a server's and a client's certificate: paths."""
    directory = tmp_path_factory.mktemp("interop")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def write(name, key, certificate):
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / f"{name}.pem").write_bytes(pem)
        (directory / f"{name}.key").write_bytes(private)
        (directory / f"{name}.both").write_bytes(pem + private)

    def issue(name, issuer_name, issuer_key, extensions):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer_name or subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - day).not_valid_after(now + day)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(issuer_key or key, hashes.SHA256())
        write(name, key, certificate)
        return subject, key

    ca = issue("ca", None, None, [x509.BasicConstraints(ca=True, path_length=None)])
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    issue("server", *ca, [x509.SubjectAlternativeName(alternatives)])
    issue("client", *ca, [])
    return SimpleNamespace(
        directory=directory,
        ca=str(directory / "ca.pem"),
        **{
            f"{name}_{kind}": str(directory / f"{name}.{suffix}")
            for name in ("server", "client")
            for kind, suffix in (("certificate", "pem"), ("key", "key"), ("both", "both"))
        },
    )


@pytest.fixture
def client(files):
    def make(**settings):
        return ClientContext(ClientSettings(**{"ca": files.ca, "alpn": (b"http/1.1",), **settings}))

    return make


def exchange(context, port, session=None, *, early=False, tls12=False, until=b"\r\n\r\n", request=REQUEST):
    """One connection with one request: the engine afterwards, and what was received."""
    engine = TLSEngine(context, server_name="localhost", session=session)
    if tls12:
        lib.SSL_set_options(engine._ssl, lib.SSL_OP_NO_TLSv1_3)
    sent_early = early and engine.write_early(request)
    assert sent_early or not early
    engine.start()
    received = b""
    sent = sent_early
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection:
        connection.settimeout(DEADLINE_S)
        while until not in received and engine.state in (State.HANDSHAKING, State.OPEN):
            if engine.state is State.OPEN and (not sent or engine.early == "rejected"):
                if not sent or sent == sent_early:
                    engine.send(request)
                sent = "again"
            connection.sendall(engine.data_to_send())
            data = connection.recv(65536)
            if not data:
                engine.receive_eof()
                break
            received += engine.receive(data)
        engine.close()
        connection.sendall(engine.data_to_send())
    return engine, received


def nginx(servers, files, directory, *lines):
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {directory}/1; proxy_temp_path {directory}/2; fastcgi_temp_path {directory}/3;
            uwsgi_temp_path {directory}/4; scgi_temp_path {directory}/5;
            server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {files.server_certificate}; ssl_certificate_key {files.server_key};
                ssl_protocols TLSv1.2 TLSv1.3; ssl_early_data on;
                {" ".join(lines)}
                location / {{ return 200 "early=[$ssl_early_data] reused=[$ssl_session_reused]\\r\\n\\r\\n"; }}
            }}
        }}
        """
    )
    return servers([needs("nginx"), "-c", str(config), "-p", str(directory)], port)


def haproxy(servers, files, directory, *options):
    port = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(
        f"""
global
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 1s
frontend f
    bind 127.0.0.1:{port} ssl crt {files.server_both} alpn http/1.1 {" ".join(options)}
    http-request return status 200 content-type text/plain string "resumed\\r\\n\\r\\n"
"""
    )
    return servers([needs("haproxy"), "-f", str(config), "-db"], port)


def s_server(servers, files, *options):
    port = free_port()
    command = [needs("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-cert", files.server_certificate]
    return servers([*command, "-key", files.server_key, *options], port)


NODE = """
const https = require('https'), fs = require('fs');
const [cert, key, port] = process.argv.slice(1);
https.createServer({cert: fs.readFileSync(cert), key: fs.readFileSync(key)}, (request, response) => {
  response.end('reused=' + request.socket.isSessionReused() + '\\r\\n\\r\\n');
}).listen(Number(port), '127.0.0.1');
"""


def node(servers, files):
    port = free_port()
    return servers([needs("node"), "-e", NODE, files.server_certificate, files.server_key, str(port)], port)


@pytest.fixture(params=["nginx", "haproxy", "openssl", "node"])
def server(request, servers, files, tmp_path):
    if request.param == "nginx":
        return nginx(servers, files, tmp_path)
    if request.param == "haproxy":
        return haproxy(servers, files, tmp_path, "allow-0rtt")
    if request.param == "node":
        return node(servers, files)
    return s_server(servers, files, "-www")


@pytest.mark.parametrize("tls12", [False, True])
def test_every_ticket_resumes(server, client, tls12):
    first, response = exchange(client(), server.port, tls12=tls12)
    assert response.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
    assert (first.resumed, first.version) == (False, "TLSv1.2" if tls12 else "TLSv1.3")
    assert first.tickets
    for ticket in first.tickets:
        again, response = exchange(client(), server.port, ticket, tls12=tls12)
        assert again.resumed
        assert b" 200" in response


def test_sessions_on_disk_resume_in_a_new_process(server, client, tmp_path):
    context = client()
    scope = Scope("127.0.0.1", server.port, "localhost", context.scope_material)
    now = datetime.datetime.now(datetime.UTC).timestamp()
    store = SQLiteStore(str(tmp_path / "sessions.db"), [b"k" * 32], per_scope=32)
    wanted = 0
    while wanted < 6:
        for ticket in exchange(context, server.port)[0].tickets:
            store.put(scope, ticket, now)
            wanted += 1
    store.close()
    fresh = client()
    store = SQLiteStore(str(tmp_path / "sessions.db"), [b"k" * 32], per_scope=32)
    scope = Scope("127.0.0.1", server.port, "localhost", fresh.scope_material)
    assert store.prefetch(scope, wanted, now).result(DEADLINE_S) == wanted
    for _ in range(wanted):
        assert exchange(fresh, server.port, store.pop(scope, now))[0].resumed
    assert store.pop(scope, now) is None
    store.close()


def test_a_restarted_server_refuses_and_serves(server, client):
    ticket = exchange(client(), server.port)[0].tickets[0]
    server.stop()
    server.start()
    again, response = exchange(client(), server.port, ticket)
    assert (again.resumed, again.error) == (False, None)
    assert b" 200" in response


def test_an_untrusted_server_is_refused(server, client, files):
    engine, _ = exchange(client(ca=files.client_certificate), server.port)
    assert "unable to get local issuer" in engine.error.text


# ---- 0-RTT


def test_nginx_takes_early_data(servers, files, client, tmp_path):
    server = nginx(servers, files, tmp_path)
    first, response = exchange(client(), server.port)
    assert b"early=[]" in response
    again, response = exchange(client(), server.port, first.tickets[0], early=True)
    assert (again.early, again.resumed) == ("accepted", True)
    assert b"reused=[r]" in response  # $ssl_early_data is empty where our Finished was faster than its evaluation
    server.stop()
    server.start()
    again, response = exchange(client(), server.port, first.tickets[1], early=True)
    assert (again.early, again.resumed) == ("rejected", False)
    assert b"early=[]" in response


def test_haproxy_takes_early_data(servers, files, client, tmp_path):
    server = haproxy(servers, files, tmp_path, "allow-0rtt")
    first, _ = exchange(client(), server.port)
    again, response = exchange(client(), server.port, first.tickets[0], early=True)
    assert again.early == "accepted"
    assert response.startswith(b"HTTP/1.1 200")


def test_s_server_takes_early_data(servers, files, client):
    server = s_server(servers, files, "-early_data", "-quiet")
    ticket = None
    for early in (False, True):
        engine = TLSEngine(client(), server_name="localhost", session=ticket)
        assert engine.write_early(b"early bird\n") is early
        engine.start()
        with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
            while not engine.tickets:
                connection.sendall(engine.data_to_send())
                engine.receive(connection.recv(65536))
        ticket = engine.tickets[0]
    assert (engine.resumed, engine.early) == (True, "accepted")
    output = b""
    while b"early bird" not in output:
        output += server.process.stdout.read1()


# ---- client certificates


def test_nginx_with_client_certificates(servers, files, client, tmp_path):
    server = nginx(servers, files, tmp_path, f"ssl_client_certificate {files.ca}; ssl_verify_client on;")
    mine = client(certificate=files.client_certificate, key=files.client_key)
    first, response = exchange(mine, server.port)
    assert response.startswith(b"HTTP/1.1 200")
    assert exchange(mine, server.port, first.tickets[0])[0].resumed
    assert exchange(client(), server.port)[1].startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("tls12", [False, True])
def test_haproxy_wants_a_client_certificate(servers, files, client, tmp_path, tls12):
    server = haproxy(servers, files, tmp_path, f"ca-file {files.ca} verify required")
    mine = client(certificate=files.client_certificate, key=files.client_key)
    assert exchange(mine, server.port, tls12=tls12)[1].startswith(b"HTTP/1.1 200")
    engine, _ = exchange(client(), server.port, tls12=tls12)
    assert "requires a client certificate" in engine.error.text


# ---- errors


def test_a_plaintext_server(servers, files, client, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        engine, _ = exchange(client(), listener.getsockname()[1])
        thread.join()
    assert "peer speaks no TLS: it answered in plaintext HTTP" in engine.error.text


def test_a_server_of_an_old_version(servers, files, client):
    server = s_server(servers, files, "-www", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    engine, _ = exchange(client(), server.port)
    assert engine.error.text == "peer sent alert protocol_version: it accepts neither TLS 1.2 nor TLS 1.3"


def test_a_server_without_forward_secrecy(servers, files, client):
    server = s_server(servers, files, "-www", "-tls1_2", "-cipher", "AES128-SHA")
    engine, _ = exchange(client(), server.port)
    assert "peer sent alert handshake_failure: no cipher" in engine.error.text


# ---- s_client against our server


class Ours:
    """Our server role behind a socket: answers every line with itself, one connection after the other."""

    def __init__(self, context):
        self.context = context
        self.engines = []
        self.received = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.serve(connection)

    def serve(self, connection):
        engine = TLSEngine(self.context)
        self.engines.append(engine)
        while engine.state in (State.HANDSHAKING, State.OPEN):
            data = connection.recv(65536)
            if not data:
                engine.receive_eof()
                return
            plaintext = engine.receive(data)
            if plaintext:
                self.received.append((plaintext, engine.in_early_data))
                engine.send(b"echo " + plaintext)
            if engine.eof_received:
                engine.close()
            try:
                connection.sendall(engine.data_to_send())
            except OSError:
                return

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(DEADLINE_S)


@pytest.fixture
def ours():
    started = []

    def start(context):
        started.append(Ours(context))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def server_context(files, **settings):
    register = ReplayRegister(64) if settings.get("early_data") else None
    pair = CertificatePair(files.server_certificate, files.server_key)
    return ServerContext(ServerSettings((pair,), **settings), replay_register=register)


def s_client(files, port, *options, script=((b"hello\n", b"echo hello"),)):
    """Run s_client: type a line, wait for what it should bring (or the end), and so on. Returns all of the output."""
    command = [needs("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", files.ca]
    command += ["-servername", "localhost", "-verify_return_error", *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = b""
    for line, wanted in script:
        process.stdin.write(line)
        process.stdin.flush()
        while wanted not in output and (piece := process.stdout.read1(65536)):
            output += piece
    process.stdin.close()
    output += process.stdout.read()
    process.wait(DEADLINE_S)
    return output.decode("utf-8", "replace")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_resumes_with_us(files, ours, version):
    server = ours(server_context(files, alpn=(b"h2", b"http/1.1")))
    path = files.directory / f"session{version}"
    output = s_client(files, server.port, version, "-alpn", "http/1.1", "-sess_out", str(path))
    assert "ALPN protocol: http/1.1" in output
    assert "Verification: OK" in output
    output = s_client(files, server.port, version, "-alpn", "http/1.1", "-sess_in", str(path))
    assert "Reused, TLSv1" in output
    assert [engine.resumed for engine in server.engines] == [False, True]


def test_s_client_sends_us_early_data(files, ours):
    server = ours(server_context(files, early_data=True))
    path, data = files.directory / "early.session", files.directory / "early.data"
    data.write_bytes(b"early bird\n")
    s_client(files, server.port, "-sess_out", str(path))
    output = s_client(files, server.port, "-sess_in", str(path), "-early_data", str(data))
    assert "Early data was accepted" in output
    assert (b"early bird\n", True) in server.received
    output = s_client(files, server.port, "-sess_in", str(path), "-early_data", str(data))
    assert "echo hello" in output  # a stateless ticket, a new flight: accepted or not, the connection works


def test_s_client_updates_keys(files, ours):
    server = ours(server_context(files))
    script = [(b"before\n", b"echo before"), (b"K\n", b"KEYUPDATE"), (b"hello\n", b"echo hello")]
    assert "echo hello" in s_client(files, server.port, script=script)
    assert server.engines[0].error is None


def test_s_client_floods_us_with_key_updates(files, ours):
    server = ours(server_context(files))
    command = [needs("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline and (not server.engines or server.engines[0].error is None):
            process.stdin.write(b"K\n")
            process.stdin.flush()
            time.sleep(0.002)  # s_client takes a line for a command only where one read gives it alone
    except BrokenPipeError:
        pass
    process.kill()
    process.communicate()
    assert "control messages" in server.engines[0].error.text


def test_s_client_may_not_renegotiate(files, ours):
    server = ours(server_context(files))
    s_client(files, server.port, "-tls1_2", script=[(b"R\n", b"closed")])
    assert "renegotiate" in server.engines[0].error.text


def test_s_client_with_and_without_a_certificate(files, ours):
    server = ours(server_context(files, client_ca=files.ca))
    output = s_client(files, server.port, "-cert", files.client_certificate, "-key", files.client_key)
    assert "echo hello" in output
    assert "CN = ca" in output or "CN=ca" in output  # the CA names that we send with the request
    output = s_client(files, server.port)
    assert "certificate required" in output
    assert "client gave no certificate" in server.engines[1].error.text


def test_s_client_offers_only_old_versions(files, ours):
    server = ours(server_context(files))
    output = s_client(files, server.port, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "alert protocol version" in output
    assert "no TLS version that we accept" in server.engines[0].error.text
