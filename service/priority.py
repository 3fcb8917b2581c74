"""How urgent a request is, and what that buys it.

Priorities share the machine by weight instead of strictly: an urgent request hardly notices the
others, and no request waits for ever, however many urgent ones there are.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Priority(StrEnum):
    """The urgency of a request, most urgent first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @classmethod
    def from_level(cls, level: int) -> Priority:
        """Returns the priority for a number of the Open Inference Protocol.

        There 1 is the highest, larger numbers are lower, and 0 asks for the default.
        """
        if level == 1:
            return cls.HIGH
        return cls.NORMAL if level in (0, 2) else cls.LOW


# While all three wait, of 73 seconds of work 64 go to high, 8 to normal and 1 to low.
WEIGHT: Final = {Priority.HIGH: 64.0, Priority.NORMAL: 8.0, Priority.LOW: 1.0}
