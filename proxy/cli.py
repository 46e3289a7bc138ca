"""The command `onetrip`. Heavy imports stay inside the commands that need them: `onetrip --help` is instant."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .bench.cli import app as bench_app
from .demo.cli import EPILOG as DEMO_EPILOG
from .demo.cli import demo

if TYPE_CHECKING:
    from .admin.ask import Admin

EXIT_FAILED: Final = 1

app = typer.Typer(
    name="onetrip",
    help="A low-latency multi-region connection proxy: every cross-region request costs one round trip.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The config file (YAML).", show_default=False)]
AdminAddress = Annotated[
    str,
    typer.Option(
        "--admin", metavar="ADDRESS", envvar="ONETRIP_ADMIN", help="The admin address: HOST:PORT or unix:PATH."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_ADMIN: Final = "127.0.0.1:9900"


@app.command(epilog="Example: onetrip serve /etc/onetrip/onetrip.yaml")
def serve(config: ConfigPath) -> None:
    """Run the proxy in the foreground."""
    from .process.forkserver import start  # noqa: PLC0415

    fork_server = start(str(config))  # before anything else is imported
    from .process.program import serve as run  # noqa: PLC0415

    raise typer.Exit(run(str(config), fork_server))


@app.command(epilog="Example: onetrip check onetrip.yaml")
def check(config: ConfigPath, as_json: Json = False) -> None:
    """Validate a config: `ok`, or every fault with its place."""
    from .config import check_config  # noqa: PLC0415

    faults = list(check_config(str(config)))
    if not faults:
        faults += _tls_faults(str(config))
    if as_json:
        print(
            json.dumps(
                [{"file": f.file, "line": f.line, "column": f.column, "message": f.message} for f in faults], indent=2
            )
        )
    elif faults:
        for fault in faults:
            print(fault, file=sys.stderr)
    else:
        print("ok")
    raise typer.Exit(EXIT_FAILED if faults else 0)


def _tls_faults(path: str) -> list[Any]:
    """What only shows when certificates are loaded: a key that does not fit, a file that is no PEM."""
    from tlscache.certificates import ContextError  # noqa: PLC0415
    from tlscache.context import ClientContext  # noqa: PLC0415
    from tlscache.ticket_keys import TicketKeys  # noqa: PLC0415

    from .config import ConfigFault, load_config  # noqa: PLC0415
    from .process.worker import server_contexts  # noqa: PLC0415
    from .upstream.reach import client_settings  # noqa: PLC0415

    config = load_config(path)
    try:
        server_contexts(config, TicketKeys(contexts=1))
        for upstream in config.upstreams.values():
            settings = client_settings(upstream)
            if settings is not None:
                ClientContext(settings)
    except ContextError as error:
        return [ConfigFault(path, 1, 1, str(error))]
    return []


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


def _admin(address: str) -> Admin:
    from .admin.ask import Admin  # noqa: PLC0415

    return Admin(address, os.environ.get("ONETRIP_ADMIN_TOKEN"))


def _ask(address: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    from .admin.ask import AdminError  # noqa: PLC0415

    try:
        return _admin(address).ask(method, path, body)
    except AdminError as error:
        print(f"onetrip: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None


@app.command(epilog="Example: onetrip status --admin 127.0.0.1:9900")
def status(admin: AdminAddress = DEFAULT_ADMIN, as_json: Json = False) -> None:
    """Regions, latency, weights, pools and drains of a running proxy."""
    found = _ask(admin, "GET", "/status")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from .admin.show import print_status  # noqa: PLC0415

    print_status(found)


@app.command(epilog="Example: onetrip top")
def top(
    admin: AdminAddress = DEFAULT_ADMIN, interval: Annotated[float, typer.Option(help="Seconds between updates.")] = 1.0
) -> None:
    """`status`, live. Ends with Ctrl-C."""
    from .admin.show import run_top  # noqa: PLC0415

    run_top(lambda: _ask(admin, "GET", "/status"), interval)


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
    found = _ask(admin, "POST", "/drain", {"region": region, "upstream": upstream, "for": lasting})
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
    found = _ask(admin, "POST", "/undrain", {"region": region, "upstream": upstream})
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

    found = _ask(admin, "GET", "/explain?" + urlencode({"url": url, "method": method}))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from .admin.show import print_explanation  # noqa: PLC0415

    print_explanation(found)


@app.command(epilog='Example, in a Dockerfile: HEALTHCHECK CMD ["onetrip", "healthcheck"]')
def healthcheck(admin: AdminAddress = DEFAULT_ADMIN) -> None:
    """Exit 0 when the proxy is ready (for containers)."""
    _ask(admin, "GET", "/readyz")
    print("ready")


app.add_typer(bench_app, name="bench")
app.command(name="demo", epilog=DEMO_EPILOG)(demo)


def main() -> None:
    """The entry point."""
    app(prog_name="onetrip")


if __name__ == "__main__":
    main()
