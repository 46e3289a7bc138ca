"""Every contender's config for the WAN lab is one that the program itself accepts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from loadtests.compare import CONTENDERS
from loadtests.lab.certificates import make_ca
from loadtests.wan.onetrip import Onetrip
from loadtests.wan.place import Place
from proxy.config import load_config

from ..programs import needs

REGIONS = {"us": ("10.66.1.1", 8443), "eu": ("10.66.2.1", 8443), "ap": ("10.66.3.1", 8443)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    ca = make_ca(tmp_path).certificate
    return Place(21001, 21002, tmp_path, ca, "origin.lab.test", REGIONS)


@pytest.mark.interop
@pytest.mark.parametrize("name", [name for name in CONTENDERS if not name.startswith("onetrip")])
@pytest.mark.parametrize("only", ["", "eu"])
def test_the_peer_accepts_its_config(name: str, only: str, place: Place) -> None:
    needs(name.partition("-")[0])
    contender = CONTENDERS[name]
    if only:
        place = Place(21001, 21002, place.directory, place.ca, place.server_name, {only: REGIONS[only]})
    config = place.directory / contender.config_name
    config.write_text(contender.config(place))
    done = subprocess.run(contender.peer.check(config), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["onetrip", "onetrip-defaults"])
def test_onetrip_is_told_no_order_of_the_regions(name: str, place: Place) -> None:
    contender = CONTENDERS[name]
    path = place.directory / contender.config_name
    path.write_text(contender.config(place))
    upstream = load_config(path).upstreams["api"]
    assert set(upstream.regions) == set(REGIONS)
    assert upstream.routing.policy == "latency"
    assert upstream.tls is not None
    assert upstream.pool.warm == (50 if name == "onetrip" else 2)


def test_the_smallest_variant_sets_nothing_but_addresses_and_trust(place: Place) -> None:
    text = Onetrip("onetrip-defaults", pool="").config(place)
    for key in ("pool", "hedge", "retry", "drain", "health", "timeouts"):
        assert f"{key}:" not in text


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_every_region_is_in_the_config_once_for_each_purpose(name: str, place: Place) -> None:
    text = CONTENDERS[name].config(place)
    for host, _ in REGIONS.values():
        assert host in text
    assert str(place.port) in text


@pytest.mark.parametrize("name", ["envoy", "haproxy", "nginx"])
def test_the_peers_prefer_the_nearest_region(name: str, place: Place) -> None:
    text = CONTENDERS[name].config(place)
    positions = [text.index(host) for host, _ in REGIONS.values()]
    assert positions == sorted(positions)


def test_a_post_is_never_sent_twice_by_config(place: Place) -> None:
    nginx = CONTENDERS["nginx"].config(place)
    assert "non_idempotent" not in [word for line in nginx.splitlines() for word in line.partition("#")[0].split()]
    haproxy = CONTENDERS["haproxy"].config(place)
    unsafe = haproxy[haproxy.index("backend unsafe") :]
    assert "retry-on conn-failure\n" in unsafe
    envoy = CONTENDERS["envoy"].config(place)
    posts = envoy[envoy.index("POSTs") :]
    assert 'retry_on: "connect-failure,refused-stream"' in posts
