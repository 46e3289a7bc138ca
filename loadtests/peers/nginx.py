"""nginx: HTTP by `http`, L4 by `stream` (a module of its own in Debian)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from .wiring import CIPHERSUITE, HOST, Unavailable, Wiring, find_binary, first_line

HTTP: Final = """\
http {{
  # One line a request, gathered in memory and written 64 KiB at a time: what nginx's own tuning guide advises.
  log_format bench '$remote_addr [$time_iso8601] "$request" $status $body_bytes_sent $request_time '
                   '$upstream_addr $upstream_connect_time $upstream_header_time $upstream_response_time $request_id';
  access_log {directory}/access.log bench buffer=64k flush=1s;

  keepalive_timeout 3600s;             # idle clients stay, as in every other peer
  keepalive_requests 1000000000;       # the default of 1000 would reconnect all the time
  client_header_timeout 10s;
  client_body_timeout 60s;
  send_timeout 60s;
  reset_timedout_connection on;
  tcp_nodelay on;
  client_body_buffer_size 64k;         # a 16 KiB body never touches the disk
  client_max_body_size 0;
  {temporary}

  upstream origin {{
    server 127.0.0.1:{origin_port} max_fails=3 fail_timeout=10s;
    keepalive 512;                     # no connection is closed for want of a slot
    keepalive_requests 1000000000;
    keepalive_timeout 60s;
  }}
  upstream admin {{ server 127.0.0.1:{origin_port}; }}

  proxy_http_version 1.1;              # with an empty Connection field: what keep-alive to the origin needs
  proxy_set_header Connection "";
  proxy_set_header Host $host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header X-Forwarded-Host $host;
  proxy_set_header X-Request-Id $request_id;
  proxy_connect_timeout 2s;
  proxy_read_timeout 15s;
  proxy_send_timeout 15s;
  proxy_next_upstream error timeout;
  proxy_next_upstream_tries 3;
  proxy_socket_keepalive on;
  proxy_buffering off;                 # responses stream, as through the other peers,
  proxy_buffer_size 64k;               # in large reads: bulk costs a quarter less than with the default buffers
  proxy_buffers 8 64k;                 # unused then, but checked against the size above
{tls}
  server {{
    listen 127.0.0.1:{port}{listen} backlog=4096;
    server_name {host};
    location /admin/ {{ proxy_pass {scheme}://admin; }}
    location / {{ proxy_pass {scheme}://origin; }}
  }}
}}
"""

DOWNSTREAM_TLS: Final = """
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_conf_command Ciphersuites {suite};
  ssl_session_cache shared:tls:10m;
  ssl_session_tickets off;             # the cache resumes; tickets would only add a write
  ssl_buffer_size 16k;                 # the default: full records, best for throughput
"""

UPSTREAM_TLS: Final = """
  proxy_ssl_protocols TLSv1.3;
  proxy_ssl_conf_command Ciphersuites {suite};
  proxy_ssl_verify on;
  proxy_ssl_trusted_certificate {ca};
  proxy_ssl_name {host};
  proxy_ssl_server_name on;
  proxy_ssl_session_reuse on;
"""

STREAM: Final = """\
stream {{
  log_format bench '$remote_addr [$time_iso8601] $status $bytes_sent $bytes_received $session_time $upstream_addr';
  access_log {directory}/access.log bench buffer=64k flush=1s;
  upstream origin {{ server 127.0.0.1:{origin_port}; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_pass origin;
    proxy_connect_timeout 2s;
    proxy_timeout 3600s;
    proxy_buffer_size 256k;            # 16k by default; large reads nearly double the bulk throughput
    tcp_nodelay on;
  }}
}}
"""

MODULES: Final = "/usr/lib/nginx/modules"

MAIN: Final = """\
# One worker on one core; the master only waits.
worker_processes 1;
worker_rlimit_nofile 65536;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
{modules}
events {{
  worker_connections 32768;
  multi_accept on;                     # one wake-up accepts all that wait
}}
"""


def temporary_paths(directory: Path) -> str:
    """Every directory that nginx would otherwise make under its compiled-in prefix, which only root may write to."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)


class Nginx:
    """nginx, from the distribution or nginx.org."""

    name = "nginx"
    config_name = "nginx.conf"

    def find(self) -> list[str]:
        """The binary."""
        return [find_binary("nginx", "apt install nginx")]

    def version(self) -> str:
        """For example `nginx version: nginx/1.22.1`."""
        return first_line([*self.find(), "-v"]).removeprefix("nginx version: ")

    def stream_module(self) -> str:
        """The `load_module` line that L4 needs, or "" where it is built in."""
        done = subprocess.run([*self.find(), "-V"], capture_output=True, text=True, timeout=20, check=False)
        if re.search(r"--with-stream(\s|$)", done.stderr):
            return ""
        found = re.search(r"--modules-path=(\S+)", done.stderr)
        folders = [os.environ.get("NGINX_MODULES", ""), found.group(1) if found else "", MODULES]
        for folder in filter(None, folders):
            path = Path(folder) / "ngx_stream_module.so"
            if path.exists():
                return f"load_module {path};"
        raise Unavailable("its stream module is not installed: apt install libnginx-mod-stream")

    def config(self, wiring: Wiring) -> str:
        """nginx.conf."""
        if wiring.upstream == "h2-tls":
            raise Unavailable("nginx speaks no HTTP/2 to origins, but for gRPC, which is not wired here")
        values = {
            "directory": wiring.directory,
            "port": wiring.port,
            "origin_port": wiring.origin_port,
            "host": HOST,
            "suite": CIPHERSUITE,
            "certificate": wiring.credentials.certificate,
            "key": wiring.credentials.key,
            "ca": wiring.credentials.ca,
            "temporary": temporary_paths(wiring.directory),
        }
        if wiring.l4:
            return MAIN.format(modules=self.stream_module(), **values) + STREAM.format(**values)
        listen = {"h1": "", "h1-tls": " ssl http2", "h2c": " http2"}[wiring.downstream]
        tls = (DOWNSTREAM_TLS if wiring.downstream == "h1-tls" else "") + (
            UPSTREAM_TLS if wiring.upstream == "h1-tls" else ""
        )
        scheme = "https" if wiring.upstream == "h1-tls" else "http"
        http = HTTP.format(listen=listen, scheme=scheme, tls=tls.format(**values), **values)
        return MAIN.format(modules="", **values) + http

    def command(self, config: Path) -> list[str]:
        """In the foreground, with its prefix and first error log in its own directory."""
        return [*self.find(), "-p", str(config.parent), "-e", str(config.parent / "error.log"), "-c", str(config)]

    def check(self, config: Path) -> list[str]:
        """`nginx -t`."""
        return [*self.command(config), "-t"]
