"""The access log: one JSON line per request, formatted and written off its path.

A finished exchange adds a line; every `FLUSH_S` seconds the batch is handed to a writer thread, so that a slow disk or
a full pipe never stops the event loop. At most `QUEUE_MAX` lines wait for that, and `QUEUED_BYTES_MAX` behind it;
beyond that lines are dropped and counted.

The file belongs to the thread: only it writes, opens anew (`reopen`) and closes.
"""

from __future__ import annotations

import os
import queue
import select
import stat
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from random import random
from time import monotonic
from time import time as wall_clock  # noqa: TID251 - log lines carry wall time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

FLUSH_S: Final = 0.2
QUEUE_MAX: Final = 100_000
QUEUED_BYTES_MAX: Final = 32 * 1024 * 1024
CLOSE_WAIT_S: Final = 2.0
_LOOK_S: Final = 0.2  # how often a writer that waits for its reader looks whether it should end
_REOPEN: Final = b""
_LINE_FEED: Final = 10


class AccessRecord(msgspec.Struct):
    """One request. Times are milliseconds; `queue` is the wait for a connection, of which `connect` and `tls` were its
    dial.
    """

    time: str = ""
    listener: str = ""
    client: str = ""
    method: str = ""
    host: str = ""
    path: str = ""
    protocol: str = ""
    status: int = 0
    upstream: str = ""
    region: str = ""
    endpoint: str = ""
    attempts: int = 0
    hedged: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    queue: float = 0.0
    connect: float = 0.0
    tls: float = 0.0
    first_byte: float = 0.0
    total: float = 0.0
    request_id: str = ""
    traceparent: str = ""
    user_agent: str = ""
    error: str = ""
    details: str = ""
    tried: list[str] = []


def encode(record: AccessRecord) -> bytes:
    """A record as a line."""
    return msgspec.json.encode(record) + b"\n"


class AccessLog:
    """Where lines go. `path`: a file, `-` (standard output), or "" for nowhere; `sample`: the share of lines kept
    (faults always are).
    """

    def __init__(self, path: str, sample: float = 1.0) -> None:
        self.path = path
        self.enabled = bool(path)
        self.sample = sample
        self._dropped = 0
        self._lines: list[bytes] = []
        self._batches: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._writer: Writer | None = None
        self._thread: threading.Thread | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._second = 0
        self._second_text = b""
        self._millisecond = -1
        self._text = b""
        self._offset = wall_clock() - monotonic()

    @property
    def dropped(self) -> int:
        """Lines lost so far: too many were waiting, or the file took none."""
        return self._dropped + (self._writer.dropped if self._writer is not None else 0)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the file and begin. Raises OSError where the file can't be opened."""
        if not self.enabled:
            return
        self._loop = loop
        self._writer = Writer(self.path, self._batches)
        self._thread = threading.Thread(target=self._writer.run, name="access-log", daemon=True)
        self._thread.start()

    def timestamp(self, now: float) -> bytes:
        """The monotonic time `now` as wall time, UTC, to the millisecond (RFC 3339). Made once a millisecond."""
        millisecond = int((now + self._offset) * 1e3)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.").encode()
            self._text = b"%b%03dZ" % (self._second_text, rest)
        return self._text

    def add(self, line: bytes, fault: bool) -> None:
        """Log a request. Lines of a fault are never sampled away."""
        if self.sample < 1.0 and not fault and random() >= self.sample:
            return
        lines = self._lines
        if len(lines) >= QUEUE_MAX:
            self._dropped += 1
            return
        lines.append(line)
        if self._handle is None and self._loop is not None:
            self._handle = self._loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Hand the batch to the writer."""
        self._handle = None
        self._offset = wall_clock() - monotonic()  # the wall clock may have been set
        lines, self._lines = self._lines, []
        writer = self._writer
        if not lines or writer is None:
            return
        batch = b"".join(lines)
        if self._queued_bytes - writer.taken_bytes > QUEUED_BYTES_MAX:
            self._dropped += len(lines)
            return
        self._queued_bytes += len(batch)
        self._batches.put(batch)

    def reopen(self) -> None:
        """After log rotation: what comes from now on goes to a new file of the same name."""
        if self.path not in ("", "-"):
            self.flush()
            self._batches.put(_REOPEN)

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Write what there is, and stop; a file that takes nothing is given up after `wait_s` seconds."""
        if self._handle is not None:
            self._handle.cancel()
        self.flush()
        thread, self._thread = self._thread, None
        if thread is not None and self._writer is not None:
            self._batches.put(None)
            thread.join(wait_s)
            self._writer.ending = True


class Writer:
    """The thread's side. Opened where it is made, so that a path that can't be opened is told at once (OSError)."""

    def __init__(self, path: str, batches: queue.SimpleQueue[bytes | None]) -> None:
        self.path = path
        self.dropped = 0
        self.taken_bytes = 0
        self.ending = False  # do not wait for a reader any longer
        self._batches = batches
        self._torn = False  # the last line that was written is cut
        self._fd = -1
        self._open()

    def _open(self) -> None:
        fd = (
            os.dup(sys.stdout.fileno())
            if self.path == "-"
            else os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        )
        old, self._fd = self._fd, fd
        # Workers share a pipe, and it keeps only writes of up to so many bytes in one piece (pipe(7)).
        self._piece_bytes = select.PIPE_BUF if stat.S_ISFIFO(os.fstat(fd).st_mode) else 0
        if old >= 0:
            os.close(old)

    def run(self) -> None:
        """Until None comes."""
        while (batch := self._batches.get()) is not None:
            if batch is _REOPEN:
                with suppress(OSError):  # then the old file goes on
                    self._open()
                continue
            self.taken_bytes += len(batch)
            for piece in _pieces(batch, self._piece_bytes) if self._piece_bytes else (batch,):
                self._write(piece)
        os.close(self._fd)

    def _write(self, lines: bytes) -> None:
        text = b"\n" + lines if self._torn else lines
        view = memoryview(text)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # standard output may be a pipe that somebody made non-blocking
                if self.ending:
                    break
                select.select([], [self._fd], [], _LOOK_S)
            except OSError:
                break
        if view:
            self.dropped += lines.count(b"\n", max(0, len(lines) - len(view)))
        written = len(text) - len(view)
        if written:
            self._torn = text[written - 1] != _LINE_FEED


def _pieces(batch: bytes, size: int) -> Iterator[bytes]:
    """Whole lines, as many as fit; a longer line by itself."""
    start = 0
    while start < len(batch):
        end = batch.rfind(b"\n", start, start + size) + 1
        if not end:
            end = batch.find(b"\n", start) + 1 or len(batch)
        yield batch[start:end]
        start = end
