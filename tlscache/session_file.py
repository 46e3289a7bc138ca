"""Sessions in a SQLite file that processes share and that outlives them; a thread of `sqlite_store` calls it.

What is where
- A row is one session. Its value is AES-256-GCM under a key derived from the operator's; its scope is an HMAC under
  another one, so the file tells neither whom we talk to nor anything to talk to them with. Scope and expiry are
  authenticated with the value: a row moved to another scope does not decrypt. New rows are written under the first key,
  rows under the others can still be read.
- A row has an owner: 0, when any process may claim it, or the number of the process that holds it in memory as well. A
  number is a byte of `<path>-owners` that its process has locked: the kernel lets go of it whenever and however the
  process ends, and its rows are free again. So no two live processes ever hold the same session, and none is lost to
  `kill -9`.

What can happen to it
- A file that is corrupt, or something else than our database, is set aside (renamed), and a new one begun. `warn` is
  told.
- A file that was deleted or replaced while it was open is opened anew. `generation` counts the files that this one has
  been: the rows of one are nobody's in the next.
- Somebody else's lock, a full disk: sqlite3.OperationalError, and the caller carries on without.
WAL with synchronous=NORMAL: a process that is killed loses what it had not committed, a power cut perhaps the last
commits as well.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import sqlite3
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .session import Session

KEY_BYTES_MIN: Final = 16
BUSY_TIMEOUT_S: Final = 0.2
OWNERS_MAX: Final = 4096
_APPLICATION_ID: Final = 0x6F6E6574  # "onet"
_VERSION: Final = 1
_NONCE_BYTES: Final = 12
_SCOPE_BYTES: Final = 16
_SCHEMA: Final = (
    "CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, scope BLOB NOT NULL, owner INTEGER NOT NULL, "
    "expires INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL)",
    # One index, because each costs every write: what asks by owner or expiry alone reads through it, a few megabytes.
    "CREATE INDEX by_scope ON sessions (scope, owner, expires)",
)
NONSENSE: Final = (ValueError, TypeError, AttributeError, ArithmeticError, LookupError, struct.error)
"""What reading a file that somebody else has written to raises besides sqlite3.Error: SQLite has no types, and quotes
bytes that are no text.
"""
_FREE: Final = "UPDATE sessions SET owner = 0 WHERE id IN (SELECT id FROM sessions WHERE owner = ?)"
_FLOCK: Final = struct.Struct("hhqqi")  # struct flock of 64-bit Linux


class StoreError(ValueError):
    """A path or a key that sessions can't be kept with."""


