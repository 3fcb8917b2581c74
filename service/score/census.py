"""How many images a job has, found out beside it: tables and shards tell only when opened."""

from __future__ import annotations

import threading
from typing import Final

from service.errors import FivecropError
from service.score.inputs import Inputs, is_streamed
from service.score.needs import Needs

# Of such an input nothing is read that can be passed over.
_NOTHING: Final = Needs([(0, 2**63)])


class Census:
    """Counts the images of an input on a thread of its own, and estimates what it cannot count.

    Lists, tables and local shards are counted without reading an image. Remote and compressed
    shards would have to be fetched, so theirs is told from the bytes of those that were read.
    """

    def __init__(self, inputs: Inputs, mine: Needs) -> None:
        """Begins to count the images that are `mine`, done or not."""
        self._inputs = inputs
        self._mine = mine
        self._counted: tuple[int, int] | None = None
        self._is_over = threading.Event()
        threading.Thread(target=self._count, name="fivecrop-count", daemon=True).start()

    def total(self) -> tuple[int | None, bool]:
        """Returns how many images there are, None as long as nobody knows; and whether exactly."""
        if self._counted is None:
            return None, False
        images, streamed_bytes = self._counted
        read = self._inputs.streamed
        if read.bytes >= streamed_bytes:
            return self._mine.count_mine(images + read.images), True
        if not read.bytes:
            return None, False
        estimate = images + round(read.images * streamed_bytes / read.bytes)
        return self._mine.count_mine(estimate), False

    def close(self) -> None:
        """Ends the counting."""
        self._is_over.set()

    def _count(self) -> None:
        images = streamed_bytes = 0
        try:
            for found in self._inputs.files():
                if is_streamed(found):
                    streamed_bytes += found.size
                    continue
                for _ in self._inputs.open(found, 0, _NOTHING):
                    images += 1
                    if self._is_over.is_set():
                        return
                if self._mine.limit is not None and images >= self._mine.limit:
                    break
        except FivecropError:
            return  # the job itself will meet it, and say so
        self._counted = images, streamed_bytes
