"""The users: each asks for the same few things at an even pace, over HTTP/1.1 or HTTP/2.

Locust is a closed loop: a user who waits sends nothing. `constant_throughput` makes up for it as far as a user can; a
second that stalls everybody is still seen by fewer requests than real users would have sent. Figures for publication
come from `onetrip bench` and `loadtests.compare`, which are open loops.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Final

from locust import FastHttpUser, User, constant_throughput, tag, task

from .h2_client import H2Pool, RequestFailed

POST_BODY: Final = b'{"order": 1}'
DOWNLOAD_BYTES: Final = 262_144
TIMEOUT_S: Final = 10.0
H2_CONNECTIONS: Final = 8  # that all users of a process share


class H1User(FastHttpUser):
    """A user with keep-alive connections of HTTP/1.1."""

    wait_time = constant_throughput(1.0)
    connection_timeout = TIMEOUT_S
    network_timeout = TIMEOUT_S
    insecure = True

    @tag("get")
    @task(20)
    def get(self) -> None:
        """A small answer."""
        self.client.get("/", name="GET /")

    @tag("post")
    @task(2)
    def post(self) -> None:
        """A small body, echoed; nobody may send it twice."""
        self.client.post("/orders", data=POST_BODY.decode(), name="POST /orders")

    @tag("download")
    @task(1)
    def download(self) -> None:
        """A larger answer."""
        self.client.get(f"/bytes/{DOWNLOAD_BYTES}", name="GET /bytes")


class H2User(User):
    """A user whose requests travel as streams of connections that all users of this process share."""

    wait_time = constant_throughput(1.0)
    _pools: ClassVar[dict[str, H2Pool]] = {}

    def on_start(self) -> None:
        """Find the pool of this host."""
        host = self.host or ""
        if host not in self._pools:
            self._pools[host] = H2Pool(host, connections=H2_CONNECTIONS, insecure=True)

    @tag("get")
    @task(20)
    def get(self) -> None:
        """A small answer."""
        self._request("GET", "/", "GET / (h2)")

    @tag("post")
    @task(2)
    def post(self) -> None:
        """A small body, echoed."""
        self._request("POST", "/orders", "POST /orders (h2)", POST_BODY)

    @tag("download")
    @task(1)
    def download(self) -> None:
        """A larger answer."""
        self._request("GET", f"/bytes/{DOWNLOAD_BYTES}", "GET /bytes (h2)")

    def _request(self, method: str, target: str, name: str, body: bytes = b"") -> None:
        started_at = time.time()  # noqa: TID251 - Locust wants the wall clock
        began = time.perf_counter()
        size, failure = 0, None
        try:
            connection = self._pools[self.host or ""].connection()
            answer = connection.request(method, target, [], body, timeout_s=TIMEOUT_S)
            size = len(answer.body)
            if answer.status >= 400:
                failure = RequestFailed(f"status {answer.status}")
        except (OSError, RequestFailed) as error:
            failure = error if isinstance(error, RequestFailed) else RequestFailed(f"connect: {error}")
        self.environment.events.request.fire(
            request_type="h2",
            name=name,
            start_time=started_at,
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=size,
            exception=failure,
            context=dict[str, Any](),
        )


def exact_ms(response_time: float) -> float:
    """In place of Locust's buckets, which round 147 ms to 150: a tenth of a millisecond, a whole one from a second on.

    At most some 20,000 values within `TIMEOUT_S`: nothing to worry about on one machine.
    """
    return round(response_time, 1) if response_time < 1000 else float(round(response_time))
