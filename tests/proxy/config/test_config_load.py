import json
import os
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import (
    ConfigError,
    ConfigFault,
    check_config,
    effective_values,
    effective_yaml,
    load_config,
    parse_config,
)
from proxy.config.units import Address

MINIMAL = """\
listeners:
  - address: 127.0.0.1:8080
    upstream: web
upstreams:
  web:
    regions:
      here: {endpoints: ["127.0.0.1:9000"]}
"""


def faults(text, **environ):
    with pytest.raises(ConfigError) as caught:
        parse_config(textwrap.dedent(text), file="f.yaml", environ=environ)
    return [str(fault) for fault in caught.value.faults]


def added(extra, **environ):
    """The faults of the minimal config with more top-level text."""
    return faults(MINIMAL + textwrap.dedent(extra), **environ)


def listener(extra):
    return faults(MINIMAL.replace("    upstream: web\n", f"    upstream: web\n    {extra}\n"))


def upstream(extra):
    return faults(MINIMAL + f"    {extra}\n")


def test_the_smallest_config_has_every_default():
    config = parse_config(MINIMAL)
    (listener,) = config.listeners
    web = config.upstreams["web"]
    assert listener.name == "127.0.0.1:8080"
    assert listener.address == Address("127.0.0.1", 8080)
    assert (listener.protocol, listener.tls, listener.http3, listener.routes) == ("http", None, False, None)
    assert [str(network) for network in listener.trusted] == ["127.0.0.0/8", "::1/128"]
    assert (web.protocol, web.tls, web.health, web.session_key) == ("auto", None, None, None)
    assert (web.routing.policy, web.routing.spread) == ("latency", 0.05)
    assert web.hedge.model_dump() == {"budget": "5%", "min_delay": "5ms", "max_delay": "1s"}
    assert (web.hedge.budget, web.hedge.min_delay, web.hedge.max_delay) == (0.05, 0.005, 1.0)
    assert (web.retry.attempts, web.retry.budget, web.retry.idempotency_key) == (2, 0.2, False)
    timeouts, pool, drain = web.timeouts, web.pool, web.drain
    assert (timeouts.connect, timeouts.response, timeouts.idle, timeouts.total) == (2.0, 15.0, 60.0, 60.0)
    assert (pool.warm, pool.max_connections, pool.max_age, pool.keepalive) == (2, 128, 1800.0, 15.0)
    assert (drain.after, drain.hold, drain.ramp, drain.max_drained) == (3, 10.0, 30.0, 0.5)
    assert (config.sessions, config.fleet, config.tracing, config.workers) == (None, None, None, 1)
    assert config.admin.address == Address("127.0.0.1", 9900)
    assert config.admin.token is None
    limits = config.limits
    assert (limits.header_bytes, limits.headers, limits.body_bytes, limits.connections) == (65536, 128, 0, 20000)
    assert (limits.header_timeout, config.shutdown.settle, config.shutdown.deadline) == (10.0, 0.0, 30.0)
    assert (config.access_log.path.path, config.access_log.sample) == (None, 1.0)


