"""Open-loop traffic: requests start when they are due, whatever became of those before.

Both sides are the same client: HTTP/1.1 with a keep-alive pool as the usual libraries have it. A request takes the idle
connection that was used last; where none is idle it opens one and waits for it, handshakes included; where there are
`CONNECTIONS_MAX` it queues. Connections stay open. The one side dials the nearest region itself, over TLS, as a service
without a proxy does; the other one dials the proxy beside it. A request that takes longer than the time-out has failed;
its waiting stands in the latencies.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.bench.client import Connection, H1Connection, Phase
from proxy.bench.pacer import Pacer
from proxy.bench.request import Request
from proxy.bench.tls import ClientTls
from proxy.errors import Kind, ProxyError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

CONNECTIONS_MAX: Final = 64
"""Enough for a burst beside steady traffic. Without a bound the end of a blackhole means hundreds of handshakes at
once.
"""
_RECENT: Final = 400
_LAGS: Final = 20_000


class Sample:
    """One request: when it was due (on `time.monotonic`), how long it took from then on, and why it failed or "".

    `waited`: of those seconds, the ones until it was written: opening a connection, and this program's own delay.
    """

    __slots__ = ("due", "failure", "seconds", "waited")

    def __init__(self, due: float, seconds: float, failure: str = "", waited: float = 0.0) -> None:
        self.due = due
        self.seconds = seconds
        self.failure = failure
        self.waited = waited

    def __repr__(self) -> str:
        return f"<Sample {self.seconds * 1e3:.1f} ms{' ' + self.failure if self.failure else ''}>"


class Series:
    """What became of one side's requests in one phase."""

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        self.samples = list(samples)

    def __repr__(self) -> str:
        return f"<Series {len(self.samples)} requests, {self.failed} failed, p50 {self.quantile_ms(0.5):.1f} ms>"

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return sum(1 for sample in self.samples if sample.failure)

    @property
    def failures(self) -> dict[str, int]:
        """How often each reason, the most frequent first."""
        return dict(Counter(sample.failure for sample in self.samples if sample.failure).most_common())

    def quantile_ms(self, share: float) -> float:
        """The latency that `share` of the requests did not exceed (the nearest rank); nan where there are none."""
        return quantile([sample.seconds for sample in self.samples], share) * 1e3

    def waited_ms(self, share: float) -> float:
        """As `quantile_ms`, of what they waited until they were written."""
        return quantile([sample.waited for sample in self.samples], share) * 1e3

    def over(self, limit_ms: float) -> int:
        """How many took longer, or failed."""
        return sum(1 for sample in self.samples if sample.failure or sample.seconds * 1e3 > limit_ms)


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest rank; nan where there are no values."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * share) - 1)]


class _Demand(Request):
    """A request of ours, and where its sample goes."""

    __slots__ = ("series", "timer")

    def __init__(self, due: float, series: Series) -> None:
        super().__init__(due, 0)
        self.series = series
        self.timer: asyncio.TimerHandle | None = None


