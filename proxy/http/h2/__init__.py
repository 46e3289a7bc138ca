"""HTTP/2, both roles (RFC 9113, RFC 8441). Sans-I/O; see `proxy.http.stream.Codec` for the contract.

    codec = H2ServerCodec(H2Limits())         # the bytes must begin with the client's preface
    for event in codec.receive(data): ...     # HeadersReceived(1, <RequestHead GET ...>, end=True)
    codec.send_headers(1, head, end=False)
    codec.send_data(1, b"hello", end=True)    # True: nothing is held back
    transport.write(codec.data_to_send())
    codec.consumed(1, event.size)             # for every DataReceived, or reset the stream: else its window stays shut

The layers, each over the one before: `hpack` and `huffman` (compression), `frames` (the wire), `heads` (fields to
heads and back), `guard` (abuse), `stream` and `flow` (streams and their windows), `control` (settings,
pings, resets), `messages` (heads, bodies, trailers), `connection` (bytes to frames, errors), and the roles.
"""

from .client import STREAMS_BEFORE_SETTINGS, H2ClientCodec
from .frames import PREFACE
from .server import H2ServerCodec
from .stream import H2Limits

__all__ = ["PREFACE", "STREAMS_BEFORE_SETTINGS", "H2ClientCodec", "H2Limits", "H2ServerCodec"]
