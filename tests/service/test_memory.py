"""Freed blocks go back to the system, whichever way the process was started."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

# In a process of its own, because what glibc learns cannot be unlearned.
PROGRAM = """
import ctypes

from service.memory import give_back_large_blocks

c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
{call}
before = open("/proc/self/statm").read().split()[0]
c.free(c.malloc(30 << 20))  # from here on it would keep blocks of this size
block = c.malloc(20 << 20)
ctypes.memset(ctypes.c_void_p(block), 1, 20 << 20)
c.free(block)
print(int(open("/proc/self/statm").read().split()[0]) - int(before))
"""


def count_pages_kept(call, **environment):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


def test_a_large_block_goes_back_once_it_is_freed():
    kept = 20 << 20 >> 12
    assert count_pages_kept("give_back_large_blocks()") < 0.1 * kept
    # The controls: glibc by itself keeps it, and does so when it was told to.
    assert count_pages_kept("") > 0.9 * kept
    told = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    assert count_pages_kept("give_back_large_blocks()", **told) > 0.9 * kept
