"""A YAML 1.2 text as plain values, with the line and column of every key and value.

Rules:
- Scalars resolve by the core schema of YAML 1.2 (section 10.3): `no`, `off` and `22:22` are strings. So is every key.
- `${VAR}` and `${VAR:-default}` are replaced inside strings; `$${` is a literal `${`. The result is an `Expanded`: it
  counts as whatever type its place wants, as if it had been written there.
- Anchors, aliases and `<<` merges work within bounds; repeated keys, tags, empty values, a second document are faults.
- Every fault that does not end the reading is collected; the part that it spoils is left out.

The tree is built from parser events instead of a composed document, so that depth and size are bounded while reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from .faults import Path, dotted, nearest

DEPTH_MAX: Final = 32
NODES_MAX: Final = 50_000  # after aliases are expanded; a thousand listeners of fifty keys
ALIASES_MAX: Final = 1_000

Mark: TypeAlias = tuple[int, int]
Value: TypeAlias = Any
"""dict, tuple, str, int, float, bool, None, as the YAML says."""

_INT = re.compile(r"^[-+]?[0-9]+$")
_BASED = re.compile(r"^0(?:o[0-7]+|x[0-9a-fA-F]+)$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_SUBSTITUTION = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?$", re.DOTALL)


class Expanded(str):
    """A string that came, whole or in part, from the environment: it is read as a number where one is wanted."""

    __slots__ = ()


class DocumentError(Exception):
    """The text is no usable YAML from `mark` (line, column, from 0) on."""

    def __init__(self, mark: Mark, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message
        self.suggestion = suggestion


@dataclass(slots=True)
class Document:
    """The values, and where they stand: `keys` and `values` give (line, column) from 0 by path."""

    tree: Value = None
    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)
    faults: list[tuple[Mark, str, str]] = field(default_factory=list)
    spoiled: set[Path] = field(
        default_factory=set
    )  # values that a fault left without one: nothing more is to be said of them


@dataclass(slots=True)
class _Node:
    mark: Mark
    content: str | list[_Node] | list[tuple[_Node, _Node]] = ""
    plain: bool = False
    mapping: bool = False
    open: bool = False  # still being read: an alias to it would contain itself


def read_document(text: str, environ: Mapping[str, str]) -> Document:
    """Parse `text`. Raises DocumentError where it is no YAML at all; lesser faults are in the document."""
    try:
        root = _compose(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except YAMLError as error:  # a character that YAML does not allow: the reader gives its offset
        offset = int(getattr(error, "position", 0))
        before = text[:offset]
        mark = (before.count("\n"), offset - (before.rfind("\n") + 1))
        raise DocumentError(mark, f"the character {text[offset : offset + 1]!r} is not allowed in YAML") from None
    document = Document()
    document.tree = _Construction(document, environ).value(root, ())
    return document


def resolve(text: str) -> Value:
    """A plain scalar's value by the core schema: null, bool, int, float or str."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if len(text) <= 64:
        if _INT.match(text):
            return int(text)
        if _BASED.match(text):
            return int(text, 0)
        if _FLOAT.match(text):
            return float(text)
        if text.lower() in (".inf", "+.inf", "-.inf", ".nan"):
            return float(text.replace(".", ""))
    return text


def _mark(event: Any) -> Mark:
    return event.start_mark.line, event.start_mark.column


