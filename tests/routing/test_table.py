"""RouteTable: the most specific host, then path, then constraints, then the configuration's order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.model import Match, Route
from routing.table import CHAINS_MAX, RouteTable


def route(name: str, **match: object) -> Route:
    return Route(Match(**match), name)  # type: ignore[arg-type]


def matched(
    table: RouteTable, host: str = "", path: str = "/", method: str = "GET", *fields: tuple[bytes, bytes]
) -> str:
    found = table.match(host.encode(), path.encode(), method.encode(), list(fields))
    return found.upstream if found is not None else ""


def test_no_routes_match_nothing() -> None:
    assert matched(RouteTable([])) == ""


def test_one_route_takes_everything() -> None:
    table = RouteTable([route("all")])
    assert [matched(table, "a.example"), matched(table, "", "*"), matched(table, "x", "")] == ["all"] * 3


def test_a_first_route_that_takes_everything_does_not_hide_a_more_specific_one() -> None:
    table = RouteTable([route("all"), route("api", path="/api")])
    assert matched(table, path="/api/1") == "api"
    assert matched(table, path="/other") == "all"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("api.example.com", "exact"),
        ("API.Example.COM:8443", "exact"),
        ("api.example.com.", "exact"),
        ("b.eu.example.com", "eu"),
        ("a.b.eu.example.com", "eu"),
        ("eu.example.com", "wide"),
        ("other.example.com", "wide"),
        ("example.com", "any"),
        (".example.com", "any"),
        ("notexample.com", "any"),
        ("[::1]:80", "six"),
        ("[::1]", "six"),
        ("", "any"),
    ],
)
def test_hosts(host: str, expected: str) -> None:
    table = RouteTable(
        [
            route("any"),
            route("wide", host="*.example.com"),
            route("eu", host="*.eu.example.com"),
            route("exact", host="api.example.com"),
            route("six", host="[::1]"),
        ]
    )
    assert matched(table, host) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/users", "v1"),
        ("/v1/", "v1"),
        ("/v1", "root"),
        ("/v1/users/me", "me"),
        ("/v1/users/me?full=1", "me"),
        ("/v1/users/me/", "v1"),
        ("/v1?next=/v1/", "root"),
        ("*", "root"),
        ("", "root"),
    ],
)
def test_paths(path: str, expected: str) -> None:
    table = RouteTable([route("root"), route("v1", path="/v1/"), route("me", path="/v1/users/me", exact=True)])
    assert matched(table, path=path) == expected


def test_an_exact_root_is_not_a_prefix() -> None:
    table = RouteTable([route("root", path="/", exact=True)])
    assert (matched(table, path="/"), matched(table, path="/?q"), matched(table, path="/a")) == ("root", "root", "")


def test_constraints_go_before_none_and_headers_before_methods() -> None:
    table = RouteTable(
        [
            route("plain"),
            route("get", methods=("GET",)),
            route("gold", headers=(("X-Tier", "gold"),)),
            route("both", methods=("get",), headers=(("x-tier", "gold"),)),
        ]
    )
    gold = (b"x-tier", b"gold")
    assert matched(table, "", "/", "POST") == "plain"
    assert matched(table, "", "/", "GET") == "get"
    assert matched(table, "", "/", "POST", gold) == "gold"
    assert matched(table, "", "/", "GET", (b"x-tier", b"silver"), gold) == "both"
    assert matched(table, "", "/", "GET", (b"x-tier", b"golden")) == "get"


def test_ties_go_to_the_first_in_the_configuration() -> None:
    assert matched(RouteTable([route("first", path="/a"), route("second", path="/a")]), path="/a") == "first"


def test_a_host_that_refuses_the_path_falls_back_to_less_specific_hosts() -> None:
    table = RouteTable(
        [route("exact", host="a.b.c", path="/x"), route("wild", host="*.b.c", methods=("PUT",)), route("any", path="/")]
    )
    assert matched(table, "a.b.c", "/x") == "exact"
    assert matched(table, "a.b.c", "/y", "PUT") == "wild"
    assert matched(table, "a.b.c", "/y") == "any"


def test_what_is_remembered_of_hosts_is_bounded() -> None:
    table = RouteTable([route("any", path="/a"), route("a", host="a.example")])
    for number in range(3 * CHAINS_MAX):
        matched(table, f"host-{number}.example", "/a")
    assert len(table._chains) <= CHAINS_MAX
    assert matched(table, "a.example") == "a"


HOSTS = ("", "a.test", "b.test", "*.test", "*.a.test")
PATHS = ("/", "/a", "/a/", "/a/b", "/b")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(HOSTS), st.sampled_from(PATHS), st.booleans(), st.sampled_from(((), ("GET",), ("PUT",)))
        ),
        max_size=8,
    ),
    st.sampled_from(("a.test", "b.test:80", "x.a.test", "other")),
    st.sampled_from(("/", "/a", "/a/b", "/a/b/c?x", "/b", "/c")),
    st.sampled_from(("GET", "PUT", "POST")),
)
def test_the_table_agrees_with_a_plain_reading_of_its_rules(
    specs: list[tuple[str, str, bool, tuple[str, ...]]], host: str, path: str, method: str
) -> None:
    routes = [route(str(i), host=h, path=p, exact=e, methods=m) for i, (h, p, e, m) in enumerate(specs)]
    name, bare = host.split(":")[0], path.split("?")[0]

    def takes(match: Match) -> bool:
        fits_host = not match.host or match.host == name or (match.host[0] == "*" and name.endswith(match.host[1:]))
        fits_path = bare == match.path if match.exact else bare.startswith(match.path)
        return fits_host and fits_path and (not match.methods or method in match.methods)

    def rank(found: Route) -> tuple[int, int, bool, int, bool]:
        match = found.match
        kind = 0 if not match.host else 1 if match.host[0] == "*" else 2
        return (kind, len(match.host), match.exact, len(match.path), bool(match.methods))

    fitting = [found for found in routes if takes(found.match)]
    expected = max(fitting, key=rank).upstream if fitting else ""  # max keeps the first of equals
    assert matched(RouteTable(routes), host, path, method) == expected
