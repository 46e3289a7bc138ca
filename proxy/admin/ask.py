"""Talks to a running proxy's admin address, for the command line."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, Final

TIMEOUT_S: Final = 10.0


class AdminError(Exception):
    """The admin address could not be asked, or refused; the text says what to do."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


class Admin:
    """An admin address, `HOST:PORT` or `unix:PATH`, and the token where it wants one."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self._token = token

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address.removeprefix("unix:"))
        host, _, port = self.address.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()):
            raise AdminError(f"--admin is HOST:PORT or unix:PATH, not {self.address!r}")
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=TIMEOUT_S)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer: JSON decoded, else text. AdminError for everything but 2xx."""
        headers = {"content-type": "application/json"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        connection = self._connection()
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = (response.getheader("content-type") or "").startswith("application/json")
            content = json.loads(text) if is_json else text
        except (OSError, OverflowError, http.client.HTTPException) as error:
            hint = "is onetrip running, and is this its `admin.address`? (--admin, ONETRIP_ADMIN)"
            raise AdminError(f"can't reach the admin address {self.address}: {error}; {hint}") from error
        except ValueError as error:
            raise AdminError(f"what answers at {self.address} is not onetrip's admin address: {error}") from error
        finally:
            connection.close()
        if response.status >= 300:
            fault = content.get("fault") if isinstance(content, dict) else text.strip()
            hint = " (set ONETRIP_ADMIN_TOKEN)" if response.status == 401 else ""
            raise AdminError(f"{fault or content}{hint}")
        return content
