"""HAProxy: the same thread does everything; the log leaves by a descriptor, since HAProxy writes no files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .wiring import CIPHERSUITE, HOST, Wiring, find_binary, first_line

GLOBAL: Final = """\
global
  nbthread 1                           # one core
  maxconn 20000
  # It would reserve two descriptors for each, and not start under a limit of 20,000; idle clients use one.
  no strict-limits
  # HAProxy never writes a file itself (a disk could block it). Standard output is redirected to one: one write(2) a
  # line, about what sending it to a local syslog's socket would cost.
  log stdout len 1024 format raw local0 info
  ssl-default-bind-options ssl-min-ver TLSv1.2
  ssl-default-bind-ciphersuites {suite}
  ssl-default-server-ciphersuites {suite}
  tune.pipesize 1048576                # what splices travel through: 64 KiB by default
  # Idle origin connections are dropped when a fifth of all descriptors is in use: not by 10,000 idle clients.
  tune.pool-low-fd-ratio 90
  tune.pool-high-fd-ratio 95

defaults
  log global
  option dontlognull                   # connections without a request (readiness checks) are no requests
  # The kernel moves responses from socket to socket. `splice-auto` halves bulk throughput here: it also splices the
  # small requests.
  option splice-response
  option redispatch
  retries 2
  timeout connect 2s
  timeout client 3600s                 # idle clients stay, as in every other peer
  timeout http-request 10s
  timeout http-keep-alive 3600s
  timeout server 15s
  timeout tunnel 3600s
"""

HTTP: Final = """
frontend edge
  mode http
  bind 127.0.0.1:{port} backlog 4096{bind}
  log-format "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %ts %ac/%fc/%bc/%sc/%rc %{{+Q}}r %ID"
  option forwardfor
  unique-id-format %[uuid()]
  unique-id-header x-request-id
  http-request set-header x-forwarded-proto {scheme}
  http-request set-header x-forwarded-host %[req.hdr(host)]
  acl host_ok hdr(host) -i {host}
  use_backend admin if host_ok {{ path_beg /admin/ }}
  use_backend origin if host_ok

backend admin
  mode http
  server a 127.0.0.1:{origin_port}{server}

backend origin
  mode http
  http-reuse always                    # any idle connection serves any client, its first request included
  retry-on conn-failure empty-response
  # No cap on idle connections and no purge during a run.
  server o 127.0.0.1:{origin_port} pool-max-conn -1 pool-purge-delay 60s{server}
"""

TCP: Final = """
frontend edge
  mode tcp
  option tcplog
  bind 127.0.0.1:{port} backlog 4096
  default_backend origin

backend origin
  mode tcp
  timeout server 3600s
  server o 127.0.0.1:{origin_port}
"""


class HAProxy:
    """HAProxy, from the distribution."""

    name = "haproxy"
    config_name = "haproxy.cfg"

    def find(self) -> list[str]:
        """The binary."""
        return [find_binary("haproxy", "apt install haproxy")]

    def version(self) -> str:
        """For example `HAProxy version 2.6.12`."""
        return " ".join(first_line([*self.find(), "-v"]).split()[:3])

    def config(self, wiring: Wiring) -> str:
        """haproxy.cfg."""
        credentials = wiring.credentials
        # On a plain port HAProxy knows HTTP/2 by its preface: h2c needs no word here.
        bind = f" ssl crt {credentials.combined} alpn h2,http/1.1" if wiring.downstream == "h1-tls" else ""
        server = ""
        if wiring.upstream in {"h1-tls", "h2-tls"}:
            alpn = "h2" if wiring.upstream == "h2-tls" else "http/1.1"
            server = f" ssl verify required ca-file {credentials.ca} sni str({HOST}) verifyhost {HOST} alpn {alpn}"
        values = {
            "port": wiring.port,
            "origin_port": wiring.origin_port,
            "host": HOST,
            "bind": bind,
            "server": server,
            "scheme": "https" if wiring.downstream == "h1-tls" else "http",
        }
        return GLOBAL.format(suite=CIPHERSUITE) + (TCP if wiring.l4 else HTTP).format(**values)

    def command(self, config: Path) -> list[str]:
        """In the foreground, without a master process."""
        return [*self.find(), "-db", "-f", str(config)]

    def check(self, config: Path) -> list[str]:
        """`haproxy -c`."""
        return [*self.find(), "-c", "-f", str(config)]
