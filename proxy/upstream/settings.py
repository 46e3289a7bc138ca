"""How many connections a pool keeps and how long they live, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.config import UpstreamSection


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How many connections, and how long they live. Seconds; `max_age_s` gets 10 % of jitter, so that no two pools
    redial together.
    """

    warm: int = 2
    max_connections: int = 128
    max_age_s: float = 1800.0
    idle_s: float = 60.0
    keepalive_s: float = 15.0
    connect_s: float = 2.0
    streams: int = 1
    """How many requests a connection takes at once, as far as that is known before there is one."""


def pool_settings(section: UpstreamSection, streams: int) -> PoolSettings:
    """Those of a section of the config. `streams`: how many requests a connection is expected to take at once."""
    return PoolSettings(
        warm=section.pool.warm,
        max_connections=section.pool.max_connections,
        max_age_s=section.pool.max_age,
        idle_s=section.timeouts.idle,
        keepalive_s=section.pool.keepalive,
        connect_s=section.timeouts.connect,
        streams=streams,
    )
