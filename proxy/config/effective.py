"""The effective config as YAML: defaults filled in, units written out, secrets masked. It loads back as an equal."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from .document import resolve
from .model import Config
from .sections import Section

_WIDTH: Final = 110
_PLAIN = re.compile(r"^[A-Za-z0-9_./](?:[A-Za-z0-9_./+%=@-]|:(?=[A-Za-z0-9_./]))*$")
# What YAML 1.2 section 5.1 does not allow unescaped, and what some readers take for a line break.
_UNPRINTABLE = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u2028\u2029\ufeff]")


def effective_yaml(config: Config) -> str:
    """The config as YAML 1.2, small sections on one line. A secret that stands in the config is printed `***`."""
    return "\n".join(_block(effective_values(config), 0)) + "\n"


def effective_values(config: Config) -> dict[str, Any]:
    """The config as JSON would hold it: written forms, without the keys that are off until named."""
    return written_values(config)


def written_values(section: Section) -> dict[str, Any]:
    """A section's keys in written form, without those that are off until named."""
    values: dict[str, Any] = _named(section.model_dump(mode="json", warnings=False))
    return values


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(one) for key, one in value.items() if one is not None}
    return [_named(one) for one in value] if isinstance(value, list) else value


def _block(value: dict[str, Any] | list[Any], indent: int) -> list[str]:
    lines: list[str] = []
    entries = (
        ((f"{_scalar(key)}:", one) for key, one in value.items())
        if isinstance(value, dict)
        else (("-", one) for one in value)
    )
    for lead, one in entries:
        line = f"{' ' * indent}{lead} {_flow(one)}"
        if _simple(one) and len(line) <= _WIDTH:
            lines.append(line)
        elif lead == "-":
            inner = _block(one, indent + 2)
            lines += [f"{' ' * indent}- {inner[0].lstrip()}", *inner[1:]]
        elif isinstance(one, (dict, list)) and one:
            lines += [f"{' ' * indent}{lead}", *_block(one, indent + 2)]
        else:
            lines.append(line)
    return lines


def _simple(value: Any) -> bool:
    """A scalar, or a collection of scalars or of short lists: what reads well on one line."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not any(
        (isinstance(one, dict) and one)
        or (isinstance(one, list) and any(isinstance(deep, (dict, list)) for deep in one))
        for one in inner
    )


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    text = value.replace("${", "$${")
    if _PLAIN.match(text) and not text.endswith("\n") and isinstance(resolve(text), str):
        return text
    return _UNPRINTABLE.sub(lambda char: f"\\u{ord(char[0]):04x}", json.dumps(text, ensure_ascii=False))
