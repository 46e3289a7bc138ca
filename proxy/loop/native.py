"""What the compiler of the hot path is told, and plain Python does without."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import trait
else:

    def trait(of):
        """A contract that a class may keep beside having a base: methods, and attributes for reading."""
        return of


__all__ = ["trait"]
