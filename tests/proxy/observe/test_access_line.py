"""Lines of the access log for what clients send: whatever that is, it fills values and never adds a field."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import ProxyError
from proxy.exchange.forward import rewrite
from proxy.http.h1 import H1Limits
from proxy.http.h1.request import parse_request as parse_h1
from proxy.http.h2.heads import copy_request
from proxy.http.h2.heads import parse_request as parse_h2
from proxy.http.message import RequestHead
from proxy.http.serving import Hop
from proxy.observe import access_line as module
from proxy.observe.access_line import access_line, access_record
from proxy.observe.access_log import AccessLog, AccessRecord
from proxy.observe.record import RequestRecord, TryRecord
from routing.balancer import Balancer
from routing.model import Endpoint, Region, Upstream

KEYS = list(AccessRecord.__struct_fields__)
HOPS = [Hop(b"203.0.113.9", b"http", b"onetrip", trusted) for trusted in (False, True)]
TRACE = b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INJECTION = b'","status":200,"x":"'


LISTENER, TIMESTAMP = 'we"b', AccessLog("").timestamp(1.5)


def finished(head: RequestHead, hop: Hop, *, ids: tuple[bytes, bytes], path: bytes | None = None) -> RequestRecord:
    """The record of a finished request."""
    model = Upstream("app", (Region('r "1"', (Endpoint("10.0.0.1", 80),)),))
    target = Balancer(model, random.Random(1), 0.0).endpoints[0]
    start = msgspec.json.encode({"listener": LISTENER, "client": hop.peer.decode("latin-1")})[1:-1]
    record = RequestRecord(hop.peer.decode("latin-1"), start, 1.0)
    record.head = head
    record.path = head.target if path is None else path
    record.request_id, record.traceparent = ids
    record.first_byte_at = 1.25
    record.status, record.bytes_in, record.bytes_out = 200, 1, 2
    record.upstream = "app"
    record.winner = TryRecord(target, 1.0)
    record.winner.log_target = b'"upstream":"app","region":"r \\"1\\"","endpoint":"10.0.0.1:80"'
    record.winner.connected_at = 1.0
    record.tries = [record.winner]
    return record


def line(record: RequestRecord) -> bytes:
    return access_line(record, LISTENER, TIMESTAMP, 1.5)


def line_of(head: RequestHead, hop: Hop) -> dict[str, Any] | None:
    """The line of a request that was answered; None where it was refused as a loop."""
    path = head.target
    ids = rewrite(head, hop)
    if isinstance(ids, ProxyError):
        return None
    done = finished(head, hop, ids=ids, path=path)
    written = line(done)
    assert written.endswith(b"\n")
    assert written.count(b"\n") == 1
    pairs = json.loads(written, object_pairs_hook=list)
    assert [key for key, _ in pairs] == KEYS
    found = dict(pairs)
    record = access_record(done, LISTENER, TIMESTAMP, 1.5)
    assert found == msgspec.to_builtins(record), "the fast way and the general one differ"
    return found


octet = st.integers(0, 255).map(lambda number: bytes((number,)))
spiced = st.one_of(
    st.sampled_from([b'"', b"\\", INJECTION, b"\\u0000", b"\x7f", b"\xff", b"\xe2\x80\xa8", b"\t", b"{", b"}", b"a", b"-"]),
    octet,
)  # fmt: skip
text = st.lists(spiced, max_size=8).map(b"".join)
names = st.sampled_from(
    [b"x-request-id", b"traceparent", b"tracestate", b"user-agent", b"referer", b"via", b"x-forwarded-for"]
)
values = st.one_of(
    text,
    st.tuples(st.sampled_from([b"00-", b"01-", b"cc-"]), st.just(TRACE), st.sampled_from([b"", b"-"]), text).map(b"".join),
)  # fmt: skip
fields = st.lists(st.tuples(names, values.map(lambda value: value.strip(b" \t"))), max_size=6)


@given(st.one_of(st.just(b"GET"), text), text, st.one_of(st.just(b"a.test"), text), fields, st.sampled_from(HOPS))
@example(b"GET", b"", b"a.test", [(b"traceparent", b"01-" + TRACE + b"-" + INJECTION)], HOPS[0])
@example(b"GET", b"", b"a.test", [(b"x-request-id", INJECTION)], HOPS[0])
@example(b"GET", INJECTION, b"a.test", [(b"user-agent", INJECTION)], HOPS[1])
def test_whatever_a_client_sends_its_line_has_exactly_the_fields(
    method: bytes, path: bytes, host: bytes, lines: list[tuple[bytes, bytes]], hop: Hop
) -> None:
    wire = b"%b /%b HTTP/1.1\r\nhost: %b\r\n" % (method, path, host)
    try:
        one, _ = parse_h1(wire + b"\r\n".join(b": ".join(field) for field in lines), H1Limits())
    except (ProxyError, ValueError):
        pass  # refused, and logged the general way
    else:
        line_of(one, hop)
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":authority", host), (b":path", b"/" + path)]
    two = parse_h2([*pseudo, *lines])
    if isinstance(two, RequestHead):
        line_of(copy_request(two), hop)


def test_a_traceparent_writes_no_fields() -> None:
    value = b"01-" + TRACE + b'-","status":299,"region":"moon'
    head = RequestHead(b"GET", b"/", b"a.test", [(b"traceparent", value)], {b"traceparent": value})
    found = line_of(head, HOPS[0])
    assert found is not None
    assert found["status"] == 200
    assert found["traceparent"].startswith("00-")


@pytest.mark.parametrize("name", ["method", "authority", "path", "request_id", "traceparent"])
@pytest.mark.parametrize("bad", [b'"', b"\\", b"\n", b"\x00", b"\x7f", b"\xff"])
def test_each_value_of_the_fast_way_is_looked_at(name: str, bad: bytes) -> None:
    """Other parts refuse most of these octets; the line does not rely on it."""
    value = b"a" + bad + INJECTION
    head = RequestHead(b"GET", b"/", b"a.test", [], {})
    done = finished(head, HOPS[0], ids=(b"i", b"t"))
    owner = head if name in ("method", "authority") else done
    setattr(owner, name, value)
    found = json.loads(line(done))
    key = {"authority": "host"}.get(name, name)
    assert list(found) == KEYS
    assert found[key] == value.decode("latin-1")


def test_remembered_user_agents_are_bounded_and_let_go() -> None:
    module._agents.clear()
    for number in range(5000):
        agent = b"agent %d " % number + b"x" * (number % 2 * 60_000)
        head = RequestHead(b"GET", b"/", b"a.test", [], {b"user-agent": agent})
        assert json.loads(line(finished(head, HOPS[0], ids=(b"i", b"t"))))["user_agent"] == agent.decode()
    assert len(module._agents) <= 1024
    assert sum(map(len, module._agents)) <= 1024 * 256
    assert b"agent 4998 " in module._agents, "the newest is learnt although others were there first"
