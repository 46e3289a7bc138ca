"""Rows of listeners and of the program's own sections."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .client import ClosedWhileIdle, H1Client, fetch
from .keys import Row, answered, ask, from_origin, mark, raw
from .town import Town

WIDE = {f"x-field-{number}": "1" for number in range(30)}


async def _renamed(town: Town) -> bool:
    status = await town.program.status()
    return "aside" in [one["name"] for one in status["listeners"]]


async def _moved(town: Town) -> bool:
    try:
        (await H1Client.connect(town.program.port("side"))).close()
        here = (await ask(town, listener="side")).status == 200
    except OSError:
        return False
    return here and town.program.port("side") != int(town.config["listeners"][1]["address"].rpartition(":")[2])


async def _bytes_pass(town: Town) -> bool:
    return b"proxy-status" not in (await raw(town, "side", b"BREW\r\n\r\n", 2.0)).lower()


async def _takes_proxy_header(town: Town) -> bool:
    name = mark()
    head = b"PROXY TCP4 192.0.2.7 192.0.2.8 1000 80\r\n"
    request = f"GET /look HTTP/1.1\r\nhost: t\r\nconnection: close\r\nx-day: {name}\r\n\r\n".encode()
    await raw(town, "side", head + request)
    return any("192.0.2.7" in one.headers.get("x-forwarded-for", "") for one in town.near.marked(name))


async def _mistrusts(town: Town) -> bool:
    name = mark()
    await ask(town, listener="side", x_day=name, x_forwarded_for="192.0.2.9")
    return "192.0.2.9" not in town.near.marked(name)[-1].headers.get("x-forwarded-for", "")


async def _refuses_some(town: Town) -> bool:
    """Whether not all of many connections at once are served (nobody else is there: the bound may be everybody's)."""
    await town.traffic.pause()
    clients = await asyncio.gather(*(H1Client.connect(town.program.port("side")) for _ in range(160)))
    refused = 0
    for client in clients:
        try:
            refused += (await client.request("GET", "/look")).status != 200
        except (ClosedWhileIdle, OSError, EOFError):
            refused += 1
    for client in clients:
        client.close()
    await town.settle()
    town.traffic.start()
    return refused > 0


async def _hurries_heads(town: Town) -> bool:
    return b" 408 " in await raw(town, "side", b"GET / HTTP/1.1\r\nhost: t\r\n", 1.5)


def _log(town: Town, name: str) -> Path:
    return town.directory / name


async def _grows(town: Town, name: str) -> bool:
    path = _log(town, name)
    marks = [mark() for _ in range(10)]
    for one in marks:
        await ask(town, f"/{one}")
    await asyncio.sleep(0.4)
    return path.exists() and f"/{marks[-1]}" in path.read_text()


async def _logs_elsewhere(town: Town) -> bool:
    return await _grows(town, "other.log") and not await _grows(town, "access.log")


async def _logs_nothing(town: Town) -> bool:
    return not await _grows(town, "access.log")


async def _knows_name(town: Town) -> bool:
    """Whether the admin address is asked by that name."""
    port = int(town.program.admin.rpartition(":")[2])
    return (await fetch(port, "/status", fields={"host": "admin.test"})).status == 200


async def _names_itself(town: Town) -> bool:
    name = mark()
    await ask(town, x_day=name)
    return any("town-7" in one.headers.get("cdn-loop", "") for one in town.near.marked(name))


async def _asks_for_token(town: Town) -> bool:
    token, town.program.token = town.program.token, None
    try:
        return (await town.program.ask("GET", "/status"))[0] == 401
    finally:
        town.program.token = token or "hunter-two-and-a-half"


LISTENERS = [
    Row("listeners[].name", "aside", _renamed),
    Row("listeners[].address", "127.0.0.1:{port}", _moved),
    Row("listeners[].protocol", "tcp", _bytes_pass),
    Row("listeners[].upstream", "spare", from_origin("spare", listener="side")),
    Row("listeners[].http3", True, refused="not available"),
    Row("listeners[].proxy_protocol", True, _takes_proxy_header),
    Row("listeners[].trusted", ["192.0.2.0/24"], _mistrusts),
]

PROGRAM = [
    Row("limits.header_bytes", "1KiB", answered(431, cookie="c" * 4000)),
    Row("limits.headers", 10, answered(431, **WIDE)),
    Row("limits.body_bytes", 50000, answered(413, method="POST", body=b"b" * 60000)),
    Row("limits.connections", 40, _refuses_some),
    Row("limits.header_timeout", "300ms", _hurries_heads),
    Row("access_log.path", "{directory}/other.log", _logs_elsewhere),
    Row("access_log.sample", "0%", _logs_nothing),
    Row("access_log", "off", _logs_nothing, name="off"),
    Row("admin.token", "hunter-two-and-a-half", _asks_for_token),
    Row("admin.hosts", ["admin.test"], _knows_name),
    Row("instance", "town-7", _names_itself),
    Row("admin.address", "127.0.0.1:{port}", restart="admin.address"),
    Row("workers", 3, restart="workers"),
    Row(
        "sessions.path",
        {"path": "{directory}/sessions.db", "key": "0123456789abcdef"},
        path="sessions",
        restart="sessions",
    ),
    Row("fleet.name", {"etcd": ["http://127.0.0.1:1"], "name": "f"}, path="fleet", refused="not available"),
    Row("tracing.otlp", {"otlp": "http://127.0.0.1:1"}, path="tracing", refused="not available"),
]

TOGETHER = {
    "sessions.key": "sessions.path",
    "upstreams.*.tls.key": "upstreams.*.tls.certificate",
    "listeners[].tls.certificates[].key": "listeners[].tls.certificates[].certificate",
    "fleet.etcd": "fleet.name",
    "fleet.quorum": "fleet.name",
}
"""Keys that only their whole section can be changed with, and the row that does."""

ELSEWHERE = {
    "access_log.format": "it has one value",
    "upstreams.*.dns.refresh": "test_names.py",
    "shutdown.settle": "test_end.py",
    "shutdown.deadline": "test_end.py",
}
"""Keys with a test of their own, for they are seen only as the program ends."""
