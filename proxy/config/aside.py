"""Reading and printing a config while requests are served: 2,000 routes take seconds, which a child process spends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.loop.aside import TIMEOUT_S, AsideError, aside

from .effective import effective_yaml
from .faults import ConfigError, ConfigFault
from .load import load_config

if TYPE_CHECKING:
    from .model import Config


async def load_config_aside(path: str, timeout_s: float = TIMEOUT_S) -> Config:
    """`load_config` without holding the loop. Raises ConfigError: the file's faults, or (at 1:1) that it could not be
    read in time.
    """
    try:
        found = await aside(lambda: _loaded(path), timeout_s)
    except AsideError as error:
        raise ConfigError([ConfigFault(path, 1, 1, f"reading the config failed: {error}")]) from error
    if isinstance(found, tuple):
        raise ConfigError(found)
    return found


def _loaded(path: str) -> Config | tuple[ConfigFault, ...]:
    try:
        return load_config(path)
    except ConfigError as error:
        return error.faults


async def effective_yaml_aside(config: Config) -> str:
    """`effective_yaml` without holding the loop; where there can be no child process, all the same."""
    try:
        return await aside(lambda: effective_yaml(config))
    except AsideError:
        return effective_yaml(config)
