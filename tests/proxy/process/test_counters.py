"""Counters never go back, whatever becomes of those who count."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.admin.ask import AdminError
from proxy.observe.metrics import FAMILIES, Histogram, Ledger, Snapshot

from ..program import HttpOrigin, Load, Onetrip, config, free_port, http_origin, serving, wait_for


@pytest.fixture(scope="module")
def origin() -> Iterator[HttpOrigin]:
    with http_origin() as found:
        yield found


COUNTERS = re.compile(r"^(onetrip_\S+?(?:_total|_count|_sum|_bucket)(?:\{.*\})?) (\S+)$", re.MULTILINE)


class Scraper:
    """Samples of one program, each of which is held against the one before."""

    def __init__(self, program: Onetrip) -> None:
        self.program = program
        self.before: dict[str, float] = {}

    def look(self) -> dict[str, float]:
        text = self.program.admin().ask("GET", "/metrics")
        found = {name: float(value) for name, value in COUNTERS.findall(text)}
        for name, value in self.before.items():
            assert found.get(name, -1.0) >= value, f"{name} went from {value} to {found.get(name, 'nothing')}"
        self.before = found
        return found

    def requests(self) -> float:
        return sum(value for name, value in self.look().items() if name.startswith("onetrip_requests_total"))


def test_over_dead_and_stopped_workers_and_reloads(origin: HttpOrigin, tmp_path: Path) -> None:
    more = f'  - {{name: more, address: "127.0.0.1:{free_port()}", upstream: app}}\n'
    plain = config(origin.port, workers=2)
    changed = config(origin.port, workers=2, listeners=more, upstreams="    timeouts: {response: 16s}\n")
    with serving(tmp_path, plain) as program:
        program.event("ready", 2)
        scraper = Scraper(program)
        with Load(program.port()) as load:
            load.more(200)
            assert scraper.requests() >= 200
            stopped = program.workers()[0]
            os.kill(stopped, signal.SIGSTOP)
            scraper.look()
            with pytest.raises(AdminError, match=r"not answering: worker [01]"):
                program.admin().ask("GET", "/readyz")
            os.kill(stopped, signal.SIGCONT)
            wait_for(lambda: _ready(program), "readiness")
            scraper.look()
            for reloads, text in enumerate((changed, plain, changed), 1):
                program.write(text)
                program.signal(signal.SIGHUP)
                program.event("config_reloaded", reloads)
                scraper.look()
            for count, pid in enumerate(program.workers(), 1):
                os.kill(pid, signal.SIGKILL)
                scraper.look()
                program.event("worker_died", count)
                scraper.look()
                wait_for(lambda: len(program.workers()) == 2, "its replacement")
            wait_for(lambda: _ready(program), "readiness")
            before = scraper.requests()
            load.failures.clear()  # of connections to the killed
            load.more(50)
            assert scraper.requests() > before


@pytest.mark.parametrize("workers", [1])
def test_over_reloads_of_one_process(origin: HttpOrigin, tmp_path: Path, workers: int) -> None:
    plain = config(origin.port, workers=workers)
    changed = config(origin.port, workers=workers, upstreams="    timeouts: {response: 16s}\n")
    with serving(tmp_path, plain) as program, Load(program.port()) as load:
        scraper = Scraper(program)
        load.more(50)
        for reloads, text in enumerate((changed, plain), 1):
            assert scraper.requests() > 0
            program.write(text)
            program.signal(signal.SIGHUP)
            program.event("config_reloaded", reloads)
        scraper.look()


def _ready(program: Onetrip) -> bool:
    with suppress(AdminError):
        return bool(program.admin().ask("GET", "/readyz") == "ok\n")
    return False


def test_a_ledger_keeps_counters_and_lets_gauges_go() -> None:
    counted = Snapshot()
    histogram = Histogram()
    histogram.observe(0.2)
    counted.add("requests", 3, listener="a")
    counted.add("requests_in_flight", 2, listener="a")
    counted.add_histogram("request_duration_seconds", histogram, listener="a")
    ledger = Ledger()
    ledger.absorb(counted)
    ledger.absorb(counted)
    now = Snapshot()
    now.add("requests", 1, listener="a")
    ledger.add_to(now)
    ledger.add_to(Snapshot())
    assert now.values == {"requests": {(("listener", "a"),): 7.0}}
    counts, total = now.histograms["request_duration_seconds"][("listener", "a"),]
    assert (sum(counts), total) == (2, 0.4)
    assert counted.values["requests_in_flight"], "what is absorbed is not changed"
    assert set(now.values) <= set(FAMILIES)
