"""What may travel as 0-RTT data.

Early data rides in the first flight and saves the round trip of the handshake. Its price: anyone on the path can send
the same flight again, to the same server or to another one behind the same name, and TLS can't tell (RFC 8446 section
8). So only a request whose second execution does no harm may go: a safe method (RFC 9110 section 9.2.1) without a body,
where the configuration allows it at all. RFC 8470 has the rest: the origin is told by `early-data: 1`, may answer 425,
and then, as after a rejection, the request is sent once more when the handshake is complete.

The server's side of it:
- A request that was received as early data and is not safe waits until the handshake is complete, which a replay never
  is.
- A first flight that was seen before is held back in whole (`replay.ReplayRegister`), or its early data is refused
  (OpenSSL's own anti-replay, where tickets are good for one use in one process).
- Early data may be answered at once; the client is not authenticated by a client certificate any better than its ticket
  was.
"""

from __future__ import annotations

from typing import Final

EARLY_BYTES_MAX: Final = 4096
"""A larger request waits: what is sent early is kept for a second sending, and ought to fit the first packets."""


def may_travel_early(
    *, safe: bool, enabled: bool, has_body: bool, upgrade: bool = False, expect_continue: bool = False, size: int = 0
) -> bool:
    """Whether a request may be sent, or acted upon, as early data.

    `safe`: its method is (which methods are is `routing.retry.SAFE_METHODS`, given by who calls); `enabled` is what the
    route or listener says; `size` its head's length in bytes where it is known.
    """
    return enabled and safe and not (has_body or upgrade or expect_continue) and size <= EARLY_BYTES_MAX
