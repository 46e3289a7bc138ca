import pytest

from proxy.config import parse_config
from proxy.config.effective_routes import inherited
from routing import model
from routing.model import Endpoint, Hedge, Match, Region, Retry, SessionKey, Timeouts

TEXT = """\
listeners:
  - name: api
    address: 127.0.0.1:0
    routes:
      - {upstream: web, match: {host: "*.Example.com", path: =/exact, methods: [GET, PUT], headers: {X-Tier: Gold}}}
      - {upstream: web, match: {path: /a}, timeout: 10s}
      - {upstream: web, match: {path: /b}, timeout: 30s, timeouts: {connect: 1s}}
      - {upstream: web, match: {path: /c}, timeouts: {idle: 10m}}
      - {upstream: web, match: {path: /d}, hedge: {budget: 10%}, retry: {idempotency_key: true}}
      - {upstream: web, match: {path: /e}, hedge: off, retry: off}
      - {upstream: bare, match: {path: /f}, hedge: {budget: 1%}, retry: {attempts: 5}}
      - {upstream: bare}
  - {name: all, address: 127.0.0.1:0, upstream: web}
upstreams:
  web:
    regions:
      us: {endpoints: ["a.example:443", "[::1]:443"], weight: 3, max_in_flight: 7}
      eu: {endpoints: ["unix:/run/eu.sock"], standby: true}
    routing: {policy: weighted, spread: 10%}
    hedge: {min_delay: 10ms, max_delay: 2s}
    retry: {budget: 50%}
    timeouts: {response: 20s, total: 90s}
    drain: {after: 5, hold: 1s, ramp: 2s, max_drained: 25%}
    session_key: header:X-User
  bare:
    regions: {here: {endpoints: ["127.0.0.1:1"]}}
    hedge: off
    retry: off
"""


@pytest.fixture(scope="module")
def config():
    return parse_config(TEXT)


def test_an_upstream(config):
    assert config.routing("web") == model.Upstream(
        name="web",
        regions=(
            Region("us", (Endpoint("a.example", 443), Endpoint("::1", 443)), 3.0, False, 7),
            Region("eu", (Endpoint("", 0, "/run/eu.sock"),), 1.0, True, None),
        ),
        policy=model.Policy.WEIGHTED,
        spread=0.1,
        hedge=Hedge(0.05, 0.01, 2.0),
        retry=Retry(2, 0.5, False),
        timeouts=Timeouts(2.0, 20.0, 60.0, 90.0),
        drain=model.Drain(5, 1.0, 2.0, 0.25),
        session_key=SessionKey("header", "x-user"),
    )


def test_an_upstream_of_defaults_is_the_models():
    plain = parse_config(TEXT.replace("    hedge: off\n    retry: off\n", ""))
    assert plain.routing("bare") == model.Upstream("bare", (Region("here", (Endpoint("127.0.0.1", 1),)),))


def test_matches(config):
    routes = config.routes("api")
    expected = Match("*.example.com", "/exact", True, ("GET", "PUT"), (("x-tier", "Gold"),))
    assert routes[0].match == expected
    assert routes[-1].match == Match()


def test_what_routes_inherit_and_override(config):
    routes = config.routes("api")
    assert routes[0].timeouts == Timeouts(2.0, 20.0, 60.0, 90.0)
    assert routes[1].timeouts == Timeouts(2.0, 10.0, 60.0, 10.0)
    assert routes[2].timeouts == Timeouts(1.0, 20.0, 60.0, 30.0)
    assert routes[3].timeouts == Timeouts(2.0, 20.0, 600.0, 90.0)
    assert routes[4].hedge == Hedge(0.1, 0.01, 2.0)
    assert routes[4].retry == Retry(2, 0.5, True)
    assert (routes[5].hedge, routes[5].retry) == (None, None)
    assert routes[6].hedge == Hedge(0.01, 0.005, 1.0)
    assert routes[6].retry == Retry(5, 0.2, False)
    assert (routes[7].hedge, routes[7].retry) == (None, None)


def test_a_listener_with_one_upstream_has_one_route(config):
    (route,) = config.routes("all")
    assert route == model.Route(
        Match(), "web", Timeouts(2.0, 20.0, 60.0, 90.0), Retry(2, 0.5, False), Hedge(0.05, 0.01, 2.0)
    )
    assert config.routes(config.listeners[1]) == (route,)


def test_inheriting_twice_changes_nothing(config):
    for route in config.listeners[0].routes:
        assert inherited(route, config.upstreams[route.upstream]) == route


@pytest.mark.parametrize(
    ("tls", "route", "expected"),
    [
        ("", "", False),
        ("tls: {}", "", False),
        ("tls: {early_data: true}", "", True),
        ("tls: {early_data: true}", ", early_data: false", False),
        ("tls: {}", ", early_data: true", True),
    ],
)
@pytest.mark.usefixtures("everything_available")
def test_early_data(tls, route, expected):
    text = f"""\
listeners: [{{address: "127.0.0.1:0", routes: [{{upstream: web{route}}}]}}]
upstreams:
  web:
    regions: {{here: {{endpoints: ["a:1"]}}}}
    {tls}
"""
    assert parse_config(text).routes("127.0.0.1:0")[0].early_data is expected


def test_unknown_names(config):
    with pytest.raises(KeyError):
        config.routing("nope")
    with pytest.raises(KeyError):
        config.routes("nope")
