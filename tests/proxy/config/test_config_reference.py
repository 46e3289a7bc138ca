from pathlib import Path

from proxy.config.reference import main, reference, renewed
from proxy.config.rules import NOT_AVAILABLE
from proxy.config.shape import section_at, sections

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def test_the_page_is_not_stale():
    page = PAGE.read_text()
    assert renewed(page) == page, "run: python -m proxy.config.reference docs/config.md"


def test_renewing_replaces_what_stands_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text().replace("| `workers` |", "| `wrokers` |"))
    main([str(page)])
    assert page.read_text() == PAGE.read_text()


def test_every_key_has_its_row():
    table = reference()
    for _, section in sections():
        for key, known in section.model_fields.items():
            assert f"| `{key}` |" in table
            assert known.description in table


def test_rows_hold_forms_defaults_and_examples():
    table = reference()
    assert "| `connect` | duration | `2s` |" in table
    assert "| `endpoints` | list of addresses | required |" in table
    assert "| `hedge` | section or `off` | below |" in table
    assert '| `trusted` | list of networks | `["127.0.0.0/8", "::1/128"]` |' in table
    assert "| `headers` | text by name | `{}` |" in table
    assert "Example: `env:ONETRIP_ADMIN_TOKEN`" in table


def test_the_page_says_what_is_not_available():
    whole = [key for key in NOT_AVAILABLE if "=" not in key]
    assert reference().count("*Not available in this version.*") == len(whole)


def test_what_is_not_available_names_keys_that_exist():
    for key in NOT_AVAILABLE:
        *place, last = key.partition("=")[0].replace("[]", ".0").replace("*", "x").split(".")
        section = section_at(tuple(int(part) if part == "0" else part for part in place))
        assert section is not None
        assert last in section.model_fields
