"""Round trips and failures side by side: Envoy, HAProxy, nginx and onetrip over the WAN lab. See docs/comparison.md.

python -m loadtests.compare                                            everything, 3 rounds: about an hour and a half
python -m loadtests.compare --only cold,burst,blackhole --quick        whether it works, in a few minutes
python -m loadtests.compare --proxies onetrip --rounds 1 --keep /tmp/wan   with its access log kept
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import json
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import uvloop

from .lab import LabError
from .lab.scheduling import MEASURING, hurry
from .peers.report import machine, text_table
from .peers.wiring import Unavailable, open_files_max
from .wan import evaluate
from .wan.catalogue import SCENARIOS
from .wan.envoy import Envoy
from .wan.haproxy import HAProxy
from .wan.nginx import Nginx
from .wan.onetrip import Onetrip
from .wan.place import Contender
from .wan.plots import pictures
from .wan.report import LATE_MS_MAX, Cell, Result, as_json, as_markdown, drift, repeatability, rewrite, summary_rows
from .wan.scenarios import QUICK, Pace, Run, Scenario
from .wan.site import Site, Witness

DEFAULT: Final[tuple[Contender, ...]] = (Envoy(), HAProxy(), Nginx(), Onetrip())
VARIANTS: Final[tuple[Contender, ...]] = (
    Envoy("envoy-h1", h2=False),
    HAProxy("haproxy-h2", h2=True),
    Onetrip("onetrip-defaults", pool=""),
)
CONTENDERS: Final[dict[str, Contender]] = {contender.name: contender for contender in (*DEFAULT, *VARIANTS)}
AGAIN: Final = 2  # disturbed runs are repeated so often
LONG_S: Final = 1.0
POINTS_FROM_S: Final = -2.0
POINTS_TO_S: Final = 8.0


def progress(message: str) -> None:
    """A line that the next one replaces, where somebody is watching."""
    if sys.stderr.isatty():
        print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


async def turn(site: Site, scenario: Scenario, contender: Contender, pace: Pace, cell: Cell) -> None:
    """One round of one proxy; where the machine disturbed it, once more. A failure of ours ends its part."""
    try:
        contender.peer.find()
        run, late_ms = await run_once(site, scenario, contender, pace)
        for _ in range(AGAIN):
            if late_ms <= LATE_MS_MAX:
                break
            progress(f"{scenario.name}: {contender.name} was disturbed, once more")
            again, again_ms = await run_once(site, scenario, contender, pace)
            if again_ms < late_ms:
                run, late_ms = again, again_ms
    except (Unavailable, OSError) as error:
        cell.missing = f"not available: {error}"
        return
    cell.rounds.append(run.figures)
    for complaint, count in evaluate.complaints(run.samples).items():
        cell.complaints[complaint] = cell.complaints.get(complaint, 0) + count
    cell.late_ms = max(cell.late_ms, late_ms)
    if not cell.points and run.zero:
        cell.fault_s = run.fault_s
        cell.points = [
            (sample.at - run.zero, sample.latency_ms, "" if sample.failed else sample.region)
            for sample in evaluate.between(run.samples, run.zero + POINTS_FROM_S, run.zero + POINTS_TO_S)
            if sample.method == "GET"
        ]


def lateness_ms(witness: Witness, windows: list[tuple[float, float]]) -> float:
    """How late the machine made everything while something was measured: the worst window.

    At p99 where many requests were measured, at all where it was one.
    """
    return max(
        (witness.late_ms(begin, end, 0.99 if end - begin > LONG_S else 1.0) for begin, end in windows), default=0.0
    )


async def run_once(site: Site, scenario: Scenario, contender: Contender, pace: Pace) -> tuple[Run, float]:
    """One run, and how late the machine made it (ms). Raises Unavailable, OSError."""
    witness = await site.witness()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(witness.close)
        proxy = await stack.enter_async_context(site.proxy(contender, scenario.name, scenario.only))
        run = Run(site, proxy, pace)
        gc.collect()
        gc.disable()  # a collection in the middle of a load would be a late start
        try:
            await scenario.run(run)
        finally:
            gc.enable()
        return run, lateness_ms(witness, run.windows)


async def scenario_result(
    site: Site, scenario: Scenario, contenders: list[Contender], pace: Pace, rounds: int
) -> Result:
    """All rounds of a scenario. Every round takes the proxies in turn, each beginning with another one."""
    result = Result(scenario, {contender.name: Cell() for contender in contenders})
    for number in range(rounds):
        first = number % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            cell = result.cells[contender.name]
            if not cell.missing:
                progress(f"{scenario.name}: {contender.name}, round {number + 1} of {rounds}")
                await turn(site, scenario, contender, pace, cell)
    progress("")
    return result


def facts_of(contenders: list[Contender], rounds: int, pace: Pace) -> dict[str, str]:
    """What ran where."""
    facts = machine()
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts["run"] = (
        f"{when}, {rounds} rounds{' at the quick pace' if pace is QUICK else ''}, medians; failed requests are means"
    )
    for contender in contenders:
        try:
            facts[contender.name] = contender.peer.version()
        except Unavailable as error:
            facts[contender.name] = f"missing, {error}"
    return facts


async def compare(
    scenarios: list[Scenario], contenders: list[Contender], pace: Pace, rounds: int, options: argparse.Namespace
) -> list[Result]:
    """Run and print scenario by scenario; the files grow with them, so that an interrupted run is not lost."""
    facts = facts_of(contenders, rounds, pace)
    results: list[Result] = []
    out: Path = options.out
    async with AsyncExitStack() as stack:
        directory = (
            options.keep.resolve()
            if options.keep
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onetrip-wan-")))
        )
        site = await stack.enter_async_context(Site.open(directory, mode=options.mode, core=options.core))
        facts["lab"] = site.lab.banner
        for scenario in scenarios:
            results.append(await scenario_result(site, scenario, contenders, pace, rounds))
            unit = f"× is {scenario.rtt_ms:g} ms"
            print(f"\n{scenario.name}: {scenario.title}, {scenario.caption} ({unit})", flush=True)
            print(text_table(results[-1].rows()), flush=True)
            carrier = (await site.lab.counters())["carrier"]
            if "late_p99_ms" in carrier:
                facts["packets later than the lab meant"] = f"p99 {carrier['late_p99_ms']:.2f} ms"
            write(results, facts, out)
    return results


def write(results: list[Result], facts: dict[str, str], out: Path) -> None:
    """`compare.json`, `compare.md` and the pictures."""
    (out / "compare.json").write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
    (out / "compare.md").write_text(as_markdown(results, facts))
    for name, svg in pictures(results).items():
        (out / name).write_text(svg)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(contender.name for contender in DEFAULT)
    others = ", ".join(contender.name for contender in VARIANTS)
    parser.add_argument("--only", metavar="A,B", help=f"scenarios, of: {', '.join(SCENARIOS)}")
    parser.add_argument("--proxies", metavar="A,B", help=f"of: {names} (the default), {others}")
    parser.add_argument("--rounds", type=int, help="of each proxy in each scenario (default: 3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="short waits and runs: shows that everything works")
    parser.add_argument("--mode", choices=("netns", "loopback"), default="netns", help="of the lab (default: netns)")
    parser.add_argument("--core", type=int, default=1, help="core that the proxies are pinned to (default: 1)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/compare"), help="where results go (default: build/compare)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep configs and logs there")
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="rewrite FILE between its markers, and the pictures beside it"
    )
    parser.add_argument("--against", type=Path, metavar="JSON", help="say how far an earlier run's figures are")
    return parser.parse_args(arguments)


def choose(names: str | None, known: dict[str, object], default: list[str]) -> list[str]:
    """The chosen names, in the order given."""
    chosen = default if names is None else [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in known]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return chosen


def document(results: list[Result], out: Path, page: Path) -> None:
    """Put the tables into a page of the docs, and the pictures into its `assets`."""
    if not rewrite(page, (out / "compare.md").read_text()):
        raise SystemExit(f"{page} has no markers for the tables")
    assets = page.parent / "assets"
    assets.mkdir(exist_ok=True)
    for name, svg in pictures(results).items():
        (assets / name).write_text(svg)


def _say(title: str, found: list[tuple[float, str]]) -> None:
    if found:
        print(f"\n{title} differ by at most {found[0][0]:.1%} ({found[0][1]})")


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Exit codes: 0 done; 1 no lab; 2 wrong usage."""
    options = parse_arguments(arguments)
    scenarios = [SCENARIOS[name] for name in choose(options.only, dict(SCENARIOS), list(SCENARIOS))]
    default = [contender.name for contender in DEFAULT]
    contenders = [CONTENDERS[name] for name in choose(options.proxies, dict(CONTENDERS), default)]
    pace = QUICK if options.quick else Pace()
    rounds = options.rounds or (1 if options.quick else 3)
    open_files_max()
    hurry(MEASURING)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything started is stopped
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(compare(scenarios, contenders, pace, rounds, options))
    except LabError as error:
        print(f"no lab: {error}", file=sys.stderr)
        return 1
    print(f"\n{text_table(summary_rows(results))}")
    _say("rounds", repeatability(results))
    if options.against:
        _say(f"this run and {options.against}", drift(results, json.loads(options.against.read_text())))
    if options.docs:
        document(results, options.out, options.docs)
    print(f"\nwritten: {options.out / 'compare.json'}, compare.md, {', '.join(pictures(results))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