def test_a_config_is_frozen():
    config = parse_config(MINIMAL)
    with pytest.raises(Exception, match="frozen"):
        config.workers = 2
    with pytest.raises(Exception, match="frozen"):
        config.listeners[0].tls = None


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("worker: 3", "f.yaml:8:1: unknown key 'worker' in the config (did you mean workers?)"),
        ("admin: {adress: x}", "f.yaml:8:9: unknown key 'adress' in admin (did you mean address?)"),
        ("qqq: 1", "f.yaml:8:1: unknown key 'qqq' in the config"),
        ("endpoints: []", "f.yaml:8:1: unknown key 'endpoints' in the config; it belongs in upstreams.*.regions.*"),
        ("workers: many", "f.yaml:8:10: workers: expected a number of processes from 1 to 512, or auto, got 'many'"),
        ("workers: autp", "f.yaml:8:10: workers: expected a number of processes from 1 to 512, or auto, got 'autp' (did you mean auto?)"),
        ("workers: 0", "f.yaml:8:10: workers: expected a number of processes from 1 to 512, or auto, got 0"),
        ("workers: true", "f.yaml:8:10: workers: expected a number of processes from 1 to 512, or auto, got true"),
        ("workers: '4'", "f.yaml:8:10: workers: expected a number of processes from 1 to 512, or auto, got the string '4'"),
        ("limits: 5", "f.yaml:8:9: limits: expected a mapping, got 5"),
        ("limits: {headers: '5'}", "f.yaml:8:19: limits.headers: expected a whole number, got the string '5' (did you mean 5?)"),
        ("limits: {headers: 0}", "f.yaml:8:19: limits.headers: expected a whole number of at least 1, got 0"),
        ("limits: {headers: 1.5}", "f.yaml:8:19: limits.headers: expected a whole number, got 1.5"),
        ("limits: {header_timeout: 0s}", "f.yaml:8:26: limits.header_timeout: expected a duration above zero, got '0s'"),
        ("limits: {header_bytes: 0}", "f.yaml:8:24: limits.header_bytes: expected a size above zero, got 0"),
        ("shutdown: {deadline: 30}", "f.yaml:8:22: shutdown.deadline: expected a duration such as 250ms, 2s or 1m30s, got 30 (did you mean 30s?)"),
        ("access_log: {sample: 1}", "f.yaml:8:22: access_log.sample: expected a percentage from 0% to 100% such as 5%, got 1 (did you mean 1%?)"),
        ("access_log: {format: jsn}", "f.yaml:8:22: access_log.format: expected json, got 'jsn' (did you mean json?)"),
        ("access_log: {path: /nonexistent/a.log}", "f.yaml:8:20: access_log.path: there is no directory /nonexistent for the file a.log"),
        ("access_log: {path: /}", "f.yaml:8:20: access_log.path: expected a file's path, and / is a directory"),
        ("access_log: {path: /dev/null/x}", "f.yaml:8:20: access_log.path: the file /dev/null/x can't be written: not a directory"),
        ("access_log: on", "f.yaml:8:13: access_log: expected a mapping, got 'on'"),
        ("admin: {token: env:NOPE}", "f.yaml:8:16: admin.token: the environment variable NOPE is not set"),
        ("admin: {token: ''}", "f.yaml:8:16: admin.token: expected env:NAME, file:PATH or a secret, got an empty one"),
        ("admin: {token: 0123}", "f.yaml:8:16: admin.token: expected env:NAME, file:PATH or the secret itself in quotes"),
        ("admin: {token: '***'}", "f.yaml:8:16: admin.token: *** only stands for a secret in printed configs: give env:NAME, file:PATH or the secret"),
        ("admin: {token: file:/nonexistent/t}", "f.yaml:8:16: admin.token: the file /nonexistent/t can't be read: no such file or directory"),
        ("limits:", "f.yaml:8:1: limits has no value: give it one, or leave the key out for its default"),
    ],
)  # fmt: skip
def test_faults_of_the_top_level(extra, expected):
    assert added(extra + "\n") == [expected]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("protocol: htp", "protocol: expected http, tcp or sni, got 'htp' (did you mean http?)"),
        ("protocol: 5", "protocol: expected http, tcp or sni, got 5"),
        ("proxy_protocol: yes", "proxy_protocol: expected true or false, got 'yes' (did you mean true?)"),
        ("proxy_protocol: 'true'", "proxy_protocol: expected true or false, got the string 'true' (did you mean true?)"),
        ("name: a b", "name: expected a name of 1 to 128 characters without white space, got 'a b' (did you mean a-b?)"),
        ("name: 5", "name: expected a name of 1 to 128 characters without white space, got 5 (did you mean \"5\"?)"),
        ("trusted: 10.0.0.0/8", "trusted: expected a list, got '10.0.0.0/8' (did you mean [\"10.0.0.0/8\"]?)"),
        ("trusted: [10.0.0.1/8]", "trusted[0]: expected a network such as 10.0.0.0/8 or an IP address, got '10.0.0.1/8', which has host bits set (did you mean 10.0.0.0/8?)"),
        ("trusted: [here]", "trusted[0]: expected a network such as 10.0.0.0/8 or an IP address, got 'here'"),
        ("trusted: [5]", "trusted[0]: expected a network such as 10.0.0.0/8 or an IP address, got 5"),
        ("tls: {}", "tls needs the key 'certificates'"),
        ("tls: {certificates: []}", "tls.certificates: needs at least one certificate"),
        ("tls: {certificates: [a.pem]}", "tls.certificates[0]: expected a mapping, got 'a.pem'"),
    ],
)  # fmt: skip
def test_faults_of_a_listener(extra, expected):
    (found,) = listener(extra)
    assert found.startswith("f.yaml:4:")
    assert found.partition(" listeners[0].")[2] == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("protocol: h4", "protocol: expected auto, h1, h2, h3 or tcp, got 'h4'"),
        ("hedge: on", "hedge: expected a mapping, got 'on'"),
        ("hedge: {budget: 200%}", "hedge.budget: expected a percentage from 0% to 100% such as 5%, got '200%'"),
        ("routing: {policy: nearest}", "routing.policy: expected latency, weighted or ordered, got 'nearest'"),
        ("routing: {policy: wieghted}", "routing.policy: expected latency, weighted or ordered, got 'wieghted' (did you mean weighted?)"),
        ("routing: {spread: 0%}", "routing.spread: expected a percentage above zero, got '0%'"),
        ("retry: {attempts: -1}", "retry.attempts: expected a whole number of at least 0, got -1"),
        ("timeouts: {connect: 0}", "timeouts.connect: expected a duration above zero, got 0"),
        ("health: {path: healthz}", "health.path: expected a path such as /healthz, got 'healthz' (did you mean /healthz?)"),
        ("health: {expect: 2xx}", "health.expect: expected status codes such as 200-299 or 200,204, got '2xx' (did you mean 200-299?)"),
        ("health: {expect: 299-200}", "health.expect: expected status codes such as 200-299 or 200,204, got '299-200'"),
        ("health: {expect: 99}", "health.expect: expected status codes such as 200-299 or 200,204, got 99"),
        ("health: {expect: [200]}", "health.expect: expected status codes such as 200-299 or 200,204, got a list"),
        ("session_key: x-user", "session_key: expected header:NAME, cookie:NAME or source, got 'x-user'"),
        ("session_key: haeder:x", "session_key: expected header:NAME, cookie:NAME or source, got 'haeder:x' (did you mean header:x?)"),
        ("session_key: sourc", "session_key: expected header:NAME, cookie:NAME or source, got 'sourc' (did you mean source?)"),
        ("session_key: 'header:'", "session_key: expected the name of a header after header:, got ''"),
        ("proxy_protocol: v3", "proxy_protocol: expected off, v1 or v2, got 'v3'"),
        ("tls: {spiffe_id: prod/payments}", "tls.spiffe_id: expected a SPIFFE id such as spiffe://prod/payments, got 'prod/payments'"),
        ("tls: {groups: X25519}", "tls.groups: expected a list, got 'X25519' (did you mean [\"X25519\"]?)"),
        ("tls: true", "tls: expected a mapping, got true"),
        ("tls: {ca: nope.pem}", None),
    ],
)  # fmt: skip
def test_faults_of_an_upstream(extra, expected):
    (found,) = upstream(extra)
    assert found.startswith("f.yaml:8:")
    message = found.partition(" upstreams.web.")[2]
    if expected is None:
        assert message.startswith("tls.ca: the file /")
        assert message.endswith("nope.pem can't be read: no such file or directory")
    else:
        assert message == expected


