"""What a side of TLS is set up with: settings as frozen values, and the OpenSSL contexts made of them.

Both roles speak TLS 1.2 with ECDHE and AEAD ciphers, or TLS 1.3; no compression, no renegotiation.

A `ServerContext` keeps one base `SSL_CTX`, because that holds the ticket keys; the certificates live in further ones
that the server name callback switches to. So a renewed certificate does not cost clients their sessions. A changed
`client_ca` does take another base: a ticket may not outlive the CA that vouched for its owner.

Files are read again by `reload_if_changed`; a faulty new one leaves everything as it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from . import certificates
from .certificates import ContextError, Trust
from .fault import APPLICATION_VERIFICATION, spiffe_id_of
from .names import CertificatesByName, alpn_bytes, alpn_choice, ascii_name, ip_bytes
from .openssl import (
    MODE_NO_AUTO_CHAIN,
    OP_NO_ANTI_REPLAY,
    OP_PRIORITIZE_CHACHA,
    RECORD_BYTES_MAX,
    ffi,
    lib,
    reason_text,
    x509_from_der,
    x509_to_der,
)
from .replay import ReplayRegister
from .session import Material
from .ticket_keys import Base, TicketKeys, new_base
from .verify import on_verify, verify_failure

__all__ = ["CertificatePair", "ClientContext", "ClientSettings", "ContextError", "ServerContext", "ServerSettings"]

CIPHERS_TLS12: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!PSK:!SRP"
# OpenSSL's, but 128 bits first, as browsers and Go have it: a handshake derives two dozen secrets, and with SHA-256
# that costs each side 12 us of CPU less than with SHA-384.
CIPHERS_TLS13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
TICKET_LIFETIME_S: Final = 86_400  # of tickets that we issue; seven days are allowed (RFC 8446 section 4.6.1)
ALPN_OFFERS_MAX: Final = 256  # remembered: there is a handful of kinds of client, and past that the choice is computed

_MODE: Final = (
    lib.SSL_MODE_RELEASE_BUFFERS
    | lib.SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
    | lib.SSL_MODE_AUTO_RETRY
    | MODE_NO_AUTO_CHAIN
)
_OPTIONS: Final = (
    lib.SSL_OP_NO_COMPRESSION | lib.SSL_OP_NO_RENEGOTIATION | lib.SSL_OP_CIPHER_SERVER_PREFERENCE | OP_PRIORITIZE_CHACHA
)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to reach a peer. Paths are of PEM files; None for `ca` means the system's CAs.

    `server_name` overrides the name that a connection is made with (for SNI and verification). With `spiffe_id` the
    peer's one URI name must equal it and DNS names don't matter; its chain is verified all the same. `groups` is
    OpenSSL's colon-separated list of key exchange groups, None its default (post-quantum hybrid first).
    """

    server_name: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    verify: bool = True
    alpn: tuple[bytes, ...] = ()
    spiffe_id: str | None = None
    early_data: bool = False
    groups: str | None = None


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """Paths of a PEM certificate chain and its key."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How to serve. The first certificate is the default, for clients whose server name fits none (or that send none).

    `min_version` is "1.2" or "1.3". `alpn` is in the order of our preference. With `client_ca` clients must present a
    certificate that it vouches for.
    """

    certificates: tuple[CertificatePair, ...]
    client_ca: str | None = None
    alpn: tuple[bytes, ...] = ()
    early_data: bool = False
    groups: str | None = None
    min_version: str = "1.2"


def _new_context(method: Any) -> Any:
    return ffi.gc(lib.SSL_CTX_new(method), lib.SSL_CTX_free)


def _set_up(context: Any, groups: str | None) -> None:
    lib.SSL_CTX_set_mode(context, _MODE)
    lib.SSL_CTX_set_options(context, _OPTIONS)
    lib.SSL_CTX_set_min_proto_version(context, lib.TLS1_2_VERSION)
    known = lib.SSL_CTX_set_cipher_list(context, CIPHERS_TLS12)
    if not known or not lib.SSL_CTX_set_ciphersuites(context, CIPHERS_TLS13):
        raise ContextError("", f"OpenSSL refuses the cipher list: {reason_text()}")
    if groups is not None and lib.SSL_CTX_set1_curves_list(context, groups.encode()) != 1:
        lib.ERR_clear_error()
        raise ContextError("", f"OpenSSL does not know all of the groups {groups!r}")


