"""HAProxy over the WAN: the first healthy region, retries that leave it, quick checks."""

from __future__ import annotations

import signal
from typing import Final

from loadtests.peers.haproxy import HAProxy as Installed

from .place import Place

CONFIG: Final = """\
global
  nbthread 1
  log stdout len 1024 format raw local0 info     # redirected to the access log: HAProxy writes no files
  ssl-default-server-options ssl-min-ver TLSv1.3
  tune.pool-low-fd-ratio 90
  tune.pool-high-fd-ratio 95

defaults
  log global
  mode http
  option dontlognull
  option httplog
  timeout client 3600s
  timeout http-request 10s
  timeout http-keep-alive 3600s
  # HAProxy measures a try by `timeout server`, and this is the only place to set it: hence two backends.
  timeout connect 350ms                          # TCP and TLS of ap take 300 ms, those of its checks too
  timeout check 250ms                            # for the answer, once connected: above ap's 150 ms
  retries 3
  option redispatch 1                            # every retry goes to another server
  # `first`: the first usable server in the order of the file, and on a retry the one after it. With `backup`
  # servers a retry would go to the same one until a health check has failed.
  balance first
  http-reuse always
  default-server ssl verify required ca-file {ca} sni str({server_name}) verifyhost {server_name} alpn {alpn}
  # No cap on idle connections and no purge within the test's hour.
  default-server pool-max-conn -1 pool-purge-delay 3600s max-reuse -1

frontend edge
  bind 127.0.0.1:{port} backlog 4096
  option forwardfor
  use_backend safe if {{ method GET HEAD OPTIONS }}
  default_backend unsafe

backend safe                                     # what may be sent twice
  timeout server 250ms                           # above eu's usual 80 and ap's 150 ms
  retry-on conn-failure empty-response junk-response response-timeout 500 502 503 504
  option httpchk
  http-check send meth GET uri /healthz ver {version} hdr host {server_name}
  http-check expect status 200
  # Passive: three errors in a row, time-outs included, mark the server down; a passed check brings it back.
  default-server check check-alpn {alpn} inter 300ms fastinter 150ms downinter 300ms fall 2 rise 1
  default-server observe layer7 error-limit 3 on-error mark-down
  default-server tfo                             # needs the retries above; 2.6 takes it and sends no Fast Open
{servers}

backend unsafe                                   # POSTs: again only where no connection was made
  timeout server 5s
  retry-on conn-failure
{tracking}
"""


class HAProxy:
    """HAProxy, speaking HTTP/1.1 to the origins (its HTTP/2 costs a round trip more when it connects) or HTTP/2."""

    config_name = "haproxy.cfg"
    ready_path = ""
    stop_signal = signal.SIGUSR1
    stats_path = ""

    def __init__(self, name: str = "haproxy", *, h2: bool = False) -> None:
        self.name = name
        self.peer = Installed()
        self._h2 = h2

    def config(self, place: Place) -> str:
        """haproxy.cfg."""
        regions = place.regions.items()
        return CONFIG.format(
            port=place.port,
            ca=place.ca,
            server_name=place.server_name,
            alpn="h2" if self._h2 else "http/1.1",
            version="HTTP/2" if self._h2 else "HTTP/1.1",
            servers="\n".join(f"  server {name} {host}:{port}" for name, (host, port) in regions),
            tracking="\n".join(f"  server {name} {host}:{port} track safe/{name}" for name, (host, port) in regions),
        )
