"""One health request on a connection of its own, and its answer.

It asks and reads; when to ask, and what the answer means for routing, is `health`'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from proxy.http.stream import StreamHandler

if TYPE_CHECKING:
    from proxy.errors import ProxyError
    from proxy.http.message import Fields, RequestHead, ResponseHead

BODY_BYTES_MAX: Final = 1024


class Check(StreamHandler):
    """One health request on a connection: `done` becomes the status, or a ProxyError. `body` and `trailers` are the
    answer's, the first kept up to `BODY_BYTES_MAX`.
    """

    def __init__(self) -> None:
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.body = b""
        self.trailers: Fields = []
        self._status = 0

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """The answer's head."""
        status = cast("ResponseHead", head).status
        if status >= 200:
            self._status = status
            if end:
                self.trailers = head.fields
                self._finish()

    def on_data(self, data: bytes, end: bool) -> None:
        """Its body."""
        self.body = (self.body + data)[:BODY_BYTES_MAX]
        if end:
            self._finish()

    def on_trailers(self, fields: Fields) -> None:
        """Its end."""
        self.trailers = fields
        self._finish()

    def on_writable(self) -> None:
        """A health request has no body."""

    def on_reset(self, error: ProxyError) -> None:
        """It was cut."""
        if not self.done.done():
            self.done.set_exception(error)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(self._status)
