"""Durations, sizes, shares and addresses: the written form to a value and back, exactly.

`parse_x(format_x(value)) == value` holds for every value that `parse_x` can give, so a printed config loads back as the
same one. What can't be read raises `UnitError`, which says what was expected, and suggests what was probably meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Final

DURATION_MAX_S: Final = 366 * 86400
SIZE_MAX_BYTES: Final = 1 << 50
UNIX_PATH_BYTES_MAX: Final = 107  # sockaddr_un.sun_path is 108 bytes with its NUL

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_DURATION_UNITS_US: Final = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
_SIZE_UNITS: Final = {
    "TiB": 1 << 40,
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "kB": 10**3,
    "B": 1,
}

DURATION_PATTERN: Final = "^(?:0|(?=[0-9])" + "".join(f"(?:{_NUMBER}{unit})?" for unit in _DURATION_UNITS_US) + ")$"
SIZE_PATTERN: Final = f"^{_NUMBER}(?:{'|'.join(_SIZE_UNITS)})?$"
SHARE_PATTERN: Final = r"^(?:100(?:\.0{1,15})?|[0-9]{1,2}(?:\.[0-9]{1,15})?)%$"

_DURATION = re.compile(DURATION_PATTERN)
_DURATION_PART = re.compile(f"({_NUMBER})({'|'.join(sorted(_DURATION_UNITS_US, key=len, reverse=True))})")
_SIZE = re.compile(f"^({_NUMBER})({'|'.join(_SIZE_UNITS)})?$")
_SHARE = re.compile(SHARE_PATTERN)
_BARE = re.compile(f"^{_NUMBER}$")
_LABEL = re.compile(r"^[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$")


class UnitError(ValueError):
    """A text that is not what was expected there."""

    def __init__(self, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


def shown(value: object) -> str:
    """A value as a person would name it in a message, cut to a readable length."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else repr(value[:57]) + "…"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (tuple, list)):
        return "a list"
    return "nothing" if value is None else str(value)[:60]


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


# Durations: seconds, in whole microseconds.


def parse_duration(value: object) -> float:
    """Seconds of `250ms`, `2s`, `1m30s` (units d, h, m, s, ms, us, largest first) or 0."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    expected = f"expected a duration such as 250ms, 2s or 1m30s, got {shown(value)}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise UnitError(expected, f"{value}s")
    if not isinstance(value, str):
        raise UnitError(expected)
    if not _DURATION.match(value) or value.endswith("\n"):
        raise UnitError(expected, _duration_meant(value))
    micros = sum(Decimal(number) * _DURATION_UNITS_US[unit] for number, unit in _DURATION_PART.findall(value))
    if micros != int(micros):
        raise UnitError(f"expected a duration in whole microseconds, got {shown(value)}")
    if micros > DURATION_MAX_S * 1_000_000:
        raise UnitError(f"expected a duration of at most 366d, got {shown(value)}")
    return int(micros) / 1_000_000


def _duration_meant(text: str) -> str:
    meant = re.sub(r"\s+", "", text).lower().replace("µs", "us")
    if _BARE.match(meant):
        return f"{meant}s"
    for word, unit in (
        ("milliseconds?|msecs?", "ms"),
        ("seconds?|secs?", "s"),
        ("minutes?|mins?", "m"),
        ("hours?|hrs?", "h"),
        ("days?", "d"),
    ):
        meant = re.sub(f"(?<=[0-9])(?:{word})", unit, meant)
    return meant if _DURATION.match(meant) else ""


def format_duration(seconds: float) -> str:
    """The written form: `250ms`, `60s`, `1h30m`."""
    micros = round(seconds * 1_000_000)
    if micros == 0:
        return "0s"
    if micros < 1_000:
        return f"{micros}us"
    if micros < 1_000_000:
        return f"{_plain(Decimal(micros) / 1_000)}ms"
    if micros < 120_000_000:
        return f"{_plain(Decimal(micros) / 1_000_000)}s"
    hours, rest = divmod(micros, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    parts = (
        f"{hours}h" if hours else "",
        f"{minutes}m" if minutes else "",
        f"{_plain(Decimal(rest) / 1_000_000)}s" if rest else "",
    )
    return "".join(parts)


# Sizes: bytes.


def parse_size(value: object) -> int:
    """Bytes of `64KiB`, `1MiB`, `10MB` or a bare number."""
    expected = f"expected a size such as 64KiB, 1MiB or a number of bytes, got {shown(value)}"
    if isinstance(value, int) and not isinstance(value, bool):
        size = Decimal(value)
    elif isinstance(value, str) and not value.endswith("\n") and (match := _SIZE.match(value)):
        size = Decimal(match[1]) * _SIZE_UNITS[match[2] or "B"]
    else:
        raise UnitError(expected, _size_meant(value) if isinstance(value, str) else "")
    if size < 0 or size != int(size):
        raise UnitError(expected)
    if size > SIZE_MAX_BYTES:
        raise UnitError(f"expected a size of at most 1024TiB, got {shown(value)}")
    return int(size)


def _size_meant(text: str) -> str:
    match = re.match(f"^\\s*({_NUMBER})\\s*([kmgt])?i?b?(?:ytes)?\\s*$", text.lower())
    return f"{match[1]}{match[2].upper()}iB" if match and match[2] else match[1] if match else ""


def format_size(size: int) -> int | str:
    """The written form: the largest binary unit that divides it, or the number of bytes."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return size


