import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.document import DEPTH_MAX, DocumentError, Expanded, read_document, resolve


def tree(text, **environ):
    document = read_document(text, environ)
    assert document.faults == []
    return document.tree


def failure(text, **environ):
    with pytest.raises(DocumentError) as caught:
        read_document(text, environ)
    return caught.value


def fault(text, **environ):
    (found,) = read_document(text, environ).faults
    return found


def test_values_of_the_core_schema():
    text = (
        "{a: true, b: no, c: off, d: 22:22, e: 0x1F, f: 0o17, g: 1_000, h: 1e3, i: '5', j: 2001-01-01, k: 017, l: .inf}"
    )
    assert tree(text) == {
        "a": True,
        "b": "no",
        "c": "off",
        "d": "22:22",
        "e": 31,
        "f": 15,
        "g": "1_000",
        "h": 1000.0,
        "i": "5",
        "j": "2001-01-01",
        "k": 17,
        "l": float("inf"),
    }


def test_keys_are_text():
    assert tree("{no: 1, 22:22: 2, 1: 3, true: 4, ~: 5, '': 6}") == {
        "no": 1,
        "22:22": 2,
        "1": 3,
        "true": 4,
        "~": 5,
        "": 6,
    }


def test_lists_block_text_and_comments():
    text = "a: # a comment\n  - x\n  - {y: [1, 2]}\nb: |\n  line\n  line\nc: >-\n  folded\n  text\n"
    assert tree(text) == {"a": ("x", {"y": (1, 2)}), "b": "line\nline\n", "c": "folded text"}


def test_positions():
    document = read_document("a:\n  - b: 1\n    'c': [x, y]\n", {})
    assert document.keys[("a", 0, "c")] == (2, 4)
    assert document.values[("a", 0, "c", 1)] == (2, 13)
    assert document.values[("a", 0)] == (1, 4)


@pytest.mark.parametrize(
    ("text", "mark", "message"),
    [
        ("a:\n\tb: 1\n", (1, 0), "a tab can't indent YAML: use spaces"),
        ("a: b: c\n", (0, 4), "': ' can't stand here"),
        ("a: [1\nb: 2\n", (1, 1), "line 1"),
        ("a: 'x\n", (1, 0), "quoted scalar"),
        ("a: {b: ${C}}\n", (0, 8), "quote a variable"),
        ("a: @b\n", (0, 3), "'@'"),
        ("a: 1\nb: \x07\n", (1, 3), r"'\x07' is not allowed"),
        ("\x00", (0, 0), "is not allowed"),
        ("a: 1\n---\nb: 2\n", (1, 0), "a second one starts"),
        ("a: !!python/object:os.system {}\n", (0, 3), "tag"),
        ("a: !x 1\n", (0, 3), "the YAML tag !x is not supported"),
        ("a: *b\n", (0, 3), "no anchor &b"),
        ("a: &a [*a]\n", (0, 7), "inside what it repeats"),
        ("- a\nb: c\n", (1, 0), "not YAML"),
    ],
)
def test_not_yaml(text, mark, message):
    error = failure(text)
    assert message in error.message
    assert error.mark == mark


def test_a_misspelt_alias_is_suggested():
    assert failure("a: &defaults {}\nb: *default\n").suggestion == "*defaults"


@pytest.mark.parametrize(
    ("text", "message"), [("[" * 5000, "nested more than"), ("- 1\n" * 60_000, "more than 50000 values")]
)
def test_bounds(text, message):
    assert message in failure(text).message


def test_depth_within_the_bound():
    tree("[" * (DEPTH_MAX - 1) + "]" * (DEPTH_MAX - 1))


def test_an_alias_bomb_is_refused():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    assert "once aliases are expanded" in failure(bomb).message


def test_too_many_aliases():
    assert "more than 1000 aliases" in failure("- &a x\n" + "- *a\n" * 1001).message


def test_aliases_and_merges():
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: {y: 4, <<: [{z: 5}, *a]}\n"
    assert tree(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"y": 3, "x": 1},
        "d": {"y": 4, "z": 5, "x": 1},
    }


def test_an_alias_keeps_the_place_of_its_text():
    document = read_document("a: &a\n  x: 1\nb: *a\n", {})
    assert document.values[("b", "x")] == (1, 5)


