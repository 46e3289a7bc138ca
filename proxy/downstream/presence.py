"""Whether a client is still there, where the event loop does not tell: we read nothing, or it has shut down its side.

It owns nothing, and never ends a connection: who asks does.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from proxy.http.connection import socket_of
from proxy.http.message import ResponseHead
from proxy.http.stream import RequestHandler

if TYPE_CHECKING:
    import asyncio

    from proxy.http.connection import ConnectionStream

UNSEEN_S: Final = 1.0
"""How often a client that we read nothing from is looked at."""
PROBE_AFTER_S: Final = 0.5
_ANSWER_S: Final = 0.2
_AGAIN_S: Final = 2.0
_TCP_CLOSE: Final = 7


def reset_unseen(transport: asyncio.Transport | None) -> bool:
    """Whether the kernel has dropped the connection (TCP_CLOSE) behind our back."""
    sock = socket_of(transport) if transport is not None else None
    if sock is None or sock.family == socket.AF_UNIX:
        return False
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)


def takes_probe(stream: ConnectionStream) -> bool:
    """Whether `probe` may ask the client of this request."""
    handler = stream.handler
    return not stream.connection.codec.multiplexed and isinstance(handler, RequestHandler) and handler.takes_interim()


def probe(stream: ConnectionStream, number: int) -> float:
    """The n-th look at a client that shut down its side: it either waits for the answer or is gone; TCP tells only by
    what a write meets. Returns the seconds until the next look.

    An interim response, which every HTTP/1.1 client has to accept (RFC 9110 section 15.2), is that write: a client that
    is gone answers with a reset, which `reset_unseen` shows a round trip later.
    """
    if number % 2 == 0:
        return _AGAIN_S
    stream.send_headers(ResponseHead(100, [], {}, reason=b"Continue"), False)
    return _ANSWER_S
