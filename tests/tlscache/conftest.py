"""A certificate authority for tests, and a pair of engines joined by memory."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tlscache.context import CertificatePair
from tlscache.engine import TLSEngine

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass
class Issued:
    """Paths of a certificate and its key, with the certificate itself."""

    certificate: str
    key: str
    x509: x509.Certificate

    @property
    def pair(self) -> CertificatePair:
        return CertificatePair(self.certificate, self.key)


class Authority:
    """Issues certificates into a directory."""

    def __init__(self, directory: Path, name: str = "test ca") -> None:
        self.directory = directory
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.x509 = (
            self._builder(self.name, self.key.public_key(), NOW - DAY, NOW + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.path = str(directory / f"{name.replace(' ', '_')}.pem")
        Path(self.path).write_bytes(self.x509.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject, public_key, start, end) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public_key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)

    def issue(
        self,
        file: str,
        names=("localhost",),
        *,
        ips=("127.0.0.1",),
        uris=(),
        common_name="leaf",
        start=NOW - DAY,
        end=NOW + 30 * DAY,
        client=False,
        use_rsa=False,
        self_signed=False,
    ) -> Issued:
        key = rsa.generate_private_key(65537, 2048) if use_rsa else ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = self._builder(subject, key.public_key(), start, end)
        if self_signed:
            builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            builder = builder.serial_number(1).not_valid_before(start).not_valid_after(end)
        alternatives = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        alternatives += [x509.UniformResourceIdentifier(uri) for uri in uris]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.sign(key if self_signed else self.key, hashes.SHA256())
        paths = self.directory / f"{file}.pem", self.directory / f"{file}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Issued(str(paths[0]), str(paths[1]), certificate)


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other_ca"), "other ca")


@pytest.fixture(scope="session")
def leaf(authority) -> Issued:
    return authority.issue("localhost")


def _shuttle(client, server) -> tuple[bytes, bytes]:
    """Carry bytes both ways until neither side has any more; return the plaintext that (client, server) received."""
    to_client, to_server = b"", b""
    while True:
        up = client.data_to_send()
        if up:
            to_server += server.receive(up)
        down = server.data_to_send()
        if down:
            to_client += client.receive(down)
        if not up and not down:
            return to_client, to_server


def _connect(client_context, server_context, **arguments) -> tuple[TLSEngine, TLSEngine]:
    """A client's and a server's engine after their handshake (which may have failed)."""
    client = TLSEngine(client_context, **{"server_name": "localhost", **arguments})
    server = TLSEngine(server_context)
    client.start()
    _shuttle(client, server)
    return client, server


@pytest.fixture(scope="session")
def shuttle():
    return _shuttle


@pytest.fixture(scope="session")
def connect():
    return _connect