def test_every_fault_is_found_in_the_order_of_the_file():
    text = """\
    listeners:
      - name: api
        adress: 127.0.0.1:8080
        upstream: paymets
      - address: 8080
        protcol: tcp
        routes:
          - upstream: payments
            timeout: fast
            hedge: {budget: 0.05}
          - {upstream: nope, match: {path: v1, methods: [get]}}
          - 5
    upstreams:
      payments:
        regions:
          us: {endpoints: ["api-us.example.com"], weigth: 2}
          eu: {endpoints: [], standby: yes}
          ap: {}
        hedge: {min_delay: 2s, max_delay: 1s}
        pool: {warm: 4000}
        timeouts: 5s
        tls: {certificate: /nope.pem, verify:}
    admin: {token: env:NOPE, token: x}
    limits: {header_bytes: "${BYTES}"}
    """
    found = faults(text)
    assert [one.split(" ")[0] for one in found] == [
        "f.yaml:3:5:",
        "f.yaml:4:15:",
        "f.yaml:5:14:",
        "f.yaml:6:5:",
        "f.yaml:9:18:",
        "f.yaml:10:25:",
        "f.yaml:11:20:",
        "f.yaml:11:40:",
        "f.yaml:11:54:",
        "f.yaml:12:9:",
        "f.yaml:16:24:",
        "f.yaml:16:47:",
        "f.yaml:17:23:",
        "f.yaml:17:36:",
        "f.yaml:18:7:",
        "f.yaml:19:24:",
        "f.yaml:20:18:",
        "f.yaml:21:15:",
        "f.yaml:22:24:",
        "f.yaml:22:35:",
        "f.yaml:23:16:",
        "f.yaml:23:26:",
        "f.yaml:24:24:",
    ]
    assert "there is no upstream 'paymets' (there are: payments) (did you mean payments?)" in found[1]
    assert "needs the key 'endpoints'" in found[14]
    assert not any("needs the key 'address'" in one for one in found), (
        "a misspelt key explains that the right one is missing"
    )


