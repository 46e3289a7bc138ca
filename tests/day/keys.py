"""The rows of the key matrix: for every key of the config what it is changed to, and how that is seen from outside.

A row's `seen` looks once, from outside, and says whether the change is in effect; it must say no before the change and
after the way back. Keys are named as the config's reference names them: `[]` any item, `*` any name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .client import Answer, ClosedWhileIdle, H1Client, fetch
from .origin import Origin
from .serving import Seen
from .town import Edit, Town

Look = Callable[[Town], Awaitable[bool]]


@dataclass(frozen=True)
class Row:
    """One key. `path`: where it is changed in the stage's config (default: `key` in the app upstream, listener `side`).

    `first`: changes that the effect needs, made by a reload of their own. `restart`: the program says that this key
    needs a restart; `refused`: that it can't do it yet (then that is all there is to see).
    """

    key: str
    value: Any
    seen: Look | None = None
    path: str = ""
    first: tuple[Edit, ...] = ()
    stage: str = "web"
    restart: str = ""
    refused: str = ""
    name: str = ""

    @property
    def place(self) -> str:
        """The dotted path of `key` in the stage's config."""
        path = self.path or self.key
        path = path.replace("upstreams.*", "upstreams.app", 1).replace("regions.*", "regions.near", 1)
        return path.replace("listeners[]", "listeners.1", 1).replace("routes[]", "routes.0", 1)

    @property
    def title(self) -> str:
        """Names the row in the test's id."""
        return self.key + (f"-{self.name}" if self.name else "")


# -- looking -------------------------------------------------------------------------------------------------

_serial = iter(range(1_000_000))


def mark() -> str:
    """A request's own name."""
    return f"look-{next(_serial)}"


async def ask(
    town: Town,
    path: str = "/look",
    method: str = "GET",
    *,
    listener: str = "web",
    body: bytes = b"",
    **fields: str,
) -> Answer:
    """One request through a listener; its fields with `_` for `-`."""
    given = {name.replace("_", "-"): value for name, value in fields.items()}
    return await fetch(town.program.port(listener), path, method, given, body)


async def cut(town: Town, path: str, listener: str = "web") -> bool:
    """Whether an answer is cut, or is an error of the proxy's."""
    try:
        return (await ask(town, path, listener=listener)).status >= 500
    except (EOFError, OSError, ClosedWhileIdle):
        return True


def marked(town: Town, name: str) -> list[Seen]:
    """The tries of a request that carries that mark, at whatever origin."""
    return [one for origin in town.origins if isinstance(origin, Origin) for one in origin.marked(name)]


async def tries(town: Town, path: str, method: str = "GET", *, listener: str = "web", **fields: str) -> int:
    """How many tries of one request reach origins."""
    name = mark()
    await ask(town, path, method, listener=listener, x_day=name, **fields)
    await asyncio.sleep(0.02)  # a try that lost may still be on its way
    return len(marked(town, name))


async def spilled(town: Town, count: int = 6) -> bool:
    """Whether some of a few long requests go past the first region."""
    answers = await asyncio.gather(*(ask(town, "/slow/0.2", "POST") for _ in range(count)))
    return any(one.headers.get("x-origin") != "near" for one in answers)


async def raw(town: Town, listener: str, data: bytes, wait_s: float = 5.0) -> bytes:
    """What comes back for these bytes, until the other side closes or `wait_s` is over."""
    client = await H1Client.connect(town.program.port(listener))
    client.writer.write(data)
    got = b""
    try:
        async with asyncio.timeout(wait_s):
            while piece := await client.reader.read(65536):
                got += piece
    except (TimeoutError, ConnectionError):
        pass
    finally:
        client.close()
    return got


def answered(status: int, **request: Any) -> Look:
    """Seen where a request gets that status."""

    async def seen(town: Town) -> bool:
        return (await ask(town, **request)).status == status

    return seen


def from_origin(name: str, **request: Any) -> Look:
    """Seen where a request is answered by that origin."""

    async def seen(town: Town) -> bool:
        answer = await ask(town, **request)
        return answer.status == 200 and answer.headers.get("x-origin") == name

    return seen


def tried(count: int, **request: Any) -> Look:
    """Seen where a request reaches origins so often."""

    async def seen(town: Town) -> bool:
        return await tries(town, **request) == count

    return seen


def is_cut(path: str, listener: str = "web") -> Look:
    """Seen where the answer is cut."""

    async def seen(town: Town) -> bool:
        return await cut(town, path, listener)

    return seen


def within(seconds: float, **request: Any) -> Look:
    """Seen where a request fails, and sooner than that (which is far from what it takes otherwise)."""

    async def seen(town: Town) -> bool:
        began = asyncio.get_running_loop().time()
        answer = await ask(town, **request)
        assert answer.status in (502, 503, 504), answer
        return asyncio.get_running_loop().time() - began < seconds

    return seen


def share(origin: str, least: int, of: int = 60) -> Look:
    """Seen where this many of the next requests are answered by that origin."""

    async def seen(town: Town) -> bool:
        return (await town.traffic.sample(of))[origin] >= least

    return seen
