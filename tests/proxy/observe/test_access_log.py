"""Lines of the access log: what is in them, and that nothing about them can stop the loop."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import select
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from proxy.observe import access_log as logging
from proxy.observe import writer as writing
from proxy.observe.access_log import AccessLog, AccessRecord, encode
from proxy.observe.writer import Writer

WAIT_S = 8.0


@pytest_asyncio.fixture
async def open_log() -> AsyncIterator[Callable[..., AccessLog]]:
    opened: list[AccessLog] = []

    def start(path: Path | str, sample: float = 1.0) -> AccessLog:
        log = AccessLog(str(path), sample)
        log.start(asyncio.get_running_loop())
        opened.append(log)
        return log

    yield start
    for log in opened:
        log.close(0.0)


Open = Callable[..., AccessLog]


async def wait_for(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_bytes().split()]


# The record.


def test_every_field_is_in_the_line_in_order() -> None:
    record = AccessRecord(
        time="2026-01-02T03:04:05.678Z",
        listener="web",
        client="203.0.113.9",
        method="GET",
        host="shop.example",
        path='/a?b="c"\\',
        protocol="HTTP/1.1",
        status=502,
        upstream="app",
        region="us-east",
        endpoint="10.0.0.1:443",
        attempts=2,
        hedged=True,
        bytes_in=10,
        bytes_out=2000,
        queue=1.5,
        connect=0.75,
        tls=0.5,
        first_byte=12.25,
        total=13.0,
        request_id="abc",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        user_agent="curl/8 ünïcode\n",
        error="refused",
        details="10.0.0.2:443: Connection refused",
        tried=["eu-west/10.0.0.2:443: Connection refused"],
    )
    line = encode(record)
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    found = json.loads(line)
    assert found == msgspec.to_builtins(record)
    assert list(found) == [
        *("time", "listener", "client", "method", "host", "path", "protocol", "status", "upstream", "region"),
        *("endpoint", "attempts", "hedged", "bytes_in", "bytes_out", "queue", "connect", "tls", "first_byte", "total"),
        *("request_id", "traceparent", "user_agent", "error", "details", "tried"),
    ]


def test_a_line_has_all_fields_even_where_there_is_nothing_to_say() -> None:
    assert set(json.loads(encode(AccessRecord()))) == set(AccessRecord.__struct_fields__)


def test_times_are_utc_to_the_millisecond_and_follow_the_clock() -> None:
    log = AccessLog("")
    log._offset = 1_767_323_045.0  # 2026-01-02T03:04:05Z
    assert log.timestamp(0.0) == b"2026-01-02T03:04:05.000Z"
    assert log.timestamp(0.0004) == b"2026-01-02T03:04:05.000Z"
    assert log.timestamp(0.6785) == b"2026-01-02T03:04:05.678Z"
    assert log.timestamp(55.001) == b"2026-01-02T03:05:00.001Z"
    assert log.timestamp(1.0) == b"2026-01-02T03:04:06.000Z", "an exchange that began before the last one logged"


def test_the_time_is_the_real_one() -> None:
    text = AccessLog("").timestamp(logging.monotonic()).decode()
    assert abs((datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()) < 5


# Writing.


async def test_lines_are_written_a_moment_later_and_in_order(open_log: Open, tmp_path: Path) -> None:
    log = open_log(tmp_path / "access.log")
    for number in range(1000):
        log.add(b"%d\n" % number, False)
    await wait_for(lambda: (tmp_path / "access.log").stat().st_size == 3890)
    assert numbers(tmp_path / "access.log") == list(range(1000))
    assert log.dropped == 0


async def test_closing_writes_what_there_is(open_log: Open, tmp_path: Path) -> None:
    log = open_log(tmp_path / "access.log")
    log.add(b"1\n", False)
    log.close()
    assert numbers(tmp_path / "access.log") == [1]
    log.close()


async def test_an_existing_file_is_continued_and_private(open_log: Open, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("0\n")
    log = open_log(path)
    log.add(b"1\n", False)
    log.close()
    assert numbers(path) == [0, 1]
    other = open_log(tmp_path / "new.log")
    other.close()
    assert (tmp_path / "new.log").stat().st_mode & 0o007 == 0


async def test_a_path_that_can_not_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "no" / "such" / "directory.log"))
    with pytest.raises(FileNotFoundError):
        log.start(asyncio.get_running_loop())
    log.close()


async def test_off_is_off() -> None:
    log = AccessLog("")
    assert not log.enabled
    log.start(asyncio.get_running_loop())
    log.add(b"1\n", True)
    log.reopen()
    log.close()
    assert log.dropped == 0


async def test_standard_output(open_log: Open, capfd: pytest.CaptureFixture[str]) -> None:
    log = open_log("-")
    log.add(b"1\n", False)
    log.close()
    assert capfd.readouterr().out == "1\n"
    os.fstat(1)  # still open


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
async def test_sampling_keeps_a_share_and_every_fault(
    open_log: Open, tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = iter([number / 100 for number in range(100)] * 2)
    monkeypatch.setattr(logging, "random", lambda: next(draws))
    log = open_log(tmp_path / "access.log", share)
    for number in range(100):
        log.add(b"%d\n" % number, False)
        log.add(b"1000\n", True)
    log.close()
    found = numbers(tmp_path / "access.log")
    assert found.count(1000) == 100
    assert len(found) == 100 + round(100 * share)


async def test_after_rotation_a_new_file_is_begun(open_log: Open, tmp_path: Path) -> None:
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    log = open_log(path)
    log.add(b"1\n", False)
    log.flush()
    await wait_for(path.read_bytes)
    path.rename(rotated)
    log.add(b"2\n", False)
    log.reopen()
    log.add(b"3\n", False)
    log.close()
    assert numbers(rotated) == [1, 2]
    assert numbers(path) == [3]


async def test_where_no_new_file_can_be_opened_the_old_one_goes_on(open_log: Open, tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    log = open_log(directory / "access.log")
    log.add(b"1\n", False)
    directory.rename(tmp_path / "moved")
    log.reopen()
    log.add(b"2\n", False)
    log.close()
    assert numbers(tmp_path / "moved" / "access.log") == [1, 2]


async def test_descriptors_are_given_back(open_log: Open, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        log = open_log(tmp_path / "access.log")
        log.reopen()
        log.reopen()
        log.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "access-log"]


# A file that takes nothing.


async def test_a_full_disk_costs_lines_and_nothing_else(open_log: Open) -> None:
    log = open_log("/dev/full")
    for _ in range(3):
        for _ in range(10):
            log.add(b"line\n", False)
        log.flush()
    await wait_for(lambda: log.dropped == 30)
    log.close()
    assert log.dropped == 30


async def test_lines_after_a_cut_one_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up within a line, and is freed again."""
    path = tmp_path / "access.log"
    writer = Writer(str(path), bytes_max=1000)
    write = os.write
    room = [7]

    def scarce(fd: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        size = write(fd, data[: room[0]])
        room[0] -= size
        return size

    monkeypatch.setattr(os, "write", scarce)
    writer._write_batch(b"aaaa\nbbbb\ncccc\n")
    writer._write_batch(b"dddd\n")
    assert writer.dropped == 3
    room[0] = 1000
    writer._write_batch(b"eeee\n")
    writer._write_batch(b"ffff\n")
    assert path.read_bytes() == b"aaaa\nbb\neeee\nffff\n"


@pytest_asyncio.fixture
async def blocked_pipe(tmp_path: Path) -> AsyncIterator[tuple[Path, int]]:
    """A pipe that is full, and its reading end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    filler = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    fcntl.fcntl(filler, 1031, 4096)  # F_SETPIPE_SZ
    while select.select([], [filler], [], 0)[1]:
        os.write(filler, b"-" * 4095 + b"\n")
    yield path, reader
    os.close(filler)
    os.close(reader)


async def test_a_reader_that_stopped_does_not_stop_the_loop(
    open_log: Open, blocked_pipe: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "QUEUED_BYTES_MAX", 50_000)
    path, reader = blocked_pipe
    log = open_log(path)
    line = b"x" * 99 + b"\n"
    for _ in range(100):
        for _ in range(50):
            log.add(line, False)
        log.flush()
        await asyncio.sleep(0)
    lost = log.dropped
    assert 5000 > lost > 3000, "what is more than the bound is dropped, and counted"
    received = bytearray()
    while received.count(line) < 5000 - lost:
        await wait_for(lambda: select.select([reader], [], [], 0)[0])
        received += os.read(reader, 65536)
    log.add(b"again\n", False)
    log.close()
    assert os.read(reader, 65536).endswith(b"again\n")
    assert log.dropped == lost


async def test_too_many_lines_in_one_moment_are_dropped_and_counted(
    open_log: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "QUEUE_MAX", 10)
    log = open_log(tmp_path / "access.log")
    for number in range(25):
        log.add(b"%d\n" % number, False)
    assert log.dropped == 15
    log.close()
    assert numbers(tmp_path / "access.log") == list(range(10))


async def test_the_end_does_not_wait_for_a_stopped_reader(open_log: Open, blocked_pipe: tuple[Path, int]) -> None:
    log = open_log(blocked_pipe[0])
    log.add(b"1\n", False)
    thread = next(thread for thread in threading.enumerate() if thread.name == "access-log")
    assert thread.daemon, "it does not keep the process"
    log.close(0.05)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert log.dropped == 1


async def test_a_pipe_that_does_not_block_is_waited_for(open_log: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output may be a pipe that somebody made non-blocking."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(writer, 1031, 4096)
    with os.fdopen(writer, "wb") as stdout:
        monkeypatch.setattr(logging.sys, "stdout", stdout)
        log = open_log("-")
        line = b"x" * 999 + b"\n"
        for _ in range(100):
            log.add(line, False)
        log.flush()
        received = bytearray()
        while len(received) < 100_000:
            await wait_for(lambda: select.select([reader], [], [], 0)[0])
            received += os.read(reader, 3000)
        assert received == line * 100
        assert log.dropped == 0
        log.close()
    os.close(reader)


async def test_a_reader_that_went_away_costs_lines_and_nothing_else(open_log: Open, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = open_log(path)
    os.close(reader)
    log.add(b"1\n", False)
    log.flush()
    await wait_for(lambda: log.dropped == 1)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.add(b"2\n", False)
    log.close()
    assert os.read(reader, 100) == b"2\n"
    os.close(reader)


class Told:
    """A log of events that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    info = warning

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


async def test_a_fifo_without_a_reader_is_waited_for_behind_the_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "RETRY_S", 0.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    log, told = AccessLog(str(path)), Told()
    log.start(asyncio.get_running_loop(), told)  # to open it would wait for a reader
    for _ in range(3):
        log.add(b"1\n", False)
        log.flush()
    await wait_for(lambda: log.dropped == 3)
    assert told.events == [("access_log_failing", {"path": str(path), "reason": "a FIFO that nobody reads"})]
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.add(b"2\n", False)
    log.flush()
    await wait_for(lambda: len(told.events) == 2)
    assert os.read(reader, 100) == b"2\n"
    assert told.events[1] == ("access_log_goes_on", {"path": str(path), "lines_lost": 3})
    log.reopen()
    log.add(b"3\n", False)
    log.close()
    assert os.read(reader, 100) == b"3\n"
    os.close(reader)


async def test_a_bad_time_is_told_once_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "access.log"
    log, told = AccessLog(str(path)), Told()
    log.start(asyncio.get_running_loop(), told)
    write, full = os.write, [True]

    def scarce(fd: int, data: memoryview) -> int:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", scarce)
    for _ in range(5):
        log.add(b"1\n", False)
        log.flush()
    await wait_for(lambda: log.dropped == 5)
    full[0] = False
    log.add(b"2\n", False)
    log.flush()
    await wait_for(lambda: len(told.events) > 1)
    log.close()
    assert told.names() == ["access_log_failing", "access_log_goes_on"]
    assert told.events[0][1]["reason"] == "No space left on device"
    assert told.events[1][1]["lines_lost"] == 5
    assert numbers(path) == [2]


async def test_a_new_file_is_begun_once_its_directory_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "RETRY_S", 0.0)
    directory = tmp_path / "logs"
    directory.mkdir()
    log, told = AccessLog(str(directory / "access.log")), Told()
    log.start(asyncio.get_running_loop(), told)
    directory.rename(tmp_path / "moved")
    log.reopen()
    log.add(b"1\n", False)
    log.flush()
    await wait_for(lambda: numbers(tmp_path / "moved" / "access.log") == [1])
    directory.mkdir()
    log.add(b"2\n", False)
    log.close()
    assert numbers(directory / "access.log") == [2]
    assert told.names() == ["access_log_failing", "access_log_goes_on"]
    assert log.dropped == 0


