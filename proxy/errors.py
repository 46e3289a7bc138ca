"""What can go wrong with a request, who caused it, and what a client is told.

One table maps every kind of fault to a status and to an RFC 9209 `proxy-status` error type. A `ProxyError` is a
value: codecs return it in events, attempts pass it on, the exchange turns it into a response. It is raised only
inside dialling and configuration.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Source(Enum):
    """Whose fault it was. (What it says about an endpoint is its `Blame`.)"""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


class Blame(Enum):
    """What a fault says about the endpoint where it showed, and so whether another endpoint would do better."""

    ENDPOINT = "endpoint"  # counts against it; another one may do better
    REQUEST = "request"  # the client's request, limit or pace: nothing about it, and the same anywhere else
    PROXY = "proxy"  # something ran out here, or was replaced: nothing about it; elsewhere there may be room


class Kind(Enum):
    """A kind of fault: (status, RFC 9209 error type, source, blame)."""

    # The client's doing.
    BAD_REQUEST = ("bad_request", 400, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    NO_ROUTE = ("no_route", 404, "destination_not_found", Source.DOWNSTREAM, Blame.REQUEST)
    SLOW_REQUEST = ("slow_request", 408, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    BODY_TOO_LARGE = ("body_too_large", 413, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    URI_TOO_LONG = ("uri_too_long", 414, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    EXPECTATION_FAILED = ("expectation_failed", 417, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    TOO_EARLY = ("too_early", 425, "http_request_denied", Source.DOWNSTREAM, Blame.REQUEST)
    UPGRADE_REQUIRED = ("upgrade_required", 426, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    TOO_MANY = ("too_many", 429, "http_request_denied", Source.DOWNSTREAM, Blame.REQUEST)
    HEAD_TOO_LARGE = ("head_too_large", 431, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    NOT_IMPLEMENTED = ("not_implemented", 501, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    BAD_VERSION = ("bad_version", 505, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    LOOP = ("loop", 508, "proxy_loop_detected", Source.DOWNSTREAM, Blame.REQUEST)
    DEADLINE = ("deadline", 504, "http_response_timeout", Source.DOWNSTREAM, Blame.REQUEST)  # the client's own
    CLIENT_LEFT = ("client_left", 499, "http_request_error", Source.DOWNSTREAM, Blame.REQUEST)
    # The upstream's.
    DNS = ("dns", 502, "dns_error", Source.UPSTREAM, Blame.ENDPOINT)
    REFUSED = ("refused", 502, "connection_refused", Source.UPSTREAM, Blame.ENDPOINT)
    UNREACHABLE = ("unreachable", 502, "destination_ip_unroutable", Source.UPSTREAM, Blame.ENDPOINT)
    TLS = ("tls", 502, "tls_protocol_error", Source.UPSTREAM, Blame.ENDPOINT)
    CERTIFICATE = ("certificate", 502, "tls_certificate_error", Source.UPSTREAM, Blame.ENDPOINT)
    TERMINATED = ("terminated", 502, "connection_terminated", Source.UPSTREAM, Blame.ENDPOINT)
    BAD_RESPONSE = ("bad_response", 502, "http_protocol_error", Source.UPSTREAM, Blame.ENDPOINT)
    RESPONSE_HEAD_TOO_LARGE = (
        "response_head_too_large",
        502,
        "http_response_header_section_size",
        Source.UPSTREAM,
        Blame.REQUEST,
    )
    RESPONSE_INCOMPLETE = ("response_incomplete", 502, "http_response_incomplete", Source.UPSTREAM, Blame.ENDPOINT)
    UPGRADE_FAILED = ("upgrade_failed", 502, "http_upgrade_failed", Source.UPSTREAM, Blame.REQUEST)
    CONNECT_TIMEOUT = ("connect_timeout", 504, "connection_timeout", Source.UPSTREAM, Blame.ENDPOINT)
    RESPONSE_TIMEOUT = ("response_timeout", 504, "http_response_timeout", Source.UPSTREAM, Blame.ENDPOINT)
    READ_TIMEOUT = ("read_timeout", 504, "connection_read_timeout", Source.UPSTREAM, Blame.ENDPOINT)
    UNAVAILABLE = ("unavailable", 503, "destination_unavailable", Source.UPSTREAM, Blame.ENDPOINT)
    # Ours.
    POOL_FULL = ("pool_full", 503, "connection_limit_reached", Source.INTERNAL, Blame.PROXY)
    CONNECTION_LIMIT = ("connection_limit", 503, "connection_limit_reached", Source.INTERNAL, Blame.PROXY)
    EXHAUSTED = ("exhausted", 503, "proxy_internal_error", Source.INTERNAL, Blame.PROXY)  # descriptors, ports, memory
    REPLACED = ("replaced", 503, "proxy_internal_response", Source.INTERNAL, Blame.PROXY)  # its pool, by a reload
    STOPPING = ("stopping", 503, "proxy_internal_response", Source.INTERNAL, Blame.PROXY)
    INTERNAL = ("internal", 500, "proxy_internal_error", Source.INTERNAL, Blame.PROXY)

    def __init__(self, label: str, status: int, proxy_status: str, source: Source, blame: Blame) -> None:
        self.label = label
        self.status = status
        self.proxy_status = proxy_status
        self.source = source
        self.blame = blame


class ProxyError(Exception):
    """One fault: its kind, what happened in words, and whether the request may safely be sent again.

    `unprocessed` is True where the peer can't have acted on the request: nothing of it was sent, or the peer said so
    (GOAWAY, REFUSED_STREAM). Then any method may be retried (RFC 9110 section 9.2.2). `going_away`: moreover only this
    connection came to its end, in an orderly way; another one to the same origin will do. `shared`: what broke the
    connection was about another request on it.
    """

    def __init__(
        self,
        kind: Kind,
        details: str,
        *,
        unprocessed: bool = False,
        going_away: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__(details)
        self.kind = kind
        self.details = details
        self.unprocessed = unprocessed
        self.going_away = going_away
        self.shared = shared

    @property
    def blames_endpoint(self) -> bool:
        """Whether it is evidence against the endpoint (and its region) where it showed."""
        return self.kind.blame is Blame.ENDPOINT

    @property
    def status(self) -> int:
        """The HTTP status that tells a client of it."""
        return self.kind.status

    def __repr__(self) -> str:
        return f"<ProxyError {self.kind.label}: {self.details}>"


CLIENT_CLOSED_REQUEST: Final = 499  # nginx's code for the log; never sent
