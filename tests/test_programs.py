"""Tests that need another program skip in one way (`programs.needs`), which the run's last line counts."""

from __future__ import annotations

import ast
import tokenize
from pathlib import Path

import pytest

from . import programs
from .programs import NEEDS, Need, does_not_apply, needs, summary

ROOT = Path(__file__).resolve().parent
OWN_WAYS = {
    "shutil.which",
    "pytest.skip",
    "pytest.importorskip",
    "pytest.mark.skip",
    "pytest.mark.skipif",
    "find_binary",
}
MAY = {"programs.py", "test_programs.py"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One without nginx, with a curl, that is no CI."""
    monkeypatch.setitem(NEEDS, "nginx", Need(lambda: "", "apt-get install nginx"))
    monkeypatch.setitem(NEEDS, "curl", Need(lambda: "/bin/curl", "apt-get install curl"))
    monkeypatch.setitem(NEEDS, "two cores", Need(lambda: "", "another machine", in_ci=False))
    monkeypatch.delenv("CI", raising=False)
    programs.found.cache_clear()
    yield monkeypatch
    programs.found.cache_clear()


def test_what_is_there_is_found(machine: pytest.MonkeyPatch) -> None:
    assert needs("curl") == "/bin/curl"


def test_what_is_missing_skips_and_says_how_to_get_it(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^needs nginx \(apt-get install nginx\)$"):
        needs("curl", "nginx")


def test_what_is_missing_fails_in_ci(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"needs nginx \(apt-get install nginx\); CI=true"):
        needs("curl", "nginx")
    with pytest.raises(pytest.skip.Exception):  # nobody can install a core
        needs("two cores")


def test_the_closing_line_counts_by_program() -> None:
    one = "Skipped: needs nginx (apt-get install nginx)"
    two = "Skipped: needs nginx (apt-get install nginx), network namespaces (run as root, with util-linux)"
    with pytest.raises(pytest.skip.Exception) as other:
        does_not_apply("only with TLS")
    assert summary([str(other.value)]) == ""
    line = summary([one, two, one, str(other.value)])
    assert line.startswith("3 tests were skipped")
    assert "nginx 3 (apt-get install nginx), network namespaces 1 (run as root, with util-linux)" in line
    assert ".ci/run" in line


def test_everything_that_ci_installs_is_in_the_list() -> None:
    script = (ROOT.parent / ".ci" / "run").read_text()
    installed = {line.split()[1] for line in script.splitlines() if line.startswith("need ")}
    assert installed <= set(NEEDS)
    packages = {need.how.removeprefix("apt-get install ") for need in NEEDS.values() if need.in_ci}
    assert {package for package in packages if " " not in package} <= set(
        script.replace("(", " ").replace(")", " ").split()
    )


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_skips_by_itself(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in MAY:
        return
    with tokenize.open(path) as stream:
        tree = ast.parse(stream.read(), str(path))
    found = [
        f"{path.name}:{node.lineno} {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name)
        and (name := ast.unparse(node)) in OWN_WAYS
        and not (name == "find_binary" and path.name == "test_peers_config.py")  # which tests it
    ]
    assert not found, "use `needs` or `does_not_apply` of tests/programs.py"
