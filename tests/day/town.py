"""A day's stage: origins, the program before them, clients, and the check that each scenario ends with.

    async with Town(directory, workers=2) as town:
        await town.change(set_at("upstreams.app.timeouts.response", "16s"))
        await town.traffic.more()

At the end nothing that a perfect proxy would have done may have failed (`Traffic`), no POST may have reached origins
twice, nothing may be under way or waiting any more, descriptors and memory must be level with the beginning, no counter
may ever have gone down, the log must hold no error of the program's own, and SIGTERM must give exit code 0.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .early import EarlyOrigin
from .hole import Hole
from .origin import EchoOrigin, Origin
from .ports import free_port
from .program import Labels, Program, until
from .traffic import Traffic

SAMPLE_S = 0.25
SETTLE_S = 8.0
MEMORY_BYTES_MAX = 24 * 1024 * 1024
OWN_ERRORS = ("task_failed", "reload_failed", "worker_failed")

Config = dict[str, Any]
Edit = Callable[[Config], None]
Place = Origin | EchoOrigin | Hole | EarlyOrigin


def region(*origins: Origin | EchoOrigin, **more: Any) -> Config:
    """A region's section."""
    return {"endpoints": [one.endpoint for one in origins], **more}


def at(config: Config, path: str) -> tuple[Any, Any]:
    """The section and the key that a dotted path names (`listeners.0.name`); sections on the way are made."""
    place: Any = config
    *way, last = path.split(".")
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    return place, int(last) if isinstance(place, list) else last


def set_at(path: str, value: Any) -> Edit:
    """An edit: this value at that place; None takes the key away."""

    def edit(config: Config) -> None:
        place, key = at(config, path)
        if value is None:
            place.pop(key, None)
        else:
            place[key] = copy.deepcopy(value)

    return edit


