"""What a config must fulfil beyond the types of its values: references, combinations, what this version can't do yet.

`unavailable` looks at the tree as written, so that a key of later work is named whatever else is wrong; `broken_rules`
looks at the model. Both give (path, message, suggestion). A path names the key to change: a fault on it, or above it,
silences the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from .document import Expanded, resolve
from .effective_routes import inherited, match_value
from .faults import Path, nearest
from .listeners import ListenerSection, RouteSection
from .model import Config
from .places import Secret
from .sections import HedgeSection, UpstreamSection
from .units import Address, format_duration

NOT_AVAILABLE: dict[str, str] = {
    "listeners[].http3": "http3 is not available in this version",
    "upstreams.*.protocol=h3": "h3 is not available in this version",
    "fleet": "fleet is not available in this version",
    "tracing": "tracing is not available in this version",
}
"""Keys of later work (`[]` any item, `*` any name, `=x` that value), refused unless off. Delete a line to land it."""

NEVER_UPGRADED: Final = frozenset(("h2c", "h2", "h3", "http", "tls"))
"""`proxy.http.semantics` drops them before a route is asked."""
SESSION_KEY_BYTES_MIN: Final = 16
_NAMED_MAX: Final = 8


class Broken(NamedTuple):
    """What is wrong at a place, and what was probably meant. A fault at `unless` silences it, too."""

    path: Path
    message: str
    suggestion: str = ""
    unless: Path | None = None


def unavailable(tree: Any) -> Iterator[Broken]:
    """What the tree asks for that this version can't do."""
    for key, message in NOT_AVAILABLE.items():
        pattern, _, only = key.partition("=")
        for path, value in _found(tree, pattern.replace("[]", ".[]").split("."), ()):
            given = resolve(value) if isinstance(value, Expanded) else value
            if given == only if only else given is not False and given != "off":
                yield Broken(path, message)


def _found(value: Any, pattern: list[str], path: Path) -> Iterator[tuple[Path, Any]]:
    if not pattern:
        yield path, value
    elif pattern[0] == "[]":
        for index, one in enumerate(value if isinstance(value, tuple) else ()):
            yield from _found(one, pattern[1:], (*path, index))
    elif isinstance(value, dict):
        for key in list(value) if pattern[0] == "*" else [pattern[0]]:
            if key in value:
                yield from _found(value[key], pattern[1:], (*path, key))


def broken_rules(config: Config) -> Iterator[Broken]:
    """Every rule that the config breaks."""
    yield from _unique(config)
    for index, listener in enumerate(config.listeners):
        at: Path = ("listeners", index)
        yield from _listener(listener, at)
        yield from _reached_once(listener.routes or (), at)
        for path, name in _references(listener, at):
            if name in config.upstreams:
                yield from _pair(listener, name, config.upstreams[name], path)
            else:
                what = f"there is no upstream '{name}' (there are: {_listed(config.upstreams)})"
                yield Broken(path, what, nearest(name, config.upstreams))
        for number, route in enumerate(listener.routes or ()):
            here: Path = (*at, "routes", number)
            yield from _route(listener, route, here)
            if route.upstream in config.upstreams:
                yield from _override(route, config.upstreams[route.upstream], here)
    for name, upstream in config.upstreams.items():
        yield from _upstream(upstream, ("upstreams", name))
    if config.sessions is not None and isinstance(config.sessions.key, Secret):  # else it has been found fault with
        yield from _session_key(config.sessions.key.value)


def _session_key(text: str) -> Iterator[Broken]:
    keys = [part.strip() for part in text.replace("\n", ",").split(",")]
    if not any(keys) or any(0 < len(key.encode()) < SESSION_KEY_BYTES_MIN for key in keys):
        what = f"each session key needs at least {SESSION_KEY_BYTES_MIN} characters (openssl rand -base64 32 makes one)"
        yield Broken(("sessions", "key"), what)


