"""The types of single values: how each is read from its written form, printed back, and described in the JSON Schema.

Each is an `Annotated` alias or an annotation: the model's fields hold plain Python values (seconds, bytes, fractions),
pydantic reads and prints them through the functions here, and every refusal says what was expected. Values that name
something outside the config (addresses, files, secrets) are in `places`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from routing.model import SessionKey

from . import units
from .document import Expanded, resolve
from .faults import nearest
from .units import UnitError, shown

# A token of RFC 9110 section 5.6.2, which methods and field names are.
TOKEN: Final = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
_STATUSES: Final = r"[1-5][0-9]{2}(?:\s*-\s*[1-5][0-9]{2})?"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What values may refer to: the directory that relative paths start from, and the environment."""

    directory: Path = field(default_factory=Path)
    environ: Mapping[str, str] = field(default_factory=dict)


class StandIn(str):
    """Takes the place of a value at fault, so that the rest can be checked. No config holds one."""

    __slots__ = ()


STAND_IN: Final = StandIn("?")


class Written:
    """Annotation of a value with a written form.

    `parse` reads it (UnitError where it can't), `print_` gives it back, `schema` is its JSON Schema, and `form` names
    it in the documentation. Where `placed`, `parse` is also given the Surroundings.
    """

    def __init__(
        self,
        form: str,
        parse: Callable[..., Any],
        print_: Callable[[Any], Any] | None,
        schema: dict[str, Any],
        *,
        placed: bool = False,
    ) -> None:
        self.form = form
        self.parse = parse
        self.print_ = print_
        self.schema = schema
        self.placed = placed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        printing = core_schema.plain_serializer_function_ser_schema(self._print)
        return core_schema.with_info_plain_validator_function(self._read, serialization=printing)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)

    def _print(self, value: Any) -> Any:
        return value if value is None or self.print_ is None else self.print_(value)

    def _read(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, StandIn):
            return value
        try:
            if not self.placed:
                return self.parse(value)
            return self.parse(value, info.context if isinstance(info.context, Surroundings) else Surroundings())
        except UnitError as error:
            context = {"message": error.message, "suggestion": error.suggestion}
            raise PydanticCustomError("config", "{message}", context) from None


def _native(value: Any) -> Any:
    """What came from the environment, read as if it had been written in its place."""
    return resolve(value) if isinstance(value, Expanded) else value


# Numbers, booleans, words.


def whole(least: int, most: int = 2**31 - 1) -> Written:
    """A whole number from `least` to `most`."""

    def parse(value: Any) -> int:
        given = _native(value)
        if isinstance(given, bool) or not isinstance(given, int):
            meant = given.strip() if isinstance(given, str) and given.strip().isdecimal() else ""
            raise UnitError(f"expected a whole number, got {_kind(given)}", meant)
        if not least <= given <= most:
            bounds = f"of at least {least}" if given < least else f"of at most {most}"
            raise UnitError(f"expected a whole number {bounds}, got {shown(given)}")
        return given

    return Written("number", parse, None, {"type": "integer", "minimum": least, "maximum": most})


def _kind(value: Any) -> str:
    return f"the string {shown(value)}" if isinstance(value, str) and resolve(value) != value else shown(value)


def _weight(value: Any) -> float:
    given = _native(value)
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 1_000_000:
        raise UnitError(f"expected a weight above 0 and up to 1000000, got {_kind(given)}")
    return float(given)


def _flag(value: Any) -> bool:
    given = _native(value)
    if isinstance(given, bool):
        return given
    meant = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
    raise UnitError(f"expected true or false, got {_kind(given)}", meant.get(str(given).lower(), ""))


def _workers(value: Any) -> int | str:
    given = _native(value)
    if given == "auto":
        return "auto"
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= 512:
        meant = nearest(given, ("auto",)) if isinstance(given, str) else ""
        raise UnitError(f"expected a number of processes from 1 to 512, or auto, got {_kind(given)}", meant)
    return given


def words(*known: str) -> Written:
    """One of these words. Where `off` is one, `false` is too."""

    def parse(value: Any) -> str:
        if value is False:
            value = "off"
        # What looks like a number to YAML (`min_version: 1.3`) is a word here.
        word = str(value) if isinstance(value, (str, float)) else ""
        if word in known:
            return word
        expected = known[0] if len(known) == 1 else f"{', '.join(known[:-1])} or {known[-1]}"
        raise UnitError(f"expected {expected}, got {shown(value)}", nearest(word, known))

    schema = {"enum": [*known, False] if "off" in known else list(known)}
    return Written(" ".join(f"`{word}`" for word in known), parse, None, schema)


def text(pattern: str, expected: str, meant: Callable[[str], str] = lambda _: "") -> Written:
    """A string that matches `pattern`; `expected` says so in words, and `meant` guesses from one that doesn't."""
    compiled = re.compile(pattern)

    def parse(value: Any) -> str:
        given = str(value) if isinstance(value, Expanded) else value
        if not isinstance(given, str):
            simple = isinstance(given, (int, float)) and not isinstance(given, bool)
            raise UnitError(f"expected {expected}, got {shown(given)}", f'"{given}"' if simple else "")
        if not compiled.match(given) or given.endswith("\n"):
            guess = meant(given)
            raise UnitError(f"expected {expected}, got {shown(given)}", guess if compiled.match(guess) else "")
        return given

    return Written("text", parse, None, {"type": "string", "pattern": pattern})


