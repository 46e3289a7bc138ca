"""What a reload has removed, until it has ended: a listener leaves when its last connection has ended, an upstream when
no listener leads to it any more and its last request has ended.

It owns them meanwhile, and what they have counted for good, so that no counter goes back. It never cuts anything.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from proxy.observe.metrics import Ledger, Snapshot

from .listeners import leads_of

if TYPE_CHECKING:
    from proxy.upstream.upstream import UpstreamRuntime

    from .listeners import AnyListener


class Leaving:
    """Of one worker."""

    def __init__(self) -> None:
        self.listeners: list[AnyListener] = []
        self.upstreams: list[UpstreamRuntime] = []
        self.ledger = Ledger()

    def __repr__(self) -> str:
        return f"<Leaving {self.listeners} {self.upstreams}>"

    def let_go(self) -> None:
        """What has nothing left to do ends; what it counted stays counted."""
        for listener in [one for one in self.listeners if one.drained.is_set()]:
            self.listeners.remove(listener)
            counted = Snapshot()
            listener.export(counted)
            self.ledger.absorb(counted)
        led_to = [leads_of(listener).upstreams for listener in self.listeners]
        for upstream in list(self.upstreams):
            if upstream.idle and not any(upstream in upstreams.values() for upstreams in led_to):
                self.upstreams.remove(upstream)
                upstream.close()
                counted = Snapshot()
                upstream.export(counted, monotonic())
                self.ledger.absorb(counted)
