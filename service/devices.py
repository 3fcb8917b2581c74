"""The GPUs of this machine, as this process may use them."""

from __future__ import annotations

import ctypes


def count_gpus() -> int:
    """Returns the number of GPUs after CUDA_VISIBLE_DEVICES; 0 where there is no driver.

    Asks the driver, not NVML: NVML counts every GPU of the machine, whatever the process may see.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    has_failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if has_failed else count.value


def choose_gpu(worker_index: int, gpus: int) -> int:
    """Returns the GPU of a worker, counted from 1: workers take turns over the GPUs."""
    return (worker_index - 1) % max(gpus, 1)
