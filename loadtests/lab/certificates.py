"""Certificates made at run time: a lab CA and what it issues. For labs and tests; the keys are worth nothing.

ca = make_ca(directory)
leaf = issue(ca, names=["origin.lab.test", "127.0.0.1"])
context.load_cert_chain(leaf.certificate, leaf.key)
client.load_verify_locations(ca.certificate)
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KeyKind: TypeAlias = Literal["ecdsa", "rsa2048"]
_PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_BACKDATED: Final = datetime.timedelta(hours=1)  # clocks differ
_LIFETIME: Final = datetime.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Issued:
    """Two PEM files: a certificate (with its CA's behind it, where that is not a root) and its private key."""

    certificate: Path
    key: Path

    @property
    def directory(self) -> Path:
        """Where both are."""
        return self.certificate.parent


def make_ca(directory: Path, name: str = "lab ca", *, key: KeyKind = "ecdsa") -> Issued:
    """A self-signed CA; its files are named after it."""
    private = _private_key(key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, private, None, None)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
    )
    return _write(directory, name, builder.sign(private, hashes.SHA256()), private)


def issue(
    ca: Issued,
    *,
    names: Iterable[str],
    key: KeyKind = "ecdsa",
    spiffe: str | None = None,
    not_before: datetime.datetime | None = None,
    not_after: datetime.datetime | None = None,
    directory: Path | None = None,
    file_name: str | None = None,
) -> Issued:
    """A leaf certificate, for servers and clients alike.

    `names` are DNS names (wildcards too) and IP addresses; the first is also the common name and, unless `file_name` is
    given, the files' name. `spiffe` adds a URI name (`spiffe://…`). The files go to `directory`, by default the CA's;
    older ones are replaced.
    """
    listed = list(names)
    issuer = x509.load_pem_x509_certificate(ca.certificate.read_bytes())
    issuer_key = serialization.load_pem_private_key(ca.key.read_bytes(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    private = _private_key(key)
    label = file_name or (listed[0] if listed else spiffe or "leaf")
    alternatives: list[x509.GeneralName] = [_general_name(name) for name in listed]
    if spiffe:
        alternatives.append(x509.UniformResourceIdentifier(spiffe))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, listed[0][:64])] if listed else [])
    builder = (
        _builder(subject, issuer.subject, private, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=not listed)
    return _write(directory or ca.directory, label, builder.sign(issuer_key, hashes.SHA256()), private)


def _private_key(kind: KeyKind) -> _PrivateKey:
    if kind == "ecdsa":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    private: _PrivateKey,
    not_before: datetime.datetime | None,
    not_after: datetime.datetime | None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = not_after or now + _LIFETIME
    # A certificate that has expired already must have begun before that.
    begin = not_before or min(now, end) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not ca,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(directory: Path, label: str, certificate: x509.Certificate, private: _PrivateKey) -> Issued:
    stem = re.sub(r"[^A-Za-z0-9.-]+", "-", label.replace("*", "wildcard")).strip("-")
    issued = Issued(directory / f"{stem}.pem", directory / f"{stem}.key")
    directory.mkdir(parents=True, exist_ok=True)
    issued.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    issued.key.touch(mode=0o600)
    issued.key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return issued
