"""What is measured and logged of one request and of its tries.

Whoever handles the request fills it in; the access log, the metrics and our own answers read it. It decides nothing,
and knows nobody of those that fill it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.http.message import RequestHead
    from routing.balancer import EndpointState


class TryRecord:
    """One try at one endpoint. Times are the event loop's, in seconds; `seconds`: what the dial took that it waited for
    (dns, tcp, tls); `log_target`: where it went, as it stands in each line of the log (b"": it had no connection).
    """

    __slots__ = ("connected_at", "error", "log_target", "seconds", "started", "target")

    def __init__(self, target: EndpointState, started: float) -> None:
        self.target = target
        self.log_target = b""
        self.started = started
        self.connected_at = 0.0  # 0.0: it never had a connection
        self.seconds = (0.0, 0.0, 0.0)
        self.error: ProxyError | None = None


class RequestRecord:
    """One request. `client` and `log_start` are its connection's; `path` is the target as received; `hedged`: two tries
    were open at once.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "client",
        "error",
        "first_byte_at",
        "head",
        "hedged",
        "log_start",
        "path",
        "request_id",
        "started",
        "status",
        "traceparent",
        "tries",
        "trusted",
        "upstream",
        "winner",
    )

    head: RequestHead

    def __init__(self, client: str, log_start: bytes, started: float) -> None:
        self.client = client
        self.log_start = log_start
        self.started = started
        self.first_byte_at = 0.0
        self.path = self.request_id = self.traceparent = b""
        self.trusted = False  # it may ask for debug fields
        self.status = 0
        self.bytes_in = self.bytes_out = 0
        self.upstream = ""
        self.tries: list[TryRecord] = []  # in order
        self.winner: TryRecord | None = None
        self.hedged = False
        self.error: ProxyError | None = None
