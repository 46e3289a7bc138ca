"""What every listener is: settings that a reload replaces, a drain that ends with the last connection, what is counted."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from proxy.downstream import base
from proxy.downstream.base import BaseListener, ListenerSettings
from proxy.http.h1 import H1Limits
from proxy.observe.metrics import ListenerCounters, Snapshot

from ...programs import interpreted


class Connection:
    """Notes what it is told; `leaves` when told so."""

    def __init__(self, listener: Any, leaves: str = "") -> None:
        self.listener = listener
        self.leaves = leaves
        self.told: list[str] = []
        listener.connections.add(self)

    def tell(self, what: str) -> None:
        self.told.append(what)
        if what == self.leaves:
            self.listener.left(self)

    def drain(self) -> None:
        self.tell("drain")

    def abort(self) -> None:
        self.tell("abort")


@pytest.fixture
def listener() -> Any:
    interpreted(base)
    nothing: Any = None
    settings = ListenerSettings(H1Limits(), protocol="tcp")
    return BaseListener("edge", settings, turn=nothing, timers=nothing, log=nothing, counters=ListenerCounters())


def test_without_connections_it_is_drained_at_once(listener: Any) -> None:
    listener.drain()
    assert listener.drained.is_set()


def test_it_is_drained_when_the_last_connection_has_left(listener: Any) -> None:
    idle, busy = Connection(listener, leaves="drain"), Connection(listener)
    listener.drain()
    assert (idle.told, busy.told) == (["drain"], ["drain"])
    assert not listener.drained.is_set()
    listener.left(busy)
    assert listener.drained.is_set()


def test_a_connection_that_leaves_before_the_drain_drains_nothing(listener: Any) -> None:
    listener.left(Connection(listener))
    assert not listener.drained.is_set()


def test_an_abort_cuts_and_counts_all_though_they_leave_meanwhile(listener: Any) -> None:
    connections = [Connection(listener, leaves="abort") for _ in range(3)]
    assert listener.abort() == 3
    assert [one.told for one in connections] == [["abort"]] * 3
    assert listener.abort() == 0


def test_a_reload_replaces_the_settings_and_no_connection(listener: Any) -> None:
    connection = Connection(listener)
    listener.adopt(ListenerSettings(H1Limits(), protocol="tcp", connection_limit=7))
    assert listener.settings.connection_limit == 7
    assert connection in listener.connections
    assert connection.told == []


def test_what_all_listeners_count(listener: Any) -> None:
    Connection(listener)
    listener.counters.accepted, listener.counters.refused, listener.counters.tls_failures = 5, 2, 1
    snapshot = Snapshot()
    listener.export(snapshot)
    found = {name: list(series.values()) for name, series in snapshot.values.items()}
    assert found == {
        "connections_open": [1],
        "connections_accepted": [5],
        "connections_refused": [2],
        "tls_handshake_failures": [1],
    }
    assert listener.status() == {"name": "edge", "protocol": "tcp", "connections": 1, "draining": False}


@pytest.mark.parametrize(
    ("address", "trusted"),
    [("", True), ("192.0.2.9", True), ("198.51.100.1", False), ("fe80::1%eth0", True), ("2001:db8::1", False)],
)
def test_whose_claims_count(address: str, trusted: bool) -> None:
    settings = ListenerSettings(H1Limits(), trusted=(ip_network("192.0.2.0/24"), ip_network("fe80::/10")))
    assert settings.trusts(address) is trusted
