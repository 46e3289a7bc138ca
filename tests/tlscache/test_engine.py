"""The engine's states, over memory: every test is a script of calls on two engines, or of bytes on one."""

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscache import openssl, records
from tlscache.context import ClientContext, ClientSettings, ContextError, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.fault import FaultKind
from tlscache.openssl import lib
from tlscache.records import BIO_KEPT_BYTES, CONTROL_MESSAGES_MAX, FEED_BYTES


@pytest.fixture(scope="module")
def server_context(leaf):
    return ServerContext(ServerSettings((leaf.pair,), alpn=(b"h2", b"http/1.1")))


@pytest.fixture(scope="module")
def client_context(authority):
    return ClientContext(ClientSettings(ca=authority.path, alpn=(b"h2", b"http/1.1")))


@pytest.fixture
def pair(connect, client_context, server_context):
    return connect(client_context, server_context)


def tls12(client_context):
    """A client engine that offers nothing above TLS 1.2."""
    client = TLSEngine(client_context, server_name="localhost")
    lib.SSL_set_options(client._ssl, lib.SSL_OP_NO_TLSv1_3)
    return client


def test_handshake_opens_both_sides(pair):
    client, server = pair
    assert (client.state, server.state) == (State.OPEN, State.OPEN)
    assert (client.alpn, server.alpn) == (b"h2", b"h2")
    assert (client.version, server.version) == ("TLSv1.3", "TLSv1.3")
    assert server.server_name == "localhost"
    assert not client.resumed
    assert "open TLSv1.3 h2" in repr(client)


def test_tls12_works(shuttle, client_context, server_context):
    client = tls12(client_context)
    server = TLSEngine(server_context)
    client.start()
    shuttle(client, server)
    client.send(b"ping")
    assert shuttle(client, server) == (b"", b"ping")
    assert server.version == "TLSv1.2"
    assert len(client.tickets) == 1


def test_data_goes_both_ways(shuttle, pair):
    client, server = pair
    client.send(b"ping")
    assert shuttle(client, server) == (b"", b"ping")
    server.send(bytearray(b"po"))
    server.send(memoryview(b"ng"))
    assert shuttle(client, server) == (b"pong", b"")
    assert client.data_to_send() == b""


@pytest.mark.parametrize(
    "size", [1, BIO_KEPT_BYTES, BIO_KEPT_BYTES + 1, 16_384, 16_385, FEED_BYTES, 300_000, 1_000_001]
)
def test_any_size_arrives(shuttle, pair, size):
    client, server = pair
    data = bytes(range(251)) * (size // 251 + 1)
    client.send(data[:size])
    client.send(b"tail")
    assert shuttle(client, server) == (b"", data[:size] + b"tail")


def test_receive_takes_any_buffer(pair):
    client, server = pair
    client.send(b"x" * 100_000)
    sealed = client.data_to_send()
    assert server.receive(bytearray(sealed[:10])) == b""
    assert len(server.receive(memoryview(sealed)[10:])) == 100_000
    assert server.receive(b"") == b""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=40_000), max_size=5), st.lists(st.integers(1, 60_000), min_size=1, max_size=8))
def test_any_chunking_gives_the_same_plaintext(connect, client_context, server_context, messages, cuts):
    client, server = connect(client_context, server_context)
    for message in messages:
        client.send(message)
    client.close()
    sealed = client.data_to_send()
    received = b""
    turn = 0
    while sealed:
        cut = cuts[turn % len(cuts)]
        received += server.receive(sealed[:cut])
        sealed = sealed[cut:]
        turn += 1
    assert received == b"".join(messages)
    assert server.eof_received


def test_handshake_byte_by_byte(shuttle, client_context, server_context):
    client, server = TLSEngine(client_context, server_name="localhost"), TLSEngine(server_context)
    client.start()
    client.send(b"queued")
    received = b""
    while client.state is State.HANDSHAKING or server.state is State.HANDSHAKING:
        for byte in client.data_to_send():
            received += server.receive(bytes((byte,)))
        for byte in server.data_to_send():
            client.receive(bytes((byte,)))
    assert received + shuttle(client, server)[1] == b"queued"


def test_sent_during_the_handshake_goes_out_after_it(shuttle, client_context, server_context):
    client, server = TLSEngine(client_context, server_name="localhost"), TLSEngine(server_context)
    client.send(b"early bird")
    client.start()
    assert b"early bird" not in client.data_to_send()
    client = TLSEngine(client_context, server_name="localhost")
    client.send(b"early ")
    client.send(b"bird")
    client.start()
    assert shuttle(client, server) == (b"", b"early bird")


