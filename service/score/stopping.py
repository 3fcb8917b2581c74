"""How a job is asked to stop by SIGINT or SIGTERM, and ends in time whatever it is at."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

# What is at work when a stop is asked for is finished within less, unless something hangs.
STOP_WITHIN_S: Final = 4.0
INTERRUPTED: Final = "stopped before a part was done; --resume goes on, if any was"


@contextmanager
def stoppable() -> Iterator[Callable[[], int | None]]:
    """Gives a function that returns the signal which asked to stop, if one did.

    Who has not asked it yet is starting, has nothing to finish and gets a KeyboardInterrupt at
    once; who does not ask it for too long, because a listing or a store hangs, a little later. A
    second signal finds the handlers of before, so that it ends the program at once.
    """
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    is_at_work = False

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        restore()
        if not is_at_work:
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, STOP_WITHIN_S)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)

    def should_stop() -> int | None:
        nonlocal is_at_work
        is_at_work = True
        return received[0] if received else None

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    try:
        with _guarded(lambda: is_at_work):
            yield should_stop
    finally:
        restore()


@contextmanager
def _guarded(is_at_work: Callable[[], bool]) -> Iterator[None]:
    """Ends a program that is still starting some time after a signal.

    Ray waits in C++ for its own processes, and as long as it does Python runs no handler. Waiting
    for the signal in a thread (`sigwait`) would need it blocked, which every process that is
    started would inherit.
    """
    told = os.dup(2)  # Ray may have taken standard error away
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    is_over = threading.Event()

    def guard() -> None:
        with os.fdopen(reading, "rb", buffering=0) as signals:
            while said := signals.read(1):
                is_meant = said[0] in (signal.SIGINT, signal.SIGTERM)
                if is_meant and not is_at_work() and not is_over.wait(STOP_WITHIN_S):
                    os.write(told, f"{INTERRUPTED}\n".encode())
                    leave(128 + said[0])

    threading.Thread(target=guard, name="fivecrop-stop", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)
        os.close(told)


def leave(code: int) -> NoReturn:
    """Ends the program without taking apart what it holds.

    A Ray that has half started was seen to take 20 s for that. Its processes end with this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
