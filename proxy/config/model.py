"""The config as one frozen value: `listeners`, upstreams (`sections`), and the program's own settings.

`Config` is what `load_config` gives: every default filled in, every route with the values that it inherits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from .effective_routes import bounded_upstream, inherited_listener, route_values, upstream_value
from .listeners import HostName, ListenerSection
from .places import ListenAddress, LogFile, LogPath, SecretValue, WritableFile
from .sections import OrOff, Section, UpstreamSection
from .units import Address
from .values import (
    Duration,
    Name,
    PositiveDuration,
    PositiveSize,
    Share,
    Size,
    Workers,
    text,
    whole,
    words,
)

if TYPE_CHECKING:
    import routing.model as route_model


InstanceName = Annotated[str, text(r"^[A-Za-z0-9._-]{1,64}$", "a name of up to 64 letters, digits and ._-")]
Url = Annotated[str, text(r"^https?://[^\s/]+(?:/\S*)?$", "a URL such as http://127.0.0.1:4318")]


class SessionsSection(Section):
    """TLS sessions that survive a restart."""

    path: WritableFile = Field(description="The store's file.", examples=["/var/lib/onetrip/sessions.db"])
    key: SecretValue = Field(description="What it is encrypted with.", examples=["env:ONETRIP_SESSION_KEY"])


class FleetSection(Section):
    """Region states shared with other proxies."""

    etcd: tuple[Url, ...] = Field(min_length=1, description="etcd's endpoints.", examples=['["https://etcd-1:2379"]'])
    name: Name = Field(description="Which fleet this is.", examples=["prod"])
    quorum: Annotated[int, whole(1, 1000)] = Field(default=3, description="Proxies that must agree on a drain.")


class AdminSection(Section):
    """The admin endpoints."""

    address: ListenAddress = Field(
        default=Address("127.0.0.1", 9900),
        description="`host:port`, `[v6]:port` or `unix:/path`. Port 0: any free one.",
    )
    token: SecretValue | None = Field(
        default=None, description="Asked for as `Authorization: Bearer`.", examples=["env:ONETRIP_ADMIN_TOKEN"]
    )
    hosts: tuple[HostName, ...] = Field(
        default=(),
        description="Names that it is asked by, besides IP addresses and localhost. Without a token others get 421: "
        "web pages could use them (DNS rebinding).",
        examples=["[onetrip.internal]"],
    )


class AccessLogSection(Section):
    """One line per request."""

    path: LogFile = Field(default=LogPath(), description="A file, or `-` for standard output.", examples=["access.log"])
    format: Annotated[Literal["json"], words("json")] = Field(default="json", description="`json`.")
    sample: Share = Field(default=1.0, description="Share of the requests that are logged.")


class TracingSection(Section):
    """Spans by OpenTelemetry."""

    otlp: Url = Field(description="OTLP over HTTP: where spans go.", examples=["http://127.0.0.1:4318"])


class LimitsSection(Section):
    """Bounds on what clients may ask for."""

    header_bytes: PositiveSize = Field(default=65536, description="A request's head; more is 431.")
    headers: Annotated[int, whole(1, 10_000)] = Field(
        default=128, description="A request's header fields; more is 431."
    )
    body_bytes: Size = Field(default=0, description="A request's body; more is 413. 0: no bound.")
    connections: Annotated[int, whole(1, 10_000_000)] = Field(default=20000, description="Client connections at once.")
    header_timeout: PositiveDuration = Field(default=10.0, description="For a whole head to arrive; later is 408.")


class ShutdownSection(Section):
    """What SIGTERM does."""

    settle: Duration = Field(default=0.0, description="Still accepting but not ready, so that load balancers notice.")
    deadline: Duration = Field(default=30.0, description="For open connections to finish, before they are cut.")


class Config(Section):
    """Everything. `routing` and `routes` give it as the values that `routing/` decides over."""

    listeners: tuple[ListenerSection, ...] = Field(min_length=1, description="Addresses that take connections.")
    upstreams: dict[Name, UpstreamSection] = Field(min_length=1, description="By name: services and their regions.")
    sessions: SessionsSection | None = Field(
        default=None, description="TLS sessions that survive a restart. Absent: they are kept in memory only."
    )
    fleet: FleetSection | None = Field(
        default=None, description="Region states shared with other proxies. Absent: this proxy decides alone."
    )
    admin: AdminSection = Field(default_factory=AdminSection, description="The admin endpoints.")
    access_log: Annotated[AccessLogSection | None, OrOff(AccessLogSection)] = Field(
        default_factory=AccessLogSection, description="One line per request; or `off`."
    )
    tracing: TracingSection | None = Field(default=None, description="Spans by OpenTelemetry. Absent: none.")
    instance: InstanceName | None = Field(
        default=None,
        description="Its name in `cdn-loop`, by which it knows its own requests; replicas may share one. Absent: a "
        "random one, kept over reloads and SIGUSR2.",
        examples=["edge-7"],
    )
    workers: Workers = Field(default=1, description="Processes; `auto`: one per core.")
    limits: LimitsSection = Field(default_factory=LimitsSection, description="Bounds on what clients may ask for.")
    shutdown: ShutdownSection = Field(default_factory=ShutdownSection, description="What SIGTERM does.")

    def with_inheritance(self) -> Config:
        """With the values filled in that come from elsewhere in it; references must have been checked."""
        return self.model_copy(
            update={
                "listeners": tuple(inherited_listener(one, self.upstreams) for one in self.listeners),
                "upstreams": {name: bounded_upstream(one) for name, one in self.upstreams.items()},
            }
        )

    def routing(self, upstream: str) -> route_model.Upstream:
        """An upstream as routing sees it. KeyError where there is none of that name."""
        return upstream_value(upstream, self.upstreams[upstream])

    def routes(self, listener: ListenerSection | str) -> tuple[route_model.Route, ...]:
        """A listener's routes in the file's order, each with its effective values. KeyError for an unknown name."""
        return route_values(self.listener(listener) if isinstance(listener, str) else listener, self.upstreams)

    def listener(self, name: str) -> ListenerSection:
        """The listener of that name. KeyError where there is none."""
        for one in self.listeners:
            if one.name == name:
                return one
        raise KeyError(name)
