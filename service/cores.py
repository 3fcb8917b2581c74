"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the cores this process may run on, at least 1.

    A container's CPU quota counts: a pod limited to 2 CPUs of a 64-core node would otherwise start
    64 threads and be throttled. Reads cgroup v2's `cpu.max` and v1's `cpu.cfs_quota_us`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _read_quota(cgroup)
    return max(1, min(cores or 1, round(quota)) if quota is not None else cores or 1)


def _read_quota(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
