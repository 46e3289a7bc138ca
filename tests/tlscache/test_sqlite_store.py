"""Sessions on disk: shared by processes, out of a killed one's hands, behind damage, locks and other people's files."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tlscache import session_file
from tlscache.session import Facts, Scope, Session
from tlscache.session_file import SessionFile, StoreError
from tlscache.sqlite_store import SQLiteStore

KEY, OTHER_KEY = b"k" * 32, b"o" * 16
NOW = 1000.0
A, B = Scope("a.test", 443, "a.test"), Scope("b.test", 443, "b.test")


@pytest.fixture(autouse=True)
def plain_sessions(monkeypatch):
    """Sessions in these tests are a number and an end: what OpenSSL encodes is parsed in test_session."""
    monkeypatch.setattr("tlscache.session._parse", lambda der, _at: Facts(expires_at=float(der.partition(b" ")[0])))


def session(number=0, expires_at=NOW + 500, size=0):
    return Session(b"%d %d " % (expires_at, number) + bytes(size), 0.0)


def number_of(found):
    return None if found is None else int(found.der.split()[1])


class Stores:
    """Makes stores of one path, as processes would, and closes them."""

    def __init__(self, path):
        self.path = str(path)
        self.warnings = []
        self.open = []

    def __call__(self, keys=(KEY,), **settings):
        settings = {"warn": self.warnings.append, "clock": lambda: NOW, **settings}
        store = SQLiteStore(self.path, keys, **settings)
        self.open.append(store)
        return store

    def rows(self, columns="count(*)"):
        with sqlite3.connect(self.path) as database:
            return database.execute(f"SELECT {columns} FROM sessions").fetchall()


@pytest.fixture
def stores(tmp_path):
    made = Stores(tmp_path / "sessions.db")
    yield made
    for store in made.open:
        store.close()


def fetch(store, scope, count=8):
    return store.prefetch(scope, count, NOW).result(5)


# ---- one process after the other


def test_sessions_survive_a_restart_newest_first(stores):
    first = stores()
    for number in range(3):
        first.put(A, session(number), NOW)
    first.close()
    second = stores()
    assert second.pop(A, NOW) is None  # nothing in memory yet, and nothing waits for the disk
    assert fetch(second, A) == 3
    assert [number_of(second.pop(A, NOW)) for _ in range(4)] == [2, 1, 0, None]


def test_what_was_used_is_gone(stores):
    first = stores()
    first.put(A, session(1), NOW)
    first.put(A, session(2), NOW)
    assert number_of(first.pop(A, NOW)) == 2
    first.close()
    second = stores()
    assert fetch(second, A) == 1
    assert number_of(second.pop(A, NOW)) == 1
    second.flush()
    assert stores.rows() == [(0,)]


def test_a_session_that_was_used_before_it_was_written_is_not_written(stores):
    store = stores()
    store.flush()
    blocker = sqlite3.connect(stores.path)
    blocker.execute("BEGIN IMMEDIATE")
    store.put(A, session(1), NOW)
    assert number_of(store.pop(A, NOW)) == 1
    blocker.rollback()
    store.flush()
    store.close()
    assert stores.rows() == [(0,)]


def test_tls12_sessions_stay(stores, monkeypatch):
    monkeypatch.setattr("tlscache.session._parse", lambda der, _at: Facts(expires_at=NOW + 9, single_use=False))
    first = stores()
    first.put(A, session(1), NOW)
    assert first.pop(A, NOW) is first.pop(A, NOW) is not None
    first.close()
    assert fetch(stores(), A) == 1


def test_expired_sessions_are_purged_and_never_given_out(stores):
    first = stores()
    first.put(A, session(1, expires_at=NOW + 10), NOW)
    first.put(A, session(2, expires_at=NOW - 1), NOW)
    first.close()
    assert stores.rows() == [(1,)]
    second = stores(clock=lambda: NOW + 10)
    assert fetch(second, A) == 0
    assert stores.rows() == [(0,)]


def test_prefetch_answers_at_once_where_memory_has_enough(stores):
    store = stores()
    store.put(A, session(1), NOW)
    future = store.prefetch(A, 1, NOW)
    assert future.done()
    assert future.result() == 1


def test_a_miss_asks_for_the_next_time(stores):
    first = stores()
    first.put(A, session(1), NOW)
    first.close()
    second = stores()
    assert second.pop(A, NOW) is None
    second.flush()
    assert number_of(second.pop(A, NOW)) == 1


# ---- several processes


def test_two_stores_never_give_out_the_same(stores):
    first = stores(per_scope=64)
    for number in range(64):
        first.put(A, session(number), NOW)
    first.close()
    one, two = stores(per_scope=64), stores(per_scope=64)
    for _ in range(8):
        one.prefetch(A, one.held(A) + 3, NOW)
        two.prefetch(A, two.held(A) + 3, NOW)
    one.flush()
    two.flush()
    given = [number_of(store.pop(A, NOW)) for store in (one, two) for _ in range(store.held(A))]
    assert len(given) == len(set(given)) == one.counters.taken + two.counters.taken > 20


def test_what_one_has_no_room_for_another_may_have(stores):
    one, two = stores(per_scope=2), stores(per_scope=2)
    for number in range(6):
        one.put(A, session(number), NOW)
    one.flush()
    assert (one.held(A), fetch(two, A)) == (2, 2)
    assert [number_of(two.pop(A, NOW)) for _ in range(2)] == [3, 2]
    assert [number_of(one.pop(A, NOW)) for _ in range(2)] == [5, 4]


def test_a_live_processs_sessions_are_its_own(stores):
    one, two = stores(), stores()
    one.put(A, session(1), NOW)
    one.flush()
    assert fetch(two, A) == 0


def run(script, *arguments):
    script = (
        f"import sys\nsys.path.insert(0, {os.path.dirname(os.path.dirname(session_file.__file__))!r})\n"
        + """
