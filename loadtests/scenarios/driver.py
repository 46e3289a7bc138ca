"""What goes wrong, at the right time: fires Locust's event `fault`, and tells whoever can make it so.

That is the lab of `stage` (`--lab`), or any command (`--faults-by`) that is run with the lab's words as its arguments:
`--faults-by 'python -m loadtests.lab'` drives a lab that is open elsewhere, a script of yours drives what you have.
With neither, faults are only marked.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import gevent
from locust.env import Environment

from .plan import Scenario, steps

Tell: TypeAlias = Callable[[str], None]
"""Makes a fault: takes the lab's words."""

log = logging.getLogger("loadtests")
_STOP_WITHIN_S: Final = 10.0


class StageFailed(Exception):
    """The lab or the proxy did not come up; the text says why."""


class Stage:
    """The process of `stage`. `url`: where the proxy is."""

    def __init__(self, mode: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.scenarios.stage", "--mode", mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the terminal's ^C is for Locust, which then ends it in order
        )
        hello = self._read()
        if "url" not in hello:
            raise StageFailed(hello.get("error", "it said nothing"))
        self.url: str = hello["url"]
        self.banner: str = hello["banner"]

    def __repr__(self) -> str:
        return f"<Stage {self.url}>"

    def tell(self, words: str) -> None:
        """Say the lab's words and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            log.warning("the lab refused %r: %s", words, answer["error"])

    def close(self) -> None:
        """End it; it removes everything it made."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the stage has ended"}
        return answer


def by_command(command: str) -> Tell:
    """A teller that runs `command` with the words as its arguments."""

    def tell(words: str) -> None:
        done = subprocess.run([*shlex.split(command), *shlex.split(words)], capture_output=True, text=True, check=False)
        if done.returncode:
            log.warning("%s %s: exit code %d: %s", command, words, done.returncode, done.stderr.strip()[-200:])

    return tell


class Driver:
    """One run of a scenario's faults in a greenlet of its own. However it ends, what was begun is ended."""

    def __init__(
        self, environment: Environment, scenario: Scenario, length_s: float, tell: Callable[[str], None]
    ) -> None:
        self._environment = environment
        self._steps = steps(scenario, length_s)
        self._tell = tell
        self._open: list[tuple[str, tuple[str, ...]]] = []
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """No further faults; end those that are open."""
        self._greenlet.kill()
        for label, words in self._open:
            self._change(label, False, words)
        self._open.clear()

    def _run(self) -> None:
        began = time.perf_counter()
        for step in self._steps:
            gevent.sleep(max(0.0, began + step.at_s - time.perf_counter()))
            label = step.fault.label
            if step.begins:
                self._open.append((label, step.fault.stop))
            else:
                self._open = [pair for pair in self._open if pair[0] != label]
            self._change(label, step.begins, step.words)

    def _change(self, label: str, begins: bool, words: tuple[str, ...]) -> None:
        log.info("%s: %s", label, "begins" if begins else "ends")
        events: Any = self._environment.events
        events.fault.fire(label=label, begins=begins, at=time.time())  # noqa: TID251 - a chart's axis
        for line in words:
            self._tell(line)
