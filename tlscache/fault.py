"""What can go wrong with a TLS connection, told so that whoever reads the log knows what to change.

A fault is a value: engines keep it in `error`, nothing a peer sends raises. The texts name the file, the name or the
setting that is in question; the alert's name (RFC 8446 section 6) stands in them where one was sent or received.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography import x509


class FaultKind(Enum):
    """Whose fault it is, as far as the handshake tells."""

    CERTIFICATE = "certificate"  # we refused the peer's certificate
    CERTIFICATE_REFUSED = "certificate_refused"  # the peer refused ours, or misses it
    NO_COMMON = "no_common"  # no version, cipher, group or application protocol in common
    PLAINTEXT = "plaintext"  # the peer does not speak TLS at all
    ALERT = "alert"  # the peer gave up for another reason
    PROTOCOL = "protocol"  # the peer broke the protocol (or a byte was damaged on the way)
    FLOOD = "flood"  # control messages without end
    INTERNAL = "internal"  # ours


@dataclass(frozen=True, slots=True)
class TLSFault:
    """Why a connection failed: its kind, a sentence, and the alert received (its RFC name) or ""."""

    kind: FaultKind
    text: str
    alert: str = ""

    def __str__(self) -> str:
        return self.text


# RFC 8446 section 6 and the IANA registry; the numbers OpenSSL adds 1000 to as reasons of alerts received.
ALERTS: Final = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    100: "no_renegotiation",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}
ALERT_REASON_OFFSET: Final = 1000

_CERTIFICATE_ALERTS: Final = frozenset((42, 43, 44, 45, 46, 48, 49))
_ALERT_HINTS: Final = {
    40: (FaultKind.NO_COMMON, "no cipher, group or signature algorithm in common"),
    70: (FaultKind.NO_COMMON, "it accepts neither TLS 1.2 nor TLS 1.3"),
    71: (FaultKind.NO_COMMON, "it wants stronger parameters than we offer"),
    112: (FaultKind.ALERT, "it serves no such server name"),
    116: (FaultKind.CERTIFICATE_REFUSED, "peer requires a client certificate: give `certificate` and `key`"),
    120: (FaultKind.NO_COMMON, "it speaks none of the application protocols that we offer (ALPN)"),
}


def alert_fault(number: int, *, certificate_asked: bool, certificate_given: bool) -> TLSFault:
    """The fault that a fatal alert from the peer stands for.

    `certificate_*`: whether it asked for ours, and whether we have one.
    """
    name = ALERTS.get(number, f"alert {number}")
    if certificate_asked and not certificate_given and (number == 40 or number in _CERTIFICATE_ALERTS):
        text = f"peer sent alert {name}: peer requires a client certificate: give `certificate` and `key`"
        return TLSFault(FaultKind.CERTIFICATE_REFUSED, text, name)
    if number in _CERTIFICATE_ALERTS:
        return TLSFault(
            FaultKind.CERTIFICATE_REFUSED,
            f"peer sent alert {name}: it does not accept our certificate, or our CA",
            name,
        )
    kind, hint = _ALERT_HINTS.get(number, (FaultKind.ALERT, ""))
    return TLSFault(kind, f"peer sent alert {name}{': ' if hint else ''}{hint}", name)


def plaintext_fault(first: bytes, *, server: bool) -> TLSFault | None:
    """The fault of a peer whose first bytes are no TLS record, or None where they may be one (RFC 8446 section 5.1)."""
    if first[0] in (20, 21, 22, 23) and (len(first) < 2 or first[1] == 3):
        return None
    if first[0] & 0x80 and server and len(first) > 2 and first[2] == 1:
        return TLSFault(FaultKind.NO_COMMON, "client sent an SSL 2.0 hello")
    start = first[:16].decode("latin-1")
    shown = ascii(start if start.isprintable() else start.split("\r")[0].split("\n")[0])
    who = "client" if server else "peer"
    if first.startswith(b"HTTP/"):
        return TLSFault(FaultKind.PLAINTEXT, f"{who} speaks no TLS: it answered in plaintext HTTP ({shown})")
    if first.split(b" ", 1)[0] in (
        b"GET",
        b"POST",
        b"PUT",
        b"HEAD",
        b"OPTIONS",
        b"DELETE",
        b"PATCH",
        b"CONNECT",
        b"PRI",
    ):
        return TLSFault(FaultKind.PLAINTEXT, f"{who} speaks no TLS: it sent a plaintext HTTP request ({shown})")
    return TLSFault(FaultKind.PLAINTEXT, f"{who} speaks no TLS: its first bytes are {shown}")


# OpenSSL's reasons (ssl/ssl_err.c) worth a better sentence than their own.
_REASONS: Final = {
    "unsupported protocol": (FaultKind.NO_COMMON, "peer offers no TLS version that we accept (1.2 and 1.3)"),
    "wrong version number": (
        FaultKind.NO_COMMON,
        "peer answered with a TLS version that we do not accept, or speaks no TLS",
    ),
    "no shared cipher": (FaultKind.NO_COMMON, "no cipher in common with the peer"),
    "no suitable key share": (FaultKind.NO_COMMON, "no key exchange group in common with the peer"),
    "no shared groups": (FaultKind.NO_COMMON, "no key exchange group in common with the peer"),
    "no suitable groups": (FaultKind.NO_COMMON, "no key exchange group in common with the peer"),
    "no suitable signature algorithm": (FaultKind.NO_COMMON, "no signature algorithm in common with the peer"),
    "no application protocol": (FaultKind.NO_COMMON, "no application protocol (ALPN) in common with the peer"),
    "peer did not return a certificate": (
        FaultKind.CERTIFICATE,
        "client gave no certificate, and this listener requires one",
    ),
    "decryption failed or bad record mac": (FaultKind.PROTOCOL, "a record was damaged or forged (bad_record_mac)"),
    "http request": (FaultKind.PLAINTEXT, "client speaks no TLS: it sent a plaintext HTTP request"),
    "https proxy request": (FaultKind.PLAINTEXT, "client speaks no TLS: it sent a plaintext CONNECT request"),
    "unexpected eof while reading": (FaultKind.PROTOCOL, "peer closed the connection without close_notify"),
}


def reason_fault(text: str) -> TLSFault:
    """The fault that one of OpenSSL's reasons stands for."""
    kind, sentence = _REASONS.get(text, (FaultKind.PROTOCOL, f"TLS protocol error: {text}"))
    return TLSFault(kind, sentence)


