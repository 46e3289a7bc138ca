"""The schema against the loader: what loads is valid, and what is invalid does not load."""

import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import ConfigError, parse_config, schema
from proxy.config.document import read_document
from proxy.config.json_schema import DIALECT

SCHEMA = schema()
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool}
KEYWORDS = {
    "type",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "items",
    "minItems",
    "minProperties",
    "minLength",
    "pattern",
    "enum",
    "const",
    "anyOf",
    "$ref",
    "minimum",
    "maximum",
    "exclusiveMinimum",
}
NOTES = {"title", "description", "default", "$schema", "$defs"}


def is_type(value, name):
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def same(one, other):
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def valid(value, rule):
    """JSON Schema 2020-12, as much of it as the schema uses."""
    assert set(rule) <= KEYWORDS | NOTES, set(rule)
    checks = []
    if "$ref" in rule:
        checks.append(valid(value, SCHEMA["$defs"][rule["$ref"].removeprefix("#/$defs/")]))
    if "anyOf" in rule:
        checks.append(any(valid(value, one) for one in rule["anyOf"]))
    if "type" in rule:
        names = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        checks.append(any(is_type(value, name) for name in names))
    if "enum" in rule:
        checks.append(any(same(value, one) for one in rule["enum"]))
    if "const" in rule:
        checks.append(same(value, rule["const"]))
    if isinstance(value, str):
        checks += [re.search(rule.get("pattern", ""), value) is not None, len(value) >= rule.get("minLength", 0)]
    if is_type(value, "number"):
        low, high, above = (
            rule.get("minimum", value),
            rule.get("maximum", value),
            rule.get("exclusiveMinimum", value - 1),
        )
        checks.append(low <= value <= high and value > above)
    if isinstance(value, list):
        checks += [len(value) >= rule.get("minItems", 0), all(valid(one, rule.get("items", {})) for one in value)]
    if isinstance(value, dict):
        checks += [len(value) >= rule.get("minProperties", 0), all(key in value for key in rule.get("required", ()))]
        checks += [valid_key(key, one, rule) for key, one in value.items()]
    return all(checks)


def valid_key(key, value, rule):
    if key in rule.get("properties", {}):
        return valid(value, rule["properties"][key])
    rules = [one for pattern, one in rule.get("patternProperties", {}).items() if re.search(pattern, key)]
    if rules:
        return all(valid(value, one) for one in rules)
    return rule.get("additionalProperties", True) is not False


def listed(value):
    if isinstance(value, tuple):
        return [listed(one) for one in value]
    return {key: listed(one) for key, one in value.items()} if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def minimal():
    return {
        "listeners": [{"address": "127.0.0.1:80", "upstream": "web"}],
        "upstreams": {"web": {"regions": {"here": {"endpoints": ["h:1"]}}}},
    }


def test_it_is_json_of_the_right_dialect():
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == DIALECT == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["required"] == ["listeners", "upstreams"]


def test_the_example_of_the_interface_is_valid(interface_example):
    assert valid(listed(read_document(interface_example, {}).tree), SCHEMA)


def test_the_example_file_is_valid():
    example = Path(__file__).parents[3] / "deploy" / "onetrip.example.yaml"
    text = example.read_text().replace("${", "$${")  # the schema is for the text as it stands, with its variables
    assert valid(listed(read_document(text, {}).tree), SCHEMA)


def test_defaults_are_in_written_form():
    definitions = SCHEMA["$defs"]
    assert definitions["TimeoutsSection"]["properties"]["connect"]["default"] == "2s"
    assert definitions["HedgeSection"]["properties"]["budget"]["default"] == "5%"
    assert definitions["LimitsSection"]["properties"]["header_bytes"]["default"] == "64KiB"
    assert "default" not in definitions["ListenerSection"]["properties"]["name"]
    assert "default" not in definitions["UpstreamSection"]["properties"]["tls"]


def test_every_default_is_valid():
    count = 0
    for section in [SCHEMA, *SCHEMA["$defs"].values()]:
        for rule in section.get("properties", {}).values():
            if "default" in rule:
                assert valid(rule["default"], rule)
                count += 1
    assert count > 50