class Town:
    """See above. `near`, `mid` and `far` are the regions' origins, preferred in this order unless told otherwise."""

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 1,
        edit: Edit | None = None,
        environment: dict[str, str] | None = None,
        rate: float = 100.0,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.near, self.mid, self.far = (Origin(name) for name in ("near", "mid", "far"))
        self.files: dict[str, str] = {}
        self.authority: Any = None
        self.origins: list[Place] = [self.near, self.mid, self.far]
        self.config: Config = {
            "listeners": [{"name": "web", "address": f"127.0.0.1:{free_port()}", "upstream": "app"}],
            "upstreams": {
                "app": {
                    "routing": {"policy": "ordered"},
                    "hedge": "off",  # a hedge that wins is no fault, but then it is not said who answers
                    "regions": {one.name: region(one) for one in (self.near, self.mid, self.far)},
                }
            },
            "admin": {"address": f"127.0.0.1:{free_port()}"},
            "access_log": {"path": str(directory / "access.log")},
            "workers": workers,
            "shutdown": {"deadline": "10s"},
        }
        if edit is not None:
            edit(self.config)
        self.program = Program(directory, self.config, environment)
        self.traffic = Traffic(self.program.port(), rate)
        self.faults: list[str] = []
        self.watching = True
        self._counted: dict[tuple[str, Labels], float] = {}
        self._sampling: asyncio.Task[None] | None = None
        self._descriptors: list[str] = []
        self._memory_bytes = 0

    # -- its life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Town:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self.finish()
        finally:
            await self.close()

    async def open(self) -> None:
        """Start everything; note where it stands."""
        for origin in self.origins:
            await origin.start()
        await self.program.start()
        self.traffic.start()
        await self.traffic.more(40)
        await self.settle()
        await self.note_levels()
        self._sampling = asyncio.ensure_future(self._sample())
        self.traffic.start()

    async def close(self) -> None:
        """End everything, whatever it is at."""
        if self._sampling is not None:
            self._sampling.cancel()
        with suppress(Exception):
            await self.traffic.stop()
        self.program.kill()
        for origin in self.origins:
            await origin.stop()
        await asyncio.sleep(0)

    async def finish(self) -> None:
        """The check that each scenario ends with. AssertionError with everything that is wrong."""
        await self.traffic.start().more(30)
        if self.program.config != self.config:
            await self.program.reload(self.config)
            await self.traffic.more(30)
        await self.check()
        if self._sampling is not None:
            self._sampling.cancel()
        code = await self.program.stop()
        if code != 0:
            self.faults.append(f"it ended with {code}: {self.program.tail()}")
        self._check_log()
        self.complain()

    async def check(self) -> None:
        """Pause the traffic; add what is wrong now to `faults`."""
        await self.traffic.pause()
        try:
            await self.settle()
        except AssertionError as error:
            self.faults.append(str(error))
        await self._check_levels()
        self._check_log()

    def complain(self) -> None:
        """AssertionError where anything is wrong; afterwards it is forgotten."""
        faults, self.faults = self.faults, []
        failures, self.traffic.failures = self.traffic.failures, []
        if failures:
            faults.append(f"{len(failures)} requests failed, {self.traffic.answered} were answered:")
            faults += [f"  {one}" for one in (*failures[:4], *failures[4:][-2:])]
        for mark in self.traffic.posts:
            names = [f"{one.name} {one.requests[mark]}x" for one in self.origins if one.requests[mark]]
            if sum(one.requests[mark] for one in self.origins) > 1:
                faults.append(f"POST {mark} was carried out more than once: {names}")
        self.traffic.posts.clear()
        assert not faults, "\n".join(faults)

    # -- operating ---------------------------------------------------------------------------------

    def add(self, *origins: Place) -> None:
        """Have these started and stopped with the others."""
        self.origins += origins

    def named(self, name: str) -> Origin:
        """The origin of that name."""
        found = next(one for one in self.origins if one.name == name)
        assert isinstance(found, Origin)
        return found

    def echo(self) -> EchoOrigin:
        """The TCP endpoint."""
        return next(one for one in self.origins if isinstance(one, EchoOrigin))

    def edited(self, *edits: Edit) -> Config:
        """The config that runs, with those changes."""
        config = copy.deepcopy(self.program.config)
        for edit in edits:
            edit(config)
        return config

    async def change(self, *edits: Edit) -> Config:
        """Reload with those changes. The program's answer."""
        return await self.program.reload(self.edited(*edits))

    def upstream_ports(self) -> set[int]:
        """Where the origins are."""
        return {origin.port for origin in self.origins}

    async def leads(self, name: str, count: int = 60) -> bool:
        """Whether that origin answers most of the next requests. A first region that is late for a moment, as on a busy
        machine, hands some on to the next one. AssertionError where an origin answers that the config does not name.
        """
        served = await self.traffic.sample(count)
        regions = [
            one for upstream in self.program.config["upstreams"].values() for one in upstream["regions"].values()
        ]
        ports = {endpoint.rpartition(":")[2] for one in regions for endpoint in one["endpoints"]}
        gone = [one.name for one in self.origins if served[one.name] and str(one.port) not in ports]
        assert not gone, f"origins answer that the config does not name: {gone}"
        return served[name] * 2 > count

    # -- checks ------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Stop the traffic, and wait until nothing is under way."""
        await self.traffic.pause()
        left: list[str] = []

        async def quiet() -> bool:
            left[:] = await self._under_way()
            return not left

        with suppress(AssertionError):
            await until(quiet, "", SETTLE_S)
            return
        raise AssertionError(f"after {SETTLE_S:g} s without traffic: {', '.join(left)}")

    async def _under_way(self) -> list[str]:
        status = await self.program.status()
        left = []
        for listener in status["listeners"]:
            for key in ("requests_in_flight", "connections"):
                if listener.get(key):
                    left.append(f"listener {listener['name']} {key} {listener[key]}")
        for name, upstream in status["upstreams"].items():
            for one in upstream["regions"]:
                if one["in_flight"]:
                    left.append(f"{name} {one['region']} in_flight {one['in_flight']}")
                for endpoint in one["endpoints"]:
                    pool = endpoint["pool"]
                    left += [
                        f"{name} {endpoint['endpoint']} {key} {pool[key]}" for key in ("busy", "waiting") if pool[key]
                    ]
        samples = await self.program.metrics()
        left += [
            f"{metric} {dict(labels)} {value:g}"
            for (metric, labels), value in samples.items()
            if metric == "onetrip_requests_in_flight" and value
        ]
        return left

    async def note_levels(self) -> None:
        """What `check` compares with: now."""
        self._descriptors = self._own_descriptors()
        self._memory_bytes = self.program.memory_bytes()

    def _own_descriptors(self) -> list[str]:
        """All but connections to origins, which `_check_levels` compares with the pools, admin clients, and what
        stands in a worker's table where the fork left a descriptor of its parent's (as many as that had just then).
        """
        ports = self.upstream_ports()
        ours = int(self.program.admin.rpartition(":")[2])
        found = []
        for one in self.program.descriptors():
            local, _, remote = one.removeprefix("tcp:").partition("->")
            if one.startswith("tcp:") and (int(remote) in ports or (remote != "0" and int(local) == ours)):
                continue
            if one != "/dev/null":
                found.append(one)
        return found

    async def _check_levels(self) -> None:
        found: list[str] = []

        def level() -> bool:
            found[:] = self._own_descriptors()
            return len(found) <= len(self._descriptors)

        try:
            await until(level, "", SETTLE_S)
        except AssertionError:
            known = list(self._descriptors)
            more = [one for one in found if one not in known or known.remove(one)]
            self.faults.append(f"{len(found)} descriptors, {len(self._descriptors)} before: {more}")
        excess: list[str] = []

        async def pooled() -> bool:
            excess[:] = await self._unpooled()
            return not excess

        with suppress(AssertionError):
            await until(pooled, "", SETTLE_S)
        self.faults += excess
        grown = self.program.memory_bytes() - self._memory_bytes
        if grown > MEMORY_BYTES_MAX * len(self.program.processes()):
            self.faults.append(f"memory grew by {grown / 1e6:.0f} MB from {self._memory_bytes / 1e6:.0f}")

    async def _unpooled(self) -> list[str]:
        """Connections at origins that no pool knows (each process may have one a check, beside its pool's)."""
        status = await self.program.status()
        found = []
        for origin in self.origins:
            known = 0
            for upstream in status["upstreams"].values():
                for one in (endpoint for each in upstream["regions"] for endpoint in each["endpoints"]):
                    if one["endpoint"].rpartition(":")[2] == str(origin.port):
                        pool = one["pool"]
                        known += pool["idle"] + pool["busy"] + pool["dialling"] + 1 + status["workers"]
            if len(origin.connections) > known:
                found.append(f"{len(origin.connections)} connections to {origin.name}, {known} at most in pools")
        return found

    def _check_log(self) -> None:
        events = self.program.log()
        bad = [one for one in events if one.get("event") in OWN_ERRORS]
        self.faults += [f"the log says {one}" for one in bad[:3]]
        for one in bad:
            events.remove(one)
        if any("Traceback" in one for one in self.program.complaints):
            self.faults.append("the log says " + "\n".join(self.program.complaints[-12:]))
            self.program.complaints.clear()

    # -- counters ----------------------------------------------------------------------------------

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            with suppress(OSError, AssertionError):
                if self.watching:
                    self.watch_counters(await self.program.metrics())

    def watch_counters(self, samples: dict[tuple[str, Labels], float]) -> None:
        """A counter may only rise; it may vanish only with the listener, upstream or region that it speaks of."""
        back = []
        for (name, labels), value in samples.items():
            if not name.endswith(("_total", "_bucket", "_count", "_sum")):
                continue
            before = self._counted.get((name, labels), 0.0)
            if value < before:
                back.append(f"{name} {dict(labels)} went from {before:g} to {value:g}")
            self._counted[name, labels] = value
        for name, labels in self._counted.keys() - samples.keys():
            if self._lives(dict(labels)):
                back.append(f"{name} {dict(labels)} vanished at {self._counted[name, labels]:g}")
            del self._counted[name, labels]
        if back:
            worst = min(back, key=lambda one: ("_bucket" in one, "_sum" in one))
            self.faults.append(f"{len(back)} counters went back, such as {worst}")

    def _lives(self, labels: dict[str, str]) -> bool:
        config = self.program.config
        upstream = config["upstreams"].get(labels.get("upstream", ""), {})
        if "upstream" in labels and not upstream:
            return False
        if "region" in labels and labels["region"] not in upstream.get("regions", {}):
            return False
        return "listener" not in labels or any(one["name"] == labels["listener"] for one in config["listeners"])

    def forget_counters(self) -> None:
        """Another program serves now: its counters begin anew."""
        self._counted.clear()
