"""Resumption: what it keeps, and attempts to resume where the verification was another."""

import dataclasses
import datetime
import os

import pytest

from tlscache.context import ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.openssl import lib
from tlscache.session import Scope
from tlscache.store import MemoryStore

NOW = datetime.datetime.now(datetime.UTC).timestamp()


@pytest.fixture(scope="module")
def server_context(leaf):
    return ServerContext(ServerSettings((leaf.pair,), alpn=(b"h2", b"http/1.1")))


@pytest.fixture(scope="module")
def client_context(authority):
    return ClientContext(ClientSettings(ca=authority.path))


def test_every_ticket_is_kept_and_each_resumes(connect, client_context, server_context):
    first, _ = connect(client_context, server_context)
    assert len(first.tickets) == 2
    for ticket in first.tickets:
        client, server = connect(client_context, server_context, session=ticket)
        assert (client.resumed, server.resumed, client.state) == (True, True, State.OPEN)
        assert len(client.tickets) == 1
        assert client.peer_certificate_der == first.peer_certificate_der


def test_tickets_in_one_read_and_in_many(client_context, server_context):
    for cut in (1, 100_000):
        client, server = TLSEngine(client_context, server_name="localhost"), TLSEngine(server_context)
        client.start()
        server.receive(client.data_to_send())
        client.receive(server.data_to_send())
        server.receive(client.data_to_send())
        tickets = server.data_to_send()
        for start in range(0, len(tickets), cut):
            client.receive(tickets[start : start + cut])
        assert len(client.tickets) == 2
        assert client.tickets[0].der != client.tickets[1].der


def test_a_resumed_connection_inherits_the_moment_of_verification(connect, client_context, server_context):
    first, _ = connect(client_context, server_context)
    first.tickets[0].verified_at -= 5000
    second, _ = connect(client_context, server_context, session=first.tickets[0])
    assert second.tickets[0].verified_at == first.tickets[0].verified_at


def test_a_refused_session_is_a_full_handshake(connect, client_context, server_context, leaf):
    first, _ = connect(client_context, server_context)
    restarted = ServerContext(ServerSettings((leaf.pair,)))
    client, _ = connect(client_context, restarted, session=first.tickets[0])
    assert (client.resumed, client.state, len(client.tickets)) == (False, State.OPEN, 2)
    assert client.tickets[0].verified_at >= first.tickets[0].verified_at


def test_tls12_resumes(shuttle, client_context, server_context):
    def run(session=None):
        client = TLSEngine(client_context, server_name="localhost", session=session)
        lib.SSL_set_options(client._ssl, lib.SSL_OP_NO_TLSv1_3)
        client.start()
        shuttle(client, TLSEngine(server_context))
        return client

    first = run()
    for _ in range(2):
        again = run(first.tickets[0])
        assert (again.version, again.resumed) == ("TLSv1.2", True)


def test_contexts_resume_after_freeing_the_first_connection(connect, client_context, server_context):
    first, _ = connect(client_context, server_context)
    ticket = first.tickets[0]
    del first, _
    assert connect(client_context, server_context, session=ticket)[0].resumed


def test_a_forked_worker_resumes(connect, client_context, server_context):
    first, _ = connect(client_context, server_context)
    child = os.fork()
    if child == 0:
        resumed = connect(client_context, server_context, session=first.tickets[0])[0].resumed
        os._exit(0 if resumed else 1)
    assert os.waitpid(child, 0)[1] == 0


# ---- attacks


def test_a_session_is_not_offered_for_another_name(connect, authority, client_context):
    both = authority.issue("both", ("localhost", "victim.test"))
    context = ServerContext(ServerSettings((both.pair,)))
    first, _ = connect(client_context, context)
    client, _ = connect(client_context, context, server_name="victim.test", session=first.tickets[0])
    assert (client.resumed, client.state) == (False, State.OPEN)


