"""The program's own log: its lines, its bounds, and that nobody who does not read it can stop anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

import pytest

from proxy.observe import event_log as logging
from proxy.observe.event_log import EventLines, EventLog

WAIT_S = 8.0


class Pipe:
    """A standard error, and what its reader got."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.stream: IO[str] = os.fdopen(writer, "w")
        self.lines = EventLines(self.stream)
        self.log = EventLog(self.lines)

    def events(self) -> list[dict[str, Any]]:
        """All of them; closes the log."""
        os.set_blocking(self.reader, False)
        self.log.close()
        return [json.loads(line) for line in os.read(self.reader, 1_000_000).splitlines()]

    def read_some(self) -> list[dict[str, Any]]:
        """Waits for the next ones."""
        return [json.loads(line) for line in os.read(self.reader, 1_000_000).splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    found = Pipe()
    yield found
    found.log.close()
    found.stream.close()
    os.close(found.reader)


def test_an_event_has_its_time_level_and_fields(pipe: Pipe) -> None:
    pipe.log.bind(worker=1).warning("something", count=2, path=os.path, text="a\ud800\n")
    (event,) = pipe.events()
    assert event["timestamp"].endswith("Z")
    assert {key: event[key] for key in ("level", "event", "worker", "count")} == {
        "level": "warning",
        "event": "something",
        "worker": 1,
        "count": 2,
    }
    assert "posixpath" in event["path"]


def test_an_exception_comes_with_its_traceback(pipe: Pipe) -> None:
    try:
        _ = 1 // int("0")
    except ZeroDivisionError as error:
        pipe.log.exception("one")
        pipe.log.error("two", exc_info=error)
    for event in pipe.events():
        assert event["exception"].startswith("Traceback")
        assert "ZeroDivisionError" in event["exception"]


def test_too_many_of_one_event_are_counted_and_the_others_go_on(pipe: Pipe) -> None:
    for number in range(1000):
        pipe.log.info("one", listener="a", client=str(number))
    pipe.log.info("one", listener="b")
    pipe.log.info("other", listener="a")
    events = pipe.events()
    assert len([e for e in events if e["event"] == "one" and e["listener"] == "a"]) == logging.RATE
    assert len([e for e in events if e["event"] == "one" and e["listener"] == "b"]) == 1
    assert len([e for e in events if e["event"] == "other"]) == 1
    (summary,) = [e for e in events if e["event"] == "log_suppressed"]
    assert (summary["of"], summary["listener"], summary["count"]) == ("one", "a", 1000 - logging.RATE)
    assert pipe.log.suppressed == 1000 - logging.RATE


def test_what_was_left_out_is_said_though_nothing_more_comes(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "WINDOW_S", 0.05)
    found = []
    for _ in range(logging.RATE + 5):
        pipe.log.info("one")
    while not any(event["event"] == "log_suppressed" for event in found):
        found += pipe.read_some()
    assert found[-1]["count"] == 5


def test_what_nobody_reads_is_dropped_and_said_once_somebody_does(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "QUEUED_BYTES_MAX", 10_000)
    monkeypatch.setattr(logging, "RATE", 1 << 30)
    for number in range(1000):
        pipe.log.info("one", number=number, text="x" * 100)
    lost = pipe.log.dropped
    assert lost > 300
    found: list[dict[str, Any]] = []
    while sum(event.get("lines_lost", 0) for event in found) < lost:
        found += pipe.read_some()
    assert found[-1]["event"] == "log_goes_on"
    numbers = [event["number"] for event in found if event["event"] == "one"]
    assert len(numbers) == 1000 - lost
    assert numbers == sorted(numbers)


def test_the_end_is_bounded_though_nobody_reads(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "CLOSE_WAIT_S", 0.1)
    for number in range(200):
        pipe.log.info("one", worker=number, text="x" * 100)
    before = time.monotonic()
    pipe.log.close()
    pipe.log.info("after the end")
    assert time.monotonic() - before < WAIT_S


def test_a_forked_child_has_a_writer_of_its_own(pipe: Pipe) -> None:
    pipe.log.info("parent")
    pid = os.fork()
    if pid == 0:
        pipe.log.info("child")
        pipe.log.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert sorted(event["event"] for event in pipe.events()) == ["child", "parent"]


SCRIPT = """
import sys, warnings
from proxy.observe.event_log import configure_log
log = configure_log()
log.info("begun")
print("a word", file=sys.stderr)
sys.stderr.write("no line feed")
sys.stderr.flush()
for number in range(int(sys.argv[1])):
    log.info("many", worker=number, text="x" * 1000)
raise RuntimeError("the last words")
"""


def run(count: int, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(count)], stderr=stderr)


def test_the_last_words_of_a_crash_come_out() -> None:
    process = run(300, subprocess.PIPE)
    _, said = process.communicate(timeout=WAIT_S * 4)
    assert process.returncode == 1
    lines = said.decode().splitlines()
    assert lines[0].endswith('"event":"begun"}')
    assert lines[1:3] == ["a word", "no line feed"]
    assert len([line for line in lines if '"many"' in line]) == 300
    assert lines[-1] == "RuntimeError: the last words"


def test_a_crash_ends_though_nobody_reads() -> None:
    reader, writer = os.pipe()
    process = run(3000, writer)
    assert process.wait(WAIT_S * 4) == 1
    os.close(reader)
    os.close(writer)
