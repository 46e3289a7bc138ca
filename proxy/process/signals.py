"""Signals that wait: `start` blocks them as its first act, and the program lets them through once it can obey."""

from __future__ import annotations

import signal
from typing import Final

STARTING: Final = (signal.SIGHUP, signal.SIGUSR2)
"""What may be sent to a program that is not up yet, and must not end it."""
