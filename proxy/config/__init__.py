"""The configuration: YAML to one frozen value, or to every fault in it with its place in the file.

    config = load_config("onetrip.yaml")      # raises ConfigError: `faults` has them all
    config.routing("payments")                # routing.model.Upstream
    config.routes("api")                      # routing.model.Route, ..., with what they inherit
    effective_yaml(config); schema(); diff(old, new)

`model` and `sections` say what the keys are; `docs/config.md` is made from them.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .change import ConfigDiff, diff
    from .effective import effective_values, effective_yaml
    from .faults import ConfigError, ConfigFault
    from .json_schema import schema
    from .listeners import ListenerSection, RouteSection
    from .load import check_config, load_config, parse_config
    from .model import Config
    from .places import Secret
    from .sections import RegionSection, UpstreamSection, UpstreamTls
    from .units import Address

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
"""Else each start reads the metadata of every installed package, to find none."""

__all__ = [
    "Address",
    "Config",
    "ConfigDiff",
    "ConfigError",
    "ConfigFault",
    "ListenerSection",
    "RegionSection",
    "RouteSection",
    "Secret",
    "UpstreamSection",
    "UpstreamTls",
    "check_config",
    "diff",
    "effective_values",
    "effective_yaml",
    "load_config",
    "parse_config",
    "schema",
]

_PLACES: Final = {
    "Address": "units",
    "Config": "model",
    "ConfigDiff": "change",
    "ConfigError": "faults",
    "ConfigFault": "faults",
    "ListenerSection": "listeners",
    "RegionSection": "sections",
    "RouteSection": "listeners",
    "Secret": "places",
    "UpstreamSection": "sections",
    "UpstreamTls": "sections",
    "check_config": "load",
    "diff": "change",
    "effective_values": "effective",
    "effective_yaml": "effective",
    "load_config": "load",
    "parse_config": "load",
    "schema": "json_schema",
}


def __getattr__(name: str) -> Any:
    """Imported once it is asked for (PEP 562): a start reads the file long before it needs the model."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    globals()[name] = value
    return value
