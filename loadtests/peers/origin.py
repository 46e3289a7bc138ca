"""The origin that all are measured against: one nginx on the load's core, the same for every peer.

`/small` answers 12 bytes, `/bytes` 1 MiB, `POST /echo` returns the body it was sent, and so does the gRPC method
`/bench.Echo/Call`, with a `grpc-status` of 0 in the trailers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .nginx import MAIN, Nginx, temporary_paths
from .process import Program, free_port
from .wiring import CIPHERSUITE, Credentials

DOWNLOAD_BYTES: Final = 1 << 20

HTTP: Final = """\
http {{
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  sendfile on;
  sendfile_max_chunk 512k;
  tcp_nopush on;
  open_file_cache max=16 inactive=1h;
  client_body_buffer_size 64k;
  {temporary}
  ssl_certificate {certificate};
  ssl_certificate_key {key};
  ssl_protocols TLSv1.3;
  ssl_conf_command Ciphersuites {suite};
  ssl_session_cache shared:tls:10m;
  server {{
    listen 127.0.0.1:{plain} backlog=4096;
    listen 127.0.0.1:{tls} ssl backlog=4096;
    listen 127.0.0.1:{h2} ssl http2 backlog=4096;
    http2_max_concurrent_streams 256;
    root {directory}/files;
    default_type application/octet-stream;
    location = /small {{ return 200 "hello there\\n"; }}
    location = /bytes {{ }}
    # `return` runs before the body is read. `mirror` reads it; the file handler then refuses the POST, and its error
    # page, a named location, sees the body.
    location = /echo {{ mirror /sink; error_page 404 405 =200 @echo; log_not_found off; }}
    location @echo {{ return 200 $request_body; }}
    location = /bench.Echo/Call {{ mirror /sink; error_page 404 405 =200 @call; log_not_found off; }}
    location @call {{ default_type application/grpc; add_trailer grpc-status 0 always; return 200 $request_body; }}
    location = /sink {{ internal; return 204; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """A running origin and its ports: plain h1, h1 over TLS, and h2 over TLS."""

    program: Program
    plain: int
    tls: int
    h2: int

    def port(self, upstream: str) -> int:
        """The port that speaks what a wiring's `upstream` names."""
        return {"h1": self.plain, "tcp": self.plain, "h1-tls": self.tls, "h2-tls": self.h2}[upstream]


def origin_config(directory: Path, credentials: Credentials, plain: int, tls: int, h2: int) -> str:
    """The origin's nginx.conf."""
    values = {
        "directory": directory,
        "temporary": temporary_paths(directory),
        "certificate": credentials.certificate,
        "key": credentials.key,
        "suite": CIPHERSUITE,
        "plain": plain,
        "tls": tls,
        "h2": h2,
    }
    return MAIN.format(modules="", **values) + HTTP.format(**values)


def start_origin(directory: Path, credentials: Credentials, core: int) -> Origin:
    """Write its config and files, start it on a core, and wait until it listens."""
    (directory / "files").mkdir(parents=True, exist_ok=True)
    (directory / "files" / "bytes").write_bytes(b"x" * DOWNLOAD_BYTES)
    plain, tls, h2 = free_port(), free_port(), free_port()
    config = directory / "origin.conf"
    config.write_text(origin_config(directory, credentials, plain, tls, h2))
    program = Program("origin", Nginx().command(config), directory, core)
    try:
        program.wait_listening(plain)
    except BaseException:
        program.stop()
        raise
    return Origin(program, plain, tls, h2)
