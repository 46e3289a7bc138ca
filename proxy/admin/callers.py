"""Who may ask the admin address for what: the token, and what keeps web pages out where there is none.

A page of any site can have its visitor's browser send requests to addresses that only the visitor reaches. It can't
read the answers, and a POST shows whose page it is (`origin`, `sec-fetch-site`); but by DNS rebinding a site's own name
leads here, and then the page is of the same origin as the admin address. What it can't have is an address that is no
name: so `host` must be an IP address, localhost, or a name that the config gives (`admin.hosts`, and the name in
`admin.address`). A token does the same, and better; no browser reaches a Unix socket.
"""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.config.model import AdminSection
    from proxy.http.message import Fields, RequestHead

OPEN_TO_ALL: Final = frozenset(("/livez", "/readyz", "/healthz"))
"""They tell nothing but whether the program serves."""

Refusal = tuple[int, str, "Fields"]
"""Status, fault, fields of the answer."""


class Callers:
    """The rules of one `admin` section."""

    def __init__(self, token: str | None = None, hosts: frozenset[str] | None = frozenset()) -> None:
        """`hosts`: names beside IP addresses and localhost, in lower case; None: any."""
        self._token = token
        self._hosts = hosts

    @classmethod
    def of(cls, section: AdminSection) -> Callers:
        """As a config has it."""
        hosts = {name.lower() for name in (*section.hosts, section.address.host)}
        token = section.token.value if section.token is not None else None
        return cls(token, None if section.address.path else frozenset(hosts))

    def refusal(self, path: str, head: RequestHead, *, change: bool) -> Refusal | None:
        """Why not, or None."""
        if path in OPEN_TO_ALL:
            return None
        if self._token is not None:
            scheme, _, given = head.known.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token.encode()):
                fault = "the admin token is missing or wrong: send authorization: Bearer TOKEN"
                return 401, fault, [(b"www-authenticate", b"Bearer")]
        elif self._hosts is not None and not self._known(head.authority):
            name = head.authority.decode("latin-1")
            fault = f"the admin address is not known as {name}: ask it by IP address, or add the name to admin.hosts"
            return 421, fault, []
        return _other_site(head) if change else None

    def _known(self, authority: bytes) -> bool:
        host = host_of(authority)
        return not host or host == "localhost" or is_address(host) or host in (self._hosts or ())


def host_of(authority: bytes) -> str:
    """A host without its port and brackets, in lower case."""
    text = authority.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def is_address(host: str) -> bool:
    """Whether it is an IP address, as browsers send those (dotted decimals, RFC 5952)."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _other_site(head: RequestHead) -> Refusal | None:
    """Browsers send such a POST without asking anybody first, and say where it comes from."""
    site = origin = None
    for name, value in head.fields:
        if name == b"origin":
            origin = value
        elif name == b"sec-fetch-site":
            site = value.strip().lower()
    if origin is not None and origin.partition(b"://")[2] != head.authority:
        return 403, f"pages of {origin.decode('latin-1')} may change nothing here: use the admin address's own page", []
    if site not in (None, b"same-origin", b"none"):
        return 403, "pages of other sites may change nothing here: use the admin address's own page, or a command", []
    return None
