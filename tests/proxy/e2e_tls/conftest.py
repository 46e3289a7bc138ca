from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from tests.proxy.e2e.harness import Proxy

from .tls_harness import Files, TlsClient, TlsOrigin


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.make(tmp_path_factory.mktemp("e2e-tls"))


@pytest.fixture
def ca(files: Files) -> Path:
    return files.ca.certificate


@pytest_asyncio.fixture
async def origin(files: Files) -> AsyncIterator[TlsOrigin]:
    origin = await TlsOrigin(files).start()
    yield origin
    origin.close()


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Callable[[str], Awaitable[Proxy]]]:
    """A proxy of the test's own: `await start(config)`."""
    started: list[Proxy] = []

    async def make(text: str) -> Proxy:
        proxy = await Proxy(text).start()
        started.append(proxy)
        return proxy

    yield make
    for proxy in started:
        await proxy.stop()


@pytest.fixture
def dial(files: Files) -> Any:
    """A TLS client: `await dial(port, session=..., early=...)`."""
    clients: list[TlsClient] = []

    async def make(port: int, early: bytes = b"", **arguments: Any) -> TlsClient:
        client = TlsClient(files, port, **arguments)
        clients.append(client)
        return await client.connect(early)

    yield make
    for client in clients:
        client.close()
