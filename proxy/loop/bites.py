"""Long work on the loop in bites: what walks thousands of endpoints lets requests go first every few milliseconds."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

BITE_S: Final = 0.002


class Bites:
    """One such piece of work. It calls `rest` between steps that are short."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = monotonic()

    async def rest(self) -> None:
        """Give the loop a turn where a bite is over. What the work looks at may change meanwhile."""
        if monotonic() - self._since >= BITE_S:
            await asyncio.sleep(0)
            self._since = monotonic()
