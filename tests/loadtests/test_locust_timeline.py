"""The chart with the faults on it."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from loadtests.scenarios import timeline as module
from loadtests.scenarios.timeline import Timeline, page, svg

ended = st.tuples(st.floats(1000, 1060), st.floats(0.1, 20_000), st.booleans())


def filled() -> Timeline:
    timeline = Timeline()
    for number in range(100):
        timeline.add(1000 + number / 10, 60.0 + number, number % 10 == 9)
    timeline.begin("us <dark>", 1003.0)
    timeline.end("us <dark>", 1006.0)
    return timeline


def test_a_second_stands_for_itself() -> None:
    timeline = Timeline()
    for latency in (10.0, 20.0, 30.0):
        timeline.add(1000.2, latency, False)
    timeline.add(1000.9, 1.0, True)
    timeline.add(1001.0, 99.0, False)
    assert timeline.rows() == [(1000, 4, 20.0, 30.0, 30.0, 1), (1001, 1, 99.0, 99.0, 99.0, 0)]


def test_failures_have_no_latency() -> None:
    timeline = Timeline()
    timeline.add(1000.0, 5000.0, True)
    assert math.isnan(timeline.rows()[0][2])
    assert "1 failed" in svg(timeline)


def test_the_end_belongs_to_the_fault_that_is_open() -> None:
    timeline = Timeline()
    timeline.begin("us dark", 1.0)
    timeline.end("us dark", 2.0)
    timeline.begin("us dark", 3.0)
    timeline.end("eu dark", 4.0)
    assert [(mark.begin, mark.end) for mark in timeline.marks] == [(1.0, 2.0), (3.0, None)]


@given(st.lists(ended, max_size=60), st.lists(ended, max_size=60))
def test_workers_seconds_add_up(one: list[tuple[float, float, bool]], other: list[tuple[float, float, bool]]) -> None:
    whole, master, worker = Timeline(), Timeline(), Timeline()
    for entry in one + other:
        whole.add(*entry)
    for part in (one, other):
        for entry in part:
            worker.add(*entry)
        master.merge(worker.drain())
    assert not worker.seconds
    assert master.rows() == whole.rows()


def test_old_seconds_are_forgotten(monkeypatch: object) -> None:
    timeline = Timeline()
    for second in range(module.SECONDS_MAX + 5):
        timeline.add(second, 1.0, False)
    assert len(timeline.seconds) == module.SECONDS_MAX
    assert 0 not in timeline.seconds


def test_the_picture_is_well_formed_and_the_fault_is_in_it() -> None:
    text = svg(filled())
    root = ElementTree.fromstring(text)
    shaded = [one for one in root.iter("{http://www.w3.org/2000/svg}rect") if one.attrib.get("class") == "f"]
    assert len(shaded) == 1
    assert float(shaded[0].attrib["width"]) > 100  # three of ten seconds
    assert "us &lt;dark&gt;" in text


@given(st.lists(ended, max_size=30))
def test_whatever_was_recorded_makes_a_picture(entries: list[tuple[float, float, bool]]) -> None:
    timeline = Timeline()
    for entry in entries:
        timeline.add(*entry)
    assert "nan" not in svg(timeline)
    ElementTree.fromstring(svg(timeline))


def test_the_page_says_what_a_fault_cost() -> None:
    text = page(filled(), refresh_s=2)
    assert 'content="2"' in text
    assert "us &lt;dark&gt;: 3 s; p50" in text
    assert "3 failed" in text
    assert "refresh" not in page(Timeline())
