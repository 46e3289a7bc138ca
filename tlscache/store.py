"""Sessions between the connection that they came from and the one that they resume: by scope, newest first, used once.

Rules of every store
- A TLS 1.3 session is given out once, by one process (RFC 8446 appendix C.4); a TLS 1.2 one stays until it expires.
- An expired one is never given out. `now` is in seconds since 1970, because sessions outlive processes.
- Bounds: `per_scope` sessions of a scope, `total` altogether. Past them the oldest go.
- `put` and `pop` never wait, never raise for what the store holds, and a store that can't answer gives None: a full
  handshake does as well.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from .session import Scope, Session

PER_SCOPE: Final = 8
TOTAL: Final = 10_000


@dataclass(slots=True)
class StoreCounters:
    """What became of sessions since the start."""

    stored: int = 0
    taken: int = 0
    missed: int = 0
    expired: int = 0
    evicted: int = 0


class MemoryStore:
    """Sessions of one process, in memory."""

    def __init__(self, *, per_scope: int = PER_SCOPE, total: int = TOTAL) -> None:
        self.counters = StoreCounters()
        self._per_scope = per_scope
        self._total = total
        self._count = 0
        self._scopes: OrderedDict[bytes, list[Session]] = (
            OrderedDict()
        )  # least recently stored first; oldest session first

    def __repr__(self) -> str:
        return f"<MemoryStore {self._count} sessions of {len(self._scopes)} scopes>"

    def resize(self, per_scope: int) -> None:
        """Hold up to so many sessions of a scope from now on."""
        self._per_scope = per_scope

    def put(self, scope: Scope, session: Session, now: float) -> None:  # expiry is looked at by `pop`
        """Keep a session; the oldest of the scope, or of the scope stored least recently, makes room."""
        if self._per_scope <= 0 or self._total <= 0:
            return
        digest = scope.digest
        sessions = self._scopes.setdefault(digest, [])
        self._scopes.move_to_end(digest)
        sessions.append(session)
        self._count += 1
        self.counters.stored += 1
        if len(sessions) > self._per_scope:
            self._evict(digest)
        elif self._count > self._total:
            self._evict(next(iter(self._scopes)))

    def _evict(self, digest: bytes) -> None:
        sessions = self._scopes[digest]
        del sessions[0]
        self._count -= 1
        self.counters.evicted += 1
        if not sessions:
            del self._scopes[digest]

    def pop(self, scope: Scope, now: float) -> Session | None:
        """The newest session that can still be used, or None."""
        sessions = self._scopes.get(scope.digest)
        while sessions:
            session = sessions[-1]
            usable = session.facts.expires_at > now
            if usable and not session.facts.single_use:
                self.counters.taken += 1
                return session
            sessions.pop()
            self._count -= 1
            if not sessions:
                del self._scopes[scope.digest]
            if usable:
                self.counters.taken += 1
                return session
            self.counters.expired += 1
        self.counters.missed += 1
        return None

    def held(self, scope: Scope) -> int:
        """How many sessions of a scope are in memory, expired ones among them perhaps."""
        return len(self._scopes.get(scope.digest, ()))

    def count(self) -> int:
        """How many sessions are held, expired ones among them perhaps."""
        return self._count

    def close(self) -> None:
        """Forget everything."""
        self._scopes.clear()
        self._count = 0
