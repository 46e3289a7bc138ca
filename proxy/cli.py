"""The command `onetrip`, as far as it takes nothing but the standard library to know what is asked.

What parses command lines takes longer to import than a start has to listen, or than a health check should take at all.
So the plain forms of what is started often go straight to what they run; everything else, `--help` included, is parsed.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point."""
    match sys.argv[1:]:
        case ["serve", path] if not path.startswith("-"):
            from .process.start import leave, start  # noqa: PLC0415

            leave(start(path))
        case ["check", path] if not path.startswith("-"):
            from .process.check import run_check  # noqa: PLC0415

            sys.exit(run_check(path))
        case [("status" | "healthcheck") as command, *arguments]:
            from .admin import operator  # noqa: PLC0415

            options = operator.plain_options(arguments)
            if options is None or (options[1] and command == "healthcheck"):
                _parse()
            elif command == "status":
                operator.status(options[0], as_json=options[1])
            else:
                operator.healthcheck(options[0])
        case _:
            _parse()


def _parse() -> None:
    from .commands import command  # noqa: PLC0415

    command()(prog_name="onetrip")


if __name__ == "__main__":
    main()
