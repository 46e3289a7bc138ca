import textwrap
from pathlib import Path

import pytest

from proxy.config import ConfigError, load_config, parse_config, rules
from proxy.http import semantics

BASE = """\
listeners:
  - name: one
    address: 127.0.0.1:8080
    upstream: web
upstreams:
  web:
    regions:
      here: {endpoints: ["127.0.0.1:9000"]}
"""


def faults(text, **options):
    try:
        parse_config(textwrap.dedent(text), file="f", **options)
    except ConfigError as error:
        return [str(fault) for fault in error.faults]
    return []


def with_listener(extra, upstream="", **options):
    """BASE with keys added to its listener and to its upstream."""
    text = BASE.replace("    upstream: web\n", "".join(f"    {line}\n" for line in extra.splitlines()))
    return faults(text + "".join(f"    {line}\n" for line in upstream.splitlines()), **options)


def with_upstream(extra):
    return faults(BASE + "".join(f"    {line}\n" for line in extra.splitlines()))


def test_the_base_is_right():
    assert faults(BASE) == []


def test_names_and_addresses_are_unique():
    text = BASE.replace("upstreams:", "  - {name: one, address: 127.0.0.1:8080, upstream: web}\nupstreams:", 1)
    assert faults(text + "admin: {address: 127.0.0.1:8080}\n") == [
        "f:5:12: listeners[1].name: listeners[0] has the name 'one' already",
        "f:5:26: listeners[1].address: listeners[0] has the address 127.0.0.1:8080 already",
        "f:10:18: admin.address: listeners[0] has the address 127.0.0.1:8080 already",
    ]


def test_the_same_address_in_another_spelling():
    text = BASE.replace("127.0.0.1:8080", '"[::1]:80"').replace(
        "upstreams:", "  - {address: '[0:0::1]:80', upstream: web}\nupstreams:", 1
    )
    assert faults(text) == ["f:5:15: listeners[1].address: listeners[0] has the address [::1]:80 already"]


def test_ephemeral_ports_may_repeat():
    text = BASE.replace(":8080", ":0").replace(
        "upstreams:", "  - {name: b, address: 127.0.0.1:0, upstream: web}\nupstreams:", 1
    )
    assert faults(text + "admin: {address: 127.0.0.1:0}\n") == []


