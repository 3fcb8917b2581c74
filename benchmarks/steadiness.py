"""Measures whether offline scoring keeps its pace: CPU time an image in each fifth of a job.

``python -m benchmarks.steadiness --images 2000`` scores the photographs again and again with one
model and prints what an image cost in the first to the last fifth, and the memory at its end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.models import make_models
from benchmarks.photographs import BENCH_FOLDER, DEFAULT_FOLDER, load_photographs
from benchmarks.process_tree import read_cpu_seconds, read_pss_bytes

FIFTHS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each fifth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--model", default="mobilenet-v2")
    options = parser.parse_args(arguments)
    photographs = load_photographs(options.photographs)
    (model,) = (one for one in make_models(photographs) if one.name == options.model)
    names = [str(path.resolve()) for path in photographs.paths]
    listed = (BENCH_FOLDER / "steadiness.txt").resolve()
    listed.write_text("".join(f"{names[i % len(names)]}\n" for i in range(options.images)))
    out = BENCH_FOLDER / "steadiness"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("fivecrop")), "score", str(listed), "--json"]
    command += ["--model", model.name, "--model-repository", str(model.repository)]
    seen = []
    with subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        for line in job.stdout:
            event = json.loads(line)
            if event["event"] == "progress":
                use = read_cpu_seconds(job.pid), read_pss_bytes(job.pid) / 1e6
                seen.append((event["done"], *use))
    done, cpu_seconds, megabytes = zip(*seen, strict=True)
    # From the first event on: what is before it is the start.
    edges = np.linspace(done[0], done[-1], FIFTHS + 1)
    seconds, memory = np.interp(edges, done, cpu_seconds), np.interp(edges, done, megabytes)
    print("| images | CPU-ms an image | MB |\n|---|---|---|")
    for (start, stop), (before, after), at_end in zip(
        pairwise(edges), pairwise(seconds), memory[1:], strict=True
    ):
        cpu_ms = (after - before) / (stop - start) * 1000
        print(f"| {start:,.0f} to {stop:,.0f} | {cpu_ms:.1f} | {at_end:.0f} |")


if __name__ == "__main__":
    main()
