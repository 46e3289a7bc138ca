"""The register of first flights: its window, its bounds, and that it never waits."""

import fcntl
import os
import signal

from tlscache.replay import ReplayRegister


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_register_remembers_for_its_window():
    clock = Clock()
    register = ReplayRegister(64, clock=clock)
    assert register.first_seen(b"a" * 32)
    assert not register.first_seen(b"a" * 32)
    assert register.first_seen(b"b" * 32)
    clock.now += 29
    assert not register.first_seen(b"a" * 32)
    clock.now += 3
    assert register.first_seen(b"a" * 32)


def test_a_full_register_takes_everything_for_seen():
    register = ReplayRegister(8, clock=Clock())
    fresh = [register.first_seen(bytes((n,)) * 32) for n in range(20)]
    assert fresh == [True] * 8 + [False] * 12


def test_a_locked_register_does_not_wait():
    register = ReplayRegister(8)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        fcntl.lockf(register._file, fcntl.LOCK_EX)
        os.write(writing, b"locked")
        signal.pause()
    try:
        assert os.read(reading, 6) == b"locked"
        assert not register.first_seen(b"a" * 32)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert register.first_seen(b"a" * 32)
