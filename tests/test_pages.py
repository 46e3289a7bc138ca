"""Every command that a page shows works: those of README.md and docs/ are run, most of them with short settings.

A command block's every line is in a table below, which says how it is tried; a line that is in none fails, and so does
an entry that no page has any more. Commands within the text are looked up: the target, the module, the options exist.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from .programs import needs
from .proxy.program import HttpOrigin, Onetrip, free_port

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WAIT_S = 60.0
WORDS = r"(?:onetrip|make|locust|python -m)"
NO_COMMANDS = {"onetrip sessions"}  # a label in the derivation of a key


# What the pages show.


@dataclass(frozen=True)
class Shown:
    page: str
    line: int
    command: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path, *languages: str) -> Iterator[tuple[int, list[str]]]:
    """Fenced blocks in these languages: the number of their first line, and their lines."""
    inside: list[str] | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("```"):
            if inside is None:
                inside, first, language = [], number + 1, line[3:].strip()
            else:
                if language in languages:
                    yield first, inside
                inside = None
        elif inside is not None:
            inside.append(line)


def shown_in(path: Path) -> Iterator[Shown]:
    """Commands in `sh` blocks (each line), and in `console` blocks (what follows a `$ `)."""
    name = path.relative_to(ROOT).as_posix()
    for languages, prompt in ((("sh", "bash", "shell"), ""), (("console",), "$ ")):
        for first, lines in blocks(path, *languages):
            for number, line in enumerate(lines, first):
                command = re.sub(r"\s+#\s.*$", "", line).strip()
                if line.startswith(prompt) and command.removeprefix(prompt):
                    yield Shown(name, number, command.removeprefix(prompt))


def mentioned_in(path: Path) -> Iterator[Shown]:
    """Commands in the text, between backticks."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for command in re.findall(rf"`({WORDS} [^`]+)`", line):
            if command not in NO_COMMANDS:
                yield Shown(path.relative_to(ROOT).as_posix(), number, command)


SHOWN = [one for path in PAGES for one in shown_in(path)]
MENTIONED = [one for path in PAGES for one in mentioned_in(path)]


# How each is tried. `{edge}`, `{admin}`, `{origin}` and `{other}` are this test's addresses.


@dataclass(frozen=True)
class Run:
    """Run it with these words replaced and these ones added. `needs`: see programs.py."""

    replaced: dict[str, str] = field(default_factory=dict)
    added: str = ""
    says: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """Only look whether all that it names exists: its program, its options. `why` it is not run."""

    why: str


@dataclass(frozen=True)
class Make:
    """Look what make would run (`--dry-run`). `why` it is not run."""

    runs: str
    why: str


SHORT_BENCH = "--duration 1s --rate 20"
US = {"https://us.example.com/": "http://{origin}/", "http://localhost:8080/": "http://{edge}/"}
EDGE = {"127.0.0.1:8080": "{edge}", "localhost:8080": "{edge}"}
TAKES_LONG = "minutes, and other proxies; tests/loadtests has its parts"
PERFORMED = "tests/proxy/demo performs it"
LAB_WAY = "test_the_lab_s_page runs the page's commands in their order"

TABLE: dict[str, Run | Look | Make] = {
    # README.md
    "make demo": Make("onetrip demo", PERFORMED),
    "make test": Make("pytest", "this is it"),
    "onetrip check onetrip.yaml": Run(says="ok"),
    "onetrip serve onetrip.yaml": Look("it runs while the others do"),
    "curl http://127.0.0.1:8080/v1/payments": Run(EDGE, says="/v1/payments", needs=("curl",)),
    "onetrip status": Run(says="us-east"),
    "onetrip drain us-east --for 15m": Run(says="us-east drained for payments"),
    "onetrip explain http://127.0.0.1:8080/": Run(EDGE, says="payments"),
    "onetrip --install-completion": Look(
        "it writes to the shell's own files; --show-completion is tried in test_cli.py"
    ),
    "onetrip --version": Run(says="onetrip "),
    # docs/bench.md
    "onetrip bench https://api.example.com/health --rate 200 --duration 30s": Run(
        {"https://api.example.com/health": "http://{origin}/", "30s": "1s", "200": "20"}, says="p99"
    ),
    "onetrip bench us=https://us.example.com/ eu=https://eu.example.com/ ap=https://ap.example.com/ --html report.html": Run(
        {f"https://{name}.example.com/": "http://{origin}/" for name in ("us", "eu", "ap")}, SHORT_BENCH, says="eu"
    ),
    "onetrip bench --ab direct=https://us.example.com/ proxied=http://localhost:8080/": Run(
        US, SHORT_BENCH, says="proxied"
    ),
    "onetrip bench compare before.json after.json --fail-if 'p99>+5%'": Run(says="p99"),
    # Not ours.
    "jq '.regions[] | {name, p99: .phases.total.p99_ms, cold: .states.cold.total.p50_ms}' result.json": Look(
        "test_the_fields_that_jq_is_shown_are_there reads them"
    ),
    # docs/load.md
    "make load": Make("locust -f loadtests/locustfile.py", "it waits for a browser"),
    "make load ARGS='--scenario region-loss --headless --timeline loss.html'": Make(
        "locust -f loadtests/locustfile.py --scenario region-loss --headless --timeline loss.html",
        "tests/loadtests/test_locust_run.py runs it",
    ),
    "locust -f loadtests/locustfile.py --host http://localhost:8080 --scenario ramp --peak 500": Run(
        {"500": "20", **EDGE}, "--headless --only-summary --seconds 2", needs=("locust",)
    ),
    # docs/comparison.md
    **{
        f"python -m loadtests.compare{options}": Look(TAKES_LONG)
        for options in (
            "",
            " --only cold,burst,blackhole --quick",
            " --proxies onetrip --only tail --keep /tmp/wan",
            " --docs docs/comparison.md",
            " --only cold,idle --against build/compare/compare.json",
        )
    },
    # docs/demo.md
    "onetrip demo": Look(PERFORMED),
    "onetrip demo --fast": Look(PERFORMED),
    "onetrip demo --json > demo.json": Look(PERFORMED),
    "onetrip demo --keep": Look(PERFORMED),
    "onetrip demo --mode netns": Look(PERFORMED),
    # docs/lab.md
    **{
        f"python -m loadtests.lab {words}": Look(LAB_WAY)
        for words in (
            "up --regions us=60,eu=80,ap=150 --tls",
            r"exec home -- curl -sk -o /dev/null -w '%{time_total}\n' https://10.66.2.1:8443/",
            "set us blackhole=on",
            "set 'us>home' loss=2%",
            "origin us late_share=2% late_ms=1000",
            "origin us/0 restart",
            "counters",
            "down",
        )
    },
}


def test_every_command_block_is_tried() -> None:
    unknown = [f"{one}: {one.command}" for one in SHOWN if one.command not in TABLE]
    assert not unknown, "say in TABLE how these are tried"
    assert set(TABLE) == {one.command for one in SHOWN}, "these are on no page any more"


# Running them.


@dataclass
class Place:
    """A directory with the README's config, its proxy and its two origins; `words` are its addresses."""

    directory: Path
    words: dict[str, str]
    environment: dict[str, str]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )


def readme_config() -> str:
    (text,) = ["\n".join(lines) for _, lines in blocks(ROOT / "README.md", "yaml")]
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("pages")
    origins = HttpOrigin("us"), HttpOrigin("eu")
    edge, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    words = {"edge": edge, "admin": admin, "origin": f"127.0.0.1:{origins[0].port}"}
    text = re.sub(r"\n +tls: \{\}.*", "", readme_config()).replace("127.0.0.1:8080", edge)
    for origin, name in zip(origins, ("us", "eu"), strict=True):
        text = text.replace(f"api-{name}.example.com:443", f"127.0.0.1:{origin.port}")
    (directory / "loadtests").symlink_to(ROOT / "loadtests")
    programs = directory / "bin"
    programs.mkdir()
    for name, module in (("onetrip", "-m proxy.cli"), ("python", ""), ("locust", "-m locust")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT),
        "ONETRIP_ADMIN": admin,
        "COLUMNS": "200",
    }
    running = Onetrip(directory, f'{text}\nadmin: {{address: "{admin}"}}\n').ready()
    try:
        found = Place(directory, words, environment)
        done = found.run(f"onetrip bench http://{words['origin']}/ {SHORT_BENCH} --json before.json")
        assert done.returncode == 0, done.stderr
        for copy in ("after.json", "result.json"):
            (directory / copy).write_bytes((directory / "before.json").read_bytes())
        yield found
    finally:
        running.stop()
        for origin in origins:
            origin.close()


def test_the_readme_s_config_is_one(tmp_path: Path) -> None:
    (tmp_path / "onetrip.yaml").write_text(readme_config())
    done = subprocess.run(
        [sys.executable, "-m", "proxy.cli", "check", str(tmp_path / "onetrip.yaml")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


@pytest.mark.parametrize("shown", [one for one in SHOWN if isinstance(TABLE.get(one.command), Run)], ids=str)
def test_it_runs(shown: Shown, place: Place) -> None:
    how = TABLE[shown.command]
    assert isinstance(how, Run)
    if how.needs:
        needs(*how.needs)
    command = f"{shown.command} {how.added}".strip()
    for word, by in how.replaced.items():
        command = command.replace(word, by.format(**place.words))
    done = place.run(command)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    assert how.says in done.stdout + done.stderr


@pytest.mark.parametrize("shown", [one for one in SHOWN if isinstance(TABLE.get(one.command), Make)], ids=str)
def test_make_would_run_it(shown: Shown) -> None:
    needs("make")
    how = TABLE[shown.command]
    assert isinstance(how, Make)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "--dry-run", *shlex.split(shown.command)[1:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert how.runs in done.stdout


def test_the_fields_that_jq_is_shown_are_there(place: Place) -> None:
    (command,) = [one.command for one in SHOWN if one.command.startswith("jq ")]
    (region,) = json.loads((place.directory / "result.json").read_text())["regions"]
    assert "name" in region
    for path in re.findall(r": \.([a-z0-9_.]+)", command):
        value = region
        for key in path.split("."):
            value = value[key]
        assert isinstance(value, int | float)


def test_the_lab_s_page(place: Place) -> None:
    """Its lab with shorter ways, in namespaces as shown."""
    needs("network namespaces", "curl")
    first, *others = [one.command for one in SHOWN if one.page == "docs/lab.md"]
    assert " up " in first
    assert others[-1].endswith(" down")

    def named(command: str) -> str:
        name = f"pages{os.getpid()}"
        return re.sub(r"^(python -m loadtests\.lab \w+)", rf"\1 --name {name}", command)

    short = named(first.replace("us=60,eu=80,ap=150", "us=2,eu=3,ap=4")) + " --mode netns --json"
    with subprocess.Popen(
        ["/bin/sh", "-c", f"exec {short}"],
        cwd=place.directory, env=place.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as lab:  # fmt: skip
        try:
            assert lab.stdout is not None
            assert json.loads(lab.stdout.readline())
            for command in others:
                done = place.run(named(command))
                assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert lab.wait(WAIT_S) == 0
        finally:
            lab.kill()


# Looking them up.


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def look_up(command: str) -> None:
    """AssertionError where the command names something of ours that does not exist."""
    if command.startswith("jq "):
        return
    words = shlex.split(re.sub(r"\s>\s.*$", "", command))
    options = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
    match words:
        case ["make", target, *_]:
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no {target}"
        case ["python", "-m", module, *rest] | [("locust" as module), *rest]:
            assert importlib.util.find_spec(module) is not None, f"no {module}"
            if options:
                sub = [word for word in rest[:1] if re.fullmatch("[a-z]+", word)]
                text = help_of(module, *sub) if module == "loadtests.lab" else help_of(module)
                missing = {option for option in options if option not in text}
                assert not missing, f"{module} has no {missing}"
        case ["onetrip", *rest]:
            from proxy.commands import app

            top = found = typer.main.get_command(app)
            if rest[0].startswith("-"):
                options -= {"--install-completion"}  # typer's own
            for word in rest:
                if word not in getattr(found, "commands", {}):
                    break
                found = found.commands[word]
            assert rest[0].startswith("-") or found is not top, f"no command {rest[0]}"
            known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
            assert options <= known, f"{found.name} has no {options - known}"


@pytest.mark.parametrize("shown", [one for one in SHOWN if isinstance(TABLE.get(one.command), Look)], ids=str)
def test_what_is_not_run_exists(shown: Shown) -> None:
    look_up(shown.command)


@pytest.mark.parametrize("shown", MENTIONED, ids=str)
def test_what_the_text_mentions_exists(shown: Shown) -> None:
    look_up(shown.command)


@pytest.mark.parametrize(
    "command",
    ["make nonsense", "python -m loadtests.nonsense", "python -m loadtests.compare --nonsense", "onetrip nonsense",
     "onetrip check --nonsense", "onetrip bench compare --nonsense"],
)  # fmt: skip
def test_a_command_that_does_not_exist_is_seen(command: str) -> None:
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        look_up(command)


@pytest.mark.parametrize("path", [*PAGES, *sorted((ROOT / "deploy").glob("*.yaml"))], ids=lambda path: path.name)
def test_yaml_on_the_pages_can_be_read(path: Path) -> None:
    texts = ["\n".join(lines) for _, lines in blocks(path, "yaml")] if path.suffix == ".md" else [path.read_text()]
    for text in texts:
        assert all(isinstance(document, dict) for document in YAML(typ="safe").load_all(text))
