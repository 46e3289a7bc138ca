"""The sessions of a worker: keys, scopes, what is counted, and when a pool should dial for tickets."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.lab.certificates import issue, make_ca
from tlscache.cache import FRESH_S, TOP_UP_MAX_S, TOP_UP_S, Sessions, scope_of, session_keys, wall_clock
from tlscache.context import CertificatePair, ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.sqlite_store import SQLiteStore
from tlscache.store import MemoryStore

PLACE = ("localhost", 443, "localhost")


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sessions")
    (directory / "other").mkdir()
    ca, other = make_ca(directory), make_ca(directory / "other")
    server = issue(ca, names=["localhost"], key="ecdsa", file_name="server")
    client = issue(ca, names=["client"], key="ecdsa", file_name="client")
    return SimpleNamespace(ca=ca, other=other, server=server, client=client, directory=directory)


@pytest.fixture
def context(files):
    return ClientContext(ClientSettings(ca=str(files.ca.certificate), alpn=(b"http/1.1",)))


@pytest.fixture
def server(files):
    pair = CertificatePair(str(files.server.certificate), str(files.server.key))
    return ServerContext(ServerSettings((pair,), alpn=(b"http/1.1",)))


@pytest.fixture
def clock():
    return Clock(wall_clock())


@pytest.fixture
def sessions(clock):
    return Sessions(MemoryStore(), clock)


def handshake(mine, server):
    """A connection that offers what `mine` gives: its engine, and what became of the offer."""
    offered = mine.take()
    client, peer = mine.new_engine(offered), TLSEngine(server)
    client.start()
    while data := client.data_to_send():
        peer.receive(data)
        client.receive(peer.data_to_send())
    assert client.state is State.OPEN
    return client, mine.settle(offered, client)


# Keys


def test_a_key_of_32_bytes_is_used_as_it_is():
    assert session_keys("k" * 32) == [b"k" * 32]


def test_other_keys_are_derived():
    [derived] = session_keys("a secret of another length")
    assert len(derived) == 32
    assert derived != session_keys("A secret of another length")[0]


@given(st.lists(st.text("abcdef0123456789+/=", min_size=16, max_size=64), min_size=1, max_size=4))
def test_several_keys_keep_their_order_however_they_are_separated(texts):
    alone = [session_keys(text)[0] for text in texts]
    assert session_keys(",".join(texts)) == alone
    assert session_keys("\n".join(texts) + "\n") == alone
    assert session_keys(" , ".join(texts)) == alone


# Scopes


@pytest.mark.parametrize(
    "change",
    [
        {"ca": "other"},
        {"ca": None},
        {"verify": False},
        {"certificate": "client"},
        {"spiffe_id": "spiffe://prod/a"},
        {"server_name": "other.test"},
        {"alpn": (b"h2",)},
        {"groups": "X25519"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_verifies_differently_has_another_scope(files, change):
    base = {"ca": str(files.ca.certificate), "alpn": (b"http/1.1",)}
    if change.get("ca") == "other":
        change = {"ca": str(files.other.certificate)}
    if "certificate" in change:
        change = {"certificate": str(files.client.certificate), "key": str(files.client.key)}
    one = scope_of(*PLACE, ClientContext(ClientSettings(**base)))
    other = scope_of(*PLACE, ClientContext(ClientSettings(**{**base, **change})))
    assert one.digest != other.digest


def test_endpoints_have_scopes_of_their_own(context):
    places = [
        PLACE,
        ("localhost", 444, "localhost"),
        ("127.0.0.1", 443, "127.0.0.1"),
        ("/run/a", 0, "localhost"),
        ("/run/b", 0, "localhost"),
    ]
    assert len({scope_of(*place, context).digest for place in places}) == len(places)


def test_a_ticket_that_comes_after_the_ca_was_replaced_stays_with_the_old_one(files, sessions, server, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(Path(files.ca.certificate).read_bytes())
    context = ClientContext(ClientSettings(ca=str(path), alpn=(b"http/1.1",)))
    before = sessions.of(*PLACE, context)
    engine, _ = handshake(before, server)
    path.write_bytes(Path(files.other.certificate).read_bytes())
    assert context.reload_if_changed() is None
    after = sessions.of(*PLACE, context)
    before.keep(engine)
    assert before.held == 2
    assert after.held == 0
    assert after.take() is None


# What becomes of sessions


def test_every_ticket_is_kept_offered_once_and_counted(sessions, context, server):
    mine = sessions.of(*PLACE, context)
    engine, kind = handshake(mine, server)
    assert kind == "full"
    mine.keep(engine)
    assert engine.tickets == []
    assert mine.held == 2
    engine, kind = handshake(mine, server)
    assert kind == "resumed"
    assert mine.held == 1
    mine.keep(engine)
    assert mine.held == 2
    assert sessions.events["stored"] == 3
    assert sessions.events["resumed"] == 1


def test_what_the_server_does_not_know_any_more_is_rejected(sessions, context, server, files):
    mine = sessions.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    pair = CertificatePair(str(files.server.certificate), str(files.server.key))
    _, kind = handshake(mine, ServerContext(ServerSettings((pair,), alpn=(b"http/1.1",))))
    assert kind == "full"
    assert sessions.events["rejected"] == 1


def test_expired_tickets_are_not_offered_and_are_counted(sessions, context, server, clock):
    mine = sessions.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    clock.now += 86_401
    assert mine.take() is None
    assert sessions.counts()["expired"] == 2
    assert sessions.counts()["stored"] == 2


# Topping up


def test_a_pool_with_enough_fresh_tickets_lacks_none(sessions, context, server):
    mine = sessions.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    assert not any(mine.lacks_tickets(2, float(now)) for now in range(1, 1000))


def test_tickets_that_end_soon_are_replaced(sessions, context, server, clock):
    mine = sessions.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    assert not mine.lacks_tickets(2, 1.0)
    clock.now += 86_400 - FRESH_S + 1
    assert not mine.lacks_tickets(2, 2.0)
    assert mine.lacks_tickets(2, 2.0 + TOP_UP_S)
    mine.keep(handshake(mine, server)[0])
    assert not mine.lacks_tickets(1, 3.0 + TOP_UP_S)


def test_tickets_that_the_store_has_no_room_for_are_lacking(sessions, context, server):
    mine = sessions.of(*PLACE, context)
    sessions.store.resize(2)
    for _ in range(3):
        client, peer = mine.new_engine(None), TLSEngine(server)
        client.start()
        while data := client.data_to_send():
            peer.receive(data)
            client.receive(peer.data_to_send())
        mine.keep(client)
    assert mine.held == 2
    assert any(mine.lacks_tickets(6, float(now)) for now in range(1, 100))


def test_a_ticket_that_was_refused_unread_is_offered_again(sessions, context, server):
    mine = sessions.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    ticket = mine.take()
    mine.give_back(ticket)
    assert mine.take() is ticket


def test_a_name_is_the_same_in_capitals(files, sessions, server):
    """The scope says so; what is offered has to as well."""
    lower, upper = (
        ClientContext(ClientSettings(server_name=name, ca=str(files.ca.certificate)))
        for name in ("localhost", "LOCALHOST")
    )
    mine = sessions.of(*PLACE, lower)
    mine.keep(handshake(mine, server)[0])
    assert handshake(sessions.of(*PLACE, upper), server)[1] == "resumed"


def test_a_server_without_tickets_is_asked_less_and_less_often(sessions, context):
    mine = sessions.of(*PLACE, context)
    dials = [now for now in range(1, 7200) if mine.lacks_tickets(2, float(now))]
    gaps = [b - a for a, b in pairwise(dials)]
    assert dials[0] == 1 + TOP_UP_S
    assert gaps == sorted(gaps)
    assert gaps[-1] == TOP_UP_MAX_S


def test_no_warm_connections_need_no_tickets(sessions, context):
    assert not any(sessions.of(*PLACE, context).lacks_tickets(0, float(now)) for now in range(1, 1000))


# The store


def opened_on(path, clock, workers=1):
    return Sessions(SQLiteStore(str(path), [b"k" * 32]), clock, workers)


async def test_a_successor_has_what_was_released(tmp_path, context, server, clock):
    old, new = (opened_on(tmp_path / "s.db", clock) for _ in range(2))
    mine, its = old.of(*PLACE, context), new.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    await old.release()
    await new.prefetch([(its, 4)])
    assert (mine.held, its.held) == (0, 2)
    assert handshake(its, server)[1] == "resumed"
    late, kind = handshake(mine, server)
    assert kind == "full"
    mine.keep(late)
    assert mine.held == 0
    await new.close()
    old.reclaim()
    await old.prefetch([(mine, 4)])
    assert mine.held == 3
    assert handshake(mine, server)[1] == "resumed"
    await old.close()


async def test_sessions_in_memory_are_nobody_elses(sessions, context, server):
    mine = sessions.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    await sessions.release()
    sessions.reclaim()
    assert handshake(mine, server)[1] == "resumed"


async def test_workers_that_start_share_what_there_is(tmp_path, context, server, clock):
    before = opened_on(tmp_path / "s.db", clock)
    mine = before.of(*PLACE, context)
    for _ in range(2):
        mine.keep(handshake(mine, server)[0])
    mine.keep(handshake(mine, server)[0])
    held = mine.held
    await before.close()
    warm = held // 2
    workers = [opened_on(tmp_path / "s.db", clock, 2) for _ in range(2)]
    for worker in workers:
        its = worker.of(*PLACE, context)
        await worker.prefetch([(its, warm)])
        assert its.held == warm
    for worker in workers:
        await worker.close()


async def test_sessions_of_before_are_there_before_the_first_dial(tmp_path, context, server, clock):
    def reopened():
        return Sessions(SQLiteStore(str(tmp_path / "s.db"), [b"k" * 32]), clock)

    first = reopened()
    mine = first.of(*PLACE, context)
    mine.keep(handshake(mine, server)[0])
    await first.close()
    second = reopened()
    mine = second.of(*PLACE, context)
    await second.prefetch([(mine, 4)])
    assert mine.held == 2
    assert handshake(mine, server)[1] == "resumed"
    await second.close()
