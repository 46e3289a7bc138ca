"""HPACK, header compression for HTTP/2 (RFC 7541): a strict decoder that bounds what it unfolds, and an encoder.

Pure Python on purpose. A request that looks like the last ones is a handful of one-byte indices, which cost less here
than a call into a native library costs in conversions; and the native one at hand panics on a truncated block, and lets
a size update stand anywhere.

Decoder rules: a size update stands only before the first field, at most twice, and never above our setting (section
4.2); index 0 and indices beyond the table are faults (2.3.3, 6.1); an integer has at most 5 octets behind its prefix
(5.1); nothing may be cut short. A list above its bound is decoded to its end, so that the table stays in step, and
reported; far above it (`BOMB_FACTOR`), decoding stops for good.

Encoder rules: a field enters the dynamic table when it is sent for the second time, so values that never repeat (ids,
dates, paths) don't push out the ones that do. Credentials are never indexed (7.1.3), nor is what its sender marked so
(6.2.3).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from proxy.http.sensitive import Sensitive

from . import huffman

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.http.message import Field, Fields

TABLE_BYTES: Final = 4096
"""Size of both dynamic tables: the protocol's default, which we neither raise nor lower."""

ENTRY_OVERHEAD: Final = 32  # what each entry counts beyond its octets (RFC 7541 section 4.1)
BOMB_FACTOR: Final = 4  # a list of this many times the bound is an attack, not a long list

_STATIC_LINES: Final = b"""\
:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|:status 204|\
:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset|accept-encoding gzip, deflate|\
accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control|\
content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type|\
cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|\
last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|\
server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"""

STATIC: Final[tuple[Field, ...]] = tuple(line.partition(b" ")[::2] for line in _STATIC_LINES.split(b"|"))
"""The static table (RFC 7541 appendix A); the entry with index 1 comes first."""


def list_size(fields: Fields) -> int:
    """The size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 section 6.5.2)."""
    return sum([len(name) + len(value) for name, value in fields]) + ENTRY_OVERHEAD * len(fields)


class HpackError(Exception):
    """A block that can't be decoded, and with it no later one: COMPRESSION_ERROR."""


class HpackBombError(Exception):
    """A block that unfolds far beyond the bound."""


class Decoder:
    """One direction's decoding state.

    `changes` counts what touched the table: while it stands still, equal blocks decode equally.
    """

    __slots__ = ("_entries", "_size", "_size_max", "changes")

    def __init__(self) -> None:
        self._entries: list[Field] = []  # the newest last
        self._size = 0
        self._size_max = TABLE_BYTES
        self.changes = 0

    def decode(self, block: bytes, list_bytes: int, count: int) -> Fields | None:
        """The fields of a block; None where they exceed `list_bytes` (name, value and 32 octets each) or `count`.

        Raises:
            HpackError: the block is malformed.
            HpackBombError: the list is more than `BOMB_FACTOR` times too long.
        """
        fields: Fields = []
        entries = self._entries
        position, end = 0, len(block)
        size = number = updates = 0
        try:
            while position < end:
                octet = block[position]
                position += 1
                field: Field
                if octet > 0x80:
                    index = octet & 0x7F
                    if index == 0x7F:
                        index, position = _integer(block, position, 0x7F)
                    field = STATIC[index - 1] if index < 62 else entries[61 - index]
                elif octet == 0x80:
                    raise HpackError("index 0")
                elif octet & 0xE0 == 0x20:
                    updates += 1
                    if number or updates > 2:
                        raise HpackError("a table size update behind a field, or a third one")
                    position = self._resize(block, position, octet)
                    continue
                else:
                    field, position = self._literal(block, position, octet)
                size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
                number += 1
                if size <= list_bytes and number <= count:
                    fields.append(field)
                elif size > BOMB_FACTOR * list_bytes or number > BOMB_FACTOR * count:
                    raise HpackBombError("a header block unfolds far beyond its bound")
        except IndexError:
            raise HpackError("a block is cut short, or refers beyond the table") from None
        return fields if size <= list_bytes and number <= count else None

    def _literal(self, block: bytes, position: int, octet: int) -> tuple[Field, int]:
        """A literal field: name by index or in full, then the value (RFC 7541 section 6.2)."""
        prefix = 0x3F if octet & 0x40 else 0x0F
        index = octet & prefix
        if index == prefix:
            index, position = _integer(block, position, prefix)
        if index == 0:
            name, position = _string(block, position)
        elif index < 62:
            name = STATIC[index - 1][0]
        else:
            name = self._entries[61 - index][0]
        value, position = _string(block, position)
        if octet & 0x40:
            field = (name, value)
            self._insert(field)
            return field, position
        return (name, Sensitive(value) if octet & 0x10 else value), position

    def _insert(self, field: Field) -> None:
        """Add an entry, evict the oldest for it; one larger than the table empties it (RFC 7541 section 4.4)."""
        self.changes += 1
        self._entries.append(field)
        self._size += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
        if self._size > self._size_max:
            self._evict()

    def _resize(self, block: bytes, position: int, octet: int) -> int:
        size = octet & 0x1F
        if size == 0x1F:
            size, position = _integer(block, position, 0x1F)
        if size > TABLE_BYTES:
            raise HpackError(f"a table size of {size}")
        self.changes += 1
        self._size_max = size
        self._evict()
        return position

    def _evict(self) -> None:
        gone = 0
        for name, value in self._entries:
            if self._size <= self._size_max:
                break
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD
            gone += 1
        del self._entries[:gone]


