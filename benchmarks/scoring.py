"""Measures offline scoring beside the limit of the cores and the loop that people write.

``python -m benchmarks.scoring`` scores the photographs again and again, by ``fivecrop score`` on
its own workers and on Ray, by a DataLoader in front of ONNX Runtime and by Ray Data, in alternation
with the tight loops of ``benchmarks.limit``, and prints a table of medians and ranges. CPU times
are of a whole process tree; what a program costs before its first image is taken off by a run over
few images, and shown as its start. Without Ray (``make .venv/.ray``) its two programs are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.limit import Limit, measure_limit
from benchmarks.models import BenchModel, make_models
from benchmarks.photographs import BENCH_FOLDER, DEFAULT_FOLDER, load_photographs
from benchmarks.process_tree import TreeUse
from benchmarks.progress import say
from service.cores import count_cores

FEW = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One program over some photographs; CPU time and peak memory of its whole process tree."""

    images: int
    images_per_second: float
    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A program in one round, its start taken off."""

    efficiency: float
    cpu_efficiency: float
    images_per_second: float
    cpu_ms: float
    start_s: float
    start_cpu_s: float
    peak_mb: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--images", type=int, help="(default 600, quick 60)")
    parser.add_argument("--rounds", type=int, help="(default 3, quick 1)")
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--programs", nargs="*", choices=list(_PROGRAMS), default=list(_PROGRAMS))
    parser.add_argument("--quick", action="store_true", help="whether it works, no figures")
    options = parser.parse_args(arguments)
    images = options.images or (60 if options.quick else 600)
    rounds = options.rounds or (1 if options.quick else 3)
    photographs = load_photographs(options.photographs)
    models = [
        model
        for model in make_models(photographs)
        if not options.models or model.name in options.models
    ]
    lists = {}
    for count in (FEW, images):
        lists[count] = (BENCH_FOLDER / f"scoring-{count}.txt").resolve()
        names = [str(path.resolve()) for path in photographs.paths]
        lists[count].write_text("".join(f"{names[i % len(names)]}\n" for i in range(count)))
    print(
        "| model | program | efficiency | the same by CPU time | images/s | CPU-ms | start | MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model in models:
        _measure(model, photographs.folder, lists, rounds, options.programs)


def _measure(
    model: BenchModel, folder: Path, lists: dict[int, Path], rounds: int, chosen: list[str]
) -> None:
    programs = dict(_PROGRAMS[name] for name in chosen)
    if importlib.util.find_spec("ray") is None:
        say("Ray is not installed: `fivecrop score --engine ray` and Ray Data are left out")
        for name in ("ray", "ray-data"):
            programs.pop(_PROGRAMS[name][0], None)
    found: dict[str, list[Result]] = {name: [] for name in programs}
    few, many = sorted(lists)
    for number in range(rounds):
        say(f"{model.name}: round {number + 1}")
        before = _limit(model, folder)
        for name, run in programs.items():
            try:
                start = run(model, lists[few])
                whole = run(model, lists[many])
            except RuntimeError as error:
                say(f"{name}: {error}; left out of this round")
                continue
            after = _limit(model, folder)
            found[name].append(_compare(start, whole, (before, after)))
            before = after
    for name, results in found.items():
        if results:
            print(_line(model.name, name, results), flush=True)


def _limit(model: BenchModel, folder: Path) -> Limit:
    return measure_limit(model.folder, folder, seconds=6.0, cores=count_cores())


def _compare(start: Run, whole: Run, limits: tuple[Limit, Limit]) -> Result:
    cpu_ms = (whole.cpu_seconds - start.cpu_seconds) / (whole.images - start.images) * 1000
    return Result(
        efficiency=whole.images_per_second
        / statistics.mean(limit.images_per_second for limit in limits),
        cpu_efficiency=statistics.mean(limit.cpu_ms for limit in limits) / cpu_ms,
        images_per_second=whole.images_per_second,
        cpu_ms=cpu_ms,
        start_s=whole.seconds - whole.images / whole.images_per_second,
        start_cpu_s=start.cpu_seconds - start.images * cpu_ms / 1000,
        peak_mb=whole.peak_mb,
    )


def _line(model: str, name: str, results: list[Result]) -> str:
    def show(attribute: str, digits: int) -> str:
        values = sorted(getattr(one, attribute) for one in results)
        median, low, high = statistics.median(values), values[0], values[-1]
        return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    cells = [
        *(show("efficiency", 2), show("cpu_efficiency", 2), show("images_per_second", 1)),
        *(show("cpu_ms", 1), f"{show('start_s', 1)} s, CPU {show('start_cpu_s', 1)} s"),
        show("peak_mb", 0),
    ]
    return f"| {model} | {name} | {' | '.join(cells)} |"


def _score(model: BenchModel, photographs: Path, *, engine: str) -> Run:
    out = BENCH_FOLDER / "scores"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("fivecrop")), "score", str(photographs)]
    command += ["--model", model.name, "--model-repository", str(model.repository)]
    command += ["--engine", engine]
    shown, seconds, cpu_seconds, peak_mb = _run([*command, "--out", str(out), "--json"])
    facts = json.loads(shown.splitlines()[-1])
    if facts["errors"]:
        raise RuntimeError(f"{facts['errors']} photographs failed")
    return Run(
        images=facts["done"],
        images_per_second=facts["images_per_second"],
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_mb=peak_mb,
    )


def _loop(model: BenchModel, photographs: Path, *, module: str) -> Run:
    preprocess = model.manifest.preprocess
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", str(model.onnx_path)]
    command += [str(photographs), str(BENCH_FOLDER / "loop.csv")]
    command += ["--resize", str(preprocess.resize.size), "--crop", str(preprocess.crop.height)]
    shown, seconds, cpu_seconds, peak_mb = _run(command)
    facts = json.loads(shown)
    return Run(
        images=facts["images"],
        images_per_second=facts["images"] / facts["seconds"],
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_mb=peak_mb,
    )


def _run(command: list[str]) -> tuple[str, float, float, float]:
    """Returns what a program printed, its time, its tree's CPU time and peak memory (PSS)."""
    started = time.monotonic()
    environment = {
        **os.environ,
        "ORT_DISABLE_TELEMETRY": "1",
        # On a busy machine Ray gives up on itself before it has started.
        "RAY_raylet_start_wait_time_s": "120",
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with TreeUse(process.pid) as use:
        shown = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{command[:4]} ended with {process.returncode}")
    # Both are what was seen at least.
    cpu_seconds = max(usage.ru_utime + usage.ru_stime, use.cpu_seconds)
    return shown, seconds, cpu_seconds, use.peak_bytes / 1e6


_PROGRAMS: dict[str, tuple[str, Callable[[BenchModel, Path], Run]]] = {
    "local": ("fivecrop score", partial(_score, engine="local")),
    "loop": ("DataLoader + ONNX Runtime", partial(_loop, module="dataloader_loop")),
    "ray": ("fivecrop score --engine ray", partial(_score, engine="ray")),
    "ray-data": ("Ray Data", partial(_loop, module="ray_data_loop")),
}

if __name__ == "__main__":
    main()
