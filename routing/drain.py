"""The state machine that takes a region out and lets it back: fast out, slow in.

    HEALTHY ──► SUSPECT ──► DRAINED ──► PROBING ──► RAMPING ──► HEALTHY
                   │           ▲                        │
                   └► HEALTHY  └────────────────────────┘

Evidence. *Bad*: a failed attempt, an answer of 502, 503 or 504, a hedge lost after the primary was due, bytes nobody
acknowledged. What goes wrong within `SAME_S` counts once: a closed connection with fifty requests on it is one
event. *Good*: any answer in time or late.

HEALTHY → SUSPECT   `after` bad events in a row without an answer between; or half of the last attempts bad (`SHARE`
                    of `SHARE_MIN`), a quarter of them where users would see it (`FAULT_SHARE`: anything but a lost
                    hedge); or bytes unacknowledged for `UNANSWERED_SUSPECT_S` while nothing else was answered.
SUSPECT → HEALTHY   `GOOD` answers in a row, and fewer than half of the attempts bad.
SUSPECT → DRAINED   2 × `after` bad events in a row; or no answer for `SUSPECT_S` while requests fail; or half of the
                    attempts bad for as long; or bytes unacknowledged for `UNANSWERED_DRAIN_S`; or no endpoint passes
                    its checks. Only while the cap allows it (`max_drained`, the caller's to say).
DRAINED → PROBING   after the hold: `hold` × 2^flaps, jittered, `HOLD_MAX_S` at most. At once when its last `PROBES`
                    probes were good and all that is left would be drained too, were it not for the cap.
PROBING → RAMPING   when the last `PROBES` probes of half of the endpoints in use were good. Good probes during the
                    hold count; a failed one only starts its endpoint's count anew, and what is ejected counts for
                    nothing. Where nobody probes, after `PATIENCE_S`.
RAMPING → HEALTHY   after `ramp` seconds, the admission growing linearly.
RAMPING → DRAINED   on what would make a healthy region suspect; that is a flap, and it doubles the next hold.
                    `FORGET` holds of health forget the flaps.

An operator's drain overrides: DRAINED at once, cap or not, until its time or `undrain`; then PROBING, as after any
drain.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Drain

SAME_S: Final = 0.02
SHARE: Final = 0.5
SHARE_MIN: Final = 10
FAULT_SHARE: Final = 0.26
LATE: Final = "hedge_lost"
"""The one cause that is slowness and no fault."""
SHARE_TAU_S: Final = 2.0
GOOD: Final = 3
SUSPECT_S: Final = 1.0
UNANSWERED_SUSPECT_S: Final = 0.4
UNANSWERED_DRAIN_S: Final = 1.0
PROBES: Final = 3
PATIENCE_S: Final = 15.0
HOLD_MAX_S: Final = 300.0
FORGET: Final = 6
SUSPECT_ADMISSION: Final = 0.1
RAMP_START: Final = 0.1


class DrainState(IntEnum):
    """A region's state; the value is what the metric `region_state` shows."""

    HEALTHY = 0
    SUSPECT = 1
    DRAINED = 2
    PROBING = 3
    RAMPING = 4


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a region's state.

    `evidence` is a sentence for the log, `cause` one of a few labels for the metric.
    """

    region: str
    before: DrainState
    after: DrainState
    evidence: str
    cause: str


class RegionHealth:
    """One region's state and the evidence for it."""

    __slots__ = (
        "_bad_at",
        "_bads",
        "_counted_at",
        "_faults",
        "_goods",
        "_hold",
        "_jitter",
        "_last_good",
        "_probed",
        "_unanswered",
        "cause",
        "flaps",
        "good_row",
        "kept_in",
        "name",
        "operator_until",
        "probes_good",
        "settings",
        "since",
        "state",
        "streak",
    )

    def __init__(self, name: str, settings: Drain, now: float) -> None:
        self.name = name
        self.state = DrainState.HEALTHY
        self.since = now
        self.flaps = 0
        self.streak = 0
        self.good_row = 0
        self.probes_good = 0
        self.kept_in = False  # what would drain it is there, but for the cap
        self.operator_until: float | None = None
        self.settings = settings
        self._bads = self._goods = self._faults = 0.0
        self._counted_at = now
        self._bad_at = -1.0
        self._last_good = now
        self._unanswered = 0.0
        self.cause = ""
        self._hold = 0.0
        self._jitter = 1.0
        self._probed = False

    # Evidence.

    def good(self, now: float) -> None:
        """The region answered. (A healthy region's answers come through `goods`, on a tick: that keeps them cheap.)"""
        self.streak = 0
        self.good_row += 1
        self._goods += 1
        self._last_good = now
        self._unanswered = 0.0

    def goods(self, count: int, last: float) -> None:
        """`count` answers came since the last call, the latest of them at `last`."""
        self._goods += count
        self.good_row += count
        self._last_good = max(self._last_good, last)

    def bad(self, now: float, cause: str) -> None:
        """An attempt failed, or lost to a hedge after it was due."""
        self._bads += 1
        self.good_row = 0
        if now - self._bad_at >= SAME_S:
            self.streak += 1
            self._bad_at = now
            self.cause = cause
            if cause != LATE:
                self._faults += 1

    def unanswered(self, now: float, seconds: float, rtt: float) -> None:
        """Bytes have been unacknowledged for so long: evidence beyond a few round trips, if nothing else was
        answered since.
        """
        if seconds > 4 * rtt and now - seconds >= self._last_good:
            self._unanswered = max(self._unanswered, seconds)

    def probe(self, row: int) -> None:
        """A probe (a check, a dial, a PING) ended. `row`: the good ones in a row that the better half of the endpoints
        in use has had, each counted by itself.
        """
        self.probes_good = row
        self._probed = True

    # The machine.

    def tick(self, now: float, may_drain: bool, jitter: float) -> Change | None:
        """Let time pass and judge.

        `may_drain`: the cap allows it; `jitter` in [0, 1) spreads the ends of holds over proxies.
        """
        fade = SHARE_TAU_S / (SHARE_TAU_S + now - self._counted_at)
        self._bads *= fade
        self._goods *= fade
        self._faults *= fade
        self._counted_at = now
        if self.operator_until is not None:
            if now < self.operator_until:
                return None
            self.operator_until = None
            return self._enter(DrainState.PROBING, now, "the operator's drain expired", "operator")
        return _JUDGES[self.state](self, now, may_drain, jitter)

    def _healthy(self, now: float, may_drain: bool, jitter: float) -> Change | None:
        evidence = self._suspicion(now, 1)
        if evidence:
            return self._enter(DrainState.SUSPECT, now, evidence, self.cause)
        if self.flaps and now - self.since > FORGET * self._hold:
            self.flaps = 0
        return None

    def _suspect(self, now: float, may_drain: bool, jitter: float) -> Change | None:
        evidence = self._suspicion(now, 2)
        lasting = now - self.since >= SUSPECT_S and self._bad_at > self.since
        if not evidence and lasting and self.streak and now - self._last_good >= SUSPECT_S:
            evidence = f"no answer for {now - self._last_good:.1f} s while requests failed"
        if not evidence and lasting and self._failing():
            evidence = self._failing_evidence()
        self.kept_in = bool(evidence) and not may_drain
        if evidence:
            return self._drain(now, evidence, jitter) if may_drain else None
        if self.good_row >= GOOD and not self._failing():
            return self._enter(DrainState.HEALTHY, now, f"{self.good_row} answers in a row", "recovered")
        if not lasting and now - self.since >= SUSPECT_S and not self._unanswered:
            return self._enter(DrainState.HEALTHY, now, "nothing failed any more", "recovered")
        return None

    def _drained(self, now: float, may_drain: bool, jitter: float) -> Change | None:
        if now - self.since < self._hold * self._jitter:
            return None
        return self._enter(DrainState.PROBING, now, f"held for {now - self.since:.1f} s", self.cause)

    def _probing(self, now: float, may_drain: bool, jitter: float) -> Change | None:
        if self.probes_good >= PROBES:
            return self._enter(DrainState.RAMPING, now, f"{self.probes_good} probes in a row succeeded", "recovered")
        if not self._probed and now - self.since >= PATIENCE_S:
            return self._enter(DrainState.RAMPING, now, "nothing probes this region: requests must", "recovered")
        return None

    def _ramping(self, now: float, may_drain: bool, jitter: float) -> Change | None:
        evidence = self._suspicion(now, 1)
        if evidence:
            self.flaps += 1
            return self._drain(now, f"{evidence}, while ramping up", jitter)
        if now - self.since < self.settings.ramp:
            return None
        return self._enter(DrainState.HEALTHY, now, f"ramped up for {now - self.since:.0f} s", "recovered")

    def _suspicion(self, now: float, times: int) -> str:
        """Evidence worth `times` a suspicion, or ""."""
        if self.streak >= times * self.settings.after:
            label = self.cause.replace("_", " ")
            return f"{self.streak} bad in a row ({label}), last answer {now - self._last_good:.2f} s ago"
        if times == 1 and self._failing():
            return self._failing_evidence()
        if self._unanswered >= (UNANSWERED_SUSPECT_S if times == 1 else UNANSWERED_DRAIN_S):
            self.cause = "blackhole"
            return f"nothing acknowledged for {self._unanswered:.2f} s"
        return ""

    def _failing(self) -> bool:
        total = self._bads + self._goods
        return total >= SHARE_MIN and (self._bads >= SHARE * total or self._faults >= FAULT_SHARE * total)

    def _failing_evidence(self) -> str:
        total = self._bads + self._goods
        return f"{self._bads / total:.0%} of the last {total:.0f} attempts failed"

    def release(self, now: float) -> Change | None:
        """The regions that are left fail: end the hold at once, if the last probes were good."""
        if self.state is not DrainState.DRAINED or self.operator_until is not None or self.probes_good < PROBES:
            return None
        return self._enter(DrainState.PROBING, now, "the regions that are left fail", self.cause)

    def no_endpoints(self, now: float, may_drain: bool, jitter: float) -> Change | None:
        """Every endpoint failed its checks."""
        if not may_drain or self.state in (DrainState.DRAINED, DrainState.PROBING):
            return None
        self.cause = "health_checks"
        return self._drain(now, "no endpoint passes its health checks", jitter)

    def _drain(self, now: float, evidence: str, jitter: float) -> Change:
        self._hold = min(self.settings.hold * 2**self.flaps, HOLD_MAX_S)
        self._jitter = 1.0 + 0.2 * jitter
        self.probes_good = 0
        return self._enter(DrainState.DRAINED, now, evidence, self.cause)

    def _enter(self, state: DrainState, now: float, evidence: str, cause: str) -> Change:
        before, self.state, self.since = self.state, state, now
        self.good_row = 0
        self._probed = self.kept_in = False
        if state in (DrainState.HEALTHY, DrainState.RAMPING, DrainState.DRAINED):
            self.streak = 0
            self._bads = self._goods = self._faults = 0.0
            self._unanswered = 0.0
        return Change(self.name, before, state, evidence, cause)

    # The operator.

    def drain(self, now: float, until: float | None) -> Change:
        """Take it out until then (None: until `undrain`)."""
        self.operator_until = until if until is not None else float("inf")
        self._hold, self._jitter = self.settings.hold, 1.0
        self.probes_good = 0
        return self._enter(DrainState.DRAINED, now, "drained by an operator", "operator")

    def undrain(self, now: float) -> Change:
        """End an operator's drain, or a hold: the region is probed at once and ramps up. Else nothing changes."""
        self.operator_until = None
        if not self.out:
            return Change(self.name, self.state, self.state, "it was not drained", "operator")
        return self._enter(DrainState.PROBING, now, "undrained by an operator", "operator")

    # What it means.

    def admission(self, now: float) -> float:
        """The share it may take of what it would get: 1 healthy, 0 drained."""
        if self.state is DrainState.HEALTHY:
            return 1.0
        if self.state is DrainState.SUSPECT:
            return SUSPECT_ADMISSION
        if self.state is DrainState.RAMPING:
            ramp = self.settings.ramp
            return min(1.0, RAMP_START + (now - self.since) / ramp) if ramp > 0 else 1.0
        return 0.0

    @property
    def out(self) -> bool:
        """Whether it counts against `max_drained`."""
        return self.state in (DrainState.DRAINED, DrainState.PROBING)

    @property
    def badness(self) -> float:
        """The bad share of the last attempts, for choosing the least bad where all are out."""
        total = self._bads + self._goods
        return self._bads / total if total >= 1 else (1.0 if self.streak else 0.0)


_JUDGES: Final[tuple[Callable[[RegionHealth, float, bool, float], Change | None], ...]] = (
    RegionHealth._healthy,
    RegionHealth._suspect,
    RegionHealth._drained,
    RegionHealth._probing,
    RegionHealth._ramping,
)
