"""The words by which a running lab is driven, from its terminal and from other shells: one line in, one JSON value out.

set us blackhole=on                    a path's settings (see `PathSettings`), both ways: rtt_ms=120, loss=2%
set us>home loss=2%                    one way
origin us late_share=2% late_ms=1000   behaviour (see `Behaviour`) of all endpoints of a region
origin us/1 restart                    of one; also drop, freeze, thaw
show                                   where everything is
counters                               paths, carrier, origins
down                                   the end
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from .handles import Origin
from .lab import HOME, Lab

_WORDS: Final[Mapping[str, bool]] = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


class Down(Exception):
    """`down` was said."""


class Commands:
    """Drives one lab and the origins that `up` started in it."""

    def __init__(self, lab: Lab, origins: Mapping[str, Origin]) -> None:
        self._lab = lab
        self._origins = origins

    async def run(self, line: str) -> Any:
        """Obey a line; its result. Raises Down, LabError, and ValueError for what is not a command."""
        word, *rest = shlex.split(line)
        if word == "set" and len(rest) > 1:
            return await self._set(rest[0], parse_settings(rest[1:]))
        if word == "origin" and len(rest) > 1:
            return await self._origin(rest[0], rest[1:])
        if word == "show":
            return self.show()
        if word == "counters":
            origins = {name: await origin.counters() for name, origin in self._origins.items()}
            return {**await self._lab.counters(), "origins": origins}
        if word == "down":
            raise Down
        raise ValueError(f"not a command: {line.strip()!r} (set, origin, show, counters, down)")

    def show(self) -> dict[str, Any]:
        """Everything that a user of the lab needs to know."""
        tls = any(origin.tls for origin in self._origins.values())
        return {
            "mode": self._lab.mode,
            "banner": self._lab.banner,
            "reason": self._lab.reason,
            "regions": {
                name: {
                    "rtt_ms": rtt_ms,
                    "endpoints": [f"{host}:{port}" for host, port in self._lab.addresses(name)],
                    "prefix": shlex.join(self._lab.command_prefix(name)),
                }
                for name, rtt_ms in self._lab.regions.items()
            },
            "home_prefix": shlex.join(self._lab.command_prefix(HOME)),
            "ca": str(self._lab.ca.certificate) if tls else "",
            "pids": [self._lab.pid, *(pid for origin in self._origins.values() for pid in origin.pids)],
        }

    async def _set(self, where: str, values: dict[str, Any]) -> str:
        source, arrow, target = where.partition(">")
        if not arrow:
            await self._lab.path(where).set(**values)
        elif source == HOME:
            await self._lab.path(target, direction="to").set(**values)
        else:
            await self._lab.path(source, target or HOME, direction="from").set(**values)
        return "ok"

    async def _origin(self, where: str, words: list[str]) -> Any:
        region, _, number = where.partition("/")
        if region not in self._origins:
            raise ValueError(f"no origin in {region!r}: there are {', '.join(self._origins)}")
        origin = self._origins[region]
        endpoint = int(number) if number else None
        if words == ["restart"]:
            await origin.restart(endpoint=endpoint)
        elif words == ["drop"]:
            return {"dropped": await origin.drop_connections(endpoint=endpoint)}
        elif words == ["freeze"]:
            origin.freeze(endpoint=endpoint)
        elif words == ["thaw"]:
            origin.thaw(endpoint=endpoint)
        else:
            await origin.set(endpoint=endpoint, **parse_settings(words))
        return "ok"


def parse_settings(words: list[str]) -> dict[str, Any]:
    """`name=value` words: on and off, numbers, percentages (2% is 0.02), and what is left as text.

    Raises ValueError.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not name=value")
        settings[name.replace("-", "_")] = _value(text)
    return settings


def _value(text: str) -> bool | float | str:
    if text in _WORDS:
        return _WORDS[text]
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else int(text) if text.isdigit() else float(text)
    except ValueError:
        return text