@pytest.mark.parametrize(
    ("listener", "upstream", "expected"),
    [
        ("", "", ["f:2:5: listeners[0].upstream: nothing says where requests go: give the listener upstream or routes"]),
        ("upstream: web\nroutes: [{upstream: web}]", "", ["f:4:15: listeners[0].upstream: this listener has both upstream and routes: give it one of them"]),
        ("upstream: wbe", "", ["f:4:15: listeners[0].upstream: there is no upstream 'wbe' (there are: web) (did you mean web?)"]),
        ("routes: [{upstream: x}]", "", ["f:4:25: listeners[0].routes[0].upstream: there is no upstream 'x' (there are: web)"]),
        ("upstream: web", "protocol: tcp", ["f:4:15: listeners[0].upstream: an http listener can't use upstream 'web', whose protocol is tcp"]),
        ("upstream: web\nprotocol: tcp", "protocol: h1", ["f:4:15: listeners[0].upstream: a tcp listener can't use upstream 'web', whose protocol is h1"]),
        ("upstream: web\nprotocol: sni", "protocol: h1", ["f:4:15: listeners[0].upstream: an sni listener can't use upstream 'web', whose protocol is h1"]),
        ("upstream: web\nprotocol: tcp", "protocol: auto", []),
        ("upstream: web\nprotocol: sni", "protocol: tcp", []),
        ("upstream: web\nprotocol: sni", "tls: {}", ["f:4:15: listeners[0].upstream: an sni listener passes the client's TLS through, and 'web' would wrap it in tls again"]),
        ("upstream: web", "proxy_protocol: v1", ["f:4:15: listeners[0].upstream: the proxy_protocol of upstream 'web' names one client for a whole connection, and an http listener's requests share connections"]),
        ("upstream: web\nprotocol: tcp", "proxy_protocol: v2\nsession_key: source", []),
        ("upstream: web\nprotocol: tcp", "session_key: cookie:id", ["f:4:15: listeners[0].upstream: upstream 'web' has the session_key cookie:id, and there is no HTTP to find it in (did you mean source?)"]),
        ("protocol: tcp\nroutes: [{upstream: web, match: {path: /x, methods: [GET], headers: {a: b}, host: c}}]", "", [
            "f:5:44: listeners[0].routes[0].match.path: tcp listeners see no path, only server names (host)",
            "f:5:57: listeners[0].routes[0].match.methods: tcp listeners see no methods, only server names (host)",
            "f:5:73: listeners[0].routes[0].match.headers: tcp listeners see no headers, only server names (host)",
            "f:5:87: listeners[0].routes[0].match.host: a tcp listener without tls sees no server name (did you mean protocol: sni?)",
        ]),
        ("protocol: sni\nroutes: [{upstream: web, match: {host: a.example}}, {upstream: web}]", "", []),
        ("routes: [{upstream: web, match: {host: A.b}}, {upstream: web, match: {host: a.B}}]", "", ["f:4:74: listeners[0].routes[1].match: routes[0] matches the same requests, so this route is never reached"]),
        ("routes: [{upstream: web}, {upstream: web}]", "", ["f:4:31: listeners[0].routes[1].match: routes[0] matches the same requests, so this route is never reached"]),
        ("routes: [{upstream: web, match: {methods: [GET, HEAD]}}, {upstream: web, match: {methods: [HEAD]}}]", "", []),
        ("routes: [{upstream: web, timeout: 1s, timeouts: {total: 2s}}]", "", ["f:4:39: listeners[0].routes[0].timeout: this route has both timeout and timeouts.total: give it one of them"]),
        ("routes: [{upstream: web, timeout: 1s, timeouts: {idle: 2s}}]", "", []),
        ("routes: [{upstream: web, hedge: {min_delay: 2s}}]", "", ["f:4:49: listeners[0].routes[0].hedge.min_delay: min_delay (2s) is greater than max_delay (1s)"]),
        ("routes: [{upstream: web, hedge: {min_delay: 2s}}]", "hedge: {max_delay: 3s}", []),
        ("routes: [{upstream: web, match: {host: 'a:80'}}]", "", ["f:4:44: listeners[0].routes[0].match.host: expected a host name without a port, or *.domain, got 'a:80' (did you mean a?)"]),
        ("routes: [{upstream: web, match: {host: '*'}}]", "", ["f:4:44: listeners[0].routes[0].match.host: expected a host name without a port, or *.domain, got '*'"]),
        ("routes: [{upstream: web, match: {path: v1}}]", "", ["f:4:44: listeners[0].routes[0].match.path: expected a path prefix such as /v1/, or =/path for exactly that one, got 'v1' (did you mean /v1?)"]),
        ("routes: [{upstream: web, match: {methods: [get]}}]", "", ["f:4:48: listeners[0].routes[0].match.methods[0]: expected a method in capitals such as GET, got 'get' (did you mean GET?)"]),
        ("routes: [{upstream: web, match: {headers: {x y: z}}}]", "", ["f:4:48: listeners[0].routes[0].match.headers.x y: expected the name of a header, got 'x y'"]),
        ("routes: [{upstream: web, match: {headers: {x: 1}}}]", "", ["f:4:51: listeners[0].routes[0].match.headers.x: expected the value of a header, got 1 (did you mean \"1\"?)"]),
    ],
)  # fmt: skip
def test_listeners_and_what_they_send_to(listener, upstream, expected):
    assert with_listener(listener, upstream) == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("hedge: {min_delay: 2s}", ["f:9:24: upstreams.web.hedge.min_delay: min_delay (2s) is greater than max_delay (1s)"]),
        ("hedge: {max_delay: 1ms}", ["f:9:24: upstreams.web.hedge.max_delay: min_delay (5ms) is greater than max_delay (1ms)"]),
        ("pool: {warm: 200}", ["f:9:18: upstreams.web.pool.warm: warm (200) is greater than max_connections (128)"]),
        ("tls: {spiffe_id: spiffe://a/b, verify: false}", ["f:9:44: upstreams.web.tls.verify: without verification a spiffe_id proves nothing"]),
        ("routing: {policy: weighted}", []),
    ],
)  # fmt: skip
def test_upstreams(extra, expected):
    assert with_upstream(extra) == expected


