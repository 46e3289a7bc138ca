"""The TLS sessions of one worker: where connections take theirs from, and where their tickets go.

It owns which session a connection offers and what became of it; it never opens a socket and knows no configuration.

Rules
- Sessions are known by their scope: everything that the verification behind them depended on. A connection keeps the
  scope that it was dialled with, so a ticket that arrives after the CA file was replaced stays with the old one.
- Every dial offers a session where there is one, and every ticket of every connection is kept: a TLS 1.3 ticket is good
  for one connection, and a resumed connection brings one for the next.
- A restart opens as many connections as there are warm ones. `lacks_tickets` says when fewer tickets than that would
  still be good in a minute; the pool then dials once for more (at first after `TOP_UP_S`, less and less often where
  that brings none).
- The file, where there is one, is read before the first dials (for at most `PREFETCH_S`) and never while anybody waits.
- A program that starts its successor gives all of them back before (`release`): what it still dials itself while it
  drains is a full handshake. A successor that does not come up leaves them to it again (`reclaim`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from .engine import TLSEngine
from .session import Scope
from .sqlite_store import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from .context import ClientContext
    from .session import Session
    from .store import MemoryStore

EVENTS: Final = ("stored", "resumed", "rejected", "expired", "early_accepted", "early_rejected")
KEY_BYTES: Final = 32
PREFETCH_S: Final = 2.0
RELEASE_S: Final = 1.0
SPARE: Final = 2
"""Tickets beyond the warm connections': for a health check, and for a request that can't wait."""
FRESH_S: Final = 60.0
TOP_UP_S: Final = 10.0
TOP_UP_MAX_S: Final = 600.0


def wall_clock() -> float:
    """Seconds since 1970: tickets outlive processes."""
    return datetime.now(UTC).timestamp()


def session_keys(text: str) -> list[bytes]:
    """What `sessions.key` says, as keys of 32 bytes. The first one writes, all of them read.

    Several are separated by commas or newlines. One that is 32 bytes long is used as it is; of any other the key is
    derived by HKDF-SHA256 (RFC 5869; no salt, info "onetrip sessions").
    """
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - see `test_imports`
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - see `test_imports`

    keys = []
    for part in text.replace("\n", ",").split(","):
        secret = part.strip().encode()
        if secret and len(secret) != KEY_BYTES:
            secret = HKDF(SHA256(), KEY_BYTES, None, b"onetrip sessions").derive(secret)
        if secret:
            keys.append(secret)
    return keys


def scope_of(host: str, port: int, server_name: str, context: ClientContext) -> Scope:
    """Within which sessions of connections to `host` (or a socket's path) may be used, as `context` is now."""
    return Scope(host, port, context.host_name(server_name), context.scope_material)


class Sessions:
    """One worker's store and what became of its sessions."""

    def __init__(
        self, store: MemoryStore | SQLiteStore, clock: Callable[[], float] = wall_clock, workers: int = 1
    ) -> None:
        self.store = store
        self.clock = clock
        self.workers = workers
        self.events = dict.fromkeys(EVENTS, 0)

    def __repr__(self) -> str:
        return f"<Sessions {self.store} {self.events}>"

    def of(self, host: str, port: int, server_name: str, context: ClientContext) -> EndpointSessions:
        """Those of connections to `host` (or a socket's path) that are made to `server_name`. Make it anew when the
        context has loaded other files.
        """
        return EndpointSessions(self, scope_of(host, port, server_name, context), server_name, context)

    def resize(self, per_scope: int) -> None:
        """Keep up to so many sessions of a scope from now on."""
        self.store.resize(per_scope)

    async def prefetch(self, wanted: Iterable[tuple[EndpointSessions, int]]) -> None:
        """Have so many sessions of each in memory before they are dialled, and `SPARE` ones where no other worker
        starts, whose warm connections need them. Waits `PREFETCH_S` at most.
        """
        store = self.store
        if not isinstance(store, SQLiteStore):
            return
        now = self.clock()
        spare = SPARE if self.workers == 1 else 0
        asked: list[Future[int]] = [store.prefetch(one.scope, count + spare, now) for one, count in wanted]
        if asked:
            await asyncio.wait([asyncio.wrap_future(one) for one in asked], timeout=PREFETCH_S)

    async def release(self) -> None:
        """Let the successor have them all. Waits `RELEASE_S` at most, then it finds fewer."""
        if isinstance(self.store, SQLiteStore):
            await asyncio.wait([asyncio.wrap_future(self.store.release())], timeout=RELEASE_S)

    def reclaim(self) -> None:
        """There is no successor after all."""
        if isinstance(self.store, SQLiteStore):
            self.store.reclaim(self.clock())

    def counts(self) -> dict[str, int]:
        """What became of sessions, by event."""
        return {**self.events, "expired": self.store.counters.expired}

    async def close(self) -> None:
        """Leave the file to other processes."""
        await asyncio.get_running_loop().run_in_executor(None, self.store.close)


class EndpointSessions:
    """The sessions of connections to one endpoint, under a context as it was when this was made."""

    __slots__ = ("_expiries", "_next_top_up", "_sessions", "_top_up_s", "context", "scope", "server_name")

    def __init__(self, sessions: Sessions, scope: Scope, server_name: str, context: ClientContext) -> None:
        self.context = context
        self.server_name = server_name
        self.scope = scope
        self._sessions = sessions
        self._expiries: deque[float] = deque(maxlen=256)  # of the tickets that came and were not taken, oldest first
        self._next_top_up = 0.0
        self._top_up_s = TOP_UP_S

    def __repr__(self) -> str:
        return f"<EndpointSessions {self.scope.host}:{self.scope.port} {self.held} held>"

    @property
    def held(self) -> int:
        """How many are in memory."""
        return self._sessions.store.held(self.scope)

    def take(self) -> Session | None:
        """A session to offer."""
        session = self._sessions.store.pop(self.scope, self._sessions.clock())
        if session is not None and session.facts.single_use and self._expiries:
            self._expiries.pop()
        return session

    def give_back(self, session: Session) -> None:
        """It was offered, and refused unread: the endpoint took no connection (Fast Open)."""
        sessions = self._sessions
        sessions.store.put(self.scope, session, sessions.clock())
        self._expiries.append(session.facts.expires_at)

    def new_engine(self, session: Session | None) -> TLSEngine:
        """A TLS engine for a new connection, which offers `session`."""
        return TLSEngine(self.context, server_name=self.server_name, session=session)

    def keep(self, engine: TLSEngine) -> None:
        """Keep the tickets that came."""
        sessions = self._sessions
        now = sessions.clock()
        for session in engine.tickets:
            if session.facts.expires_at > now:
                sessions.store.put(self.scope, session, now)
                sessions.events["stored"] += 1
                self._expiries.append(session.facts.expires_at)
        engine.tickets.clear()

    def settle(self, session: Session | None, engine: TLSEngine) -> str:
        """A handshake is complete: count what became of what it offered. Returns its kind."""
        events = self._sessions.events
        if session is not None:
            events["resumed" if engine.resumed else "rejected"] += 1
        if engine.early == "accepted":
            events["early_accepted"] += 1
            return "early"
        if engine.early == "rejected":
            events["early_rejected"] += 1
        return "resumed" if engine.resumed else "full"

    def lacks_tickets(self, wanted: int, now: float) -> bool:
        """Whether a dial is due that brings tickets for a restart (`now` is monotonic). Answers True once."""
        horizon = self._sessions.clock() + FRESH_S
        fresh = min(self.held, sum(1 for expiry in self._expiries if expiry > horizon))
        if not wanted or fresh >= wanted:
            self._top_up_s = TOP_UP_S
            self._next_top_up = 0.0
            return False
        if not self._next_top_up:
            self._next_top_up = now + self._top_up_s
        if now < self._next_top_up:
            return False
        self._top_up_s = min(TOP_UP_MAX_S, self._top_up_s * 2)
        self._next_top_up = now + self._top_up_s
        return True
