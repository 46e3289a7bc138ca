"""Addresses of peers, as the rest of the program sees them."""

from __future__ import annotations

from ipaddress import IPv6Address


def unmapped(address: str) -> str:
    """An IP address without IPv6's wrapping of an IPv4 one (`::ffff:192.0.2.1`, RFC 4291 section 2.5.5.2), which is how
    a socket for both families shows IPv4 clients. Everything else stays as it is.

    Whoever takes in a peer's address calls this: trust, logs, `x-forwarded-for` and affinity see one client as one.
    """
    if not address.startswith("::ffff:"):  # as the kernel and ipaddress write each of them
        return address
    found = IPv6Address(address.partition("%")[0]).ipv4_mapped
    return str(found) if found is not None else address
