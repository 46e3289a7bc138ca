"""A config file to a `Config`, or to every fault in it.

The file is read (`document`), validated against the model, and checked against the rules. Pydantic stops at the first
level that is at fault, and the rules need a whole model; so what is at fault is reported, replaced by a stand-in, and
the reading goes on. What is said about something at or below a reported place would only be a consequence, and is
dropped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .document import Mark
from .faults import ConfigError, ConfigFault, Path, dotted, nearest
from .model import Config
from .rules import broken_rules, unavailable
from .shape import section_at, sections
from .source import Source, read_source, source_of
from .units import shown
from .values import STAND_IN, Surroundings

_PASSES_MAX: Final = 64  # each one repairs a level, and the model is eight deep
_DELETED: Final = object()
_EMPTY: Final[dict[str, Any]] = {"model_type": {}, "dict_type": {}, "tuple_type": ()}
"""What to go on with where another type was expected."""


def load_config(path: str | os.PathLike[str] | Source, *, environ: Mapping[str, str] | None = None) -> Config:
    """The config in a file, or of what was read of it. Raises ConfigError with every fault. `environ` is the process's
    by default.
    """
    source = path if isinstance(path, Source) else read_source(path, environ=environ)
    return _Reading(source).config()


def check_config(path: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> tuple[ConfigFault, ...]:
    """Every fault of a config file, none where it can be used."""
    try:
        load_config(path, environ=environ)
    except ConfigError as error:
        return error.faults
    return ()


def parse_config(
    content: str | bytes,
    *,
    file: str = "config",
    directory: FilePath | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The config in a text, its paths relative to `directory` (the current one). Raises ConfigError with all faults."""
    return _Reading(source_of(content, file=file, directory=directory, environ=environ)).config()


class _Reading:
    """One document on its way to a Config: the faults so far, and the tree with stand-ins for what is at fault."""

    def __init__(self, source: Source) -> None:
        self.file = source.file
        self.document = document = source.document
        self.surroundings = Surroundings(source.directory, source.environ)
        self.tree = document.tree
        self.faulty: set[Path] = set(document.spoiled)
        self.faults: dict[ConfigFault, None] = {}
        for mark, message, suggestion in document.faults:
            self.fault(mark, message, suggestion)

    def config(self) -> Config:
        for path in sorted(self.document.spoiled, key=str):
            self.repair(path)
        for broken in unavailable(self.tree):
            self.report(broken.path, self.mark(broken.path, key=True), f"{dotted(broken.path)}: {broken.message}")
            self.repair(broken.path)
        config = self.validated()
        if config is not None:
            for broken in broken_rules(config):
                if broken.unless in self.faulty:
                    continue
                text = f"{dotted(broken.path)}: {broken.message}"
                self.report(broken.path, self.mark(broken.path), text, broken.suggestion)
        if self.faults or config is None:
            raise ConfigError(sorted(self.faults, key=lambda fault: (fault.line, fault.column)))
        return config.with_inheritance()

    def validated(self) -> Config | None:
        """The model of the tree once what is at fault has been reported and replaced. None: even then it is none."""
        for _ in range(_PASSES_MAX):
            try:
                return Config.model_validate(self.tree, context=self.surroundings)
            except ValidationError as error:
                details = error.errors(include_url=False)
            # Unknown keys first: one that is a misspelt required key explains that one's absence.
            for detail in sorted(details, key=lambda one: one["type"] != "extra_forbidden"):
                self.take(detail)
        assert self.faults, details
        return None

    def take(self, detail: ErrorDetails) -> None:
        """Report one of pydantic's errors and replace what it is about."""
        path: Path = detail["loc"]
        kind = detail["type"]
        if path and path[-1] == "[key]":
            path = path[:-1]
            self.report(path, self.mark(path, key=True), _message(detail, path), _suggestion(detail))
            self.tree = _replaced(self.tree, path, _DELETED)
        elif kind == "extra_forbidden":
            where = dotted(path[:-1]) or "the config"
            meant, elsewhere = _key_meant(path)
            message = f"unknown key '{path[-1]}' in {where}{elsewhere}"
            self.report(path, self.mark(path, key=True), message, meant)
            if meant and (*path[:-1], meant) not in self.document.values:
                self.faulty.add((*path[:-1], meant))
            self.tree = _replaced(self.tree, path, _DELETED)
        elif kind == "missing":
            where = dotted(path[:-1]) or "the config"
            self.report(path, self.mark(path), f"{where} needs the key '{path[-1]}'")
            self.tree = _replaced(self.tree, path, STAND_IN)
        elif kind == "too_short":
            if not detail["input"]:  # pydantic also says it where every item was at fault
                if not any(one[: len(path)] == path for one in self.faulty):
                    self.report(path, self.mark(path), f"{dotted(path)}: needs at least one {_singular(path[-1])}")
                stand_in = {STAND_IN: STAND_IN} if isinstance(detail["input"], dict) else (STAND_IN,)
                self.tree = _replaced(self.tree, path, stand_in)
                self.faulty.add(path)
        else:
            self.report(path, self.mark(path), _message(detail, path), _suggestion(detail))
            if kind in _EMPTY:
                self.tree = _replaced(self.tree, path, _EMPTY[kind])
            else:
                self.repair(path)

    def repair(self, path: Path) -> None:
        """A value at fault makes room for its default, or in a list for a stand-in (which keeps the others' places)."""
        self.tree = _replaced(self.tree, path, STAND_IN if isinstance(path[-1], int) else _DELETED)

    def report(self, path: Path, mark: Mark, message: str, suggestion: str = "") -> None:
        """A fault at `path`, unless something at or above it has been reported."""
        if not any(path[:length] in self.faulty for length in range(len(path) + 1)):
            self.faulty.add(path)
            self.fault(mark, message, suggestion)

    def fault(self, mark: Mark, message: str, suggestion: str) -> None:
        self.faults[ConfigFault(self.file, mark[0] + 1, mark[1] + 1, message, suggestion)] = None

    def mark(self, path: Path, *, key: bool = False) -> Mark:
        """Where a value stands (or its key); for what is not in the file, the key of what it is missing from."""
        if path in self.document.values:
            return self.document.keys.get(path, self.document.values[path]) if key else self.document.values[path]
        while path and path not in self.document.values:
            path = path[:-1]
        return self.document.keys.get(path, self.document.values.get(path, (0, 0)))


