"""Host, path, method and headers → route. Built once per configuration; a look-up is a few dictionary reads.

Rules, the most specific constraint first:
1. The host: an exact name, then the longest `*.suffix` (one label or more stands for the `*`), then any.
2. The path: exact (`=/exact`), then the longest prefix. `/v1/` is a plain prefix: it takes `/v1/a`, not `/v1`. `/`
   takes everything, also a target without a path (`OPTIONS *`, CONNECT).
3. More header constraints, then constrained methods.
4. The order of the configuration.
A host whose routes all refuse the path falls back to the next less specific host.

Paths are compared as received, up to the query: nothing is decoded or normalised, so a route is no access control
for an origin that does either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Match

Fields: TypeAlias = "list[tuple[bytes, bytes]]"

CHAINS_MAX: Final = 1024
"""Distinct authorities remembered; past it the memory starts anew."""


class Matched(Protocol):
    """A route, or what a caller has bound one to."""

    @property
    def match(self) -> Match:
        """Which requests it takes."""


R = TypeVar("R", bound=Matched)


class RouteTable(Generic[R]):
    """The routes of one listener. `match` returns the most specific route that takes a request, or None."""

    __slots__ = ("_any", "_chains", "_hosts", "_only", "_suffixes", "routes")

    def __init__(self, routes: Sequence[R]) -> None:
        self.routes = tuple(routes)
        # The commonest table by far, one route that takes everything, answers at once.
        first = _Candidate(self.routes[0]) if self.routes else None
        self._only = first.route if first is not None and first.takes_everything else None
        by_host: dict[bytes, list[_Candidate[R]]] = {}
        for route in self.routes:
            by_host.setdefault(_host_pattern(route.match.host), []).append(_Candidate(route))
        if self._only is not None and any(
            not candidate.takes_everything for rest in by_host.values() for candidate in rest
        ):
            self._only = None
        self._any = _Paths(by_host.pop(b"", []))
        self._hosts = {host: _Paths(found) for host, found in by_host.items() if not host.startswith(b"*.")}
        self._chains: dict[bytes, tuple[_Paths[R], ...]] = {}
        self._suffixes = {host[1:]: _Paths(found) for host, found in by_host.items() if host.startswith(b"*.")}

    def match(self, host: bytes, path: bytes, method: bytes, fields: Fields) -> R | None:
        """The route for a request. `host` is the authority as received; `path` the target with or without its query.

        `fields` are (lower-case name, value) pairs. None: no route takes it.
        """
        if self._only is not None:
            return self._only
        chain = self._chains.get(host)
        if chain is None:
            chain = self._chain(host)
        if b"?" in path:
            path = path[: path.index(b"?")]
        for paths in chain:
            found = paths.match(path, method, fields)
            if found is not None:
                return found
        return None

    def _chain(self, authority: bytes) -> tuple[_Paths[R], ...]:
        """The path tables to try for an authority, most specific first; remembered, since clients repeat few of
        them.
        """
        name = _host_name(authority)
        chain = [self._hosts[name]] if name in self._hosts else []
        dot = name.find(b".", 1)  # from 1: the `*` stands for at least one character
        while dot >= 0:
            if name[dot:] in self._suffixes:
                chain.append(self._suffixes[name[dot:]])
            dot = name.find(b".", dot + 1)
        chain.append(self._any)
        if len(self._chains) >= CHAINS_MAX:  # clients choose this key
            self._chains.clear()
        self._chains[authority] = result = tuple(chain)
        return result

    def __repr__(self) -> str:
        return f"<RouteTable {len(self.routes)} routes, {len(self._hosts)} hosts, {len(self._suffixes)} wildcards>"


class _Candidate(Generic[R]):
    """A route with its constraints as bytes."""

    __slots__ = ("exact", "headers", "methods", "path", "route", "takes_everything", "unconstrained")

    def __init__(self, route: R) -> None:
        match = route.match
        self.route = route
        self.exact = match.exact
        path = match.path.encode()
        self.path = b"" if path == b"/" and not match.exact else path
        self.methods = frozenset(method.upper().encode() for method in match.methods)
        self.headers = tuple((name.lower().encode(), value.encode()) for name, value in match.headers)
        self.unconstrained = not self.methods and not self.headers
        self.takes_everything = self.unconstrained and not match.host and not self.path and not match.exact

    def takes(self, method: bytes, fields: Fields) -> bool:
        """Whether method and headers satisfy it. A repeated field satisfies it when one of its lines does."""
        if self.methods and method not in self.methods:
            return False
        return all(constraint in fields for constraint in self.headers)

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts the more constrained first; sorting is stable, so ties keep the configuration's order."""
        return (-len(self.headers), 0 if self.methods else 1)


class _Paths(Generic[R]):
    """The routes of one host pattern by path: exact ones, then prefixes by length."""

    __slots__ = ("_always", "_exact", "_lengths", "_prefixes")

    def __init__(self, candidates: Sequence[_Candidate[R]]) -> None:
        self._exact: dict[bytes, list[_Candidate[R]]] = {}
        self._prefixes: dict[bytes, list[_Candidate[R]]] = {}
        for candidate in sorted(candidates, key=lambda candidate: candidate.rank):
            (self._exact if candidate.exact else self._prefixes).setdefault(candidate.path, []).append(candidate)
        # One slice and one look-up per distinct length: no scan over hundreds of prefixes.
        self._always = self._prefixes.pop(b"", [])
        self._lengths = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)

    def match(self, path: bytes, method: bytes, fields: Fields) -> R | None:
        if self._exact:
            found = self._exact.get(path)
            if found is not None:
                for candidate in found:
                    if candidate.unconstrained or candidate.takes(method, fields):
                        return candidate.route
        for length in self._lengths:
            found = self._prefixes.get(path[:length])
            if found is not None:
                for candidate in found:
                    if candidate.unconstrained or candidate.takes(method, fields):
                        return candidate.route
        for candidate in self._always:
            if candidate.unconstrained or candidate.takes(method, fields):
                return candidate.route
        return None


def _host_pattern(host: str) -> bytes:
    """A configured host as a key: lower case, `*` alone means any."""
    pattern = host.lower().rstrip(".").encode("idna" if not host.isascii() else "ascii")
    return b"" if pattern == b"*" else pattern


def _host_name(authority: bytes) -> bytes:
    """An authority's host: lower case, without port, brackets kept, without the root's dot (RFC 3986 section 3.2.2)."""
    colon = authority.rfind(b":")
    if colon >= 0 and authority.find(b"]", colon) < 0:  # a colon inside brackets belongs to an IPv6 literal
        authority = authority[:colon]
    if authority.endswith(b"."):
        authority = authority[:-1]
    return authority.lower()
