"""A config read in a child process is the same, and so are its faults."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from proxy.config import ConfigError, effective_yaml, load_config
from proxy.config.aside import effective_yaml_aside, load_config_aside

SMALL = """
listeners: [{name: a, address: 127.0.0.1:8080, upstream: u}]
upstreams: {u: {regions: {r: {endpoints: ['127.0.0.1:1']}}}}
"""


def test_the_config_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "onetrip.yaml"
    path.write_text(SMALL + "admin: {token: env:HOME}\n")
    config = asyncio.run(load_config_aside(str(path)))
    assert config == load_config(path)
    assert config.routes("a") == load_config(path).routes("a")
    assert asyncio.run(effective_yaml_aside(config)) == effective_yaml(config)


@pytest.mark.parametrize("text", ["", "listeners: 3", SMALL.replace("upstream: u}", "upstream: v, addres: 3}"), "\t{"])
def test_the_faults_are_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "onetrip.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as here:
        load_config(path)
    with pytest.raises(ConfigError) as there:
        asyncio.run(load_config_aside(str(path)))
    assert there.value.faults == here.value.faults
    assert here.value.faults


def test_a_file_that_never_ends_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "onetrip.yaml"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"1:1: reading the config failed: it took more than"):
        asyncio.run(load_config_aside(str(path), 0.2))
