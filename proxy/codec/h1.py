"""HTTP/1.1 (RFC 9112) for both roles: what the rest of the proxy uses of it.

`h1_server` and `h1_client` are the two codecs, `h1_base` what they share, `h1_head` reads and writes heads,
`h1_chunked` reads chunked bodies. A connection drives them so:

    for event in codec.receive(data): ...           # bytes from the socket
    codec.send_headers(...); codec.send_data(...)   # what the exchange or attempt says
    transport.write(codec.data_to_send())
    if codec.closing: close; elif codec.send_eof: shut down writing
    while codec.pending: for event in codec.receive(b""): ...   # server role: pipelined requests, early tunnel data
"""

from .h1_client import H1ClientCodec
from .h1_head import H1Limits
from .h1_server import H1ServerCodec

__all__ = ["H1ClientCodec", "H1Limits", "H1ServerCodec"]