def _references(listener: ListenerSection, at: Path) -> Iterator[tuple[Path, str]]:
    if listener.upstream is not None:
        yield (*at, "upstream"), listener.upstream
    for number, route in enumerate(listener.routes or ()):
        yield (*at, "routes", number, "upstream"), route.upstream


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:_NAMED_MAX]) + (", …" if len(known) > _NAMED_MAX else "")


def _unique(config: Config) -> Iterator[Broken]:
    names: dict[str, int] = {}
    addresses: dict[object, int] = {}
    for index, listener in enumerate(config.listeners):
        first = names.setdefault(listener.name, index)
        if first != index:
            what = f"listeners[{first}] has the name '{listener.name}' already"
            yield Broken(("listeners", index, "name"), what)
        owner = addresses.setdefault(listener.address, index)
        if owner != index and not _ephemeral(listener.address):
            what = f"listeners[{owner}] has the address {listener.address} already"
            yield Broken(("listeners", index, "address"), what)
    taken = addresses.get(config.admin.address)
    if taken is not None and not _ephemeral(config.admin.address):
        yield Broken(("admin", "address"), f"listeners[{taken}] has the address {config.admin.address} already")


def _ephemeral(address: Address) -> bool:
    # A stand-in has no attributes; one address at fault is not another's twin.
    return not isinstance(address, Address) or (not address.path and address.port == 0)


def _listener(listener: ListenerSection, at: Path) -> Iterator[Broken]:
    if listener.upstream is None and listener.routes is None:
        what = "nothing says where requests go: give the listener upstream or routes"
        yield Broken((*at, "upstream"), what, unless=(*at, "routes"))
    if listener.upstream is not None and listener.routes is not None:
        yield Broken((*at, "upstream"), "this listener has both upstream and routes: give it one of them")
    if listener.protocol == "sni" and listener.tls is not None:
        yield Broken((*at, "tls"), "an sni listener passes TLS through without terminating it", "protocol: tcp")
    if listener.http3 and listener.protocol != "http":
        yield Broken((*at, "http3"), "only http listeners speak HTTP/3")
    elif listener.http3 and listener.tls is None:
        yield Broken((*at, "http3"), "HTTP/3 needs tls")
    elif listener.http3 and isinstance(listener.address, Address) and listener.address.path:
        yield Broken((*at, "http3"), f"HTTP/3 needs an IP address, and {listener.address} is a Unix socket")


def _pair(listener: ListenerSection, name: str, upstream: UpstreamSection, path: Path) -> Iterator[Broken]:
    """A listener and an upstream that it sends to."""
    able = ("auto", "h1", "h2", "h3") if listener.protocol == "http" else ("auto", "tcp")
    if upstream.protocol not in able:
        article = "a" if listener.protocol == "tcp" else "an"
        what = (
            f"{article} {listener.protocol} listener can't use upstream '{name}', whose protocol is {upstream.protocol}"
        )
        yield Broken(path, what)
    if listener.protocol == "http":
        if upstream.proxy_protocol != "off":
            what = "names one client for a whole connection, and an http listener's requests share connections"
            yield Broken(path, f"the proxy_protocol of upstream '{name}' {what}")
        return
    key = upstream.session_key
    if key is not None and key.kind != "source":
        what = f"upstream '{name}' has the session_key {key.kind}:{key.name}, and there is no HTTP to find it in"
        yield Broken(path, what, "source")
    if listener.protocol == "sni" and upstream.tls is not None:
        yield Broken(path, f"an sni listener passes the client's TLS through, and '{name}' would wrap it in tls again")


def _reached_once(routes: Iterable[RouteSection], at: Path) -> Iterator[Broken]:
    seen: dict[object, int] = {}
    for number, route in enumerate(routes):
        match = match_value(route.match)
        key = (match.host, match.path, match.exact, frozenset(match.methods), frozenset(match.headers))
        first = seen.setdefault(key, number)
        if first != number:
            what = f"routes[{first}] matches the same requests, so this route is never reached"
            yield Broken((*at, "routes", number, "match"), what)


