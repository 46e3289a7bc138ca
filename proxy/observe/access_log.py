"""The access log: one JSON line per request, formatted and written off its path.

A finished exchange adds a line; every `FLUSH_S` seconds the batch is handed to a writer thread, so that a slow disk or
a full pipe never stops the event loop. At most `QUEUE_MAX` lines wait for that, and `QUEUED_BYTES_MAX` behind it;
beyond that lines are dropped and counted.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from random import random
from time import monotonic
from time import time as wall_clock  # noqa: TID251 - log lines carry wall time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .writer import Writer

if TYPE_CHECKING:
    import asyncio

FLUSH_S: Final = 0.2
QUEUE_MAX: Final = 100_000
QUEUED_BYTES_MAX: Final = 32 * 1024 * 1024
CLOSE_WAIT_S: Final = 2.0


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
    (faults always are); `before` is the log that this one replaces.
    """

    def __init__(self, path: str, sample: float = 1.0, before: AccessLog | None = None) -> None:
        self.path = path
        self.enabled = bool(path)
        self.sample = sample
        self._dropped = before.dropped if before is not None else 0
        self._lines: list[bytes] = []
        self._writer: Writer | None = None
        self._log: Any = None
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._second = 0
        self._second_text = b""
        self._millisecond = -1
        self._text = b""
        self._offset = wall_clock() - monotonic()

    @property
    def dropped(self) -> int:
        """Lines lost so far: too many were waiting, or the file took none. Those of `before` count too."""
        return self._dropped + (self._writer.dropped if self._writer is not None else 0)

    def start(self, loop: asyncio.AbstractEventLoop, log: Any = None) -> None:
        """Open the file and begin. Raises OSError where the file can't be opened; a FIFO may have no reader yet. `log`
        is told when lines begin to be lost, and when that is over.
        """
        if not self.enabled:
            return
        self._loop = loop
        self._log = log
        file = sys.stdout.fileno() if self.path == "-" else self.path
        self._writer = Writer(file, bytes_max=QUEUED_BYTES_MAX, tell=self._tell, name="access-log")
        self._writer.start()

    def _tell(self, what: str, fields: dict[str, Any]) -> None:
        if self._log is None:
            return
        if what == "failing":
            self._log.warning("access_log_failing", path=self.path, **fields)
        else:
            self._log.info("access_log_goes_on", path=self.path, **fields)

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
        if lines and self._writer is not None:
            self._writer.put(b"".join(lines))

    def reopen(self) -> None:
        """After log rotation: what comes from now on goes to a new file of the same name. Where that can't be opened,
        the old one goes on until it can.
        """
        if self.path not in ("", "-") and self._writer is not None:
            self.flush()
            self._writer.reopen()

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Write what there is, and stop; a file that takes nothing is given up after `wait_s` seconds."""
        if self._handle is not None:
            self._handle.cancel()
        self.flush()
        if self._writer is not None:
            self._writer.close(wait_s)

    def retire(self) -> None:
        """Another one takes over. Waits for nothing: what there is, is written in the background, in a bounded time."""
        self.close(0.0)
