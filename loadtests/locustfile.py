"""Load tests with Locust: steady, ramp, burst, region-loss, brownout, soak. See docs/load.md.

locust -f loadtests/locustfile.py --scenario region-loss                       web UI on :8089, chart on :8089/faults
locust -f loadtests/locustfile.py --scenario brownout --headless --timeline brownout.html
locust -f loadtests/locustfile.py --host http://localhost:8080 --scenario ramp --peak 500 H2User
"""

from __future__ import annotations

import logging
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import locust.stats
from locust import LoadTestShape, events
from locust.env import Environment
from locust.event import EventHook
from locust.runners import MasterRunner, WorkerRunner

from loadtests.scenarios.driver import Driver, Stage, StageFailed, Tell, by_command
from loadtests.scenarios.plan import SCENARIOS
from loadtests.scenarios.timeline import Timeline, page
from loadtests.scenarios.users import H1User, H2User, exact_ms

__all__ = ["H1User", "H2User", "ScenarioShape"]

log = logging.getLogger("loadtests")
locust_stats: Any = locust.stats
locust_events: Any = events  # Locust is typed in part
locust_stats.bucket_response_time = exact_ms  # Locust's own buckets round 147 ms to 150


class ScenarioShape(LoadTestShape):
    """As many users as the chosen scenario has at this time."""

    def tick(self) -> tuple[int, float] | None:
        """(users, users started a second); None ends the test."""
        options = self._options()
        if options is None:
            return None
        scenario = SCENARIOS[options.scenario]
        now_s = time.perf_counter() - self.start_time
        users = scenario.users_at(now_s, options.seconds or scenario.seconds, options.peak)
        return None if users is None else (users, float(max(options.peak, 1)))

    def _options(self) -> Any:
        return self.runner.environment.parsed_options if self.runner is not None else None


class Conductor:
    """What belongs to one Locust process: the timeline, the stage, the faults of the test that runs."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.timeline = Timeline()
        self.stage: Stage | None = None
        self.driver: Driver | None = None
        self.tested = False
        hooks: Any = environment.events
        make_hook: Any = EventHook
        hooks.fault = make_hook()  # label, begins, at: yours to listen to as well
        hooks.fault.add_listener(self.on_fault)
        hooks.request.add_listener(self.on_request)
        hooks.test_start.add_listener(self.on_test_start)
        hooks.test_stop.add_listener(self.on_test_stop)
        hooks.quitting.add_listener(self.on_quitting)
        if isinstance(environment.runner, WorkerRunner):
            hooks.report_to_master.add_listener(self.on_report_to_master)
            return
        hooks.worker_report.add_listener(self.on_worker_report)
        self._open_stage()
        web_ui: Any = environment.web_ui
        if web_ui is not None:
            web_ui.app.add_url_rule("/faults", "faults", lambda: page(self.timeline, refresh_s=2))

    def _open_stage(self) -> None:
        options: Any = self.environment.parsed_options
        if options is None or options.host:
            return
        if options.lab == "off":
            if self.environment.web_ui is None:  # its form has a field for it
                print("onetrip: --lab off needs --host URL: what is to be tested?", file=sys.stderr)
                raise SystemExit(2)
            return
        try:
            self.stage = Stage(options.lab)
        except StageFailed as error:
            raise SystemExit(f"no lab: {error}") from None
        self.environment.host = self.stage.url
        log.info("onetrip is at %s (%s)", self.stage.url, self.stage.banner)

    def _is_worker(self) -> bool:
        return isinstance(self.environment.runner, WorkerRunner)

    def on_test_start(self, **_: Any) -> None:
        """Start the scenario's faults (not on workers: one process makes them)."""
        self.tested = True
        self.timeline.clear()
        options: Any = self.environment.parsed_options
        if options is None or self._is_worker():
            return
        if self.stage is not None:
            self.environment.host = self.stage.url
            tell: Tell = self.stage.tell
        elif options.faults_by:
            tell = by_command(options.faults_by)
        else:
            tell = _only_marked
        scenario = SCENARIOS[options.scenario]
        self.driver = Driver(self.environment, scenario, options.seconds or scenario.seconds, tell)

    def on_test_stop(self, **_: Any) -> None:
        """End what is still wrong."""
        driver, self.driver = self.driver, None
        if driver is not None:
            driver.stop()

    def on_quitting(self, **_: Any) -> None:
        """Write the timeline, close the stage. A test that sent nothing has tested nothing: it fails."""
        options: Any = self.environment.parsed_options
        if self.tested and not self.environment.stats.total.num_requests and not self._is_worker():
            log.error("no request was sent: this was no load test (--host, --peak and --seconds say what is)")
            self.environment.process_exit_code = 1
        if options is not None and options.timeline and not self._is_worker():
            Path(options.timeline).write_text(page(self.timeline))
            log.info("written: %s", options.timeline)
        if self.stage is not None:
            self.stage.close()

    def on_request(self, response_time: float | None, exception: BaseException | None, **_: Any) -> None:
        """A request ended. A master gets none of its own."""
        if not isinstance(self.environment.runner, MasterRunner):
            self.timeline.add(time.time(), response_time or 0.0, exception is not None)  # noqa: TID251 - a chart's axis

    def on_report_to_master(self, data: dict[str, Any], **_: Any) -> None:
        """A worker tells what it has seen."""
        data["timeline"] = self.timeline.drain()

    def on_worker_report(self, data: dict[str, Any], **_: Any) -> None:
        """The master takes it."""
        self.timeline.merge(data.get("timeline", ()))

    def on_fault(self, label: str, begins: bool, at: float, **_: Any) -> None:
        """Mark it on the chart."""
        (self.timeline.begin if begins else self.timeline.end)(label, at)


def _only_marked(words: str) -> None:
    log.info("nobody makes it so (--host without --faults-by): %s", words)


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Our options; those that make sense there appear in the web UI too."""
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="steady", help="what happens (default: steady)")
    parser.add_argument("--peak", type=int, default=100, help="users at the peak, one request a second each")
    parser.add_argument("--seconds", type=float, default=0.0, help="length (default: the scenario's own)")
    hidden: dict[str, Any] = {"include_in_web_ui": False}  # Locust's parser knows it, argparse's does not
    parser.add_argument(
        "--lab",
        choices=("auto", "netns", "loopback", "off"),
        default="auto",
        help="without --host, open the WAN lab with onetrip in it, in this mode (default: auto)",
        **hidden,
    )
    parser.add_argument("--faults-by", metavar="CMD", help="run CMD with the lab's words to make a fault", **hidden)
    parser.add_argument("--timeline", metavar="FILE", help="write the chart with the faults as HTML", **hidden)


def set_up(environment: Environment, **_: Any) -> None:
    """Once for each process of Locust."""
    Conductor(environment)


locust_events.init_command_line_parser.add_listener(add_arguments)
locust_events.init.add_listener(set_up)
