"""How an upstream is reached after a reload: by the files that are there then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtests.lab.certificates import issue, make_ca
from proxy.config.sections import UpstreamSection
from proxy.upstream.reach import Reach
from tlscache.certificates import ContextError


def _section(directory: Path) -> UpstreamSection:
    ca = make_ca(directory)
    for name in ("one", "two"):
        issue(ca, names=[name], key="ecdsa", file_name=name)
    _present(directory, "one", "one")
    tls = {"ca": str(ca.certificate), "certificate": str(directory / "me.pem"), "key": str(directory / "me.key")}
    return UpstreamSection.model_validate({"regions": {"a": {"endpoints": ("192.0.2.1:443",)}}, "tls": tls})


def _present(directory: Path, certificate: str, key: str) -> None:
    (directory / "me.pem").write_bytes((directory / f"{certificate}.pem").read_bytes())
    (directory / "me.key").write_bytes((directory / f"{key}.key").read_bytes())


def test_files_that_are_the_same_are_not_read_again(tmp_path: Path) -> None:
    section, nobody = _section(tmp_path), Any
    before = Reach(section, nobody, nobody)
    assert before.is_current
    assert Reach(section, nobody, nobody, before).tls is before.tls


def test_files_that_changed_are_read_at_once(tmp_path: Path) -> None:
    """Nobody waits for the next look at them; what is open goes on with what it has."""
    section, nobody = _section(tmp_path), Any
    before = Reach(section, nobody, nobody)
    _present(tmp_path, "two", "two")
    assert not before.is_current
    after = Reach(section, nobody, nobody, before)
    assert after.tls is not before.tls
    assert after.is_current
    assert after.identity == before.identity


def test_files_that_broke_refuse_the_reload(tmp_path: Path) -> None:
    section, nobody = _section(tmp_path), Any
    before = Reach(section, nobody, nobody)
    _present(tmp_path, "two", "one")
    with pytest.raises(ContextError, match="does not belong"):
        Reach(section, nobody, nobody, before)
