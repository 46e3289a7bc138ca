"""What a configuration says of TLS sessions: their keys, their file, how many are kept, and their samples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from proxy.config import ConfigError, parse_config
from proxy.observe.metrics import Snapshot
from proxy.process.sessions import export_sessions, open_sessions, sessions_per_scope
from tlscache.cache import Sessions
from tlscache.sqlite_store import SQLiteStore
from tlscache.store import MemoryStore

CONFIG = """
listeners: [{{address: "127.0.0.1:0", upstream: app}}]
upstreams: {{app: {{regions: {{here: {{endpoints: ["127.0.0.1:1"]}}}}, pool: {{warm: {warm}}}}}}}
sessions: {{path: "{path}", key: "{key}"}}
"""


@pytest.mark.parametrize("key", ["short", "k" * 32 + ",short", ","])
def test_a_key_that_can_be_guessed_is_a_fault(tmp_path, key):
    with pytest.raises(ConfigError, match="at least 16 characters"):
        parse_config(CONFIG.format(warm=2, path=tmp_path / "s.db", key=key))


def test_a_key_that_is_not_there_is_one_fault(tmp_path):
    text = CONFIG.format(warm=2, path=tmp_path / "s.db", key="env:NOT_SET")
    with pytest.raises(ConfigError, match="NOT_SET") as caught:
        parse_config(text)
    assert len(caught.value.faults) == 1


async def test_the_store_holds_a_restarts_tickets_of_all_workers(tmp_path):
    config = parse_config(CONFIG.format(warm=20, path=tmp_path / "s.db", key="k" * 32))
    opened = open_sessions(config, 4, SimpleNamespace())
    assert isinstance(opened.store, SQLiteStore)
    assert opened.store._per_scope >= 4 * 20
    larger = parse_config(CONFIG.format(warm=50, path=tmp_path / "s.db", key="k" * 32))
    opened.resize(sessions_per_scope(larger, 4))
    assert opened.store._per_scope >= 4 * 50
    await opened.close()


async def test_a_file_that_can_not_be_used_leaves_memory(tmp_path):
    (tmp_path / "gone").mkdir()
    config = parse_config(CONFIG.format(warm=2, path=tmp_path / "gone" / "s.db", key="k" * 32))
    (tmp_path / "gone").rmdir()
    said = []
    opened = open_sessions(config, 1, SimpleNamespace(error=lambda event, **fields: said.append(event)))
    assert isinstance(opened.store, MemoryStore)
    assert said == ["sessions_in_memory_only"]


def test_every_event_is_a_sample():
    sessions = Sessions(MemoryStore())
    sessions.events["stored"] = 3
    snapshot = Snapshot()
    export_sessions(sessions, snapshot)
    found = {dict(labels)["event"]: value for labels, value in snapshot.values["tls_sessions"].items()}
    assert found == sessions.counts()
    assert found["stored"] == 3
