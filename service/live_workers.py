"""Which workers of this server are alive, as the folder of their shared metrics tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector


def list_live_workers(folder: Path) -> list[int]:
    """Returns the process ids of the live workers.

    Each has files for gauges that only count while it lives; `forget_worker` removes them.
    """
    return sorted({int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*.db")})


def forget_worker(folder: Path, pid: int) -> None:
    """Takes a dead worker's live gauges out of the shared metrics; what it counted stays."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


class WorkersCollector(Collector):
    """How many workers there should be and how many there are, read when Prometheus asks."""

    def __init__(self, configured: int, list_pids: Callable[[], list[int]]) -> None:
        """Makes a collector over the live workers that `list_pids` returns at each scrape."""
        self._configured = configured
        self._list_pids = list_pids

    def collect(self) -> Iterator[Metric]:
        """Yields two gauges; an alert compares them."""
        yield GaugeMetricFamily(
            "fivecrop_workers_configured", "Worker processes asked for.", self._configured
        )
        yield GaugeMetricFamily(
            "fivecrop_workers_alive", "Worker processes that run.", len(self._list_pids())
        )
