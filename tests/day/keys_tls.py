"""Rows of TLS, on both sides. The far region's origin differs from the others in what each key is about: another
authority, another SPIFFE id, no curve but P-256. So a key that makes it unreachable costs no request.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import ssl
import struct
from contextlib import suppress

from tests.proxy.e2e_tls.tls_harness import Files, TlsClient

from .early import EarlyOrigin
from .keys import Row, ask
from .keys_upstream import app
from .town import Town, set_at

_TCP_FASTOPEN, _TCP_FASTOPEN_CONNECT = 23, 30
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438


async def _far_is_refused(town: Town) -> bool:
    """Whether the handshake with the far origin fails."""
    (endpoint,) = (await town.program.region("far"))["endpoints"]
    return "last_error" in endpoint and not endpoint["pool"]["idle"]


async def _far_is_reached(town: Town) -> bool:
    return not await _far_is_refused(town)


async def _asks_for_name(town: Town) -> bool:
    return town.near.names[-1] == "alt.test"


async def _shows_certificate(town: Town) -> bool:
    return bool(town.near.tls_seen[-1]["peer"])


async def _dials_early(town: Town) -> bool:
    """Whether a request of a fresh connection travels as 0-RTT."""
    origin = next(one for one in town.origins if isinstance(one, EarlyOrigin))
    for _ in range(3 * town.config["workers"]):
        origin.hang_up()
        await asyncio.sleep(0.05)
        await ask(town, listener="early")
        if origin.inner.requests[-1].early:
            return True
    return False


def client_context(town: Town) -> ssl.SSLContext:
    """A client that trusts the listeners' authority."""
    return ssl.create_default_context(cafile=town.files["ca"])


async def _handshake(town: Town, context: ssl.SSLContext) -> ssl.SSLObject | None:
    """The TLS of a connection to the side listener, of which a request was answered."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", town.program.port("side"), ssl=context, server_hostname="localhost"
        )
        try:
            writer.write(b"GET /look HTTP/1.1\r\nhost: town.test\r\nconnection: close\r\n\r\n")
            if b" 200 " in (await reader.read(64)):
                found = writer.get_extra_info("ssl_object")
                assert found is None or isinstance(found, ssl.SSLObject)
                return found
        finally:
            writer.close()
    return None


async def _shows_other(town: Town) -> bool:
    tls = await _handshake(town, client_context(town))
    peer = tls.getpeercert() if tls is not None else None
    return peer is not None and ("DNS", "other.test") in peer["subjectAltName"]  # type: ignore[comparison-overlap]


async def _wants_client(town: Town) -> bool:
    return await _handshake(town, client_context(town)) is None


async def _refuses_1_2(town: Town) -> bool:
    context = client_context(town)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return await _handshake(town, context) is None


async def _takes_early(town: Town) -> bool:
    files = Files.__new__(Files)
    files.ca = town.authority
    request = b"GET /look HTTP/1.1\r\nhost: town.test\r\n\r\n"
    first = await TlsClient(files, town.program.port("side")).connect()
    try:
        await first.send(request) if first.engine.state.name == "OPEN" else None
        session = await first.ticket()
    finally:
        first.close()
    second = TlsClient(files, town.program.port("side"), session=session)
    try:
        return bool(second.engine.write_early(request))
    finally:
        second.close()


def _option(town: Town, option: int, matches: str) -> list[int]:
    """A TCP option of the program's sockets whose `LOCAL->REMOTE` begins or ends so."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    for pid in town.program.processes():
        handle = libc.syscall(_PIDFD_OPEN, pid, 0)
        assert handle >= 0, os.strerror(ctypes.get_errno())
        for number, what in town.program.numbered_descriptors(pid):
            if what.startswith(f"tcp:{matches}") or (what.startswith("tcp:") and what.endswith(matches)):
                copy = libc.syscall(_PIDFD_GETFD, handle, number, 0)
                assert copy >= 0, os.strerror(ctypes.get_errno())
                with socket.socket(fileno=copy) as sock:
                    found.append(struct.unpack("i", sock.getsockopt(socket.IPPROTO_TCP, option, 4))[0])
        os.close(handle)
    return found


async def _listens_fast(town: Town) -> bool:
    found = _option(town, _TCP_FASTOPEN, f"{town.program.port('side')}->0")
    assert found, "no listening socket"
    return all(found)


async def _dials_fast(town: Town) -> bool:
    found = _option(town, _TCP_FASTOPEN_CONNECT, f"->{town.far.port}")
    return bool(found) and all(found)


PAIR = {"certificate": "{other_certificate}", "key": "{other_key}"}
MUTUAL = {"ca": "{both}", "certificate": "{client_certificate}", "key": "{client_key}"}
ONLY_OURS = set_at("upstreams.app.tls.ca", "{ca}")

TLS = [
    Row("upstreams.*.tls.server_name", "alt.test", _asks_for_name, stage="tls"),
    Row("upstreams.*.tls.ca", "{ca}", _far_is_refused, stage="tls"),
    Row("upstreams.*.tls.certificate", MUTUAL, _shows_certificate, path="upstreams.app.tls", stage="tls"),
    Row("upstreams.*.tls.verify", False, _far_is_reached, first=(ONLY_OURS,), stage="tls"),
    Row("upstreams.*.tls.early_data", True, _dials_early, path="upstreams.early.tls.early_data", stage="tls"),
    Row("upstreams.*.tls.spiffe_id", "spiffe://town.test/ours", _far_is_refused, stage="tls"),
    Row("upstreams.*.tls.groups", ["X25519"], _far_is_refused, stage="tls"),
    Row("upstreams.*.fast_open", True, _dials_fast, stage="tls"),
    Row("listeners[].fast_open", True, _listens_fast, stage="tls"),
    Row(
        "listeners[].tls.certificates[].certificate",
        [PAIR],
        _shows_other,
        path="listeners.1.tls.certificates",
        stage="tls",
    ),
    Row("listeners[].tls.client_ca", "{ca}", _wants_client, stage="tls"),
    Row("listeners[].tls.min_version", "1.3", _refuses_1_2, stage="tls"),
    Row("listeners[].tls.early_data", True, _takes_early, stage="tls"),
    Row("listeners[].routes[].early_data", True, _dials_early, path="listeners.2.routes.0.early_data", stage="tls"),
]


async def _introduced(town: Town) -> bool:
    echo = town.echo()
    before = len(echo.proxied)
    reader, writer = await asyncio.open_connection("127.0.0.1", town.program.port("bytes"))
    try:
        writer.write(b"who?\n")
        async with asyncio.timeout(5):
            assert await reader.read(100) == b"echo"
    finally:
        writer.close()
    return len(echo.proxied) > before


L4 = [Row("upstreams.*.proxy_protocol", "v1", _introduced, path="upstreams.bytes.proxy_protocol", stage="bytes")]

__all__ = ["L4", "TLS", "app"]
