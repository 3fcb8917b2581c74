"""Which positions of the input a job still has to score."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable


class Needs:
    """The positions of this job's shard that are not done yet."""

    def __init__(
        self,
        done: Iterable[tuple[int, int]] = (),
        *,
        limit: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """Remembers ranges [start, stop) that are done, merged where they touch.

        Args:
            done: The ranges; they do not overlap.
            limit: Positions from there on are not this job's.
            shard: (i, n): positions that are i modulo n are.
        """
        self._ranges: list[tuple[int, int]] = []
        for start, stop in sorted(done):
            if self._ranges and self._ranges[-1][1] >= start:
                first, last = self._ranges.pop()
                insort(self._ranges, (first, max(last, stop)))
            else:
                self._ranges.append((start, stop))
        self.limit = limit
        self._index, self._count = shard

    def needs(self, position: int) -> bool:
        """Whether a position is to be scored."""
        if position % self._count != self._index:
            return False
        if self.limit is not None and position >= self.limit:
            return False
        place = bisect_right(self._ranges, (position, float("inf"))) - 1
        return place < 0 or self._ranges[place][1] <= position

    def needs_any(self, start: int, stop: int) -> bool:
        """Whether any position in [start, stop) may be needed; looks at the ranges alone."""
        if self.limit is not None and start >= self.limit:
            return False
        place = bisect_right(self._ranges, (start, float("inf"))) - 1
        return place < 0 or self._ranges[place][1] < stop

    def is_done(self, position: int) -> bool:
        """Whether a position lies in a done range."""
        place = bisect_right(self._ranges, (position, float("inf"))) - 1
        return place >= 0 and position < self._ranges[place][1]

    def count_mine(self, total: int) -> int:
        """Returns how many of the positions below `total` are this job's, done or not."""
        end = total if self.limit is None else min(total, self.limit)
        return max(0, (end - self._index + self._count - 1) // self._count)
