"""What a request costs: onetrip beside Envoy, HAProxy and nginx, each on one core, in turns. See docs/benchmarks.md.

python -m loadtests.cpu                                                        everything: about half an hour
python -m loadtests.cpu --only h1 --proxies onetrip,envoy --rounds 3 --seconds 5
python -m loadtests.cpu --only h1 --profile 10                                  where onetrip's time goes
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from .peers import profile
from .peers.envoy import Envoy
from .peers.haproxy import HAProxy
from .peers.load import LoadFailed, run
from .peers.nginx import Nginx
from .peers.onetrip import Onetrip
from .peers.origin import Origin, start_origin
from .peers.process import Program, free_port, start_peer
from .peers.report import Cell, Result, as_json, as_markdown, machine, text_table, verdict_rows, verdicts
from .peers.scenarios import IDLE, LATENCY, SCENARIOS, Scenario, Settings, measure, scenario_load
from .peers.wiring import Credentials, Peer, Unavailable, Wiring, make_credentials, open_files_max

PEERS: Final[dict[str, Peer]] = {peer.name: peer for peer in (Onetrip(), Envoy(), HAProxy(), Nginx())}
WARM_UP_S: Final = 1.0
DIRECT: Final = "direct"


class Bench:
    """One run of the command: an origin, credentials, and a directory for everything that is written."""

    def __init__(self, directory: Path, settings: Settings, peers: list[Peer], rounds: int) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # started by root, nginx's workers are nobody
        self.settings = settings
        self.peers = peers
        self.rounds = rounds
        self.credentials: Credentials = make_credentials(directory / "certificates")
        self.origin: Origin = start_origin(directory / "origin", self.credentials, settings.load_core)

    def wiring(self, scenario: Scenario, name: str) -> Wiring:
        """Where this proxy stands in this scenario: fresh ports, a directory of its own."""
        directory = self.directory / f"{scenario.name}-{name}"
        shutil.rmtree(directory, ignore_errors=True)
        ports = (free_port(), self.origin.port(scenario.upstream), free_port())
        return Wiring(scenario.downstream, scenario.upstream, *ports, directory, self.credentials)

    def start(self, scenario: Scenario, peer: Peer) -> tuple[Program, Wiring]:
        """A proxy that listens and, unless it has to be fresh, has answered the scenario's load for a moment."""
        peer.find()
        wiring = self.wiring(scenario, peer.name)
        program = start_peer(peer, wiring, self.settings.proxy_core)
        if scenario.fresh:
            return program, wiring
        try:
            load = scenario_load(scenario, self.settings)
            done = run(load, wiring.port, WARM_UP_S, self.settings.load_core, wiring.directory)
            if done.requests == 0 or done.errors > done.requests / 100:
                raise Unavailable(f"{done.requests} requests answered and {done.errors} errors: {program.complaint()}")
        except BaseException:
            program.stop()
            raise
        return program, wiring

    def scenario(self, scenario: Scenario) -> Result:
        """All rounds of one scenario. Every round takes the proxies in turn, each round beginning with another one."""
        cells = {peer.name: Cell() for peer in self.peers}
        if scenario.kind is LATENCY:
            cells[DIRECT] = Cell()
        with ExitStack() as stack:
            running: dict[str, tuple[Program, Wiring]] = {}
            for peer in [] if scenario.fresh else self.peers:
                try:
                    running[peer.name] = self.start(scenario, peer)
                    stack.enter_context(running[peer.name][0])
                except (Unavailable, LoadFailed) as error:
                    cells[peer.name].missing = f"not available: {error}"
            names = list(cells)
            for number in range(self.rounds):
                turn = number % len(names)
                for name in names[turn:] + names[:turn]:
                    self.turn(scenario, name, cells[name], running.get(name))
        return Result(scenario, cells)

    def turn(self, scenario: Scenario, name: str, cell: Cell, running: tuple[Program, Wiring] | None) -> None:
        """One run of one proxy; a failure ends its part in the scenario."""
        if cell.missing:
            return
        progress(f"{scenario.name}: {name}, run {len(cell.runs) + 1} of {self.rounds}")
        directory = self.directory / f"{scenario.name}-{name}"
        directory.mkdir(exist_ok=True)
        fresh = None
        try:
            if name == DIRECT:
                measures = measure(scenario, None, self.origin.plain, self.settings, directory)
            else:
                if scenario.fresh:
                    running = fresh = self.start(scenario, PEERS[name])
                assert running is not None
                measures = measure(scenario, running[0], running[1].port, self.settings, directory)
            cell.runs.append(measures)
        except (Unavailable, LoadFailed, OSError) as error:
            cell.missing = f"not available: {error}"
        finally:
            if fresh is not None:
                fresh[0].stop()
            access_log = directory / "access.log"
            if access_log.exists():
                os.truncate(access_log, 0)

    def profile(self, scenario: Scenario, seconds: float, native: bool) -> str:
        """onetrip's functions by their share of the time, under the scenario's load."""
        program, wiring = self.start(scenario, PEERS["onetrip"])
        with program:
            output = wiring.directory / "profile.raw"
            recording = profile.start_recording(program, seconds, self.settings.load_core, output, native)
            load = scenario_load(scenario, self.settings)
            run(load, wiring.port, seconds + 2, self.settings.load_core, wiring.directory)
            profile.finish_recording(recording)
            return profile.flat(output.read_text())


