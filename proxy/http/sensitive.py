"""A field value that its sender wants in no compression table, on no hop (RFC 7541 section 6.2.3)."""

from __future__ import annotations


class Sensitive(bytes):
    """Equal to the plain bytes.

    It is the value that carries the mark, because compiled code takes tuples apart and puts them together again. For a
    like reason this class has a module of its own, which is not compiled.
    """

    __slots__ = ()
