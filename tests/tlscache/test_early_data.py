"""0-RTT: what may travel, acceptance and rejection in both roles, and recorded first flights sent again."""

import os

import pytest

from tlscache.context import ClientContext, ClientSettings, ServerContext, ServerSettings
from tlscache.early_data import EARLY_BYTES_MAX, may_travel_early
from tlscache.engine import State, TLSEngine
from tlscache.openssl import lib
from tlscache.replay import ReplayRegister
from tlscache.session import Session

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def client_context(authority):
    return ClientContext(ClientSettings(ca=authority.path, alpn=(b"http/1.1",), early_data=True))


@pytest.fixture(params=["openssl", "register"])
def server_context(request, leaf):
    register = ReplayRegister(64) if request.param == "register" else None
    settings = ServerSettings((leaf.pair,), alpn=(b"http/1.1",), early_data=True)
    return ServerContext(settings, replay_register=register)


def first_flight(client_context, ticket, data=REQUEST):
    client = TLSEngine(client_context, server_name="localhost", session=ticket)
    assert client.write_early(data)
    client.start()
    return client, client.data_to_send()


def test_what_may_travel():
    assert may_travel_early(safe=True, enabled=True, has_body=False)
    assert may_travel_early(safe=True, enabled=True, has_body=False, size=EARLY_BYTES_MAX)
    assert not may_travel_early(safe=True, enabled=False, has_body=False)
    assert not may_travel_early(safe=True, enabled=True, has_body=True)
    assert not may_travel_early(safe=True, enabled=True, has_body=False, upgrade=True)
    assert not may_travel_early(safe=True, enabled=True, has_body=False, expect_continue=True)
    assert not may_travel_early(safe=True, enabled=True, has_body=False, size=EARLY_BYTES_MAX + 1)
    assert not may_travel_early(safe=False, enabled=True, has_body=False)


def test_a_request_in_the_first_flight_is_answered_at_once(connect, shuttle, client_context, server_context):
    ticket = connect(client_context, server_context)[0].tickets[0]
    client, flight = first_flight(client_context, ticket)
    server = TLSEngine(server_context)
    assert server.receive(flight) == REQUEST
    assert (server.state, server.in_early_data, server.early) == (State.HANDSHAKING, True, "accepted")
    server.send(b"answer " * 4000)
    assert client.receive(server.data_to_send()) == b"answer " * 4000
    assert (client.early, client.resumed, client.state) == ("accepted", True, State.OPEN)
    client.send(b"next")
    assert shuttle(client, server) == (b"", b"next")
    assert (server.in_early_data, server.early, server.state, server.resumed) == (False, "accepted", State.OPEN, True)
    server.send(b"more")
    assert shuttle(client, server) == (b"more", b"")
    assert client.tickets


def test_early_data_in_several_writes_and_pieces(connect, client_context, server_context):
    ticket = connect(client_context, server_context)[0].tickets[0]
    client = TLSEngine(client_context, server_name="localhost", session=ticket)
    assert client.write_early(b"one ")
    assert client.write_early(b"two")
    client.start()
    server = TLSEngine(server_context)
    flight = client.data_to_send()
    assert b"".join(server.receive(flight[n : n + 1]) for n in range(len(flight))) == b"one two"


def test_rejected_early_data_is_sent_again(connect, shuttle, client_context, server_context, leaf):
    ticket = connect(client_context, server_context)[0].tickets[0]
    other = ServerContext(server_context.settings)
    client, flight = first_flight(client_context, ticket)
    server = TLSEngine(other)
    assert server.receive(flight) == b""
    assert not server.in_early_data
    client.receive(server.data_to_send())
    assert (client.early, client.resumed, client.state) == ("rejected", False, State.OPEN)
    client.send(REQUEST)
    assert shuttle(client, server) == (b"", REQUEST)
    assert server.early == "none"


def test_a_server_that_allows_none_gives_no_such_tickets(connect, client_context, leaf):
    client, _ = connect(client_context, ServerContext(ServerSettings((leaf.pair,))))
    again = TLSEngine(client_context, server_name="localhost", session=client.tickets[0])
    assert not again.write_early(REQUEST)
    assert again.early == "none"


