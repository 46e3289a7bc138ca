"""The programmable origin, over a loopback lab with no distance."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import pytest_asyncio

from loadtests.lab import SERVER_NAME, Lab, LabError
from loadtests.lab.certificates import issue

pytestmark = pytest.mark.asyncio(loop_scope="module")
NEVER_S = 0.15  # long enough to see that something does not happen: a missing answer can only be waited for


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Lab]:
    async with Lab.open(mode="loopback", regions={"us": 0.0}) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def lab(shared: Lab) -> AsyncIterator[Lab]:
    """The lab, its one region without endpoints of earlier tests."""
    yield shared
    await shared.clear("us")


class Client:
    """One HTTP/1.1 connection."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.reader, self.writer = streams

    def send(self, target: str, method: str = "GET", body: bytes = b"", *fields: str) -> None:
        lines = [f"{method} {target} HTTP/1.1", "host: x", *fields]
        lines += [f"content-length: {len(body)}"] if body else []
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def answer(self, *, bodyless: bool = False) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        status = int(head[0].split()[1])
        if bodyless:
            return status, fields, b""
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
            return status, fields, body
        return status, fields, await self.reader.readexactly(int(fields.get("content-length", "0")))

    async def get(
        self, target: str, method: str = "GET", body: bytes = b"", *fields: str
    ) -> tuple[int, dict[str, str], bytes]:
        self.send(target, method, body, *fields)
        return await self.answer()


async def client(lab: Lab, index: int = 0, tls: ssl.SSLContext | None = None) -> Client:
    return Client(await lab.dial("us", index, tls=tls))


async def test_paths_and_counters(lab: Lab) -> None:
    origin = await lab.origin("us", body_bytes=100)
    one = await client(lab)
    status, fields, body = await one.get("/")
    assert (status, fields["x-region"], fields["x-endpoint"], len(body)) == (200, "us", "0", 100)
    assert len((await one.get("/bytes/200000"))[2]) == 200_000
    assert len((await one.get("/chunked/200000"))[2]) == 200_000
    assert (await one.get("/status/404"))[0] == 404
    assert (await one.get("/healthz"))[2] == b"ok\n"
    upload = bytes(range(256)) * 1200
    assert (await one.get("/anything", "POST", upload))[2] == upload
    assert json.loads((await one.get("/sink", "PUT", upload))[2]) == {"bytes": len(upload)}
    seen = json.loads((await one.get("/headers?a=1", "GET", b"", "x-y: z", "early-data: 1"))[2])
    assert (seen["method"], seen["target"]) == ("GET", "/headers?a=1")
    assert ["x-y", "z"] in seen["headers"]
    counters = await origin.counters()
    assert (counters["requests"], counters["connections"], counters["early"]) == (8, 1, 1)
    assert counters["connections_open"] == 1


async def test_pipelined_requests_are_answered_in_order(lab: Lab) -> None:
    await lab.origin("us", service_ms=1)
    one = await client(lab)
    for number in range(300):
        one.send(f"/bytes/{number}")
    for number in range(300):
        assert len((await one.answer())[2]) == number


async def test_framing_corner_cases(lab: Lab) -> None:
    await lab.origin("us")
    one = await client(lab)
    one.send("/bytes/10", "HEAD")
    _, fields, _ = await one.answer(bodyless=True)
    assert fields["content-length"] == "10"
    one.send("/x", "POST", b"abc", "expect: 100-continue")
    assert (await one.answer(bodyless=True))[0] == 100
    assert (await one.answer())[2] == b"abc"
    assert (await one.get("/", "GET", b"", "connection: upgrade", "upgrade: h2c"))[0] == 200
    assert (await one.get("/", "GET", b"", "connection: close"))[1]["connection"] == "close"
    assert await one.reader.read() == b""
    tunnel = await client(lab)
    tunnel.send("/", "GET", b"", "connection: upgrade", "upgrade: echo")
    assert (await tunnel.answer(bodyless=True))[0] == 101
    tunnel.writer.write(b"anything")
    assert await tunnel.reader.readexactly(8) == b"anything"
    garbage = await client(lab)
    garbage.writer.write(b"\x00\x01\x02\r\n\r\n")
    assert (await garbage.answer())[0] == 400
    half = await client(lab)
    half.send("/slow?ms=20")
    half.writer.write_eof()
    assert (await half.answer())[0] == 200
    assert await half.reader.read() == b""


async def test_imposed_statuses_and_hangs(lab: Lab) -> None:
    origin = await lab.origin("us")
    one = await client(lab)
    await origin.set(status=503, retry_after_s=2)
    status, fields, _ = await one.get("/healthz")
    assert (status, fields["retry-after"]) == (503, "2")
    await origin.set(status=0, hang=True)
    one.send("/")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(NEVER_S):
            await one.answer()
    assert (await origin.counters())["hangs"] == 1
    await origin.set(hang=False)
    assert (await (await client(lab)).get("/"))[0] == 200
    with pytest.raises(ValueError, match="no such setting: speed"):
        await origin.set(speed=1)


