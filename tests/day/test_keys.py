"""Every key of the config, changed by a reload under 100 requests/s: it takes effect, goes back, and costs nobody a
request.

The table is in `keys_upstream`, `keys_program` and `keys_tls`; a key of the model that stands in none of them fails
here. Rows share a running program, which is checked after each of them, and replaced after one that failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .keys import Row
from .keys_program import ELSEWHERE, LISTENERS, PROGRAM, TOGETHER
from .keys_tls import L4, TLS
from .keys_upstream import ROUTES, UPSTREAM
from .ports import free_port
from .program import ROOT, AdminFault, until
from .stages import STAGES
from .town import Town, set_at

ROWS = [*UPSTREAM, *ROUTES, *LISTENERS, *PROGRAM, *TLS, *L4]
EFFECT_S = 15.0


class Stages:
    """A running town for a (stage, workers), made when it is first asked for, and the loop that it lives on."""

    def __init__(self, directory: Path, runner: asyncio.Runner) -> None:
        self.runner = runner
        self._directory = directory
        self._towns: dict[tuple[str, int], Town] = {}
        self._made = 0
        self.late: list[str] = []

    async def town(self, stage: str, workers: int) -> Town:
        """The town of that stage."""
        town = self._towns.get((stage, workers))
        if town is None:
            await self.close()  # one at a time: they would share two cores
            self._made += 1
            town = STAGES[stage](self._directory / str(self._made), workers)
            await town.__aenter__()
            self._towns[stage, workers] = town
        return town

    async def discard(self) -> None:
        """After a failure the next row gets a new one."""
        for town in self._towns.values():
            await town.close()
        self._towns.clear()

    async def close(self) -> None:
        """End what runs, with its last check."""
        towns = list(self._towns.values())
        self._towns.clear()
        for town in towns:
            try:
                await town.__aexit__(None)
            except AssertionError as error:
                self.late.append(str(error))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with asyncio.Runner() as runner:
        held = Stages(tmp_path_factory.mktemp("keys"), runner)
        yield held
        runner.run(held.close())
    assert not held.late, held.late


def leaves(schema: dict[str, Any], node: dict[str, Any], path: str) -> Iterator[str]:
    """The keys of a JSON Schema, as the reference names them: those that hold a value, not sections."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    inner = [one for one in node.get("anyOf", ()) if one.get("type") != "null" and "enum" not in one]
    sections = [one for one in inner if "$ref" in one or "properties" in one]
    if sections:
        yield from leaves(schema, sections[0], path)
    elif node.get("properties"):
        for name, value in node["properties"].items():
            yield from leaves(schema, value, f"{path}.{name}" if path else name)
    elif isinstance(node.get("items"), dict) and "$ref" in node["items"]:
        yield from leaves(schema, node["items"], f"{path}[]")
    elif isinstance(values := _values(node), dict) and "$ref" in values:
        yield from leaves(schema, values, f"{path}.*")
    elif inner and len(inner) == 1:
        yield from leaves(schema, inner[0], path)
    else:
        yield path


def _values(node: dict[str, Any]) -> Any:
    return node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)


def model_keys() -> set[str]:
    """Every key of the config, by the program's own schema."""
    command = [sys.executable, "-m", "proxy.cli", "config", "--schema"]
    schema = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    return set(leaves(schema, schema, ""))


def test_every_key_has_a_row() -> None:
    keys = model_keys()
    known = {row.key for row in ROWS} | TOGETHER.keys() | ELSEWHERE.keys()
    assert not keys - known, f"new keys: add a row that says how a reload of them is seen: {sorted(keys - known)}"
    assert not known - keys - {"access_log"}, f"rows of keys that are gone: {sorted(known - keys)}"


def _filled(town: Town, value: Any) -> Any:
    """`{spare}` and the like in a row's value."""
    if isinstance(value, list):
        return [_filled(town, one) for one in value]
    if isinstance(value, dict):
        return {key: _filled(town, one) for key, one in value.items()}
    if isinstance(value, str) and "{" in value:
        spare = town.named("spare").endpoint if "{spare}" in value else ""
        return value.format(spare=spare, port=free_port(), directory=town.directory, **town.files)
    return value


async def _play(town: Town, row: Row) -> None:
    program, traffic = town.program, town.traffic
    change = set_at(row.place, _filled(town, row.value))
    if row.refused:
        with pytest.raises(AdminFault, match=row.refused):
            await town.change(change)
        await traffic.more(20)
        return
    if row.first:
        await town.program.reload(_filled(town, town.edited(*row.first)))
    before = town.program.config
    if row.seen is not None:
        seen = row.seen

        async def gone() -> bool:
            return not await seen(town)

        await until(gone, f"{row.key}: its effect is not there before the change", EFFECT_S)
    answer = await town.change(change)
    assert answer["restart"] == ([row.restart] if row.restart else []), answer
    await traffic.more(20)
    if row.seen is not None:
        await until(lambda: seen(town), f"{row.key} = {row.value} is seen to be in effect", EFFECT_S)
    await program.reload(before)
    if row.seen is not None:
        await until(gone, f"{row.key}: its effect is gone after the way back", EFFECT_S)
    if row.first:
        await program.reload(town.config)
    await traffic.more(20)


def _plays() -> list[tuple[int, Row]]:
    """Each row with one worker or with two, in turn; with both where DAY=full. Sorted so that few towns are needed."""
    order = list(STAGES)
    both = os.environ.get("DAY") == "full"
    plays = [(workers, row) for n, row in enumerate(ROWS) for workers in (1, 2) if both or workers == 1 + n % 2]
    return sorted(plays, key=lambda play: (play[0], order.index(play[1].stage)))


@pytest.mark.parametrize(
    ("workers", "row"), [pytest.param(workers, row, id=f"{workers}-{row.title}") for workers, row in _plays()]
)
def test_a_key_under_load(stages: Stages, workers: int, row: Row) -> None:
    stages.runner.run(_try(stages, workers, row))


async def _try(stages: Stages, workers: int, row: Row) -> None:
    town = await stages.town(row.stage, workers)
    try:
        town.traffic.start()
        await town.traffic.more(10)
        try:
            await _play(town, row)
        except AssertionError as error:
            town.faults.insert(0, str(error))
            with suppress(AssertionError, OSError):
                await town.program.reload(town.config)
        await town.check()
        town.complain()
    except BaseException:
        await stages.discard()
        raise
