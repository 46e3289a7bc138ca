"""What a run does: the targets, the schedule, the requests. Values only, checked once; nothing here does I/O.

The schedule is open loop: slot i starts at i / rate (or after exponential gaps, `poisson`), whatever became of the
slots before it. Targets take slots in turn, so that each gets rate / n and all of them meet the same minutes of the
network. In an A/B run every pair of slots goes to both targets in random order, which keeps a drift or a periodic
disturbance from favouring one of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

USER_AGENT: Final = "onetrip-bench"
CONNECTIONS_DEFAULT: Final = {"h1": 64, "h2": 1}

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)?")
_DURATION_UNIT_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_NAMED: Final = re.compile(r"(?P<name>[^=/:?#\s]+)=(?P<url>\S+)")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_INTERVALS_S: Final = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_INTERVALS_WANTED: Final = 60


class PlanError(ValueError):
    """The run that was asked for can't be done; the text says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Target:
    """One URL and the name its figures stand under. `target` is the origin form; `authority` what Host says."""

    name: str
    url: str
    host: str
    port: int
    tls: bool
    target: str
    authority: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Durations in seconds, `rate` in requests per second over all targets.

    `connections` is the most that each target may hold open; `connection_requests` closes one after as many requests
    (0: never).
    """

    targets: tuple[Target, ...]
    rate: float = 200.0
    duration_s: float = 30.0
    warmup_s: float = 0.0
    timeout_s: float = 10.0
    protocol: str = "h1"
    connections: int = 64
    connection_requests: int = 0
    streams: int = 100
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    insecure: bool = False
    ca: str = ""
    resume: bool = True
    poisson: bool = False
    ab: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise PlanError("no URL: give at least one, such as http://localhost:8080/ or us=https://us.example.com/")
        if self.protocol not in CONNECTIONS_DEFAULT:
            raise PlanError(f"{self.protocol} is not available yet: use --h1 or --h2")
        for text, value in (("--rate", self.rate), ("--duration", self.duration_s), ("--timeout", self.timeout_s)):
            if not value > 0:
                raise PlanError(f"{text} {value:g}: must be above 0")
        if self.warmup_s < 0:
            raise PlanError(f"--warmup {self.warmup_s:g}: must not be negative")
        if self.connections < 1 or self.streams < 1 or self.connection_requests < 0:
            raise PlanError("--connections and --streams must be at least 1, --connection-requests at least 0")
        if self.ab and len(self.targets) != 2:
            raise PlanError(
                f"--ab compares exactly two URLs, and {len(self.targets)} were given: onetrip bench --ab URL_A URL_B"
            )
        if not _TOKEN.fullmatch(self.method):
            raise PlanError(f"--method {self.method!r}: not a method name")
        if (self.warmup_s + self.duration_s) * self.rate / len(self.targets) < 1:
            raise PlanError(
                "this rate and duration make less than one request for each URL: raise --rate or --duration"
            )

    @property
    def interval_s(self) -> float:
        """The width of one step of the time series: a round number that makes about sixty of them, or more."""
        return max(
            (s for s in _INTERVALS_S if s * _INTERVALS_WANTED <= self.duration_s),
            default=self.duration_s / _INTERVALS_WANTED,
        )

    def schedule(self) -> Iterator[tuple[float, int]]:
        """Each slot's intended start, in seconds after the run's, and the index of its target."""
        choice = random.Random(self.seed)
        end_s = self.warmup_s + self.duration_s
        count = len(self.targets)
        order = list(range(count))
        offset_s = choice.expovariate(self.rate) if self.poisson else 0.0
        slot = 0
        while offset_s < end_s:
            turn = slot % count
            if turn == 0 and self.ab:
                choice.shuffle(order)
            yield offset_s, order[turn]
            slot += 1
            offset_s = offset_s + choice.expovariate(self.rate) if self.poisson else slot / self.rate


def duration_s(text: str) -> float:
    """Read `30s`, `500ms`, `2m`, `1h` or a plain number of seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise PlanError(f"{text!r} is not a duration: write 30s, 500ms, 2m or 1h")
    return float(match[1]) * _DURATION_UNIT_S[match[2]]


def header(text: str) -> tuple[str, str]:
    """Read `name: value`."""
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name.strip()) or "\r" in value or "\n" in value or "\0" in value:
        raise PlanError(f"--header {text!r}: write it as 'name: value'")
    return name.strip(), value.strip()


def targets(texts: list[str]) -> tuple[Target, ...]:
    """Read URLs and NAME=URLs. A URL without a name is called by its host and port, and by its path where those are not
    unique.
    """
    parsed = [_target(text) for text in texts]
    given = [target.name for target in parsed if target.name]
    for name in given:
        if given.count(name) > 1:
            raise PlanError(f"the name {name!r} is given twice: every region needs its own")
    taken = set(given)
    named = []
    for target in parsed:
        name = target.name
        if not name:
            alike = sum(other.authority == target.authority and not other.name for other in parsed)
            base = target.authority if alike == 1 else target.authority + target.target
            name = next(n for n in (base, *(f"{base} #{i}" for i in range(2, len(parsed) + 2))) if n not in taken)
            taken.add(name)
        named.append(Target(name, target.url, target.host, target.port, target.tls, target.target, target.authority))
    return tuple(named)


def _target(text: str) -> Target:
    match = _NAMED.fullmatch(text)
    name, url = (match["name"], match["url"]) if match else ("", text)
    if "://" not in url:
        raise PlanError(f"{text!r} has no scheme: did you mean {name + '=' if name else ''}http://{url} ?")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise PlanError(f"{text!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise PlanError(f"{text!r}: the scheme must be http or https, not {parts.scheme!r}")
    if not host:
        raise PlanError(f"{text!r} names no host")
    if parts.username is not None:
        raise PlanError(f"{text!r} carries credentials: send them by --header 'authorization: …'")
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target.encode("ascii")
    except UnicodeError:
        raise PlanError(f"{text!r}: percent-encode what is not ASCII") from None
    if any(character <= " " for character in target):
        raise PlanError(f"{text!r}: percent-encode spaces and control characters")
    tls = parts.scheme == "https"
    default_port = 443 if tls else 80
    bracketed = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    authority = bracketed if port in (None, default_port) else f"{bracketed}:{port}"
    return Target(name, url, ascii_host, port if port is not None else default_port, tls, target, authority)