def test_every_key_is_described():
    for name, section in SCHEMA["$defs"].items():
        for key, rule in section.get("properties", {}).items():
            assert "description" in rule or "description" in SCHEMA["$defs"][rule["$ref"].removeprefix("#/$defs/")], (
                name,
                key,
            )


CASES = [
    (("workers",), ["auto", 4, "${N}", "${N:-2}"], [0, "many", True, "4", None, 1.5]),
    (
        ("upstreams", "web", "hedge"),
        ["off", False, {}, {"budget": "5%"}, "${HEDGE:-off}"],
        ["on", True, None, {"budget": 5}, {"x": 1}],
    ),
    (
        ("upstreams", "web", "timeouts"),
        [{"idle": "1m30s"}, {"idle": "250ms"}, {"idle": "${T}"}],
        [{"idle": 0}, {"idle": "0s"}, {"idle": "1"}, {"idle": 5}, "5s"],
    ),
    (("shutdown", "settle"), [0, "0", "0s", "5s"], [5, "5", "s", ""]),
    (("upstreams", "web", "routing", "spread"), ["5%", "0.5%", "100%"], ["0%", "101%", 5, "5"]),
    (("limits", "header_bytes"), [5, "64KiB", "1.5MiB", "5"], ["64k", -1, "x", True]),
    (("admin", "address"), ["[::1]:0", "unix:/x", "h:1"], ["h", 80, "h:", "::1:80"]),
    (("upstreams", "web", "session_key"), ["source", "header:x", "cookie:y"], ["x", "header:", "Source"]),
    (
        ("upstreams", "web", "health"),
        [{"expect": 200}, {"expect": "200,204-299"}, {}],
        [{"expect": "2xx"}, {"path": "x"}, {"expect": [200]}, "on"],
    ),
    (("upstreams", "web", "proxy_protocol"), ["off", False], ["v3", True, 1]),
    (("access_log",), ["off", False, {"path": "-"}], ["on", {"format": "text"}, []]),
    (("listeners", 0, "trusted"), [["10.0.0.0/8", "::1"], []], ["10.0.0.0/8", ["x"], [5]]),
    (("listeners", 0, "name"), ["a", "é", "x" * 128], ["", "a b", 5, "x" * 129]),
    (("extra",), [], [1]),
]


def placed(tree, path, value):
    tree = copy.deepcopy(tree)
    at = tree
    for part in path[:-1]:
        at = at[part] if isinstance(at, list) else at.setdefault(part, {})
    at[path[-1]] = value
    return tree


def loads(tree):
    environ = {"N": "3", "HEDGE": "off", "T": "1s"}
    try:
        parse_config(json.dumps(tree), environ=environ)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(("path", "right", "wrong"), CASES)
def test_the_schema_and_the_loader_agree(path, right, wrong, minimal):
    for value, expected in [(one, True) for one in right] + [(one, False) for one in wrong]:
        tree = placed(minimal, path, value)
        assert (loads(tree), valid(tree, SCHEMA)) == (expected, expected), value


fragments = st.one_of(
    st.text("012smKiB%:.[]/-eh", max_size=8),
    st.integers(-2, 300),
    st.booleans(),
    st.floats(0, 2),
    st.just({}),
    st.just([]),
)
places = st.sampled_from(
    [path for path, _, _ in CASES]
    + [
        ("upstreams", "web", "regions", "here", "endpoints", 0),
        ("upstreams", "web", "regions", "here", "weight"),
        ("upstreams", "web", "pool", "warm"),
        ("upstreams", "web", "tls"),
        ("listeners", 0, "address"),
        ("upstreams", "web", "timeouts", "idle"),
        ("upstreams", "web", "drain", "max_drained"),
    ]
)


@given(path=places, value=fragments)
@settings(max_examples=200, deadline=None)
def test_what_loads_is_valid(path, value):
    base = {
        "listeners": [{"address": "127.0.0.1:80", "upstream": "web"}],
        "upstreams": {"web": {"regions": {"here": {"endpoints": ["h:1"]}}}},
    }
    tree = placed(base, path, value)
    assert valid(tree, SCHEMA) or not loads(tree)