async def test_resets_and_drops_are_seen_as_such(lab: Lab) -> None:
    origin = await lab.origin("us", reset=True)
    one = await client(lab)
    with pytest.raises(ConnectionResetError):
        await one.get("/")
    await origin.set(reset=False)
    two = await client(lab)
    assert (await two.get("/"))[0] == 200
    assert await origin.drop_connections() == 1
    with pytest.raises(ConnectionResetError):
        await two.reader.read()
    assert (await origin.counters())["resets"] == 2


async def test_refusing_and_accepting_again(lab: Lab) -> None:
    origin = await lab.origin("us", refuse=True)
    with pytest.raises(ConnectionRefusedError):
        await client(lab)
    await origin.set(refuse=False)
    one = await client(lab)
    assert (await one.get("/"))[0] == 200
    await origin.set(refuse=True)
    with pytest.raises(ConnectionRefusedError):
        await client(lab)
    assert (await one.get("/"))[0] == 200  # what is open goes on


async def test_a_restart_keeps_address_behaviour_and_counters(lab: Lab) -> None:
    origin = await lab.origin("us", endpoints=2)
    await origin.set(body_bytes=7, endpoint=1)
    one = await client(lab, 1)
    assert len((await one.get("/"))[2]) == 7
    pids = origin.pids
    await origin.restart(endpoint=1)
    assert (origin.pids[0] == pids[0], origin.pids[1] == pids[1]) == (True, False)
    assert await one.reader.read() == b""
    assert len((await (await client(lab, 1)).get("/"))[2]) == 7
    assert (await origin.counters(endpoint=1))["requests"] == 2
    assert (await origin.counters())["connections"] == 2


async def test_a_frozen_process_accepts_and_says_nothing(lab: Lab) -> None:
    origin = await lab.origin("us")
    origin.freeze()
    one = await client(lab)
    one.send("/")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(NEVER_S):
            await one.answer()
    assert (await origin.counters()).get("requests", 0) == 0
    origin.thaw()
    assert (await one.answer())[0] == 200


async def test_idle_connections_are_closed(lab: Lab) -> None:
    await lab.origin("us", close_idle_s=0.05)
    one = await client(lab)
    assert (await one.get("/"))[0] == 200
    assert await one.reader.read() == b""


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_resumed_handshakes_are_told_from_full_ones(lab: Lab, version: Any) -> None:
    origin = await lab.origin("us", tls=True, tls_version=version)
    context = lab.client_context()
    one = await client(lab, tls=context)
    assert (await one.get("/"))[0] == 200  # with the answer come the tickets of TLS 1.3
    session = one.writer.get_extra_info("ssl_object").session

    def again() -> None:
        plain = socket.create_connection(lab.address("us"))
        with context.wrap_socket(plain, server_hostname=SERVER_NAME, session=session) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert secure.recv(15) == b"HTTP/1.1 200 OK"
            assert secure.session_reused

    await asyncio.to_thread(again)
    counters = await origin.counters()
    assert (counters["handshakes_full"], counters["handshakes_resumed"]) == (1, 1)


async def test_client_certificates_can_be_required(lab: Lab) -> None:
    origin = await lab.origin("us", tls=True, client_ca=lab.ca.certificate)
    context = lab.client_context()
    # In TLS 1.3 the client learns of it after its handshake, and asyncio tells it as an end more often than as an
    # alert.
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await (await client(lab, tls=context)).get("/")
    assert (await origin.counters())["connections"] == 0
    mine = issue(lab.ca, names=["client.lab.test"])
    context.load_cert_chain(mine.certificate, mine.key)
    assert (await (await client(lab, tls=context)).get("/"))[0] == 200


@pytest.mark.parametrize("tls", [False, True])
async def test_http2(lab: Lab, tls: bool) -> None:
    origin = await lab.origin("us", tls=tls, h2=True)
    context = lab.client_context()
    context.set_alpn_protocols(["h2"])
    reader, writer = await lab.dial("us", tls=context if tls else None)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    common = [(":authority", "x"), (":scheme", "http")]
    connection.send_headers(1, [(":method", "GET"), (":path", "/bytes/300000"), *common], end_stream=True)
    connection.send_headers(3, [(":method", "POST"), (":path", "/echo"), *common])
    connection.send_data(3, b"hello", end_stream=True)
    connection.send_headers(5, [(":method", "HEAD"), (":path", "/bytes/5"), *common], end_stream=True)
    connection.send_headers(7, [(":method", "GET"), (":path", "/chunked/9"), *common], end_stream=True)
    heads: dict[int, dict[str, str]] = {}
    bodies: dict[int, int] = dict.fromkeys((1, 3, 5, 7), 0)
    open_streams = set(bodies)
    while open_streams:
        writer.write(connection.data_to_send())
        for event in connection.receive_data(await reader.read(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                heads[event.stream_id] = {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] += len(event.data)
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                open_streams.discard(event.stream_id)
    assert bodies == {1: 300_000, 3: 5, 5: 0, 7: 9}
    assert {head[":status"] for head in heads.values()} == {"200"}
    assert heads[5]["content-length"] == "5"
    assert "content-length" not in heads[7]
    assert (await origin.counters())["requests"] == 4
    assert (await origin.counters())["connections"] == 1


async def test_what_can_not_start_says_why(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no region 'eu'"):
        await lab.origin("eu")
    with pytest.raises(LabError, match=r"origin: .*No such file"):
        await lab.origin("us", tls=True, client_ca=tmp_path / "missing.pem")
