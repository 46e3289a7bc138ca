"""The model's shape: which section stands where, for messages, the schema and the documentation."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from .faults import Path
from .model import Config
from .sections import Section


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field's annotation holds, alone or in a list, mapping or union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    parts = get_args(annotation)[1:] if get_origin(annotation) is dict else get_args(annotation)
    return next((found for part in parts if (found := section_of(part))), None)


def inner(known: FieldInfo) -> str:
    """How a field's items are named in a path: `[]` for a list's, `.*` for a mapping's, "" where it is one value."""
    if get_origin(known.annotation) is dict:
        return ".*"
    kinds = (known.annotation, *get_args(known.annotation))
    return "[]" if any(get_origin(kind) is tuple for kind in kinds) else ""


def section_at(path: Path) -> type[Section] | None:
    """The section class of the mapping at `path`, None where there is none."""
    section: type[Section] | None = Config
    steps = iter(path)
    for step in steps:
        known = section.model_fields.get(str(step)) if section else None
        if known is None:
            return None
        section = section_of(known.annotation)
        if inner(known):
            next(steps, None)
    return section


def sections(section: type[Section] = Config, at: str = "") -> list[tuple[str, type[Section]]]:
    """Every section with where it stands (`upstreams.*.pool`; "" for the top level), in the order of the model."""
    found = [(at, section)]
    for key, known in section.model_fields.items():
        below = section_of(known.annotation)
        if below:
            found += sections(below, f"{at}.{key}{inner(known)}".lstrip("."))
    return found