# Shares: fractions of one, written as percentages.


def parse_share(value: object) -> float:
    """The fraction of one that `5%` is."""
    expected = f"expected a percentage from 0% to 100% such as 5%, got {shown(value)}"
    if isinstance(value, str) and _SHARE.match(value) and not value.endswith("\n"):
        return float(Decimal(value[:-1]) / 100)
    text = str(value).strip() if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
    bare = text.removesuffix("%").strip()
    meant = ""
    if _BARE.match(bare):
        # A bare fraction is a share that lost its %: 0.05 is 5%, and 5 is 5% too.
        percent = (
            Decimal(bare) * 100 if not text.endswith("%") and "." in bare and Decimal(bare) <= 1 else Decimal(bare)
        )
        meant = f"{_plain(percent)}%" if percent <= 100 else ""
    raise UnitError(expected, meant)


def format_share(share: float) -> str:
    """The written form: `5%`."""
    return f"{_plain(Decimal(repr(share)) * 100)}%"


# Addresses.


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host (name or IP literal, without brackets) and port, or a Unix socket's absolute `path`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(
    value: object, *, port_min: int = 1, port_meant: str = "8080", host_meant: str = "127.0.0.1"
) -> Address:
    """`host:port`, `IP:port`, `[v6]:port` or `unix:/path`. Listeners pass `port_min` 0: the system chooses a port."""
    forms = f"{host_meant}:{port_meant}, [::1]:{port_meant} or unix:/run/x.sock"
    expected = f"expected an address such as {forms}, got {shown(value)}"
    if isinstance(value, int) and not isinstance(value, bool):
        raise UnitError(expected, f"{host_meant}:{value}" if port_min <= value <= 65535 else "")
    if not isinstance(value, str):
        raise UnitError(expected)
    if value.startswith("unix:"):
        return Address(path=_unix_path(value))
    if "://" in value:
        scheme, _, rest = value.partition("://")
        rest = rest.partition("/")[0]
        meant = rest if re.search(r":[0-9]+$", rest) else f"{rest}:{443 if scheme == 'https' else 80}" if rest else ""
        raise UnitError(f"expected an address without a scheme, got {shown(value)}", meant)
    if value.startswith("/"):
        raise UnitError(expected, f"unix:{value}")
    host, colon, port_text = value.rpartition(":")
    if value.startswith("[") and value.endswith("]"):
        raise UnitError(f"the address {shown(value)} has no port", f"{value}:{port_meant}")
    if not colon:
        raise UnitError(
            f"the address {shown(value)} has no port",
            f"{value}:{port_meant}" if value.strip() and " " not in value else "",
        )
    if not host:
        raise UnitError(
            f"the address {shown(value)} has no host", f"{'0.0.0.0' if port_min == 0 else host_meant}:{port_text}"
        )
    if not host.startswith("[") and ":" in host:
        raise UnitError(
            f"an IPv6 address stands in brackets, got {shown(value)}", _bracketed(value, host, port_text, port_meant)
        )
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not port_min <= int(port_text) <= 65535:
        raise UnitError(f"expected a port from {port_min} to 65535, got {shown(port_text)} in {shown(value)}")
    return Address(parse_host(host), int(port_text))


def _bracketed(text: str, host: str, port: str, port_meant: str) -> str:
    for address, suffix in ((host, port), (text, port_meant)):
        try:
            IPv6Address(address)
        except ValueError:
            continue
        return f"[{address}]:{suffix}"
    return ""


def _unix_path(value: str) -> str:
    path = value[5:]
    if not path.startswith("/"):
        raise UnitError(
            f"expected an absolute path after unix:, got {shown(value)}", f"unix:/{path.lstrip('/')}" if path else ""
        )
    if "\0" in path or len(path.encode()) > UNIX_PATH_BYTES_MAX:
        raise UnitError(f"a Unix socket's path has at most {UNIX_PATH_BYTES_MAX} bytes, got {len(path.encode())}")
    return path


def parse_host(host: str) -> str:
    """A host name or IP literal (IPv6 in brackets), in lower case; IPv6 in its shortest form, without brackets."""
    if host.startswith("["):
        try:
            return str(IPv6Address(host[1:-1] if host.endswith("]") else ""))
        except ValueError:
            raise UnitError(f"expected an IPv6 address in brackets, got {shown(host)}") from None
    labels = host.removesuffix(".").split(".")
    if labels[
        -1
    ].isdigit():  # a name's last label is never all digits (RFC 1123 section 2.1): this is to be an IPv4 address
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise UnitError(f"expected an IPv4 address, got {shown(host)}") from None
    if not host.isascii():
        raise UnitError(f"expected a host name in ASCII, got {shown(host)}", _punycode(host))
    if len(host) > 253 or not all(_LABEL.match(label) for label in labels):
        raise UnitError(f"expected a host name or IP address, got {shown(host)}")
    return host.lower()


def _punycode(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return ""