async def test_one_that_is_replaced_is_not_waited_for(open_log: Open, blocked_pipe: tuple[Path, int]) -> None:
    log = open_log(blocked_pipe[0])
    log.add(b"1\n", False)
    before = logging.monotonic()
    log.retire()
    assert logging.monotonic() - before < writing.LOOK_S
    await wait_for(lambda: log.dropped == 1)
    assert AccessLog("", before=log).dropped == 1


def test_lines_of_several_processes_do_not_mix_in_a_pipe(tmp_path: Path) -> None:
    """A pipe keeps writes of up to PIPE_BUF bytes in one piece: longer batches go line by line."""
    reader, writer = os.pipe()
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            os.dup2(writer, 1)
            sink = Writer("/dev/stdout", bytes_max=100_000_000)
            lines = b"".join(b"%d:%d:%s\n" % (child, n, b"x" * (n % 700)) for n in range(3000))
            sink.put(lines)
            sink.start()
            sink.close(WAIT_S)
            os._exit(0)
        children.append(pid)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    for pid in children:
        os.waitpid(pid, 0)
    counts = [0, 0, 0]
    for line in text.splitlines():
        match = re.fullmatch(rb"([012]):(\d+):(x*)", line)
        assert match is not None, line[:100]
        child, number = int(match[1]), int(match[2])
        assert number == counts[child]
        assert len(match[3]) == number % 700
        counts[child] += 1
    assert counts == [3000, 3000, 3000]
