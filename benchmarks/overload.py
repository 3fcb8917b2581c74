"""Measures what an overload does to goodput: at the peak, at 2 and at 10 times the peak, after it.

``python -m benchmarks.overload`` pins the server to all cores but the last and the load to the last
one. Each overload stands between two measurements of the peak, and only its ratio to their mean is
reported, because the cores are shared. Goodput is answers with 200 within the deadline, a second.

Targets (`targets.py`), medians of our own rounds by the clock: goodput of at least 0.90 of the peak
at 2 times and 0.80 at 10 times, rejects' p99 within 50 ms, recovery within 5 s. Ends with 1 when
one is missed, which means something on a quiet machine alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import SHIPPED_REPOSITORY, load_model, make_models
from benchmarks.open_loop import PATIENCE_S, Plan
from benchmarks.photographs import DEFAULT_FOLDER, load_photographs
from benchmarks.process_tree import await_idle, read_cpu_seconds
from benchmarks.progress import say
from benchmarks.servers import Server, run_server
from benchmarks.specs import FIVECROP, PEERS, ServerSpec, make_peer
from benchmarks.targets import check_overload

RESULTS_FOLDER = Path("benchmarks/results")
# Enough to keep every core busy; with a deadline that no answer misses, for the capacity alone.
PEAK_CONNECTIONS = 8
PEAK_TIMEOUT_MS = 30_000.0
MAX_CONNECTIONS = 4_000
CALM_LOAD = 0.5
CALM_SECONDS = 8.0
MOST_RATE = 5_000.0


class Overload:
    """Drives one server and keeps what came of each part."""

    def __init__(self, server: Server, listing: Path, options: argparse.Namespace) -> None:
        self._server = server
        self._listing = listing
        self._options = options
        self._seed = 0
        self.parts: list[dict[str, Any]] = []

    def run(self) -> None:
        """Measures every round: peak, overload, calm, peak, ..."""
        self._measure_peak()  # warms up; forgotten
        self.parts.clear()
        for _ in range(self._options.rounds):
            for factor in self._options.factors:
                before = self._measure_peak()
                load = self._drive(rate=min(MOST_RATE, factor * _goodput(before)))
                calm = self._drive(rate=CALM_LOAD * _goodput(before), seconds=CALM_SECONDS)
                await_idle(self._server.pid)
                after = self._measure_peak()
                self._note(factor, before, after, load, calm)

    def _measure_peak(self) -> dict[str, Any]:
        await_idle(self._server.pid)
        return self._drive(rate=None)

    def _drive(self, rate: float | None, seconds: float | None = None) -> dict[str, Any]:
        self._seed += 1
        plan: dict[str, Any] = {
            "port": self._server.http_port,
            "path": self._server.spec.path,
            "form_field": self._server.spec.form_field,
            "listing": str(self._listing),
            "rate": rate,
            "seconds": seconds or self._options.seconds,
            "timeout_ms": PEAK_TIMEOUT_MS if rate is None else self._options.timeout_ms,
            "connections": PEAK_CONNECTIONS if rate is None else MAX_CONNECTIONS,
            "seed": self._seed,
        }
        Plan(**plan)
        cpu_before = read_cpu_seconds(self._server.pid)
        with _affinity(client_cores()):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.open_loop", json.dumps(plan)],
                capture_output=True,
                text=True,
                check=True,
                timeout=plan["seconds"] + plan["timeout_ms"] / 1000 + PATIENCE_S + 60,
            )
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1].removeprefix("JSON "))
        seen["server_cpu_seconds"] = read_cpu_seconds(self._server.pid) - cpu_before
        return seen

    def _note(
        self,
        factor: float,
        before: dict[str, Any],
        after: dict[str, Any],
        load: dict[str, Any],
        calm: dict[str, Any],
    ) -> None:
        peak = (_goodput(before) + _goodput(after)) / 2
        peak_a_cpu_s = (_goodput_a_cpu_s(before) + _goodput_a_cpu_s(after)) / 2
        rejects = sorted(ms for _, ms in load["rejected"])
        good = sorted(ms for _, ms in load["good"])
        bad = [*calm["failed"], *(at for at, _ in (*calm["rejected"], *calm["late"]))]
        part = {
            "factor": factor,
            "peak_before": _goodput(before),
            "peak_after": _goodput(after),
            "offered": load["sent"] / load["seconds"],
            "goodput_ratio": _goodput(load) / peak,
            "goodput_a_cpu_s_ratio": _goodput_a_cpu_s(load) / peak_a_cpu_s,
            "late": len(load["late"]),
            "failed": len(load["failed"]),
            "statuses": load["statuses"],
            "good_p99_ms": _quantile(good, 0.99),
            "rejects": len(rejects),
            "reject_p50_ms": _quantile(rejects, 0.5),
            "reject_p99_ms": _quantile(rejects, 0.99),
            "lag_p99_ms": _quantile(sorted(load["lags_ms"]), 0.99),
            "retry_after_s": sorted(set(load["retry_after_s"])),
            "recovery_s": max(bad, default=0.0),
            "client_cpu_share": load["cpu_seconds"] / load["seconds"],
            "server_cpu_seconds": load["server_cpu_seconds"],
        }
        self.parts.append(part)
        say(
            f"{self._server.spec.name} x{factor:g}, offered {part['offered']:.0f}/s: goodput "
            f"{part['goodput_ratio']:.0%} of the peak ({part['peak_before']:.0f} and "
            f"{part['peak_after']:.0f}/s), a CPU-second {part['goodput_a_cpu_s_ratio']:.0%}; "
            f"accepted p99 {part['good_p99_ms']:.0f} ms; rejects p50 {part['reject_p50_ms']:.1f}, "
            f"p99 {part['reject_p99_ms']:.1f} ms; late {part['late']}, failed {part['failed']}; "
            f"send lag p99 {part['lag_p99_ms']:.1f} ms; recovered after {part['recovery_s']:.1f} s"
        )


def _goodput(seen: dict[str, Any]) -> float:
    return float(len(seen["good"]) / seen["seconds"])


def _goodput_a_cpu_s(seen: dict[str, Any]) -> float:
    """Returns good answers for a CPU-second of the server, which neighbours cannot change."""
    return float(len(seen["good"]) / max(0.01, seen["server_cpu_seconds"]))


def server_cores() -> set[int]:
    """Returns the cores that the server gets: all but the last."""
    cores = sorted(_ALL_CORES)
    return set(cores[:-1]) or set(cores)


def client_cores() -> set[int]:
    """Returns the core that the load gets."""
    return {max(_ALL_CORES)}


_ALL_CORES = frozenset(os.sched_getaffinity(0))


@contextlib.contextmanager
def _affinity(cores: set[int]) -> Iterator[None]:
    """Lets this process, and so those that it starts, run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for and writes a dated file."""
    options = _parse(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    photographs = load_photographs(options.photographs)
    listing = photographs.write_list()
    if options.repository is None:
        make_models(photographs)
    model = load_model(options.repository or Path(".bench/models"), options.model)
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.overload {' '.join(arguments or sys.argv[1:])}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {len(_ALL_CORES)} cores, load {os.getloadavg()}",
        "model": model.name,
        "servers": {},
    }
    for spec in _specs(options.servers):
        with _affinity(server_cores()):
            context = run_server(spec, model, photographs.bodies[0])
            server = context.__enter__()
        try:
            overload = Overload(server, listing, options)
            overload.run()
        finally:
            context.__exit__(None, None, None)
        results["servers"][spec.name] = overload.parts
    targets = check_overload(results["servers"].get(FIVECROP.name, []))
    results["targets"] = [dataclasses.asdict(target) for target in targets]
    _report(results)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M%S")
    path = options.results / f"overload-{stamp}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)
    return 0 if all(target.is_met for target in targets) else 1


def _specs(names: Sequence[str]) -> list[ServerSpec]:
    return [FIVECROP if name == "fivecrop" else make_peer(name, **PEERS[name][0]) for name in names]


def _report(results: dict[str, Any]) -> None:
    for name, parts in results["servers"].items():
        for factor in sorted({part["factor"] for part in parts}):
            chosen = [part for part in parts if part["factor"] == factor]
            columns = (
                "goodput_ratio",
                "goodput_a_cpu_s_ratio",
                "good_p99_ms",
                "reject_p99_ms",
                "recovery_s",
                "lag_p99_ms",
            )
            figures = []
            for column in columns:
                values = [part[column] for part in chosen]
                spread = f"{min(values):.2f}-{max(values):.2f}"
                figures.append(f"{column} {statistics.median(values):.2f} ({spread})")
            say(f"{name} x{factor:g}, {len(chosen)} rounds: {', '.join(figures)}")
    for target in results["targets"]:
        mark = "met" if target["is_met"] else "MISSED"
        say(f"{mark}: {target['name']} {target['measured']} (wanted {target['wanted']})")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--model", help="default mobilenet-v2, quick cifar10-airbench")
    parser.add_argument(
        "--repository",
        type=Path,
        help="default that of all benchmarks, quick the shipped one",
    )
    parser.add_argument("--servers", nargs="+", default=["fivecrop"], help="fivecrop or a peer")
    parser.add_argument(
        "--quick", action="store_true", help="one round of seconds, the shipped model"
    )
    parser.add_argument("--rounds", type=int, help="default 3, quick 1")
    parser.add_argument("--factors", type=float, nargs="+", default=[2.0, 10.0])
    parser.add_argument("--seconds", type=float, help="of each load; default 8, quick 2")
    parser.add_argument("--timeout-ms", type=float, default=1000.0)
    parser.add_argument("--photographs", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--results", type=Path, default=RESULTS_FOLDER)
    given = parser.parse_args(arguments)
    rounds, seconds = (1, 2.0) if given.quick else (3, 8.0)
    if given.repository is None and given.quick and given.model is None:
        given.repository, given.model = SHIPPED_REPOSITORY, "cifar10-airbench"
    given.model = given.model or "mobilenet-v2"
    given.rounds = rounds if given.rounds is None else given.rounds
    given.seconds = seconds if given.seconds is None else given.seconds
    return given


if __name__ == "__main__":
    raise SystemExit(main())
