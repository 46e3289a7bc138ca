"""onetrip over the WAN: its defaults, the lab's CA, and a pool as large as the largest burst."""

from __future__ import annotations

import signal
from typing import Final

from loadtests.peers.onetrip import Onetrip as Installed

from .place import Place

CONFIG: Final = """\
listeners:
  - name: edge
    address: 127.0.0.1:{port}
    upstream: api

upstreams:
  api:
    tls: {{server_name: {server_name}, ca: "{ca}"}}
    regions:                           # in no order: the nearest is found by latency
{regions}
{pool}
admin: {{address: "127.0.0.1:{admin_port}"}}
access_log: {{path: "{directory}/access.log"}}
"""

POOL: Final = """\
    pool: {warm: 50}                   # bursts of 50 are expected here: one connection each over HTTP/1.1
"""


class Onetrip:
    """onetrip from this checkout. `pool`: YAML lines that differ from the defaults."""

    config_name = "onetrip.yaml"
    ready_path = "/readyz"
    stop_signal = signal.SIGTERM
    stats_path = "/metrics"

    def __init__(self, name: str = "onetrip", pool: str = POOL) -> None:
        self.name = name
        self.peer = Installed()
        self._pool = pool

    def config(self, place: Place) -> str:
        """onetrip.yaml."""
        regions = "\n".join(
            f'      {name}: {{endpoints: ["{host}:{port}"]}}' for name, (host, port) in place.regions.items()
        )
        return CONFIG.format(
            port=place.port,
            admin_port=place.admin_port,
            server_name=place.server_name,
            ca=place.ca,
            directory=place.directory,
            regions=regions,
            pool=self._pool,
        )
