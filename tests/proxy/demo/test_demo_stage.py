"""The config that the demo writes, and what it reads of the proxy's metrics."""

from __future__ import annotations

import pytest

from loadtests.lab.certificates import make_ca
from proxy.config import check_config, load_config
from proxy.demo.scenario import FAST, FULL, REGIONS
from proxy.demo.stage import CONFIG_NAME, UPSTREAM, config_text, directory, totals

ENDPOINTS = {name: f"127.66.{number}.1:8443" for number, name in enumerate(REGIONS, 1)}


@pytest.mark.parametrize("script", [FULL, FAST])
def test_the_config_is_valid_and_says_what_the_script_wants(tmp_path, script):
    (tmp_path / "lab-ca.pem").write_bytes(make_ca(tmp_path).certificate.read_bytes())
    path = tmp_path / CONFIG_NAME
    path.write_text(config_text(script, "127.0.0.1:8080", f"unix:{tmp_path}/admin.sock", ENDPOINTS))
    assert list(check_config(str(path))) == []
    upstream = load_config(str(path)).upstreams[UPSTREAM]
    assert list(upstream.regions) == list(REGIONS)
    assert upstream.pool.warm == script.warm
    assert (upstream.drain.hold, upstream.drain.ramp) == (script.hold_s, script.ramp_s)


def test_the_config_leaves_hedging_retries_routing_and_timeouts_at_their_defaults():
    text = config_text(FULL, "127.0.0.1:1", "unix:/x", ENDPOINTS)
    assert not any(word in text for word in ("hedge:", "retry:", "routing:", "timeouts:"))


def test_totals_sum_over_labels():
    exposition = (
        "# TYPE onetrip_hedges_total counter\n"
        'onetrip_hedges_total{upstream="a",result="won"} 2\n'
        'onetrip_hedges_total{upstream="b",result="won"} 3\n'
        'onetrip_hedges_total{upstream="b",result="lost"} 1\n'
        "# TYPE onetrip_region_weight gauge\n"
        'onetrip_region_weight{region="us"} 1\n'
    )
    assert totals(exposition) == {
        "onetrip_hedges_total": 6.0,
        "onetrip_hedges_total/won": 5.0,
        "onetrip_hedges_total/lost": 1.0,
    }


@pytest.mark.parametrize("keep", [True, False])
async def test_the_directory_stays_only_where_that_was_asked_for(keep, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with directory(keep) as path:
        (path / "proxy.log").write_text("x")
    assert path.exists() is keep
