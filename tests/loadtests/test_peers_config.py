"""Every peer's generated config is one that the peer itself accepts, and says what makes the comparison fair."""

import subprocess
from pathlib import Path

import pytest

from loadtests.cpu import PEERS
from loadtests.peers.envoy import Envoy
from loadtests.peers.haproxy import HAProxy
from loadtests.peers.nginx import Nginx
from loadtests.peers.onetrip import Onetrip
from loadtests.peers.origin import origin_config
from loadtests.peers.scenarios import SCENARIOS
from loadtests.peers.wiring import HOST, Unavailable, Wiring, find_binary, make_credentials, prepare
from proxy.config import load_config

from ..programs import does_not_apply, needs

WIRINGS = sorted({(scenario.downstream, scenario.upstream) for scenario in SCENARIOS.values()})


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    return make_credentials(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def wire(tmp_path, credentials):
    def make(downstream="h1", upstream="h1"):
        directory = tmp_path / "peer"
        return Wiring(downstream, upstream, 21001, 21002, 21003, directory, credentials)

    return make


def need_peer(name, downstream=""):
    needs(name, *(["ngx_stream_module"] if (name, downstream) == ("nginx", "tcp") else []))


def validate(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.interop
@pytest.mark.parametrize("name", ["envoy", "haproxy", "nginx"])
@pytest.mark.parametrize(("downstream", "upstream"), WIRINGS)
def test_the_peer_accepts_its_config(name, downstream, upstream, wire):
    if name == "nginx" and upstream == "h2-tls":
        does_not_apply("nginx speaks no HTTP/2 to origins")
    need_peer(name, downstream)
    peer = PEERS[name]
    config = prepare(peer, wire(downstream, upstream))
    done = validate(peer.check(config))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.interop
@pytest.mark.parametrize("name", ["envoy", "haproxy", "nginx"])
def test_a_broken_config_is_seen(name, wire):
    need_peer(name)
    peer = PEERS[name]
    config = prepare(peer, wire())
    config.write_text(config.read_text() + "\nnonsense here\n")
    assert validate(peer.check(config)).returncode != 0


@pytest.mark.interop
def test_the_origin_is_a_config_that_nginx_accepts(tmp_path, credentials):
    need_peer("nginx")
    config = tmp_path / "origin.conf"
    config.write_text(origin_config(tmp_path, credentials, 21001, 21002, 21003))
    done = validate(Nginx().check(config))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("downstream", "upstream"), [wiring for wiring in WIRINGS if wiring[1] != "h2-tls"])
def test_onetrip_loads_its_config(downstream, upstream, wire):
    wiring = wire(downstream, upstream)
    config = load_config(str(prepare(Onetrip(), wiring)))
    listener = config.listeners[0]
    assert str(listener.address) == "127.0.0.1:21001"
    assert (listener.tls is not None) == (downstream == "h1-tls")
    assert (config.upstreams["origin"].tls is not None) == upstream.endswith("-tls")
    assert str(wiring.access_log) in str(config.access_log)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
@pytest.mark.parametrize(("downstream", "upstream"), [("h1", "h1"), ("h1-tls", "h1"), ("h1", "h1-tls"), ("h2c", "h1")])
def test_each_logs_times_out_and_routes_by_host(peer, downstream, upstream, wire):
    text = peer.config(wire(downstream, upstream))
    assert HOST in text
    assert "/admin/" in text
    assert "15s" in text
    assert "21001" in text
    assert "21002" in text
    assert ("access.log" in text) != (peer.name == "haproxy")  # HAProxy's standard output is redirected there


def test_upstream_tls_is_verified_by_all(wire, credentials):
    wiring = wire("h1", "h1-tls")
    assert "proxy_ssl_verify on" in Nginx().config(wiring)
    assert "ssl verify required" in HAProxy().config(wiring)
    assert "trusted_ca" in Envoy().config(wiring)
    for peer in PEERS.values():
        assert str(credentials.ca) in peer.config(wiring)


def test_nginx_says_that_it_has_no_h2_to_origins(wire):
    with pytest.raises(Unavailable, match="HTTP/2"):
        Nginx().config(wire("h1", "h2-tls"))


def test_a_missing_program_is_named_with_how_to_get_it():
    with pytest.raises(Unavailable, match="apt install no-such-proxy"):
        find_binary("no-such-proxy", "apt install no-such-proxy")


def test_a_missing_stream_module_is_named(monkeypatch, tmp_path, wire):
    program = tmp_path / "nginx"
    program.write_text(f"#!/bin/sh\necho configure arguments: --modules-path={tmp_path} --with-stream=dynamic >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(Nginx, "find", lambda self: [str(program)])
    monkeypatch.delenv("NGINX_MODULES", raising=False)
    monkeypatch.setattr("loadtests.peers.nginx.MODULES", str(tmp_path))
    with pytest.raises(Unavailable, match="libnginx-mod-stream"):
        Nginx().config(wire("tcp", "tcp"))
    (tmp_path / "ngx_stream_module.so").touch()
    assert f"load_module {tmp_path}/ngx_stream_module.so;" in Nginx().config(wire("tcp", "tcp"))


def test_credentials_verify(credentials):
    openssl = needs("openssl")
    command = [
        openssl,
        "verify",
        "-CAfile",
        str(credentials.ca),
        "-verify_hostname",
        HOST,
        str(credentials.certificate),
    ]
    assert validate(command).returncode == 0
    assert Path(credentials.key).stat().st_mode & 0o077 == 0
    assert credentials.combined.read_bytes() == credentials.certificate.read_bytes() + credentials.key.read_bytes()
