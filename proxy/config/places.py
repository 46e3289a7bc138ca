"""Values that name something outside the config: addresses, networks, files, secrets.

Files are looked at while reading, so that a config that loads can be served: what is to be read can be, and what is to
be written has a directory. Relative paths start from the config file's directory.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from routing.model import Endpoint

from . import units
from .document import encodable
from .faults import nearest
from .units import Address, UnitError, shown
from .values import Surroundings, Written

SECRET_BYTES_MAX: Final = 64 * 1024
MASK: Final = "***"
"""What is printed in place of a secret that stands in the config itself."""


# Addresses and networks.


def _listen_address(value: Any) -> Address:
    return units.parse_address(value, port_min=0)


def _endpoint(value: Any) -> Endpoint:
    address = units.parse_address(value, port_meant="443", host_meant="api.example.com")
    return Endpoint(address.host, address.port, address.path)


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Clients from `::ffff:10.0.0.0/104` are seen as IPv4 (`net.address`), so that is how the network is meant."""
    first = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if first is None or network.prefixlen < 96 else IPv4Network((first, network.prefixlen - 96))


def _network(value: Any) -> IPv4Network | IPv6Network:
    expected = f"expected a network such as 10.0.0.0/8 or an IP address, got {shown(value)}"
    if not isinstance(value, str):
        raise UnitError(expected)
    try:
        return _unmapped(ip_network(value))
    except ValueError:
        pass
    try:
        meant = ip_network(value, strict=False)
    except ValueError:
        raise UnitError(expected) from None
    raise UnitError(f"{expected}, which has host bits set", str(meant))


_ADDRESS_SCHEMA: Final = {
    "type": "string",
    "pattern": r"^(?:unix:/.+|(?:\[[0-9A-Fa-f:.]+(?:%[^\]]+)?\]|[A-Za-z0-9._-]+):[0-9]{1,5})$",
}
_NETWORK_SCHEMA: Final = {"type": "string", "pattern": r"^[0-9A-Fa-f:.]+(?:/[0-9.]{1,15})?$"}

ListenAddress: TypeAlias = Annotated[Address, Written("address", _listen_address, str, _ADDRESS_SCHEMA)]
"""Port 0 lets the system choose one."""
EndpointAddress: TypeAlias = Annotated[Endpoint, Written("address", _endpoint, str, _ADDRESS_SCHEMA)]
Network: TypeAlias = Annotated[IPv4Network | IPv6Network, Written("network", _network, str, _NETWORK_SCHEMA)]


# Files.


@dataclass(frozen=True, slots=True)
class LogPath:
    """Where log lines go: a file, or standard output (`path` None, written `-`)."""

    path: Path | None = None

    def __str__(self) -> str:
        return "-" if self.path is None else str(self.path)


def _placed(value: Any, surroundings: Surroundings) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise UnitError(f"expected a file's path, got {shown(value)}")
    return Path(os.path.normpath(surroundings.directory / value))


def _readable(value: Any, surroundings: Surroundings) -> Path:
    path = _placed(value, surroundings)
    try:
        if not stat.S_ISFIFO(path.stat().st_mode):  # opening one would wait for its writer
            with path.open("rb"):
                pass
        return path
    except OSError as error:
        raise UnitError(f"the file {path} can't be read: {_reason(error)}", _neighbour(path, error)) from None


def _neighbour(path: Path, error: OSError) -> str:
    """For a file that is not there, the one of nearly that name that is."""
    if not isinstance(error, FileNotFoundError):
        return ""
    try:
        return nearest(path.name, (one.name for one in path.parent.iterdir()))
    except OSError:
        return ""


def _writable(value: Any, surroundings: Surroundings) -> Path:
    path = _placed(value, surroundings)
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            raise UnitError(f"expected a file's path, and {path} is a directory")
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UnitError(f"there is no directory {path.parent} for the file {path.name}") from None
    except OSError as error:
        raise UnitError(f"the file {path} can't be written: {_reason(error)}") from None
    return path


def _log_path(value: Any, surroundings: Surroundings) -> LogPath:
    return LogPath(None if value == "-" else _writable(value, surroundings))


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


_PATH_SCHEMA: Final = {"type": "string", "minLength": 1}

ReadableFile: TypeAlias = Annotated[Path, Written("file", _readable, str, _PATH_SCHEMA, placed=True)]
"""An absolute path to a file that can be read."""
WritableFile: TypeAlias = Annotated[Path, Written("file", _writable, str, _PATH_SCHEMA, placed=True)]
"""An absolute path in a directory that exists."""
LogFile: TypeAlias = Annotated[LogPath, Written("file or `-`", _log_path, str, _PATH_SCHEMA, placed=True)]


# Secrets.


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A token or key. `origin` is `env:NAME`, `file:/path`, or "" for one that stands in the config.

    `value` is what was found there when the config was read. It is never printed: `str` gives the origin, or `***`.
    """

    value: str
    origin: str = ""

    def __repr__(self) -> str:
        return f"<Secret {self}>"

    def __str__(self) -> str:
        return self.origin or MASK


def _secret(value: Any, surroundings: Surroundings) -> Secret:
    """No message here repeats what was given: it may be a secret."""
    if not isinstance(value, str):  # a number has lost its leading zeros
        raise UnitError("expected env:NAME, file:PATH or the secret itself in quotes")
    if value.startswith("env:"):
        return _from_environment(value[4:], surroundings)
    if value.startswith("file:"):
        return _from_file(_readable(value[5:], surroundings))
    if not value.strip():
        raise UnitError("expected env:NAME, file:PATH or a secret, got an empty one")
    if value == MASK:
        raise UnitError(f"{MASK} only stands for a secret in printed configs: give env:NAME, file:PATH or the secret")
    return Secret(str(value))


def _from_environment(name: str, surroundings: Surroundings) -> Secret:
    found = surroundings.environ.get(name)
    if found and not encodable(found):
        raise UnitError(f"the environment variable {name} is not UTF-8")
    if found:
        return Secret(found, f"env:{name}")
    close = nearest(name, surroundings.environ) if found is None else ""
    state = "not set" if found is None else "empty"
    raise UnitError(f"the environment variable {name} is {state}", f"env:{close}" if close else "")


def _from_file(path: Path) -> Secret:
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
        text = content.decode().rstrip("\r\n")
    except OSError as error:
        raise UnitError(f"the file {path} can't be read: {_reason(error)}") from None
    except UnicodeDecodeError:
        raise UnitError(f"the file {path} is not UTF-8 text") from None
    if not text or len(content) > SECRET_BYTES_MAX:
        raise UnitError(f"the file {path} is {'too large for a secret' if text else 'empty'}")
    return Secret(text, f"file:{path}")


SecretValue: TypeAlias = Annotated[Secret, Written("secret", _secret, str, _PATH_SCHEMA, placed=True)]