def _compose(text: str) -> _Node:
    """The document's nodes. Aliases share the node that they name."""
    anchors: dict[str, _Node] = {}
    stack: list[tuple[_Node, list[_Node]]] = [(_Node((0, 0)), [])]
    documents = nodes = aliases = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise DocumentError(_mark(event), "a config is one YAML document, and here a second one starts")
        elif isinstance(event, AliasEvent):
            aliases += 1
            target = anchors.get(event.anchor)
            if target is None:
                raise DocumentError(
                    _mark(event),
                    f"no anchor &{event.anchor} stands before this alias",
                    _star(nearest(event.anchor, anchors)),
                )
            if target.open:
                raise DocumentError(_mark(event), f"the alias *{event.anchor} stands inside what it repeats")
            if aliases > ALIASES_MAX:
                raise DocumentError(_mark(event), f"more than {ALIASES_MAX} aliases")
            stack[-1][1].append(target)
        elif isinstance(event, (ScalarEvent, SequenceStartEvent, MappingStartEvent)):
            nodes += 1
            node = _open(event)
            if event.anchor is not None:
                anchors[event.anchor] = node
            stack[-1][1].append(node)
            if not isinstance(event, ScalarEvent):
                stack.append((node, []))
            if nodes > NODES_MAX or len(stack) > DEPTH_MAX:
                problem = f"more than {NODES_MAX} values" if nodes > NODES_MAX else f"nested more than {DEPTH_MAX} deep"
                raise DocumentError(node.mark, problem)
        elif isinstance(event, (SequenceEndEvent, MappingEndEvent)):
            node, children = stack.pop()
            node.open = False
            node.content = list(zip(children[::2], children[1::2], strict=True)) if node.mapping else children
    return stack[0][1][0] if stack[0][1] else _Node((0, 0), plain=True)


def _open(event: Any) -> _Node:
    tag = str(event.tag) if event.tag is not None else ""
    text_tag = tag in ("!", "!!str", "tag:yaml.org,2002:str")
    if tag and not (isinstance(event, ScalarEvent) and text_tag):
        raise DocumentError(_mark(event), f"the YAML tag {tag} is not supported here")
    if isinstance(event, ScalarEvent):
        return _Node(_mark(event), _characters(event), plain=event.style is None and not text_tag)
    return _Node(_mark(event), [], mapping=isinstance(event, MappingStartEvent), open=True)


