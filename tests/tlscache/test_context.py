"""Verification, certificates by name, client certificates, SPIFFE ids, reload, and what the errors say."""

import datetime
import os
import shutil
import ssl
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization

from tlscache import certificates
from tlscache.context import CertificatePair, ClientContext, ClientSettings, ContextError, ServerContext, ServerSettings
from tlscache.engine import State, TLSEngine
from tlscache.fault import FaultKind
from tlscache.names import CertificatesByName, alpn_choice

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def client(authority):
    def make(**settings):
        return ClientContext(ClientSettings(**{"ca": authority.path, **settings}))

    return make


@pytest.fixture
def server():
    def make(*issued, **settings):
        return ServerContext(ServerSettings(tuple(one.pair for one in issued), **settings))

    return make


@pytest.fixture
def make(client, server):
    return SimpleNamespace(client=client, server=server)


@pytest.fixture(scope="session")
def client_leaf(authority):
    return authority.issue("client", names=(), ips=(), client=True, uris=("spiffe://prod/web",))


# ---- what a client accepts


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "localhost.", "127.0.0.1"])
def test_names_and_addresses_match(connect, client, server, leaf, name):
    assert connect(client(), server(leaf), server_name=name)[0].state is State.OPEN


def test_ipv6_addresses_match(connect, client, server, authority):
    leaf = authority.issue("six", names=(), ips=("::1",))
    assert connect(client(), server(leaf), server_name="::1")[0].state is State.OPEN
    assert connect(client(), server(leaf), server_name="::2")[0].state is State.FAILED


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (("*.example.com",), "a.b.example.com"),
        (("*.example.com",), "example.com"),
        (("a*.example.com",), "ab.example.com"),
        (("example.com",), "example.org"),
        (("127.0.0.1",), "127.0.0.1"),  # an address as a DNS name
    ],
)
def test_names_that_do_not_match(connect, make, authority, names, asked):
    leaf = authority.issue("mismatch", names=names, ips=())
    engine, _ = connect(make.client(), make.server(leaf), server_name=asked)
    assert engine.error.kind is FaultKind.CERTIFICATE
    assert engine.error.text == f"name {asked} not in [{', '.join(names)}]"


def test_a_common_name_is_no_name(connect, client, server, authority):
    leaf = authority.issue("common", names=(), ips=(), common_name="localhost")
    assert connect(client(), server(leaf))[0].error.text == "name localhost not in []"


def test_international_names(connect, client, server, authority):
    leaf = authority.issue("idn", names=("xn--bcher-kva.test",))
    context, peer = client(), server(leaf)
    first, _ = connect(context, peer, server_name="bücher.test")
    assert first.state is State.OPEN
    assert connect(context, peer, server_name="bücher.test", session=first.tickets[0])[0].resumed
    with pytest.raises(ContextError, match="no host name"):
        TLSEngine(context, server_name="ü" * 64)


def test_wildcard_of_one_label_matches(connect, client, server, authority):
    leaf = authority.issue("wild", names=("*.example.com",))
    assert connect(client(), server(leaf), server_name="a.example.com")[0].state is State.OPEN


def test_the_settings_name_overrides(connect, client, server, leaf):
    context = client(server_name="localhost")
    engine, peer = connect(context, server(leaf), server_name="10.0.0.1")
    assert (engine.state, peer.server_name) == (State.OPEN, "localhost")


def test_expired(connect, client, server, authority):
    leaf = authority.issue("old", start=NOW - 9 * DAY, end=NOW - 2 * DAY)
    engine, peer = connect(client(), server(leaf))
    assert engine.error.text == f"certificate expired on {NOW - 2 * DAY:%Y-%m-%d}"
    assert (peer.error.kind, peer.error.alert) == (FaultKind.CERTIFICATE_REFUSED, "certificate_expired")


def test_not_yet_valid(connect, client, server, authority):
    leaf = authority.issue("young", start=NOW + 2 * DAY)
    assert connect(client(), server(leaf))[0].error.text == f"certificate is not valid before {NOW + 2 * DAY:%Y-%m-%d}"


def test_unknown_issuer(connect, client, server, other_authority):
    leaf = other_authority.issue("stranger")
    text = connect(client(), server(leaf))[0].error.text
    assert text == "unable to get local issuer certificate CN=other ca: give its CA in `ca`"


def test_self_signed(connect, client, server, authority):
    leaf = authority.issue("alone", self_signed=True)
    engine, _ = connect(client(), server(leaf))
    assert engine.error.text == "self-signed certificate CN=leaf: give it in `ca` to trust it"
    assert connect(client(ca=leaf.certificate), server(leaf))[0].state is State.OPEN