def test_close_ends_one_direction(shuttle, pair):
    client, server = pair
    client.send(b"last words")
    client.close()
    client.close()
    assert shuttle(client, server) == (b"", b"last words")
    assert (server.eof_received, server.state) == (True, State.OPEN)
    server.send(b"still talking")
    assert shuttle(client, server) == (b"still talking", b"")
    with pytest.raises(RuntimeError, match="after close"):
        client.send(b"x")
    server.close()
    shuttle(client, server)
    assert (client.state, server.state) == (State.CLOSED, State.CLOSED)
    server.receive_eof()
    assert not server.truncated


def test_bytes_after_close_notify_are_ignored(pair):
    client, server = pair
    client.close()
    sealed = client.data_to_send()
    assert server.receive(sealed + b"garbage" * 1000) == b""
    assert server.receive(b"\x17\x03\x03\x00\x05hello") == b""
    assert (server.state, server.error, server.truncated) == (State.OPEN, None, False)


def test_eof_without_close_notify_is_truncation(shuttle, pair):
    client, server = pair
    client.send(b"half a mess")
    shuttle(client, server)
    server.receive_eof()
    assert (server.truncated, server.eof_received, server.state) == (True, False, State.OPEN)
    server.close()
    assert server.state is State.CLOSED


def test_eof_during_the_handshake_fails(client_context):
    client = TLSEngine(client_context, server_name="localhost")
    client.start()
    client.receive_eof()
    assert client.state is State.FAILED
    assert client.error.text == "peer closed the connection during the handshake"


def test_close_during_the_handshake(client_context, server_context):
    client, server = TLSEngine(client_context, server_name="localhost"), TLSEngine(server_context)
    client.start()
    client.close()
    server.receive(client.data_to_send())
    assert client.receive(server.data_to_send()) == b""
    assert client.state is State.CLOSED
    with pytest.raises(RuntimeError):
        client.send(b"x")


def test_start_is_for_clients_and_once(client_context, server_context):
    client = TLSEngine(client_context, server_name="localhost")
    client.start()
    with pytest.raises(RuntimeError):
        client.start()
    with pytest.raises(RuntimeError):
        TLSEngine(server_context).start()


def test_a_damaged_record_fails_with_an_alert(pair):
    client, server = pair
    client.send(b"x" * 100)
    sealed = bytearray(client.data_to_send())
    sealed[50] ^= 1
    assert server.receive(sealed) == b""
    assert (server.state, server.error.kind) == (State.FAILED, FaultKind.PROTOCOL)
    assert "bad_record_mac" in server.error.text
    client.receive(server.data_to_send())
    assert (client.state, client.error.alert) == (State.FAILED, "bad_record_mac")
    server.send(b"into the void")
    assert server.data_to_send() == b""
    assert server.receive(b"more") == b""


def test_what_came_before_a_damaged_record_is_delivered(pair):
    client, server = pair
    client.send(b"good")
    good = client.data_to_send()
    assert server.receive(good + b"\x17\x03\x03\x00\x20" + bytes(32)) == b"good"
    assert server.state is State.FAILED


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=600), st.booleans(), st.booleans())
def test_garbage_never_raises(client_context, server_context, data, as_client, looks_like_tls):
    engine = TLSEngine(client_context, server_name="localhost") if as_client else TLSEngine(server_context)
    if as_client:
        engine.start()
    data = b"\x16\x03\x03" + len(data).to_bytes(2, "big") + data if looks_like_tls else data
    engine.receive(data)
    engine.receive(data)
    engine.receive_eof()
    engine.data_to_send()
    assert engine.state is State.FAILED
    assert engine.error.text


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_in_the_handshake_never_changes_data(client_context, server_context, turn, place, bit):
    client, server = TLSEngine(client_context, server_name="localhost"), TLSEngine(server_context)
    client.start()
    for step, (sender, receiver) in enumerate([(client, server), (server, client), (client, server)]):
        flight = bytearray(sender.data_to_send())
        if step == turn and flight:
            flight[int(place * len(flight))] ^= 1 << bit
        receiver.receive(flight)
    if client.state is not State.FAILED:
        client.send(b"secret")
    assert server.receive(client.data_to_send()) in (b"", b"secret")
    # Every bit is covered by the Finished messages but for the records' versions (RFC 8446 section 5.1).
    both_open = client.state is State.OPEN and server.state is State.OPEN
    assert not both_open or server.receive(b"") == b""


def test_errors_that_others_left_behind_are_not_ours(pair):
    client, server = pair
    for _ in range(2):
        lib.ERR_put_error(20, 0, 100, b"elsewhere.c", 1)
        assert lib.ERR_peek_error()
        assert server.receive(b"\x17\x03") == b""
        assert server.state is State.OPEN
        client.send(b"x")
        sealed = client.data_to_send()
        assert server.receive(sealed[2:]) == b"x"


