"""`python -m loadtests.lab`: a WAN on this machine from the command line.

python -m loadtests.lab up --regions us=60,eu=80,ap=150 --tls      keeps it up, prints the addresses, reads commands
python -m loadtests.lab set us blackhole=on                        from another shell: see `commands` for the words
python -m loadtests.lab exec home -- curl http://10.66.1.1:8080/   runs a program in a region
python -m loadtests.lab measure --rtt 80 --rate 500                what the lab adds to a round trip
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import uvloop

from .commands import Commands, Down, parse_settings
from .control import LabError
from .lab import HOME, Lab
from .measure import measure


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "up":
            return uvloop.run(_up(options))
        if options.command == "measure":
            figures = uvloop.run(_measure(options))
            print(json.dumps(figures, indent=2))
            return 0
        if options.command == "exec":
            return _exec(options)
        words = [options.command, *getattr(options, "words", [])]
        answer = _ask(options.name, shlex.join(words))
    except (LabError, OSError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    print(answer if isinstance(answer, str) else json.dumps(answer, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    name = argparse.ArgumentParser(add_help=False)
    name.add_argument("--name", default="default", help="which lab, where several are up")
    up = commands.add_parser("up", parents=[name], help="make a lab and keep it up")
    up.add_argument("--regions", default="us=60,eu=80,ap=150", help="round trips from home in milliseconds")
    up.add_argument("--mode", choices=("auto", "netns", "loopback"), default="auto")
    up.add_argument("--endpoints", type=int, default=1, help="origins in each region")
    up.add_argument("--tls", action="store_true", help="origins speak TLS, with certificates of the lab's CA")
    up.add_argument("--h2", action="store_true", help="origins speak HTTP/2 too")
    up.add_argument("--behaviour", nargs="*", default=[], metavar="NAME=VALUE", help="of all origins: service_ms=0.2 …")
    up.add_argument("--json", action="store_true", help="print addresses as JSON")
    for word, what in (("set", "change a path"), ("origin", "change an origin")):
        command = commands.add_parser(word, parents=[name], help=what)
        command.add_argument("words", nargs="+")
    for word, what in (("show", "where everything is"), ("counters", "what has happened"), ("down", "end a lab")):
        commands.add_parser(word, parents=[name], help=what)
    run = commands.add_parser("exec", parents=[name], help="run a program in a region")
    run.add_argument("region")
    run.add_argument("program", nargs=argparse.REMAINDER)
    figures = commands.add_parser("measure", help="what the lab itself costs")
    figures.add_argument("--mode", choices=("auto", "netns", "loopback"), default="auto")
    figures.add_argument("--rtt", type=float, default=80.0)
    figures.add_argument("--rate", type=float, default=500.0)
    figures.add_argument("--duration", type=float, default=5.0)
    figures.add_argument("--connections", type=int, default=64)
    return parser


async def _up(options: argparse.Namespace) -> int:
    regions = {name: float(rtt_ms) for name, _, rtt_ms in (pair.partition("=") for pair in options.regions.split(","))}
    behaviour = parse_settings(options.behaviour)
    path = _claimed(_control_path(options.name))
    async with Lab.open(mode=options.mode, regions=regions) as lab:
        kind = {"endpoints": options.endpoints, "tls": options.tls, "h2": options.h2, **behaviour}
        started = await asyncio.gather(*(lab.origin(name, **kind) for name in regions))
        commands = Commands(lab, dict(zip(regions, started, strict=True)))
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        server = await _serve(path, commands, ended)
        print(json.dumps(commands.show()) if options.json else _table(commands.show()), flush=True)
        terminal = loop.create_task(_terminal(commands, ended))
        try:
            await ended.wait()
        finally:
            terminal.cancel()
            server.close()
            _forget(path)
    return 0


async def _serve(path: Path, commands: Commands, ended: asyncio.Event) -> asyncio.Server:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            line = (await reader.readline()).decode()
            writer.write(json.dumps(await _obey(commands, line, ended)).encode() + b"\n")
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(client, path)


async def _terminal(commands: Commands, ended: asyncio.Event) -> None:
    """Commands on standard input. Its end does not end the lab, which may be in the background.

    A thread reads it: to make the terminal non-blocking would make it so for everyone who shares it.
    """
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        rest = b""
        with contextlib.suppress(OSError, RuntimeError):  # no terminal for a job in the background; the loop has closed
            while data := os.read(0, 4096):
                *complete, rest = (rest + data).split(b"\n")
                for line in complete:
                    loop.call_soon_threadsafe(lines.put_nowait, line)

    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    threading.Thread(target=read, daemon=True).start()
    while True:
        line = await lines.get()
        if line.strip():
            print(json.dumps(await _obey(commands, line.decode(), ended), indent=2), flush=True)


async def _obey(commands: Commands, line: str, ended: asyncio.Event) -> Any:
    try:
        return {"result": await commands.run(line)}
    except Down:
        ended.set()
        return {"result": "ok"}
    except (LabError, ValueError, LookupError, TypeError) as error:
        return {"error": str(error)}


def _ask(name: str, line: str) -> Any:
    path = _control_path(name)
    try:
        connection = _connect(path)
    except OSError:
        raise LabError(f"no lab called {name!r} is up: start one with `python -m loadtests.lab up`") from None
    with connection, connection.makefile("rwb") as lines:
        lines.write(line.encode() + b"\n")
        lines.flush()
        answer = json.loads(lines.readline() or b'{"error": "the lab has ended"}')
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["result"]


def _exec(options: argparse.Namespace) -> int:
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        raise ValueError("exec needs a program: exec home -- curl …")
    shown = _ask(options.name, "show")
    prefixes = {HOME: shown["home_prefix"], **{name: region["prefix"] for name, region in shown["regions"].items()}}
    if options.region not in prefixes:
        raise LabError(f"no region {options.region!r}: there are {', '.join(prefixes)}")
    prefix = prefixes[options.region]
    command = [*shlex.split(prefix), *program]
    os.execvp(command[0], command)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _claimed(path: Path) -> Path:
    """The socket's path, free to be bound: what a killed lab has left there is removed.

    Raises LabError where one is up.
    """
    if path.exists():
        try:
            _connect(path).close()
        except OSError:
            path.unlink()
        else:
            raise LabError(f"a lab of this name is up already (its socket: {path}): say --name")
    return path


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)


def _control_path(name: str) -> Path:
    directory = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"onetrip-lab-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / f"{name}.sock"


def _table(shown: dict[str, Any]) -> str:
    lines = [f"{shown['mode']}: {shown['banner']}"]
    if shown["mode"] == "loopback":
        lines.append(f"no namespaces: {shown['reason']}")
    for name, region in shown["regions"].items():
        lines.append(f"  {name:10} {region['rtt_ms']:6g} ms   {'  '.join(region['endpoints'])}")
    if shown["ca"]:
        lines.append(f"  CA         {shown['ca']}")
    if shown["home_prefix"]:
        lines.append(f"run programs in home by: {shown['home_prefix']} COMMAND")
    lines.append("commands: set REGION NAME=VALUE… | origin REGION NAME=VALUE… | show | counters | down")
    return "\n".join(lines)


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    return await measure(
        mode=options.mode,
        rtt_ms=options.rtt,
        rate=options.rate,
        duration_s=options.duration,
        connections=options.connections,
    )


if __name__ == "__main__":
    sys.exit(main())
