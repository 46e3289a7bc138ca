import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.config import effective_values, effective_yaml, parse_config, units
from proxy.config.document import read_document
from proxy.config.effective import _block

MINIMAL = """\
listeners: [{address: "127.0.0.1:8080", upstream: web}]
upstreams: {web: {regions: {here: {endpoints: ["127.0.0.1:9000"]}}}}
"""


def test_the_effective_config_of_the_smallest_file():
    assert (
        effective_yaml(parse_config(MINIMAL))
        == """\
listeners:
  - name: 127.0.0.1:8080
    address: 127.0.0.1:8080
    protocol: http
    http3: false
    proxy_protocol: false
    trusted: [127.0.0.0/8, "::1/128"]
    fast_open: false
    upstream: web
upstreams:
  web:
    protocol: auto
    regions:
      here: {endpoints: [127.0.0.1:9000], weight: 1, standby: false}
    routing: {policy: latency, spread: 5%}
    hedge: {budget: 5%, min_delay: 5ms, max_delay: 1s}
    retry: {attempts: 2, budget: 20%, idempotency_key: false}
    timeouts: {connect: 2s, response: 15s, idle: 60s, total: 60s}
    pool: {warm: 2, max_connections: 128, max_age: 30m, keepalive: 15s}
    drain: {after: 3, hold: 10s, ramp: 30s, max_drained: 50%}
    proxy_protocol: off
    fast_open: false
    dns: {refresh: 30s}
admin: {address: 127.0.0.1:9900, hosts: []}
access_log: {path: "-", format: json, sample: 100%}
workers: 1
limits: {header_bytes: 64KiB, headers: 128, body_bytes: 0, connections: 20000, header_timeout: 10s}
shutdown: {settle: 0s, deadline: 30s}
"""
    )


def test_the_example_of_the_interface_loads_back(interface_example, environ, directory, everything_available):
    config = parse_config(interface_example, directory=directory, environ=environ)
    printed = effective_yaml(config)
    assert parse_config(printed, environ=environ) == config
    assert "token: env:ONETRIP_ADMIN_TOKEN" in printed
    assert environ["ONETRIP_ADMIN_TOKEN"] not in printed
    assert f"ca: {directory}/ca.pem" in printed


def test_secrets_are_masked(tmp_path):
    (tmp_path / "t").write_text("hunter2")
    literal = effective_yaml(parse_config(MINIMAL + "admin: {token: hunter2}\n"))
    assert 'token: "***"' in literal
    from_file = effective_yaml(parse_config(MINIMAL + "admin: {token: file:t}\n", directory=tmp_path))
    assert f"token: file:{tmp_path}/t" in from_file
    assert "hunter2" not in literal + from_file


def test_what_is_off_is_printed_off():
    config = parse_config(MINIMAL.replace("]}}}}", "]}}, hedge: off, retry: off}}") + "access_log: off\n")
    values = effective_values(config)
    assert (values["upstreams"]["web"]["hedge"], values["upstreams"]["web"]["retry"]) == ("off", "off")
    assert values["access_log"] == "off"


def test_values_are_json():
    assert json.loads(json.dumps(effective_values(parse_config(MINIMAL)))) == effective_values(parse_config(MINIMAL))


scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "off",
            "no",
            "1",
            "~",
            "null",
            "1.5",
            "a: b",
            "${A}",
            "$${A}",
            "a#b",
            "a #b",
            "- a",
            "<<",
            ":",
            "a:",
            "%",
            "0x1",
            ".5",
            "=/x",
            "x,y",
        ]
    ),
)
nonempty = st.dictionaries(st.text(max_size=5), scalars | st.lists(scalars, max_size=3), max_size=4)


def plain(value):
    """True without half surrogate pairs, which no loaded config holds."""
    return not any("\ud800" <= char <= "\udfff" for char in json.dumps(value, ensure_ascii=False))


@given(
    st.dictionaries(
        st.text(max_size=5), scalars | nonempty | st.lists(nonempty.filter(len), max_size=3), max_size=5
    ).filter(plain)
)
def test_any_values_survive_printing(value):
    document = read_document("\n".join(_block(value, 0)), {}) if value else read_document("{}", {})
    assert document.faults == []
    assert listed(document.tree) == value