def test_only_mappings_merge():
    mark, message, _ = fault("a: {<<: 5}")
    assert mark == (0, 8)
    assert "expected a mapping" in message


def test_repeated_keys():
    document = read_document("a: 1\nb: 2\na: 3\na: 4\n", {})
    assert document.tree == {"a": 1, "b": 2}
    assert [mark for mark, _, _ in document.faults] == [(2, 0), (3, 0)]
    assert "the key 'a' is repeated; it stands in line 1 already" in document.faults[0][1]


def test_keys_must_be_scalars():
    assert "expected a key" in fault("? [a]\n: b\n")[1]


def test_empty_values():
    document = read_document("a:\nb: ~\nc: [null]\n", {})
    assert [mark for mark, _, _ in document.faults] == [(0, 0), (1, 3), (2, 4)]
    assert document.spoiled == {("a",), ("b",), ("c", 0)}
    assert "a has no value" in document.faults[0][1]


def test_variables():
    text = "a: ${A}\nb: ${NONE:-5}\nc: 'x${A}y$${A}$B'\nd: ${EMPTY:-default}\ne: ${EMPTY}z\n${A}: ${A:-no}\nf: ${NONE:-a:b}"
    found = tree(text, A="1", EMPTY="")
    assert found == {"a": "1", "b": "5", "c": "x1y${A}$B", "d": "default", "e": "z", "1": "1", "f": "a:b"}
    assert isinstance(found["a"], Expanded)
    assert isinstance(found["c"], Expanded)


def test_an_escape_alone_is_no_variable():
    found = tree("a: $${A}\nb: $$${A}\n")
    assert found == {"a": "${A}", "b": "$${A}"}
    assert not isinstance(found["a"], Expanded)


@pytest.mark.parametrize(
    ("text", "message", "suggestion"),
    [
        ("a: ${NAME}", "the environment variable NAME is not set", ""),
        ("a: ${HOMES}", "the environment variable HOMES is not set", "HOME"),
        ("a: 'x ${HOME'", "is no variable", "${HOME}"),
        ("a: ${}", "is no variable", ""),
        ("a: ${HOME-x}", "is no variable", ""),
        ("a: ${1X}", "is no variable", ""),
        ("${NAME}: 1", "the environment variable NAME is not set", ""),
    ],
)
def test_variables_at_fault(text, message, suggestion):
    mark, found, meant = fault(text, HOME="/")
    assert message in found
    assert meant == suggestion
    assert mark[0] == 0


def test_what_a_variable_holds_is_not_yaml():
    assert tree("a: ${A}", A="{b: [1]}\n- x: *y") == {"a": "{b: [1]}\n- x: *y"}
    assert tree("a: ${A}", A="${A}") == {"a": "${A}"}


def test_nothing_at_all():
    assert [read_document(text, {}).tree for text in ("", "# only a comment\n", "---\n", "~")] == [None] * 4


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`#,? \n\t$\\0~<\x07é"), max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        found = [(mark, message) for mark, message, _ in read_document(text, {}).faults]
    except DocumentError as error:
        found = [(error.mark, error.message)]
    lines = text.count("\n") + text.count("\r") + 1
    assert all(message and 0 <= line <= lines and column >= 0 for (line, column), message in found)


def json_values():
    leaves = st.one_of(
        st.booleans(),
        st.integers(-(10**9), 10**9),
        st.text(st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="$"), max_size=8),
    )
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3), max_leaves=12)  # fmt: skip


def tupled(value):
    if isinstance(value, list):
        return tuple(tupled(one) for one in value)
    return {key: tupled(one) for key, one in value.items()} if isinstance(value, dict) else value


@given(json_values())
def test_json_is_read_as_json(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert tree(text) == tupled(value)


def test_half_of_a_surrogate_pair_is_refused():
    assert "half of a surrogate pair" in failure('a: "\\ud800"').message


def test_a_variable_that_is_not_utf_8():
    assert "A is not UTF-8" in fault("a: ${A}", A="\udcff")[1]


def test_long_digits_stay_text():
    assert resolve("9" * 5000) == "9" * 5000
