"""The numbers of a run as a document: what `--json` writes, `compare` reads, and every report shows.

`Result.model_json_schema()` is the published schema (`onetrip bench schema`). Latencies are milliseconds; histograms
are HdrHistogram's V2 format in base64 with microseconds as their unit, so that its tools can read them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT: Final = "onetrip-bench/1"


class ResultError(ValueError):
    """A file is not a result of `onetrip bench`; the text says why."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True, frozen=True)


class Summary(_Model):
    """One distribution of latencies, in milliseconds."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float = Field(alias="p99.9_ms")
    max_ms: float


class IntervalResult(_Model):
    """One step of the time series: the requests whose intended start lies in it."""

    start_s: float
    count: int
    failed: int
    total: Summary | None = None
    histogram: str = Field("", description="of `total`; empty where nothing was answered")


class Failure(_Model):
    """One kind of failure: how often, examples of what happened, and what to do about it."""

    kind: str
    count: int
    examples: list[str]
    advice: str


class RegionResult(_Model):
    """One URL. `phases` and `states` hold a summary by phase, and by connection state and phase."""

    name: str
    url: str
    requests: int = Field(description="started in the measured time; the sum of answered, failed and unfinished")
    answered: int
    failed: int
    unfinished: int
    rate: float = Field(description="answers per second")
    error_share: float = Field(description="failures and 5xx answers, as a share of all requests that ended")
    statuses: dict[str, int]
    failures: list[Failure]
    connections_opened: int
    bytes_received: int
    tls_versions: dict[str, int]
    phases: dict[str, Summary]
    states: dict[str, dict[str, Summary]]
    histogram: str = Field(description="of `total`: from the intended start to the last byte")
    service_histogram: str = Field(description="of `service`: from the real start, uncorrected")
    intervals: list[IntervalResult]


class GeneratorResult(_Model):
    """How well this program kept to its schedule, and what it costs."""

    lagging: bool
    lag: Summary | None = Field(description="how much later than intended requests were started")
    late_share: float = Field(description="of requests started more than 1 ms late")
    cpu_share: float = Field(description="of one core")
    cpu_us_per_request: float
    overhead_p50_ms: float | None = Field(
        description="what this program adds to a latency: an upper bound, never subtracted"
    )
    overhead_p99_ms: float | None


class DifferenceResult(_Model):
    """b - a of one percentile, with its confidence interval (null: too few intervals to give one)."""

    a_ms: float
    b_ms: float
    difference_ms: float
    low_ms: float | None
    high_ms: float | None
    certain: bool = Field(description="the interval excludes zero")


class AbResult(_Model):
    """An interleaved comparison."""

    a: str
    b: str
    confidence: float
    percentiles: dict[str, DifferenceResult]


class PlanResult(_Model):
    """What was asked for."""

    rate: float
    duration_s: float
    warmup_s: float
    timeout_s: float
    protocol: str
    connections: int
    connection_requests: int
    method: str
    poisson: bool
    body_bytes: int
    resume: bool


class Result(_Model):
    """One run of `onetrip bench`."""

    format: Literal["onetrip-bench/1"] = FORMAT
    version: str
    started: str = Field(description="ISO 8601, UTC")
    interrupted: bool
    elapsed_s: float
    measured_s: float
    interval_s: float
    plan: PlanResult
    generator: GeneratorResult
    warnings: list[str]
    regions: list[RegionResult]
    ab: AbResult | None = None

    def to_json(self) -> str:
        """The document, with a line break at its end."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def load(path: Path) -> Result:
    """Read what `--json` wrote. ResultError: it can't be read, or is something else."""
    try:
        return Result.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ResultError(f"{path}: not a result of `onetrip bench --json`: {where}: {first['msg']}") from None


def program_version() -> str:
    """The installed version of this program."""
    try:
        return version("onetrip")
    except PackageNotFoundError:
        return "unknown"
