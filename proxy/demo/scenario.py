"""The script of the demo: its regions, its phases and their lengths. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REGIONS: Final = {"us": 60.0, "eu": 80.0, "ap": 150.0}
"""Round trips from here in milliseconds; the first is the nearest."""
NEAREST: Final = "us"
NEXT: Final = "eu"
LATE_SHARE: Final = 0.02
LATE_MS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the script. `seconds`: how long it takes, or may take where it ends when what it waits for is there.

    `against`: the region whose round trip is the measure.
    """

    key: str
    title: str
    caption: str
    seconds: float
    against: str = NEAREST


@dataclass(frozen=True, slots=True)
class Script:
    """A whole performance.

    `starts` of the proxy, `bursts` of `burst` requests at once, `rate` requests a second on each side. After
    `timeout_s` a request has failed. `warm`, `hold_s` and `ramp_s` go into the proxy's config.
    """

    phases: tuple[Phase, ...]
    starts: int
    bursts: int
    hold_s: float
    ramp_s: float
    rate: float = 100.0
    burst: int = 50
    warm: int = 64
    timeout_s: float = 3.0

    @property
    def seconds(self) -> float:
        """How long it takes at most, about."""
        return sum(phase.seconds for phase in self.phases)

    def phase(self, key: str) -> Phase:
        """A phase by its key."""
        return next(phase for phase in self.phases if phase.key == key)


# The slow tail comes last: the proxy may well move away from a region that answers late, and remembers it for half a
# minute. A blackhole after it would swallow nobody's requests.
_TEXTS: Final = {
    "cold": ("cold start", "a process starts and sends its first request; then the same once more", NEAREST),
    "steady": ("steady", "the same requests on both ways, evenly spaced", NEAREST),
    "burst": (
        "burst",
        "{burst} requests at one instant, from a client that has no idle connection",
        NEAREST,
    ),
    "blackhole": ("blackhole", "the path to us swallows everything and says nothing", NEXT),
    "return": ("return", "the path to us is back", NEAREST),
    "tail": ("slow tail", "{late:.0%} of us's answers take 1 s longer", NEAREST),
}


def _script(seconds: dict[str, float], starts: int, bursts: int, hold_s: float, ramp_s: float) -> Script:
    burst = Script.__dataclass_fields__["burst"].default
    phases = tuple(
        Phase(key, title, caption.format(burst=burst, late=LATE_SHARE), seconds[key], against)
        for key, (title, caption, against) in _TEXTS.items()
    )
    return Script(phases, starts, bursts, hold_s, ramp_s)


FULL: Final = _script(
    {"cold": 7.0, "steady": 10.0, "burst": 4.0, "blackhole": 8.0, "return": 13.0, "tail": 10.0}, 3, 3, 2.0, 4.0
)
FAST: Final = _script(
    {"cold": 5.0, "steady": 3.0, "burst": 4.0, "blackhole": 4.0, "return": 8.0, "tail": 3.5}, 3, 3, 0.5, 1.5
)
