"""`serve`: from a config file to a program that runs, in the foreground.

It owns the order of a start that has nothing to undo: config, sockets, TLS contexts, then one process or a supervisor.
What begins after that is `program`'s.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from proxy.config import ConfigError, load_config
from proxy.observe.event_log import configure_log
from tlscache.certificates import ContextError
from tlscache.ticket_keys import TicketKeys

from . import inheritance as listening
from .contexts import server_contexts, worker_count
from .forkserver import ForkServer
from .program import EXIT_FAILED, Beginning
from .single import SingleProcess

if TYPE_CHECKING:
    import socket

    from proxy.config import Address
    from proxy.config.source import Source


def serve(
    path: str,
    fork_server: ForkServer | None = None,
    read: Source | None = None,
    bound: dict[tuple[Address, bool], socket.socket] | None = None,
) -> int:
    """Run the proxy in the foreground. Returns the exit code. `read` and `bound` are what the start already has: the
    file, and sockets by (address, fast open).
    """
    log = configure_log()
    path = str(Path(path).absolute())
    bound = bound or {}
    try:
        config = load_config(read or path)
    except ConfigError as error:
        listening.close_all(bound.values())
        for fault in error.faults:
            print(fault, file=sys.stderr)  # noqa: T201 - what `onetrip check` prints
        return EXIT_FAILED
    fork_server = fork_server or ForkServer(TicketKeys(), None, "this program was not started by its command")
    try:
        sockets = listening.open_sockets(config, bound)
        contexts = server_contexts(config, fork_server.keys)
    except (OSError, ContextError) as error:
        print(f"onetrip: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    if not contexts:
        fork_server.dismiss("no listener had TLS when this program started")
    beginning = Beginning(path, config, sockets, log, contexts, fork_server)
    if worker_count(config) == 1:
        try:
            return uvloop.run(SingleProcess(beginning).run())
        except OSError as error:  # while starting: the access log can't be opened, say
            print(f"onetrip: {error}", file=sys.stderr)  # noqa: T201
            return EXIT_FAILED
    from .supervisor import Supervisor  # noqa: PLC0415 - only where there are several workers

    return asyncio.run(Supervisor(beginning).run())
