"""The Huffman code of HPACK and QPACK (RFC 7541 section 5.2 and appendix B), read a byte at a time.

The code is canonical: the lengths alone define it. Decoding walks rows of (byte → next state, symbols); a state is a
node of the code's tree. A state's row of 256 entries is built when first met: texts in practice meet a few dozen.

Only decoding is here: what this proxy sends repeats on a connection and is indexed, so coding its first copy saves
little.
"""

from __future__ import annotations

from typing import Final, TypeAlias

_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Bits of each octet's code, then of EOS's."""

_EOS: Final = 256

_Row: TypeAlias = list[tuple[int, bytes] | None]


def _tree() -> list[list[int]]:
    """Nodes as [child for 0, child for 1]: an inner node's number, or ~symbol for a leaf. Node 0 is the root."""
    nodes = [[0, 0]]
    code = bits = 0
    for symbol in sorted(range(257), key=lambda each: (_LENGTHS[each], each)):
        code <<= _LENGTHS[symbol] - bits
        bits = _LENGTHS[symbol]
        node = 0
        for shift in range(bits - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes[node][bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
        code += 1
    return nodes


class _Rows(dict[int, _Row]):
    """Rows by state; `None` in one is EOS, which must not occur."""

    def __missing__(self, state: int) -> _Row:
        row = self[state] = [_step(state, byte) for byte in range(256)]
        return row


def _step(node: int, byte: int) -> tuple[int, bytes] | None:
    symbols = bytearray()
    for shift in range(7, -1, -1):
        node = _NODES[node][byte >> shift & 1]
        if node < 0:
            if ~node == _EOS:
                return None
            symbols.append(~node)
            node = 0
    return node, bytes(symbols)


def _padding_states() -> frozenset[int]:
    """States that up to 7 bits of padding lead to: all ones, the start of EOS (RFC 7541 section 5.2)."""
    states, node = [0], 0
    for _ in range(7):
        node = _NODES[node][1]
        states.append(node)
    return frozenset(states)


_NODES: Final = _tree()
_ROWS: Final = _Rows()
_PADDING: Final = _padding_states()


def prepare() -> None:
    """Build every row now (some 40 ms) rather than when a header first needs it (some 0.2 ms each)."""
    for state in range(len(_NODES)):
        _ROWS[state]


def decode(data: bytes) -> bytes:
    """The octets that `data` codes.

    Raises:
        ValueError: EOS occurs, or the padding is longer than 7 bits or not all ones.
    """
    state = 0
    out = bytearray()
    rows = _ROWS
    for byte in data:
        step = rows[state][byte]
        if step is None:
            raise ValueError("EOS in a Huffman-coded string")
        state = step[0]
        out += step[1]
    if state not in _PADDING:
        raise ValueError("bad padding of a Huffman-coded string")
    return bytes(out)
