"""HTTP/1.1 (RFC 9112) for both roles: what the rest of the proxy uses of it.

`server` and `client` are the two codecs, `base` what they share, `head` reads and writes heads, `chunked` reads chunked
bodies. A connection drives them so:

    for event in codec.receive(data): ...           # bytes from the socket
    codec.send_headers(...); codec.send_data(...)   # what the exchange or attempt says
    transport.write(codec.data_to_send())
    if codec.closing: close; elif codec.send_eof: shut down writing
    while codec.pending: for event in codec.receive(b""): ...   # server role: pipelined requests, early tunnel data
"""

from .client import H1ClientCodec
from .head import H1Limits
from .server import H1ServerCodec

__all__ = ["H1ClientCodec", "H1Limits", "H1ServerCodec"]
