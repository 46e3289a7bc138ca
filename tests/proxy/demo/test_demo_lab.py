"""What the demo's loopback figures rest on in the lab's relay."""

from __future__ import annotations

from time import monotonic
from typing import Any

from loadtests.lab.relay_flow import Flow, Wire

RTT_S = 0.06


class Timers:
    """Keeps when things are due."""

    def __init__(self) -> None:
        self.due: list[float] = []

    def call_at(self, when: float, *_: Any) -> None:
        self.due.append(when)


def test_a_dial_does_not_delay_the_other_connections():
    timers, wire = Timers(), Wire(delay_ms=RTT_S / 2 * 1e3)
    new, old = Flow(timers, wire), Flow(timers, wire)
    now = monotonic()
    new.established_at = now + RTT_S
    new.push(b"client hello")
    old.push(b"GET / HTTP/1.1\r\n\r\n")
    assert timers.due[1] - now < RTT_S
