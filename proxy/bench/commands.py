"""What the commands of `onetrip bench` do, once their arguments have been read."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from . import compare as comparing
from .calibrate import calibrate as measure_overhead
from .engine import Engine, Outcome
from .evaluate import evaluate
from .html import to_html
from .live import LiveView
from .plan import Plan
from .report import console, tables, to_csv
from .result import Result, load


def run(
    plan: Plan, *, live: bool, calibrate: bool, json_file: str = "", csv_file: str = "", html_file: str = ""
) -> bool:
    """Run a plan and report on it. False: not one request was answered. OSError: a report can't be written."""
    result = evaluate(uvloop.run(measure(plan, live=live, calibrate=calibrate)))
    console(stderr="-" in (json_file, csv_file, html_file)).print(tables(result))
    for file, render in ((json_file, Result.to_json), (csv_file, to_csv), (html_file, to_html)):
        if file:
            _write(file, render(result))
    return any(region.answered for region in result.regions)


async def measure(plan: Plan, *, live: bool = False, calibrate: bool = True) -> Outcome:
    """Run a plan on the running loop; SIGINT and SIGTERM end it early."""
    loop = asyncio.get_running_loop()
    view = LiveView(plan) if live else None
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        overhead = await measure_overhead() if calibrate else None
        engine = Engine(plan, view.feed if view is not None else None)
        for number in signals:
            loop.add_signal_handler(number, engine.stop)
        outcome = await engine.run()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        if view is not None:
            view.close()
    outcome.overhead = overhead
    return outcome


def compare(before: Path, after: Path, rules: list[str], *, significant: bool, json_file: str) -> bool:
    """Compare two files. False: a rule is broken. ResultError, RuleError: a file or rule is no such thing."""
    parsed = [comparing.rule(text) for text in rules]
    a, b = load(before), load(after)
    pairs = comparing.pair_up(a, b)
    verdicts = comparing.judge(parsed, pairs, significant=significant)
    warnings = comparing.cautions(a, b)
    console(stderr=json_file == "-").print(comparing.tables(pairs, verdicts, warnings))
    if json_file:
        _write(json_file, json.dumps(comparing.document(pairs, verdicts, warnings), indent=1) + "\n")
    return not any(verdict.broken for verdict in verdicts)


def schema() -> str:
    """The JSON Schema of a result."""
    return json.dumps(Result.model_json_schema(by_alias=True), indent=2)


def _write(file: str, text: str) -> None:
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text, encoding="utf-8")
