"""The tables of keys in `docs/config.md`, made from the model.

`python -m proxy.config.reference docs/config.md` renews them; a test fails while they are stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic.fields import FieldInfo

from .json_schema import written_defaults
from .rules import NOT_AVAILABLE
from .sections import OrOff, Section
from .shape import inner, section_of, sections
from .values import Written

BEGIN: Final = "<!-- keys: made by `python -m proxy.config.reference docs/config.md` -->"
END: Final = "<!-- /keys -->"


def reference() -> str:
    """One table per section, in Markdown."""
    # A section that stands in several places has its table in the last one: upstreams, which routes override.
    homes = {section: at for at, section in sections()}
    blocks: list[str] = []
    for at, section in sections():
        if homes[section] == at:
            blocks.append("\n".join(_table(at, section)))
        else:
            blocks.append(f"### `{at}`\n\nThe keys of `{homes[section]}`. Those that are not named are inherited.")
    return "\n\n".join(blocks)


def renewed(page: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def _table(at: str, section: type[Section]) -> Iterator[str]:
    yield f"### `{at}`" if at else "### The top level"
    yield ""
    yield (section.__doc__ or "").split("\n")[0] if at else "The file as a whole."
    yield ""
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    defaults = written_defaults(section)
    for key, known in section.model_fields.items():
        default = "required" if known.is_required() else _default(known, defaults.get(key))
        examples = "".join(f" Example: `{one}`." for one in known.examples or ())
        note = _availability(f"{at}.{key}".lstrip("."))
        yield f"| `{key}` | {_form(known)} | {default} | {known.description}{examples}{note} |".replace("||", "\\|\\|")


def _default(known: FieldInfo, written: Any) -> str:
    if written is None:
        return "absent"
    if section_of(known.annotation):
        return "below"
    return f"`{written if isinstance(written, str) else json.dumps(written)}`"


def _availability(key: str) -> str:
    if key in NOT_AVAILABLE:
        return " *Not available in this version.*"
    words = [pattern.partition("=")[2] for pattern in NOT_AVAILABLE if pattern.startswith(f"{key}=")]
    return f" *Not available in this version: {', '.join(f'`{word}`' for word in words)}.*" if words else ""


def _form(known: FieldInfo) -> str:
    whole = next((one.form for one in known.metadata if isinstance(one, Written)), "")
    if whole:
        return whole
    section = section_of(known.annotation)
    off = any(isinstance(one, OrOff) for one in known.metadata)
    form = "section" if section else _written([known.annotation])
    kind = inner(known)
    if kind == ".*":
        return f"{form}s by name" if section else f"{form} by name"
    return f"list of {form}{'es' if form.endswith('s') else 's'}" if kind else f"{form} or `off`" if off else form


def _written(parts: list[Any]) -> str:
    """The form of the innermost value type: a mapping's values, a list's items."""
    for part in parts:
        if isinstance(part, Written):
            return part.form
        inside = get_args(part)[-1:] if get_origin(part) is dict else [one for one in get_args(part) if one is not ...]
        metadata = list(getattr(part, "__metadata__", ()))
        if (form := _written([*metadata, *inside])) != "text" or metadata:
            return form
    return "text"


def main(paths: list[str]) -> None:
    """Renews the table in each page."""
    for path in map(Path, paths):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