_WEIGHT: Final = Written(
    "number",
    _weight,
    lambda value: int(value) if value == int(value) else value,
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000},
)
_NAME: Final = text(
    r"^[^\s\x00-\x1f\x7f]{1,128}$",
    "a name of 1 to 128 characters without white space",
    lambda given: re.sub(r"\s+", "-", given.strip()),
)
_COUNT_OR_AUTO: Final = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 512}, {"const": "auto"}]}

Flag: TypeAlias = Annotated[bool, Written("true, false", _flag, None, {"type": "boolean"})]
Weight: TypeAlias = Annotated[float, _WEIGHT]
Name: TypeAlias = Annotated[str, _NAME]
Workers: TypeAlias = Annotated[int | str, Written("number or `auto`", _workers, None, _COUNT_OR_AUTO)]


# Durations (seconds), sizes (bytes), shares (fractions of one).


def _positive(parse: Callable[[Any], float], what: str) -> Callable[[Any], float]:
    def positive(value: Any) -> float:
        result = parse(value)
        if result <= 0:
            raise UnitError(f"expected a {what} above zero, got {shown(value)}")
        return result

    return positive


def _matching(pattern: str, *, positive: bool = False) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern.replace("^", "^(?=.*[1-9])", 1) if positive else pattern}


_DURATION: Final = Written(
    "duration",
    units.parse_duration,
    units.format_duration,
    {"anyOf": [_matching(units.DURATION_PATTERN), {"const": 0}]},
)
_POSITIVE_DURATION: Final = Written(
    "duration",
    _positive(units.parse_duration, "duration"),
    units.format_duration,
    _matching(units.DURATION_PATTERN, positive=True),
)
_SHARE: Final = Written("percentage", units.parse_share, units.format_share, _matching(units.SHARE_PATTERN))
_POSITIVE_SHARE: Final = Written(
    "percentage",
    _positive(units.parse_share, "percentage"),
    units.format_share,
    _matching(units.SHARE_PATTERN, positive=True),
)
_BYTES: Final = {"type": "integer", "minimum": 0, "maximum": units.SIZE_MAX_BYTES}
_POSITIVE_BYTES: Final = {"type": "integer", "minimum": 1, "maximum": units.SIZE_MAX_BYTES}
_POSITIVE_SIZE: Final = Written(
    "size",
    _positive(units.parse_size, "size"),
    units.format_size,
    {"anyOf": [_POSITIVE_BYTES, _matching(units.SIZE_PATTERN, positive=True)]},
)
_SIZE: Final = Written("size", units.parse_size, units.format_size, {"anyOf": [_BYTES, _matching(units.SIZE_PATTERN)]})

Duration: TypeAlias = Annotated[float, _DURATION]
"""Seconds; 0 is allowed."""
PositiveDuration: TypeAlias = Annotated[float, _POSITIVE_DURATION]
"""Seconds, above 0."""
Share: TypeAlias = Annotated[float, _SHARE]
"""A fraction of one, written as a percentage."""
PositiveShare: TypeAlias = Annotated[float, _POSITIVE_SHARE]
"""A fraction of one, above 0."""
Size: TypeAlias = Annotated[int, _SIZE]
"""Bytes; 0 is allowed."""
PositiveSize: TypeAlias = Annotated[int, _POSITIVE_SIZE]
"""Bytes, above 0."""


# What health checks expect, and what clients stick by.


def _expect(value: Any) -> tuple[tuple[int, int], ...]:
    expected = f"expected status codes such as 200-299 or 200,204, got {shown(value)}"
    written = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(written, str):
        raise UnitError(expected)
    ranges = []
    for part in written.split(","):
        match = re.fullmatch(rf"\s*{_STATUSES}\s*", part)
        low, _, high = part.strip().partition("-") if match else ("1", "", "0")
        if int(low) > int(high or low):
            family = re.fullmatch(r"\s*([1-5])[xX*]{2}\s*", part)
            raise UnitError(expected, f"{family[1]}00-{family[1]}99" if family else "")
        ranges.append((int(low), int(high or low)))
    return tuple(ranges)


def _print_expect(ranges: tuple[tuple[int, int], ...]) -> str:
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _session_key(value: Any) -> SessionKey:
    expected = f"expected header:NAME, cookie:NAME or source, got {shown(value)}"
    if value == "source":
        return SessionKey("source")
    kind, _, name = str(value).partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in ("header", "cookie"):
        close = nearest(kind, ("header", "cookie", "source"))
        raise UnitError(expected, f"{close}:{name or 'NAME'}" if close in ("header", "cookie") else close)
    if not re.fullmatch(TOKEN, name):
        raise UnitError(f"expected the name of a {kind} after {kind}:, got {shown(name)}")
    return SessionKey(kind, name.lower() if kind == "header" else name)


_EXPECT: Final = Written(
    "status codes",
    _expect,
    _print_expect,
    {
        "type": ["string", "integer"],
        "pattern": rf"^\s*{_STATUSES}\s*(?:,\s*{_STATUSES}\s*)*$",
        "minimum": 100,
        "maximum": 599,
    },
)
_AFFINITY: Final = Written(
    "text",
    _session_key,
    lambda key: f"{key.kind}:{key.name}" if key.name else key.kind,
    {"type": "string", "pattern": f"^(?:source|(?:header|cookie):{TOKEN})$"},
)

Expect: TypeAlias = Annotated[tuple[tuple[int, int], ...], _EXPECT]
"""Inclusive ranges of status codes."""
Affinity: TypeAlias = Annotated[SessionKey, _AFFINITY]
