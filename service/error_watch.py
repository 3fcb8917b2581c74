"""Whether a version fails more often than the one it is tried against: a sliding window of each."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_WINDOW_S: Final = 60.0
_MOST_REQUESTS: Final = 2_000
# Fewer say nothing, however bad they are.
_LEAST_REQUESTS: Final = 10
# Of a normal distribution: a lower bound that holds with 97.5 %.
_Z: Final = 1.96

# Called with the target and the numbers in words.
Blame = Callable[[str, str], None]


class ErrorWatch:
    """The latest minute of each branch of a split; the others are held against the empty target."""

    def __init__(
        self,
        max_excess: float,
        blame: Blame,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts with empty windows.

        Args:
            max_excess: Difference of error rates that is still allowed.
            blame: Called when a target is beyond it; again with each further failure.
            clock: In seconds.
        """
        self._max_excess = max_excess
        self._blame = blame
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def note(self, target: str, *, is_failure: bool) -> None:
        """Takes how a request ended; blames its target if that is one failure too many."""
        now = self._clock()
        window = self._windows.setdefault(target, _Window())
        window.add(now, is_failure)
        if is_failure and target:
            stable = self._windows.get("", _Window())
            stable.forget(now - _WINDOW_S)
            window.forget(now - _WINDOW_S)
            if window.requests < _LEAST_REQUESTS:
                return
            if _lower_bound(window) > stable.rate + self._max_excess:
                self._blame(
                    target,
                    f"{window.failures} of {window.requests} requests failed, "
                    f"{stable.failures} of {stable.requests} of the stable version",
                )


class _Window:
    """How the latest requests ended."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, bool]] = deque()
        self.failures = 0

    @property
    def requests(self) -> int:
        return len(self._ended)

    @property
    def rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0

    def add(self, now: float, is_failure: bool) -> None:
        self._ended.append((now, is_failure))
        self.failures += is_failure
        if len(self._ended) > _MOST_REQUESTS:
            self._drop()

    def forget(self, before: float) -> None:
        while self._ended and self._ended[0][0] < before:
            self._drop()

    def _drop(self) -> None:
        self.failures -= self._ended.popleft()[1]


def _lower_bound(window: _Window) -> float:
    """Returns what the error rate is at least: Wilson's score interval (JASA 22, 1927)."""
    n, p, z2 = window.requests, window.rate, _Z * _Z
    middle = p + z2 / (2 * n)
    spread = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (middle - spread) / (1 + z2 / n)
