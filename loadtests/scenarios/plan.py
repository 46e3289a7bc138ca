"""The scenarios as values: how many users at which time, and what goes wrong. Pure.

Times are shares of a scenario's length, so that a run of any length has the same shape; users are shares of the peak.
What goes wrong is said in the words that drive the lab (`set us blackhole=on`, see docs/lab.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

REGIONS: Final = ("us", "eu", "ap")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong from `begin` to `end` (shares of the length). `start` and `stop`: the lab's words."""

    begin: float
    end: float
    label: str
    start: tuple[str, ...]
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`users` gives the share of the peak at a share of the length, which is `seconds` unless another is asked for."""

    name: str
    title: str
    seconds: float
    users: Callable[[float], float]
    faults: tuple[Fault, ...] = ()

    def users_at(self, seconds: float, length_s: float, peak: int) -> int | None:
        """How many users there should be; None once it is over."""
        if seconds >= length_s:
            return None
        return max(1, round(peak * self.users(seconds / length_s))) if peak else 0


@dataclass(frozen=True, slots=True)
class Step:
    """At `at_s`, `fault` begins or ends."""

    at_s: float
    fault: Fault
    begins: bool

    @property
    def words(self) -> tuple[str, ...]:
        """What to tell the lab."""
        return self.fault.start if self.begins else self.fault.stop


def steps(scenario: Scenario, length_s: float) -> list[Step]:
    """The beginnings and ends of its faults in order."""
    found = [Step(fault.begin * length_s, fault, True) for fault in scenario.faults]
    found += [Step(fault.end * length_s, fault, False) for fault in scenario.faults]
    return sorted(found, key=lambda step: step.at_s)


def _full(share: float) -> float:
    return 1.0


def _ramp(share: float) -> float:
    """From a tenth to all in the first four fifths, then all."""
    return min(1.0, 0.1 + 0.9 * share / 0.8)


def _bursts(share: float) -> float:
    """A fifth, and five times all of them for a short moment."""
    return 1.0 if share * 5 % 1.0 >= 0.8 else 0.2


def _each(words: str) -> tuple[str, ...]:
    return tuple(words.format(region=region) for region in REGIONS)


def _soak_faults() -> tuple[Fault, ...]:
    """Six small faults in turn, each for a fiftieth of the time, and quiet between them."""
    kinds = (
        ("us drops connections", ("origin us drop",), ()),
        ("2 % of eu late", ("origin eu late_share=2% late_ms=1000",), ("origin eu late_share=0",)),
        ("1 % loss to us", ("set us loss=1%",), ("set us loss=0",)),
        ("us dark", ("set us blackhole=on",), ("set us blackhole=off",)),
        ("10 % of ap fail", ("origin ap status=503 status_share=10%",), ("origin ap status=0",)),
        ("us far away", ("set us rtt_ms=200",), ("set us rtt_ms=60",)),
    )
    faults = []
    for number, (label, start, stop) in enumerate(kinds):
        begin = (number + 1) / (len(kinds) + 1)
        faults.append(Fault(begin, begin + 0.02, label, start, stop))
    return tuple(faults)


_DARK: Final = Fault(0.25, 0.6, "us dark", ("set us blackhole=on",), ("set us blackhole=off",))
_BROWNOUT: Final = Fault(
    0.25, 0.6, "all slow", _each("origin {region} service_ms=250"), _each("origin {region} service_ms=0")
)

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady", "an even load", 60.0, _full),
        Scenario("ramp", "from a tenth of the load to all of it", 90.0, _ramp),
        Scenario("burst", "a fifth of the load, and five bursts", 75.0, _bursts),
        Scenario("region-loss", "the nearest region goes dark and comes back", 120.0, _full, (_DARK,)),
        Scenario("brownout", "every region takes 250 ms longer for a while", 90.0, _full, (_BROWNOUT,)),
        Scenario("soak", "an hour with small faults", 3600.0, _full, _soak_faults()),
    )
}
