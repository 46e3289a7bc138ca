"""A lower floor never imports a higher one, and no floor grows out of hand (docs/architecture.md)."""

from __future__ import annotations

import ast
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("routing", "tlscache", "proxy", "loadtests")

MAY_IMPORT = {
    "routing": {"routing"},
    "tlscache": {"tlscache"},
    "proxy": {"proxy", "routing", "tlscache"},
    "loadtests": {"loadtests", "proxy", "routing", "tlscache"},
}
ALSO_LOADTESTS = ("proxy/demo/", "proxy/bench/")  # commands that bring the lab along
NOT_IN_ROUTING = {"asyncio", "socket", "time", "select", "selectors", "threading", "os", "io", "subprocess", "datetime"}
NOT_IN_CODECS = {"asyncio", "socket", "time", "select", "threading", "subprocess"}
"""Codecs and the TLS engine are sans-I/O."""
SANS_IO = ("proxy/http/h1", "proxy/http/h2", "proxy/http/compression")
SANS_IO_FILES = (
    *("proxy/http/semantics.py", "proxy/http/sensitive.py", "proxy/downstream/client_hello.py"),
    *("tlscache/engine.py", "tlscache/records.py"),
)

ROOMS = (
    *("routing", "tlscache"),
    *("proxy.errors", "proxy.loop", "proxy.config", "proxy.net", "proxy.http", "proxy.observe"),
    *("proxy.upstream", "proxy.downstream", "proxy.exchange", "proxy.l4", "proxy.admin", "proxy.process"),
    *("proxy.bench", "loadtests", "proxy.demo", "proxy.commands", "proxy.cli"),
)
"""From the ground up: nothing imports what stands after it (docs/architecture.md)."""
LINES_MAX = 400
METHODS_MAX = 30
FUNCTION_LINES_MAX = 75
LONGER_FUNCTIONS = {"proxy/bench/cli.py:run"}  # its lines are the command's options


def sources(*floors: str) -> list[Path]:
    return sorted(path for floor in floors for path in (ROOT / floor).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    with tokenize.open(path) as stream:
        return ast.parse(stream.read(), str(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of what a file imports, anywhere in it, type-checking blocks included; and the line."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value), node.lineno


def ids(path: Path) -> str:
    return name(path)


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_a_higher_one(floor: str) -> None:
    broken = []
    for path in sources(floor):
        allowed = MAY_IMPORT[floor] | ({"loadtests"} if name(path).startswith(ALSO_LOADTESTS) else set())
        for imported, line in imports(path):
            top = imported.partition(".")[0]
            if top in (*FLOORS, "tests") and top not in allowed:
                broken.append(f"{name(path)}:{line} imports {imported}")
    assert not broken


def test_routing_has_no_clock_and_no_io() -> None:
    broken = [
        f"{name(path)}:{line} imports {imported}"
        for path in sources("routing")
        for imported, line in imports(path)
        if imported.partition(".")[0] in NOT_IN_ROUTING
    ]
    assert not broken


def test_routing_needs_nothing_but_the_standard_library() -> None:
    known = sys.stdlib_module_names | {"routing"}
    found = {imported.partition(".")[0] for path in sources("routing") for imported, _ in imports(path)}
    assert found <= known


def test_codecs_are_without_io() -> None:
    broken = [
        f"{name(path)}:{line} imports {imported}"
        for path in [*sources(*SANS_IO), *map(ROOT.joinpath, SANS_IO_FILES)]
        for imported, line in imports(path)
        if imported.partition(".")[0] in NOT_IN_CODECS
    ]
    assert not broken


def test_only_the_wiring_knows_the_worker() -> None:
    """Everything else is given what it needs."""
    wiring = {f"proxy/process/{part}.py" for part in ("serve", "single", "supervisor", "child", "worker")}
    broken = []
    for path in sources("proxy"):
        if name(path) in wiring or name(path).startswith(ALSO_LOADTESTS):
            continue
        checking = {
            child.lineno
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for child in ast.walk(node)
            if isinstance(child, ast.ImportFrom | ast.Import)
        }
        for imported, line in imports(path):
            if (
                imported.startswith(("proxy.process.worker.", "proxy.process.program.", "proxy.process.supervisor."))
                and line not in checking
            ):
                broken.append(f"{name(path)}:{line} imports {imported}")
    assert not broken


def test_modules_stay_readable_in_one_sitting() -> None:
    counted = {name(path): len(path.read_text().splitlines()) for path in sources(*FLOORS)}
    over = {file: lines for file, lines in counted.items() if lines > LINES_MAX}
    assert not over, f"modules of more than {LINES_MAX} lines want to be two"


def test_classes_stay_so_too() -> None:
    over = [
        f"{name(path)}: {node.name}"
        for path in sources(*FLOORS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        and sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body) > METHODS_MAX
    ]
    assert not over, f"classes of more than {METHODS_MAX} methods want to be two"


@cache
def graph() -> dict[str, set[str]]:
    """Module to the modules that it imports, whatever the import is for: a type is a tie as well."""
    modules = {module(path): path for path in sources(*FLOORS)}
    return {
        one: {target for imported, _ in imports(path) if (target := _existing(imported, modules)) and target != one}
        for one, path in modules.items()
    }


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _existing(imported: str, modules: dict[str, Path]) -> str:
    """The module that a full name is, or is in."""
    return next((one for one in (imported, imported.rpartition(".")[0]) if one in modules), "")


def room(one: str) -> int:
    """Where in `ROOMS` a module stands; the top for what is in none (the packages themselves)."""
    found = [index for index, prefix in enumerate(ROOMS) if f"{one}.".startswith(f"{prefix}.")]
    return max(found, key=lambda index: len(ROOMS[index])) if found else len(ROOMS)


def test_rooms_import_downwards() -> None:
    broken = [
        f"{one} imports {target}"
        for one, targets in graph().items()
        for target in targets
        if room(target) > room(one) and target not in ("proxy", "loadtests")
    ]
    assert not broken


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Types included: who has to be read together is one thing in several files."""
    left = {one: set(targets) for one, targets in graph().items()}
    while leaves := {one for one, targets in left.items() if not targets & left.keys()}:
        for one in leaves:
            del left[one]
    assert not left, "these go round in circles, or lead into one"


def test_every_module_has_a_room() -> None:
    assert [one for one in graph() if "." in one and room(one) == len(ROOMS)] == []


def test_functions_stay_short() -> None:
    over = [
        f"{name(path)}:{node.lineno} {node.name}: {(node.end_lineno or node.lineno) - node.lineno + 1} lines"
        for path in sources(*FLOORS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > FUNCTION_LINES_MAX
        and f"{name(path)}:{node.name}" not in LONGER_FUNCTIONS
    ]
    assert not over


@pytest.mark.parametrize("path", sources("routing", "tlscache", "proxy"), ids=ids)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)) or path.stat().st_size == 0


def test_the_check_itself_sees_relative_and_late_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    package = tmp_path / "proxy" / "http"
    package.mkdir(parents=True)
    file = package / "x.py"
    file.write_text(
        "from ..errors import Kind\n"
        "from . import h1\n"
        "def f():\n    import loadtests.lab\n    from importlib import import_module\n    import_module('tests.x')\n"
    )
    found = [imported for imported, _ in imports(file)]
    assert found == ["proxy.errors.Kind", "proxy.http.h1", "loadtests.lab", "importlib.import_module", "tests.x"]
