"""Streams that stay open through an operation: a WebSocket, a gRPC call, a TCP connection. Each echoes what is said."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

WAIT_S = 5.0


class Bytes:
    """A TCP connection through an L4 listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Bytes:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def say(self, text: str) -> None:
        """Send something, and see it come back. AssertionError where it does not."""
        data = text.encode()
        try:
            self.writer.write(data)
            async with asyncio.timeout(WAIT_S):
                back = await self.reader.readexactly(len(data))
        except (OSError, EOFError) as error:
            raise AssertionError(f"{type(self).__name__}, {text}: {error!r}") from None
        assert back == data

    async def close(self) -> None:
        """End it."""
        self.writer.close()


class Socket(Bytes):
    """A WebSocket, once it is open (what is in the frames is nobody's business here)."""

    @classmethod
    async def open(cls, port: int) -> Socket:
        """Connect and upgrade."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /socket HTTP/1.1\r\nhost: town.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with asyncio.timeout(WAIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return cls(reader, writer)


class Chat:
    """A bidirectional gRPC call."""

    def __init__(self, channel: Any, call: Any) -> None:
        self._channel = channel
        self._call = call

    @classmethod
    async def open(cls, port: int) -> Chat:
        """Call."""
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        call = channel.stream_stream("/town.Town/Chat")(timeout=60.0)
        return cls(channel, call)

    async def say(self, text: str) -> None:
        """Send a message, and see it come back. AssertionError where it does not."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._call.write(text.encode())
                back = await self._call.read()
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise AssertionError(f"gRPC, {text}: {error!r}") from None
        assert back == text.encode(), f"gRPC, {text}: {back!r}"

    async def close(self) -> None:
        """End it well."""
        await self._call.done_writing()
        async with asyncio.timeout(WAIT_S):
            assert await self._call.read() is grpc.aio.EOF
            assert await self._call.code() is grpc.StatusCode.OK
        await self._channel.close()
        self._call = None  # it holds the channel's connection
