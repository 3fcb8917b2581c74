"""Files that may be replaced while the server runs: keys, certificates."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

# A look is one `stat` a file, a few microseconds; one a second is often enough for a person.
_LOOK_EVERY_S: Final = 1.0

_Version = tuple[int, int, int] | None


class WatchedFiles:
    """Tells whoever is about to use the files whether to read them again.

    Looked at when they are used, not by a timer or a notification: nothing runs while nobody asks,
    and it holds on every file system and for the symbolic links that Kubernetes swaps.
    """

    def __init__(
        self, paths: Sequence[Path], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Remembers the files as they are now: make this before the files are read."""
        self._paths = tuple(paths)
        self._monotonic = monotonic
        self._next_look = monotonic() + _LOOK_EVERY_S
        self._versions = self._look()

    def have_changed(self) -> bool:
        """Whether any of them is another file than at the last call; looks once a second."""
        now = self._monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK_EVERY_S
        before, self._versions = self._versions, self._look()
        return before != self._versions

    def _look(self) -> list[_Version]:
        return [_version_of(path) for path in self._paths]


def _version_of(path: Path) -> _Version:
    try:
        found = os.stat(path)  # noqa: PTH116, twice as fast as Path.stat
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
