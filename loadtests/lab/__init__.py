"""The WAN lab: regions with real or imitated distances on one machine, and programmable origins in them.

See docs/lab.md.
"""

from __future__ import annotations

from .control import LabError
from .handles import Origin, Path
from .lab import HOME, SERVER_NAME, Lab

__all__ = ["HOME", "SERVER_NAME", "Lab", "LabError", "Origin", "Path"]
