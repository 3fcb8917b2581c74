"""A job as a program of its own, for tests that kill it; `COUNT_FILE` gets a byte an image scored.

With variables in the environment it lacks what makes it safe, as a control: NAIVE writes files in
place, as most people do; UNLOCKED takes no lock; DEAF has no handlers of signals; BEGUN counts as
at work from its start; PATIENT waits for ever when it is stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from service import score_command
from service.cli import main
from service.score import folder, lock, pool, stopping

WORKER = """
import os
from service.score import scorer, worker
score = scorer.Scorer.score
count = open(os.environ["COUNT_FILE"], "ab", 0)
def score_and_count(self, entry, data):
    count.write(b".")
    return score(self, entry, data)
scorer.Scorer.score = score_and_count
worker.main()
"""


def write_in_place(self, name, data):
    with (Path(self.address) / name).open("wb", 0) as file:
        file.write(data[: len(data) // 2])
        time.sleep(0.05)
        file.write(data[len(data) // 2 :])


stoppable = score_command.stoppable


@contextlib.contextmanager
def begun():
    with stoppable() as should_stop:
        should_stop()
        yield should_stop


if __name__ == "__main__":
    if "COUNT_FILE" in os.environ:
        pool.COMMAND = (sys.executable, "-c", WORKER)
    if "NAIVE" in os.environ:
        folder.LocalFolder.write = write_in_place
    if "UNLOCKED" in os.environ:
        lock.Lock.acquire = lambda _: None
    if "DEAF" in os.environ:
        score_command.stoppable = lambda: contextlib.nullcontext(lambda: None)
        # A shell that starts tests in the background has them ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "BEGUN" in os.environ:
        score_command.stoppable = begun
    if "PATIENT" in os.environ:
        stopping.STOP_WITHIN_S = 3600.0
    main(["score", *sys.argv[1:]])
