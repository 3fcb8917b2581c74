"""The order in which Linux closes the files of a killed process: the highest number first."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# More files than a worker has open at once, and what is left to it where it may not have so many.
_MANY: Final = 8192
_SPARE: Final = 32


@contextmanager
def closed_first() -> Iterator[None]:
    """Has the files that are opened inside be closed before all others if the process is killed.

    A listening socket with a low number still takes connections when clients see theirs end: of
    those that connected again at once two in three were reset with it, and a gRPC client then
    fails for a second rather than go to another worker (docs/decisions.md).
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = min(_MANY, most - _SPARE)
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while fillers[-1] < high:
            fillers.append(os.dup(fillers[0]))
        yield
    finally:
        for number in fillers:
            os.close(number)
