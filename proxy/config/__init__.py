"""The configuration: YAML to one frozen value, or to every fault in it with its place in the file.

    config = load_config("onetrip.yaml")      # raises ConfigError: `faults` has them all
    config.routing("payments")                # routing.model.Upstream
    config.routes("api")                      # routing.model.Route, ..., with what they inherit
    effective_yaml(config); schema(); diff(old, new)

`model` and `sections` say what the keys are; `docs/config.md` is made from them.
"""

from .diff import ConfigDiff, diff
from .effective import effective_values, effective_yaml
from .faults import ConfigError, ConfigFault
from .listeners import ListenerSection, RouteSection
from .load import check_config, load_config, parse_config
from .model import Config
from .places import Secret
from .schema import schema
from .sections import RegionSection, UpstreamSection, UpstreamTls
from .units import Address

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
