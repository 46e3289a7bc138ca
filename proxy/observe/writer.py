"""A thread that writes lines to a file which may be slow, full, gone, or a pipe that nobody reads.

    OPEN     lines are written
    FAILING  the last write failed (disk full, reader gone): lines are lost, each batch tries again
    CLOSED   there is no file yet (a FIFO without a reader), or the one that `reopen` asked for can't be opened:
             opened again at most every `RETRY_S`; where there is an old file, it goes on

Whoever puts never waits: past `bytes_max` in the queue lines are dropped and counted. The beginning and the end of such
a time are told once each, by `tell(event, fields)`, from either side's thread.

The file belongs to the thread: only it writes, opens anew and closes.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import stat
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOK_S: Final = 0.2  # how often a writer that waits for its reader looks whether it should end
RETRY_S: Final = 1.0
PIECE_BYTES: Final = select.PIPE_BUF
"""Processes share a pipe, and it keeps only writes of up to so many bytes in one piece (pipe(7)). A pipe or socket that
poll(2) calls writable takes as many without waiting.
"""
_WAKE: Final = "wake"
_REOPEN: Final = "reopen"
_LINE_FEED: Final = 10


class Writer:
    """The thread and its queue. `file`: a path, or a descriptor that stays its owner's.

    Raises OSError where a path can't be opened; a FIFO may have no reader yet.
    """

    def __init__(
        self,
        file: str | int,
        *,
        bytes_max: int,
        tell: Callable[[str, dict[str, Any]], None] | None = None,
        idle: Callable[[], float | None] | None = None,
        name: str = "log",
    ) -> None:
        self.file = file
        self.bytes_max = bytes_max
        self.name = name
        self.ending = False  # do not wait for a reader any longer
        self._tell = tell
        self._idle = idle
        self._fd = -1
        self._pieces = False
        self._torn = False  # the last line that was written is cut
        self._wanted = False  # `reopen` is still to be done
        self._retry_at = 0.0
        self._batches: queue.SimpleQueue[bytes | str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._put_bytes = 0
        self._done_bytes = 0
        self._refused = 0  # lines that found the queue full
        self._failed = 0  # lines that could not be written
        self._told = 0  # of both, when a bad time was last told to be over
        self._trouble = ""  # of the bad time that is told and goes on
        self._thread: threading.Thread | None = None
        try:
            self._open()
        except OSError as error:
            if not self._waits_for_reader(error):
                raise
            self._bad(error)

    @property
    def dropped(self) -> int:
        """Lines lost so far: too many were waiting, or the file took none."""
        return self._refused + self._failed

    def start(self) -> None:
        """Begin to write. Raises RuntimeError where there can be no thread."""
        self._thread = threading.Thread(target=self.run, name=self.name, daemon=True)
        self._thread.start()

    def put(self, lines: bytes) -> None:
        """Have whole lines written. Never waits."""
        with self._lock:
            waiting = self._put_bytes - self._done_bytes
            full = waiting > self.bytes_max
            if full:
                self._refused += lines.count(b"\n")
            else:
                self._put_bytes += len(lines)
        if full:
            self._say_bad(f"nobody takes what is written: {waiting} bytes wait")
        else:
            self._batches.put(lines)

    def wake(self) -> None:
        """Have the thread call `idle`."""
        self._batches.put(_WAKE)

    def reopen(self) -> None:
        """What comes from now on goes to a new file of the same path."""
        self._batches.put(_REOPEN)

    def close(self, wait_s: float) -> None:
        """Write what there is and stop; a file that takes nothing is given up after `wait_s` seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._batches.put(None)
        if wait_s:
            thread.join(wait_s)
        self.ending = True

    # -- the thread --------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `close`."""
        wait_s: float | None = None
        well = False  # the last batch was written
        while True:
            try:
                batch = self._batches.get(timeout=wait_s)
            except queue.Empty:
                batch = _WAKE
            if batch is None:
                break
            if batch is _REOPEN:
                self._wanted, self._retry_at = True, 0.0
            if self._fd < 0 or self._wanted:
                self._try_to_open()
            if isinstance(batch, bytes):
                well = self._write_batch(batch) and not self._wanted
                with self._lock:
                    self._done_bytes += len(batch)
                if well and self._trouble and self._batches.empty():
                    self._say_good()
            wait_s = self._idle() if self._idle is not None else None
        if well and self._trouble:
            self._say_good()
        if isinstance(self.file, str) and self._fd >= 0:
            os.close(self._fd)

    def _write_batch(self, batch: bytes) -> bool:
        """Whether all of it was written."""
        well = True
        for lines in _pieces(batch, PIECE_BYTES) if self._pieces else (batch,):
            try:
                self._write(lines)
            except OSError as error:
                self._bad(error)
                well = False
        return well

    def _write(self, lines: bytes) -> None:
        """Raises OSError where not all of it was written."""
        text = b"\n" + lines if self._torn else lines
        view = memoryview(text)
        try:
            if self._fd < 0:
                raise OSError(errno.ENXIO, "nobody reads")
            while view:
                if self._pieces:
                    self._wait_writable()
                with suppress(BlockingIOError):
                    view = view[os.write(self._fd, view) :]
        except OSError:
            self._failed += lines.count(b"\n", max(0, len(lines) - len(view)))
            raise
        finally:
            written = len(text) - len(view)
            if written:
                self._torn = text[written - 1] != _LINE_FEED

    def _wait_writable(self) -> None:
        poll = select.poll()  # select(2) knows only 1,024 descriptors
        poll.register(self._fd, select.POLLOUT)
        while not poll.poll(LOOK_S * 1e3):
            if self.ending:
                raise OSError(errno.ETIMEDOUT, "nobody read in time")

    # -- the file ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Raises OSError."""
        if isinstance(self.file, int):
            fd = self.file
        else:
            # O_NONBLOCK: to open a FIFO waits for its reader otherwise.
            fd = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
        old, self._fd = self._fd, fd
        self._pieces = not stat.S_ISREG(os.fstat(fd).st_mode)
        if old not in (-1, fd):
            os.close(old)

    def _try_to_open(self) -> None:
        now = monotonic()
        if now < self._retry_at:
            return
        self._retry_at = now + RETRY_S
        try:
            self._open()
        except OSError as error:
            self._bad(error)
        else:
            self._wanted = False

    def _waits_for_reader(self, error: OSError) -> bool:
        return error.errno == errno.ENXIO and isinstance(self.file, str) and stat.S_ISFIFO(os.stat(self.file).st_mode)

    # -- telling -----------------------------------------------------------------------------------

    def _bad(self, error: OSError) -> None:
        self._say_bad("a FIFO that nobody reads" if error.errno == errno.ENXIO else error.strerror or str(error))

    def _say_bad(self, reason: str) -> None:
        if not self._trouble:
            self._trouble = reason
            if self._tell is not None:
                self._tell("failing", {"reason": reason})

    def _say_good(self) -> None:
        lost, self._told = self.dropped - self._told, self.dropped
        self._trouble = ""
        if self._tell is not None:
            self._tell("goes_on", {"lines_lost": lost})


def _pieces(batch: bytes, size: int) -> Iterator[bytes]:
    """Whole lines, as many as fit; a longer line by itself."""
    start = 0
    while start < len(batch):
        end = batch.rfind(b"\n", start, start + size) + 1
        if not end:
            end = batch.find(b"\n", start) + 1 or len(batch)
        yield batch[start:end]
        start = end