import tlscache.session
from tlscache.session import Facts, Scope, Session
from tlscache.sqlite_store import SQLiteStore
tlscache.session._parse = lambda der, _at: Facts(expires_at=float(der.partition(b" ")[0]))
A = Scope("a.test", 443, "a.test")
def session(number):
    return Session(b"1500 %d " % number + bytes(600), 0.0)
store = SQLiteStore(sys.argv[1], [b"k" * 32], per_scope=int(sys.argv[2]), clock=lambda: 1000.0)
"""
        + textwrap.dedent(script)
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_a_killed_process_loses_nothing_that_was_written(stores):
    process = run(
        """
        for number in range(8):
            store.put(A, session(number), 1000.0)
        print([int(store.pop(A, 1000.0).der.split()[1]) for _ in range(3)], flush=True)
        store.flush()
        print("written", flush=True)
        sys.stdin.read()
        """,
        stores.path,
        8,
    )
    assert process.stdout.readline() == "[7, 6, 5]\n"
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = stores()
    assert fetch(store, A) == 5
    assert [number_of(store.pop(A, NOW)) for _ in range(5)] == [4, 3, 2, 1, 0]
    assert stores.warnings == []


def test_a_killed_processs_sessions_are_freed_by_the_others(stores, monkeypatch):
    monkeypatch.setattr("tlscache.sqlite_store.MAINTENANCE_S", 0.0)
    survivor = stores()
    survivor.flush()
    process = run(
        """
        store.put(A, session(1), 1000.0)
        store.flush()
        print("written", flush=True)
        sys.stdin.read()
        """,
        stores.path,
        8,
    )
    assert process.stdout.readline() == "written\n"
    survivor.flush()
    assert fetch(survivor, A) == 0  # its owner lives
    process.kill()
    process.wait()
    survivor.flush()
    assert fetch(survivor, A) == 1


def test_killed_in_the_middle_of_writes(stores):
    for _ in range(3):
        process = run(
            """
            number = 0
            while True:
                store.put(A, session(number), 1000.0)
                number += 1
                if number == 200:
                    store.flush()
                    print("busy", flush=True)
            """,
            stores.path,
            50,
        )
        assert process.stdout.readline() == "busy\n"
        process.kill()
        process.wait()
    store = stores(per_scope=50)
    assert fetch(store, A, 50) > 0
    store.close()
    with sqlite3.connect(stores.path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert stores.warnings == []


def test_processes_popping_at_once_get_each_session_once(stores):
    store = stores(per_scope=300)
    for number in range(300):
        store.put(A, session(number, size=600), NOW)
    store.close()
    script = """
        found = []
        while True:
            if store.prefetch(A, 5, 1000.0).result(10) == 0:
                break
            while (one := store.pop(A, 1000.0)) is not None:
                found.append(int(one.der.split()[1]))
        store.close()
        print(*found)
    """
    processes = [run(script, stores.path, 300) for _ in range(3)]
    given = [number for process in processes for number in process.communicate(timeout=60)[0].split()]
    assert sorted(map(int, given)) == list(range(300))


# ---- one process in another one's place


def test_what_is_released_is_the_others(stores):
    old, new = stores(), stores()
    for number in range(3):
        old.put(A, session(number), NOW)
    assert old.release().result(5) == 0
    assert fetch(new, A) == 3
    assert [number_of(new.pop(A, NOW)) for _ in range(4)] == [2, 1, 0, None]
    assert old.pop(A, NOW) is None


def test_what_comes_after_a_release_is_the_others_too(stores):
    old, new = stores(), stores()
    old.release()
    old.put(A, session(1), NOW)
    assert old.pop(A, NOW) is None
    assert fetch(old, A) == 0
    old.flush()
    assert fetch(new, A) == 1


def test_a_claim_under_way_does_not_outlast_a_release(stores):
    before = stores()
    before.put(A, session(1), NOW)
    before.close()
    old, new = stores(), stores()
    old.flush()
    blocker = sqlite3.connect(stores.path)
    blocker.execute("BEGIN IMMEDIATE")
    assert old.pop(A, NOW) is None  # asks the file for the next time, and waits for its lock
    released = old.release()
    blocker.rollback()
    released.result(5)
    old.flush()
    assert (old.held(A), fetch(new, A)) == (0, 1)


def test_a_release_waits_for_a_locked_file(stores):
    old, new = stores(), stores()
    old.put(A, session(1), NOW)
    old.flush()
    blocker = sqlite3.connect(stores.path)
    blocker.execute("BEGIN IMMEDIATE")
    released = old.release()
    old.flush()  # tried, in vain
    assert not released.done()
    blocker.rollback()
    released.result(5)
    assert fetch(new, A) == 1


def test_what_was_released_is_reclaimed(stores):
    old, new = stores(), stores()
    for number in range(3):
        old.put(A, session(number), NOW)
    old.release().result(5)
    assert fetch(new, A, 1) == 1
    old.reclaim(NOW)
    old.flush()
    assert old.held(A) == 2
    old.put(A, session(3), NOW)
    assert [number_of(old.pop(A, NOW)) for _ in range(4)] == [3, 1, 0, None]


def test_a_closed_store_has_released_everything(stores):
    store = stores()
    store.put(A, session(1), NOW)
    store.close()
    assert store.release().done()
    assert fetch(stores(), A) == 1


def test_a_row_is_shared_by_its_owner_alone(stores, tmp_path):
    one, two = (SessionFile(stores.path, [KEY], per_scope=8, total=8, warn=stores.warnings.append) for _ in range(2))
    one.open()
    two.open()
    row = one.add(A.digest, session(1))
    one.share(A.digest, row)
    assert len(two.claim(A.digest, 1, NOW)) == 1
    one.share(A.digest, row)
    assert one.claim(A.digest, 1, NOW) == []
    one.close()
    two.close()


@pytest.mark.parametrize("seed", range(20))
def test_whoever_releases_and_reclaims_no_session_is_given_out_twice(stores, seed):
    chance = random.Random(seed)
    members = [stores(per_scope=6) for _ in range(3)]
    given, number = [], 0
    for _ in range(150):
        store = chance.choice(members)
        match chance.choice(("put", "put", "pop", "pop", "prefetch", "release", "reclaim", "reclaim", "flush")):
            case "put":
                store.put(A, session(number), NOW)
                number += 1
            case "pop":
                given.append(number_of(store.pop(A, NOW)))
            case "prefetch":
                store.prefetch(A, chance.randrange(6), NOW)
            case "release":
                store.release()
            case "reclaim":
                store.reclaim(NOW)
            case "flush":
                store.flush()
    for store in members:
        store.reclaim(NOW)
        store.put(A, session(number), NOW)
        number += 1
        store.flush()
        given += [number_of(store.pop(A, NOW)) for _ in range(store.held(A))]
    used = [one for one in given if one is not None]
    assert len(used) == len(set(used)) >= len(members)


def test_those_who_start_together_leave_each_other_something(stores):
    before = stores()
    for number in range(6):
        before.put(A, session(number), NOW)
    before.close()
    one, two = stores(), stores()
    assert fetch(one, A, 3) == 3
    for _ in range(3):
        assert one.pop(A, NOW) is not None
    one.flush()
    assert fetch(two, A, 3) == 3


# ---- keys


def test_rotation_reads_old_sessions_and_writes_new_ones(stores):
    first = stores()
    first.put(A, session(1), NOW)
    first.close()
    second = stores(keys=(OTHER_KEY, KEY))
    second.put(A, session(2), NOW)
    second.close()
    assert len({name for (name,) in stores.rows("key")}) == 2
    third = stores(keys=(OTHER_KEY, KEY))
    assert fetch(third, A) == 2
    third.close()
    only_new = stores(keys=(OTHER_KEY,))
    assert fetch(only_new, A) == 1
    assert number_of(only_new.pop(A, NOW)) == 2


def test_the_file_tells_nothing(stores):
    store = stores()
    secret = b"1500 1 master-secret"
    store.put(Scope("secret-host.test", 443, "secret-host.test"), Session(secret, 0.0), NOW)
    store.close()
    content = b"".join(file.read_bytes() for file in Path(stores.path).parent.iterdir())
    assert b"master-secret" not in content
    assert b"secret-host" not in content


def test_a_session_moved_to_another_scope_does_not_decrypt(stores):
    store = stores()
    store.put(A, session(1), NOW)
    store.put(B, session(2), NOW)
    store.close()
    with sqlite3.connect(stores.path) as database:
        (a,), (b,) = database.execute("SELECT scope FROM sessions ORDER BY id").fetchall()
        database.execute("UPDATE sessions SET scope = ? WHERE scope = ?", (b, a))
    thief = stores()
    assert fetch(thief, B) == 1
    assert number_of(thief.pop(B, NOW)) == 2
    assert "tampered" in stores.warnings[0]


@pytest.mark.parametrize(
    "column", ["expires = expires + 1", "value = zeroblob(5)", "value = zeroblob(500)", "key = x'00'"]
)
def test_tampered_rows_are_removed(stores, column):
    store = stores()
    store.put(A, session(1), NOW)
    store.close()
    with sqlite3.connect(stores.path) as database:
        database.execute(f"UPDATE sessions SET {column}")
    assert fetch(stores(), A) == 0
    assert stores.rows() == [(0,)]


@pytest.mark.parametrize("keys", [(), (b"short",)])
def test_keys_that_can_not_do(tmp_path, keys):
    with pytest.raises(StoreError, match="key"):
        SQLiteStore(str(tmp_path / "s.db"), keys)


# ---- the file


def test_only_the_owner_may_read_it(stores):
    store = stores()
    store.put(A, session(1), NOW)
    store.flush()
    for name in os.listdir(os.path.dirname(stores.path)):
        mode = os.stat(os.path.join(os.path.dirname(stores.path), name)).st_mode
        assert stat.S_IMODE(mode) == 0o600, name


def test_a_readable_file_is_closed_to_others(stores):
    stores().close()
    os.chmod(stores.path, 0o644)
    stores().close()
    assert stat.S_IMODE(os.stat(stores.path).st_mode) == 0o600
    assert "readable by others (mode 644)" in stores.warnings[0]


@pytest.mark.parametrize(
    "content", [b"not a database, but a letter to mother " * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_foreign_file_is_set_aside(stores, content):
    with open(stores.path, "wb") as file:
        file.write(content)
    store = stores()
    store.put(A, session(1), NOW)
    store.close()
    assert stores.rows() == [(1,)]
    with open(stores.path + ".set-aside-1", "rb") as file:
        assert file.read() == content
    assert "set aside as" in stores.warnings[-1]


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE sessions (x)", "CREATE TABLE others (x)", "PRAGMA user_version = 99"]
)
def test_another_programs_database_is_set_aside(stores, statement):
    if "user_version" in statement:
        stores().close()
    database = sqlite3.connect(stores.path)
    database.execute(statement)
    database.commit()
    database.close()
    store = stores()
    store.put(A, session(1), NOW)
    store.close()
    assert os.path.exists(stores.path + ".set-aside-1")
    assert stores.rows() == [(1,)]
    assert "not a session file of this version" in stores.warnings[-1]


def test_damage_while_in_use_costs_the_file_but_not_the_sessions_in_memory(stores):
    store = stores(per_scope=100)
    for number in range(50):
        store.put(A, session(number, size=2000), NOW)
    store.close()
    store = stores(per_scope=100)
    assert fetch(store, A, 10) == 10
    store.flush()
    with open(stores.path, "r+b") as file:  # every page but the first, and what WAL had not moved there yet
        file.seek(4096)
        file.write(b"\xa5" * (os.path.getsize(stores.path) - 4096))
    open(stores.path + "-wal", "wb").close()
    for number in range(50, 60):
        store.put(B, session(number, size=2000), NOW)
        store.flush()
    store.close()
    assert any("set aside" in warning for warning in stores.warnings)
    again = stores(per_scope=100)
    assert (fetch(again, A, 50), fetch(again, B, 50)) == (10, 10)


def test_a_deleted_file_is_begun_anew_with_what_is_in_memory(stores):
    store = stores()
    store.put(A, session(1), NOW)
    store.flush()
    for suffix in ("", "-wal", "-shm"):
        os.unlink(stores.path + suffix)
    store.put(A, session(2), NOW)
    store.close()
    assert stores.rows() == [(2,)]


def test_rows_of_a_file_that_was_replaced_are_nobody_elses(stores):
    """The same numbers belong to others in the new file."""
    store = stores()
    for number in range(3):
        store.put(A, session(number), NOW)
    store.flush()
    for suffix in ("", "-wal", "-shm"):
        os.unlink(stores.path + suffix)
    other = stores()
    for number in range(3):
        other.put(B, session(number), NOW)
    other.flush()
    assert [number_of(store.pop(A, NOW)) for _ in range(3)] == [2, 1, 0]
    store.flush()
    assert stores.rows() == [(3,)]
    other.close()
    assert fetch(stores(), B, 3) == 3


@pytest.mark.parametrize(
    "change",
    [
        *("value = 5", "value = 'text'", "value = x''", "expires = 'soon'", "expires = x'ff'", "expires = 9e99"),
        *("key = 5", "key = 'k'", "owner = 'x'", "owner = x'01'", "owner = 4096000000000000", "owner = 1e300"),
    ],
)
def test_values_of_other_types_harm_nobody_else(stores, change):
    store = stores()
    for number in range(4):
        store.put(A, session(number), NOW)
    store.close()
    with sqlite3.connect(stores.path) as database:
        database.execute(f"UPDATE sessions SET {change} WHERE id = 2")
    store = stores()
    assert fetch(store, A, 4) == 3
    store.put(B, session(9), NOW)
    store.close()
    assert fetch(stores(), B) == 1


def test_a_schema_that_is_no_text_is_set_aside(stores):
    store = stores()
    store.put(A, session(1), NOW)
    store.close()
    content = Path(stores.path).read_bytes()
    Path(stores.path).write_bytes(content.replace(b"CREATE TABLE sessions", b"CREATE TABLE sess\xff\xfe\xfd\xfc"))
    for _ in range(2):
        store = stores()
        store.put(A, session(2), NOW)
        store.close()
    assert stores.rows() == [(2,)]
    assert os.path.exists(stores.path + ".set-aside-1")
    assert not os.path.exists(stores.path + ".set-aside-2")


@pytest.mark.parametrize("seed", range(30))
def test_damage_anywhere_is_survived(stores, seed):
    """Bytes changed at random: what can be read is used, what can't be is set aside, and the store works on."""
    rng = random.Random(seed)
    store = stores(per_scope=50)
    for number in range(60):
        store.put((A, B)[number % 2], session(number, size=900), NOW)
    store.close()
    content = bytearray(Path(stores.path).read_bytes())
    for _ in range(rng.choice((1, 3, 50))):
        content[rng.randrange(rng.choice((200, 4096, len(content))))] = rng.randrange(256)
    Path(stores.path).write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
    store = stores(per_scope=50)
    fetch(store, A, 50)
    fetch(store, B, 50)
    store.put(A, session(100), NOW)
    store.close()
    again = stores(per_scope=50)
    assert fetch(again, A, 50) >= 1
    again.flush()
    assert again._thread.is_alive()