def _integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """An integer whose prefix is all ones, and the position behind it (RFC 7541 section 5.1)."""
    value = prefix
    for shift in (0, 7, 14, 21, 28):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise HpackError("an integer of more than 5 octets")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    octet = block[position]
    position += 1
    length = octet & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise HpackError("a string is cut short")
    if octet < 0x80:
        return block[position:end], end
    try:
        return huffman.decode(block[position:end]), end
    except ValueError as error:
        raise HpackError(str(error)) from None


def _prefixed(value: int, prefix: int, flags: int) -> bytes:
    """An integer behind `flags` (RFC 7541 section 5.1)."""
    if value < prefix:
        return bytes((flags | value,))
    octets = bytearray((flags | prefix,))
    value -= prefix
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


_ENTRIES_MAX: Final = TABLE_BYTES // ENTRY_OVERHEAD
_INDEXED: Final = tuple(_prefixed(index, 0x7F, 0x80) for index in range(62 + _ENTRIES_MAX))
_LENGTH: Final = tuple(_prefixed(length, 0x7F, 0) for length in range(256))
_STATIC_FIELD: Final[dict[Field, bytes]] = {field: _INDEXED[1 + i] for i, field in enumerate(STATIC) if field[1]}
_STATIC_INDEX: Final[dict[bytes, int]] = {name: 61 - i for i, (name, _) in enumerate(reversed(STATIC))}
_PLAIN_NAME: Final[dict[bytes, bytes]] = {name: _prefixed(index, 0x0F, 0) for name, index in _STATIC_INDEX.items()}
_CREDENTIALS: Final = frozenset((b"authorization", b"proxy-authorization"))
_SHORT_COOKIE: Final = 20  # one this short could be guessed through the sizes of what we send (7.1.3)
_INDEXED_BYTES_MAX: Final = 1024  # a longer field would push out too much
_CANDIDATES_MAX: Final = 128


class Encoder:
    """One direction's encoding state. `resize` takes the peer's SETTINGS_HEADER_TABLE_SIZE."""

    __slots__ = ("_candidates", "_entries", "_inserted", "_numbers", "_size", "_size_max", "_updates")

    def __init__(self) -> None:
        self._entries: deque[tuple[Field, int]] = deque()  # (field, size), the oldest first
        self._numbers: dict[Field, int] = {}  # field → how many were inserted before it
        self._inserted = 0
        self._size = 0
        self._size_max = TABLE_BYTES
        self._candidates: set[int] = set()  # hashes of fields sent once: a collision only indexes too early
        self._updates = b""  # size updates that the next block must begin with

    def resize(self, size: int) -> None:
        """The peer allows a table of `size` octets; we use at most `TABLE_BYTES`."""
        size = min(size, TABLE_BYTES)
        if size == self._size_max:
            return
        low = size if not self._updates else min(size, self._size_max)  # the smallest size must be signalled too (4.2)
        self._size_max = size
        self._updates = b"".join(_prefixed(each, 0x1F, 0x20) for each in sorted({low, size}))
        self._evict()

    def encode(self, fields: Iterable[Field]) -> bytes:
        """A block for these fields. Names must be lower case."""
        parts = []
        if self._updates:
            parts.append(self._updates)
            self._updates = b""
        numbers = self._numbers
        newest = self._inserted + 61
        for field in fields:
            if field in _STATIC_FIELD:
                parts.append(_STATIC_FIELD[field])
            elif field in numbers and type(field[1]) is bytes:
                parts.append(_INDEXED[newest - numbers[field]])
            else:
                parts.append(self._literal(field))
                newest = self._inserted + 61
        return b"".join(parts)

    def _literal(self, field: Field) -> bytes:
        name, value = field
        size = len(name) + len(value) + ENTRY_OVERHEAD
        short_cookie = name == b"cookie" and len(value) < _SHORT_COOKIE
        secret = short_cookie or name in _CREDENTIALS or type(value) is Sensitive
        length = _LENGTH[len(value)] if len(value) < 256 else _prefixed(len(value), 0x7F, 0)
        if secret or size > _INDEXED_BYTES_MAX or size > self._size_max or not self._is_second(field):
            if not secret and name in _PLAIN_NAME:
                return _PLAIN_NAME[name] + length + value
            return _name(name, 0x0F, 0x10 if secret else 0) + length + value
        self._numbers[field] = self._inserted
        self._entries.append((field, size))
        self._inserted += 1
        self._size += size
        self._evict()
        return _name(name, 0x3F, 0x40) + length + value

    def _is_second(self, field: Field) -> bool:
        mark = hash(field)
        candidates = self._candidates
        if mark in candidates:
            candidates.discard(mark)
            return True
        if len(candidates) >= _CANDIDATES_MAX:
            candidates.clear()
        candidates.add(mark)
        return False

    def _evict(self) -> None:
        while self._size > self._size_max:
            field, size = self._entries.popleft()
            self._size -= size
            del self._numbers[field]


def _name(name: bytes, prefix: int, flags: int) -> bytes:
    index = _STATIC_INDEX.get(name)
    if index is not None:
        return _prefixed(index, prefix, flags)
    return bytes((flags,)) + _prefixed(len(name), 0x7F, 0) + name
