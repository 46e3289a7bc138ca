"""A config file as it is read: its text as a document, and the addresses in it that a start binds first.

A start reads the file once. The model and what builds it take ten times as long to import as the file takes to read:
`addresses` finds what to listen on without them (`proxy.process.start`), and `load` makes a config of that document.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final

from . import units
from .document import Document, DocumentError, Mark, read_document
from .faults import ConfigError, ConfigFault
from .units import Address, UnitError, shown

FILE_BYTES_MAX: Final = 1024 * 1024
ADMIN_ADDRESS: Final = "127.0.0.1:9900"
"""`admin.address` where the config names none."""


@dataclass(frozen=True)
class Source:
    """A config's document, and what its values depend on outside it. `file` is its name in faults."""

    file: str
    directory: FilePath
    environ: Mapping[str, str]
    document: Document


def read_source(path: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> Source:
    """The document in a file. Raises ConfigError where it can't be read, or is no mapping in YAML."""
    file = os.fspath(path)
    return source_of(_content(file), file=file, directory=FilePath(file).absolute().parent, environ=environ)


def source_of(
    content: str | bytes,
    *,
    file: str = "config",
    directory: FilePath | None = None,
    environ: Mapping[str, str] | None = None,
) -> Source:
    """The document in a text, its paths relative to `directory` (the current one). Raises ConfigError."""
    environ = os.environ if environ is None else environ
    text = content if isinstance(content, str) else _decoded(content, file)
    try:
        document = read_document(text, environ)
    except DocumentError as error:
        raise _error(file, error.message, error.suggestion, error.mark) from None
    if document.tree is None:
        raise _error(file, "the config is empty: it needs listeners and upstreams")
    if not isinstance(document.tree, dict):
        raise _error(
            file,
            f"expected a mapping with listeners and upstreams, got {shown(document.tree)}",
            mark=document.values[()],
        )
    return Source(file, (directory or FilePath()).absolute(), environ, document)


def addresses(source: Source) -> list[tuple[Address, bool]]:
    """TCP addresses that the config asks to listen on, with `fast_open`: those that are plain to see.

    A guess in a good cause: whoever binds them compares with the config once there is one, and closes what it does not
    ask for. Nothing is guessed of a document with faults, nor of a value that is not of its simplest form.
    """
    document = source.document
    if document.faults or document.spoiled:
        return []
    tree = document.tree
    listeners, admin = tree.get("listeners"), tree.get("admin", {})
    if not isinstance(listeners, tuple) or not isinstance(admin, dict) or not isinstance(tree.get("upstreams"), dict):
        return []
    found: dict[tuple[Address, bool], None] = {}
    for section in (*listeners, {"address": admin.get("address", ADMIN_ADDRESS)}):
        fast_open = section.get("fast_open", False) if isinstance(section, dict) else None
        if not isinstance(fast_open, bool):
            continue
        try:
            address = units.parse_address(section.get("address"), port_min=0)
        except UnitError:
            return []
        if not address.path:  # a file would be left behind where the config turns out to be faulty
            found[address, fast_open] = None
    return list(found)


def _content(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _error(file, f"the file can't be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a NUL in the path
        raise _error(repr(file), f"the file can't be read: {error}") from None
    if len(content) > FILE_BYTES_MAX:
        raise _error(file, "the file is larger than 1 MiB, which no config is")
    return content


def _decoded(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_start = content.rfind(b"\n", 0, error.start) + 1
        column = len(content[line_start : error.start].decode("utf-8", "replace"))
        mark = (content.count(b"\n", 0, error.start), column)
        raise _error(
            file, f"the file is not UTF-8: byte 0x{content[error.start]:02x} can't stand here", mark=mark
        ) from None


def _error(file: str, message: str, suggestion: str = "", mark: Mark = (0, 0)) -> ConfigError:
    return ConfigError([ConfigFault(file, mark[0] + 1, mark[1] + 1, message, suggestion)])
