"""The JSON Schema (2020-12) of the written form, made from the model.

An editor checks the file as it stands on disk: durations are strings with a pattern, `hedge: off` is allowed, a
`${VAR}` may stand for any single value, and defaults are in their written form.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from .effective import written_values
from .model import Config
from .sections import Section

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SUBSTITUTION: Final = {
    "type": "string",
    "description": "A value from the environment: ${NAME}, or ${NAME:-default}.",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::-[^}]*)?\}",
}


class _Generator(GenerateJsonSchema):
    """Without defaults (they are not in written form) and nulls (a key without a value is a fault)."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])


def schema() -> dict[str, Any]:
    """The JSON Schema of a config file."""
    made = Config.model_json_schema(schema_generator=_Generator)
    classes = {one.__name__: one for one in _subclasses(Section)}
    definitions = made.pop("$defs")
    for name, definition in definitions.items():
        _finish(definition, classes[name])
    _finish(made, Config)
    definitions["Substitution"] = _SUBSTITUTION
    return {"$schema": DIALECT, **made, "title": "onetrip", "$defs": definitions}


def _subclasses(section: type[Section]) -> list[type[Section]]:
    return [one for direct in section.__subclasses__() for one in (direct, *_subclasses(direct))]


def _finish(definition: dict[str, Any], section: type[Section]) -> None:
    """Defaults in their written form, room for variables, and no titles that only repeat the key."""
    definition.pop("title", None)
    defaults = written_defaults(section)
    for key, described in definition["properties"].items():
        described.pop("title", None)
        described.pop("examples", None)  # they are YAML, for the documentation
        notes = {name: described.pop(name) for name in ("description",) if name in described}
        allowed = _with_variables(dict(described))
        described.clear()
        described.update({**notes, **allowed})
        if key in defaults:
            described["default"] = defaults[key]


def written_defaults(section: type[Section]) -> dict[str, Any]:
    """A section's keys that have a default, in written form; keys that are off until named have none."""
    return {key: value for key, value in written_values(section.model_construct()).items() if value != ""}


def _with_variables(described: dict[str, Any]) -> dict[str, Any]:
    if "patternProperties" in described:
        described["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(described.get(key), dict):
            described[key] = _with_variables(described[key])
    if "patternProperties" in described:
        described["patternProperties"] = {
            key: _with_variables(one) for key, one in described["patternProperties"].items()
        }
    alternatives = described.get("anyOf", [described])
    single = [
        one
        for one in alternatives
        if "enum" in one or "const" in one or "pattern" in one or one.get("type") in ("boolean", "integer", "number")
    ]
    if not single:
        return described
    rest = {key: value for key, value in described.items() if key != "anyOf"} if "anyOf" in described else {}
    return {**rest, "anyOf": [*alternatives, {"$ref": "#/$defs/Substitution"}]}
