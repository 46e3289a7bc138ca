"""onetrip itself, from this checkout: every default on (hedging, retries, warm pools), metrics and the access log."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from typing import Final

from .wiring import HOST, PROJECT, Unavailable, Wiring

LISTENER: Final = """\
listeners:
  - name: edge
    address: 127.0.0.1:{port}
    protocol: {protocol}
"""

TLS: Final = """\
    tls:
      certificates: [{{certificate: "{certificate}", key: "{key}"}}]
"""

ROUTES: Final = """\
    routes:
      - match: {{host: {host}, path: /admin/}}
        upstream: origin
        timeout: 15s
      - match: {{host: {host}, path: /}}
        upstream: origin
"""

UPSTREAM: Final = """\
upstreams:
  origin:
    protocol: {protocol}
    regions:
      local: {{endpoints: ["127.0.0.1:{origin_port}"]}}
    timeouts: {{connect: 2s, response: 15s, idle: {idle}, total: 60s}}
"""

UPSTREAM_TLS: Final = """\
    tls: {{server_name: {host}, ca: "{ca}"}}
"""

TAIL: Final = """\
admin: {{address: "127.0.0.1:{admin_port}"}}
access_log: {{path: "{directory}/access.log", format: json, sample: 100%}}
workers: 1
"""


class Onetrip:
    """onetrip."""

    name = "onetrip"
    config_name = "onetrip.yaml"

    def find(self) -> list[str]:
        """This interpreter with this checkout's package."""
        if importlib.util.find_spec("proxy.cli") is None:
            raise Unavailable("its command line is not part of this checkout")
        return [sys.executable, "-m", "proxy.cli"]

    def version(self) -> str:
        """Name and version, as the project's metadata says."""
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
        return f"onetrip {project['version']} (CPython {sys.version.split()[0]})"

    def config(self, wiring: Wiring) -> str:
        """onetrip.yaml."""
        credentials = wiring.credentials
        values = {
            "directory": wiring.directory,
            "port": wiring.port,
            "origin_port": wiring.origin_port,
            "admin_port": wiring.admin_port,
            "host": HOST,
            "certificate": credentials.certificate,
            "key": credentials.key,
            "ca": credentials.ca,
        }
        text = LISTENER.format(protocol="tcp" if wiring.l4 else "http", **values)
        if wiring.downstream == "h1-tls":
            text += TLS.format(**values)
        text += "    upstream: origin\n" if wiring.l4 else ROUTES.format(**values)
        protocol = {"h1": "h1", "h1-tls": "h1", "h2-tls": "h2", "tcp": "tcp"}[wiring.upstream]
        text += UPSTREAM.format(protocol=protocol, idle="3600s" if wiring.l4 else "60s", **values)
        if wiring.upstream in {"h1-tls", "h2-tls"}:
            text += UPSTREAM_TLS.format(**values)
        return text + TAIL.format(**values)

    def command(self, config: Path) -> list[str]:
        """`onetrip serve`."""
        return [*self.find(), "serve", str(config)]

    def check(self, config: Path) -> list[str]:
        """`onetrip check`."""
        return [*self.find(), "check", str(config)]
