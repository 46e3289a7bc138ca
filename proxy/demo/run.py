"""The performance: the script's phases on the stage, with traffic on both sides, watched and counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from proxy.admin.ask import AdminError

from . import frame as frames
from .report import console, report, verdict
from .scenario import LATE_MS, LATE_SHARE, NEAREST, NEXT, REGIONS
from .stage import UPSTREAM, Stage, directory
from .summary import BLACKHOLE_LIMIT, RECOVERED_SHARE, Results, Row, document, recovered_after
from .traffic import OpenLoop, Series, quantile
from .view import Lines, LiveView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtests.lab.lab import Mode

    from .scenario import Phase, Script
    from .traffic import Client
    from .view import View

RESULTS_NAME: Final = "results.json"
_WATCH_S: Final = 0.25
_LEAD_IN_S: Final = 1.5
"""Unmeasured traffic before the steady phase: both sides' pools reach their size."""
_SETTLE_S: Final = 0.3
_BETWEEN_BURSTS_S: Final = 0.4
_AFTER_RETURN_S: Final = 1.0
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Show:
    """One performance of a script."""

    def __init__(self, script: Script, stage: Stage, view: View) -> None:
        self.results = Results(script, mode=stage.lab.mode, banner=stage.lab.banner)
        self._script = script
        self._stage = stage
        self._view = view
        self._began = monotonic()
        self._direct = stage.direct()
        self._proxied = stage.proxied()
        self._clients = (self._direct, self._proxied)
        self._load = OpenLoop(self._clients, script.rate)
        self._phase = script.phases[0]
        self._phase_began = self._began
        self._paths: dict[str, str] = {}
        self._states = dict.fromkeys(REGIONS, "healthy")
        self._status: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Show in {self._phase.key}, {monotonic() - self._began:.0f} s>"

    async def perform(self) -> Results:
        """All phases. Raises StageError, LabError."""
        watching = asyncio.get_running_loop().create_task(self._watch())
        results = self.results
        try:
            for phase in self._script.phases:
                self._phase, self._phase_began = phase, monotonic()
                row = results.rows[phase.key] = Row(phase, Series(), Series())
                self._show()
                await getattr(self, f"_play_{phase.key}")(phase, row)
            self._load.stop()
            for client in self._clients:
                await client.finish()
            self._judge()
            self._show(finished=True)
            results.totals = await self._stage.totals()
        finally:
            watching.cancel()
            self._load.stop()
            for client in self._clients:
                client.close()
        results.duration_s = monotonic() - self._began
        return results

    # The phases

    async def _play_cold(self, phase: Phase, row: Row) -> None:
        """A start, the first request through the proxy, and a new client's first request directly."""
        for number in range(self._script.starts):
            if number:
                await self._stage.stop_proxy()
            self.results.ready_s.append(await self._stage.start_proxy())
            for client, series in ((self._proxied, row.proxied), (self._direct, row.direct)):
                client.forget_idle()
                client.send(monotonic(), series)
                await client.finish()
        row.note = f"ready after {quantile(self.results.ready_s, 0.5):.1f} s"

    async def _play_steady(self, phase: Phase, row: Row) -> None:
        self._load.start((Series(), self.results.unmeasured))
        await asyncio.sleep(_LEAD_IN_S)
        self._load.lags.clear()
        with self._recording(row):
            await asyncio.sleep(phase.seconds - _LEAD_IN_S)
        self.results.lag_p99_ms = quantile(list(self._load.lags), 0.99) * 1e3

    async def _play_burst(self, phase: Phase, row: Row) -> None:
        """One side after the other: their bursts should not meet in this machine's processors.

        Then the direct one again, on the connections that it has now: what a burst costs this machine in itself.
        """
        await asyncio.sleep(_SETTLE_S)
        for _ in range(self._script.bursts):
            for client, series in ((self._proxied, row.proxied), (self._direct, row.direct)):
                client.forget_idle()
                client.prepare(self._script.burst)
                await self._burst(client, series)
            await self._burst(self._direct, self.results.control)

    async def _burst(self, client: Client, series: Series) -> None:
        due = monotonic()
        for _ in range(self._script.burst):
            client.send(due, series)
        await asyncio.sleep(_BETWEEN_BURSTS_S)

    async def _play_tail(self, phase: Phase, row: Row) -> None:
        origin = self._stage.origins[NEAREST]
        await origin.set(late_share=LATE_SHARE, late_ms=LATE_MS)
        self._paths[NEAREST] = f"{LATE_SHARE:.0%} late"
        with self._recording(row):
            await asyncio.sleep(phase.seconds)
        await origin.set(late_share=0.0)
        del self._paths[NEAREST]

    async def _play_blackhole(self, phase: Phase, row: Row) -> None:
        await self._stage.lab.path(NEAREST).set(blackhole=True)
        self._paths[NEAREST] = "blackhole"
        with self._recording(row):
            await asyncio.sleep(phase.seconds)

    async def _play_return(self, phase: Phase, row: Row) -> None:
        """Ends early once us has most of the traffic again."""
        await self._stage.lab.path(NEAREST).set(blackhole=False)
        del self._paths[NEAREST]
        with self._recording(row):
            while monotonic() - self._phase_began < phase.seconds:
                await asyncio.sleep(_WATCH_S)
                if self._returned(row) is not None:
                    await asyncio.sleep(_AFTER_RETURN_S)
                    return

    # Counting

    @contextlib.contextmanager
    def _recording(self, row: Row) -> Iterator[None]:
        """Requests that start in the body belong to the row."""
        self._load.record((row.direct, row.proxied))
        try:
            yield
        finally:
            self._load.record((Series(), self.results.unmeasured))

    def _returned(self, row: Row) -> float | None:
        """Seconds until most answers came at the nearest region's distance again."""
        nearer_than_next_ms = (REGIONS[NEAREST] + REGIONS[NEXT]) / 2
        return recovered_after(row.proxied.samples, self._since(row), nearer_than_next_ms, 0.5)

    def _since(self, row: Row) -> float:
        return min((sample.due for sample in row.proxied.samples), default=0.0)

    def _judge(self) -> None:
        """What needs a whole phase: the recoveries."""
        results = self.results
        dark, back = results.rows["blackhole"], results.rows["return"]
        limit_ms = BLACKHOLE_LIMIT * REGIONS[NEXT] + results.allowance_ms
        results.blackhole_s = recovered_after(dark.proxied.samples, self._since(dark), limit_ms, RECOVERED_SHARE)
        results.return_s = self._returned(back)
        slow_ms = 5 * REGIONS[NEXT]
        slowest_ms = dark.proxied.quantile_ms(1.0)
        dark.note = f"slowest {slowest_ms:.0f} ms, {dark.proxied.over(slow_ms)} over {slow_ms:.0f} ms"
        back.note = f"{NEAREST} back after {results.return_s:.1f} s" if results.return_s is not None else "not back yet"

    # Watching

    async def _watch(self) -> None:
        while True:
            try:
                self._status = await self._stage.status()
            except AdminError:  # it starts, or stops
                self._status = None
            self._note_states()
            self._show()
            await asyncio.sleep(_WATCH_S)

    def _note_states(self) -> None:
        if self._status is None:
            return
        for region in self._status["upstreams"][UPSTREAM]["regions"]:
            name, state = region["region"], region["state"]
            if state != self._states[name]:
                seconds = monotonic() - self._phase_began
                self.results.states.append(f"{name} {state} {seconds:.1f} s into the {self._phase.title}")
                self._states[name] = state

    def _show(self, finished: bool = False) -> None:
        status = self._status
        rows = self.results.rows
        done = [frames.done(row) for key, row in rows.items() if finished or key != self._phase.key]
        hedges = status["upstreams"][UPSTREAM]["hedges"] if status is not None else {}
        self._view.show(
            frames.Frame(
                elapsed_s=monotonic() - self._began,
                total_s=self._script.seconds,
                phase=self._phase.title,
                caption=self._phase.caption,
                sides=[frames.side(client) for client in self._clients],
                regions=frames.regions(status, UPSTREAM, self._paths),
                hedges=hedges,
                done=done,
                finished=finished,
                hint=f"in another terminal: onetrip top --admin {self._stage.admin_address}",
            )
        )


