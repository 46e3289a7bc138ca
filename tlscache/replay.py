"""Which first flights have been seen: the server's memory against replayed 0-RTT, shared by forked workers.

A replayed ClientHello carries the same random and the same ticket age, and can't be changed without the session's key.
OpenSSL takes early data only while the age the client claims is within about ten seconds of the real one, so to
remember randoms for longer than that is enough (RFC 8446 section 8.2; "ClientHello recording"). What was seen before,
or can't be remembered, is not refused: it waits until the handshake is complete, which a replay never is.

OpenSSL's own protection makes every ticket stateful and single-use within one process: with several workers most
resumptions would then meet the wrong one. With this register tickets stay stateless, and good in every worker that was
forked from the same context.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import secrets
import struct
import tempfile
from collections.abc import Callable
from time import monotonic
from typing import Final

WINDOW_S: Final = 30  # OpenSSL's freshness window is about 10 s: TICKET_AGE_ALLOWANCE in ssl/statem/extensions_srvr.c
_SLOT: Final = struct.Struct(">I12s")  # the second it was seen (0: never used), and a part of its keyed hash
_WAYS: Final = 8
_BUCKET_BYTES: Final = _SLOT.size * _WAYS


class ReplayRegister:
    """A fixed table of hashes in memory that processes forked after its making share.

    `capacity` is how many first flights it remembers at once: what comes on top within `WINDOW_S` seconds is taken for
    seen.
    """

    def __init__(self, capacity: int = 65_536, *, clock: Callable[[], float] = monotonic) -> None:
        self._buckets = max(1, capacity // _WAYS)
        self._key = secrets.token_bytes(32)
        self._clock = clock
        # A file without a name: it is what processes lock, and it goes when the last of them does.
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("onetrip-replay")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        os.ftruncate(self._file, self._buckets * _BUCKET_BYTES)
        self._table = mmap.mmap(self._file, self._buckets * _BUCKET_BYTES)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            os.close(file)

    def fileno(self) -> int:
        """The descriptor that a forked process has to keep."""
        return self._file

    def first_seen(self, random: bytes) -> bool:
        """Remember a ClientHello's random. True: it is new, and its early data may be used at once.

        Never waits: while another process holds that part of the table, it is taken for seen.
        """
        now = int(self._clock()) + 1
        digest = hashlib.blake2b(random, key=self._key, digest_size=20).digest()
        start = int.from_bytes(digest[:8], "big") % self._buckets * _BUCKET_BYTES
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET_BYTES, start)
        except OSError:
            return False
        try:
            return self._remember(start, digest[8:], now)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _BUCKET_BYTES, start)

    def _remember(self, start: int, tag: bytes, now: int) -> bool:
        free = -1
        for place in range(start, start + _BUCKET_BYTES, _SLOT.size):
            seen_at, known = _SLOT.unpack_from(self._table, place)
            if not seen_at or now - seen_at > WINDOW_S:
                free = place
            elif known == tag:
                return False
        if free < 0:
            return False
        _SLOT.pack_into(self._table, free, now, tag)
        return True