def listed(value):
    if isinstance(value, tuple):
        return [listed(one) for one in value]
    return {key: listed(one) for key, one in value.items()} if isinstance(value, dict) else value


durations = st.integers(1, 10**10).map(lambda micros: units.format_duration(micros / 1e6))
shares = st.decimals(0, 100, places=3).map(lambda percent: f"{percent:f}%")
positive_shares = st.decimals("0.001", 100, places=3).map(lambda percent: f"{percent:f}%")
names = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="$"), min_size=1, max_size=12
)
endpoints = st.sampled_from(["a:1", "[::1]:443", "unix:/run/a b.sock", "10.0.0.1:65535", "x.example.com:80"])


def optional(**keys):
    return st.fixed_dictionaries({}, optional=keys)


timeouts = optional(connect=durations, response=durations, idle=durations, total=durations)
retry = st.just("off") | optional(attempts=st.integers(0, 10), budget=shares, idempotency_key=st.booleans())
hedge = st.just("off") | st.just(False) | optional(budget=shares)
upstreams = st.fixed_dictionaries(
    {
        "regions": st.dictionaries(
            names,
            st.fixed_dictionaries(
                {"endpoints": st.lists(endpoints, min_size=1, max_size=2)},
                optional={"weight": st.integers(1, 9) | st.floats(0.001, 9), "max_in_flight": st.integers(1, 9)},
            ),
            min_size=1,
            max_size=3,
        )
    },
    optional={
        "tls": optional(server_name=names, verify=st.booleans(), groups=st.lists(st.sampled_from(["X25519", "P-256"]))),
        "routing": optional(policy=st.sampled_from(["latency", "weighted", "ordered"]), spread=positive_shares),
        "timeouts": timeouts,
        "retry": retry,
        "hedge": hedge,
        "pool": optional(warm=st.integers(0, 9), max_connections=st.integers(9, 99), max_age=durations),
        "health": optional(
            path=st.sampled_from(["/", "/healthz?x=1"]), expect=st.sampled_from([200, "200-299, 404", "204"])
        ),
        "drain": optional(after=st.integers(1, 9), hold=durations, max_drained=shares),
        "session_key": st.sampled_from(["source", "header:X-User", "cookie:Id"]),
    },
)
match = optional(
    host=st.sampled_from(["*.A.example", "b"]),
    path=st.sampled_from(["/", "/v1/", "=/x"]),
    methods=st.just(["GET"]),
    headers=st.dictionaries(st.sampled_from(["x-a", "X-B"]), st.sampled_from(["", "1", "a: b", "off"]), max_size=2),
)


@st.composite
def configs(draw):
    ups = draw(st.dictionaries(names, upstreams, min_size=1, max_size=2))
    one = draw(st.sampled_from(list(ups)))
    route = draw(
        st.fixed_dictionaries(
            {"upstream": st.just(one)}, optional={"match": match, "timeouts": timeouts, "retry": retry, "hedge": hedge}
        )
    )
    listener = {
        "address": draw(st.sampled_from(["127.0.0.1:0", "[::]:1", "unix:/x"])),
        **draw(optional(name=names, trusted=st.just(["10.0.0.0/8"]))),
    }
    listener |= draw(st.sampled_from([{"upstream": one}, {"routes": [route]}]))
    rest = draw(
        optional(
            workers=st.integers(1, 9) | st.just("auto"),
            access_log=st.just("off") | optional(path=st.sampled_from(["-", "/tmp/a b.log"]), sample=shares),
            limits=optional(header_bytes=st.sampled_from(["1KiB", 5, "3MB"]), body_bytes=st.integers(0, 2**40)),
            shutdown=optional(settle=durations, deadline=st.just(0)),
        )
    )
    return {"listeners": [listener], "upstreams": ups, **rest}


@given(configs())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=60, deadline=None)
def test_the_effective_config_loads_back_as_an_equal_one(tree):
    config = parse_config(json.dumps(tree, ensure_ascii=False))
    printed = effective_yaml(config)
    again = parse_config(printed)
    assert again == config
    assert effective_yaml(again) == printed
    assert [again.routes(one) for one in again.listeners] == [config.routes(one) for one in config.listeners]


@pytest.mark.parametrize("line", effective_yaml(parse_config(MINIMAL)).splitlines())
def test_lines_are_short(line):
    assert len(line) <= 120