def test_faults_that_only_follow_from_others_are_not_told():
    assert faults("listeners: [5]\nupstreams: {}\n") == [
        "f.yaml:1:13: listeners[0]: expected a mapping, got 5",
        "f.yaml:2:12: upstreams: needs at least one upstream",
    ]
    assert faults("{}") == [
        "f.yaml:1:1: the config needs the key 'listeners'",
        "f.yaml:1:1: the config needs the key 'upstreams'",
    ]
    text = MINIMAL.replace("127.0.0.1:8080", "${NOPE}")
    assert faults(text) == ["f.yaml:2:14: the environment variable NOPE is not set, and ${NOPE} has no default"]


def test_a_misspelt_key_excuses_only_an_absent_one():
    assert len(added("limits: {haeders: 5, headers: x}\n")) == 2
    text = MINIMAL.replace("upstream:", "upstraem:")
    assert faults(text) == ["f.yaml:3:5: unknown key 'upstraem' in listeners[0] (did you mean upstream?)"]


def test_a_bad_name_of_a_region_is_told_once():
    text = MINIMAL.replace("      here:", "      'h e r e':")
    (found,) = faults(text)
    assert found.startswith("f.yaml:7:7: upstreams.web.regions.h e r e: expected a name")


def test_variables_count_as_what_their_place_wants():
    text = """\
    listeners:
      - {address: "127.0.0.1:${PORT}", upstream: "${UP}", proxy_protocol: "${FLAG}", name: "${NAME}"}
    upstreams:
      ${UP}:
        regions: {"${REGION}": {endpoints: ["${HOST}:9000"], weight: "${WEIGHT}", max_in_flight: "${MAX}"}}
        hedge: ${HEDGE:-off}
        retry: "${OFF}"
        pool: {warm: "${WARM:-7}"}
        timeouts: {connect: "${TIME}", idle: "${SECONDS}s"}
        health: {expect: "${CODE}"}
    workers: ${WORKERS}
    limits: {header_bytes: "${BYTES}", body_bytes: "${ZERO}"}
    """
    environ = {"PORT": "81", "UP": "web", "FLAG": "true", "NAME": "5", "REGION": "no", "HOST": "h", "WEIGHT": "1.5", "MAX": "9", "OFF": "false", "TIME": "250ms", "SECONDS": "3", "CODE": "204", "WORKERS": "4", "BYTES": "8KiB", "ZERO": "0"}  # fmt: skip
    config = parse_config(textwrap.dedent(text), environ=environ)
    web = config.upstreams["web"]
    assert config.listeners[0].address.port == 81
    assert config.listeners[0].proxy_protocol is True
    assert config.listeners[0].name == "5"
    assert web.regions["no"].weight == 1.5
    assert web.regions["no"].max_in_flight == 9
    assert (web.hedge, web.retry, web.pool.warm) == (None, None, 7)
    assert (web.timeouts.connect, web.timeouts.idle, web.health.expect) == (0.25, 3.0, ((204, 204),))
    assert (config.workers, config.limits.header_bytes, config.limits.body_bytes) == (4, 8192, 0)


