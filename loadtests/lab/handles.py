"""What `Lab` hands out to change it: a path, and the origins of a region."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from signal import SIGCONT, SIGSTOP
from typing import Any

from .behaviour import Behaviour
from .control import Child, Message
from .path import PathSettings
from .wan import Wan


class Path:
    """One or both directions between two places."""

    def __init__(self, wan: Wan, pairs: list[tuple[int, int]]) -> None:
        self._wan = wan
        self._pairs = pairs

    def set(self, **values: float | bool) -> asyncio.Future[list[Message]]:
        """Change `PathSettings` while packets fly: `delay_ms` one way (or `rtt_ms`), `loss`, `blackhole` and the like.

        It is sent at once; await the result to know that it is in force. Raises ValueError for what makes no sense,
        and for what this kind of WAN can't imitate.
        """
        PathSettings().changed(**values)
        return asyncio.gather(*(self._wan.set_path(source, target, values) for source, target in self._pairs))


class Origin:
    """The endpoints that one call of `Lab.origin` started, numbered from 0."""

    def __init__(self, wan: Wan, number: int, configs: Sequence[dict[str, Any]], behaviour: Behaviour) -> None:
        self._wan = wan
        self._number = number
        self._configs = configs
        self._children: list[Child] = []
        self._behaviours = [behaviour for _ in configs]
        self._counted = [Counter[str]() for _ in configs]  # what endpoints last told
        self._before_restart = [Counter[str]() for _ in configs]
        self._frozen: set[int] = set()
        self.region: str = configs[0]["region"]
        self.tls: bool = configs[0]["tls"]

    def __repr__(self) -> str:
        return f"<Origin {self.region}, {len(self._configs)} endpoints>"

    @property
    def bound(self) -> list[tuple[str, int]]:
        """On what each endpoint listens in its region."""
        return [
            (config["host"], child.hello["port"]) for config, child in zip(self._configs, self._children, strict=True)
        ]

    @property
    def pids(self) -> list[int]:
        """The process of each endpoint."""
        return [child.pid for child in self._children]

    async def start(self) -> list[tuple[str, int]]:
        """Start the processes; where home dials each."""
        starts = [asyncio.create_task(self._start(which)) for which in range(len(self._configs))]
        results = await asyncio.gather(*starts, return_exceptions=True)
        self._children = [child for child in results if isinstance(child, Child)]
        for result in results:
            if isinstance(result, BaseException):
                await self.close()
                raise result
        return [await self._publish(which) for which in range(len(self._children))]

    async def set(self, *, endpoint: int | None = None, **values: Any) -> None:
        """Change `Behaviour` settings of all endpoints, or of one, for requests that arrive from now on.

        Raises ValueError for what makes no sense.
        """
        for which in self._chosen(endpoint):
            before, behaviour = self._behaviours[which], self._behaviours[which].changed(**values)
            self._behaviours[which] = behaviour
            await self._children[which].request("set", values=values)
            if behaviour.refuse != before.refuse:
                await self._wan.listening(self._number, self._configs[which]["endpoint"], not behaviour.refuse)

    async def counters(self, *, endpoint: int | None = None) -> dict[str, float]:
        """Counters since the start, over restarts too, summed over endpoints. Of a frozen one: what it last told."""
        total: Counter[str] = Counter()
        for which in self._chosen(endpoint):
            if which not in self._frozen:
                self._counted[which] = Counter((await self._children[which].request("counters"))["counters"])
            total.update(self._counted[which])
            total.update(self._before_restart[which])
        return dict(total)

    async def drop_connections(self, *, endpoint: int | None = None) -> int:
        """Close every open connection with a RST; says how many."""
        dropped: int = 0
        for which in self._chosen(endpoint):
            dropped += (await self._children[which].request("drop"))["dropped"]
        return dropped

    def freeze(self, *, endpoint: int | None = None) -> None:
        """Stop the process (SIGSTOP): its kernel still accepts and acknowledges, and nothing else happens.

        Until `thaw`, `set` and `drop_connections` do not come back.
        """
        for which in self._chosen(endpoint):
            self._children[which].signal(SIGSTOP)
            self._frozen.add(which)

    def thaw(self, *, endpoint: int | None = None) -> None:
        """Let a frozen process go on."""
        for which in self._chosen(endpoint):
            self._children[which].signal(SIGCONT)
            self._frozen.discard(which)

    async def restart(self, *, endpoint: int | None = None, down_s: float = 0.0) -> None:
        """Kill it (as `kill -9` does) and start it anew, after `down_s` seconds during which dials are refused.

        Its kernel closes the connections; its TLS tickets become worthless. Behaviour, address and counters stay.
        """
        chosen = self._chosen(endpoint)
        for which in chosen:
            await self.counters(endpoint=which)
            self._counted[which]["connections_open"] = 0
            self._before_restart[which].update(self._counted[which])
            self._counted[which].clear()
            self._frozen.discard(which)
            await self._children[which].kill()
            await self._wan.listening(self._number, self._configs[which]["endpoint"], False)
        await asyncio.sleep(down_s)
        for which in chosen:
            self._children[which] = await self._start(which)
            await self._publish(which)

    async def close(self) -> None:
        """End the processes."""
        await asyncio.gather(*(child.close() for child in self._children))

    async def _start(self, which: int) -> Child:
        config = {**self._configs[which], "behaviour": self._behaviours[which].values()}
        return await Child.start("origin", config, prefix=self._wan.command_prefix(self._number))

    async def _publish(self, which: int) -> tuple[str, int]:
        config, refuse = self._configs[which], self._behaviours[which].refuse
        bound = (config["host"], self._children[which].hello["port"])
        address = await self._wan.publish(self._number, config["endpoint"], bound)
        await self._wan.listening(self._number, config["endpoint"], not refuse)
        return address

    def _chosen(self, endpoint: int | None) -> list[int]:
        return list(range(len(self._children))) if endpoint is None else [endpoint]
