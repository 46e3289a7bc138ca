"""Whole runs against small servers in the same process.

What is asserted follows from the schedule, never from this machine's speed.
"""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.bench.calibrate import calibrate
from proxy.bench.engine import Engine, Outcome, Snapshot
from proxy.bench.plan import Plan, PlanError, targets
from proxy.errors import Kind

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
            pass  # the client is gone, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)


async def measured(
    port: int, *, scheme: str = "http", feed: Callable[[Snapshot], None] | None = None, **options: Any
) -> Outcome:
    options.setdefault("rate", 200.0)
    options.setdefault("duration_s", 0.25)
    return await Engine(Plan(targets([f"{scheme}://127.0.0.1:{port}/"]), **options), feed).run()


async def test_every_request_of_the_schedule_is_sent_and_answered() -> None:
    async with serving(answering) as port:
        outcome = await measured(port)
    (recorder,) = outcome.recorders
    assert recorder.started == recorder.answered == 50
    assert recorder.statuses == {200: 50}
    assert recorder.phase("total").count == outcome.lag.count == 50
    assert sum(interval.total.count for interval in recorder.intervals) == 50
    opened = outcome.connections[0]
    assert recorder.phases["cold"]["tcp"].count == opened
    assert recorder.phases["reused"]["total"].count == 50 - opened
    assert recorder.bytes_received == 50 * len(OK)
    assert not recorder.failures
    assert not outcome.interrupted


async def test_a_stall_is_counted_for_everyone_who_waited_in_it() -> None:
    """The server keeps its first answer back until 20 more requests are due; one connection only, so they queue."""
    engines: list[Engine] = []

    async def stalling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        while engines[0]._pools[0].queued < 20:
            await asyncio.sleep(0.002)
        writer.write(OK)
        await answering(reader, writer)

    async with serving(stalling) as port:
        plan = Plan(targets([f"http://127.0.0.1:{port}/"]), rate=200, duration_s=0.25, connections=1)
        engines.append(Engine(plan))
        (recorder,) = (await engines[0].run()).recorders
    assert recorder.answered == 50
    queue, total, service = (recorder.phase(phase) for phase in ("queue", "total", "service"))
    # The first one in the queue was due 19/200 s before the twentieth, and none got its turn before that one was there.
    assert queue.highest_us >= 19 / 200 * 1e6
    assert sum(1 for index, n in total.counts.items() for _ in range(n) if index) >= 20
    assert total.sum_us > service.sum_us + sum(k / 200 * 1e6 for k in range(20))


async def test_the_warm_up_is_not_measured_and_opens_the_connections() -> None:
    async with serving(answering) as port:
        outcome = await measured(port, warmup_s=0.1, connections=1)
    (recorder,) = outcome.recorders
    assert (recorder.warmup, recorder.answered) == (20, 50)
    assert not recorder.phases["cold"]["total"].counts


async def test_time_outs_end_in_every_place_a_request_can_wait() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port:
        outcome = await measured(port, rate=100, duration_s=0.1, timeout_s=0.05, connections=2)
    (recorder,) = outcome.recorders
    assert recorder.started == sum(recorder.failures.values()) == 10
    assert set(recorder.failures) <= {Kind.RESPONSE_TIMEOUT, Kind.CONNECT_TIMEOUT}
    assert recorder.phase("total").lowest_us >= 50_000


async def test_a_hanging_handshake_times_out_as_a_connection() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port:
        outcome = await measured(port, scheme="https", rate=50, duration_s=0.1, timeout_s=0.05, insecure=True)
    (recorder,) = outcome.recorders
    assert recorder.failures == {Kind.CONNECT_TIMEOUT: 5}


async def test_a_closed_port_is_refused_and_says_which() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outcome = await measured(port, rate=100, duration_s=0.1, connections=2)
    (recorder,) = outcome.recorders
    assert recorder.failures == {Kind.REFUSED: 10}
    assert list(recorder.details[Kind.REFUSED]) == [f"127.0.0.1 port {port}: Connection refused"]
    assert not recorder.phase("total").counts


