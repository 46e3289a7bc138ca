"""What a request can claim of where it comes from and what it was before: fields that origins believe because a proxy
is to have written them.

From a trusted client they pass; anybody else's are removed (`exchange.forward`), and so before routes are matched. The
codecs only recognise them, by name and once per spelling, so that requests without one pay nothing. Their twins with
underscores, which CGI and WSGI origins read as the same variable, never pass. docs/forwarding.md has the list.
"""

from __future__ import annotations

from typing import Final

CLAIMED: Final = b":claims"
"""A key that `RequestHead.known` has where a field is a claim. (No field's name: those hold no colon.)"""

CLAIM_NAMES: Final = frozenset(
    b"""forwarded x-forwarded
    client-ip proxy-client-ip real-ip remote-addr remote-ip x-client-ip x-cluster-client-ip x-originating-ip
    x-proxyuser-ip x-real-ip x-real-port x-remote-addr x-remote-ip true-client-ip ali-cdn-real-ip cdn-src-ip
    cf-connecting-ip cf-connecting-ipv6 cf-pseudo-ipv4 cf-visitor do-connecting-ip fastly-client-ip fastly-ssl
    fly-client-ip wl-proxy-client-ip x-appengine-user-ip x-azure-clientip x-azure-socketip x-nf-client-connection-ip
    front-end-https x-scheme x-ssl x-url-scheme
    x-host x-http-host-override x-original-for x-original-forwarded-for x-original-host x-original-method
    x-original-proto x-original-scheme x-original-uri x-original-url x-override-url x-rewrite-url
    client-cert client-cert-chain wl-proxy-client-cert x-arr-clientcert x-arr-ssl x-client-cert x-client-dn
    x-client-verify x-ssl-cert x-ssl-cipher""".split()
)
"""The client's address; the scheme; the host, path and method before a rewrite; the client's certificate (RFC 9440
section 4 asks for that)."""

CLAIM_PREFIXES: Final = (
    b"x-forwarded-", b"x-envoy-", b"x-ssl-client-", b"ssl-client-", b"x-client-cert-", b"onetrip-", b"x-onetrip-",
)  # fmt: skip
"""Families of them: all of Envoy's internal ones, and ours."""

_WRITTEN: Final = frozenset((b"cdn-loop", b"early-data", b"max-forwards", b"x-request-id"))
"""What this proxy itself writes, beside those."""


def is_claim(name: bytes) -> bool:
    """Whether a field (its name in lower case) is one of them."""
    return name in CLAIM_NAMES or name.startswith(CLAIM_PREFIXES)


def is_twin(name: bytes) -> bool:
    """Whether a name with underscores reads, with dashes instead, as a claim or as a field that this proxy writes."""
    if b"_" not in name:
        return False
    dashed = name.replace(b"_", b"-")
    return dashed in _WRITTEN or is_claim(dashed)
