"""The race for a link: which endpoint of an upstream gets a client of an L4 listener.

A client gets a warm link where there is one. Else links are dialled, and as no byte of the client has been sent yet,
dials to other regions may race: a further one (as many as `retry` allows) starts when one fails, or when nothing is
ready after `RACE_AFTER_S`; the first that is ready wins.

    running ── on_link ──> over (the losers are closed)
       └── on_no_link, stop ──> over

It owns the dials and what routing has been told of them (`begin`, `finish`), and never touches the client's socket.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from proxy.upstream.link import State as LinkState
from routing.balancer import Outcome

if TYPE_CHECKING:
    from proxy.upstream.link import Link
    from proxy.upstream.upstream import UpstreamRuntime
    from routing.balancer import EndpointState
    from routing.model import Route

RACE_AFTER_S: Final = 0.25


class Entrant:
    """For whom the race is run; it has one of the two calls, unless it ends the race itself."""

    __slots__ = ()

    def header_for_upstream(self) -> bytes:
        """The PROXY header for a link, b"" where the upstream wants none."""
        raise NotImplementedError

    def on_link(self, link: Link) -> None:
        """This one is ready; it is lent."""
        raise NotImplementedError

    def on_no_link(self, reason: str, outcome: Outcome) -> None:
        """There is none to be had. The entrant ends, and the race with it (`stop`)."""
        raise NotImplementedError


class Race:
    """`began`: when the client came. `tried`: endpoints so far, in order."""

    __slots__ = (
        "_begun",
        "_dials",
        "_entrant",
        "_passthrough",
        "_route",
        "_since",
        "began",
        "over",
        "tried",
        "upstream",
    )

    def __init__(
        self, entrant: Entrant, upstream: UpstreamRuntime, route: Route, began: float, *, passthrough: bool
    ) -> None:
        self._entrant = entrant
        self._route = route
        self._passthrough = passthrough
        self._dials: list[Link] = []
        self._begun: list[EndpointState] = []
        self._since = began
        self.upstream = upstream
        self.began = began
        self.over = False
        self.tried: list[EndpointState] = []

    def __repr__(self) -> str:
        return f"<Race of {len(self._dials)} dials to {self.upstream.name}>"

    def start(self, key: bytes | None, now: float) -> None:
        """Take a link, or begin to dial. `key`: of a client with an endpoint of its own."""
        self._since = now
        balancer = self.upstream.balancer
        balancer.count_request(now)
        target = balancer.pick(now, key)
        if target is None:
            self._entrant.on_no_link(self.upstream.nothing_available(now), Outcome.CANCELLED)
        else:
            self._enter(target, now)

    def go_on(self, now: float) -> None:
        """`RACE_AFTER_S` have passed: another endpoint may try as well."""
        if now - self._since > self._route.timeouts.connect * 2:
            self._entrant.on_no_link("no endpoint could be reached in time", Outcome.TIMEOUT)
        else:
            self._enter_another(now)

    def stop(self, outcome: Outcome, now: float) -> None:
        """The entrant has ended. Idempotent."""
        self.over = True
        for link in self._dials:
            link.close()
        self._dials.clear()
        for target in list(self._begun):
            self._settle(target, outcome, now)

    def _enter(self, target: EndpointState, now: float) -> None:
        self.tried.append(target)
        self._begun.append(target)
        self.upstream.balancer.begin(target, now)
        pool = self.upstream.socket_pool(target, passthrough=self._passthrough)
        link = pool.take()
        if link is not None:
            self._won(link)
            return
        link = pool.dial(self._dialled, self._entrant.header_for_upstream() if pool.tls else b"")
        if link.state in (LinkState.CONNECTING, LinkState.HANDSHAKING):
            self._dials.append(link)
        elif not self.over and not self._dials:  # each failed at once
            assert link.error is not None
            self._entrant.on_no_link(link.error.details, Outcome.CONNECT_FAILED)

    def _enter_another(self, now: float) -> bool:
        retry = self._route.retry
        if retry is None or len(self.tried) > retry.attempts:
            return False
        target = self.upstream.balancer.pick_alternate(now, self.tried, False)
        if target is None:
            return False
        self._enter(target, now)
        return True

    def _dialled(self, link: Link) -> None:
        pool = link.pool
        if link.error is None:
            pool.opened(link)
        else:
            pool.failed(link.error)
        if self.over:
            link.close()
            return
        within_dial = link not in self._dials
        if not within_dial:
            self._dials.remove(link)
        if link.error is None:
            self._won(link)
            return
        now = monotonic()
        blamed = link.error.blames_endpoint
        self._settle(pool.target, Outcome.CONNECT_FAILED if blamed else Outcome.NEUTRAL, now)
        if not self._enter_another(now) and not self._dials and not within_dial:
            self._entrant.on_no_link(link.error.details, Outcome.CONNECT_FAILED)

    def _won(self, link: Link) -> None:
        now = monotonic()
        target = link.pool.target
        self.over = True
        self._begun.remove(target)
        self.stop(Outcome.CANCELLED, now)  # one of the others may be the same endpoint, dialled once more
        self.upstream.balancer.established(target, now, target.floor.value)  # L4 shows no service time
        link.pool.lent()
        self._entrant.on_link(link)

    def _settle(self, target: EndpointState, outcome: Outcome, now: float) -> None:
        if target in self._begun:
            self._begun.remove(target)
            self.upstream.balancer.finish(target, now, outcome, now - self.began)