def test_what_a_full_disk_did_not_take_is_written_later(stores, monkeypatch):
    monkeypatch.setattr("tlscache.sqlite_store.RETRY_S", 0.01)
    store = stores()
    for number in range(3):
        store.put(A, session(number), NOW)
    store.flush()
    full = [True]
    commit = SessionFile.commit

    def refuse(self):
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        commit(self)

    monkeypatch.setattr(SessionFile, "commit", refuse)
    store.pop(A, NOW)
    store.put(B, session(9), NOW)
    store.flush()
    full[0] = False
    store.close()
    assert stores.rows() == [(3,)]
    assert len(stores.warnings) == 1


def test_a_locked_file_is_a_miss_and_is_written_later(stores):
    store = stores()
    store.flush()
    blocker = sqlite3.connect(stores.path)
    blocker.execute("BEGIN IMMEDIATE")
    store.put(A, session(1), NOW)
    assert fetch(store, B) == 0  # answered while the lock is held
    assert store.held(A) == 1
    blocker.rollback()
    store.close()
    assert stores.rows() == [(1,)]
    assert stores.warnings == []


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        SQLiteStore(str(tmp_path / "none" / "s.db"), [KEY])
    with pytest.raises(StoreError, match="not a regular file"):
        SQLiteStore(str(tmp_path), [KEY])


