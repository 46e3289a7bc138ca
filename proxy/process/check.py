"""`onetrip check`: every fault of a config, those of certificates included, each at its own line.

The config's own reading (`proxy.config`) sees whether files can be read, but knows no TLS.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.config.faults import ConfigError, ConfigFault, Path, dotted
from proxy.config.source import Source, read_source

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from proxy.config import Config

EXIT_FAILED: Final = 1

File: TypeAlias = "tuple[Path, pathlib.Path | None]"
"""Where a file is named in the config, and which."""


@dataclass
class Checked:
    """What was found: `faults` keep the config from being used, `warnings` do not."""

    faults: list[ConfigFault] = field(default_factory=list)
    warnings: list[ConfigFault] = field(default_factory=list)


def check(path: str) -> Checked:
    """Everything that is wrong with the config at `path`."""
    found = Checked()
    try:
        source = read_source(path)
        from proxy.config import load_config  # noqa: PLC0415 - see `test_imports`

        config = load_config(source)
    except ConfigError as error:
        found.faults += error.faults
        return found
    if any(one.tls for one in config.listeners) or any(one.tls for one in config.upstreams.values()):
        _Certificates(source, found).check(config)
    found.faults.sort()
    found.warnings.sort()
    return found


def run_check(path: str, *, as_json: bool = False) -> int:
    """Print `ok`, or every fault with its place. Returns the exit code; warnings alone leave it at 0."""
    found = check(path)
    if as_json:
        told = [
            {"file": f.file, "line": f.line, "column": f.column, "message": f.message}
            for f in (*found.faults, *found.warnings)
        ]
        print(json.dumps(told, indent=2))  # noqa: T201
    for one in () if as_json else sorted((*found.faults, *found.warnings)):
        print(one, file=sys.stderr)  # noqa: T201
    if not as_json and not found.faults:
        print("ok")  # noqa: T201
    return EXIT_FAILED if found.faults else 0


class _Certificates:
    """The files first, one by one, for as many faults as there are; then what OpenSSL says of them together."""

    def __init__(self, source: Source, found: Checked) -> None:
        self.source = source
        self.found = found

    def check(self, config: Config) -> None:
        """All listeners and upstreams."""
        for index, listener in enumerate(config.listeners):
            if listener.tls is not None:
                at: Path = ("listeners", index, "tls")
                for number, pair in enumerate(listener.tls.certificates):
                    where = (*at, "certificates", number)
                    self.pair(((*where, "certificate"), pair.certificate), ((*where, "key"), pair.key))
                self.authorities(((*at, "client_ca"), listener.tls.client_ca))
        for name, upstream in config.upstreams.items():
            if upstream.tls is not None:
                at = ("upstreams", name, "tls")
                self.pair(((*at, "certificate"), upstream.tls.certificate), ((*at, "key"), upstream.tls.key))
                self.authorities(((*at, "ca"), upstream.tls.ca))
        if not self.found.faults:
            self.contexts(config)

    def pair(self, certificate: File, key: File) -> None:
        """A chain and its key: each for itself, and whether they belong together."""
        from tlscache.certificates import ContextError, load_certificates, load_identity, load_key  # noqa: PLC0415

        if certificate[1] is None or key[1] is None:
            return
        before = len(self.found.faults)
        for load, (at, file) in ((load_certificates, certificate), (load_key, key)):
            try:
                load(str(file))
            except ContextError as error:
                self.fault(at, error)
        if len(self.found.faults) > before:
            return
        try:
            identity = load_identity(str(certificate[1]), str(key[1]))
        except ContextError as error:
            self.fault(key[0], error)
        else:
            if identity.warning:
                self.found.warnings.append(self.placed(certificate[0], f"warning: {identity.warning}"))

    def authorities(self, ca: File) -> None:
        """A file of CAs."""
        from tlscache.certificates import ContextError, load_trust  # noqa: PLC0415

        if ca[1] is not None:
            try:
                load_trust(str(ca[1]))
            except ContextError as error:
                self.fault(ca[0], error)

    def contexts(self, config: Config) -> None:
        """What only shows once they are put together as they will be served."""
        from proxy.upstream.reach import client_settings  # noqa: PLC0415
        from tlscache.certificates import ContextError  # noqa: PLC0415
        from tlscache.context import ClientContext  # noqa: PLC0415
        from tlscache.ticket_keys import TicketKeys  # noqa: PLC0415

        from .contexts import server_contexts  # noqa: PLC0415

        for at, one in self._each(config):
            try:
                server_contexts(one, TicketKeys(contexts=1))
            except ContextError as error:
                self.fault(at, error)
        for name, upstream in config.upstreams.items():
            settings = client_settings(upstream)
            try:
                if settings is not None:
                    ClientContext(settings)
            except ContextError as error:
                self.fault(("upstreams", name, "tls"), error)

    def _each(self, config: Config) -> Iterator[tuple[Path, Config]]:
        """The config with one listener at a time."""
        for index, listener in enumerate(config.listeners):
            if listener.tls is not None:
                yield ("listeners", index, "tls"), config.model_copy(update={"listeners": (listener,)})

    def fault(self, at: Path, error: Exception) -> None:
        self.found.faults.append(self.placed(at, f"{dotted(at)}: {error}"))

    def placed(self, at: Path, message: str) -> ConfigFault:
        """A fault where the value stands, or what it is missing from."""
        places = self.source.document.values
        while at not in places and at:
            at = at[:-1]
        line, column = places.get(at, (0, 0))
        return ConfigFault(self.source.file, line + 1, column + 1, message)
