"""The program's own log: one JSON object a line on standard error, or coloured text on a terminal.

No reader of standard error and no client can stop the program with it:
- Lines are written by a thread, and at most `QUEUED_BYTES_MAX` wait; what is more is dropped and counted, and the first
  line after such a time says how many (`log_goes_on`). At the end there are `CLOSE_WAIT_S` seconds to write the rest.
- Of each event (of one listener, upstream, region and endpoint) `RATE` lines a second are written; how many more there
  were is said afterwards (`log_suppressed`).
- `sys.stderr` is replaced for as long as the program runs: tracebacks and warnings take the same way.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import select
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import IO, Any, Final

import msgspec

from .writer import Writer

QUEUED_BYTES_MAX: Final = 1024 * 1024
CLOSE_WAIT_S: Final = 2.0
RATE: Final = 20
WINDOW_S: Final = 1.0
_EVENTS_MAX: Final = 4096  # that are counted at a time; their number is the config's, and reloads add to it
_PLACES: Final = ("listener", "upstream", "region", "endpoint", "worker")
_BEGUN_MAX: Final = 64 * 1024  # of a line whose end has not come
_COLOURS: Final = {"info": "32", "warning": "33", "error": "31"}

Key = tuple[str, ...]


class EventLog:
    """What the program's parts log to. `bind` gives one whose events all have some more fields."""

    __slots__ = ("_fields", "_lines")

    def __init__(self, lines: EventLines, fields: dict[str, Any] | None = None) -> None:
        self._lines = lines
        self._fields = fields or {}

    def bind(self, **fields: Any) -> EventLog:
        """The same log, with these fields in each event."""
        return EventLog(self._lines, {**self._fields, **fields})

    def info(self, event: str, **fields: Any) -> None:
        """Something that an operator may want to know."""
        self._lines.add("info", event, {**self._fields, **fields})

    def warning(self, event: str, **fields: Any) -> None:
        """Something that may need an operator."""
        self._lines.add("warning", event, {**self._fields, **fields})

    def error(self, event: str, **fields: Any) -> None:
        """Something that needs one. `exc_info`: an exception whose traceback is wanted."""
        self._lines.add("error", event, {**self._fields, **fields})

    def exception(self, event: str, **fields: Any) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._lines.add("error", event, {**self._fields, **fields, "exc_info": sys.exc_info()[1]})

    @property
    def dropped(self) -> int:
        """Lines lost so far: nobody took them."""
        return self._lines.dropped

    @property
    def suppressed(self) -> int:
        """Lines left out so far: too many of one event."""
        return self._lines.suppressed

    def close(self) -> None:
        """Write what there is, in a bounded time."""
        self._lines.close()