def test_a_client_certificate_needs_its_key(directory):
    text = BASE + "    tls: {key: me.key}\n"
    (found,) = faults(text, directory=directory)
    assert (
        found
        == "f:9:5: upstreams.web.tls.certificate: key is given, and certificate is not: a client certificate needs both"
    )


def test_not_every_region_may_be_standby():
    text = BASE.replace('9000"]', '9000"], standby: true')
    assert faults(text) == ["f:8:7: upstreams.web.regions: every region is standby: one must not be"]


def test_weights_are_above_zero():
    text = BASE.replace('9000"]', '9000"], weight: 0')
    assert faults(text) == [
        "f:8:53: upstreams.web.regions.here.weight: expected a weight above 0 and up to 1000000, got 0"
    ]


TLS = "tls: {certificates: [{certificate: edge.pem, key: edge.key}]}\n"


def test_an_sni_listener_does_not_terminate(directory):
    found = with_listener(f"upstream: web\nprotocol: sni\n{TLS}", directory=directory)
    assert found == [
        "f:6:10: listeners[0].tls: an sni listener passes TLS through without terminating it (did you mean protocol: tcp?)"
    ]


def test_a_tcp_listener_with_tls_knows_the_server_name(directory):
    assert (
        with_listener(
            f"protocol: tcp\n{TLS}routes: [{{upstream: web, match: {{host: a.example}}}}]", directory=directory
        )
        == []
    )


@pytest.mark.usefixtures("everything_available")
def test_http3_needs_http_tls_and_an_address(directory):
    assert with_listener("upstream: web\nhttp3: true") == ["f:5:12: listeners[0].http3: HTTP/3 needs tls"]
    found = with_listener(f"upstream: web\nprotocol: tcp\nhttp3: true\n{TLS}", directory=directory)
    assert found == ["f:6:12: listeners[0].http3: only http listeners speak HTTP/3"]
    text = BASE.replace("127.0.0.1:8080", "unix:/x").replace(
        "    upstream: web\n", f"    upstream: web\n    http3: true\n    {TLS}"
    )
    assert faults(text, directory=directory) == [
        "f:5:12: listeners[0].http3: HTTP/3 needs an IP address, and unix:/x is a Unix socket"
    ]
    assert with_listener(f"upstream: web\nhttp3: true\n{TLS}", directory=directory) == []


@pytest.mark.usefixtures("everything_available")
def test_early_data_needs_tls():
    found = with_listener("routes: [{upstream: web, early_data: true}]")
    assert found == ["f:4:42: listeners[0].routes[0].early_data: 0-RTT needs tls, and upstream 'web' has none"]
    assert with_listener("routes: [{upstream: web, early_data: true}]", "tls: {}") == []


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("upgrade: [websocket, foo/1], connect: true", None),
        ("upgrade: []", None),
        ("upgrade: [websocket, H2C]", "upgrade[1]: H2C is never passed on: its requests would reach the origin unread"),
        ("upgrade: [HTTP/2.0]", "upgrade[0]: HTTP/2.0 is never passed on: its requests would reach the origin unread"),
        ("upgrade: [a b]", "upgrade[0]: expected the name of a protocol such as websocket, got 'a b'"),
        ("upgrade: websocket", "upgrade: expected a list, got 'websocket'"),
        ("upgrade: [5]", "upgrade[0]: expected the name of a protocol such as websocket, got 5"),
        ("connect: yes", "connect: expected true or false, got 'yes'"),
    ],
)
def test_tunnels_of_a_route(written, expected):
    found = with_listener(f"routes: [{{upstream: web, {written}}}]")
    assert len(found) == (expected is not None)
    assert all(f"routes[0].{expected}" in one for one in found)