def _set_trust(context: Any, trust: Trust) -> None:
    lib.X509_STORE_up_ref(trust.store)  # the context takes a reference over
    lib.SSL_CTX_set_cert_store(context, trust.store)
    # What the file names is trusted, also where it is an intermediate or the peer's own certificate.
    lib.X509_VERIFY_PARAM_set_flags(lib.SSL_CTX_get0_param(context), lib.X509_V_FLAG_PARTIAL_CHAIN)


class ClientContext(certificates.Watched):
    """A client's settings with their files loaded. ContextError where one of them can't be used."""

    is_server: Final = False

    def __init__(self, settings: ClientSettings) -> None:
        if (settings.certificate is None) != (settings.key is None):
            raise ContextError("", "`certificate` and `key` go together: one of them is missing")
        if settings.spiffe_id is not None and not settings.verify:
            raise ContextError("", "`spiffe_id` needs `verify: true`")
        self.settings = settings
        self.warnings: tuple[str, ...] = ()
        self.certificate_asked = False  # by the peer of the handshake that is being driven
        self._callbacks = (ffi.callback("int(SSL *, void *)", self._on_certificate_request),)
        if settings.spiffe_id is not None:
            self._on_verify = ffi.callback("int(int, X509_STORE_CTX *)", self._verify_spiffe)
        else:
            self._on_verify = on_verify
        self._load()

    def __repr__(self) -> str:
        return f"<ClientContext {self.settings}>"

    def _load(self) -> None:
        settings = self.settings
        ca = certificates.system_ca_path() if settings.verify and settings.ca is None else settings.ca
        self._paths = tuple(path for path in (ca, settings.certificate, settings.key) if path is not None)
        stamp = certificates.fingerprint(self._paths)
        context = _new_context(lib.TLS_client_method())
        _set_up(context, settings.groups)
        lib.SSL_CTX_set_session_cache_mode(context, lib.SSL_SESS_CACHE_OFF)
        trust = identity = None
        if settings.verify:
            trust = certificates.load_trust(settings.ca) if settings.ca is not None else certificates.system_trust()
            _set_trust(context, trust)
            lib.X509_VERIFY_PARAM_set_hostflags(
                lib.SSL_CTX_get0_param(context),
                # Only whole labels as wildcards, and no common names: RFC 9525 sections 6.3 and 2.
                lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT,
            )
        lib.SSL_CTX_set_verify(
            context, lib.SSL_VERIFY_PEER if settings.verify else lib.SSL_VERIFY_NONE, self._on_verify
        )
        if settings.certificate is not None and settings.key is not None:
            identity = certificates.load_identity(settings.certificate, settings.key)
            certificates.use_identity(context, identity, settings.certificate)
        lib.SSL_CTX_set_cert_cb(context, self._callbacks[0], ffi.NULL)
        if settings.alpn:
            protocols = alpn_bytes(settings.alpn)
            # 0 is success, alone among its kin.
            if lib.SSL_CTX_set_alpn_protos(context, protocols, len(protocols)) != 0:
                raise ContextError("", f"OpenSSL refuses the ALPN list {settings.alpn}")
        self.handle = context
        self.warnings = (identity.warning,) if identity is not None and identity.warning else ()
        self.trust_digest = b"" if trust is None else trust.digest
        self.identity_digest = b"" if identity is None else identity.digest
        self._stamp = stamp

    @property
    def has_certificate(self) -> bool:
        """Whether there is a certificate for peers that ask for one."""
        return self.settings.certificate is not None

    @property
    def scope_material(self) -> tuple[Material, ...]:
        """All of the settings that a verification depends on, with the files' contents in place of their paths."""
        settings = self.settings
        return (
            settings.verify,
            self.trust_digest,
            self.identity_digest,
            settings.spiffe_id,
            b"".join(bytes((len(name),)) + name for name in settings.alpn),
            settings.groups,
        )

    def reload_if_changed(self) -> str | None:
        """Load the files again where one changed. None: nothing to report; otherwise why the old ones stay in use."""
        if self.is_current:
            return None
        try:
            self._load()
        except ContextError as error:
            return str(error)
        return None

    def host_name(self, server_name: str | None) -> str:
        """The name to ask for and to verify, for a connection made to `server_name`.

        ContextError where there must be one and is none.
        """
        name = (self.settings.server_name or server_name or "").rstrip(".").lower()
        if not name and self.settings.verify and self.settings.spiffe_id is None:
            raise ContextError("", "a server name is needed to verify the peer's certificate")
        return name if name.isascii() else ascii_name(name).decode()

    def new_ssl(self, name: str) -> Any:
        """A connection's `SSL *` (the caller frees it), set to ask for and verify `name` ("" for none)."""
        ssl = lib.SSL_new(self.handle)
        address = ip_bytes(name)
        encoded = b"" if address else name.encode()
        if encoded:
            lib.SSL_set_tlsext_host_name(ssl, encoded)
        if self.settings.verify and self.settings.spiffe_id is None:
            param = lib.SSL_get0_param(ssl)
            if address:
                ok = lib.X509_VERIFY_PARAM_set1_ip(param, address, len(address))
            else:
                ok = lib.X509_VERIFY_PARAM_set1_host(param, encoded, len(encoded))
            if ok != 1:
                lib.SSL_free(ssl)
                raise ContextError("", f"{name!r} can't be verified: {reason_text()}")
        lib.SSL_set_connect_state(ssl)
        return ssl

    def _on_certificate_request(self, _ssl: Any, _argument: Any) -> int:
        self.certificate_asked = True
        return 1

    def _verify_spiffe(self, ok: int, store_context: Any) -> int:
        code = lib.X509_STORE_CTX_get_error(store_context)
        if ok and lib.X509_STORE_CTX_get_error_depth(store_context) == 0:
            der = x509_to_der(lib.X509_STORE_CTX_get_current_cert(store_context))
            if spiffe_id_of(der) != self.settings.spiffe_id:
                ok, code = 0, APPLICATION_VERIFICATION
                lib.X509_STORE_CTX_set_error(store_context, lib.X509_V_ERR_CERT_REJECTED)  # alert bad_certificate
        if not ok:
            verify_failure.note(store_context, code)
        return ok


