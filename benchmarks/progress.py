"""Progress on standard error; standard output is for data."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    """Prints one line with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
