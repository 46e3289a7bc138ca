"""The command line of `onetrip bench`: URLs, or a subcommand.

Only declarations: what they run takes a third of a second to import, and every `onetrip` command reads this file. So
it is loaded when it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from . import plan as planning
from .plan import CONNECTIONS_DEFAULT, Plan, PlanError

if TYPE_CHECKING:
    from types import ModuleType

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
_DEFAULT_COMMAND: Final = "run"


class _UrlsOrCommand(TyperGroup):
    """A group whose first argument is a subcommand's name, or else belongs to `run`: `bench URL` is `bench run URL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front of what names no subcommand."""
        if not args or args[0] not in self.commands:
            args = [_DEFAULT_COMMAND, *(args or ["--help"])]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Leave `run` out of the usage line."""
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == _DEFAULT_COMMAND else name, command, rest


app = typer.Typer(
    cls=_UrlsOrCommand, add_completion=False, rich_markup_mode="rich", help="Open-loop latency benchmark."
)

_RUN_HELP: Final = """Measure latencies over an open loop: requests start when the schedule says.

A URL may carry a name, NAME=URL (a region, say); several share the rate, in turn. Latency counts from the instant at
which a request should have started; the uncorrected service time stands beside it.

`onetrip bench compare --help` compares two results; `onetrip bench schema` prints the schema of one.

[bold]Examples[/]

onetrip bench https://example.com/ --rate 200 --duration 30s

onetrip bench us=https://us.example.com/ eu=https://eu.example.com/ --html report.html

onetrip bench --ab https://old.example.com/ https://new.example.com/

onetrip bench http://localhost:8080/ --json after.json
"""
_COMPARE_HELP: Final = """Compare two results, region by region, with confidence intervals, and fail by rule.

A rule is [REGION:][PHASE.]METRIC>VALUE (or <, >=, <=). METRIC: p50 p90 p99 p99.9 max mean errors rate. PHASE: total
(default) service queue dns tcp tls first_byte receive. A sign compares with the first result: 'p99>+5%', 'us:p50>+2ms';
without one the second result's own value counts: 'tls.p50>30ms', 'errors>0.1%'.

[bold]Example[/]

