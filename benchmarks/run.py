"""Measures fivecrop, its peers and the limit of the cores, and writes a dated table.

``make bench`` runs this; the models are made on the first run. Everything is measured on the cores
of one machine, load generator included, in alternation: limit, server, limit, server, ... so that a
machine that slows down slows down both. Figures are medians over the rounds with their ranges.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import Bench, CellPlan, Plan
from benchmarks.models import make_models
from benchmarks.photographs import DEFAULT_FOLDER, Photographs, load_photographs
from benchmarks.progress import say
from benchmarks.report import write_report
from benchmarks.rounds import MEMORY_MODEL, PARTS, Selection, measure_throughput
from benchmarks.specs import FIVECROP, PEERS
from service.cores import count_cores

RESULTS_FOLDER = Path("benchmarks/results")
LIBRARIES = (
    *("onnxruntime", "bentoml", "pillow", "numpy", "grpcio", "starlette", "uvicorn", "uvloop"),
    *("mosec", "litserve", "fastapi"),
)
CONCURRENCIES = (1, 8, 32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; returns the exit status."""
    options = _parse(arguments)
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: scripts/install-system-packages.sh wrk")
    plan = _make_plan(quick=options.quick, cores=count_cores(), rounds=options.rounds)
    photographs = load_photographs(options.photographs)
    models = make_models(photographs)
    wanted = Selection(options.only, [model.name for model in models])
    bench = Bench(plan, photographs)
    # The servers under measurement are stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.time()
    facts = _describe_machine(plan, photographs)
    chosen = [model for model in models if wanted.model(model.name)]
    try:
        for model in chosen if wanted.part("throughput") else ():
            measure_throughput(bench, model, wanted)
        for model in chosen if wanted.part("memory") and wanted.server("fivecrop") else ():
            if model.name == MEMORY_MODEL:
                bench.measure_memory(FIVECROP, model)
    except KeyboardInterrupt:
        bench.results.failures.append("interrupted")
    facts |= {"load_average_at_end": os.getloadavg(), "minutes": (time.time() - started) / 60}
    facts["models"] = {model.name: model.describe() for model in chosen}
    path = write_report(options.results, {"facts": facts, **asdict(bench.results)})
    say(f"wrote {path} and {path.with_suffix('.json').name}")
    print(path)
    return 1 if bench.results.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds a cell, one round")
    parser.add_argument("--rounds", type=int, help="rounds of alternation (default 3, quick 1)")
    parser.add_argument(
        "--only",
        default="",
        help="comma-separated names of models, servers "
        f"({', '.join(('fivecrop', *PEERS))}) and parts ({', '.join(PARTS)}) to measure",
    )
    parser.add_argument("--photographs", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--results", type=Path, default=RESULTS_FOLDER)
    return parser.parse_args(arguments)


def _make_plan(*, quick: bool, cores: int, rounds: int | None) -> Plan:
    if quick:
        return Plan(
            cores=cores,
            rounds=rounds or 1,
            cells=CellPlan(concurrencies=CONCURRENCIES, warm_up_seconds=1, seconds=3),
            choice=None,
            limit_seconds=3,
            memory_requests=1_000,
        )
    return Plan(
        cores=cores,
        rounds=rounds or 3,
        cells=CellPlan(concurrencies=CONCURRENCIES, warm_up_seconds=2, seconds=10),
        choice=CellPlan(concurrencies=CONCURRENCIES[1:], warm_up_seconds=1, seconds=4),
        limit_seconds=8,
        memory_requests=10_000,
    )


def _describe_machine(plan: Plan, photographs: Photographs) -> dict[str, Any]:
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":")[1].strip() for line in processors if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.orig_argv),
        "revision": _find_revision(),
        "cores": plan.cores,
        "cpu": named[0] if named else platform.processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "plan": asdict(plan),
        "photographs": photographs.describe(),
        "load_average_at_start": os.getloadavg(),
    }


def _find_revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "uncommitted"


if __name__ == "__main__":
    sys.exit(main())
