"""Sessions as bytes, their end, and the scope: what verifies differently never shares one."""

import dataclasses
import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscache.context import ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import TLSEngine
from tlscache.openssl import lib
from tlscache.session import AGE_MAX_S, Scope, Session, certificate_not_after

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)

values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.binary(max_size=8))
scopes = st.builds(
    Scope,
    st.sampled_from(["a", "b", "aa", "a.test"]) | st.text(max_size=5),
    st.integers(0, 65535),
    st.sampled_from(["", "a", "aa"]) | st.text(max_size=5),
    st.lists(values, max_size=5).map(tuple),
)


@given(scopes, scopes)
def test_different_scopes_have_different_bytes(one, other):
    def shape(scope):
        material = tuple((type(value), value) for value in scope.material)
        return scope.host.lower(), scope.port, scope.server_name.lower(), material

    assert (one.to_bytes() == other.to_bytes()) is (shape(one) == shape(other))
    assert (one.digest == other.digest) is (shape(one) == shape(other))


def test_scope_fields_do_not_run_together():
    assert Scope("ab", 1, "c").digest != Scope("a", 1, "bc").digest
    assert Scope("a", 1, "", (b"x", b"")).digest != Scope("a", 1, "", (b"", b"x")).digest
    assert Scope("a", 1, "", (None,)).digest != Scope("a", 1, "", (b"",)).digest
    assert Scope("a", 1, "", (True,)).digest != Scope("a", 1, "", (1,)).digest


def test_names_are_compared_without_case():
    assert Scope("A.test", 1, "B").digest == Scope("a.TEST", 1, "b").digest


@pytest.fixture(scope="session")
def variants(authority, other_authority):
    """Client settings of which any two differ in something that verification depends on."""
    mine, yours = authority.issue("scope_a", client=True), authority.issue("scope_b", client=True)
    base = ClientSettings(ca=authority.path)
    changes = [
        {},
        {"ca": other_authority.path},
        {"verify": False, "ca": None},
        {"certificate": mine.certificate, "key": mine.key},
        {"certificate": yours.certificate, "key": yours.key},
        {"alpn": (b"h2",)},
        {"alpn": (b"h2", b"http/1.1")},
        {"alpn": (b"http/1.1", b"h2")},
        {"spiffe_id": "spiffe://a/b"},
        {"spiffe_id": "spiffe://a/c"},
        {"groups": "X25519"},
    ]
    return [ClientContext(dataclasses.replace(base, **change)) for change in changes]


@given(st.data())
@settings(max_examples=100)
def test_settings_that_verify_differently_never_share_a_scope(variants, data):
    names = st.sampled_from(["a.test", "b.test", ""])
    places = [
        data.draw(st.tuples(names, st.integers(1, 3), names, st.sampled_from(range(len(variants))))) for _ in "ab"
    ]
    digests = [Scope(host, port, name, variants[which].scope_material).digest for host, port, name, which in places]
    assert (digests[0] == digests[1]) is (places[0] == places[1])


def test_what_is_no_part_of_verification_does_not_split_scopes(authority, tmp_path):
    copy = tmp_path / "same.pem"
    copy.write_bytes(Path(authority.path).read_bytes())
    one = ClientContext(ClientSettings(ca=authority.path))
    other = ClientContext(ClientSettings(ca=str(copy), early_data=True))
    assert one.scope_material == other.scope_material


@pytest.fixture(scope="session")
def session(connect, authority, leaf):
    client, _ = connect(
        ClientContext(ClientSettings(ca=authority.path, alpn=(b"h2",))),
        ServerContext(ServerSettings((leaf.pair,), alpn=(b"h2",), early_data=True)),
    )
    return client.tickets[0]


def test_facts(session):
    facts = session.facts
    assert (facts.single_use, facts.alpn, facts.server_name) == (True, b"h2", "localhost")
    assert facts.max_early_data == 16_384
    assert abs(facts.issued_at - NOW.timestamp()) < 600
    assert facts.expires_at == facts.issued_at + 86_400
    assert abs(session.verified_at - NOW.timestamp()) < 600


def test_bytes_and_back(session):
    again = Session.from_bytes(session.to_bytes())
    assert (again.der, again.verified_at, again.facts) == (session.der, session.verified_at, session.facts)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_session(data):
    found = Session.from_bytes(data)
    assert found is None or found.facts.expires_at == 0 or found.facts.issued_at >= 0
    assert Session(data, 0.0).facts.expires_at <= 0
    assert certificate_not_after(data) >= 0


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=200)
def test_a_damaged_session_never_raises(authority, session, place, change):
    der = bytearray(session.der)
    der[place % len(der)] ^= change
    damaged = Session(bytes(der), session.verified_at)
    assert damaged.facts.expires_at <= session.verified_at + AGE_MAX_S
    context = ClientContext(ClientSettings(ca=authority.path, alpn=(b"h2",)))
    engine = TLSEngine(context, server_name="localhost", session=damaged)
    engine.start()
    assert engine.data_to_send()[0] == 22 if engine.error is None else engine.error.text


def test_seven_days_after_the_last_verification_it_ends(session):
    old = Session(session.der, session.verified_at - AGE_MAX_S + 100)
    assert old.facts.expires_at == old.verified_at + AGE_MAX_S
    assert old.facts.expires_at < session.facts.expires_at


def test_it_ends_with_the_peers_certificate(connect, authority):
    end = (NOW + DAY / 2).replace(microsecond=0)
    leaf = authority.issue("short", end=end)
    client, _ = connect(ClientContext(ClientSettings(ca=authority.path)), ServerContext(ServerSettings((leaf.pair,))))
    assert client.tickets[0].facts.expires_at == end.timestamp()
    assert certificate_not_after(client.peer_certificate_der) == end.timestamp()


def test_years_beyond_2049(authority):
    from cryptography.hazmat.primitives.serialization import Encoding

    end = datetime.datetime(2051, 6, 7, 8, 9, 10, tzinfo=datetime.UTC)
    assert certificate_not_after(authority.issue("far", end=end).x509.public_bytes(Encoding.DER)) == end.timestamp()


def test_tls12_sessions_may_be_used_again(shuttle, authority, leaf):
    client = TLSEngine(ClientContext(ClientSettings(ca=authority.path)), server_name="localhost")
    lib.SSL_set_options(client._ssl, lib.SSL_OP_NO_TLSv1_3)
    client.start()
    shuttle(client, TLSEngine(ServerContext(ServerSettings((leaf.pair,)))))
    facts = client.tickets[0].facts
    assert (facts.single_use, facts.max_early_data) == (False, 0)
    assert facts.expires_at > NOW.timestamp()
