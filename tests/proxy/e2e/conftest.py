from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from .harness import Client, Origin, Proxy, config


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_origin() -> AsyncIterator[Origin]:
    origin = Origin()
    yield origin
    await origin.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_proxy(shared_origin: Origin) -> AsyncIterator[Proxy]:
    proxy = await Proxy(config(shared_origin.port)).start()
    yield proxy
    await proxy.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def origin(shared_origin: Origin) -> Origin:
    shared_origin.clear()
    return shared_origin


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(shared_proxy: Proxy, origin: Origin) -> AsyncIterator[Proxy]:
    """The module's proxy; after the test nothing of it may be left."""
    yield shared_proxy
    await shared_proxy.end_test()
    assert origin.violations == []


@pytest_asyncio.fixture(loop_scope="module")
async def client(proxy: Proxy) -> Client:
    return await proxy.connect()


@pytest_asyncio.fixture(loop_scope="module")
async def start() -> AsyncIterator[Callable[[str], Awaitable[Proxy]]]:
    """A proxy of the test's own: `await start(config(...))`."""
    started: list[Proxy] = []

    async def make(text: str) -> Proxy:
        proxy = await Proxy(text).start()
        started.append(proxy)
        return proxy

    yield make
    for proxy in started:
        await proxy.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def own_origin() -> AsyncIterator[Origin]:
    """An origin of the test's own."""
    origin = Origin()
    yield origin
    await origin.close()
