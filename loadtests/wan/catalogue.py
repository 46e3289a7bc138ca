"""The scenarios by name, in the order in which they are run and shown: titles, and the figures of their tables."""

from __future__ import annotations

from typing import Final

from .scenarios import (
    Column,
    Scenario,
    back,
    blackhole,
    bursts,
    cold,
    drops,
    errors,
    hang,
    idle,
    long_idle,
    loss,
    refuse,
    resets,
    restart,
    single,
    slow_path,
    steady,
    tail,
)
from .site import SECOND

_FAILED: Final = (Column("failed_get", "GETs failed", "count", "mean"),)
_FAILED_BOTH: Final = (*_FAILED, Column("failed_post", "POSTs failed", "count", "mean"))
_FIRST: Final = (Column("first_ms", "first request"), *_FAILED)
_READY: Final = Column("ready_s", "ready after", "s")
_SPREAD: Final = (Column("p50_ms", "p50"), Column("p99_ms", "p99"), Column("p999_ms", "p99.9"))
_EXTRA: Final = (Column("extra", "extra requests", "share"), Column("nearest", "answered by us", "share"))
_FAULT: Final = (
    Column("p99_ms", "p99"),
    Column("slowest_ms", "slowest"),
    Column("over_300", "over 300 ms", "count"),
    Column("took_over_s", "median at eu's after", "s"),
    *_FAILED_BOTH,
)

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "cold", "The first request of a process", "sent when it says that it is ready", (*_FIRST, _READY), cold
        ),
        Scenario(
            "restart",
            "A restart",
            "the first request after it; requests at 50/s during another one",
            (*_FIRST, _READY, Column("refused", "failed during it", "count")),
            restart,
        ),
        Scenario("idle", "After 8 s of silence", "the origins close idle connections after 8 s", _FIRST, idle),
        Scenario("idle-60", "After 60 s of silence", "the origins close them after 75 s", _FIRST, long_idle),
        Scenario(
            "burst",
            "50 requests at once",
            "through a proxy that has seen 5/s",
            (Column("p50_ms", "p50"), Column("slowest_ms", "slowest"), *_FAILED),
            bursts,
        ),
        Scenario(
            "single",
            "One region, 80 ms away",
            "first request, after 8 s of silence, 50 at once",
            (
                Column("first_ms", "first request"),
                Column("idle_ms", "after idle"),
                Column("p50_ms", "burst p50"),
                Column("slowest_ms", "burst slowest"),
                *_FAILED,
            ),
            single,
            against=SECOND,
            only=SECOND,
        ),
        Scenario("steady", "Steady, 200/s", "nothing is wrong", (*_SPREAD, *_FAILED, *_EXTRA), steady),
        Scenario(
            "tail", "A slow tail", "2 % of us's answers are late by 1 s, 200/s", (*_SPREAD, *_FAILED, *_EXTRA), tail
        ),
        Scenario("blackhole", "us goes dark", "packets vanish; 100 GETs/s, 10 POSTs/s", _FAULT, blackhole),
        Scenario("hang", "us hangs", "requests are read and never answered", _FAULT, hang),
        Scenario("errors", "us answers 503", "30 % of requests, then all, /healthz too", _FAULT, errors),
        Scenario("drops", "us drops all connections", "three times, a RST to each", _FAULT, drops),
        Scenario("resets", "us resets every request", "a RST for an answer", _FAULT, resets),
        Scenario("refuse", "us is down", "connections dropped, new ones refused", _FAULT, refuse),
        Scenario(
            "loss",
            "us's path loses packets",
            "2 % each way, 100/s",
            (*_SPREAD, Column("slowest_ms", "slowest"), *_FAILED, *_EXTRA),
            loss,
        ),
        Scenario("slow-path", "us's path gets long", "its round trip from 60 to 400 ms", _FAULT, slow_path),
        Scenario(
            "return",
            "us comes back",
            "after a blackhole",
            (
                Column("return_first_s", "first answer from us", "s"),
                Column("return_returned_s", "90 % from us", "s"),
                Column("return_flaps", "lost again", "count"),
                Column("return_failed_get", "GETs failed after", "count", "mean"),
                Column("return_failed_post", "POSTs failed after", "count", "mean"),
            ),
            back,
        ),
    )
}
