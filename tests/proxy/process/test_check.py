"""`onetrip check` of what certificates, keys and authorities hold: every fault, each at its own line."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadtests.lab.certificates import issue, make_ca
from proxy.process.check import check, run_check

CONFIG = """\
listeners:
  - name: web
    address: 127.0.0.1:0
    upstream: app
    tls:
      certificates:
        - certificate: {one}
          key: {one_key}
        - certificate: {two}
          key: {two_key}
      client_ca: {clients}
upstreams:
  app:
    tls:
      ca: {ca}
      certificate: {mine}
      key: {mine_key}
    regions: {{here: {{endpoints: ["127.0.0.1:9"]}}}}
"""
LINES = {"one": 7, "one_key": 8, "two": 9, "two_key": 10, "clients": 11, "ca": 15, "mine": 16, "mine_key": 17}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """What each place is given: all well."""
    ca = make_ca(tmp_path)
    one, two = (issue(ca, names=["localhost"], file_name=name) for name in ("one", "two"))
    (tmp_path / "garbage").write_text("no PEM at all\n")
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return {
        "one": str(one.certificate), "one_key": str(one.key), "two": str(two.certificate), "two_key": str(two.key),
        "clients": str(ca.certificate), "ca": str(ca.certificate),
        "mine": str(one.certificate), "mine_key": str(one.key),
    }  # fmt: skip


def checked(tmp_path: Path, files: dict[str, str], **other: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Faults and warnings, as their line and their words, of a config with these files."""
    path = tmp_path / "onetrip.yaml"
    path.write_text(CONFIG.format(**files | other))
    found = check(str(path))
    for one in (*found.faults, *found.warnings):
        assert (one.file, one.column) == (
            str(path),
            len(path.read_text().splitlines()[one.line - 1].split(": ")[0]) + 3,
        )
    return [(one.line, one.message) for one in found.faults], [(one.line, one.message) for one in found.warnings]


def test_what_is_well_is_ok(tmp_path: Path, files: dict[str, str]) -> None:
    assert checked(tmp_path, files) == ([], [])


@pytest.mark.parametrize("place", ["one", "two", "clients", "ca", "mine"])
@pytest.mark.parametrize(
    ("wrong", "words"), [("garbage", "holds no PEM certificate"), ("broken", "broken certificate")]
)
def test_each_certificate(tmp_path: Path, files: dict[str, str], place: str, wrong: str, words: str) -> None:
    [(line, message)], _ = checked(tmp_path, files, **{place: wrong})
    assert line == LINES[place]
    assert words in message


@pytest.mark.parametrize("place", ["one_key", "two_key", "mine_key"])
def test_each_key(tmp_path: Path, files: dict[str, str], place: str) -> None:
    [(line, message)], _ = checked(tmp_path, files, **{place: "garbage"})
    assert (line, "holds no PEM private key" in message) == (LINES[place], True)
    other = files["two_key" if place != "two_key" else "one_key"]
    [(line, message)], _ = checked(tmp_path, files, **{place: other})
    assert (line, "does not belong to" in message) == (LINES[place], True)


def test_all_at_once_in_the_order_of_the_file(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    faults, _ = checked(tmp_path, files, **dict.fromkeys(files, "garbage"))
    assert [line for line, _ in faults] == sorted(LINES.values())
    path = tmp_path / "onetrip.yaml"
    assert run_check(str(path)) == 1
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == list(
        map(str, sorted(LINES.values()))
    )


def test_what_has_expired_is_a_warning(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    old = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(long_ago).not_valid_after(long_ago + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "old.pem").write_bytes(old.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "old.key").write_bytes(key.private_bytes(*form))
    faults, [(line, message)] = checked(tmp_path, files, two="old.pem", two_key="old.key")
    assert (faults, line) == ([], LINES["two"])
    assert "expired on 2020-01-02" in message
    assert run_check(str(tmp_path / "onetrip.yaml")) == 0
    assert capsys.readouterr().out == "ok\n"


def test_what_only_openssl_can_say_stands_at_its_section(tmp_path: Path, files: dict[str, str]) -> None:
    text = CONFIG.format(**files).replace("      ca: ", "      groups: [no-such-group]\n      ca: ")
    (tmp_path / "onetrip.yaml").write_text(text)
    [fault] = check(str(tmp_path / "onetrip.yaml")).faults
    assert fault.line == 15
    assert "upstreams.app.tls" in fault.message
