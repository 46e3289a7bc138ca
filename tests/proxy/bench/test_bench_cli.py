"""The command line, from outside: arguments, files, exit codes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from proxy.bench.cli import app
from proxy.bench.result import load

QUICK = ["--rate", "60", "--duration", "0.5s", "--no-calibrate"]


class Origin(BaseHTTPRequestHandler):
    """Answers anything; /echo with the method, a header and the body it saw."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one write, or Nagle and delayed acknowledgements make 40 ms of them

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        text = f"{self.command} {self.headers.get('x-test')} {body.decode()}"
        self.server.seen.append(text)  # type: ignore[attr-defined]
        self.send_response(503 if self.path == "/503" else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(origin: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{origin.server_address[1]}/"


def bench(*arguments: str, program: typer.Typer = app) -> tuple[int, str]:
    result = CliRunner().invoke(program, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_run_writes_all_its_reports(url: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("r.json", "r.csv", "r.html")]
    code, output = bench(url, *QUICK, "--json", str(files[0]), "--csv", str(files[1]), "--html", str(files[2]))
    assert code == 0
    assert "latency" in output
    result = load(files[0])
    assert result.regions[0].answered == 30
    assert files[1].read_text().startswith("region,state,phase,count,")
    assert files[2].read_text().startswith("<!doctype html>")


def test_options_may_come_first_and_regions_have_names(url: str) -> None:
    code, output = bench(*QUICK, f"us={url}", f"eu={url}")
    assert code == 0
    assert "us" in output
    assert "eu" in output


def test_json_to_stdout_is_nothing_but_json(url: str) -> None:
    result = CliRunner().invoke(app, [url, *QUICK, "--json", "-"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["regions"][0]["answered"] == 30
    assert "latency" in result.stderr


def test_method_headers_and_body_arrive(url: str, origin: ThreadingHTTPServer, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_text("from a file")
    code, _ = bench(url, *QUICK, "--method", "POST", "--header", "x-test: yes", "--body", f"@{body}")
    assert code == 0
    assert origin.seen[-1] == "POST yes from a file"  # type: ignore[attr-defined]


def test_an_ab_run_says_how_sure_it_is(url: str) -> None:
    code, output = bench("--ab", f"old={url}", f"new={url}", *QUICK)
    assert code == 0
    assert "A/B: new against old" in output
    assert "95% interval" in output


def test_nothing_answered_is_a_failure() -> None:
    code, output = bench("http://127.0.0.1:1/", *QUICK)
    assert code == 1
    assert "refused, 30 times" in output
    assert "nothing listens there" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["localhost:8080"], "did you mean http://localhost:8080"),
        (["--h3", "http://localhost/"], "not available yet"),
        (["--h1", "--h2", "http://localhost/"], "exclude each other"),
        (["--ab", "http://localhost/"], "exactly two URLs"),
        (["--duration", "soon", "http://localhost/"], "not a duration"),
        (["--body", "@/nonexistent/body", "http://localhost/"], "No such file"),
        (["--json", "/nonexistent/r.json", "http://localhost/"], "can't be written"),
        (["--json", "-", "--csv", "-", "http://localhost/"], "only one report"),
        (["--ca", "/nonexistent/ca.pem", "https://localhost/"], "No such file"),
        (["--nosuch", "http://localhost/"], "nosuch"),
        (["--rate", "5"], "URL"),
    ],
)
def test_wrong_usage_is_2_and_says_what_to_do(arguments: list[str], said: str) -> None:
    code, output = bench(*arguments)
    assert code == 2
    assert said in output


def test_help_has_an_example_and_no_internal_name() -> None:
    for arguments in ([], ["--help"]):
        code, output = bench(*arguments)
        assert code in (0, 2)
        assert "--rate" in output
        assert "onetrip bench https://example.com/" in output
        assert "bench run" not in output
    assert "--fail-if" in bench("compare", "--help")[1]


def test_it_works_as_a_part_of_a_larger_program(url: str) -> None:
    program = typer.Typer()
    program.add_typer(app, name="bench")
    program.command("other")(lambda: None)
    assert bench("bench", url, *QUICK, program=program)[0] == 0
    assert bench("bench", "schema", program=program)[0] == 0


def test_compare_passes_fails_and_refuses(url: str, tmp_path: Path) -> None:
    good, bad, verdict = (str(tmp_path / name) for name in ("good.json", "bad.json", "verdict.json"))
    assert bench(url, *QUICK, "--json", good)[0] == 0
    assert bench(f"{url}503", *QUICK, "--json", bad)[0] == 0
    rules = ["--fail-if", "errors>1%", "--fail-if", "p99>+100000%"]
    assert bench("compare", good, good, *rules)[0] == 0
    code, output = bench("compare", good, bad, *rules, "--json", verdict)
    assert code == 1
    assert "FAILED errors>1%" in output
    assert json.loads(Path(verdict).read_text())["passed"] is False
    code, output = bench("compare", good, good, "--fail-if", "p42>1%")
    assert code == 2
    assert "write it like" in output
    code, output = bench("compare", good, str(tmp_path / "missing.json"))
    assert code == 2
    assert "No such file" in output


def test_the_schema_is_printed() -> None:
    code, output = bench("schema")
    assert code == 0
    assert json.loads(output)["title"] == "Result"
