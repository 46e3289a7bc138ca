"""Counters, snapshots that add up, and the Prometheus text."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.metrics import (
    AS_IS,
    BUCKETS_S,
    FAMILIES,
    HANDSHAKES,
    Histogram,
    ListenerCounters,
    PoolCounters,
    Snapshot,
    UpstreamCounters,
)

CONTRACT = """
requests_total request_duration_seconds upstream_request_duration_seconds requests_in_flight connections_open
upstream_connections_opened_total upstream_connections_reused_total upstream_handshake_seconds upstream_pool_idle
tls_sessions_stored tls_sessions_total hedges_total retries_total region_weight region_latency_seconds region_state
region_drains_total endpoint_ejected config_reloads_total build_info
"""


def samples(snapshot: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads."""
    found = {}
    for family in text_string_to_metric_families(snapshot.render().decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} stands twice"
            found[key] = sample.value
    return found


def test_every_metric_of_the_contract_is_announced() -> None:
    text = Snapshot().render().decode()
    announced = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert {f"onetrip_{name}" for name in CONTRACT.split()} <= announced
    for name in announced:
        assert re.search(rf"^# HELP {name} \S", text, re.MULTILINE), f"{name} has no help"


def test_counters_gauges_and_labels() -> None:
    snapshot = Snapshot()
    snapshot.add("requests", 3, listener="web", code="200")
    snapshot.add("requests", 2, listener="web", code="200")
    snapshot.add("requests", 1, listener="api", code="502")
    snapshot.add("requests_in_flight", 4, listener="web")
    found = samples(snapshot)
    assert found["onetrip_requests_total", (("code", "200"), ("listener", "web"))] == 5
    assert found["onetrip_requests_total", (("code", "502"), ("listener", "api"))] == 1
    assert found["onetrip_requests_in_flight", (("listener", "web"),)] == 4


def test_series_of_one_metric_may_have_different_labels() -> None:
    snapshot = Snapshot()
    snapshot.add("connections_open", 5, side="downstream", listener="web")
    snapshot.add("connections_open", 7, side="upstream", upstream="app")
    found = samples(snapshot)
    assert sorted(found.values()) == [5, 7]
    downstream = next(dict(labels) for (_, labels), value in found.items() if value == 5)
    assert downstream["side"] == "downstream"
    assert downstream.get("upstream", "") == ""


@pytest.mark.parametrize("name", ['quote"', "back\\slash", "line\nfeed", "ünïcode"])
def test_any_name_survives(name: str) -> None:
    snapshot = Snapshot()
    snapshot.add("hedges", 1, upstream=name, result="won")
    assert samples(snapshot)["onetrip_hedges_total", (("result", "won"), ("upstream", name))] == 1


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 0.3, 10.0, 11.0):
        histogram.observe(seconds)
    snapshot = Snapshot()
    snapshot.add_histogram("request_duration_seconds", histogram, listener="web")
    found = samples(snapshot)

    def bucket(bound: str) -> float:
        return found["onetrip_request_duration_seconds_bucket", (("le", bound), ("listener", "web"))]

    assert bucket("0.001") == 2
    assert bucket("0.0025") == 3
    assert bucket("0.3") == 4
    assert bucket("5.0") == 4
    assert bucket("10.0") == 5
    assert bucket("+Inf") == 6
    assert found["onetrip_request_duration_seconds_count", (("listener", "web"),)] == 6
    assert found["onetrip_request_duration_seconds_sum", (("listener", "web"),)] == pytest.approx(21.3021)


@given(st.lists(st.floats(0, 100)))
def test_every_duration_is_in_its_bucket(durations: list[float]) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.observe(seconds)
    for index, bound in enumerate(BUCKETS_S):
        assert sum(histogram.counts[: index + 1]) == sum(seconds <= bound for seconds in durations)
    assert sum(histogram.counts) == len(durations)


def one_worker(weight: float = 0.5) -> Snapshot:
    snapshot = Snapshot()
    snapshot.add("requests", 3, listener="web", code="200")
    snapshot.add("region_state", 2, upstream="app", region="us")
    snapshot.add("region_weight", weight, upstream="app", region="us")
    histogram = Histogram()
    histogram.observe(0.02)
    snapshot.add_histogram("request_duration_seconds", histogram, listener="web")
    return snapshot


def test_workers_add_up_and_states_stand_for_all() -> None:
    total = Snapshot()
    for weight in (0.25, 0.75):
        total.merge(Snapshot.from_json(json.loads(json.dumps(one_worker(weight).to_json()))))
    total.add("worker_restarts", 1)
    found = samples(total)
    assert found["onetrip_requests_total", (("code", "200"), ("listener", "web"))] == 6
    assert found["onetrip_region_state", (("region", "us"), ("upstream", "app"))] == 2
    assert found["onetrip_region_weight", (("region", "us"), ("upstream", "app"))] == 0.75
    assert found["onetrip_request_duration_seconds_count", (("listener", "web"),)] == 2
    assert found["onetrip_worker_restarts_total", ()] == 1


def test_merging_leaves_the_parts_as_they_were() -> None:
    part = one_worker()
    total = Snapshot()
    total.merge(part)
    total.merge(part)
    assert part.to_json() == one_worker().to_json()


def test_gauges_that_do_not_add_up_are_known() -> None:
    assert set(FAMILIES) >= AS_IS
    assert all(FAMILIES[name][0] == "gauge" for name in AS_IS)


def test_json_and_back() -> None:
    snapshot = one_worker()
    back = Snapshot.from_json(json.loads(json.dumps(snapshot.to_json())))
    assert back.render() == snapshot.render()


def test_what_is_counted_where() -> None:
    upstream = UpstreamCounters(["us", "eu"])
    upstream.retry("refused", "won")
    upstream.retry("refused", "won")
    upstream.retry("timeout", "denied")
    assert upstream.retries == {("refused", "won"): 2, ("timeout", "denied"): 1}
    assert set(upstream.latency) == {"us", "eu"}
    pool = PoolCounters()
    assert tuple(pool.opened) == HANDSHAKES
    pool.observe_phases((0.001, 0.02, 0.3))
    assert (sum(pool.dns.counts), sum(pool.tcp.counts), sum(pool.tls.counts)) == (1, 1, 1)
    assert (pool.dns.total, pool.tcp.total, pool.tls.total) == (0.001, 0.02, 0.3)
    assert ListenerCounters().codes == {}
