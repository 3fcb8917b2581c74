"""Runs work that nobody waits for, while the threads that serve have nothing to do.

One thread at the lowest priority of the system, and one piece of work at a time: whoever comes
meanwhile has the processor at once, however long the work takes. A share of the batcher's own
threads would not do: what runs there runs to its end, and others wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

_MOST_WAITING: Final = 16
_MOST_BYTES: Final = 32 * 1024 * 1024
_LOWEST_PRIORITY: Final = 19

Work = Callable[[], None]


class SpareTime:
    """The work that waits, and the thread that does it. For one event loop; starts when used."""

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        """Makes one that does nothing yet; `is_idle` says whether work may be begun."""
        self._is_idle = is_idle
        self._waiting: deque[tuple[Work, int]] = deque()
        self._bytes = 0
        self._is_working = False
        self._tasks: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def offer(self, work: Work, size: int) -> bool:
        """Takes work that holds `size` bytes, unless too much waits already; it must not raise."""
        if len(self._waiting) >= _MOST_WAITING or self._bytes + size > _MOST_BYTES:
            return False
        self._waiting.append((work, size))
        self._bytes += size
        return True

    def go_on(self) -> None:
        """Begins the next work if the moment is right; called whenever it may have come."""
        if self._is_working or not self._waiting or not self._is_idle():
            return
        work, size = self._waiting.popleft()
        self._bytes -= size
        self._is_working = True
        if self._thread is None:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(
                target=self._run, args=(loop,), name="fivecrop-spare-time", daemon=True
            )
            self._thread.start()
        self._tasks.put(work)

    def close(self) -> None:
        """Forgets what waits; what runs is not waited for."""
        self._waiting.clear()
        self._tasks.put(None)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while (work := self._tasks.get()) is not None:
            work()
            del work  # and the image in it
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self._is_working = False
        self.go_on()