def progress(message: str) -> None:
    """A line that the next one replaces, where somebody is watching."""
    if sys.stderr.isatty():
        print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="A,B", help=f"scenarios, of: {', '.join(SCENARIOS)}")
    parser.add_argument("--proxies", metavar="A,B", help=f"of: {', '.join(PEERS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each proxy in each scenario (default: 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a run (default: 5)")
    parser.add_argument("--connections", type=int, default=64, help="of the closed loops (default: 64)")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections in `idle` (default: 10000)")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second in `latency` (default: 1000)")
    parser.add_argument("--proxy-core", type=int, default=1, help="core of the proxy (default: 1)")
    parser.add_argument("--load-core", type=int, default=0, help="core of the load and the origin (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="where cpu.json and cpu.md go (default: build/bench)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep configs and logs there")
    parser.add_argument(
        "--profile", type=float, nargs="?", const=10.0, metavar="SECONDS", help="sample onetrip instead of comparing"
    )
    parser.add_argument("--native", action="store_true", help="with --profile: show functions of C extensions too")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is not kept")
    return parser.parse_args(arguments)


def choose(names: str | None, known: dict[str, object]) -> list[str]:
    """The chosen names, in the order given; all of them by default."""
    chosen = list(known) if names is None else [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in known]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


def compare(bench: Bench, scenarios: list[Scenario], out: Path) -> list[Result]:
    """Run and print scenario by scenario; the files grow with them, so that an interrupted run is not lost."""
    facts = machine()
    settings = bench.settings
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts["run"] = f"{when}, {bench.rounds} rounds of {settings.seconds:g} s, medians"
    facts["pinned"] = f"proxy to core {settings.proxy_core}, load and origin to core {settings.load_core}"
    for peer in bench.peers:
        try:
            facts[peer.name] = peer.version()
        except Unavailable as error:
            facts[peer.name] = f"missing, {error}"
    results: list[Result] = []
    out.mkdir(parents=True, exist_ok=True)
    for scenario in scenarios:
        results.append(bench.scenario(scenario))
        progress("")
        print(f"\n{scenario.name}: {scenario.title}\n{text_table(results[-1].rows())}", flush=True)
        (out / "cpu.json").write_text(json.dumps(as_json(results, facts), indent=2) + "\n")
        (out / "cpu.md").write_text(as_markdown(results, facts))
    if verdicts(results):
        print(f"\ntargets\n{text_table(verdict_rows(results))}")
    print(f"\nwritten: {out / 'cpu.json'}, {out / 'cpu.md'}")
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run the bench. Exit codes: 0 done; 1 a target was not kept (with `--check`); 2 wrong usage, or no way to run."""
    options = parse_arguments(arguments)
    scenarios = [SCENARIOS[name] for name in choose(options.only, dict(SCENARIOS))]
    peers = [PEERS[name] for name in choose(options.proxies, dict(PEERS))]
    settings = Settings(
        options.seconds, options.connections, options.idle, options.rate, options.proxy_core, options.load_core
    )
    if {settings.proxy_core, settings.load_core} - os.sched_getaffinity(0) or settings.proxy_core == settings.load_core:
        print("the bench needs two cores of its own: see --proxy-core and --load-core", file=sys.stderr)
        return 2
    open_files = open_files_max()
    if any(scenario.kind is IDLE for scenario in scenarios) and open_files < settings.idle + 1000:
        print(
            f"this machine lets a program open {open_files} files: --idle {settings.idle} needs more",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything started is stopped
    with ExitStack() as stack:
        directory = (
            options.keep.resolve()
            if options.keep
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onetrip-bench-")))
        )
        try:
            bench = Bench(directory, settings, peers, options.rounds)
        except Unavailable as error:
            print(f"the origin is nginx, which is {error}", file=sys.stderr)
            return 2
        with bench.origin.program:
            if options.profile:
                for scenario in scenarios:
                    functions = bench.profile(scenario, options.profile, options.native)
                    print(f"{scenario.name}: {scenario.title}\n{functions}\n")
                return 0
            results = compare(bench, scenarios, options.out)
    return 1 if options.check and not all(kept for _, _, kept in verdicts(results)) else 0


if __name__ == "__main__":
    sys.exit(main())