def _characters(event: Any) -> str:
    """A scalar's text, with pairs of surrogate escapes (as JSON writes them) joined into what they stand for."""
    text = str(event.value)
    if encodable(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise DocumentError(_mark(event), "half of a surrogate pair is no character") from None


def encodable(text: str) -> bool:
    """True where `text` can be written as UTF-8: bytes that were not stand in it as half surrogate pairs (PEP 383)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _star(anchor: str) -> str:
    return f"*{anchor}" if anchor else ""


class _Construction:
    """Nodes into values: expands aliases and variables, notes positions and faults."""

    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self.document = document
        self.environ = environ
        self.nodes = 0

    def value(self, node: _Node, path: Path) -> Value:
        self.nodes += 1
        if self.nodes > NODES_MAX:
            raise DocumentError(node.mark, f"more than {NODES_MAX} values once aliases are expanded")
        self.document.values[path] = node.mark
        if isinstance(node.content, str):
            return self.scalar(node, node.content, path)
        if node.mapping:
            return self.mapping(node, path)
        items: list[Value] = []
        for child in node.content:
            assert isinstance(child, _Node)
            item = self.value(child, (*path, len(items)))
            if item is None:
                self.empty(child, (*path, len(items)))
            items.append(item)
        return tuple(items)

    def mapping(self, node: _Node, path: Path) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for key_node, child, merged in self.entries(node, path):
            if not isinstance(key_node.content, str):
                self.fault(key_node.mark, "expected a key, got a list or a mapping")
                continue
            key = str(self.expand(key_node, key_node.content, None))
            if key in result:
                if not merged:
                    line = self.document.keys[(*path, key)][0] + 1
                    self.fault(key_node.mark, f"the key '{key}' is repeated; it stands in line {line} already")
                continue
            at = (*path, key)
            self.document.keys[at] = key_node.mark
            result[key] = self.value(child, at)
            if result[key] is None:
                self.empty(child, at)
                del result[key]
        return result

    def entries(self, node: _Node, path: Path) -> Iterator[tuple[_Node, _Node, bool]]:
        """A mapping's own entries, then those merged in by `<<` (own ones win: the YAML merge-key type)."""
        merges: list[_Node] = []
        for entry in node.content:
            assert isinstance(entry, tuple)
            if entry[0].content == "<<" and entry[0].plain:
                merges.append(entry[1])
            else:
                yield *entry, False
        for source in merges:
            sources = [source] if source.mapping or isinstance(source.content, str) else source.content
            for one in sources:
                if isinstance(one, _Node) and one.mapping:
                    for key, child, _ in self.entries(one, path):
                        yield key, child, True
                else:
                    self.fault(source.mark, "expected a mapping, or a list of them, to merge with <<")

    def scalar(self, node: _Node, text: str, path: Path) -> Value:
        expanded = self.expand(node, text, path)
        if isinstance(expanded, Expanded):
            return expanded if expanded or not node.plain else None
        return resolve(expanded) if node.plain else expanded

    def expand(self, node: _Node, text: str, path: Path | None) -> str:
        """Variables replaced. One that is not set is a fault, and spoils the value at `path` (None: a key)."""
        if "${" not in text:
            return text
        used = False

        def replacement(match: re.Match[str]) -> str:
            nonlocal used
            if match[0] == "$${":
                return "${"
            used = True
            variable = _VARIABLE.match(match[1]) if match[2] else None
            if variable is None:
                name = re.sub(r"[^A-Za-z0-9_].*", "", match[1], flags=re.DOTALL) or "VAR"
                what = (
                    f"'{match[0][:40]}' is no variable: write ${{NAME}} or ${{NAME:-default}} ($${{ is a literal ${{)"
                )
                return self.unset(node, path, what, f"${{{name}}}" if not match[2] else "")
            name, default = variable[1], variable[2]
            value = self.environ.get(name)
            if value is None and default is None:
                what = f"the environment variable {name} is not set, and ${{{name}}} has no default"
                return self.unset(node, path, what, nearest(name, self.environ))
            if value is not None and not encodable(value):
                return self.unset(node, path, f"the environment variable {name} is not UTF-8", "")
            # As in a shell, an empty variable takes the default that `:-` gives.
            return value or default or ""

        result = _SUBSTITUTION.sub(replacement, text)
        return Expanded(result) if used else result

    def unset(self, node: _Node, path: Path | None, message: str, suggestion: str) -> str:
        self.fault(node.mark, message, suggestion)
        if path is not None:
            self.document.spoiled.add(path)
        return "?"

    def empty(self, node: _Node, path: Path) -> None:
        self.document.spoiled.add(path)
        # Of nothing at all the parser says that it stands where the next thing does.
        mark = node.mark if node.content else self.document.keys.get(path, node.mark)
        self.fault(mark, f"{dotted(path)} has no value: give it one, or leave the key out for its default")

    def fault(self, mark: Mark, message: str, suggestion: str = "") -> None:
        self.document.faults.append((mark, message, suggestion))


def _syntax_error(error: MarkedYAMLError) -> DocumentError:
    mark = error.problem_mark or error.context_mark
    at = (mark.line, mark.column) if mark is not None else (0, 0)
    problem = str(error.problem or error.context or "it can't be parsed")
    if "'\\t'" in problem:
        return DocumentError(at, "a tab can't indent YAML: use spaces")
    if "mapping values are not allowed" in problem:
        return DocumentError(
            at, "not YAML: a ': ' can't stand here; quote the text that holds it, or check the indentation"
        )
    if "but got '{'" in problem and "flow mapping" in str(error.context):
        return DocumentError(at, "not YAML: '{' can't stand here; inside braces, quote a variable", '"${NAME}"')
    opened = error.context_mark
    since = f" (in what starts at line {opened.line + 1})" if opened is not None and opened.line != at[0] else ""
    context = f"{error.context}: " if error.context and error.problem else ""
    return DocumentError(at, f"not YAML: {context}{problem}{since}")
