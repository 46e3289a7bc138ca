"""The access log: one JSON line per request, formatted and written off its path.

A finished exchange adds a line; every `FLUSH_S` seconds the batch is handed to a writer thread, so that a slow disk or
a full pipe never stops the event loop. At most `QUEUE_MAX` lines wait; beyond that they are dropped and counted.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from datetime import UTC, datetime
from random import random
from time import monotonic
from time import time as wall_clock  # noqa: TID251 - log lines carry wall time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import asyncio

FLUSH_S: Final = 0.2
QUEUE_MAX: Final = 100_000
_BATCHES_MAX: Final = 64


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
        self.dropped = 0
        self._lines: list[bytes] = []
        self._batches: queue.Queue[bytes | None] = queue.Queue(_BATCHES_MAX)
        self._thread: threading.Thread | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self._second = 0
        self._second_text = b""
        self._millisecond = -1
        self._text = b""
        self._offset = wall_clock() - monotonic()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the file and begin. Raises OSError where the file can't be opened."""
        if not self.enabled:
            return
        self._loop = loop
        self._fd = self._open()
        self._thread = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
        self._thread.start()

    def _open(self) -> int:
        if self.path == "-":
            return sys.stdout.fileno()
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

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
            self.dropped += 1
            return
        lines.append(line)
        if self._handle is None and self._loop is not None:
            self._handle = self._loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Hand the batch to the writer."""
        self._handle = None
        self._offset = wall_clock() - monotonic()  # the wall clock may have been set
        lines, self._lines = self._lines, []
        if not lines or self._fd < 0:
            return
        try:
            self._batches.put_nowait(b"".join(lines))
        except queue.Full:
            self.dropped += len(lines)

    def reopen(self) -> None:
        """After log rotation: write to a new file of the same name."""
        if self.path in ("", "-") or self._fd < 0:
            return
        old, self._fd = self._fd, self._open()
        self._batches.put(b"")  # what is queued before it may still go to the old file
        os.close(old)

    def close(self) -> None:
        """Write what there is, and stop."""
        if self._handle is not None:
            self._handle.cancel()
        self.flush()
        if self._thread is not None:
            try:
                self._batches.put(None, timeout=1.0)
                self._thread.join(2.0)
            except queue.Full:
                pass  # nobody reads the log; the process must end all the same
            self._thread = None

    def _write_batches(self) -> None:
        while (data := self._batches.get()) is not None:
            view = memoryview(data)
            while view:
                try:
                    written = os.write(self._fd, view)
                except OSError:
                    self.dropped += bytes(view).count(b"\n")
                    break
                view = view[written:]