class Client:
    """One side: what dials `address`, over TLS where there is a `context`. `host` is the server's name.

    `make_socket`: a new non-blocking socket, perhaps of another network namespace.
    """

    def __init__(
        self,
        name: str,
        make_socket: Callable[[], socket.socket],
        address: tuple[str, int],
        *,
        host: str,
        timeout_s: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self.opened_total = 0
        self.in_flight = 0
        self.recent: deque[Sample] = deque(maxlen=_RECENT)
        self._make_socket = make_socket
        self._address = address
        self._spare: list[socket.socket] = []
        self._host = host
        self._timeout_s = timeout_s
        self._context = context
        self._request_bytes = f"GET / HTTP/1.1\r\nhost: {host}\r\nuser-agent: onetrip-demo\r\n\r\n".encode()
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._queue: deque[_Demand] = deque()
        self._openers: dict[Connection, _Demand] = {}
        self._all: set[Connection] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Client {self.name}: {len(self._idle)} idle of {len(self._all)}, {self.in_flight} in flight>"

    def send(self, due: float, series: Series) -> None:
        """Start a request now; its latency counts from `due`, and its sample goes to `series`."""
        demand = _Demand(due, series)
        self.in_flight += 1
        demand.timer = self._loop.call_at(self._loop.time() + self._timeout_s, self._time_out, demand)
        while self._idle:
            connection = self._idle.pop()
            if connection.has_room(1):
                connection.send(demand, monotonic())
                return
        self._queue.append(demand)
        self._dial_for_queue()

    def prepare(self, count: int) -> None:
        """Have so many sockets at hand, not yet connected.

        To make one in another namespace is a round trip to the lab, which is nobody's latency.
        """
        while len(self._spare) < count:
            self._spare.append(self._make_socket())

    async def finish(self) -> None:
        """Until every request has its end."""
        while self.in_flight:
            self._settled.clear()
            await self._settled.wait()

    def forget_idle(self) -> None:
        """Close the idle connections, as a pool does by itself after a while."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close everything, whatever is under way."""
        self._closed = True
        for task in self._dials:
            task.cancel()
        for connection in list(self._all):
            connection.close()
        while self._spare:
            self._spare.pop().close()

    def _queued(self) -> _Demand | None:
        """The next request that waits, if its time is not over."""
        while self._queue:
            demand = self._queue.popleft()
            if not demand.done:
                return demand
        return None

    def _dial_for_queue(self) -> None:
        """Open a connection for each queued request, as long as there may be more."""
        while not self._closed and self._queue and len(self._all) + len(self._dials) < CONNECTIONS_MAX:
            demand = self._queued()
            if demand is None:
                return
            task = self._loop.create_task(self._open(demand))
            demand.task = task
            self._dials.add(task)
            task.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dials.discard(task)
        self._dial_for_queue()

    def _free(self, connection: Connection) -> None:
        """The connection can carry another request."""
        demand = self._queued()
        if demand is not None:
            connection.send(demand, monotonic())
        else:
            self._idle.append(connection)

    async def _open(self, demand: _Demand) -> None:
        sock = self._spare.pop() if self._spare else self._make_socket()
        try:
            await self._loop.sock_connect(sock, self._address)
        except asyncio.CancelledError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            self._settle(demand, f"could not connect: {error.strerror or error}")
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = ClientTls(self._context, self._host, None) if self._context is not None else None
        connection = H1Connection(self, tls, self._request_bytes, head_only=False)
        connection.connected_at = monotonic()
        demand.task = None
        self._openers[connection] = demand
        self._all.add(connection)
        try:
            await self._loop.create_connection(lambda: connection, sock=sock)
        except OSError as error:
            sock.close()
            connection.close(ProxyError(Kind.TERMINATED, str(error)), monotonic())

    # ConnectionOwner

    def opened(self, connection: Connection) -> None:
        """Handshaken: the request that opened it goes first."""
        self.opened_total += 1
        demand = self._openers.pop(connection, None)
        if demand is None or demand.done:
            self._free(connection)
        else:
            connection.send(demand, monotonic())

    def answered(self, connection: Connection, request: Request, now: float) -> None:
        """A complete answer."""
        assert isinstance(request, _Demand)
        self._settle(request, "" if request.status == 200 else f"status {request.status}")
        if connection.draining:
            connection.close()
        elif connection.phase is Phase.READY:
            self._free(connection)

    def failed(self, connection: Connection, request: Request, error: ProxyError, now: float) -> None:
        """No answer will come."""
        assert isinstance(request, _Demand)
        self._settle(request, error.details or error.kind.label)

    def freed(self, connection: Connection, now: float) -> None:
        """Nothing to do: HTTP/1.1 closes the connection of what is given up."""

    def closed(self, connection: Connection, error: ProxyError | None) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        demand = self._openers.pop(connection, None)
        if demand is not None:
            self._settle(demand, (error.details if error is not None else "") or "closed before it was ready")
        self._dial_for_queue()

    def received_bytes(self, size: int) -> None:
        """Not counted here."""

    def _time_out(self, demand: _Demand) -> None:
        self._settle(demand, f"no answer within {self._timeout_s:g} s")
        if demand.task is not None:
            demand.task.cancel()
        for connection in [one for one, opener in self._openers.items() if opener is demand]:
            connection.close()
        if demand.connection is not None:
            demand.connection.abandon(demand, monotonic())

    def _settle(self, demand: _Demand, failure: str) -> None:
        if demand.done:
            return
        demand.done = True
        if demand.timer is not None:
            demand.timer.cancel()
        self.in_flight -= 1
        waited = max(0.0, demand.sent - demand.intended)
        sample = Sample(demand.intended, monotonic() - demand.intended, failure, waited)
        demand.series.samples.append(sample)
        self.recent.append(sample)
        if not self.in_flight:
            self._settled.set()


class OpenLoop:
    """Evenly spaced requests on several sides in turn, `rate` a second on each.

    `lags`: by how many seconds starts were late.
    """

    def __init__(self, clients: Sequence[Client], rate: float) -> None:
        self._clients = clients
        self._rate = rate
        self._pacer: Pacer | None = None
        self._series: Sequence[Series] = ()
        self.lags: deque[float] = deque(maxlen=_LAGS)

    def __repr__(self) -> str:
        return f"<OpenLoop {self._rate:g}/s on {len(self._clients)} sides>"

    def start(self, series: Sequence[Series]) -> None:
        """Begin; samples of client n go to `series[n]`, until the next call of `record`."""
        self._series = series
        self._pacer = Pacer(asyncio.get_running_loop(), self._slots(), self._fire, lambda: None)
        self._pacer.start(monotonic())

    def record(self, series: Sequence[Series]) -> None:
        """Samples of requests that start from now on go here."""
        self._series = series

    def stop(self) -> None:
        """No more requests start. Idempotent."""
        if self._pacer is not None:
            self._pacer.stop()
            self._pacer = None

    def _slots(self) -> Iterator[tuple[float, int]]:
        count = len(self._clients)
        number = 0
        while True:
            yield number / (self._rate * count), number % count
            number += 1

    def _fire(self, due: float, index: int) -> None:
        self.lags.append(monotonic() - due)
        self._clients[index].send(due, self._series[index])