def test_variables_are_checked_like_what_is_written():
    assert added("workers: ${W}\n", W="many") == ["f.yaml:8:10: workers: expected a number of processes from 1 to 512, or auto, got 'many'"]  # fmt: skip
    assert added("admin: {token: '${T}'}\n", T="") == ["f.yaml:8:16: admin.token: expected env:NAME, file:PATH or a secret, got an empty one"]  # fmt: skip
    assert added("admin: {address: '${A}'}\n", A="${W}")[0].startswith(
        "f.yaml:8:18: admin.address: the address '${W}' has no port"
    )


def test_what_a_health_check_expects():
    health = parse_config(MINIMAL + "    health: {expect: '200-204, 301'}\n").upstreams["web"].health
    assert [code for code in range(100, 600) if health.expects(code)] == [200, 201, 202, 203, 204, 301]


def test_off_is_written_in_several_ways():
    for off in ("off", "false", "'off'"):
        config = parse_config(MINIMAL + f"    hedge: {off}\n    retry: {off}\naccess_log: {off}\n")
        assert (config.upstreams["web"].hedge, config.upstreams["web"].retry, config.access_log) == (None, None, None)


def test_min_version_may_look_like_a_number(tmp_path):
    (tmp_path / "c.pem").write_text("x")
    text = MINIMAL.replace(
        "    upstream: web\n",
        "    upstream: web\n    tls: {certificates: [{certificate: c.pem, key: c.pem}], min_version: 1.3}\n",
    )
    assert parse_config(text, directory=tmp_path).listeners[0].tls.min_version == "1.3"


def test_paths_start_from_the_directory_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "ca.pem").write_text("x")
    (tmp_path / "token").write_text("secret\n")
    file = tmp_path / "conf" / "onetrip.yaml"
    file.write_text(MINIMAL + "    tls: {ca: ../ca.pem}\nadmin: {token: file:../token}\naccess_log: {path: a.log}\n")
    monkeypatch.chdir("/")
    config = load_config(file)
    assert config.upstreams["web"].tls.ca == tmp_path / "ca.pem"
    assert config.admin.token.value == "secret"
    assert config.access_log.path.path == tmp_path / "conf" / "a.log"
    monkeypatch.chdir(tmp_path)
    assert load_config("conf/onetrip.yaml") == config


def test_paths_that_no_file_can_have():
    for section in ("access_log: {path: %s}\n", "admin: {token: 'file:%s'}\n"):
        (found,) = added(section % ("x" * 300))
        assert "file name too long" in found


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ca.pem")
    assert (
        parse_config(MINIMAL + "    tls: {ca: ca.pem}\n", directory=tmp_path).upstreams["web"].tls.ca
        == tmp_path / "ca.pem"
    )


def test_a_misspelt_file_is_suggested(tmp_path):
    (tmp_path / "clients.pem").write_text("x")
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL + "    tls: {ca: client.pem}\n", directory=tmp_path)
    assert caught.value.faults[0].suggestion == "clients.pem"