def test_a_flood_of_key_updates_fails(pair):
    _, server = pair
    # No binding sends a KeyUpdate: OpenSSL's report of one stands for it here, and `openssl s_client` in tests/interop.
    for _ in range(CONTROL_MESSAGES_MAX):
        records._events.append((server._ssl, None))
        server.receive(b"")
    assert server.state is State.OPEN
    records._events.append((server._ssl, None))
    server.receive(b"")
    assert (server.state, server.error.kind) == (State.FAILED, FaultKind.FLOOD)


def test_data_between_control_messages_resets_the_count(shuttle, pair):
    client, server = pair
    for _ in range(3):
        for _ in range(CONTROL_MESSAGES_MAX - 1):
            records._events.append((server._ssl, None))
            server.receive(b"")
        client.send(b"x")
        assert shuttle(client, server) == (b"", b"x")
    assert server.state is State.OPEN


def test_events_of_another_connection_are_dropped(connect, client_context, server_context, pair):
    client, _server = pair
    other, _ = connect(client_context, server_context)
    client.tickets.clear()
    records._events.append((other._ssl, lib.SSL_get1_session(other._ssl)))
    client.receive(b"")
    assert client.tickets == []


def test_renegotiation_is_refused(shuttle, client_context, server_context):
    context = ClientContext(client_context.settings)
    context.handle = lib.SSL_CTX_new(lib.TLS_client_method())  # ours would refuse to ask
    lib.SSL_CTX_set_verify(context.handle, lib.SSL_VERIFY_NONE, openssl.ffi.NULL)
    client, server = tls12(context), TLSEngine(server_context)
    client.start()
    shuttle(client, server)
    assert (client.version, client.state) == ("TLSv1.2", State.OPEN)
    assert lib.SSL_renegotiate(client._ssl) == 1
    lib.SSL_do_handshake(client._ssl)
    client._unsent = True
    server.receive(client.data_to_send())
    assert server.state is State.FAILED
    assert "renegotiate" in server.error.text
    lib.SSL_CTX_free(context.handle)


def test_no_common_protocol_is_a_fatal_alert(connect, authority, server_context):
    context = ClientContext(ClientSettings(ca=authority.path, alpn=(b"gopher",)))
    client, server = connect(context, server_context)
    assert (server.error.kind, client.error.alert) == (FaultKind.NO_COMMON, "no_application_protocol")
    assert "ALPN" in client.error.text


@pytest.mark.parametrize(
    ("offer", "chosen"), [((), b""), ((b"http/1.1",), b"http/1.1"), ((b"x", b"http/1.1", b"h2"), b"h2")]
)
def test_alpn_follows_the_servers_preference(connect, authority, server_context, offer, chosen):
    client, server = connect(ClientContext(ClientSettings(ca=authority.path, alpn=offer)), server_context)
    assert (client.alpn, server.alpn) == (chosen, chosen)


def test_a_server_without_protocols_ignores_the_offer(connect, authority, leaf, client_context):
    client, _ = connect(client_context, ServerContext(ServerSettings((leaf.pair,))))
    assert (client.state, client.alpn) == (State.OPEN, b"")


def test_plaintext_peers_are_named(client_context, server_context):
    client = TLSEngine(client_context, server_name="localhost")
    client.start()
    client.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert client.error.kind is FaultKind.PLAINTEXT
    assert "plaintext HTTP" in client.error.text
    server = TLSEngine(server_context)
    server.receive(b"GET / HTTP/1.1\r\n")
    assert (server.error.kind, server.state) == (FaultKind.PLAINTEXT, State.FAILED)
    server = TLSEngine(server_context)
    server.receive(b"SSH-2.0-OpenSSH_9\r\n")
    assert "SSH-2.0-OpenSSH" in server.error.text


def test_old_versions_are_refused(server_context):
    # A TLS 1.1 ClientHello cannot be made by a modern OpenSSL: this one is TLS 1.2's with the version lowered.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    stdlib = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        stdlib.do_handshake()
    hello = bytearray(outgoing.read())
    assert hello[9:11] == b"\x03\x03"
    hello[9:11] = b"\x03\x02"
    server = TLSEngine(server_context)
    server.receive(hello)
    assert server.error.kind is FaultKind.NO_COMMON
    assert "no TLS version that we accept" in server.error.text


def test_verification_needs_a_name(client_context):
    with pytest.raises(ContextError, match="server name"):
        TLSEngine(client_context)
