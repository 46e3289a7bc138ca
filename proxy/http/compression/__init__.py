"""HPACK and its Huffman code (RFC 7541)."""
