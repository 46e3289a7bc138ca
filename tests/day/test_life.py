"""The program's processes: a worker dies or hangs, a successor takes over, a signal comes while it starts, descriptors
run out, the wall clock is set.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from .client import H1Client
from .ports import free_port
from .program import ROOT, alive, until
from .streams import Chat, Socket
from .town import Config, Town, set_at
from .traffic import Failure

LOST = ("IncompleteReadError", "ClosedWhileIdle", "ConnectionResetError", "ended")


def _lost_with_worker(failure: Failure) -> bool:
    return any(word in failure.text for word in LOST)


async def test_a_worker_is_killed(tmp_path: Path) -> None:
    """What it was at is lost, nothing else; its successor knows of the operator's drain, and no counter falls."""
    async with Town(tmp_path, workers=2, edit=set_at("upstreams.app.drain", {"ramp": "200ms"})) as town:
        await town.program.post("/drain", region="near")
        await town.traffic.more()
        town.traffic.excuse = _lost_with_worker
        for count in (1, 2):
            os.kill(town.program.workers()[0], signal.SIGKILL)
            await town.program.event("worker_died", count)
            await until(town.program.is_ready, "ready again")
            assert not (await town.traffic.sample())["near"], "the new worker forgot the operator's drain"
        town.traffic.excuse = None
        assert len(town.traffic.excused) <= 12, [str(one) for one in town.traffic.excused]
        await town.traffic.more()
        await town.program.post("/undrain", region="near")


async def test_a_worker_hangs(tmp_path: Path) -> None:
    """It is not ready, and its counters are not forgotten."""
    async with Town(tmp_path, workers=2) as town:
        await town.traffic.pause()
        worker = town.program.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        try:

            async def not_ready() -> bool:
                return not await town.program.is_ready()

            await until(not_ready, "not ready with a stopped worker")
            town.watch_counters(await town.program.metrics())
        finally:
            os.kill(worker, signal.SIGCONT)
        await until(town.program.is_ready, "ready again")
        town.traffic.start()
        await town.traffic.more()


async def test_a_successor_takes_over(tmp_path: Path, workers: int) -> None:
    """Not a request fails, streams go on in the old program, and the operator's drain goes on in the new one."""

    def edit(config: Config) -> None:
        config["listeners"].append({"name": "grpc", "address": f"127.0.0.1:{free_port()}", "upstream": "h2"})
        config["upstreams"]["h2"] = {**config["upstreams"]["app"], "protocol": "h2"}
        config["upstreams"]["app"]["drain"] = {"ramp": "200ms"}

    async with Town(tmp_path, workers=workers, edit=edit) as town:
        await town.program.post("/drain", region="near", upstream="app")
        await town.traffic.more()
        streams = [await Socket.open(town.program.port()), await Chat.open(town.program.port("grpc"))]
        for stream in streams:
            await stream.say("at first")
        town.watching = False
        await town.program.hand_over()
        assert not (await town.traffic.sample())["near"], "the new program forgot the operator's drain"
        for stream in streams:
            await stream.say("after the hand-over")
            await stream.close()
        process = town.program.process
        assert process is not None
        await until(lambda: process.poll() is not None, "the old program ends once its streams have")
        assert process.returncode == 0
        town.forget_counters()
        town.watching = True
        await town.program.post("/undrain", region="near", upstream="app")
        await town.settle()
        await town.note_levels()
        town.traffic.start()


async def test_two_successors_in_a_row(tmp_path: Path, workers: int) -> None:
    async with Town(tmp_path, workers=workers) as town:
        town.watching = False
        left = []
        for _ in range(2):
            left += town.program.processes()
            await town.program.hand_over()
            await town.traffic.more(40)
        await until(
            lambda: town.program.process is not None and town.program.process.poll() == 0, "the first ended well"
        )
        await until(lambda: not any(map(alive, left)), "nothing is left of the first and the second")
        await town.settle()
        await town.note_levels()
        town.forget_counters()
        town.watching = True


async def test_a_successor_with_a_faulty_file(tmp_path: Path, workers: int) -> None:
    """It does not come up; the running program goes on."""
    async with Town(tmp_path, workers=workers) as town:
        town.program.write({**town.config, "nonsense": 1})
        town.program.signal(signal.SIGUSR2)
        await town.program.event("hand_over_failed")
        await town.traffic.more()
        town.program.write(town.config)


async def test_sigterm_at_any_moment_of_the_start(tmp_path: Path, workers: int) -> None:
    """It ends at once, with 0 (or by the signal, while Python itself starts), and leaves no process behind."""
    for number in range(8):
        town = Town(tmp_path / str(number), workers=workers)
        try:
            for origin in town.origins:
                await origin.start()
            town.program.launch()
            await asyncio.sleep(0.18 * number)  # the moment
            town.program.signal(signal.SIGTERM)
            code = await town.program.wait()
            assert code in (0, -signal.SIGTERM), f"SIGTERM after {0.18 * number:.2f} s: {code}: {town.program.tail()}"
            text = town.program.tail()
            assert "Traceback" not in text, text
            assert "worker_failed" not in text, text
            started = [one["pid"] for one in town.program.logged("worker_started")]
            assert not [pid for pid in started if alive(pid)]
        finally:
            await town.close()


async def test_descriptors_run_out(tmp_path: Path, workers: int) -> None:
    """Too many clients for the limit: when they are gone everything is as before, and no region was blamed for it."""
    town = Town(tmp_path, workers=workers, rate=50)
    try:
        for origin in town.origins:
            await origin.start()
        await town.program.start(prefix=("sh", "-c", 'ulimit -n 100; exec "$@"', "sh"))
        town.traffic.start()
        await town.traffic.more()
        await town.traffic.pause()
        crowd = []
        for _ in range(300):
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.2):
                    crowd.append(await H1Client.connect(town.program.port()))
        await asyncio.sleep(1.0)  # what the program does meanwhile is what is tried
        for client in crowd:
            client.close()
        await until(town.program.is_ready, "it answers again")
        town.complain()
        town.traffic.start()
        await town.traffic.more(100)
        assert not town.program.logged("region_state"), "a region was blamed for what we lacked"

        async def as_before() -> bool:
            return await town.leads("near", 20)

        await until(as_before, "the near region takes everything")
        assert len(town.program.log()) < 300, "the log is flooded"
        await town.check()
        town.faults = [one for one in town.faults if "descriptors" not in one and "memory" not in one]
        town.complain()
        assert await town.program.stop() == 0
    finally:
        await town.close()


_STEPPED = """\
import time as _time
_real = _time.time
def _shifted():
    try:
        with open({path!r}) as file:
            return _real() + float(file.read() or 0)
    except OSError:
        return _real()
_time.time = _shifted
"""


async def test_the_clock_is_stepped(tmp_path: Path, workers: int) -> None:
    """An hour ahead, a day back: time-outs, drains and pools go by the monotonic clock."""
    (tmp_path / "sitecustomize.py").write_text(_STEPPED.format(path=str(tmp_path / "offset")))
    environment = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    async with Town(tmp_path, workers=workers, environment=environment) as town:
        log = tmp_path / "access.log"
        for offset_s in (3600, -86400, 0):
            (tmp_path / "offset.new").write_text(str(offset_s))
            (tmp_path / "offset.new").rename(tmp_path / "offset")
            await town.traffic.more(80)
            size = log.stat().st_size
            await until(lambda size=size: log.stat().st_size > size, "requests are logged")
        assert await town.leads("near", 40)
