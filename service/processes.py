"""CPU, memory and open files of a server's worker processes, summed when Prometheus asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

# A sum over workers means something for these; the earliest start is the server's.
_SUMMED = {
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_cpu_seconds",
    "process_open_fds",
    "process_max_fds",
}


def this_process() -> list[int]:
    """Returns the process id of this process, for a server of one worker."""
    return [os.getpid()]


class ProcessesCollector(Collector):
    """The usual `process_*` metrics, of all workers of one server together."""

    def __init__(self, list_pids: Callable[[], Iterable[int]] = this_process) -> None:
        """Makes a collector over the processes that `list_pids` returns at each scrape."""
        self._list_pids = list_pids

    def collect(self) -> Iterator[Metric]:
        """Yields each metric once; a process that has just ended adds nothing."""
        sums: dict[str, Metric] = {}
        for pid in self._list_pids():
            collector = ProcessCollector(pid=partial(int, pid), registry=None)
            for metric in collector.collect():
                name = metric.name
                if name not in sums:
                    sums[name] = metric
                elif metric.samples:
                    old, new = sums[name].samples[0], metric.samples[0]
                    value = old.value + new.value if name in _SUMMED else min(old.value, new.value)
                    sums[name].samples[0] = old._replace(value=value)
        yield from sums.values()