def changed(settings, authority, other_authority):
    mine, yours = authority.issue("attack_a", client=True), authority.issue("attack_b", client=True)
    yield dataclasses.replace(settings, ca=other_authority.path)
    yield dataclasses.replace(settings, certificate=mine.certificate, key=mine.key)
    yield dataclasses.replace(settings, certificate=yours.certificate, key=yours.key)
    yield dataclasses.replace(settings, spiffe_id="spiffe://prod/payments")
    yield dataclasses.replace(settings, verify=False, ca=None)
    yield dataclasses.replace(settings, alpn=(b"h2",))


def test_no_session_crosses_settings_through_a_store(connect, authority, other_authority, server_context):
    settings = ClientSettings(ca=authority.path)
    store = MemoryStore()
    first, _ = connect(ClientContext(settings), server_context)
    mine = Scope("localhost", 443, "localhost", ClientContext(settings).scope_material)
    for ticket in first.tickets:
        store.put(mine, ticket, NOW)
    for other in changed(settings, authority, other_authority):
        assert store.pop(Scope("localhost", 443, "localhost", ClientContext(other).scope_material), NOW) is None
    for scope in (
        Scope("localhost", 444, "localhost"),
        Scope("10.0.0.1", 443, "localhost"),
        Scope("localhost", 443, "x"),
    ):
        assert store.pop(dataclasses.replace(scope, material=mine.material), NOW) is None
    assert store.pop(mine, NOW) is not None


def test_a_session_of_an_unverified_peer_never_serves_a_verifying_client(connect, authority, other_authority):
    impostor = ServerContext(ServerSettings((other_authority.issue("impostor").pair,)))
    careless, careful = ClientSettings(verify=False), ClientSettings(ca=authority.path)
    first, _ = connect(ClientContext(careless), impostor)
    store = MemoryStore()
    store.put(Scope("localhost", 443, "localhost", ClientContext(careless).scope_material), first.tickets[0], NOW)
    found = store.pop(Scope("localhost", 443, "localhost", ClientContext(careful).scope_material), NOW)
    assert found is None
    client, _ = connect(ClientContext(careful), impostor, session=found)
    assert client.state is State.FAILED


def test_a_session_of_another_spiffe_id_is_caught_even_without_a_store(connect, authority):
    other = ServerContext(ServerSettings((authority.issue("web", uris=("spiffe://prod/web",)).pair,)))
    first, _ = connect(ClientContext(ClientSettings(ca=authority.path)), other)
    strict = ClientContext(ClientSettings(ca=authority.path, spiffe_id="spiffe://prod/payments"))
    client, _ = connect(strict, other, session=first.tickets[0])
    assert client.state is State.FAILED
    assert "the resumed session has another" in client.error.text
    assert client.tickets == []


def test_a_server_takes_no_session_from_before_it_asked_for_certificates(connect, authority, leaf):
    client_leaf = authority.issue("later", client=True)
    context = ClientContext(ClientSettings(ca=authority.path))
    open_server, strict_server = (
        ServerContext(ServerSettings((leaf.pair,))),
        ServerContext(ServerSettings((leaf.pair,), client_ca=authority.path)),
    )
    first, _ = connect(context, open_server)
    client, server = connect(context, strict_server, session=first.tickets[0])
    assert (client.resumed, server.state) == (False, State.FAILED)
    with_certificate = ClientContext(
        ClientSettings(ca=authority.path, certificate=client_leaf.certificate, key=client_leaf.key)
    )
    first, _ = connect(with_certificate, strict_server)
    client, server = connect(context, strict_server, session=first.tickets[0])
    assert (client.resumed, server.state) == (
        True,
        State.OPEN,
    )  # the ticket is the proof: that is why scopes hold the certificate
    assert server.peer_certificate_der is not None


def test_a_session_does_not_outlive_the_clients_certificate(connect, authority, leaf, monkeypatch):
    short = authority.issue("short_client", client=True)
    strict = ServerContext(ServerSettings((leaf.pair,), client_ca=authority.path))
    context = ClientContext(ClientSettings(ca=authority.path, certificate=short.certificate, key=short.key))
    first, _ = connect(context, strict)
    monkeypatch.setattr("tlscache.engine.certificate_not_after", lambda der: NOW - 1)
    _, server = connect(context, strict, session=first.tickets[0])
    assert server.state is State.FAILED
    assert "expired since its session began" in server.error.text
