"""How connections end that nobody breaks: close_notify that waits for its answer, and frames that never become whole."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import pytest

from proxy.http.compression.hpack import Encoder
from proxy.http.h2 import frames as wire

from ...programs import does_not_apply
from .conftest import Pair, wait_for
from .peers import WAIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANCEL = 8
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a.test")]


async def websocket_that_ends(pair: Pair, hang_up: Callable[[Any], Awaitable[None]]) -> None:
    """The origin says something and hangs up; the client hears both."""

    async def handler(got: Any) -> None:
        await got.accept_websocket()
        await got.send(b"bye")
        await hang_up(got)

    pair.origin.handler = handler
    client = await pair.client()
    call = await client.websocket()
    assert await call.some(3) == b"bye"
    await call.until(lambda: call.ended)
    if pair.down == "h2":
        await call.reset(CANCEL)


async def test_websocket_that_the_origin_closes(pair: Pair) -> None:
    """TLS: its close_notify is the end for the client, whether or not the origin lets go of the TCP connection."""

    async def hang_up(got: Any) -> None:
        if pair.up == "h1":
            got.peer.writer.close()
        else:
            await got.end()

    await websocket_that_ends(pair, hang_up)


async def test_websocket_that_the_origin_closes_without_close_notify(pair: Pair) -> None:
    """WebSockets know by themselves when they are complete: the end of TCP is the end (RFC 8441 section 5)."""
    if not pair.tls or pair.up != "h1":
        does_not_apply("only with TLS")

    async def hang_up(got: Any) -> None:
        got.peer.writer.transport.abort()

    await websocket_that_ends(pair, hang_up)


async def test_client_that_waits_for_the_answer_to_its_close_notify(pair: Pair) -> None:
    if not pair.tls:
        does_not_apply("only with TLS")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", pair.proxy.port, ssl=pair.lab.client("http/1.1"), server_hostname="localhost"
    )
    writer.write(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
    await reader.readline()
    writer.close()
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ssl.SSLError):  # what it had not read
            await writer.wait_closed()
    await wait_for(lambda: not pair.proxy.listener.connections)


@pytest.mark.parametrize(
    "sent",
    [
        wire.PREFACE,
        wire.PREFACE + wire.settings(()) + wire.frame(wire.HEADERS, 5, 1, Encoder().encode(GET))[:-1],
        wire.PREFACE + wire.settings(()) + wire.frame(wire.HEADERS, 1, 1, Encoder().encode(GET)),
    ],
    ids=["no settings", "part of a frame", "part of a block"],
)
async def test_http2_client_that_stops_within_a_head(pair: Pair, sent: bytes) -> None:
    if pair.tls or pair.down != "h2":
        does_not_apply("only HTTP/2 in plaintext")
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.proxy.port)
    writer.write(sent)
    listener = pair.proxy.listener
    await wait_for(lambda: any(c.state.value == "open" and c.codec.partial for c in listener.connections))
    (connection,) = listener.connections
    connection.on_timer(monotonic() + 6)  # past `header_timeout`
    async with asyncio.timeout(WAIT_S):
        assert b"no complete request head within 5 s" in await reader.read()
    writer.close()
