"""What OpenSSL says while it verifies a peer's certificate, kept for the sentence that tells why it failed."""

from __future__ import annotations

from typing import Any, Final

from .openssl import ffi, lib, x509_to_der


class VerifyFailure:
    """The certificate that a verification failed on. Verify callbacks fill it in, the engine at work takes it."""

    __slots__ = ("code", "depth", "der", "words")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the last failure."""
        self.code = 0
        self.depth = 0
        self.der = b""
        self.words = ""

    def note(self, store_context: Any, code: int) -> None:
        """Keep what OpenSSL says of the certificate at hand. The first failure is the one that counts."""
        if self.code:
            return
        self.code = code
        self.depth = lib.X509_STORE_CTX_get_error_depth(store_context)
        self.words = ffi.string(lib.X509_verify_cert_error_string(code)).decode()
        certificate = lib.X509_STORE_CTX_get_current_cert(store_context)
        self.der = b"" if certificate == ffi.NULL else x509_to_der(certificate)


verify_failure: Final = VerifyFailure()


@ffi.callback("int(int, X509_STORE_CTX *)")  # type: ignore[untyped-decorator]
def on_verify(ok: int, store_context: Any) -> int:
    """OpenSSL's verify callback: changes nothing, and notes what failed."""
    if not ok:
        verify_failure.note(store_context, lib.X509_STORE_CTX_get_error(store_context))
    return ok