async def demo(script: Script, *, mode: Mode, live: bool, as_json: bool, keep: bool) -> bool:
    """Set the stage, perform, report. False: a promise was not kept. Raises StageError, LabError.

    SIGINT, SIGTERM and SIGHUP cancel it; everything that it started has ended when it returns or raises.
    """
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, _cancel_once, task)
    view: View = LiveView() if live else Lines(_to_stderr)
    try:
        async with directory(keep) as files:
            view.say("setting the stage: three regions, their origins, their certificates")
            async with Stage.open(script, mode, files) as stage:
                view.say(f"the WAN ({stage.lab.mode}): {stage.lab.banner}")
                config = stage.config_path.read_text(encoding="utf-8")
                results = await Show(script, stage, view).perform()
                view.close()
            text = json.dumps(document(results, config), indent=2)
            (files / RESULTS_NAME).write_text(text + "\n", encoding="utf-8")
            if as_json:
                sys.stdout.write(text + "\n")
            else:
                console().print(report(results, config, files if keep else None), verdict(results), sep="\n")
            return results.kept
    finally:
        view.close()
        for number in _ENDING:
            loop.remove_signal_handler(number)


def _cancel_once(task: asyncio.Task[bool]) -> None:
    """A second ^C must not cut short what the first one has begun: it takes a second or two at most."""
    if not task.cancelling():
        task.cancel()


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
