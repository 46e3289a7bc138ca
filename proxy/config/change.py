"""What a reload changes: which sockets stay, which pools stay warm, and what only a restart can change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .listeners import ListenerSection
from .model import Config

RESTART: Final = ("workers", "admin.address", "sessions", "fleet")
"""Keys that a running program can't change."""
_SOCKET: Final = ("address", "protocol", "http3", "fast_open")
"""Keys that a listener can't change while it is open: another takes its place."""


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """Names of listeners and upstreams by what becomes of them, in the order of the new config (the old one's if gone).

    `listeners_rebound` are those of `listeners_changed` that need another socket. `other` are top-level keys that
    changed; `restart` are keys that changed and take effect only with a restart.
    """

    listeners_added: tuple[str, ...]
    listeners_removed: tuple[str, ...]
    listeners_changed: tuple[str, ...]
    listeners_rebound: tuple[str, ...]
    upstreams_added: tuple[str, ...]
    upstreams_removed: tuple[str, ...]
    upstreams_changed: tuple[str, ...]
    upstreams_unchanged: tuple[str, ...]
    other: tuple[str, ...]
    restart: tuple[str, ...]

    def __bool__(self) -> bool:
        listeners = self.listeners_added or self.listeners_removed or self.listeners_changed
        upstreams = self.upstreams_added or self.upstreams_removed or self.upstreams_changed
        return bool(listeners or upstreams or self.other or self.restart)


def diff(old: Config, new: Config) -> ConfigDiff:
    """What changes from `old` to `new`."""
    before = {listener.name: listener for listener in old.listeners}
    after = {listener.name: listener for listener in new.listeners}
    changed = tuple(name for name in after if name in before and before[name] != after[name])
    upstreams = old.upstreams
    return ConfigDiff(
        listeners_added=tuple(name for name in after if name not in before),
        listeners_removed=tuple(name for name in before if name not in after),
        listeners_changed=changed,
        listeners_rebound=tuple(name for name in changed if _socket(before[name]) != _socket(after[name])),
        upstreams_added=tuple(name for name in new.upstreams if name not in upstreams),
        upstreams_removed=tuple(name for name in upstreams if name not in new.upstreams),
        upstreams_changed=tuple(
            name for name, one in new.upstreams.items() if name in upstreams and one != upstreams[name]
        ),
        upstreams_unchanged=tuple(name for name, one in new.upstreams.items() if upstreams.get(name) == one),
        other=tuple(
            key
            for key in Config.model_fields
            if key not in ("listeners", "upstreams") and _at(old, key) != _at(new, key)
        ),
        restart=tuple(key for key in RESTART if _at(old, key) != _at(new, key)),
    )


def _socket(listener: ListenerSection) -> tuple[object, ...]:
    return tuple(getattr(listener, key) for key in _SOCKET)


def _at(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
