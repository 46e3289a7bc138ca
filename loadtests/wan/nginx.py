"""nginx over the WAN: backups, a next upstream after 250 ms. Passive checks only: the paid version has active ones."""

from __future__ import annotations

import signal
from typing import Final

from loadtests.peers.nginx import MAIN, temporary_paths
from loadtests.peers.nginx import Nginx as Installed

from .place import Place

HTTP: Final = """\
http {{
  log_format wan '$time_iso8601 $request_method $status $request_time $upstream_addr $upstream_status '
                 '$upstream_connect_time $upstream_response_time';
  access_log {directory}/access.log wan buffer=64k flush=1s;
  {temporary}
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;

  upstream api {{
    zone api 256k;
{servers}
    keepalive 256;                     # as many idle connections as the largest burst needs, and more
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
  }}

  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_connect_timeout 250ms;         # TCP and TLS have that long each: above ap's 150 ms
  # Never for a POST that was sent: that would take the word non_idempotent.
  proxy_next_upstream error timeout invalid_header http_500 http_502 http_503 http_504;
  proxy_next_upstream_tries 3;
  proxy_socket_keepalive on;
  proxy_ssl_protocols TLSv1.3;
  proxy_ssl_verify on;
  proxy_ssl_trusted_certificate {ca};
  proxy_ssl_name {server_name};
  proxy_ssl_server_name on;
  proxy_ssl_session_reuse on;

  server {{
    listen 127.0.0.1:{port} backlog=4096;
    error_page 418 = @unsafe;
    location / {{
      if ($request_method !~ ^(GET|HEAD|OPTIONS)$) {{ return 418; }}
      proxy_read_timeout 250ms;        # above eu's 80 and ap's 150 ms
      proxy_pass https://api;
    }}
    location @unsafe {{                 # a POST is not sent again: a short time-out would only fail it
      proxy_read_timeout 5s;
      proxy_pass https://api;
    }}
  }}
}}
"""

NEAREST: Final = "    server {host}:{port} max_fails=10 fail_timeout=1s;"
"""Ten failures within a second and it is left alone for one; then one request (a user's) tries it again. Failures less
than a second apart add up, so with fewer a slow tail of 2 % would keep the region switched off.
"""
BACKUP: Final = "    server {host}:{port} max_fails=10 fail_timeout=1s backup weight={weight};"
"""All backups are equal to nginx: weights keep the second region's share near 99 %."""


class Nginx:
    """nginx; it speaks HTTP/1.1 to origins."""

    config_name = "nginx.conf"
    ready_path = ""
    stop_signal = signal.SIGQUIT
    stats_path = ""

    def __init__(self, name: str = "nginx") -> None:
        self.name = name
        self.peer = Installed()

    def config(self, place: Place) -> str:
        """nginx.conf."""
        (host, port), *others = place.regions.values()
        servers = [NEAREST.format(host=host, port=port)]
        for number, (backup, backup_port) in enumerate(others):
            servers.append(BACKUP.format(host=backup, port=backup_port, weight=100 if number == 0 else 1))
        return MAIN.format(modules="", directory=place.directory) + HTTP.format(
            directory=place.directory,
            temporary=temporary_paths(place.directory),
            servers="\n".join(servers),
            ca=place.ca,
            server_name=place.server_name,
            port=place.port,
        )