def test_secrets_are_never_shown(tmp_path):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "big").write_text("x" * 70_000)
    config = parse_config(MINIMAL + "admin: {token: env:TOKEN}\n", environ={"TOKEN": "hunter2"})
    assert config.admin.token.value == "hunter2"
    literal = parse_config(MINIMAL + "admin: {token: hunter2}\n")
    assert "hunter2" not in f"{config!r} {config} {literal!r} {literal.admin.token} {literal.model_dump_json()}"
    for name, message in (("empty", "is empty"), ("binary", "is not UTF-8 text"), ("big", "too large")):
        with pytest.raises(ConfigError, match=message):
            parse_config(MINIMAL + f"admin: {{token: file:{name}}}\n", directory=tmp_path)
    with pytest.raises(ConfigError, match="TOKEN is empty"):
        parse_config(MINIMAL + "admin: {token: env:TOKEN}\n", environ={"TOKEN": ""})
    with pytest.raises(ConfigError, match=r"did you mean env:TOKEN\?"):
        parse_config(MINIMAL + "admin: {token: env:TOKENS}\n", environ={"TOKEN": "x"})


def test_files_that_are_no_config(tmp_path):
    def told(content):
        file = tmp_path / "f.yaml"
        file.write_bytes(content)
        return [str(fault).replace(f"{tmp_path}/", "") for fault in check_config(file)]

    assert told(b"") == ["f.yaml:1:1: the config is empty: it needs listeners and upstreams"]
    assert told(b"# nothing\n") == ["f.yaml:1:1: the config is empty: it needs listeners and upstreams"]
    assert told(b"- a\n") == ["f.yaml:1:1: expected a mapping with listeners and upstreams, got a list"]
    assert told(b"hello") == ["f.yaml:1:1: expected a mapping with listeners and upstreams, got 'hello'"]
    assert told(b"a: 1\nb: \xffx\n") == ["f.yaml:2:4: the file is not UTF-8: byte 0xff can't stand here"]
    assert told(b"a:\n\t- b\n") == ["f.yaml:2:1: a tab can't indent YAML: use spaces"]
    assert told(b"#" * (1024 * 1024 + 1)) == ["f.yaml:1:1: the file is larger than 1 MiB, which no config is"]
    assert told(b"\xef\xbb\xbf" + MINIMAL.encode()) == []
    assert told(MINIMAL.replace("\n", "\r\n").encode()) == []


def test_files_that_can_not_be_read(tmp_path):
    assert (
        str(check_config(tmp_path / "no.yaml")[0])
        == f"{tmp_path}/no.yaml:1:1: the file can't be read: no such file or directory"
    )
    assert "is a directory" in str(check_config(tmp_path)[0])
    assert "can't be read" in str(check_config("a\0b")[0])


def test_a_fault_is_one_line_and_safe_for_a_terminal():
    (found,) = added('"a\\n\\e[31mb": 1\n')
    assert found == r"f.yaml:8:1: unknown key 'a\n\x1b[31mb' in the config"


def test_the_error_holds_and_prints_its_faults():
    with pytest.raises(ConfigError) as caught:
        parse_config("listeners: 5\nupstreams: 6\n", file="x")
    assert caught.value.faults == (
        ConfigFault("x", 1, 12, "listeners: expected a list, got 5"),
        ConfigFault("x", 2, 12, "upstreams: expected a mapping, got 6"),
    )
    assert (
        str(caught.value) == "x:1:12: listeners: expected a list, got 5\nx:2:12: upstreams: expected a mapping, got 6"
    )


def test_json_is_a_config_too():
    assert parse_config(json.dumps({"listeners": [{"address": "127.0.0.1:8080", "upstream": "web"}], "upstreams": {"web": {"regions": {"here": {"endpoints": ["127.0.0.1:9000"]}}}}})) == parse_config(MINIMAL)  # fmt: skip


