"""What the demo shows: lines, and the screen."""

from __future__ import annotations

import io

import msgspec
from rich.console import Console

from proxy.demo.frame import Done, Frame, Region, Side, regions
from proxy.demo.scenario import REGIONS
from proxy.demo.view import Lines, main, render

STATUS = {
    "upstreams": {
        "shop": {
            "regions": [
                {
                    "region": name,
                    "state": "healthy",
                    "weight": weight,
                    "latency_ms": rtt_ms,
                    "endpoints": [{"pool": {"idle": 60, "busy": 4, "opened": {"full": 64}, "reused": 10}}],
                }
                for (name, rtt_ms), weight in zip(REGIONS.items(), (0.9, 0.1, 0.0), strict=True)
            ]
        }
    }
}
FINISHED = Done("steady", (1.01, 1.2, 0), (1.02, None, 3), "a note")


def frame(elapsed_s: float, phase: str = "steady", done: tuple[Done, ...] = (), finished: bool = False) -> Frame:
    sides = [Side("direct to us", 60.5, 61.0, 0, 6, 7), Side("through the proxy", None, None, 2, 0, 0)]
    shown = regions(STATUS, "shop", {"us": "blackhole"})
    return Frame(elapsed_s, 60.0, phase, "a caption", sides, shown, {"won": 2, "denied": 5}, list(done), finished)


def shown(lines_of: list[Frame]) -> list[str]:
    written: list[str] = []
    lines = Lines(written.append)
    for one in lines_of:
        lines.show(one)
    return written


class TestRegions:
    def test_sums_endpoints(self):
        us = regions(STATUS, "shop", {"us": "blackhole"})[0]
        assert us == Region("us", 60.0, "blackhole", "healthy", 0.9, 60.0, 60, 4, 64, 10)

    def test_of_a_proxy_that_does_not_run(self):
        assert [(one.name, one.state) for one in regions(None, "shop", {})] == [(name, "-") for name in REGIONS]


class TestLines:
    def test_a_phase_is_announced_once_and_then_a_line_a_second(self):
        written = shown([frame(10 + quarter / 4) for quarter in range(9)])
        assert written[0] == "steady: a caption"
        assert len(written) == 3
        assert all("us healthy 90% (blackhole)" in line for line in written[1:])
        assert all("2 failed" in line and "2 hedges, 30 handshakes saved" in line for line in written[1:])

    def test_a_phases_figures_come_when_its_last_requests_have_ended(self):
        at = [frame(seconds, "burst", (FINISHED,)) for seconds in (20.0, 21.5, 23.5, 24.5)]
        written = shown(at)
        (line,) = [one for one in written if "= steady" in one]
        assert "1.02 ×" in line
        assert "3 FAILED" in line
        assert "a note" in line
        assert written.index(line) > written.index("burst: a caption") + 1

    def test_none_is_left_out_at_the_end(self):
        written = shown([frame(20.0, done=(FINISHED,), finished=True)])
        assert any("= steady" in line for line in written)

    def test_say(self):
        written: list[str] = []
        Lines(written.append).say("setting the stage")
        assert written == ["setting the stage"]


class TestScreen:
    def test_shows_everything(self):
        console = Console(width=120, file=io.StringIO())
        console.print(render(frame(10.0, done=(FINISHED,))))
        text = console.file.getvalue()
        for word in (
            "a caption",
            "direct to us",
            "blackhole",
            "90%",
            "handshakes saved: 30",
            "2 won",
            "1.01 ×",
            "a note",
        ):
            assert word in text

    def test_reads_what_the_demo_writes_and_skips_a_cut_line(self, monkeypatch, capsys):
        monkeypatch.setattr("os.nice", lambda _: 0)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        whole = msgspec.json.encode(frame(10.0)).decode()
        main(io.StringIO(f'"the WAN"\n{whole}\n{whole[:100]}\n'))
        assert capsys.readouterr().out == "ready\n"
