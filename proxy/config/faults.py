"""What is wrong with a config: where, in words, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

_KNOWN_MAX: Final = 512  # a comparison takes microseconds, and a file may hold thousands of names and of faults

Path: TypeAlias = tuple[str | int, ...]
"""Where something stands in the config: keys and list positions from the top, `("listeners", 0, "tls")`."""


@dataclass(frozen=True, slots=True, order=True)
class ConfigFault:
    """One fault, at a line and column that count from 1 (1:1 where the file as a whole is at fault)."""

    file: str
    line: int
    column: int
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        meant = f" (did you mean {self.suggestion}?)" if self.suggestion else ""
        text = f"{self.file}:{self.line}:{self.column}: {self.message}{meant}"
        # One line, and nothing that a terminal would act on, whatever the file holds.
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class ConfigError(Exception):
    """A config that can't be used. `faults` holds every one found, in the order of the file."""

    def __init__(self, faults: Iterable[ConfigFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


def dotted(path: Path) -> str:
    """A path as it is written in messages and in the documentation: `listeners[0].tls.certificates[1].key`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(word: object, known: Iterable[str]) -> str:
    """The known word that `word` probably is, or "": for `did you mean`."""
    from difflib import get_close_matches  # noqa: PLC0415 (needed only once something is wrong)

    words = {one.lower(): one for one in islice(known, _KNOWN_MAX)}
    close = get_close_matches(str(word).lower(), words, n=1, cutoff=0.6)
    return words[close[0]] if close else ""
