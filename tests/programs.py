"""What a test needs beyond Python packages, and what happens where the machine does not have it.

    nginx = needs("nginx")        # the program's path

Where something is missing the test is skipped and says so, and the run's last line sums up (`conftest.py`). Where
`CI=true` it fails: there a missing program is a fault of the set-up. Nothing else in the tests skips (`test_programs.py`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final, NoReturn

import pytest

SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"  # where Debian puts servers, and PATH may not have it


def _namespaces() -> str:
    """The WAN lab's network namespaces can be made (as root, or where users may make namespaces of their own)."""
    from loadtests.lab import Lab, LabError

    async def opened() -> str:
        try:
            async with Lab.open(mode="netns", regions={"us": 1}):
                return "yes"
        except (LabError, OSError):
            return ""

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(opened())


def _mount_namespaces() -> str:
    """A program may have an /etc/resolv.conf of its own, and a test port 53."""
    path = shutil.which("unshare") or ""
    if os.geteuid() or not path or subprocess.run([path, "-m", "true"], check=False, capture_output=True).returncode:
        return ""
    return path


def _stream_module() -> str:
    """nginx's module for TCP, in a file or built in."""
    from loadtests.peers.nginx import Nginx
    from loadtests.peers.wiring import Unavailable

    try:
        return Nginx().stream_module() or "built in"
    except Unavailable:
        return ""


def _ipv6() -> str:
    """Loopback has an IPv6 address."""
    path = Path("/proc/net/if_inet6")
    return "yes" if path.exists() and " lo\n" in path.read_text() else ""


def _package(name: str) -> Callable[[], str]:
    def found() -> str:
        spec = importlib.util.find_spec(name)
        return str(spec.origin) if spec is not None else ""

    return found


def _program(*names: str) -> Callable[[], str]:
    def found() -> str:
        return next((path for name in names if (path := shutil.which(name) or shutil.which(name, path=SBIN))), "")

    return found


def _apt(package: str, *names: str) -> Need:
    return Need(_program(*names), f"apt-get install {package}")


@dataclass(frozen=True)
class Need:
    """How to find it ("" where it is missing), how to get it, and whether a CI machine must have it."""

    find: Callable[[], str]
    how: str
    in_ci: bool = True


NEEDS: Final = {
    "nginx": _apt("nginx", "nginx"),
    "haproxy": _apt("haproxy", "haproxy"),
    "openssl": _apt("openssl", "openssl"),
    "curl": _apt("curl", "curl"),
    "wrk": _apt("wrk", "wrk"),
    "h2load": _apt("nghttp2-client", "h2load"),
    "nghttp": _apt("nghttp2-client", "nghttp"),
    "nghttpd": _apt("nghttp2-server", "nghttpd"),
    "node": _apt("nodejs", "node"),
    "chromium": _apt("chromium", "chromium", "chromium-browser"),
    "nsenter": _apt("util-linux", "nsenter"),
    "make": _apt("make", "make"),
    "git": Need(_program("git"), "apt-get install git", in_ci=False),
    "envoy": Need(_package("envoy"), "pip install 'onetrip[lab]'"),
    "locust": Need(_package("locust"), "pip install 'onetrip[lab]'"),
    "network namespaces": Need(_namespaces, "run as root, with util-linux"),
    "mount namespaces": Need(_mount_namespaces, "run as root, with util-linux"),
    "ngx_stream_module": Need(_stream_module, "apt-get install libnginx-mod-stream"),
    "/proc": Need(lambda: "/proc" if sys.platform == "linux" and Path("/proc/self").exists() else "", "run on Linux"),
    "IPv6": Need(_ipv6, "give the loopback interface ::1", in_ci=False),
    "two cores": Need(lambda: "2" if len(os.sched_getaffinity(0)) > 1 else "", "a machine with two", in_ci=False),
}


@cache
def found(name: str) -> str:
    """Where it is; "" where it is missing."""
    return NEEDS[name].find()


def needs(*names: str) -> str:
    """Skip the test where one of these is missing (fail where `CI=true`). Returns the first one's path."""
    missing = [name for name in names if not found(name)]
    if missing:
        text = "needs " + ", ".join(f"{name} ({NEEDS[name].how})" for name in missing)
        if os.environ.get("CI") == "true" and any(NEEDS[name].in_ci for name in missing):
            pytest.fail(f"{text}; CI=true, so a missing program fails", pytrace=False)
        pytest.skip(text)
    return found(names[0])


def does_not_apply(why: str) -> NoReturn:
    """One of a matrix's pairs has no such case: nothing is missing."""
    pytest.skip(f"does not apply: {why}")


def summary(reasons: Iterable[str]) -> str:
    """The closing line: how many tests were skipped for what is missing, and how to get it. "" where none was."""
    counts: Counter[str] = Counter()
    tests = 0
    for reason in reasons:
        _, marker, text = reason.partition("needs ")
        names = [name for name in re.findall(r"(?:^|, )([^,(]+) \(", text) if name in NEEDS]
        if marker and names:
            tests += 1
            counts.update(names)
    if not tests:
        return ""
    told = ", ".join(f"{name} {count} ({NEEDS[name].how})" for name, count in counts.most_common())
    return f"{tests} tests were skipped for what this machine lacks: {told}. On Debian .ci/run installs all of it."


def interpreted(module: ModuleType) -> None:
    """For scripts over stand-ins: compiled code takes none but its own classes. (CI runs these tests interpreted, too.)"""
    if not str(module.__file__).endswith(".py"):
        does_not_apply(f"{module.__name__} is compiled: ONETRIP_PURE=1 runs this")
