"""The sections of an upstream as frozen values: each key with its type, its default, and what it means.

The descriptions and examples here and in `model` are the source of the JSON Schema and of the table in
`docs/config.md`. Durations are seconds, sizes bytes, shares fractions of one, paths absolute. A `None` means that a
section is off, or that a key was not named.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from .places import EndpointAddress, ReadableFile
from .values import (
    Affinity,
    Expect,
    Flag,
    Name,
    PositiveDuration,
    PositiveShare,
    Share,
    Weight,
    text,
    whole,
    words,
)


class Section(BaseModel):
    """A mapping of the config: strict types, no unknown keys, unchanging."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)


class OrOff:
    """Annotation: a section, or `off` (also `false`), which reads as the value `off`."""

    def __init__(self, section: type[Section], off: str | None = None) -> None:
        self.section = section
        self.off = off

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        section = handler.generate_schema(self.section)
        printing = core_schema.wrap_serializer_function_ser_schema(self._print, schema=section)
        return core_schema.no_info_wrap_validator_function(self._read, section, serialization=printing)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema["schema"]), {"enum": ["off", False]}]}

    def _read(self, value: Any, section: core_schema.ValidatorFunctionWrapHandler) -> Any:
        return self.off if value is False or value in ("off", "false") else section(value)

    def _print(self, value: Any, section: core_schema.SerializerFunctionWrapHandler) -> Any:
        return section(value) if isinstance(value, Section) else "off" if value == self.off else None


class RetrySection(Section):
    """Further tries of a request that failed."""

    attempts: Annotated[int, whole(0, 10)] = Field(default=2, description="Tries beyond the first.")
    budget: Share = Field(default=0.20, description="Retries, as a share of requests.")
    idempotency_key: Flag = Field(
        default=False, description="Requests that carry `idempotency-key` are retried and hedged whatever their method."
    )


class HedgeSection(Section):
    """A second try, in another region, while the first is still open."""

    budget: Share = Field(default=0.05, description="Hedges, as a share of requests.")
    min_delay: PositiveDuration = Field(default=0.005, description="Not sooner after the request's arrival than this.")
    max_delay: PositiveDuration = Field(default=1.0, description="Not later than this, however slow the regions are.")


class TimeoutsSection(Section):
    """How long each phase of a request may take."""

    connect: PositiveDuration = Field(
        default=2.0, description="Name resolution, TCP and TLS handshake of a connection."
    )
    response: PositiveDuration = Field(
        default=15.0, description="From the end of the request to the head of the response."
    )
    idle: PositiveDuration = Field(default=60.0, description="Without a byte in either direction.")
    total: PositiveDuration = Field(default=60.0, description="The whole request, all tries together.")


class UpstreamTls(Section):
    """TLS towards the endpoints."""

    server_name: Name | None = Field(
        default=None,
        description="The name asked for and verified. Absent: the endpoint's host.",
        examples=["api.example.com"],
    )
    ca: ReadableFile | None = Field(
        default=None,
        description="Authorities that certificates must chain to. Absent: the system's.",
        examples=["ca.pem"],
    )
    certificate: ReadableFile | None = Field(
        default=None, description="Client certificate (mTLS); with `key`.", examples=["me.pem"]
    )
    key: ReadableFile | None = Field(default=None, description="Its private key.", examples=["me.key"])
    verify: Flag = Field(
        default=True, description="Verify chain and name. Without it, anyone on the path can read and change all."
    )
    early_data: Flag = Field(
        default=False, description="Send safe requests without a body as 0-RTT on resumed connections."
    )
    spiffe_id: (
        Annotated[
            str, text(r"^spiffe://[a-z0-9._-]+(?:/[A-Za-z0-9._-]+)*$", "a SPIFFE id such as spiffe://prod/payments")
        ]
        | None
    ) = Field(default=None, description="The peer must present this SPIFFE id.", examples=["spiffe://prod/payments"])
    groups: tuple[Annotated[str, text(r"^[A-Za-z0-9_-]+$", "the name of a key exchange group such as X25519")], ...] = (
        Field(
            default=(),
            description="Key exchange groups offered, best first. Empty: OpenSSL's.",
            examples=["[X25519MLKEM768]"],
        )
    )


class RegionSection(Section):
    """A region's endpoints."""

    endpoints: tuple[EndpointAddress, ...] = Field(
        min_length=1,
        description="`host:port`, `IP:port`, `[v6]:port` or `unix:/path`.",
        examples=['["api-us.example.com:443"]'],
    )
    weight: Weight = Field(default=1.0, description="Traffic relative to the other regions, under `policy: weighted`.")
    standby: Flag = Field(default=False, description="Used only when the other regions can't take a request.")
    max_in_flight: Annotated[int, whole(1)] | None = Field(
        default=None,
        description="Requests in flight; what is more spills to the next region. Absent: any.",
        examples=["2000"],
    )


