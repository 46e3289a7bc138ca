"""With how many workers each scenario is played: with one or with two, in turn; with both where DAY=full."""

from __future__ import annotations

import os

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `workers` to the scenarios that ask for it (the key matrix has its own turns)."""
    given = any("workers" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if given or "workers" not in metafunc.fixturenames:
        return
    scenarios = [name for name in vars(metafunc.module) if name.startswith("test_")]
    turn = 1 + scenarios.index(metafunc.function.__name__) % 2
    metafunc.parametrize("workers", [1, 2] if os.environ.get("DAY") == "full" else [turn])
