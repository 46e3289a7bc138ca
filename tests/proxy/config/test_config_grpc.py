"""`health: {grpc: SERVICE}`."""

import textwrap

import pytest

from proxy.config import ConfigError, parse_config

CONFIG = """\
listeners:
  - {{name: one, address: "127.0.0.1:8080", upstream: app}}
upstreams:
  app:
    protocol: {protocol}{tls}
    regions: {{here: {{endpoints: ["127.0.0.1:9000"]}}}}
    health: {health}
"""


def read(health, protocol="h2", tls=False):
    text = CONFIG.format(health=health, protocol=protocol, tls="\n    tls: {}" if tls else "")
    return parse_config(textwrap.dedent(text), file="f").upstreams["app"].health


@pytest.mark.parametrize(("written", "service"), [('""', ""), ("payments.v1.Payments", "payments.v1.Payments")])
def test_service(written, service):
    health = read(f"{{grpc: {written}, interval: 5s}}")
    assert (health.grpc, health.path, health.interval) == (service, None, 5.0)


def test_absent():
    assert read("{path: /healthz}").grpc is None


@pytest.mark.parametrize(("protocol", "tls"), [("h2", False), ("h2", True), ("auto", True)])
def test_where_endpoints_may_speak_http2(protocol, tls):
    assert read('{grpc: ""}', protocol, tls).grpc == ""


@pytest.mark.parametrize(
    ("health", "protocol", "fault"),
    [
        ("{grpc: a b}", "h2", "expected the name of a service"),
        ('{grpc: "", path: /healthz}', "h2", "give it one of them"),
        ('{grpc: ""}', "h1", "gRPC needs HTTP/2"),
        ('{grpc: ""}', "auto", "gRPC needs HTTP/2"),
    ],
)
def test_faults(health, protocol, fault):
    with pytest.raises(ConfigError) as caught:
        read(health, protocol)
    assert fault in str(caught.value.faults[0])
