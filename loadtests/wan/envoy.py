"""Envoy over the WAN: HTTP/2 upstream, priorities for the regions, hedging by time-out, Fast Open."""

from __future__ import annotations

import signal
from typing import Final

from loadtests.peers.envoy import Envoy as Installed

from .place import Place

TYPES: Final = "type.googleapis.com/envoy.extensions"

CONFIG: Final = """\
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}}}
static_resources:
  listeners:
  - name: edge
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {types}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          codec_type: AUTO
          use_remote_address: true
          common_http_protocol_options: {{idle_timeout: 3600s}}
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": {types}.access_loggers.file.v3.FileAccessLog
              path: {directory}/access.log
              log_format: {{text_format_source: {{inline_string: "{log}"}}}}
          route_config:
            virtual_hosts:
            - name: api
              domains: ["*"]
              routes:
              - match:                 # what may be sent twice
                  prefix: /
                  headers: [{{name: ":method", string_match: {{safe_regex: {{regex: "GET|HEAD|OPTIONS"}}}}}}]
                route:
                  cluster: api
                  timeout: 5s
                  hedge_policy: {{hedge_on_per_try_timeout: true}}   # the first try may still win
                  retry_policy:
                    retry_on: 5xx,reset,connect-failure,refused-stream
                    num_retries: 3
                    per_try_timeout: 0.2s            # above us and eu with a handshake (TCP Fast Open: two round trips)
                    retry_back_off: {{base_interval: 0.001s, max_interval: 0.002s}}   # the default waits up to 25 ms
                    retry_priority:                  # the second try leaves the region
                      name: envoy.retry_priorities.previous_priorities
                      typed_config:
                        "@type": {types}.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
                        update_frequency: 1
              - match: {{prefix: /}}     # POSTs: again only where nothing was sent
                route:
                  cluster: api
                  timeout: 5s
                  retry_policy: {{retry_on: "connect-failure,refused-stream", num_retries: 3}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": {types}.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: api
    type: STATIC
    connect_timeout: 0.4s              # ap's TCP and TLS handshakes take 300 ms
    lb_policy: ROUND_ROBIN
    # One endpoint a region: panic would bring the dead one back.
    common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}
    circuit_breakers:                  # the default of 3 retries at once would bind at the first fault
      thresholds: [{{max_connections: 1000, max_pending_requests: 10000, max_requests: 10000, max_retries: 1000}}]
    health_checks:
    - timeout: 0.35s                   # above ap's answer with Fast Open: two round trips
      interval: 0.3s
      no_traffic_interval: 0.3s        # a minute by default: failover regions would be checked once a minute
      unhealthy_threshold: 2
      healthy_threshold: 1
      http_health_check: {{path: /healthz, host: {server_name}, codec_client_type: {codec}}}
    outlier_detection:                 # passive: three failures in a row, time-outs of tries included
      consecutive_5xx: 3
      consecutive_gateway_failure: 3
      enforcing_consecutive_gateway_failure: 100
      interval: 0.2s
      base_ejection_time: 2s           # a passed health check ends it earlier
      max_ejection_time: 5s
      max_ejection_percent: 100        # one endpoint a region: the default of 10 % would eject none
    preconnect_policy: {{per_upstream_preconnect_ratio: 3.0, predictive_preconnect_ratio: 3.0}}
    upstream_connection_options: {{tcp_keepalive: {{keepalive_time: 5, keepalive_interval: 1, keepalive_probes: 2}}}}
    upstream_bind_config:              # TCP_FASTOPEN_CONNECT: the ClientHello travels with the SYN
      source_address: {{address: 0.0.0.0, port_value: 0}}
      socket_options: [{{level: 6, name: 30, int_value: 1, state: STATE_PREBIND}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": {types}.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{idle_timeout: 3600s}}
        explicit_http_config: {{{protocol}}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": {types}.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {server_name}
        max_session_keys: 16
        common_tls_context:
          alpn_protocols: [{alpn}]
          tls_params:
            tls_minimum_protocol_version: TLSv1_3
            tls_maximum_protocol_version: TLSv1_3
            ecdh_curves: [X25519]      # the post-quantum ClientHello (1.7 KB) does not fit a SYN
          validation_context:
            trusted_ca: {{filename: "{ca}"}}
            match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: {server_name}}}}}]
    load_assignment:
      cluster_name: api
      endpoints:
"""

H2: Final = """\
http2_protocol_options: {{connection_keepalive: {{interval: 1s, timeout: 0.4s}}}}"""
# PINGs end a dead connection soon; the interval is what Envoy's users choose for links that fail silently.

ENDPOINT: Final = """\
      - priority: {priority}
        lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}
"""

LOG: Final = (
    r"%START_TIME% %REQ(:METHOD)% %RESPONSE_CODE% %RESPONSE_FLAGS% %DURATION% %UPSTREAM_HOST% "
    r"%UPSTREAM_REQUEST_ATTEMPT_COUNT%\n"
)


class Envoy:
    """Envoy, speaking HTTP/2 to the origins (one connection carries a burst) or HTTP/1.1 (`h2=False`)."""

    config_name = "envoy.yaml"
    ready_path = "/ready"
    stop_signal = signal.SIGTERM
    stats_path = "/stats?usedonly"

    def __init__(self, name: str = "envoy", *, h2: bool = True) -> None:
        self.name = name
        self.peer = Installed()
        self._h2 = h2

    def config(self, place: Place) -> str:
        """envoy.yaml."""
        text = CONFIG.format(
            types=TYPES,
            port=place.port,
            admin_port=place.admin_port,
            directory=place.directory,
            server_name=place.server_name,
            ca=place.ca,
            log=LOG,
            codec="HTTP2" if self._h2 else "HTTP1",
            alpn="h2" if self._h2 else "http/1.1",
            protocol=H2.format() if self._h2 else "http_protocol_options: {}",
        )
        for priority, (host, port) in enumerate(place.regions.values()):
            text += ENDPOINT.format(priority=priority, host=host, port=port)
        return text
