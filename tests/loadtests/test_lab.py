"""The lab in both modes.

Distances are what it is for, so they are measured: the least of a few round trips, which noise only raises.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from loadtests.lab import Lab, LabError
from loadtests.lab.__main__ import main
from loadtests.lab.openloop import KeepAliveClient, open_loop

ROOT = Path(__file__).resolve().parents[2]
NEVER_S = 0.15
WITHIN_S = 5.0
MODES = [pytest.param("netns", marks=pytest.mark.root), "loopback"]
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(params=MODES)
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with Lab.open(mode=request.param, regions={"us": 10, "eu": 80}) as opened:
        yield opened


async def round_trips_ms(lab: Lab, region: str, count: int = 5) -> list[float]:
    """Of requests on one connection, the first with its handshake."""
    begin = time.monotonic()
    reader, writer = await lab.dial(region)
    trips = []
    for _ in range(count):
        writer.write(REQUEST)
        await reader.readuntil(b"\n\r\n")
        await reader.readline()
        trips.append((time.monotonic() - begin) * 1e3)
        begin = time.monotonic()
    writer.close()
    return trips


async def test_a_pair_is_as_far_apart_as_asked(lab: Lab) -> None:
    await lab.origin("eu")
    cold, *warm = await round_trips_ms(lab, "eu")
    assert 80 <= min(warm) < 88
    assert cold >= 160  # TCP's handshake takes its round trip in both modes


async def test_tls_takes_a_third_round_trip(lab: Lab) -> None:
    await lab.origin("us", tls=True)
    begin = time.monotonic()
    reader, writer = await lab.dial("us", tls=lab.client_context())
    writer.write(REQUEST)
    await reader.readline()
    assert time.monotonic() - begin >= 0.030
    writer.close()


async def test_distance_changes_while_it_runs(lab: Lab) -> None:
    await lab.origin("us")
    reader, writer = await lab.dial("us")
    await lab.path("us").set(rtt_ms=50, jitter_ms=1)
    begin = time.monotonic()
    writer.write(REQUEST)
    await reader.readline()
    assert time.monotonic() - begin >= 0.048
    await lab.path("us", direction="to").set(delay_ms=5, jitter_ms=0)
    await lab.path("us", direction="from").set(delay_ms=5, jitter_ms=0)
    assert min(await round_trips_ms(lab, "us")) < 40
    with pytest.raises(ValueError, match="no such path setting: speed"):
        lab.path("us").set(speed=3)
    writer.close()


@pytest.mark.parametrize("direction", ["both", "to", "from"])
async def test_a_blackhole_is_silent_and_what_it_held_arrives_afterwards(lab: Lab, direction: str) -> None:
    origin = await lab.origin("us")
    reader, writer = await lab.dial("us")
    writer.write(REQUEST)
    await reader.readuntil(b"\n\r\n")
    await reader.readline()
    await lab.path("us", direction=direction).set(blackhole=True)  # type: ignore[arg-type]
    writer.write(REQUEST)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(NEVER_S):
            await reader.readline()
    assert (await origin.counters())["requests"] == (2 if direction == "from" else 1)
    await lab.path("us").set(blackhole=False)
    async with asyncio.timeout(WITHIN_S):
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    assert (await origin.counters())["requests"] == 2
    paths = (await lab.counters())["paths"]
    swallowed = (paths["home>us"]["swallowed"] > 0, paths["us>home"]["swallowed"] > 0)
    assert swallowed[0] == (direction != "from")
    assert swallowed[1] or direction != "from"
    writer.close()


async def test_a_rate_limits_what_passes(lab: Lab) -> None:
    await lab.origin("us")
    await lab.path("us", direction="from").set(rate_mbit=8)
    reader, writer = await lab.dial("us")
    begin = time.monotonic()
    writer.write(REQUEST.replace(b"/ ", b"/bytes/200000 "))
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(200_000)
    assert time.monotonic() - begin >= 0.2
    writer.close()


async def test_an_open_loop_over_the_lab(lab: Lab) -> None:
    origin = await lab.origin("us", endpoints=2)
    loop = asyncio.get_running_loop()

    async def dial(protocol: asyncio.Protocol) -> None:
        made = lab.socket()
        await loop.sock_connect(made, lab.address("us", 1))
        await loop.create_connection(lambda: protocol, sock=made)

    async with KeepAliveClient(dial, connections=8) as client:
        result = await open_loop(client.get, rate=200, duration_s=0.5)
        assert result.summary()["requests"] == 100
        assert not result.failures
        assert min(result.latencies_ms) >= 10
        await origin.restart()
        failing = await open_loop(client.get, rate=100, duration_s=0.05)
        assert len(failing.failures) == 5
    assert (await origin.counters(endpoint=0))["requests"] == 0
    assert (await origin.counters(endpoint=1))["requests"] == 100


async def test_programs_run_in_regions(lab: Lab) -> None:
    await lab.origin("us")
    host, port = lab.address("us")
    code = f"import socket; print(socket.create_connection(({host!r}, {port})).getsockname()[0])"
    process = await asyncio.create_subprocess_exec(
        *lab.command_prefix("home"), sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output == (b"10.66.0.1\n" if lab.mode == "netns" else b"127.0.0.1\n")


@asynccontextmanager
async def sink(
    lab: Lab, region: str, host: str
) -> AsyncIterator[tuple[tuple[str, int], asyncio.Queue[asyncio.StreamWriter]]]:
    """A server that the lab does not run, which speaks first: where home dials it, and the connections it accepts."""
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        accepted.put_nowait(writer)

    listening = lab.socket(region)
    listening.bind((host, 0))
    async with await asyncio.start_server(greet, sock=listening):
        yield await lab.publish(region, listening.getsockname()[1]), accepted


async def test_other_servers_can_be_published(lab: Lab) -> None:
    async with sink(lab, "eu", "10.66.2.1" if lab.mode == "netns" else "127.0.0.1") as (address, accepted):
        assert lab.address("eu") == address
        begin = time.monotonic()
        reader, writer = await lab.dial("eu")
        assert await reader.readline() == b"hello\n"
        # A server that speaks first is heard after the SYN's round trip; the relay lets it speak when the handshake is
        # over.
        assert time.monotonic() - begin >= (0.08 if lab.mode == "netns" else 0.16)
        (await accepted.get()).close()
        assert await reader.read() == b""
        writer.close()


@pytest.mark.root
async def test_loss_is_made_good_by_tcp() -> None:
    async with Lab.open(mode="netns", regions={"us": 4}) as lab:
        await lab.origin("us")
        await lab.path("us").set(loss=0.05)
        reader, writer = await lab.dial("us")
        writer.write(REQUEST.replace(b"/ ", b"/bytes/500000 "))
        async with asyncio.timeout(30):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(500_000)
        paths = (await lab.counters())["paths"]
        assert paths["us>home"]["lost"] > 0
        writer.close()


@pytest.mark.root
async def test_congestion_control_is_the_labs_at_both_ends() -> None:
    async with Lab.open(mode="netns", regions={"us": 4}) as lab, sink(lab, "us", "10.66.1.1") as (_, accepted):
        _, writer = await lab.dial("us")
        dialled = writer.get_extra_info("socket")
        for end in (dialled, (await accepted.get()).get_extra_info("socket")):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"cubic"
        writer.close()
    with pytest.raises(LabError, match="congestion control nonsense"):
        async with Lab.open(mode="netns", regions={"us": 4}, congestion="nonsense"):
            pass


@pytest.mark.root
async def test_fast_open_works_between_regions() -> None:
    async with Lab.open(mode="netns", regions={"us": 4}) as lab:
        await lab.origin("us", fast_open=True)
        loop = asyncio.get_running_loop()
        syn_data = []
        for _ in range(2):  # the first fetches the cookie
            made = lab.socket()
            made.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
            await loop.sock_connect(made, lab.address("us"))
            await loop.sock_sendall(made, REQUEST)
            assert (await loop.sock_recv(made, 15)) == b"HTTP/1.1 200 OK"
            options = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
            syn_data.append(bool(options & 32))  # TCPI_OPT_SYN_DATA: the request was acknowledged with the SYN
            made.close()
        assert syn_data == [False, True]


@pytest.mark.root
async def test_sysctls_are_the_namespaces_own() -> None:
    names = ("net/ipv4/tcp_fastopen", "net/ipv4/tcp_syn_retries")
    before = [Path("/proc/sys", name).read_text() for name in names]
    async with Lab.open(mode="netns", regions={"us": 4}, sysctls={"net.ipv4.tcp_syn_retries": "3"}) as lab:
        process = await asyncio.create_subprocess_exec(
            *lab.command_prefix("us"), "cat", *(f"/proc/sys/{name}" for name in names), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert output.split() == [b"3", b"3"]
    assert [Path("/proc/sys", name).read_text() for name in names] == before
    with pytest.raises(LabError, match=r"sysctl net\.ipv4\.nonsense=1"):
        async with Lab.open(mode="netns", regions={"us": 4}, sysctls={"net.ipv4.nonsense": "1"}):
            pass


@pytest.mark.root
async def test_regions_reach_each_other_and_udp_passes() -> None:
    async with Lab.open(mode="netns", regions={"us": 4, "eu": 6}, between={("us", "eu"): 20}) as lab:
        loop = asyncio.get_running_loop()
        here, there = lab.socket("us", socket.SOCK_DGRAM), lab.socket("eu", socket.SOCK_DGRAM)
        here.bind(("10.66.1.1", 0))
        there.bind(("10.66.2.3", 0))
        begin = time.monotonic()
        await loop.sock_sendto(here, b"ping", there.getsockname())
        _, source = await loop.sock_recvfrom(there, 16)
        assert source == here.getsockname()
        assert time.monotonic() - begin >= 0.0099
        here.close()
        there.close()


async def test_loopback_says_what_it_can_not_imitate() -> None:
    async with Lab.open(mode="loopback", regions={"us": 1, "eu": 1}) as lab:
        assert "Not imitated: packet loss" in lab.banner
        with pytest.raises(ValueError, match="can't imitate loss"):
            lab.path("us").set(loss=0.02)
        with pytest.raises(ValueError, match="between home and the regions"):
            lab.path("us", "eu").set(rtt_ms=20)
        assert lab.command_prefix("us") == []


async def test_regions_are_checked() -> None:
    for regions, reason in (({}, "regions"), ({"home": 3.0}, "regions"), ({"us": -1.0}, "negative")):
        with pytest.raises(LabError, match=reason):
            async with Lab.open(regions=regions):
                pass


@contextmanager
def running_lab(name: str, mode: str, *arguments: str) -> Iterator[tuple[int, dict[str, object]]]:
    """`python -m loadtests.lab up` as a process: its pid, and what it printed."""
    command = [sys.executable, "-m", "loadtests.lab", "up", "--name", name, "--json", "--mode", mode, *arguments]
    reading, writing = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        command,
        {**os.environ, "PYTHONPATH": str(ROOT)},
        file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)],
    )
    os.close(writing)
    with open(reading) as output:
        try:
            yield pid, json.loads(output.readline())
        finally:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def ended(pids: list[int]) -> bool:
    """Whether all of them end in time. A child of ours must have been waited for."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        done = select.select([descriptor], [], [], WITHIN_S)[0]
        os.close(descriptor)
        if not done:
            return False
    return True


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with running_lab("cli", "loopback", "--regions", "us=2,eu=4", "--tls") as (pid, shown):

        def say(*words: str) -> tuple[int, str]:
            code = main([words[0], "--name", "cli", *words[1:]])
            captured = capsys.readouterr()
            return code, captured.out + captured.err

        assert Path(str(shown["ca"])).exists()
        assert say("set", "us", "rtt_ms=20", "blackhole=on") == (0, "ok\n")
        assert say("set", "us>home", "blackhole=off") == (0, "ok\n")
        assert say("origin", "us/0", "late_share=2%", "late_ms=1000") == (0, "ok\n")
        assert say("origin", "us", "restart") == (0, "ok\n")
        assert json.loads(say("counters")[1])["origins"]["eu"]["requests"] == 0
        assert json.loads(say("show")[1])["regions"]["eu"]["rtt_ms"] == 4
        for words, reason in (
            (("set", "us", "loss=2%"), "can't imitate loss"),
            (("set", "mars", "loss=0"), "no region 'mars'"),
            (("origin", "us", "status=9"), "status is 0 or between"),
            (("set", "us", "blackhole"), "not name=value"),
        ):
            code, text = say(*words)
            assert code == 1
            assert reason in text
        assert main(["up", "--name", "cli"]) == 1
        assert "is up already" in capsys.readouterr().err
        assert say("down") == (0, "ok\n")
        assert os.waitpid(pid, 0)[1] == 0
        assert ended(list(shown["pids"]))  # type: ignore[call-overload]
        assert say("show")[0] == 1


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_of_a_lab_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with running_lab("killed", mode, "--regions", "us=2") as (pid, shown):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert ended(list(shown["pids"]))  # type: ignore[call-overload]
    with running_lab("killed", mode, "--regions", "us=2") as (pid, shown):  # the name is free again
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0
        assert ended(list(shown["pids"]))  # type: ignore[call-overload]
