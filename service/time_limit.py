"""One limit on the time of many awaits, for a single timer.

`asyncio.timeout` sets and cancels a timer for each await, 39 us under uvloop, where most awaits
are over at once. Here all limits of one kind are equally long, so those that began first end
first, and one timer looks after all of them.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class TimeLimit:
    """Makes limits of the same length: `with time_limit.start(): await ...`. For one event loop."""

    def __init__(self, seconds: float) -> None:
        """Takes the seconds that each may take."""
        self._seconds = seconds
        self._running: dict[_Running, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> _Running:
        """Returns a context whose body is cancelled, and then raises TimeoutError, when late."""
        return _Running(self)

    def _enter(self, one: _Running) -> None:
        loop = asyncio.get_running_loop()
        one.ends = loop.time() + self._seconds
        self._running[one] = None
        if self._timer is None:
            self._timer = loop.call_at(one.ends, self._look, loop)

    def _leave(self, one: _Running) -> None:
        self._running.pop(one, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends what is late, and sets the timer to the one that is next."""
        self._timer = None
        now = loop.time()
        for one in list(self._running):
            if one.ends > now:
                self._timer = loop.call_at(one.ends, self._look, loop)
                return
            del self._running[one]
            one.cancel()


class _Running:
    """One await with a limit."""

    __slots__ = ("_cancelling", "_is_late", "_limit", "_task", "ends")

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit
        self._is_late = False
        self.ends = 0.0

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._limit._enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._limit._leave(self)
        if not self._is_late:
            return
        # As asyncio.timeout does: somebody else may have cancelled the task as well.
        is_ours = self._task.uncancel() <= self._cancelling
        if is_ours and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def cancel(self) -> None:
        """Ends the await."""
        self._is_late = True
        self._task.cancel()
