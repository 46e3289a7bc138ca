"""What the admin endpoints ask, and who answers: one worker in this process, or several over pipes.

A question is a JSON object with `do` and its arguments; an answer is a JSON object, with `fault` where it could not
be done.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from . import regions
from .explain import explain

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from proxy.exchange.service import Service
    from proxy.l4.listener import TunnelListener
    from proxy.observe.access_log import AccessLog
    from proxy.observe.metrics import Snapshot
    from proxy.upstream.upstream import UpstreamRuntime


class Backend(Protocol):
    """Who answers for the data plane."""

    async def ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """Every worker's answer (those that are alive)."""

    async def reload(self) -> dict[str, Any]:
        """Read the config again. {"reloaded": bool, "restart": [keys], "faults": [text]}."""

    def reloads(self) -> dict[str, int]:
        """Reloads so far, by result."""

    @property
    def stopping(self) -> bool:
        """The program drains."""

    async def config_yaml(self) -> str:
        """The config in use, effective values."""

    async def readiness(self) -> str:
        """Why the program takes no traffic (while it does not drain); "" where it does."""

    async def snapshot(self) -> Snapshot:
        """The samples of all workers."""

    async def change_drain(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """Have every worker drain or undrain, and those that start later."""


class DataPlane(Protocol):
    """One worker, as questions see it."""

    ready: asyncio.Event
    stopping: bool

    @property
    def access_log(self) -> AccessLog:
        """Where requests are logged."""

    def leads(self) -> list[Service | TunnelListener]:
        """Where the clients of each listener go."""

    @property
    def upstreams(self) -> Mapping[str, UpstreamRuntime]:
        """Those of the config in use."""

    async def snapshot(self) -> Snapshot:
        """What `/metrics` shows of it."""

    async def status(self) -> dict[str, Any]:
        """What `/status` shows of it."""


async def answer(worker: DataPlane, question: dict[str, Any]) -> dict[str, Any]:
    """One worker's answer to a question. Never raises for what a person asked."""
    try:
        return await _answer(worker, question)
    except (KeyError, ValueError) as error:  # no such region; a URL that is none
        return {"fault": str(error.args[0])}


async def _answer(worker: DataPlane, question: dict[str, Any]) -> dict[str, Any]:
    match question["do"]:
        case "reopen logs":
            worker.access_log.reopen()
            return {}
        case "ready":
            return {"ready": worker.ready.is_set() and not worker.stopping}
        case "metrics":
            return (await worker.snapshot()).to_json()
        case "status":
            return await worker.status()
        case "explain":
            return explain(question["url"], question.get("method", "GET"), worker.leads(), monotonic())
        case "drain":
            every, region, upstream = worker.upstreams.values(), question["region"], question.get("upstream")
            return {"drained": regions.drain(every, region, upstream, question.get("for_s"))}
        case "undrain":
            every, region, upstream = worker.upstreams.values(), question["region"], question.get("upstream")
            return {"undrained": regions.undrain(every, region, upstream)}
        case unknown:
            return {"fault": f"no such question: {unknown}"}


_MEAN = frozenset(
    ("weight", "admission", "headroom", "slack", "rtt_ms", "service_ms", "latency_ms", "late_share", "hedge_after_ms")
)
_MAX = frozenset(
    (
        "since_s",
        "uptime_s",
        "service_p50_ms",
        "service_p95_ms",
        "service_p99_ms",
        "max_in_flight",
        "bad_in_a_row",
        "flaps",
        "ejected_for_s",
    )
)
_NAMES = ("name", "region", "endpoint", "reason", "result")


def merge(answers: list[Any]) -> Any:
    """Several workers' status as one: counts add up, latencies and weights are averaged, states are the first's."""
    first = answers[0]
    if len(answers) == 1 or first is None:
        return first
    if isinstance(first, dict):
        merged: dict[str, Any] = {}
        for key in {key: None for one in answers if isinstance(one, dict) for key in one}:
            values = [one[key] for one in answers if isinstance(one, dict) and one.get(key) is not None]
            merged[key] = _merge_value(key, values) if values else None
        return merged
    if isinstance(first, list):
        return _merge_lists([one for one in answers if isinstance(one, list)])
    return first


def _merge_value(key: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, bool):
        return all(values)
    if isinstance(first, int | float) and key != "worker":
        if key in _MEAN:
            return round(sum(values) / len(values), 4)
        return max(values) if key in _MAX else sum(values)
    return merge(values)


def _merge_lists(lists: list[list[Any]]) -> list[Any]:
    groups: dict[Any, list[Any]] = {}
    for items in lists:
        for index, item in enumerate(items):
            key: Any = index
            if isinstance(item, dict):
                key = tuple(str(item[name]) for name in _NAMES if name in item) or index
            groups.setdefault(key, []).append(item)
    return [merge(group) for group in groups.values()]
