"""Sans-I/O codecs: bytes in, events out, for either role of a connection. None raises on what a peer sends."""
