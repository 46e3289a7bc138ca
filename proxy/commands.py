"""The command `onetrip`. Heavy imports stay inside the commands that need them: `onetrip --help` is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from .admin import operator
from .admin.operator import ADMIN_VARIABLE, DEFAULT_ADMIN
from .bench.cli import app as bench_app
from .demo.cli import EPILOG as DEMO_EPILOG
from .demo.cli import demo
from .process.check import run_check

EXIT_FAILED: Final = 1

app = typer.Typer(
    name="onetrip",
    help="A low-latency multi-region connection proxy: every cross-region request costs one round trip.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The config file (YAML).", show_default=False)]
AdminAddress = Annotated[
    str,
    typer.Option(
        "--admin", metavar="ADDRESS", envvar=ADMIN_VARIABLE, help="The admin address: HOST:PORT or unix:PATH."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            print(f"onetrip {version('onetrip')}")
        except PackageNotFoundError:
            print("onetrip 0+source")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the name and the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A low-latency multi-region connection proxy: every cross-region request costs one round trip."""


@app.command(epilog="Example: onetrip serve /etc/onetrip/onetrip.yaml")
def serve(config: ConfigPath) -> None:
    """Run the proxy in the foreground."""
    from .process.start import start  # noqa: PLC0415

    raise typer.Exit(start(str(config)))


@app.command(epilog="Example: onetrip check onetrip.yaml")
def check(config: ConfigPath, as_json: Json = False) -> None:
    """Validate a config: `ok`, or every fault with its place."""
    raise typer.Exit(run_check(str(config), as_json=as_json))


@app.command(name="config", epilog="Example: onetrip config onetrip.yaml")
def show_config(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="The config file.", show_default=False)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the config instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the effective config: defaults filled in, variables replaced."""
    from . import config as configuration  # noqa: PLC0415

    if schema:
        print(json.dumps(configuration.schema(), indent=2))
        return
    if config is None:
        raise typer.BadParameter("name a config file, or ask for --schema")
    try:
        loaded = configuration.load_config(str(config))
    except configuration.ConfigError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None
    if as_json:
        print(json.dumps(configuration.effective_values(loaded), indent=2))
    else:
        print(configuration.effective_yaml(loaded), end="")


@app.command(epilog="Example: onetrip status --admin 127.0.0.1:9900")
def status(admin: AdminAddress = DEFAULT_ADMIN, as_json: Json = False) -> None:
    """Regions, latency, weights, pools and drains of a running proxy."""
    operator.status(admin, as_json=as_json)


@app.command(epilog="Example: onetrip top")
def top(
    admin: AdminAddress = DEFAULT_ADMIN, interval: Annotated[float, typer.Option(help="Seconds between updates.")] = 1.0
) -> None:
    """`status`, live. Ends with Ctrl-C."""
    from .admin.show import run_top  # noqa: PLC0415

    run_top(lambda: operator.ask(admin, "GET", "/status"), interval)


@app.command(epilog="Example: onetrip drain us-east --for 15m")
def drain(
    region: Annotated[str, typer.Argument(help="The region.")],
    upstream: Annotated[str | None, typer.Option("--upstream", help="Only for this upstream.")] = None,
    lasting: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Undrain after this long, such as 15m.")
    ] = None,
    admin: AdminAddress = DEFAULT_ADMIN,
    as_json: Json = False,
) -> None:
    """Move traffic off a region."""
    found = operator.ask(admin, "POST", "/drain", {"region": region, "upstream": upstream, "for": lasting})
    print(
        json.dumps(found, indent=2)
        if as_json
        else f"{region} drained for {', '.join(found['drained'])}" + (f", for {lasting}" if lasting else "")
    )


@app.command(epilog="Example: onetrip undrain us-east")
def undrain(
    region: Annotated[str, typer.Argument(help="The region.")],
    upstream: Annotated[str | None, typer.Option("--upstream", help="Only for this upstream.")] = None,
    admin: AdminAddress = DEFAULT_ADMIN,
    as_json: Json = False,
) -> None:
    """Let traffic return to a region."""
    found = operator.ask(admin, "POST", "/undrain", {"region": region, "upstream": upstream})
    print(json.dumps(found, indent=2) if as_json else f"{region} undrained for {', '.join(found['undrained'])}")


@app.command(epilog="Example: onetrip explain https://api.example.com/v1/payments")
def explain(
    url: Annotated[str, typer.Argument(help="The request's URL.")],
    method: Annotated[str, typer.Option("--method", "-X", help="Its method.")] = "GET",
    admin: AdminAddress = DEFAULT_ADMIN,
    as_json: Json = False,
) -> None:
    """Which route, region and endpoint a request would take now, and why."""
    from urllib.parse import urlencode  # noqa: PLC0415

    found = operator.ask(admin, "GET", "/explain?" + urlencode({"url": url, "method": method}))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from .admin.show import print_explanation  # noqa: PLC0415

    print_explanation(found)


@app.command(epilog='Example, in a Dockerfile: HEALTHCHECK CMD ["onetrip", "healthcheck"]')
def healthcheck(admin: AdminAddress = DEFAULT_ADMIN) -> None:
    """Exit 0 when the proxy is ready (for containers)."""
    operator.healthcheck(admin)


app.add_typer(bench_app, name="bench")
app.command(name="demo", epilog=DEMO_EPILOG)(demo)


def command() -> Any:
    """The command line as click's command. `--help` shows no type for flags, which take no value."""
    top = typer.main.get_command(app)
    _untype_flags(top)
    return top


def _untype_flags(found: Any) -> None:
    for parameter in found.get_params(found.context_class(found)):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for one in getattr(found, "commands", {}).values():
        _untype_flags(one)