def _route(listener: ListenerSection, route: RouteSection, at: Path) -> Iterator[Broken]:
    match = route.match
    if listener.protocol != "http":
        for key, given in (("path", match.path != "/"), ("methods", match.methods), ("headers", match.headers)):
            if given:
                what = f"{listener.protocol} listeners see no {key}, only server names (host)"
                yield Broken((*at, "match", key), what)
        for key in ("upgrade", "connect"):
            if getattr(route, key) != RouteSection.model_fields[key].default:
                yield Broken((*at, key), f"{listener.protocol} listeners see no requests, only connections")
    for number, protocol in enumerate(route.upgrade):
        if isinstance(protocol, str) and protocol.lower().partition("/")[0] in NEVER_UPGRADED:
            what = f"{protocol} is never passed on: its requests would reach the origin unread"
            yield Broken((*at, "upgrade", number), what, "websocket")
    if listener.protocol == "tcp" and listener.tls is None and match.host:
        yield Broken((*at, "match", "host"), "a tcp listener without tls sees no server name", "protocol: sni")
    if route.timeout is not None and route.timeouts is not None and "total" in route.timeouts.model_fields_set:
        yield Broken((*at, "timeout"), "this route has both timeout and timeouts.total: give it one of them")


def _override(route: RouteSection, upstream: UpstreamSection, at: Path) -> Iterator[Broken]:
    effective = inherited(route, upstream)
    if isinstance(route.hedge, HedgeSection) and isinstance(effective.hedge, HedgeSection):
        yield from _hedge(effective.hedge, (*at, "hedge"), route.hedge.model_fields_set)
    if route.early_data and upstream.tls is None:
        yield Broken((*at, "early_data"), f"0-RTT needs tls, and upstream '{route.upstream}' has none")


def _hedge(hedge: HedgeSection, at: Path, named: set[str]) -> Iterator[Broken]:
    culprit = next((key for key in ("min_delay", "max_delay") if key in named), None)
    if culprit and hedge.min_delay > hedge.max_delay:
        low, high = format_duration(hedge.min_delay), format_duration(hedge.max_delay)
        yield Broken((*at, culprit), f"min_delay ({low}) is greater than max_delay ({high})")


def _health(upstream: UpstreamSection, at: Path) -> Iterator[Broken]:
    health = upstream.health
    if health is None or health.grpc is None:
        return
    if health.path is not None:
        yield Broken((*at, "grpc"), "this check has both path and grpc: give it one of them")
    if upstream.protocol not in ("auto", "h2") or (upstream.protocol == "auto" and upstream.tls is None):
        yield Broken((*at, "grpc"), "gRPC needs HTTP/2 to the endpoints", "", unless=(*at[:-1], "protocol"))


def _upstream(upstream: UpstreamSection, at: Path) -> Iterator[Broken]:
    yield from _health(upstream, (*at, "health"))
    tls = upstream.tls
    if tls is not None and (tls.certificate is None) != (tls.key is None):
        given, lacking = ("key", "certificate") if tls.certificate is None else ("certificate", "key")
        yield Broken((*at, "tls", lacking), f"{given} is given, and {lacking} is not: a client certificate needs both")
    if tls is not None and tls.spiffe_id is not None and not tls.verify:
        yield Broken((*at, "tls", "verify"), "without verification a spiffe_id proves nothing")
    if upstream.hedge is not None:
        yield from _hedge(upstream.hedge, (*at, "hedge"), upstream.hedge.model_fields_set)
    pool = upstream.pool
    if "warm" in pool.model_fields_set and pool.warm > pool.max_connections:
        what = f"warm ({pool.warm}) is greater than max_connections ({pool.max_connections})"
        yield Broken((*at, "pool", "warm"), what)
    if all(region.standby for region in upstream.regions.values()):
        yield Broken((*at, "regions"), "every region is standby: one must not be")
