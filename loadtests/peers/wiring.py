"""What a proxy stands between in one comparison, and what a peer has to offer to take part in it.

A `Wiring` names both sides' protocols and where everything is; a `Peer` turns it into a config and a command line.
The rules that keep the comparison fair stand here, and every peer's module follows them:

- All do the same work: route by host and path, forwarded-for and request-id fields, the time-outs of onetrip's
  defaults, counters, one line per request (or per L4 connection) in a log file, a second try where the first one could
  not connect.
- Each does it the way its own experts would: one worker for one core, upstream keep-alive without limits, its cheapest
  log that still reaches a file, and its defaults wherever they are the recommended value.
- TLS is 1.3 with AES-128-GCM for all (the other side pins it), on ECDSA P-256 certificates; chains and names are
  verified.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOST: Final = "api.bench.test"
"""The name clients ask for, and the one of the certificate that both sides show."""

CIPHERSUITE: Final = "TLS_AES_128_GCM_SHA256"

Downstream = Literal["h1", "h1-tls", "h2c", "tcp"]
Upstream = Literal["h1", "h1-tls", "h2-tls", "tcp"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files in PEM: a CA, a certificate for `HOST` that it signed, its key, and both in one file (`combined`)."""

    ca: Path
    certificate: Path
    key: Path
    combined: Path


@dataclass(frozen=True, slots=True)
class Wiring:
    """One proxy between a client and an origin. `directory` is its own: for config, logs and temporary files."""

    downstream: Downstream
    upstream: Upstream
    port: int
    origin_port: int
    admin_port: int
    directory: Path
    credentials: Credentials

    @property
    def l4(self) -> bool:
        """Whether bytes are carried without being read as HTTP."""
        return self.downstream == "tcp"

    @property
    def access_log(self) -> Path:
        """Where the proxy writes its access log."""
        return self.directory / "access.log"


class Unavailable(Exception):
    """This peer can't take part; the message says why, and how to change that."""


class Peer(Protocol):
    """One proxy. `find` and `config` raise `Unavailable` where it is not installed, or can't do what is asked."""

    name: str
    config_name: str

    def find(self) -> list[str]:
        """The command that starts it, without arguments."""

    def version(self) -> str:
        """What it calls itself, for the report."""

    def config(self, wiring: Wiring) -> str:
        """Its config file's text."""

    def command(self, config: Path) -> list[str]:
        """What starts it, in the foreground."""

    def check(self, config: Path) -> list[str]:
        """What validates the config and exits 0 when it is right."""


def prepare(peer: Peer, wiring: Wiring) -> Path:
    """Write the peer's config into the wiring's directory and return its path."""
    text = peer.config(wiring)
    wiring.directory.mkdir(parents=True, exist_ok=True)
    path = wiring.directory / peer.config_name
    path.write_text(text)
    return path


def find_binary(name: str, how: str) -> str:
    """The path of an installed program, also where PATH has no `sbin`; `how` tells how to get it."""
    path = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise Unavailable(f"not installed: {how}")
    return path


def first_line(command: list[str]) -> str:
    """The first line that a `--version` command prints, on either stream."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_credentials(directory: Path) -> Credentials:
    """A private CA and one certificate, for `HOST` and 127.0.0.1, valid for a week."""
    now = datetime.datetime.now(datetime.UTC)
    week = datetime.timedelta(days=7)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    ca = (
        x509.CertificateBuilder()
        .subject_name(_name("bench CA"))
        .issuer_name(_name("bench CA"))
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - week)
        .not_valid_after(now + week)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(HOST))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - week)
        .not_valid_after(now + week)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    paths = Credentials(*(directory / name for name in ("ca.pem", "edge.pem", "edge.key", "combined.pem")))
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    paths.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    paths.certificate.write_bytes(pem)
    for path, content in ((paths.key, _key_pem(key)), (paths.combined, pem + _key_pem(key))):
        path.touch(mode=0o600)
        path.write_bytes(content)
    return paths


def open_files_max() -> int:
    """How many files this process and its children may open, raised to what the kernel grants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((65536, max(hard, 65536)), (hard, hard)):
        if soft >= wanted[0]:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
            break
        except (ValueError, OSError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


PROJECT: Final = Path(__file__).resolve().parents[2]
ENVIRONMENT: Final = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")])),
}
"""Children run this checkout's onetrip, installed or not."""
