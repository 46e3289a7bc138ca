"""Listeners of either kind, as a worker has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

from proxy.downstream.listener import Listener
from proxy.l4.listener import TunnelListener

if TYPE_CHECKING:
    from proxy.exchange.service import Service

AnyListener: TypeAlias = Listener | TunnelListener


def leads_of(listener: AnyListener) -> Service | TunnelListener:
    """Where a listener's clients go: who holds its routes, their upstreams and the access log."""
    return cast("Service", listener.service) if isinstance(listener, Listener) else listener
