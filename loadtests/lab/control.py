"""The lab's processes and the JSON lines that are spoken with them over a socket pair.

Every child ends when its end of the pair closes: however the lab's own process dies, nothing of it stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

Message: TypeAlias = dict[str, Any]
_ROOT: Final = Path(__file__).resolve().parents[2]
_END_WITHIN_S: Final = 2.0
_LINE_BYTES_MAX: Final = 1 << 20


class LabError(Exception):
    """A part of the lab could not do what it was asked for."""


class Child:
    """A process of the lab. `hello` is the first message that it sent: its addresses and the like."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._name = name
        self._process = process
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._last_id = 0
        self._receiving: asyncio.Task[None] | None = None
        self.hello: Message = {}

    def __repr__(self) -> str:
        return f"<Child {self._name} pid {self._process.pid}, {len(self._waiting)} waiting>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    async def start(
        cls, module: str, config: Mapping[str, Any], *, prefix: Sequence[str] = (), descriptors: Iterable[int] = ()
    ) -> Child:
        """Run `loadtests.lab.<module>` with `config` (JSON) as its argument and wait for its hello.

        Raises LabError with the reason.
        """
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        }
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *prefix,
                *(sys.executable, "-m", f"loadtests.lab.{module}", json.dumps({**config, "control": theirs.fileno()})),
                pass_fds=(theirs.fileno(), *descriptors),
                env=environment,
                start_new_session=True,  # the terminal's ^C is for the lab, which then ends its children in order
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES_MAX)
        child = cls(module, process, reader, writer)
        line = await reader.readline()
        child.hello = json.loads(line) if line else {"error": f"exited with {await process.wait()}"}
        if "error" in child.hello:
            await child.close()
            raise LabError(f"{module}: {child.hello['error']}")
        child._receiving = asyncio.create_task(child._receive(), name=f"lab {module}")
        return child

    def request(self, op: str, **values: Any) -> asyncio.Future[Message]:
        """Send a command now. The future is its answer; it need not be awaited. Fails with LabError."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        if self._writer.is_closing() or (self._receiving is not None and self._receiving.done()):
            future.set_exception(LabError(f"{self._name} has ended"))
            return future
        self._last_id += 1
        self._waiting[self._last_id] = future
        self._writer.write(json.dumps({**values, "op": op, "id": self._last_id}).encode() + b"\n")
        return future

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def close(self) -> None:
        """End it and wait until it has ended."""
        self._writer.close()
        self.signal(signal.SIGCONT)  # a frozen process can't see its socket close
        try:
            async with asyncio.timeout(_END_WITHIN_S):
                await self._process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()
        if self._receiving is not None:
            await self._receiving

    async def kill(self) -> None:
        """End it as `kill -9` does and wait until it has ended."""
        self.signal(signal.SIGKILL)
        await self.close()

    async def _receive(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                message = json.loads(line)
                future = self._waiting.pop(message["id"], None)
                if future is None or future.done():
                    continue
                if "error" in message:
                    future.set_exception(LabError(f"{self._name}: {message['error']}"))
                else:
                    future.set_result(message)
        for future in self._waiting.values():
            if not future.done():
                future.cancel()
        self._waiting.clear()


Handler: TypeAlias = Callable[[str, Message], Coroutine[Any, Any, Message]]


async def answer(control: socket.socket, hello: Message, handler: Handler) -> None:
    """The child's side: send `hello`, then answer commands with `handler(op, message)` until the lab closes the pair.

    A ValueError, LookupError, TypeError or OSError of the handler goes back as an error.
    """
    reader, writer = await asyncio.open_connection(sock=control, limit=_LINE_BYTES_MAX)
    writer.write(json.dumps(hello).encode() + b"\n")
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            message = json.loads(line)
            try:
                result = await handler(message["op"], message)
            except (ValueError, LookupError, TypeError, OSError) as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps({**result, "id": message["id"]}).encode() + b"\n")
    writer.close()
