"""An origin that answers by a request's head and closes: its kernel resets the connection, for the upload is unread.
What it said had arrived before, and is the client's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from loadtests.lab.certificates import Issued, issue, make_ca

from .harness import Ended, Proxy, config, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

Start = Callable[[str], Awaitable[Proxy]]
BODY = b"x" * (2 << 20)
TRIES = 40
LOST_MAX = 5


class HastyOrigin:
    """Reads a head, answers 403 and closes. Threads and blocking sockets: what it does not read stays in its kernel."""

    def __init__(self, version: str, context: ssl.SSLContext | None) -> None:
        self.version = version
        self.context = context
        self.answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 6\r\n\r\ndenied"
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.sock.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.sock.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            if self.context is not None:
                sock = self.context.wrap_socket(sock, server_side=True)
            if self.version == "h2":
                self._answer_h2(sock)
            else:
                self._answer_h1(sock)
        sock.close()

    def _answer_h1(self, sock: socket.socket) -> None:
        held = b""
        while b"\r\n\r\n" not in held:
            if not (data := sock.recv(1024)):
                return
            held += data
        sock.sendall(self.answer)

    def _answer_h2(self, sock: socket.socket) -> None:
        conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        conn.initiate_connection()
        conn.update_settings({4: 1 << 22})
        conn.increment_flow_control_window(1 << 22)
        sock.sendall(conn.data_to_send())
        while data := sock.recv(16384):
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    conn.send_headers(event.stream_id, [(":status", "403"), ("content-length", "6")])
                    conn.send_data(event.stream_id, b"denied", end_stream=True)
                    sock.sendall(conn.data_to_send())
                    return
            sock.sendall(conn.data_to_send())

    def close(self) -> None:
        self.sock.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Issued, Issued]:
    ca = make_ca(tmp_path_factory.mktemp("ca"))
    return ca, issue(ca, names=["localhost"], key="ecdsa", file_name="server")


@pytest.fixture(params=["h1", "h1-tls", "h2", "h2-tls"])
def hasty(
    request: pytest.FixtureRequest, certificates: tuple[Issued, Issued]
) -> Iterator[tuple[HastyOrigin, str, Path | None]]:
    version, _, tls = request.param.partition("-")
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates[1].certificate, certificates[1].key)
        context.set_alpn_protocols(["h2" if version == "h2" else "http/1.1"])
    origin = HastyOrigin(version, context)
    yield origin, version, certificates[0].certificate if tls else None
    origin.close()


async def upload(proxy: Proxy) -> int:
    """The answer's status; 0: the connection ended without one."""
    client = await proxy.connect()
    head = request(b"POST", b"/upload", b"content-length: %d\r\n" % len(BODY))
    sending = asyncio.ensure_future(client.send_quietly(head + BODY))
    try:
        got = await client.response(b"POST")
        assert got.status != 403 or got.body == b"denied"
        return got.status
    except Ended:
        return 0
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        client.close()


async def test_the_answer_arrives(start: Start, hasty: tuple[HastyOrigin, str, Path | None]) -> None:
    origin, version, ca = hasty
    text = config(origin.port).replace("protocol: h1", f"protocol: {version}")
    if ca is not None:
        text = text.replace("    retry:", f"    tls: {{ca: {ca}, server_name: localhost}}\n    retry:")
    proxy = await start(text)
    statuses = Counter([await upload(proxy) for _ in range(TRIES)])
    # This origin shares a process and its interpreter with the client: now and then it is reset before its answer left.
    # (Without what is tested here 12 to 22 of 40 were 502.)
    assert set(statuses) <= {403, 502}
    assert statuses[403] >= TRIES - LOST_MAX


async def test_what_ends_with_a_reset_is_not_complete(start: Start) -> None:
    """A body without a length ends with its connection: a reset is no end."""
    origin = HastyOrigin("h1", None)
    origin.answer = b"HTTP/1.1 403 Forbidden\r\n\r\nden"
    proxy = await start(config(origin.port))
    client = await proxy.connect()
    head = request(b"POST", b"/upload", b"content-length: %d\r\n" % len(BODY))
    sending = asyncio.ensure_future(client.send_quietly(head + BODY))
    with pytest.raises(Ended):  # cut short, visibly
        await client.response(b"POST")
    sending.cancel()
    origin.close()