def test_anchors_share_settings():
    text = (
        MINIMAL
        + "    timeouts: &t {connect: 1s}\n  other:\n    regions: {a: {endpoints: ['b:1']}}\n    timeouts: {<<: *t, idle: 5s}\n"
    )
    other = parse_config(text).upstreams["other"].timeouts
    assert (other.connect, other.idle, other.total) == (1.0, 5.0, 60.0)


def test_a_small_pool_has_a_small_warm_default():
    assert parse_config(MINIMAL + "    pool: {max_connections: 1}\n").upstreams["web"].pool.warm == 1
    assert upstream("pool: {max_connections: 1, warm: 2}") == ["f.yaml:8:38: upstreams.web.pool.warm: warm (2) is greater than max_connections (1)"]  # fmt: skip


JUNK = st.sampled_from([None, True, False, 0, -1, 1.5, "", "x", "5%", "1s", "off", "${X}", "env:X", "unix:/x", "a:1", (), {}, ("a",), {"a": 1}, {"upstream": "web"}, [{}], [[]], "\u2028", "1" * 400])  # fmt: skip


def paths(tree, at=()):
    yield at
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from paths(value, (*at, key))


def altered(tree, path, value):
    if not path:
        return value
    if isinstance(tree, dict):
        return {**tree, path[0]: altered(tree.get(path[0]), path[1:], value)}
    return [altered(one, path[1:], value) if number == path[0] else one for number, one in enumerate(tree)]


EXAMPLE = effective_values(
    parse_config(
        MINIMAL
        + "    tls: {}\n    health: {}\n    session_key: source\n"
        + "  two: {protocol: tcp, regions: {a: {endpoints: ['b:1']}, c: {endpoints: ['d:1'], standby: true}}}\n"
        + "admin: {token: env:X}\n",
        environ={"X": "y"},
    )
) | {
    "listeners": [
        {"address": "a:1", "routes": [{"upstream": "web", "match": {"path": "/x"}, "hedge": {}, "timeout": "1s"}]}
    ]
}
PLACES = list(paths(EXAMPLE))


def outcome(text, **environ):
    """The config, or its faults."""
    try:
        return parse_config(text, environ=environ), ()
    except ConfigError as error:
        return None, error.faults


@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_whatever_stands_anywhere_is_a_config_or_faults(changes):
    tree = EXAMPLE
    for path, value in changes:
        if path in list(paths(tree)):
            tree = altered(tree, path, value)
    text = json.dumps(tree, indent=1)
    lines = text.splitlines()
    config, found = outcome(text, X="y")
    assert bool(found) != bool(config)
    for fault in found:
        assert 1 <= fault.line <= len(lines)
        assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1
        assert "\n" not in str(fault)
        assert "'?'" not in str(fault), "no stand-in is ever named"
    if config and (config.admin.token is None or config.admin.token.origin):
        assert parse_config(effective_yaml(config), environ={"X": "y"}) == config


@given(st.integers(0, len(MINIMAL)), st.text("ab:-[]{}&*!|>'\"%@#,? \n\t$\\0~<\x07", max_size=4), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_whatever_is_typed_anywhere_is_a_config_or_faults(place, typed, removed):
    text = MINIMAL[:place] + typed + MINIMAL[place + removed :]
    config, found = outcome(text)
    assert bool(found) != bool(config)


def test_many_faults_are_found_in_reasonable_work():
    routes = "".join(
        f"      - {{upstream: u{number}, match: {{path: /{number}}}, tiemout: 5}}\n" for number in range(1500)
    )
    text = MINIMAL.replace("    upstream: web\n", f"    routes:\n{routes}")
    assert len(faults(text)) == 3000


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:db8::/32", "2001:db8::/32"),
    ],
)
def test_a_network_of_mapped_addresses_is_meant_as_ipv4(written, meant):
    text = MINIMAL.replace("    upstream: web\n", f'    upstream: web\n    trusted: ["{written}"]\n')
    assert [str(network) for network in parse_config(text).listeners[0].trusted] == [meant]