def test_only_http_routes_take_tunnels():
    for written in ("upgrade: [foo]", "connect: true"):
        (found,) = with_listener(f"protocol: tcp\nroutes: [{{upstream: web, {written}}}]")
        assert "tcp listeners see no requests, only connections" in found


def test_what_is_never_upgraded_is_one_list():
    assert {name.encode() for name in rules.NEVER_UPGRADED} == semantics.NEVER_UPGRADED


def test_a_rule_about_a_value_at_fault_is_silent():
    text = BASE.replace("upstream: web", "upstream: 5").replace("127.0.0.1:8080", "8080")
    found = faults(text + "    hedge: {min_delay: 2s, max_delay: fast}\n")
    assert [one.split(" ")[0] for one in found] == ["f:3:14:", "f:4:15:", "f:9:24:", "f:9:39:"]
    assert with_listener("routes:") == [
        "f:4:5: listeners[0].routes has no value: give it one, or leave the key out for its default"
    ]
    assert len(with_listener("routes: 5")) == len(with_listener("routes: []")) == 1
    assert len(faults(BASE + "admin: {address: 5000000}\n")) == 1


def test_the_example_of_the_interface(interface_example, environ, directory, everything_available):
    config = parse_config(interface_example, directory=directory, environ=environ)
    assert config.upstreams["payments"].tls.spiffe_id == "spiffe://prod/payments"
    assert config.fleet.quorum == 3
    assert config.sessions.key.value == "k" * 32
    assert config.tracing.otlp == "http://127.0.0.1:4318"


def test_what_this_version_can_not_do_is_said(interface_example, environ, directory):
    expected = [
        key
        for key in rules.NOT_AVAILABLE
        if key in ("listeners[].http3", "upstreams.*.tls.early_data", "sessions", "fleet", "tracing")
    ]
    found = faults(interface_example, directory=directory, environ=environ)
    assert len(found) == len(expected)
    assert all("not available in this version" in one for one in found)


def sample(key):
    """A tree that names the key with a value that is not off."""
    pattern, _, only = key.partition("=")
    tree = value = {}
    parts = pattern.replace("[]", ".[]").split(".")
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        below = only or True if following is None else {}
        value["name" if part in ("*", "[]") else part] = below
        value = below
    return tupled(tree)


def tupled(value):
    if isinstance(value, dict):
        return {
            key: (tupled(one["name"]),) if key in ("listeners", "routes") else tupled(one) for key, one in value.items()
        }
    return value


@pytest.mark.parametrize("key", ["a", "a.*.b", "listeners[].b", "listeners[].routes[].c", "a.*.protocol=h2", "a.b.c"])
def test_a_key_that_is_not_available_is_found(key, monkeypatch):
    monkeypatch.setattr(rules, "NOT_AVAILABLE", {key: "no"})
    tree = sample(key)
    (broken,) = rules.unavailable(tree)
    assert broken.message == "no"
    assert broken.path[0] == key.partition(".")[0].removesuffix("[]")


@pytest.mark.parametrize(
    ("value", "count"), [("true", 1), ("false", 0), ("off", 0), ("${A}", 0), ("${B}", 1), ("{}", 1)]
)
def test_off_is_always_available(value, count, monkeypatch):
    monkeypatch.setattr(rules, "NOT_AVAILABLE", {"listeners[].proxy_protocol": "no"})
    found = with_listener(f"upstream: web\nproxy_protocol: {value}", environ={"A": "false", "B": "true"})
    assert [one for one in found if "off" not in value and "proxy_protocol: no" in one] == [
        "f:5:5: listeners[0].proxy_protocol: no"
    ] * count


def test_only_the_named_value_is_not_available(monkeypatch):
    monkeypatch.setattr(rules, "NOT_AVAILABLE", {"upstreams.*.protocol=h1": "no"})
    assert with_upstream("protocol: h1") == ["f:9:5: upstreams.web.protocol: no"]
    assert with_upstream("protocol: auto") == []


def test_the_example_file_is_right():
    config = load_config(Path(__file__).parents[3] / "deploy" / "onetrip.example.yaml", environ={})
    assert [listener.name for listener in config.listeners] == ["api", "postgres"]
