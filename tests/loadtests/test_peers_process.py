"""The accounts: CPU time and memory of real processes, and how snapshots add up."""

import os
import sys

import pytest

from loadtests.peers import process
from loadtests.peers.process import CpuSnapshot, Program, cpu_snapshot, free_port, session_pids
from loadtests.peers.wiring import Unavailable


def test_threads_give_the_total_and_ticks_divide_it():
    start = CpuSnapshot({1: 1_000_000_000, 2: 500_000_000}, {1: (100, 50)})
    end = CpuSnapshot({1: 3_000_000_000, 2: 500_000_000, 3: 1_000_000_000}, {1: (325, 125)})
    used = start.until(end)
    assert used.total_s == pytest.approx(3.0)
    assert used.user_s == pytest.approx(3.0 * 0.75)
    assert used.system_s == pytest.approx(3.0 * 0.25)


def test_a_thread_that_ended_leaves_its_ticks():
    start = CpuSnapshot({1: 1_000_000_000, 2: 500_000_000}, {1: (100, 50)})
    end = CpuSnapshot({1: 1_000_000_000}, {1: (200, 50)})
    assert start.until(end).total_s == pytest.approx(100 / process.TICKS_PER_S)


def test_ticks_that_are_only_rounded_up_change_nothing():
    start = CpuSnapshot({1: 0}, {1: (0, 0)})
    assert start.until(CpuSnapshot({1: 21_000_000}, {1: (3, 2)})).total_s == pytest.approx(0.021)


def test_a_kernel_without_schedstat_leaves_ticks():
    used = CpuSnapshot({}, {1: (0, 0)}).until(CpuSnapshot({}, {1: (30, 10)}))
    assert used.total_s == pytest.approx(40 / process.TICKS_PER_S)
    assert used.user_s == pytest.approx(30 / process.TICKS_PER_S)


def test_a_process_that_is_new_counts_from_nothing():
    used = CpuSnapshot({1: 0}, {1: (0, 0)}).until(CpuSnapshot({1: 0, 9: 7_000_000}, {1: (0, 0), 9: (0, 1)}))
    assert used.total_s == pytest.approx(0.007)
    assert used.system_s == pytest.approx(0.007)


def test_a_stretch_without_any_time_is_zero():
    snapshot = CpuSnapshot({1: 5}, {1: (1, 1)})
    assert snapshot.until(snapshot) == (0.0, 0.0, 0.0)


def test_a_name_with_parentheses_and_spaces_is_read_past(tmp_path, monkeypatch):
    line = "7 (a) R b)) S 1 7 99 0 -1 4194304 1 0 0 0 123 45 0 0 20 0 1 0 5 6 7"
    monkeypatch.setattr(process.Path, "read_text", lambda self: line)
    fields = process.stat_fields(7)
    assert (fields[0], fields[3], fields[11], fields[12]) == ("S", "99", "123", "45")


WORKER = """
import os, sys, threading, time
def burn():
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass
child = os.fork()
threads = [threading.Thread(target=burn, daemon=True) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(time.process_time(), flush=True)
time.sleep(60)
"""


def test_a_session_s_processes_are_all_counted_and_all_ended(tmp_path):
    output = tmp_path / "out"
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    with Program("worker", [sys.executable, "-c", WORKER], tmp_path, core, output) as program:
        assert os.sched_getaffinity(0) == before
        assert os.sched_getaffinity(program.pid) == {core}
        while len(reported := output.read_text().split()) < 2:
            os.sched_yield()
        pids = program.pids()
        assert len(pids) == 2
        rounding_s = len(pids) * process.ROUNDING_TICKS / process.TICKS_PER_S
        assert CpuSnapshot().until(program.cpu()).total_s >= sum(float(text) for text in reported) - rounding_s
        assert program.memory() > 1_000_000
    assert session_pids(program.pid) == []


def test_a_process_that_is_gone_is_left_out():
    assert cpu_snapshot([2**22 + 1]) == CpuSnapshot()


def test_a_program_that_ends_says_why(tmp_path):
    code = "import sys; sys.exit('  the port is taken\\n')"
    core = min(os.sched_getaffinity(0))
    with (
        Program("broken", [sys.executable, "-c", code], tmp_path, core) as program,
        pytest.raises(Unavailable, match="did not start: the port is taken"),
    ):
        program.wait_listening(free_port())


def test_a_program_that_never_listens_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "START_TIMEOUT_S", 0.2)
    core = min(os.sched_getaffinity(0))
    with (
        Program("deaf", ["sleep", "60"], tmp_path, core) as program,
        pytest.raises(Unavailable, match="did not listen"),
    ):
        program.wait_listening(free_port())
    assert session_pids(program.pid) == []


def test_a_core_s_busy_time_grows_and_an_unknown_core_is_refused():
    first = process.core_busy_s(0)
    assert process.core_busy_s(0) >= first > 0
    with pytest.raises(ValueError, match="no core 4096"):
        process.core_busy_s(4096)


def test_free_ports_are_below_the_outgoing_range():
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        low = int(file.read().split()[0])
    assert all(1024 <= free_port() < low for _ in range(20))
