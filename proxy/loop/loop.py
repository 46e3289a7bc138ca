"""What everything on one event loop shares, as one value: `turn`, `timers`, `reactor`, and tasks beside them.

It owns them, and never what they serve.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .background import Background
from .reactor import Reactor
from .timers import Timers
from .turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """Made on the loop that is running. `on_error` is told the name of a background task, and what it raised."""

    __slots__ = ("background", "events", "reactor", "timers", "turn")

    def __init__(self, on_error: Callable[[str, BaseException], None]) -> None:
        self.events = asyncio.get_running_loop()
        self.turn = Turn(self.events)
        self.timers = Timers(self.events, self.turn)
        self.reactor = Reactor(self.events, self.turn)
        self.background = Background(on_error)

    def __repr__(self) -> str:
        return f"<Loop {self.turn} {self.timers} {self.reactor}>"