class ServerContext(certificates.Watched):
    """A server's settings with their files loaded. ContextError where one of them can't be used.

    With `ticket_keys` those of `name` (of the listener, say) are used, without them this context's own. With
    `early_data`, replays are kept out by `replay_register` (which goes with the ticket keys) or, without one, by
    OpenSSL: then tickets are kept in this process and good for one use in it.
    """

    is_server: Final = True

    def __init__(
        self,
        settings: ServerSettings,
        *,
        name: str = "",
        ticket_keys: TicketKeys | None = None,
        replay_register: ReplayRegister | None = None,
    ) -> None:
        if not settings.certificates:
            raise ContextError("", "a TLS listener needs at least one certificate")
        self.settings = settings
        self.name = name
        self.replay_register = replay_register if settings.early_data else None
        self._ticket_keys = ticket_keys
        self.warnings: tuple[str, ...] = ()
        pairs = tuple(path for pair in settings.certificates for path in (pair.certificate, pair.key))
        self._paths = pairs if settings.client_ca is None else (*pairs, settings.client_ca)
        self._on_alpn = ffi.callback(
            "int(SSL *, unsigned char **, unsigned char *, unsigned char *, unsigned int, void *)",
            self._select_alpn,
            error=lib.SSL_TLSEXT_ERR_ALERT_FATAL,
        )
        self._alpn_choices: dict[bytes, int] = {}
        self._purpose = b""
        self.base: Base
        self._load()

    def __repr__(self) -> str:
        return f"<ServerContext {self.settings}>"

    def _load(self) -> None:
        settings = self.settings
        stamp = certificates.fingerprint(self._paths)
        trust = None if settings.client_ca is None else certificates.load_trust(settings.client_ca)
        purpose = self._purpose_with(trust)
        by_name = CertificatesByName(self)
        warnings = []
        for pair in settings.certificates:
            identity = certificates.load_identity(pair.certificate, pair.key)
            context = _new_context(lib.TLS_server_method())
            self._set_up(context, trust, purpose)
            if settings.alpn:
                lib.SSL_CTX_set_alpn_select_cb(context, self._on_alpn, ffi.NULL)
            certificates.use_identity(context, identity, pair.certificate)
            by_name.add(context, identity.leaf)
            if identity.warning:
                warnings.append(identity.warning)
        if purpose != self._purpose:
            self.base = new_base() if self._ticket_keys is None else self._ticket_keys.base(purpose)
            if not self.base.is_set_up:
                self._set_up(self.base.handle, trust, purpose)
                self.base.is_set_up = True
            self._purpose = purpose
        self._certificates = by_name
        self.warnings = tuple(warnings)
        self._stamp = stamp

    def _purpose_with(self, trust: Trust | None) -> bytes:
        """A digest of what a base is set up with. A session is good within one purpose, whatever the keys: a client
        that proved nothing must not resume into a listener that wants proof, nor one of another CA.
        """
        settings, proof = self.settings, None if trust is None else trust.digest
        material = (self.name, settings.alpn, settings.early_data, settings.groups, settings.min_version, proof)
        return hashlib.sha256(repr(("onetrip", *material)).encode()).digest()

    def _set_up(self, context: Any, trust: Trust | None, purpose: bytes) -> None:
        settings = self.settings
        _set_up(context, settings.groups)
        if settings.min_version == "1.3":
            lib.SSL_CTX_set_min_proto_version(context, lib.TLS1_3_VERSION)
        lib.SSL_CTX_set_timeout(context, TICKET_LIFETIME_S)
        lib.SSL_CTX_set_session_id_context(context, purpose, len(purpose))
        lib.SSL_CTX_set_session_cache_mode(context, lib.SSL_SESS_CACHE_OFF)
        if settings.early_data:
            lib.SSL_CTX_set_max_early_data(context, RECORD_BYTES_MAX)
        if self.replay_register is not None:
            lib.SSL_CTX_set_options(context, OP_NO_ANTI_REPLAY)
        elif settings.early_data:
            # OpenSSL's anti-replay makes tickets stateful and single-use: they live in the context's cache (20,480 of
            # them at most).
            lib.SSL_CTX_set_session_cache_mode(context, lib.SSL_SESS_CACHE_SERVER)
        if trust is not None:
            _set_trust(context, trust)
            lib.SSL_CTX_set_verify(context, lib.SSL_VERIFY_PEER | lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify)
            names = lib.sk_X509_NAME_new_null()
            for der in trust.certificates:
                certificate = x509_from_der(der)
                lib.sk_X509_NAME_push(names, lib.X509_NAME_dup(lib.X509_get_subject_name(certificate)))
            lib.SSL_CTX_set_client_CA_list(context, names)  # takes the list over

    def reload_if_changed(self) -> str | None:
        """Load the files again where one changed. None: nothing to report; otherwise why the old ones stay in use.

        Handshakes that are under way finish with what they began with; open connections are not touched.
        """
        if self.is_current:
            return None
        try:
            self._load()
        except ContextError as error:
            return str(error)
        return None

    def new_ssl(self) -> Any:
        """A connection's `SSL *`; the caller frees it."""
        # Not this object: a connection that begins under one `client_ca` does not end under another.
        self.base.owner = self._certificates
        ssl = lib.SSL_new(self.base.handle)
        lib.SSL_set_accept_state(ssl)
        return ssl

    def _select_alpn(self, _ssl: Any, out: Any, out_size: Any, offered: Any, size: int, _argument: Any) -> int:
        # Called only where the client offers something. `out` has to point into memory that lives on: into the client's
        # own list.
        offer: bytes = ffi.buffer(offered, size)[:]
        place = self._alpn_choices.get(offer)
        if place is None:
            place = alpn_choice(offer, self.settings.alpn)
            if len(self._alpn_choices) < ALPN_OFFERS_MAX:  # a handful of kinds of client; past that it is computed
                self._alpn_choices[offer] = place
        if place < 0:
            return int(lib.SSL_TLSEXT_ERR_ALERT_FATAL)
        out_size[0] = offer[place]
        out[0] = offered + place + 1
        return int(lib.SSL_TLSEXT_ERR_OK)
