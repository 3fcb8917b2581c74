"""Stands in for NVIDIA's library: a machine with one GPU of 80 GiB that does nothing."""

# The names are NVIDIA's.
# ruff: noqa: N802

from types import SimpleNamespace


class NVMLError(Exception):
    pass


def nvmlInit():
    pass


def nvmlDeviceGetCount():
    return 1


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetUtilizationRates(handle):
    return SimpleNamespace(gpu=0)


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(used=0, total=80 << 30)