def test_a_pinned_leaf_is_trusted(connect, client, server, leaf):
    assert connect(client(ca=leaf.certificate), server(leaf))[0].state is State.OPEN


def test_a_client_certificate_does_not_serve(connect, client, server, authority):
    leaf = authority.issue("wrong_use", client=True)
    assert "may not be used for servers" in connect(client(), server(leaf))[0].error.text


def test_without_verification_anything_goes(connect, server, other_authority):
    leaf = other_authority.issue("whatever", names=("elsewhere",))
    engine, _ = connect(ClientContext(ClientSettings(verify=False)), server(leaf))
    assert engine.state is State.OPEN


def test_the_systems_authorities_are_the_default(connect, server, leaf, authority, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", authority.path)
    assert connect(ClientContext(ClientSettings()), server(leaf))[0].state is State.OPEN


def test_a_system_without_authorities_is_an_error(monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(certificates, "SYSTEM_CA_FILES", (str(tmp_path / "none"),))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: ssl.DefaultVerifyPaths(None, None, "", "", "", ""))
    with pytest.raises(ContextError, match="install ca-certificates"):
        ClientContext(ClientSettings())


# ---- client certificates


def test_mutual_tls(connect, make, leaf, authority, client_leaf):
    context = make.client(certificate=client_leaf.certificate, key=client_leaf.key)
    engine, peer = connect(context, make.server(leaf, client_ca=authority.path))
    assert (engine.state, peer.state) == (State.OPEN, State.OPEN)
    assert peer.peer_certificate_der == client_leaf.x509.public_bytes(serialization.Encoding.DER)
    assert peer.peer_spiffe_id == "spiffe://prod/web"


def test_a_missing_client_certificate_is_named_on_both_sides(connect, client, server, leaf, authority):
    engine, peer = connect(client(), server(leaf, client_ca=authority.path))
    assert peer.error.text == "client gave no certificate, and this listener requires one"
    assert engine.state is State.FAILED
    assert engine.error.kind is FaultKind.CERTIFICATE_REFUSED
    assert "peer requires a client certificate: give `certificate` and `key`" in engine.error.text


def test_a_missing_client_certificate_in_tls12(shuttle, client, server, leaf, authority):
    from tlscache.openssl import lib

    engine, peer = TLSEngine(client(), server_name="localhost"), TLSEngine(server(leaf, client_ca=authority.path))
    lib.SSL_set_options(engine._ssl, lib.SSL_OP_NO_TLSv1_3)
    engine.start()
    shuttle(engine, peer)
    assert "peer requires a client certificate" in engine.error.text


def test_a_strangers_client_certificate_is_refused(connect, make, leaf, authority, other_authority):
    stranger = other_authority.issue("client_stranger", client=True)
    context = make.client(certificate=stranger.certificate, key=stranger.key)
    engine, peer = connect(context, make.server(leaf, client_ca=authority.path))
    assert "give its CA in `client_ca`" in peer.error.text
    assert (engine.error.kind, engine.error.alert) == (FaultKind.CERTIFICATE_REFUSED, "unknown_ca")


def test_an_expired_client_certificate_is_refused(connect, client, server, leaf, authority):
    old = authority.issue("client_old", client=True, start=NOW - 9 * DAY, end=NOW - 2 * DAY)
    context = client(certificate=old.certificate, key=old.key)
    assert "expired" in context.warnings[0]
    _, peer = connect(context, server(leaf, client_ca=authority.path))
    assert peer.error.text == f"client certificate expired on {NOW - 2 * DAY:%Y-%m-%d}"


# ---- SPIFFE ids


@pytest.mark.parametrize(
    ("uris", "accepted"),
    [
        (("spiffe://prod/payments",), True),
        (("spiffe://prod/payments/",), False),
        (("spiffe://prod/Payments",), False),
        (("spiffe://prod/payments", "spiffe://prod/web"), False),
        ((), False),
    ],
)
def test_the_spiffe_id_must_be_the_one(connect, make, authority, uris, accepted):
    leaf = authority.issue("workload", names=(), ips=(), uris=uris)
    engine, peer = connect(make.client(spiffe_id="spiffe://prod/payments"), make.server(leaf), server_name="10.9.8.7")
    assert (engine.state is State.OPEN) is accepted
    if not accepted:
        assert engine.error.text.startswith("SPIFFE id spiffe://prod/payments wanted, certificate has ")
        assert peer.error.kind is FaultKind.CERTIFICATE_REFUSED


def test_a_spiffe_id_of_a_stranger_is_refused(connect, client, server, other_authority):
    leaf = other_authority.issue("workload", names=(), uris=("spiffe://prod/payments",))
    engine, _ = connect(client(spiffe_id="spiffe://prod/payments"), server(leaf))
    assert "unable to get local issuer" in engine.error.text


def test_a_spiffe_id_needs_verification():
    with pytest.raises(ContextError, match="verify: true"):
        ClientContext(ClientSettings(spiffe_id="spiffe://a/b", verify=False))


# ---- what a server presents


def test_certificates_are_chosen_by_name(connect, client, server, authority):
    first, second = authority.issue("first", ("a.example.com",)), authority.issue("second", ("*.example.com", "b.test"))
    context = server(first, second)
    for name, expected in [
        ("a.example.com", first),
        ("z.example.com", second),
        ("b.test", second),
        ("A.EXAMPLE.com", first),
    ]:
        engine, _ = connect(client(), context, server_name=name)
        assert engine.peer_certificate_der == expected.x509.public_bytes(serialization.Encoding.DER), name
    engine, _ = connect(client(verify=False), context, server_name="unknown.test")
    assert engine.peer_certificate_der == first.x509.public_bytes(serialization.Encoding.DER)


def test_a_client_without_a_server_name_gets_the_default(connect, client, server, authority, leaf):
    other = authority.issue("other", ("other.test",))
    assert connect(client(), server(leaf, other), server_name="127.0.0.1")[0].state is State.OPEN


def test_certificates_by_name(leaf, authority):
    by_name = CertificatesByName()
    by_name.add("first", leaf.x509)
    by_name.add("wild", authority.issue("w", ("*.example.com",), ips=()).x509)
    assert by_name.pick("localhost") == "first"
    assert by_name.pick("x.example.com.") == "wild"
    assert by_name.pick("x.y.example.com") == "first"
    assert by_name.pick("example.com") == "first"
    assert by_name.pick("") == "first"


def test_alpn_choice():
    assert alpn_choice(b"\x02h2\x08http/1.1", (b"http/1.1", b"h2")) == 3
    assert alpn_choice(b"\x02h2", (b"http/1.1",)) == -1
    assert alpn_choice(b"", (b"h2",)) == -1


def test_rsa_certificates_serve(connect, client, server, authority):
    leaf = authority.issue("rsa", use_rsa=True)
    assert connect(client(), server(leaf))[0].state is State.OPEN


def test_chains_are_sent_whole(connect, client, server, authority, tmp_path):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "intermediate")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(authority.name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    middle = builder.sign(authority.key, hashes.SHA256())
    issuer = type(authority)(tmp_path, "scratch")
    issuer.name, issuer.key = name, key
    leaf = issuer.issue("under")
    with open(leaf.certificate, "ab") as file:
        file.write(middle.public_bytes(serialization.Encoding.PEM))
    assert connect(client(), server(leaf))[0].state is State.OPEN


# ---- errors in files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "holds no PEM certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "broken certificate"),
    ],
)
def test_broken_files_are_named(tmp_path, leaf, content, message):
    path = tmp_path / "broken.pem"
    if content is not None:
        path.write_bytes(content)
    for make in (
        lambda: ClientContext(ClientSettings(ca=str(path))),
        lambda: ServerContext(ServerSettings((CertificatePair(str(path), leaf.key),))),
        lambda: ServerContext(ServerSettings((leaf.pair,), client_ca=str(path))),
    ):
        with pytest.raises(ContextError, match=message) as caught:
            make()
        assert caught.value.file == str(path)
        assert isinstance(caught.value, ValueError)


