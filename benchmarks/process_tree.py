"""What a server's whole process tree uses: CPU time and memory, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
IDLE_WINDOW_S = 0.25


def list_tree(root_pid: int) -> list[int]:
    """Returns the pids of a process and all its descendants that are alive."""
    try:
        root = psutil.Process(root_pid)
        return [root_pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def read_cpu_seconds(root_pid: int) -> float:
    """Returns the CPU seconds, user and system, that the tree has used since its start.

    Children that ended count through their parent (cutime and cstime), so a difference of two
    readings misses nothing.
    """
    return sum(sum(times) for _, times in _read_cpu_times(root_pid)) / TICKS_PER_SECOND


def _read_cpu_times(root_pid: int) -> Iterator[tuple[int, list[int]]]:
    """Yields each process of the tree with its utime, stime, cutime and cstime, in ticks."""
    for pid in list_tree(root_pid):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield pid, [int(field) for field in stat.rpartition(")")[2].split()[11:15]]


def read_thread_cpu_seconds(root_pid: int) -> dict[int, float]:
    """Returns the CPU seconds of each thread of the tree that is alive, by its id, to the us."""
    seconds = {}
    for pid in list_tree(root_pid):
        for folder in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                seconds[int(folder.name)] = int((folder / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def read_pss_bytes(root_pid: int) -> int:
    """Returns the tree's proportional set size: shared pages count once, split among sharers."""
    return sum(read_pss_by_process(root_pid))


def read_pss_by_process(root_pid: int) -> list[int]:
    """Returns the proportional set size, in bytes, of each process of the tree, largest first."""
    sizes = []
    for pid in list_tree(root_pid):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        kilobytes = [int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"]
        sizes.extend(size * 1024 for size in kilobytes)
    return sorted(sizes, reverse=True)


def await_idle(root_pid: int, *, timeout_s: float = 20.0) -> None:
    """Waits until the tree has finished what an earlier client left in flight.

    Idle is less than a fifth of a core; some servers poll and never use nothing.
    """
    deadline = time.monotonic() + timeout_s
    used = read_cpu_seconds(root_pid)
    while time.monotonic() < deadline:
        time.sleep(IDLE_WINDOW_S)
        before, used = used, read_cpu_seconds(root_pid)
        if used - before < IDLE_WINDOW_S / 5:
            return


class PeakMemory:
    """Context manager: the largest memory of a tree, sampled twice a second."""

    def __init__(self, root_pid: int, interval_s: float = 0.5) -> None:
        self._root_pid = root_pid
        self._interval_s = interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._sample()

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, read_pss_bytes(self._root_pid))

    def _watch(self) -> None:
        while not self._is_over.wait(self._interval_s):
            self._sample()


class TreeUse(PeakMemory):
    """Context manager: also the CPU time of a tree, as far as samples saw it.

    For programs whose processes nobody waits for, so that their parents do not count them, as those
    of Ray; what a process does after its last sample is missed.
    """

    def __init__(self, root_pid: int, interval_s: float = 0.5) -> None:
        super().__init__(root_pid, interval_s)
        self._seconds: dict[int, float] = {}

    @property
    def cpu_seconds(self) -> float:
        return sum(self._seconds.values())

    def _sample(self) -> None:
        super()._sample()
        for pid, (user, system, *_) in _read_cpu_times(self._root_pid):
            self._seconds[pid] = (user + system) / TICKS_PER_SECOND