def _replaced(tree: Any, path: Path, value: Any) -> Any:
    """A copy of the tree with another value at `path`, or without it. What is not there stays so."""
    if not path:
        return tree if value is _DELETED else value
    head, rest = path[0], path[1:]
    if isinstance(tree, dict):
        if head not in tree and (rest or value is _DELETED):
            return tree
        if not rest and value is _DELETED:
            return {key: one for key, one in tree.items() if key != head}
        return {**tree, head: _replaced(tree.get(head), rest, value)}
    if isinstance(tree, tuple) and isinstance(head, int) and head < len(tree):
        return (*tree[:head], _replaced(tree[head], rest, value), *tree[head + 1 :])
    return tree


def _message(detail: ErrorDetails, path: Path) -> str:
    kind, given = detail["type"], shown(detail["input"])
    if kind == "config":
        text = str(detail["ctx"]["message"])
    elif kind in ("model_type", "dict_type", "model_attributes_type"):
        text = f"expected a mapping, got {given}"
    elif kind == "tuple_type":
        text = f"expected a list, got {given}"
    else:
        text = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"
    return f"{dotted(path)}: {text}"


def _suggestion(detail: ErrorDetails) -> str:
    if detail["type"] == "tuple_type" and isinstance(detail["input"], str):
        return f'["{detail["input"]}"]'
    return str(detail.get("ctx", {}).get("suggestion", ""))


def _singular(word: str | int) -> str:
    return str(word).removesuffix("s")


def _key_meant(path: Path) -> tuple[str, str]:
    """For an unknown key: the one probably meant there, else a phrase that says where a key of that name belongs."""
    section = section_at(path[:-1])
    meant = nearest(path[-1], section.model_fields) if section else ""
    if meant:
        return meant, ""
    places = [place or "the top level" for place, one in sections() if path[-1] in one.model_fields]
    return "", f"; it belongs in {' or '.join(places[:2])}" if places else ""