onetrip bench compare before.json after.json --fail-if 'p99>+5%' --fail-if 'errors>0.1%'
"""


@app.command(
    _DEFAULT_COMMAND,
    help=_RUN_HELP,
    epilog="Exit codes: 0 done; 1 nothing was answered, or a file could not be written; 2 wrong usage.",
)
def run(
    *,
    urls: Annotated[list[str], typer.Argument(metavar="URL", help="What to request, each as URL or NAME=URL.")],
    rate: Annotated[float, typer.Option(help="Requests per second, over all URLs together.")] = 200.0,
    duration: Annotated[str, typer.Option(help="How long to measure: 30s, 2m, 500ms.")] = "30s",
    warmup: Annotated[str, typer.Option(help="How long to run before, unmeasured: connections are then open.")] = "0s",
    timeout: Annotated[str, typer.Option(help="When a request is given up, counted from its intended start.")] = "10s",
    connections: Annotated[
        int | None, typer.Option(help="The most connections for each URL (default: 64; 1 with --h2).")
    ] = None,
    connection_requests: Annotated[
        int, typer.Option(help="Close a connection after so many requests; 1: a handshake for every one. 0: never.")
    ] = 0,
    streams: Annotated[int, typer.Option(help="With --h2: the most requests at once on a connection.")] = 100,
    h1: Annotated[bool, typer.Option("--h1", help="HTTP/1.1 (the default).")] = False,
    h2: Annotated[bool, typer.Option("--h2", help="HTTP/2, by ALPN or, for http URLs, by prior knowledge.")] = False,
    h3: Annotated[bool, typer.Option("--h3", help="HTTP/3: not available yet.")] = False,
    method: Annotated[str, typer.Option("--method", "-X", help="The request method.")] = "GET",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="'name: value'; may be repeated.")] = None,
    body: Annotated[str, typer.Option("--body", help="The request's body, or @FILE to read it from one.")] = "",
    insecure: Annotated[bool, typer.Option("--insecure", "-k", help="Do not verify certificates.")] = False,
    ca: Annotated[str, typer.Option("--ca", metavar="FILE", help="Trust the issuers in this PEM file only.")] = "",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Resume TLS sessions on new connections.")
    ] = True,
    poisson: Annotated[
        bool, typer.Option("--poisson", help="Random arrivals, as of independent users, at the same mean rate.")
    ] = False,
    ab: Annotated[
        bool, typer.Option("--ab", help="Two URLs, interleaved in random order, and how sure their difference is.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Makes --poisson and --ab repeat the same order.")] = None,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write the result as JSON (-: to stdout).")
    ] = "",
    csv_file: Annotated[
        str, typer.Option("--csv", metavar="FILE", help="Write the figures as CSV (-: to stdout).")
    ] = "",
    html_file: Annotated[
        str, typer.Option("--html", metavar="FILE", help="Write a page with plots, one self-contained file.")
    ] = "",
    live: Annotated[bool, typer.Option("--live/--no-live", help="Show a live view when stderr is a terminal.")] = True,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="First measure this program's own overhead (0.4 s).")
    ] = True,
) -> None:
    """Parse, run, report."""
    try:
        protocol = _protocol(h1, h2, h3)
        plan = Plan(
            targets=planning.targets(urls),
            rate=rate,
            duration_s=planning.duration_s(duration),
            warmup_s=planning.duration_s(warmup),
            timeout_s=planning.duration_s(timeout),
            protocol=protocol,
            connections=connections if connections is not None else CONNECTIONS_DEFAULT[protocol],
            connection_requests=connection_requests,
            streams=streams,
            method=method,
            headers=tuple(planning.header(text) for text in header or ()),
            body=_body(body),
            insecure=insecure,
            ca=ca,
            resume=resume,
            poisson=poisson,
            ab=ab,
            seed=seed,
        )
        _check_writable([json_file, csv_file, html_file])
        answered = _commands().run(
            plan,
            live=live and sys.stderr.isatty(),
            calibrate=calibrate,
            json_file=json_file,
            csv_file=csv_file,
            html_file=html_file,
        )
    except PlanError as error:
        _fail(str(error), EXIT_USAGE)
    except OSError as error:
        _fail(f"{error.filename or 'a report'} can't be written: {error.strerror or error}", EXIT_FAILED)
    if not answered:
        raise typer.Exit(EXIT_FAILED)


@app.command(
    "compare",
    help=_COMPARE_HELP,
    epilog="Exit codes: 0 no rule was broken; 1 one was; 2 wrong usage, or a file that is not a result.",
)
def compare(
    *,
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A result written by --json: the baseline.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The one that is judged.")],
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", metavar="RULE", help="Exit 1 where it holds; may be repeated.")
    ] = None,
    significant: Annotated[
        bool, typer.Option("--significant", help="Let only changes fail whose confidence interval excludes zero.")
    ] = False,
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write the comparison as JSON (-: to stdout).")
    ] = "",
) -> None:
    """Compare, judge, report."""
    try:
        passed = _commands().compare(before, after, fail_if or [], significant=significant, json_file=json_file)
    except ValueError as error:  # a ResultError, RuleError or PlanError: each says what was wrong with which argument
        _fail(str(error), EXIT_USAGE)
    except OSError as error:
        _fail(f"{error.filename or json_file} can't be written: {error.strerror or error}", EXIT_FAILED)
    if not passed:
        raise typer.Exit(EXIT_FAILED)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of what `--json` writes. Example: onetrip bench schema > bench.schema.json"""
    typer.echo(_commands().schema())


def _commands() -> ModuleType:
    from . import commands  # noqa: PLC0415  see above: loaded when it is needed

    return commands


def _protocol(h1: bool, h2: bool, h3: bool) -> str:
    if h1 + h2 + h3 > 1:
        raise PlanError("--h1, --h2 and --h3 exclude each other: take one")
    if h3:
        raise PlanError("--h3 is not available yet: use --h1 or --h2")
    return "h2" if h2 else "h1"


def _body(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise PlanError(f"--body {text}: {error.strerror or error}") from None


def _check_writable(files: list[str]) -> None:
    """A run of minutes must not end with a result that can't be written."""
    if files.count("-") > 1:
        raise PlanError("only one report can go to stdout")
    for file in files:
        if file in ("", "-"):
            continue
        try:
            with open(file, "a", encoding="utf-8"):
                pass
        except OSError as error:
            raise PlanError(f"{file} can't be written: {error.strerror or error}") from None


def _fail(text: str, code: int) -> NoReturn:
    typer.secho(f"onetrip bench: {text}", fg=typer.colors.RED, err=True)
    raise typer.Exit(code)