async def test_a_name_without_addresses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def no_such(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(loop, "getaddrinfo", no_such)
    plan = Plan(targets(["http://nowhere.example/"]), rate=50, duration_s=0.1)
    (recorder,) = (await Engine(plan).run()).recorders
    assert recorder.failures == {Kind.DNS: 5}
    assert list(recorder.details[Kind.DNS]) == ["nowhere.example could not be resolved: Name or service not known"]


async def test_a_name_is_looked_up_in_a_phase_of_its_own_and_the_next_address_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    asked = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    async with serving(answering) as port:

        async def look_up(host: str, *_: object, **__: object) -> list[Any]:
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", p)) for p in (closed, port)]

        monkeypatch.setattr(loop, "getaddrinfo", look_up)
        plan = Plan(targets(["http://two.example/"]), rate=100, duration_s=0.1, connections=1)
        (recorder,) = (await Engine(plan).run()).recorders
    assert recorder.answered == 10
    assert asked == ["two.example"]
    assert recorder.phases["cold"]["dns"].count == 1


async def test_a_connection_is_closed_after_as_many_requests_as_asked() -> None:
    async with serving(answering) as port:
        outcome = await measured(port, rate=100, duration_s=0.2, connection_requests=5, connections=1)
    assert outcome.recorders[0].answered == 20
    assert outcome.connections == [4]
    assert (
        outcome.recorders[0].phases["cold"]["total"].count + outcome.recorders[0].phases["reused"]["total"].count == 20
    )


async def test_a_server_that_closes_after_each_answer_costs_a_connection_each() -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end")

    async with serving(closing) as port:
        outcome = await measured(port, rate=100, duration_s=0.2)
    assert outcome.recorders[0].answered == outcome.connections[0] == 20


async def test_stopping_early_keeps_what_there_is() -> None:
    async def silent_after_five(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(5):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        engine.stop()

    async with serving(silent_after_five) as port:
        plan = Plan(targets([f"http://127.0.0.1:{port}/"]), rate=200, duration_s=30, connections=1)
        engine = Engine(plan)
        outcome = await engine.run()
    (recorder,) = outcome.recorders
    assert outcome.interrupted
    assert recorder.answered == 5
    assert recorder.started == recorder.answered + recorder.unfinished
    assert outcome.measured_s < 30


async def test_two_targets_are_recorded_apart() -> None:
    async def failing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")

    async with serving(answering) as good, serving(failing) as bad:
        plan = Plan(targets([f"a=http://127.0.0.1:{good}/", f"b=http://127.0.0.1:{bad}/"]), rate=200, duration_s=0.2)
        outcome = await Engine(plan).run()
    assert [recorder.statuses for recorder in outcome.recorders] == [{200: 20}, {503: 20}]


async def test_the_live_view_is_told_everything_once() -> None:
    snapshots: list[Snapshot] = []
    async with serving(answering) as port:
        outcome = await measured(port, duration_s=0.6, feed=snapshots.append)
    assert len(snapshots) == 2
    seen = sum(sum(recent.values()) for snapshot in snapshots for recent in snapshot.recent)
    assert seen == snapshots[-1].answered[0] <= 120
    assert outcome.lag.count == 120


async def test_calibration_measures_this_program() -> None:
    overhead = await calibrate()
    assert overhead is not None
    assert overhead.requests == 150
    assert 0 < overhead.p50_us <= overhead.p99_us


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench test")])
    now = datetime.datetime.now(datetime.UTC)
    import ipaddress

    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + pem)
    return path


def server_context(certificate: Path, *alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


async def test_cold_resumed_and_reused_are_told_apart(certificate: Path) -> None:
    async with serving(answering, server_context(certificate)) as port:
        outcome = await measured(
            port, scheme="https", ca=str(certificate), rate=100, duration_s=0.2, connections=1, connection_requests=2
        )
    (recorder,) = outcome.recorders
    counts = {state: phases["total"].count for state, phases in recorder.phases.items()}
    assert counts == {"cold": 1, "resumed": 9, "early": 0, "reused": 10, "unconnected": 0}
    assert recorder.phases["resumed"]["tls"].count == 9
    assert not recorder.phases["reused"]["tls"].counts
    assert recorder.tls_versions == {"TLSv1.3": 10}


async def test_without_resumption_every_connection_is_cold(certificate: Path) -> None:
    async with serving(answering, server_context(certificate)) as port:
        outcome = await measured(
            port, scheme="https", insecure=True, resume=False, rate=50, duration_s=0.2, connection_requests=1
        )
    assert outcome.recorders[0].phases["cold"]["total"].count == 10


async def test_an_unknown_issuer_is_refused(certificate: Path) -> None:
    async with serving(answering, server_context(certificate)) as port:
        outcome = await measured(port, scheme="https", rate=50, duration_s=0.1)
    (recorder,) = outcome.recorders
    assert recorder.failures == {Kind.CERTIFICATE: 5}


async def test_a_plaintext_port_is_no_tls() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with serving(rude) as port:
        outcome = await measured(port, scheme="https", rate=50, duration_s=0.1, insecure=True)
    assert outcome.recorders[0].failures == {Kind.TLS: 5}


async def test_a_server_without_h2_is_named(certificate: Path) -> None:
    async with serving(answering, server_context(certificate, "http/1.1")) as port:
        outcome = await measured(
            port, scheme="https", protocol="h2", connections=1, rate=50, duration_s=0.1, insecure=True
        )
    (recorder,) = outcome.recorders
    assert recorder.failures == {Kind.BAD_RESPONSE: 5}
    assert list(recorder.details[Kind.BAD_RESPONSE]) == ["h2 was offered by ALPN and it chose nothing: use --h1"]


async def test_an_unreadable_ca_file_is_a_wrong_plan(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        if path.name == "empty.pem":
            path.write_text("no certificate")
        with pytest.raises(PlanError, match=path.name):
            await measured(1, scheme="https", ca=str(path))