def test_what_cannot_go_early_is_said_so(connect, authority, client_context, server_context):
    first, _ = connect(client_context, server_context)
    ticket = first.tickets[0]
    assert not TLSEngine(client_context, server_name="localhost").write_early(REQUEST)
    engine = TLSEngine(client_context, server_name="localhost", session=ticket)
    assert not engine.write_early(b"")
    assert not engine.write_early(b"x" * 16_385)
    assert engine.write_early(b"x" * 16_384)
    assert not engine.write_early(b"y")
    engine.start()
    assert not engine.write_early(b"z")
    other_offer = ClientContext(ClientSettings(ca=authority.path, alpn=(b"h2",)))
    assert not TLSEngine(other_offer, server_name="localhost", session=ticket).write_early(REQUEST)
    assert not first.write_early(REQUEST)


@pytest.mark.parametrize("ours", [True, False])
def test_full_handshakes_with_an_early_data_server(shuttle, client_context, server_context, ours):
    client, server = TLSEngine(client_context, server_name="localhost"), TLSEngine(server_context)
    if ours:
        lib.SSL_set_options(client._ssl, lib.SSL_OP_NO_TLSv1_3)
    client.send(b"x")
    client.start()
    assert shuttle(client, server) == (b"", b"x")
    assert (client.state, server.state, server.early) == (State.OPEN, State.OPEN, "none")


def test_a_client_that_sends_garbage_as_early_data(connect, client_context, server_context):
    ticket = connect(client_context, server_context)[0].tickets[0]
    _, flight = first_flight(client_context, ticket)
    server = TLSEngine(server_context)
    assert server.receive(flight[:-5] + b"00000") == b""
    assert server.state is State.FAILED


# ---- replay


def test_a_recorded_first_flight_is_not_acted_on_twice(connect, client_context, server_context):
    ticket = connect(client_context, server_context)[0].tickets[0]
    _, flight = first_flight(client_context, ticket)
    assert TLSEngine(server_context).receive(flight) == REQUEST
    for _ in range(3):
        server = TLSEngine(server_context)
        assert server.receive(flight) == b""
        assert not server.in_early_data
        assert server.state is State.HANDSHAKING


def test_held_back_early_data_arrives_with_the_handshake(connect, shuttle, client_context, leaf):
    register = ReplayRegister(64)
    context = ServerContext(
        ServerSettings((leaf.pair,), alpn=(b"http/1.1",), early_data=True), replay_register=register
    )
    ticket = connect(client_context, context)[0].tickets[0]
    client, flight = first_flight(client_context, ticket)
    random = flight[11:43]
    assert register.first_seen(random)  # as if somebody had been faster with the same flight
    server = TLSEngine(context)
    assert server.receive(flight) == b""
    server.send(b"patience")
    client.receive(server.data_to_send())
    assert client.early == "accepted"
    assert shuttle(client, server) == (b"patience", REQUEST)
    assert server.state is State.OPEN


def test_tickets_of_the_register_are_stateless(connect, client_context, leaf):
    context = ServerContext(
        ServerSettings((leaf.pair,), alpn=(b"http/1.1",), early_data=True), replay_register=ReplayRegister(64)
    )
    ticket = connect(client_context, context)[0].tickets[0]
    _, flight = first_flight(client_context, ticket)
    child = os.fork()
    if child == 0:
        os._exit(0 if TLSEngine(context).receive(flight) == REQUEST else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert TLSEngine(context).receive(flight) == b""  # another process has seen it


def test_a_ticket_age_that_does_not_fit_is_no_early_data(connect, client_context, server_context):
    """OpenSSL's freshness window bounds how long a replay is possible (RFC 8446 section 8.3), in both modes."""
    ticket = connect(client_context, server_context)[0].tickets[0]
    issued = int(ticket.facts.issued_at)
    der = ticket.der.replace(issued.to_bytes(4, "big"), (issued - 60).to_bytes(4, "big"))
    _, flight = first_flight(client_context, Session(der, ticket.verified_at))
    server = TLSEngine(server_context)
    assert server.receive(flight) == b""
    assert server.early == "none"
