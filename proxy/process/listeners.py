"""Listeners of either kind, as a worker has them: how a section of the config becomes one, and where its clients go.

It owns none of them (`worker`, `leaving`), and opens no socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from proxy.downstream.base import ListenerSettings
from proxy.downstream.listener import Listener
from proxy.exchange.exchange import Exchanges
from proxy.l4.listener import TunnelListener

from .inheritance import INSTANCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.config import Config, ListenerSection
    from proxy.exchange.service import Service
    from proxy.loop.loop import Loop
    from proxy.observe.access_log import AccessLog
    from tlscache.context import ServerContext

AnyListener: TypeAlias = Listener | TunnelListener


def settings_of(config: Config, section: ListenerSection, contexts: Mapping[str, ServerContext]) -> ListenerSettings:
    """What the config says of one listener. `contexts`: of those with TLS, by name."""
    return ListenerSettings.of(config, section, contexts, INSTANCE)


def new_listener(name: str, settings: ListenerSettings, *, loop: Loop, log: Any, access_log: AccessLog) -> AnyListener:
    """One that has no routes yet, and no socket."""
    if settings.protocol != "http":
        return TunnelListener(name, settings, loop=loop, log=log, access_log=access_log)
    service = Exchanges(name, loop.timers, access_log)
    return Listener(
        name, settings, turn=loop.turn, timers=loop.timers, log=log, service=service, counters=service.counters
    )


def leads_of(listener: AnyListener) -> Service | TunnelListener:
    """Where a listener's clients go: who holds its routes, their upstreams and the access log."""
    return cast("Service", listener.service) if isinstance(listener, Listener) else listener
