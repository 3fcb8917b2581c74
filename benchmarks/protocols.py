"""Measures what each protocol costs the server: CPU time of a request, against /v1/classify.

``python -m benchmarks.protocols`` sends the same photographs to one server by each protocol in
turn, many short rounds, every other one backwards. A request's CPU time moves with the neighbours
of the machine, so each is compared with the /v1/classify of its own round; medians and quartiles.
The edge is what is left without the threads that decode and run models, which are the busiest, as
many as there are cores: most of the noise is theirs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import Load, run_grpc, run_wrk
from benchmarks.models import SHIPPED_REPOSITORY, load_model
from benchmarks.photographs import DEFAULT_FOLDER, load_photographs
from benchmarks.process_tree import await_idle, read_cpu_seconds, read_thread_cpu_seconds
from benchmarks.progress import say
from benchmarks.servers import Server, run_server
from benchmarks.specs import FIVECROP
from service.cores import count_cores

RESULTS_FOLDER = Path("benchmarks/results")
REFERENCE = "/v1/classify"

Drive = Callable[..., Load]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU-milliseconds of a request: of the server's process tree, and of its edge alone."""

    total: float
    edge: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and reports; returns the exit status."""
    options = _parse(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    photographs = load_photographs(options.photographs)
    model = load_model(options.repository, options.model)
    rounds: list[dict[str, Cost]] = []
    with run_server(FIVECROP, model, photographs.bodies[0]) as server:
        protocols = _protocols(server, model.name, photographs.write_list())
        for drive in protocols.values():
            drive(concurrency=options.concurrency, seconds=1)
        for round_ in range(options.rounds):
            names = list(protocols) if round_ % 2 == 0 else list(reversed(protocols))
            rounds.append({name: _measure(server, protocols[name], options) for name in names})
    _report(rounds)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M%S")
    path = options.results / f"protocols-{stamp}.json"
    facts: dict[str, Any] = {
        "model": model.describe(),
        "photographs": photographs.describe(),
        "concurrency": options.concurrency,
        "load_average": os.getloadavg(),
    }
    cpu_ms = [{name: asdict(cost) for name, cost in one.items()} for one in rounds]
    path.write_text(json.dumps({"facts": facts, "cpu_ms": cpu_ms}, indent=1) + "\n")
    print(path)
    return 0


def _protocols(server: Server, model: str, listing: Path) -> dict[str, Drive]:
    http = f"http://127.0.0.1:{server.http_port}"
    grpc = f"127.0.0.1:{server.grpc_port}"
    return {
        REFERENCE: partial(run_wrk, url=f"{http}{REFERENCE}", form_field="raw", listing=listing),
        "v2 REST, raw request": partial(
            run_wrk, url=f"{http}/v2/models/{model}/infer", form_field="v2", listing=listing
        ),
        "gRPC Classify": partial(run_grpc, target=grpc, listing=listing),
        "v2 gRPC, raw contents": partial(run_grpc, target=grpc, listing=listing, v2_model=model),
    }


def _measure(server: Server, drive: Drive, options: argparse.Namespace) -> Cost:
    await_idle(server.pid)
    before, threads_before = read_cpu_seconds(server.pid), read_thread_cpu_seconds(server.pid)
    load = drive(concurrency=options.concurrency, seconds=options.seconds)
    after, threads = read_cpu_seconds(server.pid), read_thread_cpu_seconds(server.pid)
    used = sorted(seconds - threads_before.get(thread, 0.0) for thread, seconds in threads.items())
    return Cost(
        total=(after - before) / load.requests * 1000,
        edge=sum(used[: -count_cores()]) / load.requests * 1000,
    )


def _report(rounds: Sequence[dict[str, Cost]]) -> None:
    for name in rounds[0]:
        costs = [(one[name], one[REFERENCE]) for one in rounds]
        say(
            f"{name}: {_spread([cost.total for cost, _ in costs])} CPU-ms, "
            f"{_spread([cost.total / reference.total for cost, reference in costs])} "
            f"of {REFERENCE}; edge {_spread([cost.edge for cost, _ in costs])} CPU-ms, "
            f"{_spread([cost.edge - reference.edge for cost, reference in costs])} more; "
            f"{len(rounds)} rounds"
        )


def _spread(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocols", description=__doc__)
    parser.add_argument("--model", default="cifar10-airbench")
    parser.add_argument("--repository", type=Path, default=SHIPPED_REPOSITORY)
    parser.add_argument("--quick", action="store_true", help="two rounds of half a second a wire")
    parser.add_argument("--rounds", type=int, help="default 15, quick 2")
    parser.add_argument("--seconds", type=float, help="a wire and round; default 2, quick 0.5")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--photographs", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--results", type=Path, default=RESULTS_FOLDER)
    given = parser.parse_args(arguments)
    rounds, seconds = (2, 0.5) if given.quick else (15, 2.0)
    given.rounds = rounds if given.rounds is None else given.rounds
    given.seconds = seconds if given.seconds is None else given.seconds
    return given


if __name__ == "__main__":
    raise SystemExit(main())
