"""Simulations of the routing policies: the very code of `routing` in a world of virtual clocks, origins and faults.

    python -m loadtests.simulate                 # every scenario, as a table
    python -m loadtests.simulate blackhole --json
    python -m loadtests.simulate --near          # the proxy stands beside us: 0.5, 30 and 80 ms
    python -m loadtests.simulate --plots docs/   # also writes the plots

Regions are us 60 ms, eu 80 ms and ap 150 ms away, 100 requests a second arrive at one proxy, and the fault lasts
from second 20 to 50 of 100, unless a scenario says otherwise. Everything is seeded: the same numbers come out every
time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import figures
from .fleets import fleet
from .policies import tail_at_scale
from .scenarios import FAULT, ON_PATHS, SCENARIOS, choices, dark, one_proxy
from .worlds import NEAR, Result

if TYPE_CHECKING:
    from collections.abc import Sequence


def plot(folder: Path, seed: int) -> None:
    """Write the figures of docs/routing.md."""
    proxy = one_proxy(dark, seed=seed)
    figures.timeline(proxy.records, FAULT, folder / "routing-blackhole.svg")
    figures.tail(tail_at_scale(seed=seed), folder / "routing-tail.svg")
    figures.choice(choices(seed=seed)["rows"], folder / "routing-choice.svg")
    figures.shares(fleet(seed=seed)["shares_each_second"], 15, (15.0, 40.0), folder / "routing-fleet.svg")


def _print(results: dict[str, Result]) -> None:
    for name, result in results.items():
        print(f"{name}:")
        for key, value in result.items():
            if isinstance(value, list):
                print(f"  {key}:")
                for line in value:
                    print(f"    {line}")
            else:
                print(f"  {key}: {value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.simulate",
        description="Simulate the routing policies.",
        epilog="example: python -m loadtests.simulate blackhole late2 --json",
    )
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seed", type=int, default=1, help="of every random number (default 1)")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="write the figures of docs/routing.md there instead"
    )
    parser.add_argument("--near", action="store_true", help="the proxy stands beside us: 0.5, 30 and 80 ms")
    options = parser.parse_args(arguments)
    unknown = set(options.scenario) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if options.plots:
        plot(options.plots, options.seed)
        return 0
    if options.near:
        wanted = [name for name in options.scenario or SCENARIOS if name in ON_PATHS]
        results = {name: SCENARIOS[name](seed=options.seed, rtts=NEAR) for name in wanted}
    else:
        results = {name: SCENARIOS[name](seed=options.seed) for name in options.scenario or SCENARIOS}
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        _print(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
