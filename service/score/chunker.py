"""Cuts the input into chunks of entries that are still to be scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from service.score.entry import Entry, Inline
from service.score.needs import Needs

# Bytes that come with the listing travel to the workers; no chunk holds much more of them.
_MAX_CHUNK_BYTES: Final = 4 * 2**20


@dataclass(slots=True)
class Stretch:
    """Entries to score, with nothing of this job between them that is done already.

    Attributes:
        entries: In the order of the input, at least one.
        follows: Whether it goes on where the stretch before ended, so both fit into one part.
    """

    entries: list[Entry]
    follows: bool

    @property
    def start(self) -> int:
        """Position of the first entry."""
        return self.entries[0].position

    @property
    def stop(self) -> int:
        """Position after the last entry."""
        return self.entries[-1].position + 1


class Chunker:
    """Takes entries off the input, some at a time."""

    def __init__(self, entries: Iterator[Entry], needs: Needs) -> None:
        self._entries = entries
        self._needs = needs
        self._follows = False

    def take(self, count: int) -> Stretch | None:
        """Returns the next `count` entries or fewer; None at the end of the input."""
        taken: list[Entry] = []
        size = 0
        follows = self._follows
        while (entry := next(self._entries, None)) is not None:
            if self._needs.is_done(entry.position):
                if taken:
                    self._follows = False
                    break
                follows = False
                continue
            if not self._needs.needs(entry.position):
                continue
            taken.append(entry)
            size += len(entry.place.data) if isinstance(entry.place, Inline) else 0
            if len(taken) >= count or size >= _MAX_CHUNK_BYTES:
                self._follows = True
                break
        return Stretch(taken, follows) if taken else None
