from __future__ import annotations

import datetime
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509

from loadtests.lab.certificates import Issued, issue, make_ca


def handshake(server: Issued, ca: Issued, name: str) -> Mapping[str, object]:
    """A handshake in memory that verifies chain and name; the certificate that the client saw."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server.certificate, server.key)
    client_context = ssl.create_default_context(cafile=str(ca.certificate))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    peer = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, peer, client, peer):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    seen = client.getpeercert()
    assert seen
    return seen


@pytest.mark.parametrize("key", ["ecdsa", "rsa2048"])
@pytest.mark.parametrize("name", ["api.lab.test", "x.wild.lab.test", "10.66.1.1"])
def test_leaves_verify_under_their_ca(tmp_path: Path, key: str, name: str) -> None:
    ca = make_ca(tmp_path)
    leaf = issue(ca, names=["api.lab.test", "*.wild.lab.test", "10.66.1.1"], key=key)  # type: ignore[arg-type]
    assert handshake(leaf, ca, name)["subject"] == ((("commonName", "api.lab.test"),),)


def test_other_names_and_other_cas_do_not_verify(tmp_path: Path) -> None:
    ca = make_ca(tmp_path)
    leaf = issue(ca, names=["api.lab.test"])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(leaf, ca, "web.lab.test")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
        handshake(leaf, make_ca(tmp_path / "other"), "api.lab.test")


def test_expired_certificates_can_be_made(tmp_path: Path) -> None:
    ca = make_ca(tmp_path)
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    leaf = issue(ca, names=["old.lab.test"], not_after=yesterday)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(leaf, ca, "old.lab.test")


def test_a_spiffe_id_alone_will_do(tmp_path: Path) -> None:
    leaf = issue(make_ca(tmp_path), names=[], spiffe="spiffe://prod/payments", file_name="payments")
    certificate = x509.load_pem_x509_certificate(leaf.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical  # RFC 5280 section 4.2.1.6: there is no subject
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://prod/payments"]


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    leaf = issue(make_ca(tmp_path), names=["*.lab.test"])
    assert leaf.key.name == "wildcard.lab.test.key"
    assert stat.S_IMODE(leaf.key.stat().st_mode) == 0o600