class RoutingSection(Section):
    """How a region is chosen."""

    policy: Annotated[Literal["latency", "weighted", "ordered"], words("latency", "weighted", "ordered")] = Field(
        default="latency",
        description="`latency`, `weighted` (by `weight` of the regions) or `ordered` (first healthy one).",
    )
    spread: PositiveShare = Field(
        default=0.05, description="How near the best latency a region must be to share the traffic (`policy: latency`)."
    )


class PoolSection(Section):
    """Connections to each endpoint."""

    warm: Annotated[int, whole(0, 10_000)] = Field(default=2, description="Ready connections kept for every endpoint.")
    max_connections: Annotated[int, whole(1, 1_000_000)] = Field(
        default=128, description="At most this many per endpoint."
    )
    max_age: PositiveDuration = Field(default=1800.0, description="A connection is replaced after about this long.")
    keepalive: PositiveDuration = Field(default=15.0, description="An idle connection is probed after this long.")


class HealthSection(Section):
    """Active health checks of every endpoint."""

    path: Annotated[str, text(r"^/[^\s#]*$", "a path such as /healthz", lambda given: f"/{given}")] | None = Field(
        default=None,
        description="GET this over HTTP. Without it and `grpc`, connecting is the check.",
        examples=["/healthz"],
    )
    grpc: Annotated[str, text(r"^[A-Za-z0-9_.]*$", "the name of a service such as payments.v1.Payments")] | None = (
        Field(
            default=None,
            description='Instead of `path`: ask grpc.health.v1 for this service (`""`: the whole server).',
            examples=["payments.v1.Payments"],
        )
    )
    interval: PositiveDuration = Field(default=2.0, description="From one check to the next.")
    timeout: PositiveDuration = Field(default=1.0, description="A check without an answer by then has failed.")
    expect: Expect = Field(
        default=((200, 299),),
        description="Statuses of a healthy endpoint: a code, a range, or several.",
        examples=["200,204"],
    )

    def expects(self, status: int) -> bool:
        """True where `status` is a healthy endpoint's."""
        return any(low <= status <= high for low, high in self.expect)


class DrainSection(Section):
    """How a failing region is taken out and let back in."""

    after: Annotated[int, whole(1, 1000)] = Field(
        default=3, description="Failures in a row before a region is drained."
    )
    hold: PositiveDuration = Field(
        default=10.0, description="A drained region rests at least this long; flapping doubles it."
    )
    ramp: PositiveDuration = Field(
        default=30.0, description="A recovered region's traffic grows to its full share over this."
    )
    max_drained: Share = Field(
        default=0.5, description="Share of the regions that may be drained at once without an operator."
    )


class DnsSection(Section):
    """Name resolution of the endpoints."""

    refresh: PositiveDuration = Field(
        default=30.0, description="Names are resolved again this often, off the request path."
    )


class UpstreamSection(Section):
    """A service and the regions that serve it."""

    protocol: Annotated[Literal["auto", "h1", "h2", "h3", "tcp"], words("auto", "h1", "h2", "h3", "tcp")] = Field(
        default="auto", description="`auto` (by ALPN: h2, then http/1.1), `h1`, `h2`, `h3` or `tcp`."
    )
    tls: UpstreamTls | None = Field(
        default=None,
        description="TLS towards the endpoints; `{}` for its defaults. Absent: plaintext.",
        examples=["{}"],
    )
    regions: dict[Name, RegionSection] = Field(
        min_length=1, description="By name, in the order that `policy: ordered` follows."
    )
    routing: RoutingSection = Field(default_factory=RoutingSection, description="How a region is chosen.")
    hedge: Annotated[HedgeSection | None, OrOff(HedgeSection)] = Field(
        default_factory=HedgeSection, description="Second tries, in another region, while the first is open; or `off`."
    )
    retry: Annotated[RetrySection | None, OrOff(RetrySection)] = Field(
        default_factory=RetrySection, description="Further tries of a request that failed; or `off`."
    )
    timeouts: TimeoutsSection = Field(
        default_factory=TimeoutsSection, description="How long each phase of a request may take."
    )
    pool: PoolSection = Field(default_factory=PoolSection, description="Connections to each endpoint.")
    health: HealthSection | None = Field(
        default=None,
        description="Active checks of every endpoint. Absent: passive detection and connection probes.",
        examples=["{path: /healthz}"],
    )
    drain: DrainSection = Field(
        default_factory=DrainSection, description="How a failing region is taken out and let back in."
    )
    session_key: Affinity | None = Field(
        default=None,
        description="Keeps a client on one endpoint: `header:NAME`, `cookie:NAME` or `source` (its address).",
        examples=["header:x-user"],
    )
    proxy_protocol: Annotated[Literal["off", "v1", "v2"], words("off", "v1", "v2")] = Field(
        default="off", description="Connections to endpoints start with a PROXY header of this version (`tcp`, `sni`)."
    )
    fast_open: Flag = Field(default=False, description="Dial with TCP Fast Open.")
    dns: DnsSection = Field(default_factory=DnsSection, description="Name resolution of the endpoints.")