class EventLines:
    """Events as lines, their rates, and the writer, which a forked child has anew."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._counts: dict[Key, list[float]] = {}  # start of the window, lines in it, those left out
        self._suppressing = False
        self.suppressed = 0
        self._lost_before = 0
        self._closed = False
        self._writer: Writer | None = None
        os.register_at_fork(after_in_child=self._forked)

    @property
    def dropped(self) -> int:
        """See `EventLog.dropped`."""
        return self._lost_before + (self._writer.dropped if self._writer is not None else 0)

    def add(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """Have an event written, unless there are too many of its kind."""
        key = (event, *(str(fields.get(place, "")) for place in _PLACES))
        now = monotonic()
        count = self._counts.get(key)
        if count is None or now - count[0] >= WINDOW_S:
            if count is not None and count[2]:
                self._summarise(key, count)
            elif len(self._counts) >= _EVENTS_MAX:
                self._counts.clear()
            count = self._counts[key] = [now, 0, 0]
        if count[1] >= RATE:
            count[2] += 1
            self.suppressed += 1
            if not self._suppressing and self._writer is not None:
                self._suppressing = True
                self._writer.wake()
            return
        count[1] += 1
        self.write(self._line(level, event, fields))

    def write(self, line: str) -> None:
        """Have a line written, whatever the rate. Never waits."""
        if self._writer is None and (self._closed or not self._start()):
            self._write_at_once(line)
        if self._writer is not None:
            self._writer.put(line.encode("utf-8", "backslashreplace") + b"\n")

    def _write_at_once(self, line: str) -> None:
        """There is no thread: not yet, or no longer."""
        with suppress(OSError, ValueError):
            poll = select.poll()
            with suppress(io.UnsupportedOperation):  # no file
                poll.register(self._stream.fileno(), select.POLLOUT)
                if not poll.poll(0):
                    self._lost_before += 1
                    return
            self._stream.write(line + "\n")
            self._stream.flush()

    def close(self) -> None:
        """See `EventLog.close`. What comes later is written where that needs no waiting."""
        self._closed = True
        writer = self._writer
        if writer is None:
            return
        for key, count in list(self._counts.items()):
            self._summarise(key, count)
        writer.close(CLOSE_WAIT_S)
        self._lost_before += writer.dropped
        self._writer = None

    def _start(self) -> bool:
        try:
            fd = self._stream.fileno()
            writer = Writer(fd, bytes_max=QUEUED_BYTES_MAX, tell=self._tell, idle=self._idle, name="event-log")
            writer.start()
        except (OSError, ValueError, RuntimeError):  # no file (a test's), or no further thread
            return False
        self._writer = writer
        return True

    def _forked(self) -> None:
        """In a child: the thread and what waits for it are the parent's."""
        self._writer = None
        self._counts = {}
        self._suppressing = self._closed = False
        self.suppressed = self._lost_before = 0

    def _tell(self, what: str, fields: dict[str, Any]) -> None:
        if what == "goes_on" and fields["lines_lost"]:
            self.write(self._line("warning", "log_goes_on", fields))

    # -- rates -------------------------------------------------------------------------------------

    def _idle(self) -> float | None:
        """In the writer's thread: say what was left out, once its window is over. Seconds until the next look."""
        if not self._suppressing:
            return None
        self._suppressing = False
        now = monotonic()
        pending = [(key, count) for key, count in list(self._counts.items()) if count[2]]
        for key, count in pending:
            if now - count[0] >= WINDOW_S:
                self._summarise(key, count)
        if pending:
            self._suppressing = True
        return WINDOW_S if pending else None

    def _summarise(self, key: Key, count: list[float]) -> None:
        left_out, count[2] = int(count[2]), 0
        if left_out:
            where = {place: value for place, value in zip(_PLACES, key[1:], strict=True) if value}
            self.write(self._line("warning", "log_suppressed", {"of": key[0], "count": left_out, **where}))

    # -- lines -------------------------------------------------------------------------------------

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> str:
        error = fields.pop("exc_info", None)
        time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        if isinstance(error, BaseException):
            fields["exception"] = "".join(traceback.format_exception(error)).rstrip()
        if self._terminal:
            return _for_people(time, level, event, fields)
        return _json({"timestamp": time, "level": level, "event": event, **fields})


def _json(fields: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(fields, enc_hook=repr).decode()
    except (ValueError, TypeError):  # half a surrogate pair, a key that is no text
        return json.dumps(fields, default=repr, skipkeys=True)


def _for_people(time: str, level: str, event: str, fields: dict[str, Any]) -> str:
    exception = fields.pop("exception", "")
    told = "  ".join(f"\x1b[36m{name}\x1b[0m={_plain(value)}" for name, value in fields.items())
    line = f"\x1b[2m{time[11:23]}\x1b[0m \x1b[{_COLOURS[level]}m{level:7}\x1b[0m \x1b[1m{event:24}\x1b[0m {told}"
    return f"{line}\n{exception}" if exception else line


def _plain(value: Any) -> str:
    """Nothing that a terminal would act on."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


class _StandardError(io.TextIOBase):
    """Stands for `sys.stderr`: whole lines take the way of the events."""

    def __init__(self, lines: EventLines, stream: IO[str]) -> None:
        self._lines = lines
        self._stream = stream
        self._begun = ""

    def write(self, text: str, /) -> int:
        self._begun += text
        if "\n" in self._begun:
            whole, _, self._begun = self._begun.rpartition("\n")
            self._lines.write(whole)
        if len(self._begun) > _BEGUN_MAX:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self._begun:
            begun, self._begun = self._begun, ""
            self._lines.write(begun)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


def configure_log() -> EventLog:
    """The log of this process, on its standard error, which it takes over. At the exit of the interpreter what waits is
    written; `os._exit` wants a `close` before.
    """
    stream = sys.stderr
    lines = EventLines(stream)
    with suppress(OSError, ValueError):
        stream.fileno()
        sys.stderr = _StandardError(lines, stream)
        atexit.register(lines.close)
    return EventLog(lines)
