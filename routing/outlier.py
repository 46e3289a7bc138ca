"""Ejecting single endpoints: one that fails while its neighbours answer must not cost the region its name.

States: OK → EJECTED → HALF_OPEN → OK.

OK → EJECTED, on passive signs:
- `FAILURES` failed attempts in a row; `HANDSHAKES` failed dials or handshakes in a row;
- `LOSSES` lost hedges in a row, over `LOSING_S` or more: one that is merely slow gets less by its latency, not nothing;
- at least `SHARE` of `SHARE_MIN` or more attempts of the last seconds failed (checked on a tick).
What fails within `SAME_S` is one failure in a row: a connection that breaks takes all of its requests with it.
EJECTED → HALF_OPEN when the hold is over: one attempt, or one probe, is let through at a time.
HALF_OPEN → OK after `TRIALS` answers; → EJECTED for twice as long after a failure.

Holds grow: `HOLD_S` × 2^ejections up to `HOLD_MAX_S`, each jittered by the caller's draw; a clean `FORGIVE_S` takes
one ejection back. A `retry-after` lengthens a hold (up to `RETRY_AFTER_MAX_S`), it never makes one: a single busy
answer is no fault.

Passive signs alone never eject more than half of a region's endpoints: past that it is the region, and `drain`
decides. Active checks may (`probe_verdict`), because they are our own requests and know what they asked.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

FAILURES: Final = 5
SAME_S: Final = 0.02
HANDSHAKES: Final = 3
LOSSES: Final = 5
LOSING_S: Final = 1.0
PROBES: Final = 2
SHARE: Final = 0.5
SHARE_MIN: Final = 20
SHARE_MEMORY: Final = 0.8  # of the counts, kept from one tick of a second to the next
TRIALS: Final = 2
HOLD_S: Final = 5.0
HOLD_MAX_S: Final = 300.0
RETRY_AFTER_MAX_S: Final = 60.0
FORGIVE_S: Final = 60.0


class OutlierState(IntEnum):
    """Whether an endpoint may be used."""

    OK = 0
    EJECTED = 1
    HALF_OPEN = 2


class Outlier:
    """One endpoint's record."""

    __slots__ = (
        "_failed",
        "_failed_at",
        "_forgiven",
        "_losing_since",
        "_lost_at",
        "_tls_failed",
        "answers",
        "ejections",
        "evidence",
        "failures",
        "handshakes",
        "losses",
        "probes_failed",
        "probes_good",
        "retry_after",
        "state",
        "trials",
        "until",
    )

    def __init__(self) -> None:
        self.state = OutlierState.OK
        self.until = 0.0
        self.ejections = 0
        self.evidence = ""
        self.failures = self.handshakes = self.losses = self.trials = 0
        self.probes_failed = self.probes_good = 0  # in a row
        self.retry_after = 0.0
        self.answers = self._failed = 0.0
        self._forgiven = self._losing_since = self._lost_at = 0.0
        self._failed_at = -1.0
        self._tls_failed = False  # that is where the last failed dial ended

    def answer(self) -> None:
        """An attempt was answered well: every streak ends."""
        self.answers += 1
        self.failures = self.handshakes = self.losses = 0
        if self.state is OutlierState.HALF_OPEN:
            self._trial()

    def fail(self, now: float, *, handshake: bool = False, tls: bool = False, retry_after: float = 0.0) -> None:
        """An attempt failed; `handshake`: before a request was sent; `tls`: after TCP was connected."""
        self._failed += 1
        if now - self._failed_at >= SAME_S:
            self.failures += 1
            if handshake:
                self.handshakes += 1
                self._tls_failed = tls
            self._failed_at = now
        self.retry_after = min(max(self.retry_after, retry_after), RETRY_AFTER_MAX_S)

    def connected(self, tls: bool) -> None:
        """A dial's TCP, or TLS, phase ended well: the row of failed ones ends where that is the phase that failed."""
        if tls or not self._tls_failed:
            self.handshakes = 0

    def lose(self, now: float) -> None:
        """An attempt lost to a hedge after it should have been answered."""
        if not self.losses:
            self._losing_since = now
        self.losses += 1
        self._lost_at = now

    def unreachable(self) -> None:
        """Its bytes stay unacknowledged while the region's other endpoints answer."""
        self.failures = max(self.failures, FAILURES)

    def probe(self, ok: bool) -> None:
        """An active check, or a probe, ended."""
        if not ok:
            self.probes_failed += 1
            self.probes_good = 0
            return
        self.probes_failed = self.handshakes = 0
        self.probes_good += 1
        if self.state is OutlierState.HALF_OPEN:
            self._trial()

    @property
    def out_of_reach(self) -> bool:
        """Whether its last dials or probes failed."""
        return self.handshakes > 0 or self.probes_failed > 0

    def _trial(self) -> None:
        self.trials += 1
        if self.trials >= TRIALS:
            self.state = OutlierState.OK

    def verdict(self) -> str:
        """Why passive signs would eject it now: "" where they would not."""
        if self.state is OutlierState.HALF_OPEN:
            return "failed again at its trial" if self.failures or self.handshakes or self.losses > 1 else ""
        if self.handshakes >= HANDSHAKES:
            return f"{self.handshakes} failed handshakes in a row"
        if self.failures >= FAILURES:
            return f"{self.failures} failures in a row"
        if self.losses >= LOSSES and self._lost_at - self._losing_since >= LOSING_S:
            return f"{self.losses} lost hedges in a row"
        total = self.answers + self._failed
        if total >= SHARE_MIN and self._failed >= SHARE * total:
            return f"{self._failed / total:.0%} of its attempts failed"
        return ""

    def probe_verdict(self) -> str:
        """Why active checks would eject it now, or ""."""
        return f"{self.probes_failed} failed checks in a row" if self.probes_failed >= PROBES else ""

    def eject(self, now: float, evidence: str, jitter: float) -> None:
        """Take it out. `jitter` is in [0, 1): holds end at different times in different proxies."""
        hold = min(HOLD_S * 2**self.ejections, HOLD_MAX_S) * (0.9 + 0.2 * jitter)
        self.until = now + max(hold, self.retry_after)
        self.ejections = min(self.ejections + 1, 16)
        self.state = OutlierState.EJECTED
        self.evidence = evidence
        self._forgiven = self.until
        self.failures = self.handshakes = self.losses = self.trials = 0
        self.retry_after = self.answers = self._failed = 0.0

    def tick(self, now: float, seconds: float) -> None:
        """Let time pass: holds end, counts fade (by the second), old ejections are forgiven."""
        if self.state is OutlierState.EJECTED and now >= self.until and self.probes_failed < PROBES:
            self.state = OutlierState.HALF_OPEN
            self.trials = 0
        fade = SHARE_MEMORY**seconds
        self.answers *= fade
        self._failed *= fade
        if self.state is OutlierState.OK and self.ejections and now - self._forgiven >= FORGIVE_S:
            self.ejections -= 1
            self._forgiven = now


def ejectable(endpoints: int, ejected: int) -> bool:
    """Whether passive signs may eject one more of a region's endpoints: never more than half, and never the only
    one.
    """
    return ejected + 1 <= endpoints // 2
