import pytest

from proxy.config import rules

INTERFACE_EXAMPLE = """\
listeners:
  - name: api                       # unique
    address: 127.0.0.1:8080         # host:port, [::]:port, or unix:/path
    protocol: http                  # http (h1, h2c, WebSocket, gRPC) | tcp | sni (TLS passthrough by server name)
    tls:                            # present: the listener terminates TLS (h1 and h2 by ALPN)
      certificates: [{certificate: edge.pem, key: edge.key}]   # chosen by SNI, reloaded when the files change
      client_ca: clients.pem        # present: clients need a certificate
      early_data: false             # accept 0-RTT from clients (safe methods only)
    http3: true                     # with tls: also listen on UDP, announce alt-svc
    routes:
      - match: {host: "*.example.com", path: /v1/, methods: [GET], headers: {x-tier: gold}}   # path: prefix; =/exact
        upstream: payments
        timeout: 10s                # any of timeout, retry, hedge, early_data overrides the upstream's for this route
      - match: {path: /}
        upstream: web
upstreams:
  payments:
    protocol: auto                  # auto (ALPN: h2, then http/1.1) | h1 | h2 | h3 | tcp
    tls:                            # absent: plaintext
      server_name: api.example.com  # default: the endpoint's host
      ca: ca.pem                    # default: the system's
      certificate: me.pem           # mTLS
      key: me.key
      verify: true
      early_data: true              # 0-RTT for safe methods; off by default
      spiffe_id: spiffe://prod/payments   # the peer must present it
    regions:
      us-east: {endpoints: ["api-us.example.com:443"], max_in_flight: 2000}
      eu-west: {endpoints: ["10.66.2.1:443", "10.66.2.2:443"]}
      ap-south: {endpoints: ["api-ap.example.com:443"], standby: true}   # only when the others can't take it
    routing: {policy: latency, spread: 5%}   # latency | weighted (by `weight` of a region) | ordered
    hedge: {budget: 5%, min_delay: 5ms, max_delay: 1s}     # or hedge: off
    retry: {attempts: 2, budget: 20%}                      # attempts beyond the first
    timeouts: {connect: 2s, response: 15s, idle: 60s, total: 60s}
    pool: {warm: 2, max_connections: 128, max_age: 30m, keepalive: 15s}   # warm: kept for every endpoint
    health: {path: /healthz, interval: 2s, timeout: 1s, expect: 200-299}  # absent: passive detection
    drain: {after: 3, hold: 10s, ramp: 30s, max_drained: 50%}
    session_key: header:x-user      # optional affinity: header:NAME | cookie:NAME | source
  web:
    regions: {local: {endpoints: ["[::1]:9000", "unix:/run/web.sock"]}}
sessions: {path: sessions.db, key: env:ONETRIP_SESSION_KEY}   # absent: in memory only
fleet: {etcd: ["https://etcd-1:2379"], name: prod, quorum: 3}                  # absent: this proxy decides alone
admin: {address: 127.0.0.1:9900, token: env:ONETRIP_ADMIN_TOKEN}
access_log: {path: "-", format: json, sample: 100%}
tracing: {otlp: http://127.0.0.1:4318}
workers: 1                          # or auto: one a core
limits: {header_bytes: 64KiB, headers: 128, body_bytes: 0, connections: 20000, header_timeout: 10s}
shutdown: {settle: 0s, deadline: 30s}
"""
ENVIRON = {"ONETRIP_SESSION_KEY": "k" * 32, "ONETRIP_ADMIN_TOKEN": "t" * 16}


@pytest.fixture
def directory(tmp_path_factory):
    """A directory with the files that the example names."""
    path = tmp_path_factory.mktemp("config")
    for name in ("edge.pem", "edge.key", "clients.pem", "ca.pem", "me.pem", "me.key"):
        (path / name).write_text("x")
    return path


@pytest.fixture
def everything_available(monkeypatch):
    """As if every feature had landed."""
    monkeypatch.setattr(rules, "NOT_AVAILABLE", {})


@pytest.fixture
def interface_example():
    return INTERFACE_EXAMPLE


@pytest.fixture
def environ():
    return dict(ENVIRON)
