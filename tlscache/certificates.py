"""Certificates, keys and CAs from files, with errors that name the file; and when those files have changed."""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .openssl import ffi, lib, reason_text, x509_from_der

if TYPE_CHECKING:
    from cryptography import x509


class ContextError(ValueError):
    """A file or a setting that TLS can't be set up with. `file` is its path, or "" where it is about a setting."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}" if file else reason)
        self.file = file
        self.reason = reason


# Where distributions keep the CAs they trust: files first, as Go's crypto/x509 lists them.
SYSTEM_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # BSDs, macOS
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate chain with its key: what a role presents. `chain` is DER, the own certificate first."""

    chain: tuple[bytes, ...]
    key: Any  # EVP_PKEY *
    leaf: x509.Certificate
    digest: bytes  # SHA-256 of the chain and the public key
    warning: str  # what an operator should know: it has expired, or is not valid yet


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ContextError(path, error.strerror or str(error)) from None


def load_certificates(path: str) -> list[x509.Certificate]:
    """Every certificate in a PEM file. ContextError where there is none, or one is broken."""
    from cryptography import x509  # noqa: PLC0415 - see `test_imports`

    data = _read(path)
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise ContextError(path, "holds no PEM certificate (-----BEGIN CERTIFICATE-----)")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ContextError(path, f"broken certificate: {error}") from None


def load_key(path: str) -> Any:
    """The private key in a PEM file, as cryptography's. ContextError where there is none, or one that can't be used."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - see `test_imports`
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see `test_imports`

    data = _read(path)
    try:
        return serialization.load_pem_private_key(data, None)
    except TypeError:
        raise ContextError(path, "the key is encrypted: give it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = "broken or unsupported key" if b"PRIVATE KEY-----" in data else "holds no PEM private key"
        raise ContextError(path, f"{reason} ({str(error).split('. See')[0].rstrip('.')})") from None


def load_identity(certificate_path: str, key_path: str) -> Identity:
    """A certificate chain and its private key from PEM files (which may be one file).

    ContextError says what is wrong with which.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see `test_imports`

    certificates = load_certificates(certificate_path)
    key = load_key(key_path)
    leaf = certificates[0]
    public = leaf.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if (
        key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        != public
    ):
        raise ContextError(key_path, f"the key does not belong to the first certificate in {certificate_path}")
    pkcs8 = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = tuple(certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates)
    return Identity(
        chain,
        _openssl_key(pkcs8, key_path),
        leaf,
        hashlib.sha256(b"".join(chain)).digest(),
        _warning(leaf, certificate_path),
    )


def _openssl_key(pkcs8: bytes, path: str) -> Any:
    bio = lib.BIO_new_mem_buf(pkcs8, len(pkcs8))
    key = lib.d2i_PrivateKey_bio(bio, ffi.NULL)
    lib.BIO_free(bio)
    if key == ffi.NULL:
        raise ContextError(path, f"OpenSSL can't use the key: {reason_text()}")
    return ffi.gc(key, lib.EVP_PKEY_free)


def _warning(leaf: x509.Certificate, path: str) -> str:
    now = datetime.now(UTC)
    if leaf.not_valid_after_utc < now:
        return f"{path}: the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d}"
    if leaf.not_valid_before_utc > now:
        return f"{path}: the certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}"
    return ""


def use_identity(context: Any, identity: Identity, path: str) -> None:
    """Give an `SSL_CTX *` a certificate chain and key."""
    ok = lib.SSL_CTX_use_certificate(context, x509_from_der(identity.chain[0])) == 1
    for der in identity.chain[1:]:
        extra = x509_from_der(der)
        lib.X509_up_ref(extra)  # SSL_CTX_add_extra_chain_cert takes a reference over
        ok = ok and lib.SSL_CTX_add_extra_chain_cert(context, extra) == 1
    if not (ok and lib.SSL_CTX_use_PrivateKey(context, identity.key) == 1):
        raise ContextError(path, f"OpenSSL refuses the certificate: {reason_text()}")


@dataclass(frozen=True, slots=True)
class Trust:
    """CAs that vouch for peers.

    `names` are their subjects, which a server sends along when it asks for a certificate.
    """

    store: Any  # X509_STORE *
    digest: bytes  # SHA-256 of what the file held
    certificates: tuple[bytes, ...]


def load_trust(path: str) -> Trust:
    """The CAs in a PEM file; every certificate in it is trusted, be it a root, an intermediate or a peer's own."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see `test_imports`

    certificates = tuple(
        certificate.public_bytes(serialization.Encoding.DER) for certificate in load_certificates(path)
    )
    store = ffi.gc(lib.X509_STORE_new(), lib.X509_STORE_free)
    for der in certificates:
        if lib.X509_STORE_add_cert(store, x509_from_der(der)) != 1:
            raise ContextError(path, f"OpenSSL refuses a CA certificate: {reason_text()}")
    return Trust(store, hashlib.sha256(b"".join(sorted(set(certificates)))).digest(), certificates)


def system_ca_path() -> str:
    """The platform's file of trusted CAs. ContextError where none is found.

    OpenSSL's own default is of no use here: the linked-in copy looks where it was built. SSL_CERT_FILE overrides, as
    everywhere.
    """
    default = ssl.get_default_verify_paths()
    for path in (os.environ.get("SSL_CERT_FILE"), *SYSTEM_CA_FILES, default.cafile):
        if path and os.path.isfile(path) and os.path.getsize(path):
            return path
    raise ContextError("", "the system has no CA certificates (install ca-certificates, or give the CA in `ca`)")


_system: tuple[tuple[object, ...], Trust] | None = None


def system_trust() -> Trust:
    """The system's CAs, loaded when their file has changed, and shared by all contexts: parsed they take a megabyte."""
    global _system  # noqa: PLW0603  # a cache of the file's contents
    path = system_ca_path()
    stamp = fingerprint((path,))
    if _system is None or _system[0] != stamp:
        _system = (stamp, load_trust(path))
    return _system[1]


class Watched:
    """Something made from files. `is_current`: they are those that were loaded, as far as their stat says."""

    _paths: tuple[str, ...] = ()
    _stamp: tuple[object, ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether nothing is to be loaded."""
        return fingerprint(self._paths) == self._stamp


def fingerprint(paths: tuple[str, ...]) -> tuple[object, ...]:
    """What changes when one of the files does.

    A ConfigMap swaps a symlink: the inode behind it counts, not the link.
    """
    found: list[object] = []
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            found.append((path, error.errno))
        else:
            found.append((path, stat.st_mtime_ns, stat.st_ino, stat.st_dev, stat.st_size))
    return tuple(found)
