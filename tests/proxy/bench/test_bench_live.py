from __future__ import annotations

import io

from rich.console import Console

from proxy.bench.engine import Snapshot
from proxy.bench.live import Header, LiveView, Screen, sparkline
from proxy.bench.plan import Plan, targets
from proxy.bench.record import Histogram


def snapshot(elapsed_s: float, answered: int, latency_s: float = 0.05, **changes: object) -> Snapshot:
    histogram = Histogram()
    histogram.record(latency_s)
    values: dict[str, object] = {
        "elapsed_s": elapsed_s,
        "in_flight": 3,
        "started": [answered],
        "answered": [answered],
        "failed": [0],
        "open": [2],
        "queued": [0],
        "recent": [histogram.counts],
        "lag_p99_us": 40,
        "warming_up": False,
    }
    return Snapshot(**(values | changes))  # type: ignore[arg-type]


def shown(screen: Screen) -> str:
    file = io.StringIO()
    Console(width=140, file=file, color_system=None).print(screen.render())
    return file.getvalue()


def test_a_sparkline_runs_from_the_smallest_to_the_largest() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"


def test_noise_does_not_look_like_mountains() -> None:
    assert set(sparkline([100.0, 100.1, 100.0, 100.2])) == {"▁"}


def test_the_screen_shows_progress_rate_and_latency() -> None:
    screen = Screen(Header(["us"], 200.0, 30.0, 0.0))
    assert "starting" in shown(screen)
    screen.take(snapshot(1.0, 200))
    screen.take(snapshot(2.0, 400))
    text = shown(screen)
    assert "2/30 s" in text
    assert "200/s asked, 3 in flight" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("us"))
    assert row.split()[1:7] == ["200", "400", "0", "2", "0", "50.0"]


def test_the_screen_names_its_stage() -> None:
    screen = Screen(Header(["us"], 200.0, 30.0, 5.0))
    screen.take(snapshot(1.0, 0, warming_up=True))
    assert "warming up" in shown(screen)
    screen.take(snapshot(31.0, 100, recent=[{}]))
    assert "waiting for answers" in shown(screen)


def test_the_viewer_runs_beside_and_ends_with_its_input() -> None:
    view = LiveView(Plan(targets(["us=http://localhost/"])))
    viewer = view._viewer
    assert viewer is not None
    view.feed(snapshot(1.0, 10))
    view.close()
    view.close()
    assert viewer.returncode == 0