def test_a_file_that_can_not_be_written_leaves_memory(stores, monkeypatch):
    def refuse(_self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SessionFile, "open", refuse)
    store = stores()
    store.put(A, session(1), NOW)
    store.flush()
    assert number_of(store.pop(A, NOW)) == 1
    store.flush()
    assert len(stores.warnings) == 1
    assert "No space left on device" in stores.warnings[0]


def test_bounds_of_the_file(stores):
    store = stores(per_scope=4, total=20)
    for number in range(100):
        store.put(Scope(str(number % 10), 1, ""), session(number), NOW)
    store.close()
    assert stores.rows()[0][0] <= 80
    stores(total=20).close()
    assert stores.rows() == [(20,)]
    for number in range(9):
        store.put(A, session(number), NOW)
    assert store.held(A) == 4


def test_a_full_queue_keeps_sessions_in_memory(stores, monkeypatch):
    monkeypatch.setattr("tlscache.sqlite_store.QUEUE_MAX", 0)
    store = stores()
    store.put(A, session(1), NOW)
    store.flush()
    assert stores.rows() == [(0,)]
    assert store.counters.evicted == 1
    assert number_of(store.pop(A, NOW)) == 1


def test_repr_and_count(stores):
    store = stores()
    store.put(A, session(1), NOW)
    store.put(A, session(2), NOW)
    store.flush()
    assert store.count() == 2
    assert "2 sessions" in repr(store)
    store.pop(A, NOW)
    store.flush()
    assert store.count() == 1
