"""What an operator's commands print of a running proxy, apart from how the command line is parsed.

`status` and `healthcheck` run every few seconds on some machines, so they have a way past the parser (`proxy.cli`).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final

EXIT_FAILED: Final = 1
DEFAULT_ADMIN: Final = "127.0.0.1:9900"
ADMIN_VARIABLE: Final = "ONETRIP_ADMIN"


def ask(address: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The proxy's answer; where there is none, the reason on standard error, and SystemExit 1."""
    from .ask import Admin, AdminError  # noqa: PLC0415 - see `test_imports`

    try:
        return Admin(address, os.environ.get("ONETRIP_ADMIN_TOKEN")).ask(method, path, body)
    except AdminError as error:
        print(f"onetrip: {error}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None


def status(address: str, *, as_json: bool = False) -> None:
    """`onetrip status`."""
    found = ask(address, "GET", "/status")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from .show import print_status  # noqa: PLC0415 - see `test_imports`

    print_status(found)


def healthcheck(address: str) -> None:
    """`onetrip healthcheck`."""
    ask(address, "GET", "/readyz")
    print("ready")


def plain_options(arguments: list[str]) -> tuple[str, bool] | None:
    """The admin address and whether JSON is wanted, where that is all that the arguments say; None: parse them."""
    address, as_json = os.environ.get(ADMIN_VARIABLE) or DEFAULT_ADMIN, False
    given = iter(arguments)
    for argument in given:
        if argument == "--json":
            as_json = True
        elif argument == "--admin" and (following := next(given, "-")) and not following.startswith("-"):
            address = following
        else:
            return None
    return address, as_json
