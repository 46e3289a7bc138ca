"""The config's upstreams and routes as the values of `routing.model`, and what routes inherit.

A route's overrides are merged key by key into its upstream's settings. `timeout: 10s` sets the total and caps the wait
for a response to it; `hedge: off` and `retry: off` switch off; a partial `hedge` on an upstream that has it off starts
from the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from routing import model

from .listeners import ListenerSection, MatchSection, RouteSection
from .sections import HedgeSection, RetrySection, Section, TimeoutsSection, UpstreamSection

_S = TypeVar("_S", bound=Section)


def _merged(base: _S, override: _S) -> _S:
    return base.model_copy(update={key: getattr(override, key) for key in override.model_fields_set})


def _switched(base: _S | None, override: _S | Literal["off"] | None, default: _S) -> _S | Literal["off"]:
    if override is None:
        return base or "off"
    return override if override == "off" else _merged(base or default, override)


def inherited(route: RouteSection, upstream: UpstreamSection) -> RouteSection:
    """The route with every value that it inherits. Idempotent."""
    timeouts = _merged(upstream.timeouts, route.timeouts) if route.timeouts else upstream.timeouts
    if route.timeout is not None:
        response = min(timeouts.response, route.timeout)
        timeouts = timeouts.model_copy(update={"total": route.timeout, "response": response})
    early_data = upstream.tls is not None and upstream.tls.early_data
    return route.model_copy(
        update={
            "timeout": None,
            "timeouts": timeouts,
            "retry": _switched(upstream.retry, route.retry, RetrySection()),
            "hedge": _switched(upstream.hedge, route.hedge, HedgeSection()),
            "early_data": early_data if route.early_data is None else route.early_data,
        }
    )


def inherited_listener(listener: ListenerSection, upstreams: Mapping[str, UpstreamSection]) -> ListenerSection:
    """The listener with every value that its routes inherit. Idempotent."""
    if not listener.routes:
        return listener
    routes = tuple(inherited(one, upstreams[one.upstream]) for one in listener.routes)
    return listener.model_copy(update={"routes": routes})


def bounded_upstream(upstream: UpstreamSection) -> UpstreamSection:
    """A small `max_connections` alone makes the default of `warm` smaller, too."""
    pool = upstream.pool
    bounded = pool.model_copy(update={"warm": min(pool.warm, pool.max_connections)})
    return upstream.model_copy(update={"pool": bounded})


def upstream_value(name: str, section: UpstreamSection) -> model.Upstream:
    """An upstream as routing sees it."""
    regions = tuple(
        model.Region(region, one.endpoints, one.weight, one.standby, one.max_in_flight)
        for region, one in section.regions.items()
    )
    drain = section.drain
    return model.Upstream(
        name=name,
        regions=regions,
        policy=model.Policy(section.routing.policy),
        spread=section.routing.spread,
        hedge=_hedge(section.hedge),
        retry=_retry(section.retry),
        timeouts=_timeouts(section.timeouts),
        drain=model.Drain(drain.after, drain.hold, drain.ramp, drain.max_drained),
        session_key=section.session_key,
    )


def route_values(listener: ListenerSection, upstreams: Mapping[str, UpstreamSection]) -> tuple[model.Route, ...]:
    """A listener's routes as routing sees them; one that matches everything where the listener names an upstream."""
    routes = listener.routes or (RouteSection(upstream=listener.upstream or ""),)
    return tuple(_route(inherited(one, upstreams[one.upstream])) for one in routes)


def match_value(match: MatchSection) -> model.Match:
    """A route's condition as routing sees it: host and header names in lower case."""
    return model.Match(
        host=(match.host or "").lower(),
        path=match.path.removeprefix("="),
        exact=match.path.startswith("="),
        methods=match.methods,
        headers=tuple((name.lower(), value) for name, value in match.headers.items()),
    )


def _route(route: RouteSection) -> model.Route:
    return model.Route(
        match=match_value(route.match),
        upstream=route.upstream,
        timeouts=_timeouts(route.timeouts or TimeoutsSection()),
        retry=_retry(route.retry),
        hedge=_hedge(route.hedge),
        early_data=bool(route.early_data),
        upgrades=tuple(protocol.lower().encode() for protocol in route.upgrade),
        connect=route.connect,
    )


def _hedge(section: HedgeSection | Literal["off"] | None) -> model.Hedge | None:
    if section is None or section == "off":
        return None
    return model.Hedge(section.budget, section.min_delay, section.max_delay)


def _retry(section: RetrySection | Literal["off"] | None) -> model.Retry | None:
    if section is None or section == "off":
        return None
    return model.Retry(section.attempts, section.budget, section.idempotency_key)


def _timeouts(section: TimeoutsSection) -> model.Timeouts:
    return model.Timeouts(section.connect, section.response, section.idle, section.total)
