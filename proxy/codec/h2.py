"""HTTP/2, both roles (RFC 9113, RFC 8441). Sans-I/O; see `proxy.stream.Codec` for the contract.

    codec = H2ServerCodec(H2Limits())         # the bytes must begin with the client's preface
    for event in codec.receive(data): ...     # HeadersReceived(1, <RequestHead GET ...>, end=True)
    codec.send_headers(1, head, end=False)
    codec.send_data(1, b"hello", end=True)    # True: nothing is held back
    transport.write(codec.data_to_send())
    codec.consumed(1, event.size)             # for every DataReceived, or reset the stream: else its window stays shut

The layers, each over the one before: `hpack` and `huffman` (compression), `h2_frames` (the wire), `h2_heads` (fields to
heads and back), `h2_guard` (abuse), `h2_stream` and `h2_flow` (streams and their windows), `h2_control` (settings,
pings, resets), `h2_messages` (heads, bodies, trailers), `h2_connection` (bytes to frames, errors), and the roles.
"""

from .h2_client import STREAMS_BEFORE_SETTINGS, H2ClientCodec
from .h2_frames import PREFACE
from .h2_server import H2ServerCodec
from .h2_stream import H2Limits

__all__ = ["PREFACE", "STREAMS_BEFORE_SETTINGS", "H2ClientCodec", "H2Limits", "H2ServerCodec"]
