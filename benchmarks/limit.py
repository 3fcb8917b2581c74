"""The limit: what these cores can do when nothing but the unavoidable work is done.

One process a core, each in a tight loop of decode + resize + infer over the same photographs, with
the code that the service runs (``service.bundle.preprocess`` and ``service.engine``): no server, no
queue, no JSON. Started as a process of its own: ``python -m benchmarks.limit BUNDLE PHOTOGRAPHS``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue

from benchmarks.photographs import Photographs, load_photographs
from service.bundle.decode import Limits
from service.bundle.preprocess import prepare
from service.bundle.repository import read_bundle
from service.engine import Engine

WARM_UP_IMAGES = 10
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What the tight loops did together; CPU times are a process's own, a photograph.

    Attributes:
        cpu_share: CPU time over time, 0 to 1 a process: what the rest of the machine left to them.
    """

    processes: int
    images: int
    images_per_second: float
    cpu_share: float
    cpu_ms: float
    prepare_cpu_ms: float
    infer_cpu_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """What one process did between the barrier and its deadline."""

    images: int
    seconds: float
    cpu_seconds: float
    prepare_cpu_seconds: float


def measure_limit(bundle_folder: Path, photographs: Path, *, seconds: float, cores: int) -> Limit:
    """Returns the limit for a bundle, measured by a fresh process tree."""
    command = [sys.executable, "-m", "benchmarks.limit", str(bundle_folder), str(photographs)]
    command += ["--seconds", str(seconds), "--processes", str(cores)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 90, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the limit loop failed: {done.stderr[-2000:]}")
    return Limit(**json.loads(done.stdout))


def run_loop(
    bundle_folder: Path,
    photographs: Photographs,
    seconds: float,
    barrier: Barrier,
    results: Queue[LoopResult],
) -> None:
    """Puts what one process managed in ``seconds`` after all of them were warm."""
    bundle = read_bundle(bundle_folder)
    variant = bundle.variant("fp32")
    if variant is None:
        raise ValueError(f"{bundle.reference} has no fp32 variant")
    engine = Engine(bundle_folder / variant.file, provider="cpu")
    limits = Limits()
    bodies = photographs.bodies

    def classify(body: bytes) -> float:
        started = time.process_time()
        views = prepare(body, bundle.manifest.preprocess, limits=limits).views
        prepared = time.process_time()
        engine.run(views)
        return prepared - started

    for body in bodies[:WARM_UP_IMAGES]:
        classify(body)
    barrier.wait(START_TIMEOUT_S)
    images, prepare_cpu_seconds = 0, 0.0
    cpu_started, started = time.process_time(), time.monotonic()
    while time.monotonic() - started < seconds:
        prepare_cpu_seconds += classify(bodies[images % len(bodies)])
        images += 1
    results.put(
        LoopResult(
            images=images,
            seconds=time.monotonic() - started,
            cpu_seconds=time.process_time() - cpu_started,
            prepare_cpu_seconds=prepare_cpu_seconds,
        )
    )


def run_loops(bundle_folder: Path, folder: Path, *, seconds: float, processes: int) -> Limit:
    """Returns what ``processes`` tight loops did at the same time."""
    context = multiprocessing.get_context("spawn")
    photographs = load_photographs(folder)
    barrier, results = context.Barrier(processes), context.Queue()
    loops = [
        context.Process(
            target=run_loop, args=(bundle_folder, photographs, seconds, barrier, results)
        )
        for _ in range(processes)
    ]
    for loop in loops:
        loop.start()
    done: list[LoopResult] = [results.get(timeout=seconds + START_TIMEOUT_S) for _ in loops]
    for loop in loops:
        loop.join()
    images = sum(result.images for result in done)
    cpu_seconds = sum(result.cpu_seconds for result in done)
    prepare_cpu_seconds = sum(result.prepare_cpu_seconds for result in done)
    return Limit(
        processes=processes,
        images=images,
        images_per_second=sum(result.images / result.seconds for result in done),
        cpu_share=cpu_seconds / sum(result.seconds for result in done),
        cpu_ms=cpu_seconds / images * 1000,
        prepare_cpu_ms=prepare_cpu_seconds / images * 1000,
        infer_cpu_ms=(cpu_seconds - prepare_cpu_seconds) / images * 1000,
    )


def main() -> None:
    """Prints the limit as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    limit = run_loops(
        options.bundle, options.photographs, seconds=options.seconds, processes=options.processes
    )
    print(json.dumps(asdict(limit)))


if __name__ == "__main__":
    main()
