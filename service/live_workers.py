"""Which workers of this server are alive, as the folder of their shared metrics tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector


def list_live_workers(folder: Path) -> list[int]:
    """Returns the process ids of the live workers.

    Each has files for gauges that only count while it lives; `forget_worker` removes them.
    """
    return sorted({int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*.db")})


def count_started_workers(folder: Path | None) -> int:
    """Returns how many workers there ever were; the files of what they counted stay.

    A worker that is alone has no folder, and knows of itself only.
    """
    if folder is None:
        return 1
    return len({path.stem.rpartition("_")[2] for path in folder.glob("counter_*.db")})


def forget_worker(folder: Path, pid: int) -> None:
    """Takes a dead worker's live gauges out of the shared metrics; what it counted stays."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


class WorkersCollector(Collector):
    """How many workers there should be and ever were, read when Prometheus asks."""

    def __init__(self, configured: int, count_started: Callable[[], int]) -> None:
        """Makes a collector over what the functions return at each scrape.

        Args:
            configured: How many workers there should be.
            count_started: How many there ever were.
        """
        self._configured = configured
        self._count_started = count_started

    def collect(self) -> Iterator[Metric]:
        """Yields a gauge and a counter."""
        yield GaugeMetricFamily(
            "fivecrop_workers_configured", "Worker processes asked for.", self._configured
        )
        yield CounterMetricFamily(
            "fivecrop_worker_starts", "Worker processes there ever were.", self._count_started()
        )