# X509_V_ERR_*, from openssl/x509_vfy.h.
_EXPIRED, _NOT_YET, _SELF_SIGNED, _SELF_SIGNED_IN_CHAIN = 10, 9, 18, 19
_NO_ISSUER: Final = frozenset((2, 20, 21))
_NAME_MISMATCH: Final = frozenset((62, 64))
APPLICATION_VERIFICATION: Final = 50
_INVALID_PURPOSE: Final = 26


def certificate_fault(
    code: int, words: str, depth: int, der: bytes, *, wanted: str, spiffe_id: str, server: bool
) -> TLSFault:
    """Why a peer's certificate was refused.

    `code` and `words` are OpenSSL's verify error, `depth` the certificate's place in the chain (0 is the peer's own),
    `der` that certificate, `wanted` the host name or address that was asked for, `spiffe_id` the one that was required,
    or "".
    """
    from cryptography import x509  # noqa: PLC0415 - see `test_imports`

    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError:
        return TLSFault(FaultKind.CERTIFICATE, f"certificate refused: {words}")
    which = (
        ("client certificate" if server else "certificate") if depth == 0 else f"CA certificate {_subject(certificate)}"
    )
    setting = "client_ca" if server else "ca"
    if code == _EXPIRED:
        text = f"{which} expired on {certificate.not_valid_after_utc.astimezone(UTC):%Y-%m-%d}"
    elif code == _NOT_YET:
        text = f"{which} is not valid before {certificate.not_valid_before_utc.astimezone(UTC):%Y-%m-%d}"
    elif code in _NAME_MISMATCH:
        text = f"name {wanted} not in [{', '.join(certificate_names(certificate))}]"
    elif code == _SELF_SIGNED:
        text = f"self-signed certificate {_subject(certificate)}: give it in `{setting}` to trust it"
    elif code == _SELF_SIGNED_IN_CHAIN:
        text = f"certificate chain ends in {_subject(certificate)}, which is not trusted: give it in `{setting}`"
    elif code in _NO_ISSUER:
        text = (
            f"unable to get local issuer certificate {certificate.issuer.rfc4514_string()}: give its CA in `{setting}`"
        )
    elif code == _INVALID_PURPOSE:
        text = f"{which} may not be used for {'clients' if server else 'servers'} (extended key usage)"
    elif code == APPLICATION_VERIFICATION:
        found = uri_names(certificate)
        text = f"SPIFFE id {spiffe_id} wanted, certificate has " + (f"[{', '.join(found)}]" if found else "no URI name")
    else:
        text = f"{which} refused: {words}"
    return TLSFault(FaultKind.CERTIFICATE, text)


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "(no subject)"


def certificate_names(certificate: x509.Certificate) -> list[str]:
    """The DNS names and IP addresses in a certificate's subject alternative name; [] where it has none."""
    from cryptography import x509  # noqa: PLC0415 - see `test_imports`

    names = _alternative_names(certificate)
    return (
        names.get_values_for_type(x509.DNSName) + [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
        if names
        else []
    )


def uri_names(certificate: x509.Certificate) -> list[str]:
    """The URIs in a certificate's subject alternative name; a SPIFFE certificate has exactly one."""
    from cryptography import x509  # noqa: PLC0415 - see `test_imports`

    names = _alternative_names(certificate)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:

    from cryptography import x509  # noqa: PLC0415 - see `test_imports`

    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def spiffe_id_of(der: bytes) -> str:
    """The SPIFFE id in a certificate, or "" where it has none, or more than one URI (SPIFFE X.509-SVID section 2)."""
    from cryptography import x509  # noqa: PLC0415 - see `test_imports`

    try:
        uris = uri_names(x509.load_der_x509_certificate(der))
    except ValueError:
        return ""
    return uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else ""
