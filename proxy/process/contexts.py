"""What a config asks of the process before there is a worker: TLS server contexts, and how many workers.

It owns nothing: a context belongs to whoever asked for it. It never opens a socket and never changes a config.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tlscache.context import CertificatePair, ServerContext, ServerSettings

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.config import Config
    from tlscache.ticket_keys import TicketKeys


def worker_count(config: Config) -> int:
    """How many processes serve."""
    return config.workers if isinstance(config.workers, int) else len(os.sched_getaffinity(0))


def server_contexts(
    config: Config, ticket_keys: TicketKeys, kept: dict[str, ServerContext] | None = None
) -> dict[str, ServerContext]:
    """The TLS contexts of listeners that terminate TLS.

    Raises ContextError, which names the file and what is wrong with it.
    """
    contexts = dict(kept or {})
    for section in sorted(config.listeners, key=lambda one: one.name):  # for `TicketKeys.base`
        if section.tls is None or section.name in contexts:
            continue
        settings = ServerSettings(
            tuple(CertificatePair(str(pair.certificate), str(pair.key)) for pair in section.tls.certificates),
            _text(section.tls.client_ca),
            (b"h2", b"http/1.1") if section.protocol == "http" else (),
            early_data=section.tls.early_data,
            min_version=section.tls.min_version,
        )
        contexts[section.name] = ServerContext(
            settings, name=section.name, ticket_keys=ticket_keys, replay_register=ticket_keys.replays
        )
    return contexts


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
