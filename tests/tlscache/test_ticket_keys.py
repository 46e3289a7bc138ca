"""Ticket keys by purpose: who shares them, and who must not."""

import shutil
from pathlib import Path

import pytest

from tlscache.context import ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.ticket_keys import TicketKeys


@pytest.fixture
def client(authority):
    return ClientContext(ClientSettings(ca=authority.path))


@pytest.fixture
def serve(leaf):
    def make(keys, name="edge", **settings):
        return ServerContext(ServerSettings((leaf.pair,), **settings), name=name, ticket_keys=keys)

    return make


def resumes(connect, client, issuer, other):
    ticket = connect(client, issuer)[0].tickets[0]
    return connect(client, other, session=ticket)[0].resumed


def test_one_purpose_is_one_base_and_two_are_two():
    keys = TicketKeys(contexts=4)
    places = [place.to_bytes(8, "big") for place in range(4)]
    bases = [keys.base(purpose) for purpose in places]
    assert [keys.base(purpose) for purpose in places] == bases
    assert len({base.handle for base in bases}) == 4


def test_two_purposes_that_fall_on_one_place():
    keys = TicketKeys(contexts=2)
    one, other = keys.base(bytes(8)), keys.base(bytes(8) + b"other")
    assert one.handle != other.handle
    assert keys.base(bytes(8) + b"other") is other


def test_without_a_free_place_there_are_other_keys(connect, client, serve):
    keys = TicketKeys(contexts=1)
    first = serve(keys, "first")
    one, other = serve(keys, "second"), serve(keys, "second")
    assert resumes(connect, client, first, serve(keys, "first"))
    assert not resumes(connect, client, one, other)
    assert resumes(connect, client, one, one)


def test_the_same_listener_made_again_takes_the_tickets(connect, client, serve, authority):
    keys = TicketKeys()
    renewed = authority.issue("renewed")
    again = ServerContext(ServerSettings((renewed.pair,)), name="edge", ticket_keys=keys)
    before = serve(keys)
    assert resumes(connect, client, before, again)
    assert resumes(connect, client, again, before)
    full, _ = connect(client, again)
    assert full.peer_certificate_der != connect(client, before)[0].peer_certificate_der


@pytest.mark.parametrize(
    "difference",
    [{"name": "other"}, {"alpn": (b"h2",)}, {"min_version": "1.3"}, {"early_data": True}, {"groups": "X25519"}],
)
def test_nobody_else_takes_them_even_with_the_same_keys(connect, client, serve, difference):
    keys = TicketKeys(contexts=1)
    edge = serve(keys)
    ticket = connect(client, edge)[0].tickets[0]
    keys._taken.clear()  # as in a process where the other one came first
    other = serve(keys, **difference)
    assert other.base.handle == edge.base.handle
    assert not connect(client, other, session=ticket)[0].resumed


def test_a_listener_that_wants_certificates_does_not_take_them(connect, serve, authority, leaf):
    keys = TicketKeys(contexts=1)
    mine = authority.issue("client", client=True)
    client = ClientContext(ClientSettings(ca=authority.path, certificate=mine.certificate, key=mine.key))
    ticket = connect(client, serve(keys))[0].tickets[0]
    keys._taken.clear()
    strict = serve(keys, client_ca=authority.path)
    assert not connect(client, strict, session=ticket)[0].resumed


def client_of(authority, file):
    mine = authority.issue(file, client=True)
    return mine.certificate, mine.key


@pytest.mark.parametrize("shared", [True, False])
def test_a_connection_that_began_under_one_ca_does_not_end_under_another(
    authority, other_authority, leaf, tmp_path, shared
):
    """Its ticket would be good for the first one."""
    path = tmp_path / "ca.pem"
    shutil.copy(authority.path, path)
    keys = TicketKeys() if shared else None
    context = ServerContext(ServerSettings((leaf.pair,), client_ca=str(path)), name="edge", ticket_keys=keys)
    server = TLSEngine(context)
    certificate, key = client_of(other_authority, "intruder")
    intruder = TLSEngine(
        ClientContext(ClientSettings(ca=authority.path, certificate=certificate, key=key)), server_name="localhost"
    )
    shutil.copy(other_authority.path, path)
    assert context.reload_if_changed() is None
    TLSEngine(context)  # one that begins under the other
    intruder.start()
    for _ in range(2):
        server.receive(intruder.data_to_send())
        intruder.receive(server.data_to_send())
    assert server.state is State.FAILED


def test_a_connection_that_began_on_a_base_that_is_gone_still_gets_its_certificate(
    authority, other_authority, leaf, tmp_path
):
    """A new `client_ca` takes another base while a ClientHello is on its way."""
    path = tmp_path / "ca.pem"
    shutil.copy(authority.path, path)
    context = ServerContext(ServerSettings((leaf.pair,), client_ca=str(path)))
    server = TLSEngine(context)
    mine = authority.issue("late", client=True)
    late = TLSEngine(
        ClientContext(ClientSettings(ca=authority.path, certificate=mine.certificate, key=mine.key)),
        server_name="localhost",
    )
    late.start()
    path.write_text(path.read_text() + Path(other_authority.path).read_text())
    before = context.base
    assert context.reload_if_changed() is None
    assert context.base is not before
    del before
    server.receive(late.data_to_send())
    late.receive(server.data_to_send())
    server.receive(late.data_to_send())
    assert server.state is State.OPEN
