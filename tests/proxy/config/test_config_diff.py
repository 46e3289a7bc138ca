import pytest

from proxy.config import diff, parse_config

TEXT = """\
listeners:
  - {name: a, address: 127.0.0.1:1, upstream: web}
  - {name: b, address: 127.0.0.1:2, routes: [{upstream: web, match: {path: /x}}, {upstream: db}]}
upstreams:
  web: {regions: {here: {endpoints: ["h:1"]}}}
  db: {regions: {here: {endpoints: ["h:2"]}}}
workers: 2
"""


def changed(*pairs):
    text = TEXT
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return diff(parse_config(TEXT), parse_config(text))


def test_nothing():
    found = changed()
    assert not found
    assert found.upstreams_unchanged == ("web", "db")


def test_spelling_changes_nothing():
    assert not changed(("workers: 2", "workers: ${NOT_SET_ANYWHERE:-2}\nshutdown: {deadline: 30000ms}\n"))


def test_listeners():
    found = changed(("name: a", "name: c"))
    assert (found.listeners_added, found.listeners_removed, found.listeners_changed) == (("c",), ("a",), ())
    found = changed(("127.0.0.1:1", "127.0.0.1:3"), ("path: /x", "path: /y"))
    assert (found.listeners_changed, found.listeners_rebound) == (("a", "b"), ("a",))
    assert found


def test_upstreams():
    found = changed(('"h:1"', '"h:3"'))
    assert (found.upstreams_changed, found.upstreams_unchanged, found.listeners_changed) == (("web",), ("db",), ())
    found = changed(
        ("workers: 2", ""), ("upstreams:\n", 'upstreams:\n  new: {regions: {here: {endpoints: ["h:9"]}}}\n')
    )
    assert (found.upstreams_added, found.upstreams_removed) == (("new",), ())
    back = diff(
        parse_config(TEXT.replace("  web:", "  web2:").replace("upstream: web", "upstream: web2")), parse_config(TEXT)
    )
    assert (back.upstreams_added, back.upstreams_removed) == (("web",), ("web2",))


def test_a_route_changes_with_what_it_inherits():
    found = changed(('["h:2"]}}}', '["h:2"]}}, hedge: off}'))
    assert (found.upstreams_changed, found.listeners_changed, found.listeners_rebound) == (("db",), ("b",), ())


@pytest.mark.parametrize(
    ("text", "other", "restart"),
    [
        ("workers: 3", ("workers",), ("workers",)),
        ("workers: 2\nadmin: {address: 127.0.0.1:9}", ("admin",), ("admin.address",)),
        ("workers: 2\nadmin: {token: x}", ("admin",), ()),
        ("workers: 2\nlimits: {headers: 5}", ("limits",), ()),
        ("workers: 2\naccess_log: off", ("access_log",), ()),
    ],
)
def test_the_rest(text, other, restart):
    found = changed(("workers: 2", text))
    assert (found.other, found.restart) == (other, restart)
    assert found


def test_a_secret_that_changes_is_a_change():
    text = TEXT + "admin: {token: env:T}\n"
    found = diff(parse_config(text, environ={"T": "a"}), parse_config(text, environ={"T": "b"}))
    assert found.other == ("admin",)
