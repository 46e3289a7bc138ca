"""What can go wrong with a request, who caused it, and what a client is told.

One table maps every kind of fault to a status and to an RFC 9209 `proxy-status` error type. A `ProxyError` is a
value: codecs return it in events, attempts pass it on, the exchange turns it into a response. It is raised only
inside dialling and configuration.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Source(Enum):
    """Whose fault it was: this decides what is logged, retried, and counted against a region."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


class Kind(Enum):
    """A kind of fault: (status, RFC 9209 error type, source)."""

    # The client's doing.
    BAD_REQUEST = ("bad_request", 400, "http_request_error", Source.DOWNSTREAM)
    NO_ROUTE = ("no_route", 404, "destination_not_found", Source.DOWNSTREAM)
    SLOW_REQUEST = ("slow_request", 408, "http_request_error", Source.DOWNSTREAM)
    BODY_TOO_LARGE = ("body_too_large", 413, "http_request_error", Source.DOWNSTREAM)
    URI_TOO_LONG = ("uri_too_long", 414, "http_request_error", Source.DOWNSTREAM)
    EXPECTATION_FAILED = ("expectation_failed", 417, "http_request_error", Source.DOWNSTREAM)
    TOO_EARLY = ("too_early", 425, "http_request_denied", Source.DOWNSTREAM)
    UPGRADE_REQUIRED = ("upgrade_required", 426, "http_request_error", Source.DOWNSTREAM)
    TOO_MANY = ("too_many", 429, "http_request_denied", Source.DOWNSTREAM)
    HEAD_TOO_LARGE = ("head_too_large", 431, "http_request_error", Source.DOWNSTREAM)
    NOT_IMPLEMENTED = ("not_implemented", 501, "http_request_error", Source.DOWNSTREAM)
    BAD_VERSION = ("bad_version", 505, "http_request_error", Source.DOWNSTREAM)
    LOOP = ("loop", 508, "proxy_loop_detected", Source.DOWNSTREAM)
    CLIENT_LEFT = ("client_left", 499, "http_request_error", Source.DOWNSTREAM)
    # The upstream's.
    DNS = ("dns", 502, "dns_error", Source.UPSTREAM)
    REFUSED = ("refused", 502, "connection_refused", Source.UPSTREAM)
    UNREACHABLE = ("unreachable", 502, "destination_ip_unroutable", Source.UPSTREAM)
    TLS = ("tls", 502, "tls_protocol_error", Source.UPSTREAM)
    CERTIFICATE = ("certificate", 502, "tls_certificate_error", Source.UPSTREAM)
    TERMINATED = ("terminated", 502, "connection_terminated", Source.UPSTREAM)
    BAD_RESPONSE = ("bad_response", 502, "http_protocol_error", Source.UPSTREAM)
    RESPONSE_HEAD_TOO_LARGE = ("response_head_too_large", 502, "http_response_header_section_size", Source.UPSTREAM)
    RESPONSE_INCOMPLETE = ("response_incomplete", 502, "http_response_incomplete", Source.UPSTREAM)
    UPGRADE_FAILED = ("upgrade_failed", 502, "http_upgrade_failed", Source.UPSTREAM)
    CONNECT_TIMEOUT = ("connect_timeout", 504, "connection_timeout", Source.UPSTREAM)
    RESPONSE_TIMEOUT = ("response_timeout", 504, "http_response_timeout", Source.UPSTREAM)
    READ_TIMEOUT = ("read_timeout", 504, "connection_read_timeout", Source.UPSTREAM)
    UNAVAILABLE = ("unavailable", 503, "destination_unavailable", Source.UPSTREAM)
    # Ours.
    POOL_FULL = ("pool_full", 503, "connection_limit_reached", Source.INTERNAL)
    CONNECTION_LIMIT = ("connection_limit", 503, "connection_limit_reached", Source.INTERNAL)
    REPLACED = ("replaced", 503, "destination_unavailable", Source.INTERNAL)  # a reload took the endpoint away
    STOPPING = ("stopping", 503, "proxy_internal_response", Source.INTERNAL)
    INTERNAL = ("internal", 500, "proxy_internal_error", Source.INTERNAL)

    def __init__(self, label: str, status: int, proxy_status: str, source: Source) -> None:
        self.label = label
        self.status = status
        self.proxy_status = proxy_status
        self.source = source


class ProxyError(Exception):
    """One fault: its kind, what happened in words, and whether the request may safely be sent again.

    `unprocessed` is True where the peer can't have acted on the request: nothing of it was sent, or the peer said so
    (GOAWAY, REFUSED_STREAM). Then any method may be retried (RFC 9110 section 9.2.2). `going_away`: moreover only this
    connection came to its end, in an orderly way; another one to the same origin will do.
    """

    def __init__(self, kind: Kind, details: str, *, unprocessed: bool = False, going_away: bool = False) -> None:
        super().__init__(details)
        self.kind = kind
        self.details = details
        self.unprocessed = unprocessed
        self.going_away = going_away

    @property
    def status(self) -> int:
        """The HTTP status that tells a client of it."""
        return self.kind.status

    def __repr__(self) -> str:
        return f"<ProxyError {self.kind.label}: {self.details}>"


CLIENT_CLOSED_REQUEST: Final = 499  # nginx's code for the log; never sent
