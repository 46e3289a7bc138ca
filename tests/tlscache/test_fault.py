"""The sentences that faults are told in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscache import openssl
from tlscache.fault import (
    ALERTS,
    FaultKind,
    alert_fault,
    certificate_fault,
    certificate_names,
    plaintext_fault,
    reason_fault,
    spiffe_id_of,
    uri_names,
)


@given(st.binary(min_size=1, max_size=16), st.booleans())
def test_first_bytes_are_a_record_or_named(first, server):
    fault = plaintext_fault(first, server=server)
    if first[0] in (20, 21, 22, 23) and first[1:2] in (b"", b"\x03"):
        assert fault is None
    else:
        assert fault.kind in (FaultKind.PLAINTEXT, FaultKind.NO_COMMON)
        assert str(fault).isprintable()


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"HTTP/1.0 400", "plaintext HTTP (HTTP/1.0 400)"),
        (b"POST /x HTTP/1.1", "plaintext HTTP request"),
        (b"\x80\x2e\x01\x03\x01", "SSL 2.0"),
        (b"220 smtp.test\r\n", "'220 smtp.test'"),
        (b"\x16\x04", "\\x16\\x04"),
    ],
)
def test_peers_without_tls(first, words):
    assert words in plaintext_fault(first, server=True).text.replace("'HTTP/1.0 400'", "HTTP/1.0 400")


@given(st.integers(0, 255), st.booleans(), st.booleans())
def test_every_alert_has_a_sentence(number, asked, given_one):
    fault = alert_fault(number, certificate_asked=asked, certificate_given=given_one)
    assert fault.alert == ALERTS.get(number, f"alert {number}")
    assert fault.text.startswith(f"peer sent alert {fault.alert}")


def test_a_failed_handshake_after_a_certificate_request_is_about_the_certificate():
    assert "requires a client" in alert_fault(40, certificate_asked=True, certificate_given=False).text
    assert "requires a client" not in alert_fault(40, certificate_asked=True, certificate_given=True).text
    assert "our certificate" in alert_fault(42, certificate_asked=True, certificate_given=True).text


def test_reasons_without_a_sentence_keep_openssls():
    assert reason_fault("bad extension").text == "TLS protocol error: bad extension"
    assert reason_fault("no shared cipher").kind is FaultKind.NO_COMMON


def test_a_certificate_that_can_not_be_parsed():
    fault = certificate_fault(10, "has expired", 0, b"junk", wanted="a", spiffe_id="", server=False)
    assert fault.text == "certificate refused: has expired"
    assert spiffe_id_of(b"junk") == ""


def test_names_of_a_certificate_without_any(authority):
    bare = authority.issue("bare", names=(), ips=()).x509
    assert (certificate_names(bare), uri_names(bare)) == ([], [])


def test_missing_symbols_are_named(monkeypatch):
    monkeypatch.setattr(openssl, "_NEEDED", ["SSL_read", "SSL_of_the_future"])
    with pytest.raises(ImportError, match=r"does not bind SSL_of_the_future: install the version in pyproject\.toml"):
        openssl._self_test()


def test_der_that_is_no_certificate():
    with pytest.raises(ValueError, match=r"\w"):
        openssl.x509_from_der(b"junk")
    assert openssl.reasons() == []
