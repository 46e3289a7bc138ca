"""Sessions that outlive the process: a front in memory, and a thread that keeps a file in step with it.

    put ──► front (this process's sessions) ──► pop          the event loop: memory only, a few microseconds
             │ changes, in order       ▲ claimed rows
             ▼                         │
            thread ──► SessionFile (shared by workers, survives them)

- `put` keeps the session in the front and has the thread write it, owned by this process. `pop` takes it from the front
  and has the thread remove the row. What the front has no room for is left to other processes in the file.
- `prefetch` has the thread claim free rows for the front: at the start for every scope that will be dialled. A `pop`
  that takes the last one, or finds none, asks for some itself, for the next time.
- `release` gives the whole front back, for the program that is about to replace this one: from then on nothing is
  given out here, and what is put goes to the others, until `reclaim`.
- A file that is locked, or can't be used for now (a full disk), is a miss, and its changes are tried again; the latter
  is a warning (at most one a minute). Past `QUEUE_MAX` waiting changes new sessions are not written, past twice that
  nothing is.
Make it after forking: it has a thread. `warn` and the callbacks of futures run on that thread.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, NamedTuple

from .session import Scope, Session
from .session_file import NONSENSE, SessionFile
from .store import PER_SCOPE, StoreCounters

TOTAL: Final = 100_000
QUEUE_MAX: Final = 10_000
BATCH_MAX: Final = 256  # changes in one transaction
MAINTENANCE_S: Final = 30.0
WARNING_S: Final = 60.0
ASK_AGAIN_S: Final = 1.0  # a scope of which the file had nothing is not asked for again at once
SCOPES_ASKED_MAX: Final = 10_000
CLOSE_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 1.0  # after a failure that is no lock
_NEVER: Final = float("-inf")
_NO_FILE: Final = -1


class _Entry:
    """A session in the front. `row` is its place in the file of that `generation`, 0 while it has none.

    `taken`: it has been used. `shared`: it has left the front for other processes.
    """

    __slots__ = ("digest", "generation", "row", "session", "shared", "taken")

    def __init__(self, digest: bytes, session: Session, row: int = 0, generation: int = 0) -> None:
        self.digest = digest
        self.session = session
        self.row = row
        self.generation = generation
        self.shared = False
        self.taken = False


class _Change(NamedTuple):
    """Something for the thread to do: a method and its arguments.

    `done` is told how many sessions of `digest` there are then. Where the file is locked, that is a miss for whoever
    waits, unless he is `patient`; what nobody waits for is tried again.
    """

    method: Callable[..., None] | None  # None: end
    arguments: tuple[Any, ...] = ()
    done: Future[int] | None = None
    digest: bytes = b""
    patient: bool = False


class SQLiteStore:
    """Sessions in memory and in the file at `path`; the rules are on top of `store` and of this module.

    `keys`: secrets of at least 16 bytes; the first encrypts, all of them decrypt. `per_scope` bounds the sessions of a
    scope in this process, and those that are free for any; `total` the rows of the file. StoreError where the path or a
    key can't do.
    """

    def __init__(
        self,
        path: str,
        keys: Sequence[bytes],
        *,
        per_scope: int = PER_SCOPE,
        total: int = TOTAL,
        warn: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = lambda: datetime.now(UTC).timestamp(),
    ) -> None:
        self.counters = StoreCounters()
        self._per_scope = per_scope
        self._warn = warn
        self._clock = clock
        self._file = SessionFile(path, keys, per_scope=per_scope, total=total, warn=warn)
        self._lock = threading.Lock()  # guards the front
        self._front: dict[bytes, list[_Entry]] = {}  # oldest first; empty while `_released`
        self._released = False
        self._given_back: dict[bytes, int] = {}  # what was released, by scope
        self._asked: dict[bytes, float] = {}
        self._changes: queue.SimpleQueue[_Change] = queue.SimpleQueue()
        self._closed = False
        self._rows = 0
        # The thread's own: what the transaction under way has written and claimed.
        self._written: list[_Entry] = []
        self._claimed: list[_Entry] = []
        self._removed = 0
        self._generation = _NO_FILE
        self._maintained_at = self._warned_at = _NEVER
        self._thread = threading.Thread(target=self._run, name="onetrip-sessions", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._file.path} {self._rows} sessions, {self._changes.qsize()} changes waiting>"

    # ---- the event loop's side: memory only

    def put(self, scope: Scope, session: Session, now: float) -> None:  # expiry is looked at by `pop`
        """Keep a session."""
        digest = scope.digest
        entry = _Entry(digest, session)
        with self._lock:
            entries = self._front.setdefault(digest, [])
            entries.append(entry)
            spare = entries.pop(0) if len(entries) > self._per_scope or self._released else None
        self.counters.stored += 1
        if self._changes.qsize() < QUEUE_MAX:
            self._changes.put(_Change(self._add, (entry,)))
        else:
            self.counters.evicted += 1
        if spare is not None:
            self._change(_Change(self._share, (spare,)))

    def pop(self, scope: Scope, now: float) -> Session | None:
        """The newest session that can still be used, or None."""
        digest = scope.digest
        found = None
        with self._lock:
            entries = self._front.get(digest, [])
            while entries and found is None:
                entry = entries[-1]
                facts = entry.session.facts
                if facts.expires_at > now:
                    found = entry.session
                    if not facts.single_use:
                        break
                else:
                    self.counters.expired += 1
                entries.pop()
                entry.taken = True
                self._change(_Change(self._remove, (entry,)))
            last = not entries
            if last:
                self._front.pop(digest, None)
        if last:
            self._ask(digest, now)
        if found is None:
            self.counters.missed += 1
        else:
            self.counters.taken += 1
        return found

    def _change(self, change: _Change) -> None:
        if self._changes.qsize() < 2 * QUEUE_MAX:
            self._changes.put(change)

    def _ask(self, digest: bytes, now: float) -> None:
        moment = monotonic()
        if self._released or moment - self._asked.get(digest, _NEVER) < ASK_AGAIN_S:
            return
        if len(self._asked) >= SCOPES_ASKED_MAX:
            self._asked.clear()
        self._asked[digest] = moment
        self._change(_Change(self._claim, (digest, max(1, self._per_scope // 2), now)))

    def prefetch(self, scope: Scope, count: int, now: float) -> Future[int]:
        """Have up to `count` sessions of a scope in memory, from the file where need be. For `ASK_AGAIN_S` a `pop` then
        asks for no more: other processes start as well, and want theirs.

        The result: how many there are.
        """
        done: Future[int] = Future()
        held = self.held(scope)
        if held >= count or self._closed or self._released:
            done.set_result(held)
        else:
            self._asked[scope.digest] = monotonic()
            arguments = (scope.digest, min(count, self._per_scope) - held, now)
            self._changes.put(_Change(self._claim, arguments, done, scope.digest))
        return done

    def release(self) -> Future[int]:
        """Let other processes have every session; the result is there when they can find them.

        A session is out of memory before its row is free: whoever claims it is the only one that can use it.
        """
        with self._lock:
            self._released = True
            entries = [entry for entries in self._front.values() for entry in entries]
            self._given_back = {digest: len(entries) for digest, entries in self._front.items()}
            self._front.clear()
        done: Future[int] = Future()
        if self._closed:
            done.set_result(0)
        else:
            self._changes.put(_Change(self._share, tuple(entries), done, patient=True))
        return done

    def reclaim(self, now: float) -> None:
        """The other program did not come up: hold sessions again, and have what it left."""
        with self._lock:
            self._released = False
            given_back, self._given_back = self._given_back, {}
        for digest, count in given_back.items():
            self._changes.put(_Change(self._claim, (digest, count, now)))

    def resize(self, per_scope: int) -> None:
        """Hold up to so many sessions of a scope from now on."""
        self._per_scope = self._file.per_scope = per_scope

    def held(self, scope: Scope) -> int:
        """How many sessions of a scope are in memory, expired ones among them perhaps."""
        return len(self._front.get(scope.digest, ()))

    def count(self) -> int:
        """How many sessions are in the file, as far as this process knows."""
        return self._rows

    def flush(self) -> None:
        """Wait until everything asked for so far is in the file, or has failed.

        For tests, measurements and the last moment.
        """
        done: Future[int] = Future()
        self._changes.put(_Change(lambda: None, (), done))
        done.result(CLOSE_TIMEOUT_S)

    def close(self) -> None:
        """Write what is waiting, leave everything to other processes, end the thread (bounded). Idempotent."""
        if not self._closed:
            self._closed = True
            self._changes.put(_Change(None))
        self._thread.join(CLOSE_TIMEOUT_S)

    # ---- the thread's side

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch = self._next_batch()
            stopping = any(change.method is None for change in batch)
            again = not self._apply(batch) and not stopping
            for change in batch:
                if again and (change.done is None or change.patient):
                    self._changes.put(change)  # behind what came meanwhile: `taken` and `shared` make every order right
                elif change.done is not None and change.done.set_running_or_notify_cancel():
                    change.done.set_result(len(self._front.get(change.digest, ())))
        try:
            self._file.close()
        except (sqlite3.Error, OSError, *NONSENSE) as error:
            self._complain(str(error))

    def _next_batch(self) -> list[_Change]:
        batch = []
        try:
            batch.append(self._changes.get(timeout=0 if self._maintained_at == _NEVER else MAINTENANCE_S))
            while len(batch) < BATCH_MAX:
                batch.append(self._changes.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _apply(self, batch: list[_Change]) -> bool:
        # One transaction. False: another try may help.
        try:
            self._file.open()
            self._file.begin()
            if self._generation != self._file.generation:
                self._begin_file()
            for change in batch:
                if change.method is not None:
                    change.method(*change.arguments)
            if monotonic() - self._maintained_at >= MAINTENANCE_S:
                self._file.free_the_dead()
                self._rows = self._file.purge(self._clock()) - len(self._written) + self._removed
                self._maintained_at = monotonic()
            self._file.commit()
        except (sqlite3.Error, OSError, *NONSENSE) as error:
            return self._undo(error)
        self._settle()
        return True

    def _begin_file(self) -> None:
        # The first one, whose changes are all waiting; or another than before, without our sessions.
        before, self._generation = self._generation, self._file.generation
        if before == _NO_FILE:
            return
        with self._lock:
            held = [entry for entries in self._front.values() for entry in entries]
        for entry in held:
            self._add(entry)

    def _undo(self, error: Exception) -> bool:
        for entry in self._written:
            entry.row = 0
        self._written.clear()
        self._claimed.clear()
        self._removed = 0
        self._generation = 0  # what this file lacks is found out again
        self._file.rollback()
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return False
        if not isinstance(error, OSError) and self._file.damaged(error):
            self._changes.put(_Change(lambda: None))  # begins a new file, with what there is in memory
            return True
        self._complain(f"sessions are kept in memory only: {error}")
        time.sleep(RETRY_S)
        return False

    def _settle(self) -> None:
        # The transaction is committed: what it claimed may be used.
        self._rows += len(self._written) - self._removed
        self._written.clear()
        self._removed = 0
        with self._lock:
            if not self._released:
                for entry in self._claimed:  # newest first, and all of them older than what is there
                    self._front.setdefault(entry.digest, []).insert(0, entry)
            elif self._claimed:
                self._changes.put(_Change(self._share, tuple(self._claimed)))
        self._claimed.clear()

    def _complain(self, text: str) -> None:
        if monotonic() - self._warned_at >= WARNING_S:
            self._warned_at = monotonic()
            self._warn(f"{self._file.path}: {text}")

    def _add(self, entry: _Entry) -> None:
        if entry.taken or self._row(entry) or entry.session.facts.expires_at <= self._clock():
            return
        entry.row, entry.generation = self._file.add(entry.digest, entry.session), self._generation
        self._written.append(entry)
        if entry.shared:
            self._file.share(entry.digest, entry.row)

    def _remove(self, entry: _Entry) -> None:
        if self._row(entry):
            self._file.remove(entry.row)
            self._removed += 1

    def _share(self, *entries: _Entry) -> None:
        for entry in entries:
            entry.shared = True
            if self._row(entry):
                self._file.share(entry.digest, entry.row)

    def _row(self, entry: _Entry) -> int:
        return entry.row if entry.generation == self._generation else 0

    def _claim(self, digest: bytes, limit: int, now: float) -> None:
        self._claimed += [
            _Entry(digest, session, row, self._generation) for row, session in self._file.claim(digest, limit, now)
        ]
