"""The TLS sessions that a configuration asks for: their store, its size, its warnings, its samples.

It reads the configuration for `tlscache.cache`, which knows none; what is done with sessions stands there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tlscache.cache import SPARE, Sessions, session_keys
from tlscache.session_file import StoreError
from tlscache.sqlite_store import SQLiteStore
from tlscache.store import PER_SCOPE, MemoryStore

if TYPE_CHECKING:
    from proxy.config import Config
    from proxy.observe.metrics import Snapshot


def sessions_per_scope(config: Config, workers: int) -> int:
    """How many sessions of a scope are kept: what a restart's warm connections need, of all workers."""
    warm = max(upstream.pool.warm for upstream in config.upstreams.values())
    return max(PER_SCOPE, (warm + SPARE) * workers)


def open_sessions(config: Config, workers: int, log: Any) -> Sessions:
    """The store that the config asks for. Call it after forking. Where the file is of no use: a warning, and memory."""
    per_scope = sessions_per_scope(config, workers)
    section = config.sessions
    if section is not None:
        try:
            keys = session_keys(section.key.value)
            warn = _Warnings(log).write
            return Sessions(SQLiteStore(str(section.path), keys, per_scope=per_scope, warn=warn), workers=workers)
        except StoreError as error:
            log.error("sessions_in_memory_only", reason=str(error))
    return Sessions(MemoryStore(per_scope=per_scope))


def export_sessions(sessions: Sessions, snapshot: Snapshot) -> None:
    """What became of sessions, as samples."""
    for event, count in sessions.counts().items():
        snapshot.add("tls_sessions", count, event=event)


class _Warnings:
    """The store's warnings come from its thread: the loop's thread writes them."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()

    def write(self, text: str) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._write, text)

    def _write(self, text: str) -> None:
        self._log.warning("sessions", details=text)