def test_a_key_of_another_certificate(authority, leaf):
    other = authority.issue("other_key")
    with pytest.raises(ContextError, match="does not belong to the first certificate") as caught:
        ServerContext(ServerSettings((CertificatePair(leaf.certificate, other.key),)))
    assert caught.value.file == other.key


def test_keys_that_are_none(leaf, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(Path(leaf.certificate).read_bytes())
    with pytest.raises(ContextError, match="holds no PEM private key"):
        certificates.load_identity(leaf.certificate, str(path))
    key = serialization.load_pem_private_key(Path(leaf.key).read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(ContextError, match="without a passphrase"):
        certificates.load_identity(leaf.certificate, str(path))


def test_half_an_identity_is_refused(leaf):
    with pytest.raises(ContextError, match="go together"):
        ClientContext(ClientSettings(certificate=leaf.certificate))


@pytest.mark.parametrize("settings", [{"groups": "X25519:nonsense"}, {"alpn": (b"",)}, {"alpn": (b"x" * 256,)}])
def test_settings_that_openssl_does_not_know(authority, settings):
    with pytest.raises(ContextError):
        ClientContext(ClientSettings(ca=authority.path, **settings))


def test_a_listener_needs_a_certificate():
    with pytest.raises(ContextError, match="at least one"):
        ServerContext(ServerSettings(()))


def test_no_group_in_common(connect, client, server, leaf):
    engine, peer = connect(client(groups="P-256"), server(leaf, groups="X25519"))
    assert (engine.error.kind, peer.error.kind) == (FaultKind.NO_COMMON, FaultKind.NO_COMMON)


# ---- reload


@pytest.fixture
def configmap(tmp_path, authority):
    """A directory that swaps its contents as Kubernetes does: `current` is a link to one of several directories."""

    def fill(name, issued):
        directory = tmp_path / name
        directory.mkdir()
        shutil.copy(issued.certificate, directory / "tls.crt")
        shutil.copy(issued.key, directory / "tls.key")
        link = tmp_path / "new"
        link.symlink_to(directory)
        os.rename(link, tmp_path / "current")

    fill.pair = CertificatePair(str(tmp_path / "current/tls.crt"), str(tmp_path / "current/tls.key"))
    return fill


def der_of(issued):
    return issued.x509.public_bytes(serialization.Encoding.DER)


def test_a_renewed_certificate_is_served_and_sessions_go_on(connect, client, authority, configmap, leaf):
    configmap("one", leaf)
    context = ServerContext(ServerSettings((configmap.pair,)))
    before, _ = connect(client(), context)
    assert context.reload_if_changed() is None
    renewed = authority.issue("renewed")
    configmap("two", renewed)
    assert context.reload_if_changed() is None
    after, _ = connect(client(), context)
    assert (before.peer_certificate_der, after.peer_certificate_der) == (der_of(leaf), der_of(renewed))
    resumed, _ = connect(client(), context, session=before.tickets[0])
    assert resumed.resumed


def test_a_broken_renewal_keeps_the_old_one(connect, client, authority, configmap, leaf):
    configmap("one", leaf)
    context = ServerContext(ServerSettings((configmap.pair,)))
    mixed = authority.issue("mixed")
    mixed.key = leaf.key
    configmap("two", mixed)
    assert "does not belong" in context.reload_if_changed()
    assert "does not belong" in context.reload_if_changed()
    assert connect(client(), context)[0].peer_certificate_der == der_of(leaf)
    Path(configmap.pair.certificate).unlink()
    assert "No such file" in context.reload_if_changed()
    assert connect(client(), context)[0].state is State.OPEN


def test_a_new_client_authority_ends_old_sessions(connect, client, authority, other_authority, tmp_path):
    leaf, client_leaf = authority.issue("renewing"), authority.issue("renewing_client", client=True)
    path = tmp_path / "clients.pem"
    shutil.copy(authority.path, path)
    context = ServerContext(ServerSettings((leaf.pair,), client_ca=str(path)))
    mine = client(certificate=client_leaf.certificate, key=client_leaf.key)
    before, _ = connect(mine, context)
    shutil.copy(other_authority.path, tmp_path / "new.pem")
    os.rename(tmp_path / "new.pem", path)
    assert context.reload_if_changed() is None
    _, peer = connect(mine, context, session=before.tickets[0])
    assert peer.state is State.FAILED
    assert "give its CA in `client_ca`" in peer.error.text


def test_a_clients_files_are_reloaded(connect, server, other_authority, authority, tmp_path):
    leaf = authority.issue("served")
    path = tmp_path / "ca.pem"
    shutil.copy(other_authority.path, path)
    context = ClientContext(ClientSettings(ca=str(path)))
    before = context.scope_material
    assert connect(context, server(leaf))[0].state is State.FAILED
    shutil.copy(authority.path, tmp_path / "new.pem")
    os.rename(tmp_path / "new.pem", path)
    assert context.reload_if_changed() is None
    assert connect(context, server(leaf))[0].state is State.OPEN
    assert context.scope_material != before
    path.write_bytes(b"nonsense")
    assert "holds no PEM certificate" in context.reload_if_changed()
    assert connect(context, server(leaf))[0].state is State.OPEN


def test_an_expired_server_certificate_is_warned_of(server, authority):
    context = server(authority.issue("old_server", start=NOW - 9 * DAY, end=NOW - 2 * DAY))
    assert "the certificate expired on" in context.warnings[0]
