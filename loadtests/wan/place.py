"""Where a proxy stands in the lab, and what a peer has to offer to be compared there.

The rules that keep the comparison fair; every peer's module follows them:

- All reach the same three regions over TLS 1.3, verify chain and name, and prefer the nearest region. The peers are
  told which one that is, onetrip finds out.
- The peers are tuned by hand for exactly these distances, as their experts would: time-outs per try that lie just
  above what a healthy answer takes, quick health checks, passive detection, a second try in another region for
  what may be sent twice. Whoever runs them elsewhere has to do that work again.
- onetrip runs with its defaults but for what stands in its module.
- POSTs carry no idempotency key: nobody may send one again once an origin may have seen it.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loadtests.peers.wiring import Peer


@dataclass(frozen=True, slots=True)
class Place:
    """One proxy between home and the regions. `regions`: where each is dialled, the nearest first."""

    port: int
    admin_port: int
    directory: Path
    ca: Path
    server_name: str
    regions: dict[str, tuple[str, int]] = field(hash=False)

    @property
    def access_log(self) -> Path:
        """Where the proxy writes its access log."""
        return self.directory / "access.log"


class Contender(Protocol):
    """One proxy in this comparison: the `Peer` that is installed, and its config for the lab.

    `ready_path`: on the admin port, answers 200 once requests may come; empty: it is ready when it listens.
    `stop_signal`: ends it and lets requests under way finish. `stats_path`: what it counts, on the admin port; kept
    beside its log.
    """

    name: str
    config_name: str
    ready_path: str
    stop_signal: signal.Signals
    stats_path: str

    @property
    def peer(self) -> Peer:
        """How it is found and started."""

    def config(self, place: Place) -> str:
        """Its config file's text."""
