"""OpenSSL as `cryptography` binds it: the symbols this package stands on, tested at import, and shapes shared by all.

`cryptography` links OpenSSL statically and hands its functions out through cffi. That is no stable API, so
pyproject.toml pins the minor version, and the import fails with a sentence that names what is missing rather than at
the first handshake.

Every engine of a process belongs to one thread: the buffer below and the list of post-handshake events in `engine` are
shared by all of them, which is what keeps a record at two calls in and two calls out.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.bindings.openssl.binding import Binding

_binding = Binding()
lib: Final[Any] = _binding.lib
ffi: Final[Any] = _binding.ffi

_NEEDED: Final = """
BIO_free BIO_get_mem_data BIO_new BIO_new_mem_buf BIO_read BIO_s_mem BIO_write ERR_clear_error ERR_get_error
ERR_peek_error ERR_reason_error_string SSL_CTX_add_extra_chain_cert SSL_CTX_free SSL_CTX_get0_param
SSL_CTX_get_cert_store SSL_CTX_load_verify_locations SSL_CTX_new SSL_CTX_set1_curves_list SSL_CTX_set_alpn_protos
SSL_CTX_set_alpn_select_cb SSL_CTX_set_cert_cb SSL_CTX_set_cert_store SSL_CTX_set_cipher_list SSL_CTX_set_ciphersuites
SSL_CTX_set_client_CA_list SSL_CTX_set_info_callback SSL_CTX_set_max_early_data SSL_CTX_set_min_proto_version
SSL_CTX_set_mode SSL_CTX_set_options SSL_CTX_set_session_cache_mode SSL_CTX_set_session_id_context SSL_CTX_set_timeout
SSL_CTX_set_tlsext_servername_callback SSL_CTX_set_verify SSL_CTX_use_PrivateKey SSL_CTX_use_certificate
SSL_SESSION_free SSL_SESSION_get_max_early_data SSL_do_handshake SSL_free SSL_get0_alpn_selected SSL_get0_param
SSL_get1_session SSL_get_client_random SSL_get_error SSL_get_peer_certificate SSL_get_servername SSL_get_session
SSL_get_shutdown SSL_get_verify_result SSL_get_version SSL_new SSL_read SSL_read_early_data SSL_session_reused
SSL_set_SSL_CTX SSL_set_accept_state SSL_set_bio SSL_set_connect_state SSL_set_info_callback SSL_set_session
SSL_set_shutdown SSL_set_tlsext_host_name SSL_shutdown SSL_state_string_long SSL_write SSL_write_early_data
TLS_client_method TLS_server_method X509_STORE_CTX_get_current_cert X509_STORE_CTX_get_error
X509_STORE_CTX_get_error_depth X509_STORE_CTX_set_error X509_STORE_add_cert X509_STORE_free X509_STORE_new
X509_STORE_up_ref X509_VERIFY_PARAM_set1_host X509_VERIFY_PARAM_set1_ip X509_VERIFY_PARAM_set_flags
X509_VERIFY_PARAM_set_hostflags X509_free X509_verify_cert_error_string d2i_PrivateKey_bio d2i_SSL_SESSION d2i_X509_bio
i2d_SSL_SESSION i2d_X509_bio
""".split()  # noqa: SIM905  # as a list it would be ninety lines


def _self_test() -> None:
    missing = [name for name in _NEEDED if not hasattr(lib, name)]
    if missing:
        from cryptography import __version__  # noqa: PLC0415  # only for the sentence below

        names = ", ".join(missing)
        raise ImportError(f"cryptography {__version__} does not bind {names}: install the version in pyproject.toml")
    bio = lib.BIO_new(lib.BIO_s_mem())
    pointer = ffi.new("char **")
    if lib.BIO_write(bio, b"self-test", 9) != 9 or lib.BIO_get_mem_data(bio, pointer) != 9:
        raise ImportError("OpenSSL's memory BIOs do not behave as expected")
    lib.BIO_free(bio)


_self_test()

RECORD_BYTES_MAX: Final = 16_384  # plaintext of one TLS record, RFC 8446 section 5.1
CLIENT_RANDOM_BYTES: Final = 32
BUFFER_BYTES: Final = 256 * 1024 + RECORD_BYTES_MAX

buffer: Final[Any] = ffi.new("char[]", BUFFER_BYTES)
"""Where every SSL_read and BIO_read of the process puts its bytes; copied out before the next call."""
buffer_view: Final[Any] = ffi.buffer(buffer)
"""The same memory: `buffer_view[:n]` is a bytes object of its first n bytes."""
pointer_out: Final[Any] = ffi.new("char **")
"""Where BIO_get_mem_data puts a pointer that nobody looks at."""

MODE_NO_AUTO_CHAIN: Final = 1 << 3  # send the chain that was configured, not one made up from the CAs trusted for peers
OP_PRIORITIZE_CHACHA: Final = 1 << 21
OP_NO_ANTI_REPLAY: Final = 1 << 24
"""Numbers of OpenSSL's ssl.h that cryptography does not name."""

EARLY_DATA_ERROR, EARLY_DATA_SUCCESS, EARLY_DATA_FINISH = 0, 1, 2
"""What SSL_read_early_data returns."""


def reasons() -> list[tuple[int, str]]:
    """Take everything from this thread's error queue, oldest first: (reason number, OpenSSL's words for it)."""
    found = []
    while code := lib.ERR_get_error():
        text = lib.ERR_reason_error_string(code)
        found.append(
            (lib.ERR_GET_REASON(code), "" if text == ffi.NULL else ffi.string(text).decode("ascii", "replace"))
        )
    return found


def reason_text() -> str:
    """Take the error queue as one line of text."""
    return ", ".join(text or f"reason {number}" for number, text in reasons()) or "no reason given"


def x509_from_der(der: bytes) -> Any:
    """An `X509 *` that is freed with its Python object. ValueError where the bytes are no certificate."""
    bio = lib.BIO_new_mem_buf(der, len(der))
    certificate = lib.d2i_X509_bio(bio, ffi.NULL)
    lib.BIO_free(bio)
    if certificate == ffi.NULL:
        raise ValueError(reason_text())
    return ffi.gc(certificate, lib.X509_free)


def x509_to_der(certificate: Any) -> bytes:
    """An `X509 *` (borrowed) as DER."""
    bio = lib.BIO_new(lib.BIO_s_mem())
    lib.i2d_X509_bio(bio, certificate)
    size = lib.BIO_get_mem_data(bio, pointer_out)
    der: bytes = ffi.buffer(pointer_out[0], size)[:]
    lib.BIO_free(bio)
    return der
