"""One client, one address."""

from __future__ import annotations

import pytest

from proxy.downstream.proxy_protocol import ProxyHeader, ProxyProtocolReader, write_v1, write_v2
from proxy.net.address import unmapped


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::ffff:7f00:1", "127.0.0.1"),
        ("::ffff:192.0.2.1%eth0", "192.0.2.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:0:7f00:1", "::ffff:0:7f00:1"),  # translated (RFC 6145), not mapped
        ("64:ff9b::7f00:1", "64:ff9b::7f00:1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", ""),
    ],
)
def test_mapped_addresses_are_ipv4(address: str, seen: str) -> None:
    assert unmapped(address) == seen


def test_proxy_headers_say_so_as_well() -> None:
    mapped = ProxyHeader(("::ffff:192.0.2.1", 1), ("::ffff:192.0.2.2", 2))
    plain = ProxyHeader(("192.0.2.1", 1), ("192.0.2.2", 2))
    assert b"TCP6" in write_v1(mapped)
    for written in (write_v1(mapped), write_v2(mapped)):
        assert ProxyProtocolReader().receive(written) == plain
