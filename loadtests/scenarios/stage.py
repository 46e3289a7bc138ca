"""The lab and onetrip in a process of their own, for Locust, whose gevent does not mix with asyncio.

It prints one line of JSON (`url`, `banner`), then obeys the lab's words on standard input, one line of JSON for each,
until that closes. With namespaces the proxy is in home, where Locust is not: a relay on loopback carries the bytes
there (0.1 ms, and its share of a core).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from loadtests.lab import LabError
from loadtests.lab.commands import Commands, Down
from loadtests.peers.wiring import Unavailable
from loadtests.wan.onetrip import Onetrip
from loadtests.wan.site import Site


async def serve(mode: str, say: Callable[[Any], None]) -> None:
    """Open everything, say where it is, obey. Raises LabError, Unavailable."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onetrip-load-")))
        site = await stack.enter_async_context(Site.open(directory, mode=mode))  # type: ignore[arg-type]
        proxy = await stack.enter_async_context(site.proxy(Onetrip(), "load"))
        await proxy.start()
        inside = port = proxy.place.port
        if site.lab.mode == "netns":
            relay = await asyncio.start_server(_relay_to(lambda: site.dial(inside)), "127.0.0.1", 0)
            stack.callback(relay.close)
            port = relay.sockets[0].getsockname()[1]
        say({"url": f"http://127.0.0.1:{port}", "banner": site.lab.banner, "mode": site.lab.mode})
        commands = Commands(site.lab, site.origins)
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := (await lines.readline()).decode().strip():
            try:
                say({"ok": await commands.run(line)})
            except Down:
                return
            except (LabError, ValueError, KeyError) as error:
                say({"error": str(error)})


def _relay_to(
    dial: Callable[[], Awaitable[socket.socket]],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, away = await asyncio.open_connection(sock=await dial())
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, away), _pump(there, writer))

    return relay


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def main() -> int:
    """The process. Exit codes: 0 done; 1 it could not be set up, and the line says why."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("auto", "netns", "loopback"), default="auto")
    options = parser.parse_args()

    def say(message: Any) -> None:
        print(json.dumps(message), flush=True)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.mode, say))
    except (LabError, Unavailable) as error:
        say({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
