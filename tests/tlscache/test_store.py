"""The store in memory: order, bounds, expiry, single use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscache.session import Facts, Scope, Session
from tlscache.store import MemoryStore


def session(number, *, expires_at=1000.0, single_use=True):
    made = Session(b"%d" % number, 0.0)
    made._facts = Facts(expires_at=expires_at, single_use=single_use)
    return made


A, B = Scope("a.test", 443, "a.test"), Scope("b.test", 443, "b.test")


def test_newest_first_and_once():
    store = MemoryStore()
    one, two = session(1), session(2)
    store.put(A, one, 0)
    store.put(A, two, 0)
    assert [store.pop(A, 0), store.pop(A, 0), store.pop(A, 0)] == [two, one, None]
    assert (store.count(), store.counters.taken, store.counters.missed) == (0, 2, 1)


def test_scopes_are_apart():
    store = MemoryStore()
    store.put(A, session(1), 0)
    assert store.pop(B, 0) is None
    assert store.held(A) == 1


def test_expired_ones_are_dropped():
    store = MemoryStore()
    store.put(A, session(1, expires_at=500), 0)
    store.put(A, session(2, expires_at=100), 0)
    assert store.pop(A, 100).der == b"1"
    assert store.counters.expired == 1
    store.put(A, session(3, expires_at=50), 60)
    assert store.pop(A, 60) is None


def test_tls12_stays_until_it_expires():
    store = MemoryStore()
    one = session(1, single_use=False, expires_at=100)
    store.put(A, one, 0)
    assert [store.pop(A, 1), store.pop(A, 99), store.pop(A, 100)] == [one, one, None]


def test_bounds():
    store = MemoryStore(per_scope=2, total=3)
    for number in range(3):
        store.put(A, session(number), 0)
    assert store.held(A) == 2
    for number in range(3, 5):
        store.put(B, session(number), 0)
    assert (store.count(), store.held(A), store.held(B)) == (3, 1, 2)
    assert store.pop(A, 0).der == b"2"


@pytest.mark.parametrize("bounds", [{"per_scope": 0}, {"total": 0}])
def test_a_store_of_nothing(bounds):
    store = MemoryStore(**bounds)
    store.put(A, session(1), 0)
    assert store.pop(A, 0) is None


@given(
    st.lists(st.tuples(st.sampled_from("+-"), st.integers(0, 3), st.integers(1, 60)), max_size=80),
    st.integers(1, 4),
    st.integers(1, 8),
)
def test_bounds_and_single_use_hold_in_any_order(steps, per_scope, total):
    store = MemoryStore(per_scope=per_scope, total=total)
    given_out = []
    for now, (step, place, lifetime) in enumerate(steps):
        scope = Scope(str(place), 1, "")
        if step == "+":
            store.put(scope, session(now, expires_at=now + lifetime), now)
        elif (found := store.pop(scope, now)) is not None:
            assert found.facts.expires_at > now
            given_out.append(found.der)
        assert store.count() <= total
        assert all(store.held(Scope(str(n), 1, "")) <= per_scope for n in range(4))
    assert len(given_out) == len(set(given_out))
    assert store.count() == sum(store.held(Scope(str(n), 1, "")) for n in range(4))


def test_close_forgets():
    store = MemoryStore()
    store.put(A, session(1), 0)
    store.close()
    assert (store.count(), store.pop(A, 0)) == (0, None)
    assert "0 sessions" in repr(store)
