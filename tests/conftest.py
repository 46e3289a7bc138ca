from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from .programs import needs, summary

ON_UVLOOP = ("test_reactor.py", "test_relay.py", "test_sockpool.py", "test_tunnel.py", "test_admin.py")


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """What watches descriptors beside the loop is tested on the loop that it runs on."""
    if item.path.name in ON_UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.root` needs network namespaces, `@pytest.mark.needs("nginx", …)` those programs."""
    if item.get_closest_marker("root") is not None:
        needs("network namespaces")
    for marker in item.iter_markers("needs"):
        needs(*marker.args)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests were skipped, for want of what, and how to get it."""
    reports = terminalreporter.stats.get("skipped", ())
    line = summary(report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    if line:
        terminalreporter.section("missing", yellow=True)
        terminalreporter.write_line(line, yellow=True)
