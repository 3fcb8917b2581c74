"""Part files: what reading one leaves behind in the process."""

from __future__ import annotations

import subprocess
import sys

from service.score.part_format import encode_part

_READ = """
import os, sys
from service.score.part_format import read_part
from service.score.tables import import_pyarrow

import_pyarrow()
data = open(sys.argv[1], "rb").read()
before = len(os.listdir("/proc/self/task"))
rows = read_part(data, "parquet", ["id", "path"])
print(len(rows), len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_a_part_starts_no_threads(tmp_path):
    """One that still held the bytes when Python ended aborted 1 of 40 commands."""
    part = tmp_path / "part.parquet"
    part.write_bytes(encode_part({"id": [0, 1], "path": ["a", "b"], "score": [0.5, 1]}, "parquet"))
    shown = subprocess.run(
        [sys.executable, "-c", _READ, part], capture_output=True, check=True, text=True
    ).stdout
    assert shown.split() == ["2", "0"]
