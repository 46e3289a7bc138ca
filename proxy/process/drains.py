"""What operators have drained. The program owns it, and outlives what acts on it: each worker that starts gets it
before it accepts, a successor gets it in its environment, and a reload keeps what is about regions that stay.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from proxy.config import Config

VARIABLE: Final = "ONETRIP_DRAINS"


@dataclass(frozen=True, slots=True)
class OperatorDrain:
    """One region of one upstream. `until`: CLOCK_MONOTONIC seconds, which all processes of a host share; None: until an
    operator undrains it.
    """

    upstream: str
    region: str
    until: float | None


class OperatorDrains:
    """All of them, by upstream and region."""

    def __init__(self, drains: Iterable[OperatorDrain] = ()) -> None:
        self._drains = {(one.upstream, one.region): one for one in drains}

    def __repr__(self) -> str:
        return f"OperatorDrains({list(self._drains.values())})"

    @classmethod
    def inherited(cls, environment: MutableMapping[str, str]) -> OperatorDrains:
        """Those of the program that this one replaces."""
        return cls(OperatorDrain(**one) for one in json.loads(environment.pop(VARIABLE, "[]")))

    def environment(self, now: float) -> dict[str, str]:
        """What `inherited` reads."""
        return {VARIABLE: json.dumps([asdict(one) for one in self.current(now)])}

    def note(self, question: dict[str, Any], answer: dict[str, Any], now: float) -> None:
        """A worker has answered a drain or an undrain."""
        region, seconds = question["region"], question.get("for_s")
        for upstream in answer.get("drained", ()):
            until = None if seconds is None else now + seconds
            self._drains[upstream, region] = OperatorDrain(upstream, region, until)
        for upstream in answer.get("undrained", ()):
            self._drains.pop((upstream, region), None)

    def current(self, now: float) -> list[OperatorDrain]:
        """Those whose time is not over."""
        self._drains = {key: one for key, one in self._drains.items() if one.until is None or one.until > now}
        return list(self._drains.values())

    def keep(self, config: Config) -> None:
        """Forget those of upstreams and regions that are gone."""
        self._drains = {
            (upstream, region): one
            for (upstream, region), one in self._drains.items()
            if upstream in config.upstreams and region in config.upstreams[upstream].regions
        }
