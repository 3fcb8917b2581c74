"""Utilisation and memory of the NVIDIA GPUs of this machine, as NVML sees them."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class GpuCollector(Collector):
    """Utilisation and memory of each GPU, read when Prometheus asks; nothing without a GPU."""

    def __init__(self) -> None:
        """Finds the GPUs once."""
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            count = 0
        self._devices = [
            (str(index), pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)
        ]

    def collect(self) -> Iterator[Metric]:
        """Yields the gauges; a GPU that stopped answering is left out, so that its alert fires."""
        if not self._devices:
            return
        busy = GaugeMetricFamily(
            "fivecrop_gpu_utilisation_ratio", "Share of time a kernel ran.", labels=["device"]
        )
        used = GaugeMetricFamily(
            "fivecrop_gpu_memory_used_bytes", "GPU memory in use.", labels=["device"]
        )
        total = GaugeMetricFamily(
            "fivecrop_gpu_memory_total_bytes", "GPU memory installed.", labels=["device"]
        )
        for index, handle in self._devices:
            try:
                rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            except pynvml.NVMLError:
                continue
            busy.add_metric([index], rates.gpu / 100)
            used.add_metric([index], memory.used)
            total.add_metric([index], memory.total)
        yield from (busy, used, total)
