"""The config's listeners: where they listen, their TLS, their routes and what each route overrides."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .places import ListenAddress, Network, ReadableFile
from .sections import HedgeSection, OrOff, RetrySection, Section, TimeoutsSection
from .values import TOKEN, Flag, Name, PositiveDuration, text, words


def _host_meant(given: str) -> str:
    return given.partition("://")[2].partition("/")[0] if "://" in given else given.partition(":")[0]


HostPattern = Annotated[
    str,
    text(
        r"^(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$|^\[[0-9A-Fa-f:.]+\]$",
        "a host name without a port, or *.domain",
        _host_meant,
    ),
]
HostName = Annotated[
    str, text(r"^[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$", "a host name without a port", _host_meant)
]
PathPattern = Annotated[
    str,
    text(r"^=?/[^\s?#]*$", "a path prefix such as /v1/, or =/path for exactly that one", lambda given: f"/{given}"),
]
Method = Annotated[str, text(r"^[!#$%&'*+.^_`|~0-9A-Z-]+$", "a method in capitals such as GET", str.upper)]
HeaderName = Annotated[str, text(f"^{TOKEN}$", "the name of a header")]
HeaderValue = Annotated[str, text(r"^[^\r\n\x00]*$", "the value of a header")]
UpgradeProtocol = Annotated[
    str, text(f"^{TOKEN}(?:/{TOKEN})?$", "the name of a protocol such as websocket", lambda given: given.strip())
]


class Certificate(Section):
    """A certificate chain and its key, in PEM."""

    certificate: ReadableFile = Field(description="The certificate and its intermediates.", examples=["edge.pem"])
    key: ReadableFile = Field(description="Its private key.", examples=["edge.key"])


class ListenerTls(Section):
    """TLS termination."""

    certificates: tuple[Certificate, ...] = Field(
        min_length=1, description="Chosen by the client's server name (else the first); reloaded when the files change."
    )
    client_ca: ReadableFile | None = Field(
        default=None,
        description="Clients need a certificate that one of these authorities signed.",
        examples=["clients.pem"],
    )
    early_data: Flag = Field(default=False, description="Accept 0-RTT from clients (safe methods only).")
    min_version: Annotated[Literal["1.2", "1.3"], words("1.2", "1.3")] = Field(
        default="1.2", description="The oldest TLS version accepted: `1.2` or `1.3`."
    )


class MatchSection(Section):
    """What a request must look like; a key that is not named fits any."""

    host: HostPattern | None = Field(
        default=None,
        description="Host (server name on TLS and `sni` listeners), or `*.domain` for every name below it.",
        examples=['"*.example.com"'],
    )
    path: PathPattern = Field(
        default="/", description="Prefix of the path, or `=` and the exact path.", examples=["=/login"]
    )
    methods: tuple[Method, ...] = Field(default=(), description="Any of these methods.", examples=["[GET, HEAD]"])
    headers: dict[HeaderName, HeaderValue] = Field(
        default={}, description="Headers that must be there with exactly these values.", examples=["{x-tier: gold}"]
    )


class RouteSection(Section):
    """Where matching requests go. What a route overrides is merged into its upstream's settings, key by key."""

    match: MatchSection = Field(default_factory=MatchSection, description="What a request must look like. Absent: any.")
    upstream: Name = Field(description="Name of the upstream.", examples=["payments"])
    timeout: PositiveDuration | None = Field(
        default=None, description="Overrides `timeouts.total`, and caps `timeouts.response`.", examples=["10s"]
    )
    timeouts: TimeoutsSection | None = Field(
        default=None, description="Overrides the upstream's, key by key.", examples=["{idle: 10m}"]
    )
    retry: Annotated[RetrySection | Literal["off"] | None, OrOff(RetrySection, "off")] = Field(
        default=None,
        description="Overrides the upstream's, key by key; or `off`.",
        examples=["{idempotency_key: true}"],
    )
    hedge: Annotated[HedgeSection | Literal["off"] | None, OrOff(HedgeSection, "off")] = Field(
        default=None, description="Overrides the upstream's, key by key; or `off`.", examples=["off"]
    )
    early_data: Flag | None = Field(
        default=None, description="Overrides the upstream's `tls.early_data`.", examples=["false"]
    )
    upgrade: tuple[UpgradeProtocol, ...] = Field(
        default=("websocket",),
        description="What HTTP/1.1 requests may upgrade to; another `upgrade` is ignored. HTTP/2's extended CONNECT "
        "knows `websocket`.",
    )
    connect: Flag = Field(default=False, description="Pass CONNECT on to the upstream, which is then a proxy itself.")


class ListenerSection(Section):
    """An address that takes connections."""

    name: Name = Field(
        default="", description="Unique; stands in metrics and logs. Absent: the address.", examples=["api"]
    )
    address: ListenAddress = Field(
        description="`host:port`, `[v6]:port` or `unix:/path`. Port 0: any free one.", examples=["127.0.0.1:8080"]
    )
    protocol: Annotated[Literal["http", "tcp", "sni"], words("http", "tcp", "sni")] = Field(
        default="http",
        description="`http` (HTTP/1.1, h2c, WebSocket, gRPC), `tcp`, or `sni` (TLS passed through by server name).",
    )
    tls: ListenerTls | None = Field(default=None, description="Terminate TLS. Absent: plaintext.")
    http3: Flag = Field(default=False, description="With `tls`: also listen on UDP, and announce it by `alt-svc`.")
    proxy_protocol: Flag = Field(
        default=False, description="Connections start with a PROXY header, version 1 or 2; others are refused."
    )
    trusted: tuple[Network, ...] = Field(
        default=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        description="Clients whose `x-forwarded-*` are kept and extended, and who may ask for `onetrip-debug`.",
    )
    fast_open: Flag = Field(default=False, description="Accept data in a connection's first packet (TCP Fast Open).")
    upstream: Name | None = Field(
        default=None, description="Everything goes to this upstream. Either this or `routes`.", examples=["payments"]
    )
    routes: tuple[RouteSection, ...] | None = Field(
        default=None, min_length=1, description="Where requests go, by what they look like. Either this or `upstream`."
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, written: Any) -> Any:
        if isinstance(written, dict) and "name" not in written and isinstance(written.get("address"), str):
            return {**written, "name": str(written["address"])}
        return written