class _Key:
    """One of the operator's keys, as the two that are derived from it and a name for it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < KEY_BYTES_MIN:
            raise StoreError(f"a session key has at least {KEY_BYTES_MIN} bytes, this one has {len(secret)}")
        self.cipher = AESGCM(hmac.digest(secret, b"onetrip sessions: values", "sha256"))
        self._scope_key = hmac.digest(secret, b"onetrip sessions: scopes", "sha256")
        self.name = hmac.digest(secret, b"onetrip sessions: name", "sha256")[:4]

    def scope(self, digest: bytes) -> bytes:
        return hmac.digest(self._scope_key, digest, "sha256")[:_SCOPE_BYTES]


class SessionFile:
    """The file at `path`. `keys`: the first writes, all of them read. `warn` is told what an operator should know.

    `per_scope` bounds the rows of a scope that nobody owns, `total` all rows. StoreError where the path or a key can't
    do.
    """

    def __init__(
        self,
        path: str,
        keys: Sequence[bytes],
        *,
        per_scope: int,
        total: int,
        warn: Callable[[str], None],
    ) -> None:
        if not keys:
            raise StoreError("sessions on disk need a key")
        self.path = os.path.abspath(path)
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            raise StoreError(f"{self.path}: the directory {directory} does not exist")
        if os.path.exists(self.path) and not stat.S_ISREG(os.stat(self.path).st_mode):
            raise StoreError(f"{self.path}: not a regular file")
        self._keys = [_Key(secret) for secret in keys]
        self._keys_by_name = {key.name: key for key in reversed(self._keys)}
        self.per_scope = per_scope
        self._total = total
        self._warn = warn
        self._inode: tuple[int, int] | None = None
        self._database: sqlite3.Connection | None = None
        self._owners = -1
        self._owner = 0
        self.generation = 0

    # ---- opening

    def open(self) -> None:
        """Open the file if it is not open (or no longer the one at `path`).

        OSError or sqlite3.Error where that fails.
        """
        if self._database is not None:
            if self._inode == _inode(self.path):
                return
            self._warn(f"{self.path}: was replaced while in use, opening the new one")
            self.generation += 1
            self.disconnect()
        if self._owners < 0:
            self._owners = os.open(f"{self.path}-owners", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._owner = self._take_number()
        _lock(self._owners, 0, fcntl.F_WRLCK, wait=True)  # one process at a time creates, or sets aside
        try:
            try:
                self._connect()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                    raise
                self._set_aside(str(error))
                self._connect()
        finally:
            _lock(self._owners, 0, fcntl.F_UNLCK)

    def _take_number(self) -> int:
        for number in range(1, OWNERS_MAX):
            if _lock(self._owners, number, fcntl.F_WRLCK):
                return number
        raise OSError(f"{self.path}: more than {OWNERS_MAX} processes")

    def _connect(self) -> None:
        self.disconnect()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            os.fchmod(descriptor, 0o600)
            self._warn(f"{self.path}: was readable by others (mode {mode:o}), now 600")
        os.close(descriptor)
        self._inode = _inode(self.path)
        database = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._database = database
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA cell_size_check = ON")
        found = [
            sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
        ]
        if not found or not self.generation:
            self.generation += 1
        if not found:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {_VERSION}")
            database.execute("COMMIT")
        else:
            identity = (
                database.execute("PRAGMA application_id").fetchone(),
                database.execute("PRAGMA user_version").fetchone(),
            )
            ours = [sql for sql in found if "sqlite_sequence" not in sql]
            if identity != ((_APPLICATION_ID,), (_VERSION,)) or tuple(ours) != _SCHEMA:
                raise sqlite3.DatabaseError("not a session file of this version of onetrip")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_size_limit = 4194304")
        database.execute(_FREE, (self._owner,))  # of an earlier process
        self.free_the_dead()

    def _set_aside(self, why: str) -> None:
        self.disconnect()
        number = 1
        while os.path.lexists(aside := f"{self.path}.set-aside-{number}"):
            number += 1
        for suffix in ("", "-wal", "-shm"):
            if os.path.lexists(self.path + suffix):
                os.rename(self.path + suffix, aside + suffix)
        self._warn(f"{self.path}: {why}; set aside as {aside}, beginning a new one")

    def damaged(self, error: Exception) -> bool:
        """Whether an error means that the file is no good. If so it has been set aside: `open` begins a new one."""
        if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
            return False
        if self._inode == _inode(self.path):
            _lock(self._owners, 0, fcntl.F_WRLCK, wait=True)
            try:
                self._set_aside(str(error))
            finally:
                _lock(self._owners, 0, fcntl.F_UNLCK)
        else:
            self.disconnect()
        return True

    def disconnect(self) -> None:
        """Close the database; the rows stay ours."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def close(self) -> None:
        """Free our rows for other processes and close everything."""
        try:
            if self._database is not None:
                self._database.execute(_FREE, (self._owner,))
        finally:
            self.disconnect()
            if self._owners >= 0:
                os.close(self._owners)  # lets go of our number
                self._owners = -1

    # ---- rows

    def begin(self) -> None:
        """Start a transaction that will write."""
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make it last."""
        self._execute("COMMIT")

    def rollback(self) -> None:
        """Undo it, if one is under way."""
        try:
            if self._database is not None and self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error:
            self.disconnect()

    def add(self, digest: bytes, session: Session) -> int:
        """Write a session that this process holds as well; return its row."""
        key = self._keys[0]
        scope = key.scope(digest)
        expires = int(session.facts.expires_at)
        nonce = os.urandom(_NONCE_BYTES)
        value = nonce + key.cipher.encrypt(nonce, session.to_bytes(), _bound(scope, expires))
        cursor = self._execute(
            "INSERT INTO sessions (scope, owner, expires, key, value) VALUES (?, ?, ?, ?, ?)",
            (scope, self._owner, expires, key.name, value),
        )
        return cursor.lastrowid or 0

    def remove(self, row: int) -> None:
        """Forget a session of ours that has been used."""
        self._execute("DELETE FROM sessions WHERE id = ? AND owner = ?", (row, self._owner))

    def share(self, digest: bytes, row: int) -> None:
        """Let other processes have a session of ours; the oldest free ones of its scope make room."""
        # Said twice, it must not free what another process has claimed in between.
        self._execute("UPDATE sessions SET owner = 0 WHERE id = ? AND owner = ?", (row, self._owner))
        for key in self._keys:
            self._execute(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE scope = ? AND owner = 0 "
                "ORDER BY id DESC LIMIT -1 OFFSET ?)",
                (key.scope(digest), self.per_scope),
            )

    def claim(self, digest: bytes, limit: int, now: float) -> list[tuple[int, Session]]:
        """Take up to `limit` free sessions of a scope for this process, newest first: (row, session)."""
        found: list[tuple[int, Session]] = []
        for key in self._keys if limit > 0 else ():  # to SQLite a negative limit is none
            if len(found) >= limit:
                break
            rows = self._execute(
                "UPDATE sessions SET owner = ? WHERE id IN (SELECT id FROM sessions WHERE scope = ? AND owner = 0 "
                "AND expires > ? ORDER BY id DESC LIMIT ?) RETURNING id, scope, expires, key, value",
                (self._owner, key.scope(digest), int(now), limit - len(found)),
            ).fetchall()
            for row, scope, expires, name, value in sorted(rows, reverse=True):
                session = self._decrypt(scope, expires, name, value)
                if session is None:
                    self.remove(row)
                else:
                    found.append((row, session))
        return found

    def _decrypt(self, scope: bytes, expires: int, name: bytes, value: bytes) -> Session | None:
        key = self._keys_by_name.get(name)
        if key is None:
            return None
        try:
            plain = key.cipher.decrypt(value[:_NONCE_BYTES], value[_NONCE_BYTES:], _bound(scope, expires))
        except (InvalidTag, *NONSENSE):
            self._warn(f"{self.path}: a session in it was tampered with; removed")
            return None
        return Session.from_bytes(plain)

    def purge(self, now: float) -> int:
        """Remove what has expired, and the oldest past `total`; return how many are left."""
        self._execute("DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires <= ?)", (int(now),))
        count = self.count()
        if count > self._total:
            self._execute(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions ORDER BY id LIMIT ?)", (count - self._total,)
            )
        return min(count, self._total)

    def count(self) -> int:
        """How many rows there are."""
        return int(self._execute("SELECT count(*) FROM sessions").fetchone()[0])

    def free_the_dead(self) -> None:
        """Free the rows of processes that have ended without doing so."""
        numbers = "typeof(owner) = 'integer' AND owner BETWEEN 1 AND ?"
        rows = self._execute(
            f"SELECT DISTINCT owner FROM sessions WHERE {numbers} AND owner != ?",  # noqa: S608 - a constant
            (OWNERS_MAX, self._owner),
        )
        for (owner,) in rows.fetchall():
            if _lock(self._owners, owner, fcntl.F_WRLCK):  # held while its rows change: no newcomer takes the number
                try:
                    self._execute(_FREE, (owner,))
                finally:
                    _lock(self._owners, owner, fcntl.F_UNLCK)

    def _execute(self, statement: str, values: Iterable[object] = ()) -> sqlite3.Cursor:
        if self._database is None:
            raise sqlite3.OperationalError(f"{self.path} is not open")
        return self._database.execute(statement, tuple(values))


def _bound(scope: bytes, expires: int) -> bytes:
    return scope + expires.to_bytes(8, "big")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lock(descriptor: int, place: int, kind: int, *, wait: bool = False) -> bool:
    # Open file description locks: unlike POSIX ones they belong to this descriptor, and not to all of the process.
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_damage(error: sqlite3.OperationalError) -> bool:
    text = str(error)
    return any(word in text for word in ("malformed", "no such table", "no such column", "disk I/O error: corrupt"))
