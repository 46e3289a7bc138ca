"""The command `onetrip demo`. What it needs is imported when it runs, so that `onetrip --help` stays instant."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Final

import typer

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
EPILOG: Final = (
    "Examples: onetrip demo --fast · onetrip demo --json > demo.json · onetrip demo --keep --mode netns. "
    "Exit codes: 0 every promise was kept; 1 one was not, or it could not run; 2 wrong usage; 130 interrupted."
)


class Mode(StrEnum):
    """How the WAN is made (docs/lab.md)."""

    auto = "auto"
    netns = "netns"
    loopback = "loopback"


def demo(
    *,
    fast: Annotated[bool, typer.Option("--fast", help="Shorter phases: under 30 s instead of under 90.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON; progress goes to stderr either way.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the config, the proxy's log and the figures, and say where.")
    ] = False,
    mode: Annotated[
        Mode,
        typer.Option(
            help="The WAN: loopback (an imitation, needs no rights), netns (real TCP in network namespaces), "
            "or auto: netns where it may."
        ),
    ] = Mode.loopback,
    live: Annotated[
        bool, typer.Option("--live/--no-live", help="A live view when stderr is a terminal, or plain lines.")
    ] = True,
) -> None:
    """Three regions, a WAN, the proxy and live traffic on this machine: direct against through the proxy."""
    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from loadtests.lab import LabError  # noqa: PLC0415

    from .run import demo as perform  # noqa: PLC0415
    from .scenario import FAST, FULL  # noqa: PLC0415
    from .stage import StageError  # noqa: PLC0415

    script = FAST if fast else FULL
    try:
        kept = uvloop.run(
            perform(script, mode=mode.value, live=live and sys.stderr.isatty(), as_json=as_json, keep=keep)
        )
    except (asyncio.CancelledError, KeyboardInterrupt):
        typer.secho("onetrip demo: interrupted; everything that it started has ended", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (LabError, StageError) as error:
        typer.secho(f"onetrip demo: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(EXIT_FAILED) from None
    if not kept:
        raise typer.Exit(EXIT_FAILED)
